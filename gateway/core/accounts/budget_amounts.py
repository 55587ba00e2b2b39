"""Budgets as administrators define them: faults of one, and amounts for calls and for people. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from gateway.core.accounts import groups
from gateway.core.accounts.budgets import (
    CUT,
    ENFORCE,
    KEY,
    MONEY,
    OF_GROUP,
    PROJECT,
    TENANT,
    USER,
    Budget,
    PersonalOverride,
    PersonalRaise,
    owner_of,
)
from gateway.core.accounts.intervals import INTERVALS, TOTAL, wrong_calendar
from gateway.core.accounts.steps import SWITCH, Step
from gateway.core.accounts.tags import CHARACTERS_MAX, read_value, tag_in
from gateway.core.accounts.windows import CALENDAR, Carry, read_length
from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import money
from gateway.core.model import INTEGER_MAX
from gateway.core.times import ms_of

# In units of the currency, up to so many decimals: beyond 2^53 billionths, in whole millions, those that
# currencies have.
MONEY_MAX: Final = 10**15
MONEY_DIGITS_MAX: Final = {9: 9_000_000, 3: 10**12, 2: 10**13, 0: MONEY_MAX}
THRESHOLDS_MAX: Final = 10
THRESHOLDS: Final = (0.5, 0.8, 1.0)
# Selector fields that exclude a value of `each`: one user cannot be split by user.
_FIXES: Final = {USER: "user", KEY: "api_key_id", PROJECT: "project_id", TENANT: "tenant_id"}
# The kind of a group whose members are values of `each`.
_KINDS: Final = {USER: groups.USER, KEY: groups.API_KEY, PROJECT: groups.PROJECT, TENANT: groups.TENANT}
# Values of `each` that are ids.
_BY_ID: Final = frozenset({KEY, PROJECT, TENANT})

Wrong = Iterator[tuple[str, str]]


def wrong_window(values: Mapping[str, Any]) -> Wrong:
    """Yield (field, fault) for each error in the fields of a new budget, such as its amount and interval."""
    yield from wrong_amount(values["unit"], values["amount"], "amount")
    each = values.get("each")
    if each in _FIXES and values.get(_FIXES[each]) is not None:
        yield "each", f"there is one {each} alone: {_FIXES[each]} names it"
    if each is not None and tag_in(each) in (values.get("tags") or {}):
        yield "each", f"there is one {each} alone: tags names it"
    yield from _wrong_length(values)
    if values.get("carry") is not None:
        yield from wrong_carry(values["unit"], values.get("interval"), values["carry"])


def _wrong_length(values: Mapping[str, Any]) -> Wrong:
    """Yield (field, fault) if a window's kind, interval, length, zone and first day do not fit together."""
    window, interval, length = values.get("window", CALENDAR), values.get("interval"), values.get("length")
    needs, lacks = ("interval", "length") if window == CALENDAR else ("length", "interval")
    if values.get(needs) is None:
        example = f"one of {', '.join(INTERVALS)}" if needs == "interval" else "such as 5h"
        yield needs, f"is required where the window is {window}: {example}"
    if values.get(lacks) is not None:
        yield lacks, f"there is none where the window is {window}, which has {needs}: leave it out"
    if length is not None and not read_length(length):
        yield "length", "must be from 5m to 366d, such as 90m, 5h or 7d"
    yield from wrong_calendar(interval or window, values.get("time_zone", "UTC"), values.get("anchor_day"))


def wrong_carry(unit: str, interval: object, carry: Mapping[str, Any]) -> Wrong:
    """Yield (field, fault) for each error in the carry-over of a budget with this unit and interval."""
    if interval in {None, TOTAL}:
        yield "carry", "needs an interval that ends: hour, day, week, month, quarter or year"
    most = carry["max"]
    yield from wrong_amount(unit, Decimal(most) if isinstance(most, str) else most, "carry.max", least=0)


def wrong_amount(unit: str, amount: object, field: str, least: int = 1) -> Wrong:
    """Yield `field` and the fault of an amount that its unit does not allow; with `least` 0 it may be 0."""
    if unit != MONEY:
        if not isinstance(amount, int) or not least <= amount <= INTEGER_MAX:
            yield field, f"must be a whole number from {least} to {INTEGER_MAX} where the unit is {unit}"
    elif not isinstance(amount, Decimal):
        yield field, 'must be a decimal in a string, such as "12.50", where the unit is money'
    elif not (
        (amount > 0 or amount == least)
        and any(
            amount <= most and amount == round(amount, digits) for digits, most in MONEY_DIGITS_MAX.items()
        )
    ):
        most = ", ".join(
            f"{digits} decimals up to {most}" for digits, most in MONEY_DIGITS_MAX.items() if digits
        )
        yield (
            field,
            f"must be {'above 0' if least else '0 or more'} and at most {MONEY_MAX}, with at most {most}",
        )


def wrong_raise(
    budget: Budget, amount: object, until: datetime, now: datetime, who: str | None = None,
    *, within: Collection[int] = (),
) -> Wrong:  # fmt: skip
    """Yield (field, fault) for each error in a raise of a budget's limit to `amount`, `until` a time.

    With `who`, the raise is of one value of `each`, and not below what this one has as a member of the groups
    with the ids `within`.
    """
    found = list(wrong_amount(budget.unit, amount, "amount"))
    yield from found
    has = budget.amount if who is None else budget.limit_of(owner_of(who), ms_of(now), within).amount
    whose = "the budget's own" if who is None else "what this one has"
    if has is None:
        yield "amount", "cannot be raised: this one has no limit"
    elif not found and counted(budget.unit, amount) < has:
        yield "amount", f"must not be below {whose}: what it is raised to, not by"
    if until <= now:
        yield "until", "must be in the future"
    if who is not None:
        yield from wrong_owner(budget, who)


def wrong_override(
    budget: Budget, amount: object, until: datetime | None, now: datetime, who: str, *, kind: str = ""
) -> Wrong:
    """Yield (field, fault) for each error in an override of `who`: 0 is nothing, None no limit.

    `who` is a value of `each`, or `group:ID`: then `kind` is that of the budget's organization's group, empty
    if there is none.
    """
    if amount is not None:
        yield from wrong_amount(budget.unit, amount, "amount", least=0)
    if until is not None and until <= now:
        yield "until", "must be in the future"
    if not budget.each or not who.startswith(OF_GROUP):
        yield from wrong_owner(budget, who)
    elif not kind or _KINDS.get(budget.each) != kind:
        yield "who", f"begins with {OF_GROUP}: it must be the id of a group of the kind that `each` is"


def wrong_owner(budget: Budget, who: str) -> Wrong:
    """Yield the fault of an owner that no account of the budget has."""
    if not budget.each:
        yield "who", "needs a budget with `each`: this one has one amount for all"
    elif budget.each in _BY_ID and groups.ID.fullmatch(who) is None:
        yield "who", f"must be the id of a {budget.each}, such as 7"
    elif who.startswith(OF_GROUP):
        yield "who", f"must be one {budget.each}: a group has an override"
    elif tag_in(budget.each) and read_value(who) != who:
        yield "who", f"must be a value of the tag {tag_in(budget.each)}: 1 to {CHARACTERS_MAX} characters"


def counted(unit: str, amount: Any) -> int:
    """Return an amount as it is counted: nano-units of money, tokens, or requests."""
    exact = Decimal(amount) * (NANO if unit == MONEY else 1)
    assert exact == int(exact), amount
    return int(exact)


def amount_of(unit: str, number: int) -> Decimal | int:
    """Return a counted number as an amount: money in its currency, tokens, or requests."""
    return money(number) if unit == MONEY else number


def render_amount(unit: str, number: int) -> str | int:
    """Return a counted number as callers read it: money as decimal text, other units as a number."""
    return format_number(MONEY, number) if unit == MONEY else number


def read_budget(row: Mapping[str, Any]) -> Budget:
    """Return the budget of a database row. Fields that are null get the default.

    `raises` and `overrides` of the row are by owner, each beginning with the amount and its end, in Unix ms.
    """
    unit = row["unit"]
    said: dict[str, Any] = {
        field.name: row[field.name] for field in fields(Budget) if row.get(field.name) is not None
    }
    said |= {name: counted(unit, said[name]) for name in ("amount", "raised_to") if name in said}
    if "tags" in said:
        said["tags"] = tuple(sorted(said["tags"].items()))
    if "carry" in said:
        said["carry"] = Carry(counted(unit, said["carry"]["max"]), said["carry"]["debt"])
    if "steps" in said:
        said["steps"] = tuple([
            Step(step["at"], tuple(step["models"].items()), step["session"] == SWITCH)
            for step in said["steps"]
        ])  # fmt: skip
    if row.get("length") is not None:
        said["length_ms"] = read_length(row["length"])
    if row.get("updated_at") is not None:
        said["changed_ms"] = ms_of(row["updated_at"])
    said["raises"] = {
        owner: PersonalRaise(counted(unit, amount), until_ms)
        for owner, (amount, until_ms, *_) in (row.get("raises") or {}).items()
    }
    said["overrides"] = {
        owner: PersonalOverride(None if amount is None else counted(unit, amount), until_ms or 0)
        for owner, (amount, until_ms, *_) in (row.get("overrides") or {}).items()
    }
    said.setdefault("interval", "")
    return Budget(
        **said, enforce=row["mode"] == ENFORCE, cut=row["on_exhausted"] == CUT,
        created_ms=ms_of(row["created_at"]), raised_until_ms=ms_of(row["raised_until"]),
    )  # fmt: skip


def format_amount(unit: str, amount: int, currency: str) -> str:
    """Return an amount as text for people: `12.5 USD`, `3000 tokens`, `20 requests`."""
    return f"{format_number(unit, amount)} {currency if unit == MONEY else unit}"


def format_number(unit: str, amount: int) -> str:
    """Return an amount as text without unit: money as a decimal, without trailing zeros."""
    if unit != MONEY:
        return str(amount)
    text = f"{money(amount):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
