"""Budgets as administrators say them: what is wrong with one, and what it is for calls. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from gateway.core.accounts.budgets import CUT, ENFORCE, KEY, MONEY, PROJECT, USER, Budget
from gateway.core.accounts.zones import wrong_calendar
from gateway.core.billing.cost import money
from gateway.core.billing.pricing import NANO
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import ms_of

# In units of the currency: of what is counted, 2^53 billionths, whole millions.
MONEY_MAX: Final = 9_000_000
MONEY_DIGITS_MAX: Final = 9
THRESHOLDS_MAX: Final = 10
THRESHOLDS: Final = (0.5, 0.8, 1.0)
# What fixes whose an account is cannot be asked for everybody of that kind as well.
_FIXES: Final = {USER: "user", KEY: "api_key_id", PROJECT: "project_id"}

Wrong = Iterator[tuple[str, str]]


def wrong_window(values: Mapping[str, Any]) -> Wrong:
    """What is wrong with the window a new budget would have, field by field."""
    yield from wrong_amount(values["unit"], values["amount"], "amount")
    each = values.get("each")
    if each in _FIXES and values.get(_FIXES[each]) is not None:
        yield "each", f"there is one {each} alone: {_FIXES[each]} names it"
    yield from wrong_calendar(values["interval"], values.get("time_zone", "UTC"), values.get("anchor_day"))


def wrong_amount(unit: str, amount: object, field: str) -> Wrong:
    """What is wrong with an amount of a unit."""
    if unit != MONEY:
        if not isinstance(amount, int) or not 0 < amount <= INTEGER_MAX:
            yield field, f"must be a whole number from 1 to {INTEGER_MAX} where the unit is {unit}"
    elif not isinstance(amount, Decimal):
        yield field, 'must be a decimal in a string, such as "12.50", where the unit is money'
    elif not 0 < amount <= MONEY_MAX or amount != round(amount, MONEY_DIGITS_MAX):
        yield field, f"must be above 0 and at most {MONEY_MAX}, with at most {MONEY_DIGITS_MAX} decimals"


def wrong_raise(budget: Budget, amount: object, until: datetime, now: datetime) -> Wrong:
    """What is wrong with a raise: to less than the amount, or until a time that is over."""
    found = list(wrong_amount(budget.unit, amount, "amount"))
    yield from found
    if not found and counted(budget.unit, amount) < budget.amount:
        yield "amount", "must not be below the budget's own: what it is raised to, not by"
    if until <= now:
        yield "until", "must be in the future"


def counted(unit: str, amount: Any) -> int:
    """An amount as it is counted: nano-units of money, tokens or requests."""
    exact = Decimal(amount) * (NANO if unit == MONEY else 1)
    assert exact == int(exact), amount
    return int(exact)


def amount_of(unit: str, number: int) -> Decimal | int:
    """What was counted, as an amount: money in its currency, tokens or requests."""
    return money(number) if unit == MONEY else number


def read_budget(row: Mapping[str, Any]) -> Budget:
    """A budget as it is stored, as calls meet it."""
    unit, raised_to = row["unit"], row["raised_to"]
    return Budget(
        id=row["id"],
        name=row["name"],
        unit=unit,
        amount=counted(unit, row["amount"]),
        interval=row["interval"],
        time_zone=row["time_zone"],
        anchor_day=row["anchor_day"],
        enforce=row["mode"] == ENFORCE,
        cut=row["on_exhausted"] == CUT,
        tenant_id=row["tenant_id"] or 0,
        user=row["user"] or "",
        api_key_id=row["api_key_id"] or 0,
        project_id=row["project_id"],
        model=row["model"] or "",
        service_id=row["service_id"] or 0,
        each=row["each"] or "",
        created_ms=ms_of(row["created_at"]),
        raised_to=0 if raised_to is None else counted(unit, raised_to),
        raised_until_ms=ms_of(row["raised_until"]),
    )
