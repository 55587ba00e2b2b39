"""A line of an invoice, and what all kinds of lines are made with. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, timedelta
from decimal import Decimal
from itertools import groupby

from gateway.core.billing.charge import DISCOUNT, ONE_DAY, Charge
from gateway.core.billing.subscription import Segment
from gateway.core.billing.tax import Dated, Tax, in_force

QUANTITY_ONE = 1

# A service in a month.
Month = tuple[int | None, date]


@dataclass(frozen=True, slots=True)
class Fee:
    """A segment of the subscription, and its plan's name."""

    segment: Segment
    plan: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The charges one invoice takes, up to the day `until` (not included), and what they are called.

    Names are by id: fees by segment, `remarks` by addition. `carried` is what each basis was billed exactly,
    less what its lines came to. `units_before` are the units of a service's month that were billed before.
    `since` is the first day: what was supplied before it was told late.

    `tax_rate` is in force until the first of the dated `taxes`. `taxed_before` is what a supply was billed
    with: what gives it back gives that tax back.
    """

    currency: str
    tax_rate: Decimal
    until: date
    charges: Sequence[Charge] = ()
    credits_consumed: int = 0
    fees: Mapping[int, Fee] = field(default_factory=dict)
    tenants: Mapping[int, str] = field(default_factory=dict)
    services: Mapping[int, str] = field(default_factory=dict)
    remarks: Mapping[int, str] = field(default_factory=dict)
    carried: Mapping[str, Decimal] = field(default_factory=dict)
    units_before: Mapping[Month, int] = field(default_factory=dict)
    since: date = date.min
    taxes: Sequence[Dated] = ()
    taxed_before: Mapping[object, Tax] = field(default_factory=dict)

    def tax_on(self, day: date) -> Tax:
        """The tax of what is supplied on a day."""
        return in_force(self.taxes, Tax(self.tax_rate), day)

    def tax_of(self, charge: Charge) -> Tax:
        """The tax of a charge: that of its last day, or what it was billed with where it gives back."""
        billed = self.taxed_before.get(charge.supply) if is_back(charge) else None
        return billed or self.tax_on((charge.end - ONE_DAY).astimezone(UTC).date())


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `amount` is rounded, `unit_price` is not. Days, tokens, credits and units are whole.

    `exact` is what its charges come to, and `basis` what its rounding goes on with; a tax has neither.
    """

    kind: str
    description: str
    quantity: int
    unit_price: Decimal
    amount: Decimal
    service_id: int | None = None
    tenant_id: int | None = None
    basis: str | None = None
    exact: Decimal | None = None
    # Of a line of older invoices it is not known; a tax has its own.
    tax: Tax | None = None
    # When its charges were supplied, half open; a tax has none.
    start: date | None = None
    end: date | None = None


# A line that is not rounded yet, and its charges.
Drawn = tuple[Line, Sequence[Charge]]


def is_back(charge: Charge) -> bool:
    """Whether a charge gives back what another one owed; a discount is below zero by itself."""
    return charge.amount > 0 if charge.kind == DISCOUNT else charge.amount < 0


def span(start: date, end: date) -> str:
    """Write a half-open span of days as people do: "1 to 15 April 2026"."""
    last = end - timedelta(days=1)
    if last <= start:
        return written(start)
    if (start.year, start.month) == (last.year, last.month):
        return f"{start.day} to {written(last)}"
    if start.year == last.year:
        return f"{start.day} {start:%B} to {written(last)}"
    return f"{written(start)} to {written(last)}"


def drawn(line: Line, charges: Sequence[Charge], basis: str) -> Drawn:
    """A line of charges, not rounded yet, with when they were supplied and what its rounding goes on with."""
    start = min(each.day for each in charges)
    end = max(each.end for each in charges).astimezone(UTC).date()
    return replace(line, basis=basis, exact=sum_of(charges), start=start, end=end), charges


def by(
    charges: Iterable[Charge], place: Callable[[Charge], tuple[object, ...] | Decimal]
) -> list[list[Charge]]:
    """Charges of the same place together, in the order of their places."""
    ordered = sorted(charges, key=place)
    return [list(group) for _, group in groupby(ordered, key=place)]


def sum_of(charges: Iterable[Charge]) -> Decimal:
    """Add up what charges come to."""
    return sum((charge.amount for charge in charges), Decimal(0))


def count_of(charges: Iterable[Charge]) -> int:
    """Add up what they are for."""
    return int(sum((charge.quantity for charge in charges), Decimal(0)))


def written(day: date) -> str:
    """Write a day as people do."""
    return f"{day.day} {day:%B %Y}"
