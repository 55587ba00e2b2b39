"""Discounts on the use of a service that an organization agreed on, by the month of supply. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from gateway.core.billing.charge_kinds import SERVICE_DISCOUNTS, UNITS
from gateway.core.billing.charges import ONE_DAY, SupplyCharge
from gateway.core.billing.money import EXACT


class DiscountFrom(NamedTuple):
    """A fraction that is off the use of a service, from the month `month` (its first day) on."""

    month: date
    rate: Decimal


class DayOfUse(NamedTuple):
    """The use of a service by a tenant on the day that begins at `start`."""

    tenant_id: int
    service_id: int
    start: datetime


class ChargedDay(NamedTuple):
    """What the use of a day costs, what was charged as its discount, and in how many charges."""

    used: Decimal
    discounted: Decimal
    rows: int


class DayCharge(NamedTuple):
    """A charge of a day: for its use, or its discount; of a note that gave it back if `is_note`."""

    is_use: bool
    is_note: bool
    amount: Decimal


def left_by_notes(charges: Iterable[DayCharge], rows: int) -> ChargedDay:
    """Return the use of a day that credit notes left, and the discount charged for that part, in `rows` charges.

    `charges` are in the order in which they were made. A note on use takes the same part of the discount
    charged by then out of account, whether it gave that back or not.
    """
    used, discounted = Fraction(0), Fraction(0)
    for charge in charges:
        if not charge.is_note:
            if charge.is_use:
                used += Fraction(charge.amount)
            else:
                discounted += Fraction(charge.amount)
        elif charge.is_use and used:
            left = used + Fraction(charge.amount)
            discounted, used = discounted * max(Fraction(0), left / used), left
    return ChargedDay(_exact(used), _exact(discounted), rows)


def _exact(amount: Fraction) -> Decimal:
    return EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator))


def rate_on(discounts: Iterable[DiscountFrom], day: date) -> Decimal:
    """Return the fraction that is off use of a day; 0 without one. `discounts` are in the order of months."""
    rate = Decimal(0)
    for discount in discounts:
        if discount.month <= day:
            rate = discount.rate
    return rate


def missing_discounts(
    rates: Mapping[int, Iterable[DiscountFrom]], days: Mapping[DayOfUse, ChargedDay]
) -> list[tuple[SupplyCharge, int]]:
    """Return the charges that bring each day's discount to its rate, with their number so far.

    A negative amount is off; a positive one takes back what was off too much.
    """
    charges = []
    for day, charged in sorted(days.items()):
        rate = rate_on(rates.get(day.service_id, ()), day.start.date())
        rest = -EXACT.multiply(charged.used, rate) - charged.discounted
        if rest:
            charge = SupplyCharge(
                SERVICE_DISCOUNTS.name, day.start, day.start + ONE_DAY, Decimal(1 if rest < 0 else -1),
                abs(rest), rest, UNITS, tenant_id=day.tenant_id, service_id=day.service_id,
            )  # fmt: skip
            charges.append((charge, charged.rows))
    return charges
