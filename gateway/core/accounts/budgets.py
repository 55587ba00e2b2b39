"""Budgets: how much money, tokens or calls an interval may use, and which calls each is about. Pure.

Whoever can change what a call says of itself must not get out of a budget by it: case never tells two models
apart, and a call that does not say whose it is shares one account with all that do not.
"""

from __future__ import annotations

import calendar
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from gateway.core.accounts.zones import offset_at
from gateway.core.billing.cost import money
from gateway.core.layout import Layout
from gateway.core.moments import EPOCH, HOUR_MS, MILLISECOND, moment_of

MONEY, TOKENS, REQUESTS = UNITS = ("money", "tokens", "requests")
HOUR, DAY, WEEK, MONTH, QUARTER, YEAR, TOTAL = INTERVALS = (
    "hour", "day", "week", "month", "quarter", "year", "total",
)  # fmt: skip
USER, KEY, PROJECT, SESSION = EACH = ("user", "key", "project", "session")
ENFORCE, AUDIT = MODES = ("enforce", "audit")
FINISH, CUT = ON_EXHAUSTED = ("finish", "cut")
# What a call takes from at most, and what one account has.
BUDGET_ACCOUNTS_MAX: Final = 16
WINDOWS_MAX: Final = 16

# One window as it travels with a call; its flags are one unit, then what becomes of who has used it up.
DEFINED_WINDOW = Layout("DEFINED_WINDOW", "f64 budget_id limit start next after, u8 flags")
FLAG_MONEY, FLAG_TOKENS, FLAG_REQUESTS, FLAG_ENFORCE, FLAG_CUT = 1, 2, 4, 8, 16
UNIT_OF: Final = {FLAG_MONEY: MONEY, FLAG_TOKENS: TOKENS, FLAG_REQUESTS: REQUESTS}
_FLAG_OF: Final = {unit: flag for flag, unit in UNIT_OF.items()}

_MONTHS: Final = {MONTH: 1, QUARTER: 3, YEAR: 12}


@dataclass(frozen=True, slots=True)
class Budget:
    """So much of a `unit` in each interval, for all calls that its selector matches.

    The selector is `tenant_id`, `user`, `api_key_id`, `project_id`, `model` (exact, or `prefix*`) and
    `service_id`: 0, an empty text or None says nothing. With `each` everybody of that kind has an amount of
    its own. `amount` and `raised_to` are nano-units of the organization's currency where the unit is money;
    `raised_to` stands for the amount until `raised_until_ms`, 0 where it is not raised. Without `enforce` it
    is counted and told, and refuses nobody; with `cut` it ends the stream that uses it up.
    """

    id: int
    name: str
    unit: str
    amount: int
    interval: str
    time_zone: str = "UTC"
    anchor_day: int = 1
    enforce: bool = True
    cut: bool = False
    tenant_id: int = 0
    user: str = ""
    api_key_id: int = 0
    project_id: int | None = None
    model: str = ""
    service_id: int = 0
    each: str = ""
    created_ms: int = 0
    raised_to: int = 0
    raised_until_ms: int = 0

    @property
    def selector(self) -> tuple[int, str, int, int | None, str, int, str]:
        """What calls it is about, and of each of what kind: budgets that are alike share their accounts."""
        model = self.model.lower()
        return self.tenant_id, self.user, self.api_key_id, self.project_id, model, self.service_id, self.each

    def limit_at(self, at_ms: int) -> int:
        """What may be used at a moment: more than the amount while it is raised."""
        return self.raised_to if at_ms < self.raised_until_ms else self.amount

    def matches(self, asked: Asked) -> bool:
        """Whether a call is one of those it is about. What a call does not name is not what this names."""
        return (
            self.tenant_id in {0, asked.tenant_id}
            and self.api_key_id in {0, asked.api_key_id}
            and self.service_id in {0, asked.service_id}
            and self.user in {"", asked.user}
            and self.project_id in {None, asked.project_id}
            and (not self.model or any(model and is_of(model, self.model) for model in asked.models))
        )

    def value_of(self, asked: Asked) -> str:
        """Whose account of this budget a call takes from; empty where there is only one, and for nobody's."""
        if self.each == USER:
            return asked.user
        if self.each == KEY:
            return str(asked.api_key_id)
        if self.each == PROJECT:
            return "" if asked.project_id is None else str(asked.project_id)
        return asked.session if self.each == SESSION else ""


# Whose an account is that all share beyond those there may be for each; see lua/lib/short.lua.
OTHERS = "other"
ALL_OTHERS = "all others"  # what people read of it


class Asked(NamedTuple):
    """What a call says of itself that decides which budgets it takes from; `models` may all answer it."""

    tenant_id: int
    api_key_id: int
    service_id: int
    user: str = ""
    project_id: int | None = None
    models: tuple[str, ...] = ()
    session: str = ""


def is_of(model: str, pattern: str) -> bool:
    """Whether a budget names this model: letter by letter, or by what it begins with where it ends with `*`.

    Case says nothing: many upstreams take a name in any.
    """
    model, pattern = model.lower(), pattern.lower()
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


def account_of(organization_id: int, budget: Budget, value: str = "") -> str:
    """The name of an account: of the organization and the selector, and of whom of each.

    A value is one of `value_of`; it is in no name, as it may be somebody's.
    """
    named = json.dumps([organization_id, *budget.selector], ensure_ascii=False)
    name = _digest(named)[:16]
    return f"{name}:{_digest(value)[:24]}" if budget.each else name


def bounds(interval: str, time_zone: str, anchor_day: int, at_ms: int) -> tuple[int, int, int]:
    """When the window at a moment began, when it ends, and when the one after it does; 0 is never.

    Months, quarters and years begin on the anchor's day, or the last day of a month that is shorter; weeks on
    its day, Monday being 1. A day is what the zone's clocks call one, of 23 or 25 hours where they change. An
    hour is from a full hour of these clocks to the next. ZoneInfoNotFoundError: nobody knows the zone.
    """
    if interval == TOTAL:
        return 0, 0, 0
    zone = ZoneInfo(time_zone)
    start, next_ = _window(interval, zone, anchor_day, at_ms)
    return start, next_, _window(interval, zone, anchor_day, next_)[1]


def defined(budgets: Iterable[Budget], at_ms: int) -> bytes:
    """The windows of one account at a moment, as the scripts take them."""
    return b"".join(
        DEFINED_WINDOW.pack(
            one.id,
            one.limit_at(at_ms),
            *bounds(one.interval, one.time_zone, one.anchor_day, at_ms),
            flags_of(one),
        )
        for one in sorted(budgets, key=lambda one: one.id)
    )


def defined_until(budgets: Iterable[Budget], at_ms: int) -> int:
    """Until when `defined` says the same: the next end of a window, or of a raise; 0 is for ever."""
    ends = [0]
    for one in budgets:
        ends += [bounds(one.interval, one.time_zone, one.anchor_day, at_ms)[1], one.raised_until_ms]
    return min((end for end in ends if end > at_ms), default=0)


def flags_of(budget: Budget) -> int:
    """The flags of a budget's window."""
    return _FLAG_OF[budget.unit] | FLAG_ENFORCE * budget.enforce | FLAG_CUT * budget.cut


def accounts_of(budgets: Sequence[Budget]) -> list[list[Budget]]:
    """The budgets that share their accounts, in the order of their ids."""
    groups: dict[object, list[Budget]] = {}
    for one in sorted(budgets, key=lambda one: one.id):
        groups.setdefault(one.selector, []).append(one)
    return list(groups.values())


def shown(unit: str, amount: int, currency: str) -> str:
    """An amount as people read it: `12.5 USD`, `3000 tokens`, `20 requests`."""
    return f"{shown_amount(unit, amount)} {currency if unit == MONEY else unit}"


def shown_amount(unit: str, amount: int) -> str:
    """An amount alone: money as a decimal of its currency, without zeros that say nothing."""
    if unit != MONEY:
        return str(amount)
    text = f"{money(amount):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _window(interval: str, zone: ZoneInfo, anchor_day: int, at_ms: int) -> tuple[int, int]:
    """When the window at a moment begins, and the next one."""
    if interval == HOUR:
        start = _hour(zone, at_ms)
        # Where clocks change by half an hour, an hour is longer or shorter by it.
        after = start + HOUR_MS // 2
        while (next_ := _hour(zone, after)) == start:
            after += HOUR_MS // 4
        return start, next_
    today = moment_of(at_ms).astimezone(zone).date()
    first, following = _days(interval, anchor_day, today)
    if _begins(following, zone) <= at_ms:  # clocks set back have told the next day for a minute
        first, following = _days(interval, anchor_day, following)
    return _begins(first, zone), _begins(following, zone)


def _hour(zone: ZoneInfo, at_ms: int) -> int:
    """The last moment, up to this one, at which the zone's clocks showed a full hour."""
    found = 0
    for shift in {offset_at(zone, at_ms), offset_at(zone, at_ms - 2 * HOUR_MS)}:
        full = at_ms - (at_ms + shift) % HOUR_MS
        while offset_at(zone, full) != shift:
            full -= HOUR_MS
        found = max(found, full)
    return found


def _days(interval: str, anchor_day: int, today: date) -> tuple[date, date]:
    """The day on which the window of a day begins, and that of the next one."""
    if interval == DAY:
        return today, today + timedelta(days=1)
    if interval == WEEK:
        start = today - timedelta(days=(today.isoweekday() - min(anchor_day, 7)) % 7)
        return start, start + timedelta(days=7)
    months = _MONTHS[interval]
    first = today.year * 12 + today.month - 1
    first -= first % months
    if today < _day(first, anchor_day):
        first -= months
    return _day(first, anchor_day), _day(first + months, anchor_day)


def _day(month: int, anchor_day: int) -> date:
    """The anchor's day of a month, counted from January of the year 0."""
    year, month = month // 12, month % 12 + 1
    return date(year, month, min(anchor_day, calendar.monthrange(year, month)[1]))


def _begins(day: date, zone: ZoneInfo) -> int:
    """The first moment of a day. Where clocks skip midnight, it is that at which they do."""
    return (datetime.combine(day, time(), zone).astimezone(UTC) - EPOCH) // MILLISECOND


@lru_cache(4096)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
