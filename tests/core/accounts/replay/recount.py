"""A second calculation of what budgets refuse, written another way: each call looks at all calls before it.

It knows windows by names of their intervals and by fractions, and searches least amounts by bisection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from gateway.core.accounts.budgets import Budget, owner_of
from gateway.core.accounts.replay.calls import StoredCall


class Use(NamedTuple):
    """An admitted use of one account."""

    at_ms: int
    amount: int


def owner(budget: Budget, call: StoredCall) -> str:
    if budget.each.startswith("tag:"):
        return dict(call.tags).get(budget.each[4:], "")
    said: dict[str, object] = {
        "": "", "user": call.user, "key": call.api_key_id or "", "tenant": call.tenant_id,
        "session": call.session, "project": "" if call.project_id is None else call.project_id,
    }  # fmt: skip
    return str(said[budget.each])


def applies(budget: Budget, call: StoredCall, model: str = "") -> bool:
    names = [model] if model else [call.model, call.response_model]
    wanted = budget.model.removesuffix("*").lower()
    return (
        budget.tenant_id in {0, call.tenant_id}
        and budget.user in {"", call.user}
        and (
            not wanted
            or any(
                name.lower().startswith(wanted) if budget.model.endswith("*") else name.lower() == wanted
                for name in names
                if name
            )
        )
        and all(dict(call.tags).get(name) == value for name, value in budget.tags)
        and (not budget.group_id or budget.group_id in call.groups)
    )


def amount(budget: Budget, call: StoredCall, cost: int) -> int:
    return {"money": cost, "tokens": call.tokens, "requests": call.requests}[budget.unit]


def limit(budget: Budget, who: str, at_ms: int, groups: Sequence[int]) -> int | None:
    """Return the limit of an owner, None for no limit: its own override, else its groups', else the budget's."""
    own = budget.overrides.get(owner_of(who)) if budget.each else None
    if own is not None and (own.until_ms == 0 or at_ms < own.until_ms):
        return own.amount
    of_groups = [budget.overrides.get(f"group:{group}") for group in groups]
    there = [
        one.amount for one in of_groups if one is not None and (one.until_ms == 0 or at_ms < one.until_ms)
    ]
    if not there:
        return budget.amount
    return min((one for one in there if one is not None), default=None)


def interval(budget: Budget, at_ms: int) -> datetime | date:
    return interval_of(budget.interval, budget.time_zone, budget.anchor_day, at_ms)


@lru_cache(100_000)
def interval_of(every: str, time_zone: str, anchor_day: int, at_ms: int) -> datetime | date:
    """Return a name of the interval at a time: its first day, or its hour in UTC."""
    here = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(time_zone))
    day = here.date()
    if every == "hour":
        return here.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if every == "week":
        return day - timedelta(days=(day.isoweekday() - anchor_day) % 7)
    return {"day": day, "month": day.replace(day=1), "total": date.min}[every]


def following(budget: Budget, name: datetime | date) -> datetime | date:
    return (
        name
        + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}[budget.interval]
    )


@lru_cache(100_000)
def end_ms(budget: Budget, name: datetime | date) -> int:
    """Return the last millisecond of an interval."""
    after = following(budget, name)
    if not isinstance(after, datetime):
        after = datetime(after.year, after.month, after.day, tzinfo=ZoneInfo(budget.time_zone))
    return round(after.timestamp() * 1000) - 1


def counted(
    budget: Budget, uses: Sequence[Use], at_ms: int, limits: Callable[[int], int | None]
) -> tuple[int, int]:
    """Return what counts in the window at a time, and what was carried into it."""
    if budget.window == "rolling":
        part = Fraction(budget.length_ms, 30)
        first = (at_ms // part - 30) * part
        return sum(use.amount for use in uses if use.at_ms >= first), 0
    if budget.window == "first_use":
        begun: list[Use] = []
        for use in uses:
            begun = [*begun, use] if begun and use.at_ms < begun[0].at_ms + budget.length_ms else [use]
        running = begun and at_ms < begun[0].at_ms + budget.length_ms
        return (sum(use.amount for use in begun) if running else 0), 0
    now = interval(budget, at_ms)
    used = sum(use.amount for use in uses if interval(budget, use.at_ms) == now)
    if budget.carry is None or not uses:
        return used, 0
    name, carried, totals = interval(budget, uses[0].at_ms), 0, Counter[object]()
    for use in uses:
        totals[interval(budget, use.at_ms)] += use.amount
    while name != now:
        within, spent = limits(end_ms(budget, name)), totals[name]
        if within is None:
            carried = budget.carry.max
        else:
            left = within + carried - spent
            carried = min(left if budget.carry.debt else max(left, 0), budget.carry.max)
        name = following(budget, name)
    return used, carried


class Recount:
    """Budgets with all uses that they admitted, and the calls that each had no room for."""

    def __init__(self, budgets: Sequence[Budget], calls: Sequence[StoredCall]) -> None:
        self.budgets = budgets
        self.uses: list[dict[str, list[Use]]] = [{} for _ in budgets]
        self.groups: list[dict[str, list[tuple[int, Sequence[int]]]]] = [{} for _ in budgets]
        self.short: list[list[tuple[str, StoredCall]]] = [[] for _ in budgets]
        self.refused: list[StoredCall] = []
        self.peaks: list[dict[str, int]] = [{} for _ in budgets]
        for call in calls:
            self.add(call)

    def add(self, call: StoredCall) -> None:
        fits = True
        for place, budget in enumerate(self.budgets):
            if applies(budget, call):
                who, needed = owner(budget, call), amount(budget, call, call.cost)
                most, (used, carried) = self.state(place, who, call)
                if budget.enforce and needed and most is not None and used + needed > most + carried:
                    self.short[place].append((who, call))
                    fits = False
        if not fits:
            self.note_groups(call)
            self.refused.append(call)
            return
        for place, budget in enumerate(self.budgets):
            if applies(budget, call):
                who, needed = owner(budget, call), amount(budget, call, call.cost)
                used, _ = self.state(place, who, call)[1]
                self.peaks[place][who] = max(self.peaks[place].get(who, 0), used + needed)
                if needed:
                    self.uses[place].setdefault(who, []).append(Use(call.at_ms, needed))
        self.note_groups(call)

    def note_groups(self, call: StoredCall) -> None:
        """Note the groups of a call, in which each of its owners is until its next one."""
        for place, budget in enumerate(self.budgets):
            if applies(budget, call):
                self.groups[place].setdefault(owner(budget, call), []).append((call.at_ms, call.groups))

    def state(self, place: int, who: str, call: StoredCall) -> tuple[int | None, tuple[int, int]]:
        budget, noted = self.budgets[place], self.groups[place].get(who, [])

        def limits(at_ms: int) -> int | None:
            groups = [groups for noted_ms, groups in noted if noted_ms <= at_ms]
            return limit(budget, who, at_ms, groups[-1] if groups else ())

        return limit(budget, who, call.at_ms, call.groups), counted(
            budget, self.uses[place].get(who, []), call.at_ms, limits
        )


def least_amounts(budget: Budget, calls: Sequence[StoredCall]) -> Iterator[tuple[str, int]]:
    """Yield each owner without an override, and its least amount, of the calls that a budget applies to."""
    mine = [call for call in calls if applies(budget, call)]
    groups = {int(name[6:]) for name in budget.overrides if name.startswith("group:")}
    for who in dict.fromkeys(owner(budget, call) for call in mine):
        its = [call for call in mine if owner(budget, call) == who]
        overridden = owner_of(who) in budget.overrides or any(groups & {*call.groups} for call in its)
        if budget.each and overridden:
            continue
        low, high = 0, sum(amount(budget, call, call.cost) for call in its)
        while low < high:
            middle = (low + high) // 2
            alone = replace(budget, amount=middle, enforce=True)
            low, high = (middle + 1, high) if Recount([alone], its).refused else (low, middle)
        yield who, low
