"""A charge: money that is owed for something supplied, exact, written when the fact is known.

Charges are only added. What takes one back is a charge of its own, with the sign turned. Pure: where they
are kept, and which invoice has one, is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from gateway.core.billing.pricing import EXACT, NANO, ONE_NANO
from gateway.core.billing.subscription import ADVANCE, ARREARS, Segment, cycle_of, midnight

FEE, OVERAGE, PURCHASE, USAGE = "subscription", "overage", "credits_purchased", "usage"
DISCOUNT, COMMITMENT, POSTPAID = "discount", "minimum_commitment", "credits_postpaid"
EARLY_USE = "early_use"
SEGMENT, TOKENS, ADDITION, UNITS = "subscription_segment", "token_ledger", "credit_addition", "usage_tier"
SUBSCRIPTION, DEBT = "organization_subscription", "credit_debt"
KINDS = (FEE, DISCOUNT, EARLY_USE, OVERAGE, PURCHASE, POSTPAID, USAGE, COMMITMENT)
# What counts toward a minimum.
COMMITTED = (FEE, DISCOUNT, EARLY_USE, OVERAGE, USAGE)
# Why a charge is there: what takes another one back, or owes it again, is none of the facts.
REASONS = ("fact", "returned", "void", "reissued", "credited", "credit_void")
ONE_DAY = timedelta(days=1)
# A kind, its source and which row of it, a tenant and a service, from when to when.
Supply = tuple[str, str, int | None, int | None, int | None, datetime, datetime]
# A source, and which row of it: None is all of them.
Wanted = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Charge:
    """Something supplied from `start` to `end` (not included), and what is owed for it.

    `source` and `source_id` name the rows it is for. `place` is where it lies in what it is of: a tenant's
    cycle, the first unit of its month. `id` is 0 until it is stored.
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
        """The UTC day it begins on."""
        return self.start.astimezone(UTC).date()

    @property
    def supply(self) -> Supply:
        """What was supplied, whichever way it is charged."""
        of = (self.source, self.source_id, self.tenant_id, self.service_id)
        return (self.kind, *of, self.start, self.end)


def day_fee(segment: Segment, day: date) -> Decimal:
    """What a day of a segment costs, in whole nano-units: a cycle's days add up to its cost, however cut."""
    if segment.is_free(day):
        return Decimal(0)
    first, following = cycle_of(segment.anchor, segment.interval, day)
    return part_of(segment.cost, (day - first).days, 1, (following - first).days)


def part_of(cost: Decimal, before: int, days: int, whole: int) -> Decimal:
    """What some days of a cycle come to, behind the first ones: in whole nano-units."""
    return EXACT.multiply(_part(cost, before + days, whole) - _part(cost, before, whole), ONE_NANO)


def day_fees(segment: Segment, since: date, until: date) -> Iterator[Charge]:
    """A segment's days from one to another (not included), a charge each, and one of what is off."""
    day = max(since, segment.start)
    while day < min(until, segment.end):
        fee = day_fee(segment, day)
        yield fee_charge(FEE, segment.id, day, Decimal(1), fee)
        off = EXACT.multiply(fee, segment.discount_of(day))
        if off:
            yield fee_charge(DISCOUNT, segment.id, day, Decimal(1), -off)
        day += ONE_DAY


def fee_charge(kind: str, segment_id: int, day: date, quantity: Decimal, amount: Decimal) -> Charge:
    """A day of a segment, or its discount, charged or taken back."""
    price = abs(amount)
    return Charge(kind, midnight(day), midnight(day + ONE_DAY), quantity, price, amount, SEGMENT, segment_id)


def charged_until(segment: Segment, until: date, begun: date) -> date:
    """Up to which day a segment is charged by who reaches a day.

    In advance these are whole cycles: those that began before that day, or before `begun`.
    """
    if segment.terms.billing == ADVANCE and segment.start < max(until, begun):
        return segment.term_of(min(max(until, begun), segment.end) - ONE_DAY)[1]
    return min(segment.end, until)


def due(charge: Charge, segments: Mapping[int, Segment]) -> datetime:
    """From which end of a period on an invoice takes it: a fee that is charged as one waits for its term.

    In advance that is the first day that is not free, in arrears the last one; of all else its own end.
    A day that its segment lost waits with what stands in its place.
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


def gathered(
    charges: Sequence[Charge], until: date, segments: Mapping[int, Segment], only: Wanted | None = None
) -> list[Charge]:
    """What an invoice up to a day takes of the charges that no other has: of one source, where it is said.

    What is due until then; and of later supply what is to be given back, since it was billed ahead. Of days
    that a segment has lost also what is owed again although its return is billed. A fee in advance that
    another one replaces is given back together with that one, never before it and never as one segment's.
    """
    if only is not None:
        charges = [each for each in charges if each.source == only[0] and only[1] in (None, each.source_id)]
    ends, alone = midnight(until), only is not None and only[1] is not None
    replaced = [_replacement(charge, segments) is not None for charge in charges]
    waits = [
        due(charge, segments) > ends or (is_replaced and alone)
        for charge, is_replaced in zip(charges, replaced, strict=True)
    ]
    later: defaultdict[object, Decimal] = defaultdict(Decimal)
    for charge, is_later in zip(charges, waits, strict=True):
        if is_later:
            later[charge.supply] += -charge.amount if charge.kind == DISCOUNT else charge.amount
    return [
        charge
        for charge, is_later, is_replaced in zip(charges, waits, replaced, strict=True)
        if not is_later
        or (later[charge.supply] < 0 and not is_replaced)
        or (later[charge.supply] > 0 and _is_lost(charge, segments))
    ]


def _segment(charge: Charge, segments: Mapping[int, Segment]) -> Segment | None:
    return segments.get(charge.source_id or 0) if charge.source == SEGMENT else None


def _replacement(charge: Charge, segments: Mapping[int, Segment]) -> Segment | None:
    """The segment that has a day which another one lost, where both are charged by the cycle in advance."""
    lost = _segment(charge, segments)
    if lost is None or charge.day < lost.end or lost.terms.billing != ADVANCE:
        return None
    for each in segments.values():
        is_alike = each.terms.billing == ADVANCE and each.interval == lost.interval
        if is_alike and each.start <= charge.day < each.end:
            return each
    return None


def _is_lost(charge: Charge, segments: Mapping[int, Segment]) -> bool:
    """Whether it is of a day that its segment does not have any more: all of that comes to nothing."""
    segment = _segment(charge, segments)
    return segment is not None and charge.day >= segment.end


def spread_amount(amount: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Cut an amount into parts as large as the weights say, in whole nano-units; they add up to it."""
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
    """Nano-units of so many days of a cycle, half-up: one division of whole numbers."""
    twice = EXACT.multiply(cost, Decimal(2 * NANO * days))
    return EXACT.divide_int(twice + whole, Decimal(2 * whole))


def _nano(amount: Decimal) -> Decimal:
    return amount.quantize(ONE_NANO, context=EXACT)
