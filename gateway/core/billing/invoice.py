"""From charges to lines: what an invoice says of the charges it takes.

Charges are exact, a line is rounded to the currency's minor unit, totals are sums of rounded lines. What
rounding took from or gave to a basis goes on with its next line: so parts come to what the whole does,
however many invoices it is cut into. Pure: where charges come from and where lines go is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from decimal import Decimal

from gateway.core.billing.charge import (
    COMMITMENT,
    DISCOUNT,
    EARLY_USE,
    FEE,
    ONE_DAY,
    OVERAGE,
    POSTPAID,
    PURCHASE,
    USAGE,
    Charge,
)
from gateway.core.billing.fee_lines import commitments, discounts, fees
from gateway.core.billing.line import (
    QUANTITY_ONE,
    Drawn,
    Facts,
    Fee,
    Line,
    by,
    count_of,
    drawn,
    span,
    sum_of,
    written,
)
from gateway.core.billing.pricing import EXACT, IN_MONEY, ONE_NANO, rounded
from gateway.core.billing.tax import Tax, taxes_of

__all__ = ["Bill", "Facts", "Fee", "Line", "bill", "span"]

INFORMATION = "credits_consumed"
# What a basis begins with that counts toward a minimum.
_COMMITTED = frozenset({"segment", "discount", "early", "tokens", "usage"})


@dataclass(frozen=True, slots=True)
class Bill:
    """The lines in order, and each charge with the position of its line: None where it came to nothing."""

    lines: tuple[Line, ...]
    placed: tuple[tuple[Charge, int | None], ...]


def bill(facts: Facts) -> Bill:
    """Make an invoice's lines: subscription, overage, credits bought and used, units by tier, tax."""
    lines: list[Line] = []
    placed: list[tuple[Charge, int | None]] = []
    carried = dict(facts.carried)
    of_kind = defaultdict[str, list[Charge]](list)
    for charge in facts.charges:
        of_kind[charge.kind].append(charge)
    for draw, kind in _ORDER:
        for tax, taxed in _by_tax(facts, of_kind[kind]):
            for line, charges in draw(facts, taxed):
                lines.append(replace(_rounded(line, carried, facts.currency), tax=tax))
                placed += [(charge, len(lines)) for charge in charges]
            if kind == USAGE:
                facts = _behind(facts, taxed)
    seen = {id(charge) for charge, _ in placed}
    placed += [(charge, None) for charge in facts.charges if id(charge) not in seen]
    lines += _taxes(lines, facts.currency)
    return Bill(tuple(lines), tuple(placed))


def _by_tax(facts: Facts, charges: Sequence[Charge]) -> list[tuple[Tax, Sequence[Charge]]]:
    """Charges with the same tax together, the earliest first; without charges the tax of the last day."""
    if not charges:
        return [(facts.tax_on(facts.until - ONE_DAY), ())]
    found: dict[Tax, list[Charge]] = {}
    for charge in charges:
        found.setdefault(facts.tax_of(charge), []).append(charge)
    return sorted(found.items(), key=lambda of: min(each.start for each in of[1]))


def _behind(facts: Facts, charges: Sequence[Charge]) -> Facts:
    """The facts for units behind these ones, in the same months."""
    before = dict(facts.units_before)
    for each in charges:
        if not _in_money(each):
            month = (each.service_id, each.day.replace(day=1))
            before[month] = before.get(month, 0) + int(each.quantity)
    return replace(facts, units_before=before)


def _rounded(line: Line, carried: dict[str, Decimal], currency: str) -> Line:
    """Round what is billed of a basis up to now, less what was billed of it before.

    What is missing to a minimum takes the rest of all that counts toward it: together they come to it.
    """
    if line.basis is None or line.exact is None:
        return replace(line, amount=rounded(line.amount, currency))
    due = line.exact + carried.get(line.basis, Decimal(0))
    rest = Decimal(0)
    if line.kind == COMMITMENT:
        others = (each for each in carried if each != line.basis and each.partition(":")[0] in _COMMITTED)
        rest = sum((carried[each] for each in others), Decimal(0))
    amount = rounded(due + rest, currency)
    carried[line.basis] = due - amount
    return replace(line, amount=amount)


def _early_uses(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """Tokens used ahead of their days, where a plan ended inside a cycle: one line for each end."""
    for of_end in by(charges, lambda each: (each.tenant_id, each.start, each.unit_price, each.end)):
        first, exact, tokens = of_end[0], sum_of(of_end), count_of(of_end)
        if not exact and not tokens:
            continue
        tenant = facts.tenants.get(first.tenant_id or 0, f"tenant {first.tenant_id}")
        days = span(first.day, first.end.astimezone(UTC).date())
        description = f"Tokens of the plan used ahead of its days, {tenant}, {days}"
        if tokens < 0:
            description += ", given back"
        line = Line(EARLY_USE, description, tokens, first.unit_price, exact, tenant_id=first.tenant_id)
        yield drawn(line, of_end, f"early:{first.tenant_id}")


def _overages(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    for of_cycle in by(charges, lambda each: (each.tenant_id, each.place, each.unit_price)):
        first, exact, tokens = of_cycle[0], sum_of(of_cycle), count_of(of_cycle)
        if not exact and not tokens:
            continue
        tenant = facts.tenants.get(first.tenant_id or 0, f"tenant {first.tenant_id}")
        description = (
            f"Tokens beyond the plan, {tenant}, cycle from {written(min(each.day for each in of_cycle))}"
        )
        if tokens < 0:
            description += ", given back"
        line = Line(OVERAGE, description, tokens, first.unit_price, exact, tenant_id=first.tenant_id)
        yield drawn(line, of_cycle, f"tokens:{first.tenant_id}")


def _purchases(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    for of_one in by(charges, lambda each: (each.start, each.source_id)):
        first, quantity = of_one[0], count_of(of_one)
        if not quantity:
            continue
        what = "Credits" if quantity > 0 else "Credits taken back"
        description = f"{what}, {written(first.day)}"
        if remark := facts.remarks.get(first.source_id or 0):
            description += f", {remark}"
        line = Line(PURCHASE, description, quantity, first.unit_price, sum_of(of_one))
        yield drawn(line, of_one, f"addition:{first.source_id}")


def _postpaid(_: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """Credits used beyond the balance: one line for each price."""
    for of_price in by(charges, lambda each: (each.unit_price,)):
        first, quantity, exact = of_price[0], count_of(of_price), sum_of(of_price)
        if not exact and not quantity:
            continue
        days = span(min(each.day for each in of_price), max(each.day for each in of_price) + ONE_DAY)
        description = f"Credits used beyond the balance, {days}"
        if quantity < 0:
            description += ", given back"
        yield drawn(Line(POSTPAID, description, quantity, first.unit_price, exact), of_price, "postpaid")


def _consumed(facts: Facts, _: Sequence[Charge]) -> Iterator[Drawn]:
    if facts.credits_consumed:
        description = "Credits used, paid with credits"
        yield Line(INFORMATION, description, facts.credits_consumed, Decimal(0), Decimal(0)), ()


def _uses(facts: Facts, charges: Sequence[Charge]) -> Iterator[Drawn]:
    """One line a tier of a service's month, in the order the month reached them; use at cost is one."""
    for of_month in by(
        charges, lambda each: (each.day.replace(day=1), each.service_id or 0, _in_money(each))
    ):
        first = of_month[0]
        month = first.day.replace(day=1)
        name = facts.services.get(first.service_id or 0, f"service {first.service_id or 0}")
        description = f"{name}, {month:%B %Y}"
        portions = [each for each in by(of_month, lambda each: each.unit_price) if count_of(each)]
        late = _late(facts, of_month)
        if _in_money(first):
            for portion in portions:
                yield drawn(_at_cost(portion, description, late), portion, f"usage:{first.service_id}")
            continue
        before = facts.units_before.get((first.service_id, month), 0)
        at, portions = (
            before,
            sorted(portions, key=lambda of: (min(each.place or 0 for each in of), of[0].unit_price)),
        )
        for portion in portions:
            units, said = count_of(portion), description
            if units < 0:
                said += ", given back"
            elif at >= 0 and (before or len(portions) > 1):  # more may have come back than is billed
                said += f", units {at + 1:,} to {at + units:,}"
            at += units
            said, late = said + late, ""
            exact = sum_of(portion)
            line = Line(USAGE, said, units, portion[0].unit_price, exact, service_id=first.service_id)
            yield drawn(line, portion, f"usage:{first.service_id}")


def _late(facts: Facts, charges: Sequence[Charge]) -> str:
    """How much of a service's month was used before the period that began in it; empty where nothing was."""
    units = count_of(each for each in charges if each.day < facts.since)
    if units <= 0 or charges[0].day.replace(day=1) != facts.since.replace(day=1):
        return ""
    amount = f"{EXACT.normalize(units * ONE_NANO):f}" if _in_money(charges[0]) else f"{units:,}"
    return f", {amount} of it used before {written(facts.since)}"


def _at_cost(charges: Sequence[Charge], description: str, late: str) -> Line:
    """Use that is charged what it cost: one line, its price exact to the last unit."""
    exact = sum_of(charges)
    sign, description = QUANTITY_ONE, f"{description}, at cost"
    if exact < 0:
        sign, description = -QUANTITY_ONE, f"{description}, given back"
    return Line(USAGE, description + late, sign, abs(exact), exact, service_id=charges[0].service_id)


def _taxes(lines: Sequence[Line], currency: str) -> list[Line]:
    """A line for each tax of the lines; none where nothing is taxed and nothing has to be said of that."""
    found = []
    for tax, subtotal in taxes_of((line.tax, line.amount) for line in lines).items():
        exact = EXACT.multiply(subtotal, tax.rate)
        if exact or (tax.said and not tax.rate):
            found.append(Line("tax", tax.said, QUANTITY_ONE, exact, rounded(exact, currency), tax=tax))
    return found


_ORDER = (
    (fees, FEE),
    (discounts, DISCOUNT),
    (_early_uses, EARLY_USE),
    (_overages, OVERAGE),
    (_purchases, PURCHASE),
    (_postpaid, POSTPAID),
    (_consumed, INFORMATION),
    (_uses, USAGE),
    (commitments, COMMITMENT),
)


def _in_money(charge: Charge) -> bool:
    return charge.unit_price == IN_MONEY[0].unit_price
