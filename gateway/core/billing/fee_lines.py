"""Lines of a subscription: fees of its days, what is off them, what is missing to its minimum. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from gateway.core.billing.charge import COMMITMENT, DISCOUNT, FEE, Charge
from gateway.core.billing.line import QUANTITY_ONE, Drawn, Facts, Fee, Line, by, count_of, drawn, span, sum_of
from gateway.core.billing.pricing import EXACT
from gateway.core.billing.subscription import cycle_of

UNIT_PRICE_DIGITS = 12


def fees(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """A line for days that follow each other within a cycle; none for days that were taken back already."""
    runs: list[tuple[tuple[int, ...], list[Charge]]] = []
    for days in by(charges, lambda charge: charge.supply):
        amount, quantity = sum_of(days), count_of(days)
        if amount or quantity:
            segment = facts.fees[days[0].source_id or 0].segment
            cycle = cycle_of(segment.anchor, segment.interval, days[0].day)
            sign = 1 if (quantity or amount) > 0 else -1
            free = segment.is_free(days[0].day)
            place = (segment.start.toordinal(), segment.id, sign, cycle[0].toordinal(), not free)
            if runs and runs[-1][0] == place and runs[-1][1][-1].end == days[0].start:
                runs[-1][1].extend(days)
            else:
                runs.append((place, list(days)))
    for (_, segment_id, sign, *_), of_run in sorted(runs, key=lambda run: (run[0], run[1][0].start)):
        yield drawn(_fee(facts.fees[segment_id], of_run, sign), of_run, f"segment:{segment_id}")


def _fee(fee: Fee, charges: Sequence[Charge], sign: int) -> Line:
    segment, exact = fee.segment, sum_of(charges)
    start, end = charges[0].day, charges[-1].day + timedelta(days=1)
    first, following = cycle_of(segment.anchor, segment.interval, start)
    days, whole = (end - start).days, (following - first).days
    description = f"{fee.plan}, {span(start, end)}"
    quantity, price = sign, segment.cost
    if days != whole or abs(exact) != segment.cost:
        description += ", trial" if segment.is_free(start) else f" ({days} of {whole} days)"
        quantity = days * sign
        price = EXACT.divide(segment.cost, Decimal(whole)).quantize(
            Decimal(1).scaleb(-UNIT_PRICE_DIGITS), ROUND_HALF_EVEN, EXACT
        )
    if sign < 0:
        description += ", given back"
    return Line(FEE, description, quantity, price, exact)


def discounts(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """A line for what is off a segment's days, and one for what is no longer since they were lost."""
    for of_one in by(charges, lambda each: (each.source_id, each.quantity < 0)):
        fee, exact = facts.fees[of_one[0].source_id or 0], sum_of(of_one)
        if not exact:
            continue
        first, last = min(each.day for each in of_one), max(each.day for each in of_one)
        percent = f"{((fee.segment.terms.discount_rate or Decimal(0)) * 100).normalize():f}"
        description = f"Discount {percent} %, {fee.plan}, {span(first, last + timedelta(days=1))}"
        if exact > 0:
            description += ", taken back"
        line = Line(DISCOUNT, description, QUANTITY_ONE if exact > 0 else -QUANTITY_ONE, abs(exact), exact)
        yield drawn(line, of_one, f"discount:{of_one[0].source_id}")


def commitments(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """What is missing to the minimum that a cycle comes to, or too much of it where use was told late."""
    for of_cycle in by(charges, lambda each: (each.source_id, each.start)):
        exact, first = sum_of(of_cycle), of_cycle[0]
        if exact:
            description = f"Up to the minimum commitment, {span(first.day, first.end.astimezone(UTC).date())}"
            if exact < 0:
                description += ", given back"
            sign = QUANTITY_ONE if exact > 0 else -QUANTITY_ONE
            line = Line(COMMITMENT, description, sign, abs(exact), exact)
            yield drawn(line, of_cycle, f"commitment:{first.source_id}")
