"""Charges: exact amounts of money owed for supplies, written once the facts are known.

Charges are only added. A correction is another charge with the opposite sign. Pure: where charges are stored,
and which invoice has them, is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from gateway.core.billing.charge_kinds import (
    CHARGE_KINDS,
    COMMITMENTS,
    EARLY_USES,
    FEE_DISCOUNTS,
    FEES,
    OVERAGES,
    POSTPAID_CREDITS,
    PURCHASES,
    SEGMENT,
    USES,
    ChargeKind,
    kind_of,
)
from gateway.core.billing.money import EXACT, NANO, ONE_NANO, times
from gateway.core.billing.subscription import ADVANCE, ARREARS, PlanSegment, cycle_of, midnight

FEE, DISCOUNT, COMMITMENT = FEES.name, FEE_DISCOUNTS.name, COMMITMENTS.name
EARLY_USE, OVERAGE, USAGE = EARLY_USES.name, OVERAGES.name, USES.name
PURCHASE, POSTPAID = PURCHASES.name, POSTPAID_CREDITS.name
SUBSCRIPTION, DEBT = "organization_subscription", "credit_debt"
KINDS = tuple(dict.fromkeys(kind.name for kind in CHARGE_KINDS))
# Charges that count toward a minimum, and those that lower what is owed.
COMMITTED = tuple(dict.fromkeys(kind.name for kind in CHARGE_KINDS if kind.is_committed))
REDUCTIONS = tuple(dict.fromkeys(kind.name for kind in CHARGE_KINDS if kind.is_reduction))
# Reasons of charges: all but `fact` take another charge back, or owe it again.
REASONS = ("fact", "returned", "void", "reissued", "credited", "credit_void")
ONE_DAY = timedelta(days=1)
# A kind, its source and the id of its row, a tenant, a service, a start and an end.
Supply = tuple[str, str, int | None, int | None, int | None, datetime, datetime]


class ChargeSelection(NamedTuple):
    """A source, or a kind of charge, and the id of its row; None means all rows."""

    source: str
    row_id: int | None

    def includes(self, charge: SupplyCharge) -> bool:
        return self.source in {charge.source, charge.kind} and self.row_id in {None, charge.source_id}


@dataclass(frozen=True, slots=True)
class SupplyCharge:
    """A supply from `start` to `end` (exclusive), and the amount owed for it.

    `source` and `source_id` name the rows that it charges for. `place` is its position within them: a
    tenant's cycle, or the first unit of its month. `id` is 0 until it is stored.
    """

    kind: str
    start: datetime
    end: datetime
    quantity: Decimal
    unit_price: Decimal
    amount: Decimal
    source: str
    source_id: int | None = None
    tenant_id: int | None = None
    service_id: int | None = None
    place: int | None = None
    id: int = 0

    @property
    def day(self) -> date:
        """The UTC day on which the supply begins."""
        return self.start.astimezone(UTC).date()

    @property
    def charge_kind(self) -> ChargeKind:
        return kind_of(self.kind, self.source)

    @property
    def supply(self) -> Supply:
        """The key of the charged supply; a charge and its corrections have the same key."""
        subject = (self.source, self.source_id, self.tenant_id, self.service_id)
        return (self.kind, *subject, self.start, self.end)


def day_fee(segment: PlanSegment, day: date) -> Decimal:
    """Return the fee for a day of a plan segment, in whole nano-units; 0 for a free day of the trial.

    The fees of all days of a cycle add up to the cost of the cycle.
    """
    if segment.is_free(day):
        return Decimal(0)
    first, following = cycle_of(segment.anchor, segment.interval, day)
    return part_of(segment.cost, (day - first).days, 1, (following - first).days)


def part_of(cost: Decimal, before: int, days: int, whole: int) -> Decimal:
    """Return the cost of `days` days of a billing cycle, in whole nano-units.

    `cost` is the cost of the cycle, `whole` its number of days, and `before` the number of its days
    before these.
    """
    return EXACT.multiply(_part(cost, before + days, whole) - _part(cost, before, whole), ONE_NANO)


def day_fees(segment: PlanSegment, since: date, until: date) -> Iterator[SupplyCharge]:
    """Yield a charge for the fee of each day from `since` to `until` (exclusive) within a plan segment.

    If the day has a discount, yield another charge for that, with a negative amount.
    """
    day = max(since, segment.start)
    while day < min(until, segment.end):
        fee = day_fee(segment, day)
        yield fee_charge(FEE, segment.id, day, Decimal(1), fee)
        off = EXACT.multiply(fee, segment.discount_of(day))
        if off:
            yield fee_charge(DISCOUNT, segment.id, day, Decimal(1), -off)
        day += ONE_DAY


def fee_charge(kind: str, segment_id: int, day: date, quantity: Decimal, amount: Decimal) -> SupplyCharge:
    """Return the charge of a plan segment's fee or discount (`kind`) for a day; negative to give it back."""
    price = abs(amount)
    return SupplyCharge(
        kind, midnight(day), midnight(day + ONE_DAY), quantity, price, amount, SEGMENT, segment_id
    )


def charged_until(segment: PlanSegment, until: date, begun: date) -> date:
    """Return the day (exclusive) up to which the fee of a segment is charged when `until` is reached.

    If fees are due in advance, all cycles are charged whole that began before `until` or before `begun`.
    """
    if segment.terms.billing == ADVANCE and segment.start < max(until, begun):
        return segment.term_of(min(max(until, begun), segment.end) - ONE_DAY)[1]
    return min(segment.end, until)


def due(charge: SupplyCharge, segments: Mapping[int, PlanSegment]) -> datetime:
    """Return the earliest end of a period whose invoice includes a charge.

    A fee in advance is due after the first day that is not free, a fee in arrears at the end of its
    cycle, any other charge at its own end. A day that was taken from its segment (because the plan
    changed) is due with the segment that replaces it.
    """
    segment = _segment(charge, segments)
    if segment is not None and charge.day >= segment.end:
        segment = _replacement(charge, segments)
    if segment is None or not segment.terms.billing:
        return charge.end
    first, following = segment.term_of(charge.day)
    if segment.terms.billing == ARREARS:
        return midnight(following)
    return midnight(max(first, min(segment.terms.trial_end or first, charge.day)) + ONE_DAY)


def gather_charges(
    charges: Sequence[SupplyCharge],
    until: date,
    segments: Mapping[int, PlanSegment],
    only: ChargeSelection | None = None,
) -> list[SupplyCharge]:
    """Return the charges that an invoice up to `until` includes, from those without an invoice yet.

    They are the charges due by then, and refunds of later supply that was billed ahead. For days that
    were taken from a segment they include new debts whose refund is billed. A fee in advance is refunded
    together with the fee that replaces it: never earlier, and never in an invoice for one segment. `only`
    selects the charges of one source or kind, or of one row of the source.
    """
    end, is_one_row = midnight(until), only is not None and only.row_id is not None
    selected = charges if only is None else [charge for charge in charges if only.includes(charge)]
    replaced = [_replacement(charge, segments) is not None for charge in selected]
    waits = [
        due(charge, segments) > end or (is_one_row and is_replaced)
        for charge, is_replaced in zip(selected, replaced, strict=True)
    ]
    later: defaultdict[object, Decimal] = defaultdict(Decimal)
    for charge, is_later in zip(selected, waits, strict=True):
        if is_later:
            later[charge.supply] += -charge.amount if charge.charge_kind.is_reduction else charge.amount

    def is_settled_now(charge: SupplyCharge, is_replaced: bool) -> bool:
        """Return whether a charge that waits is included all the same: as a refund, or as a debt that would be lost."""
        rest = later[charge.supply]
        return (rest < 0 and not is_replaced) or (rest > 0 and _is_lost(charge, segments))

    return [
        charge
        for charge, is_later, is_replaced in zip(selected, waits, replaced, strict=True)
        if not is_later or is_settled_now(charge, is_replaced)
    ]


def _segment(charge: SupplyCharge, segments: Mapping[int, PlanSegment]) -> PlanSegment | None:
    return segments.get(charge.source_id or 0) if charge.source == SEGMENT else None


def _replacement(charge: SupplyCharge, segments: Mapping[int, PlanSegment]) -> PlanSegment | None:
    """Return the segment that replaces the charge's own on a day taken from it; None if there is none.

    Both segments must bill in advance, by the same interval.
    """
    lost = _segment(charge, segments)
    if lost is None or charge.day < lost.end or lost.terms.billing != ADVANCE:
        return None
    for segment in segments.values():
        is_alike = segment.terms.billing == ADVANCE and segment.interval == lost.interval
        if is_alike and segment.start <= charge.day < segment.end:
            return segment
    return None


def _is_lost(charge: SupplyCharge, segments: Mapping[int, PlanSegment]) -> bool:
    """Return whether the day of a charge was taken from its plan segment by a change of plan."""
    segment = _segment(charge, segments)
    return segment is not None and charge.day >= segment.end


def spread_amount(amount: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Split an amount in proportion to the weights, in whole nano-units that add up to it."""
    total = sum(map(abs, weights), Decimal(0))
    if not total:
        return [amount, *[Decimal(0)] * (len(weights) - 1)] if weights else []
    parts, given, seen = [], Decimal(0), Decimal(0)
    for weight in weights:
        seen += abs(weight)
        upto = amount if seen == total else _nano(EXACT.divide(EXACT.multiply(amount, seen), total))
        parts.append(upto - given)
        given = upto
    return parts


def _part(cost: Decimal, days: int, whole: int) -> Decimal:
    """Return the cost of the first `days` of a cycle in nano-units, rounded half-up once."""
    twice = EXACT.multiply(cost, Decimal(2 * NANO * days))
    return EXACT.divide_int(twice + whole, Decimal(2 * whole))


def _nano(amount: Decimal) -> Decimal:
    return amount.quantize(ONE_NANO, context=EXACT)


# Maxima of money, so that all accepted amounts can be billed. Pure.
#
# A price and a quantity that people enter are checked together: their product has a maximum. The total of an
# invoice has one too: charges beyond it wait for another invoice. Sums below both are exact, and fit their
# columns.

# The largest product of an entered price and quantity, in units of their currency.
PRODUCT_MAX = 10**12
# The largest cost of one event, amendment or adjustment beyond a plan or balance.
MOVE_MAX = 10**10
# The largest price of a token beyond a plan.
TOKEN_PRICE_MAX = 1_000
# The largest sums of one invoice, of charges and of refunds separately, and of their units. Columns of lines
# have room for ten times as much, because tax is added.
INVOICE_MAX = 10**15
INVOICE_UNITS_MAX = 10**17


def too_many(quantity: int, unit_price: Decimal | None, most: int = PRODUCT_MAX) -> str | None:
    """Return the fault of a quantity that is too large at this price, with the right maximum; else None."""
    if unit_price is None or times(abs(quantity), unit_price) <= most:
        return None
    right = EXACT.divide_int(Decimal(most), unit_price)
    return f"must be at most {right:f} at {unit_price:f} each: no more than {most} can be billed of it"


def too_dear(unit_price: Decimal | None, quantity: int, most: int = PRODUCT_MAX) -> str | None:
    """Return the fault of a price that is too high for this quantity, with the right maximum; else None."""
    if unit_price is None or times(abs(quantity), unit_price) <= most:
        return None
    right = EXACT.normalize(EXACT.divide_int(Decimal(most * NANO), Decimal(abs(quantity))).scaleb(-9))
    return f"must be at most {right:f} for {abs(quantity)}: no more than {most} can be billed of it"


class ChargeSplit(NamedTuple):
    """Charges that one invoice includes, and those left for another one."""

    taken: Sequence[SupplyCharge]
    left: Sequence[SupplyCharge]


NOTHING = ChargeSplit((), ())


def split_at_maxima(charges: Sequence[SupplyCharge]) -> ChargeSplit:
    """Split charges, in order, into those that fit within the maxima of one invoice and the rest."""
    taken, left = [], []
    room = dict.fromkeys((False, True), (Decimal(INVOICE_MAX), Decimal(INVOICE_UNITS_MAX)))
    for charge in charges:
        is_back = charge.amount < 0
        money = EXACT.subtract(room[is_back][0], abs(charge.amount))
        units = EXACT.subtract(room[is_back][1], abs(charge.quantity))
        if min(money, units) < 0:
            left.append(charge)
        else:
            room[is_back] = (money, units)
            taken.append(charge)
    return ChargeSplit(taken, left)


def left_out(charges: Sequence[SupplyCharge], currency: str) -> str:
    """Return an invoice's note about charges beyond its maximum, which are left out; empty without any."""
    if not charges:
        return ""
    total = Decimal(0)
    for charge in charges:
        total = EXACT.add(total, charge.amount)
    named = f"charge {charges[0].id}" if charges[0].id else f"a charge of {charges[0].day}"
    first = named if len(charges) == 1 else f"{len(charges)} charges, the first of them {named}"
    return (
        f"Not on this invoice: {first}, {EXACT.normalize(total):f} {currency} in all."
        f" One invoice bears at most {INVOICE_MAX:,} {currency}."
    )
