"""Make the lines of an invoice from its charges.

Charges are exact, a line is rounded to the currency's minor unit, totals are sums of rounded lines. The
rounding difference of a basis is carried to its next line: so parts add up to the whole, however many
invoices it is divided into. Pure: where charges come from and where lines go is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import groupby

from gateway.core.billing.charge_kinds import (
    CHARGE_KINDS,
    COMMITMENTS,
    EARLY_USES,
    FEE_DISCOUNTS,
    FEES,
    OVERAGES,
    POSTPAID_CREDITS,
    PURCHASES,
    SERVICE_DISCOUNTS,
    USES,
    ChargeKind,
)
from gateway.core.billing.charges import (
    COMMITMENT,
    DISCOUNT,
    EARLY_USE,
    FEE,
    ONE_DAY,
    OVERAGE,
    POSTPAID,
    PURCHASE,
    USAGE,
    SupplyCharge,
)
from gateway.core.billing.document import EffectiveTax, Tax, in_force, taxes_of
from gateway.core.billing.money import EXACT, IN_MONEY, ONE_NANO, rounded
from gateway.core.billing.service_discounts import DiscountFrom, rate_on
from gateway.core.billing.subscription import PlanSegment, cycle_of
from gateway.errors import Conflict, Unprocessable

# A line of an invoice, and helpers for all kinds of lines. Pure.

QUANTITY_ONE = 1

# A service in a month.
Month = tuple[int | None, date]


@dataclass(frozen=True, slots=True)
class Fee:
    """A segment of the subscription, and its plan's name."""

    segment: PlanSegment
    plan: str


@dataclass(frozen=True, slots=True)
class InvoiceFacts:
    """The charges of one invoice, up to the day `until` (exclusive), and the names for its lines.

    Names are by id: fees by segment, `remarks` by addition. `carried` is by basis the exact sum billed so far
    less the sum of its lines. `units_before` are the units of a service's month billed earlier. `since` is
    the first day: supply before it was reported late. `tax_rate` applies until the first of the dated
    `taxes`. `taxed_before` is the tax that each supply was billed with: a refund returns that tax.
    """

    currency: str
    tax_rate: Decimal
    until: date
    charges: Sequence[SupplyCharge] = ()
    credits_consumed: int = 0
    fees: Mapping[int, Fee] = field(default_factory=dict)
    tenants: Mapping[int, str] = field(default_factory=dict)
    services: Mapping[int, str] = field(default_factory=dict)
    remarks: Mapping[int, str] = field(default_factory=dict)
    carried: Mapping[str, Decimal] = field(default_factory=dict)
    units_before: Mapping[Month, int] = field(default_factory=dict)
    since: date = date.min
    taxes: Sequence[EffectiveTax] = ()
    taxed_before: Mapping[object, Tax] = field(default_factory=dict)
    # Discounts by service, in the order of months.
    discounts: Mapping[int, Sequence[DiscountFrom]] = field(default_factory=dict)

    def tax_on(self, day: date) -> Tax:
        return in_force(self.taxes, Tax(self.tax_rate), day)

    def tax_of(self, charge: SupplyCharge) -> Tax:
        """Return a charge's tax: that of its last day, or for a refund the tax it was billed with."""
        billed = self.taxed_before.get(charge.supply) if is_back(charge) else None
        return billed or self.tax_on((charge.end - ONE_DAY).astimezone(UTC).date())


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line of an invoice. `amount` is rounded, `unit_price` is not. Quantities are whole numbers.

    `exact` is the sum of its charges, and `basis` the key for carrying the rounding difference; a tax has
    neither.
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
    # None on lines of older invoices. A line of tax has its tax here.
    tax: Tax | None = None
    # The days of supply, from `start` to `end` (exclusive); None on lines of tax.
    start: date | None = None
    end: date | None = None


# A line that is not rounded yet, and its charges.
Drawn = tuple[BillLine, Sequence[SupplyCharge]]
Draw = Callable[[InvoiceFacts, Sequence[SupplyCharge]], Iterator[Drawn]]


def is_back(charge: SupplyCharge) -> bool:
    """Return whether a charge takes back an earlier one. The amount of a normal discount is negative."""
    return charge.amount > 0 if charge.charge_kind.is_reduction else charge.amount < 0


def span(start: date, end: date) -> str:
    """Format the days from `start` to `end` (exclusive) for people: "1 to 15 April 2026"."""
    last = end - timedelta(days=1)
    if last <= start:
        return written(start)
    if (start.year, start.month) == (last.year, last.month):
        return f"{start.day} to {written(last)}"
    if start.year == last.year:
        return f"{start.day} {start:%B} to {written(last)}"
    return f"{written(start)} to {written(last)}"


def drawn(line: BillLine, charges: Sequence[SupplyCharge], basis: str) -> Drawn:
    """Return an invoice line with exact sum and days of its `charges`, and these charges.

    `basis` is the key for carrying the rounding difference to later lines.
    """
    start = min(charge.day for charge in charges)
    end = max(charge.end for charge in charges).astimezone(UTC).date()
    return replace(line, basis=basis, exact=sum_of(charges), start=start, end=end), charges


def by(
    charges: Iterable[SupplyCharge], place: Callable[[SupplyCharge], tuple[object, ...] | Decimal]
) -> list[list[SupplyCharge]]:
    """Group charges by the key `place`, in the order of keys."""
    ordered = sorted(charges, key=place)
    return [list(group) for _, group in groupby(ordered, key=place)]


def sum_of(charges: Iterable[SupplyCharge]) -> Decimal:
    return sum((charge.amount for charge in charges), Decimal(0))


def count_of(charges: Iterable[SupplyCharge]) -> int:
    return int(sum((charge.quantity for charge in charges), Decimal(0)))


def written(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


# Invoices that are due by schedule, and reasons why one was skipped. Pure.


# Lines of a subscription: fees by day, discounts, and the amount missing to its minimum. Pure.

UNIT_PRICE_DIGITS = 12


def fees(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield a line for each row of charged days within one fee cycle; days that were refunded have none."""
    runs: list[tuple[tuple[int, ...], list[SupplyCharge]]] = []
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


def _fee(fee: Fee, charges: Sequence[SupplyCharge], sign: int) -> BillLine:
    """Return the line of a subscription's fee; a part of a cycle has its days as the quantity."""
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
    return BillLine(FEE, description + _back(sign), quantity, price, exact)


def _back(number: int | Decimal) -> str:
    """Return the suffix ", given back" for a line with a negative number, else an empty text."""
    return ", given back" if number < 0 else ""


def discounts(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield a line for the discount on each plan segment, and one for discounts on refunded days.

    The second line has the amount of the discounts that are taken back.
    """
    for of_one in by(charges, lambda charge: (charge.source_id, charge.quantity < 0)):
        fee, exact = facts.fees[of_one[0].source_id or 0], sum_of(of_one)
        if not exact:
            continue
        first, last = min(charge.day for charge in of_one), max(charge.day for charge in of_one)
        rate = fee.segment.terms.discount_rate or Decimal(0)
        line = _discount(rate, f"{fee.plan}, {span(first, last + timedelta(days=1))}", exact)
        yield drawn(line, of_one, f"{FEE_DISCOUNTS.basis}:{of_one[0].source_id}")


def _discount(rate: Decimal, what: str, exact: Decimal, service_id: int | None = None) -> BillLine:
    percent = f"{(rate * 100).normalize():f}"
    description = f"Discount {percent} %, {what}" + (", taken back" if exact > 0 else "")
    quantity = QUANTITY_ONE if exact > 0 else -QUANTITY_ONE
    return BillLine(DISCOUNT, description, quantity, abs(exact), exact, service_id=service_id)


def commitments(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield a line for the amount by which a cycle stays below its minimum commitment.

    If use that is reported later reduces that amount, yield a line for the refund.
    """
    for of_cycle in by(charges, lambda charge: (charge.source_id, charge.start)):
        exact, first = sum_of(of_cycle), of_cycle[0]
        if exact:
            days = span(first.day, first.end.astimezone(UTC).date())
            description = f"Up to the minimum commitment, {days}{_back(exact)}"
            sign = QUANTITY_ONE if exact > 0 else -QUANTITY_ONE
            line = BillLine(COMMITMENT, description, sign, abs(exact), exact)
            yield drawn(line, of_cycle, f"commitment:{first.source_id}")


__all__ = ["Bill", "BillLine", "Fee", "InvoiceFacts", "bill", "span"]

INFORMATION = "credits_consumed"
# Prefixes of bases that count toward a minimum.
_COMMITTED = frozenset(kind.basis for kind in CHARGE_KINDS if kind.is_committed)


@dataclass(frozen=True, slots=True)
class Bill:
    """The lines of an invoice, and each charge with its line's position; None if it amounts to nothing."""

    lines: tuple[BillLine, ...]
    placed: tuple[tuple[SupplyCharge, int | None], ...]


def bill(facts: InvoiceFacts) -> Bill:
    """Return an invoice's lines: subscription, overage, credits bought and used, units by tier, tax."""
    lines: list[BillLine] = []
    placed: list[tuple[SupplyCharge, int | None]] = []
    carried = dict(facts.carried)
    of_kind = defaultdict[ChargeKind | None, list[SupplyCharge]](list)
    for charge in facts.charges:
        of_kind[charge.charge_kind].append(charge)
    for draw, kind in _ORDER:
        for tax, taxed in _group_by_tax(facts, of_kind[kind]):
            for line, charges in draw(facts, taxed):
                lines.append(replace(_round_line(line, carried, facts.currency), tax=tax))
                placed += [(charge, len(lines)) for charge in charges]
            if kind is USES:
                facts = _behind(facts, taxed)
    seen = {id(charge) for charge, _ in placed}
    placed += [(charge, None) for charge in facts.charges if id(charge) not in seen]
    lines += _taxes(lines, facts.currency)
    return Bill(tuple(lines), tuple(placed))


def _group_by_tax(
    facts: InvoiceFacts, charges: Sequence[SupplyCharge]
) -> list[tuple[Tax, Sequence[SupplyCharge]]]:
    """Group charges by tax, ordered by time. Without charges, return only the tax of the last day."""
    if not charges:
        return [(facts.tax_on(facts.until - ONE_DAY), ())]
    supply_charges: dict[Tax, list[SupplyCharge]] = {}
    for charge in charges:
        supply_charges.setdefault(facts.tax_of(charge), []).append(charge)
    return sorted(supply_charges.items(), key=lambda group: min(charge.start for charge in group[1]))


def _behind(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> InvoiceFacts:
    """Return the facts for lines after these charges: `units_before` includes the units of the charges."""
    before = dict(facts.units_before)
    for charge in charges:
        if not _is_in_money(charge):
            month = (charge.service_id, charge.day.replace(day=1))
            before[month] = before.get(month, 0) + int(charge.quantity)
    return replace(facts, units_before=before)


def _round_line(line: BillLine, carried: dict[str, Decimal], currency: str) -> BillLine:
    """Return a line with its amount rounded so that all lines of one basis add up to the rounded exact sum.

    `carried` has the rounding difference of each basis so far, and is updated. A line up to a minimum
    also includes the differences of all lines that count toward the minimum, so that they add up to it
    exactly.
    """
    if line.basis is None or line.exact is None:
        return replace(line, amount=rounded(line.amount, currency))
    due = line.exact + carried.get(line.basis, Decimal(0))
    rest = Decimal(0)
    if line.kind == COMMITMENT:
        others = (basis for basis in carried if basis != line.basis and basis.partition(":")[0] in _COMMITTED)
        rest = sum((carried[basis] for basis in others), Decimal(0))
    amount = rounded(due + rest, currency)
    carried[line.basis] = due - amount
    return replace(line, amount=amount)


def _early_uses(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield one line for each plan that ended within a token cycle, for tokens used beyond the paid days."""
    for of_end in by(charges, lambda charge: (charge.tenant_id, charge.start, charge.unit_price, charge.end)):
        days = span(of_end[0].day, of_end[0].end.astimezone(UTC).date())
        what = "Tokens of the plan used ahead of its days"
        yield from _tokens(facts, of_end, EARLY_USE, "early", what, days)


def _overages(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    for of_cycle in by(charges, lambda charge: (charge.tenant_id, charge.place, charge.unit_price)):
        since = f"cycle from {written(min(overage.day for overage in of_cycle))}"
        yield from _tokens(facts, of_cycle, OVERAGE, "tokens", "Tokens beyond the plan", since)


def _tokens(  # noqa: PLR0917  # whose tokens, and how their line is written
    facts: InvoiceFacts, charges: Sequence[SupplyCharge], kind: str, basis: str, what: str, when: str
) -> Iterator[Drawn]:
    """Yield the invoice line for a tenant's tokens, unless both amount and tokens are zero.

    `basis` is the prefix of the key for carried rounding; `what` and `when` are the beginning and the end
    of the line's text.
    """
    first, exact, tokens = charges[0], sum_of(charges), count_of(charges)
    if exact or tokens:
        tenant = facts.tenants.get(first.tenant_id or 0, f"tenant {first.tenant_id}")
        description = f"{what}, {tenant}, {when}{_back(tokens)}"
        line = BillLine(kind, description, tokens, first.unit_price, exact, tenant_id=first.tenant_id)
        yield drawn(line, charges, f"{basis}:{first.tenant_id}")


def _purchases(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield the lines for purchased credits, one for each purchase."""
    for of_one in by(charges, lambda charge: (charge.start, charge.source_id)):
        first, quantity = of_one[0], count_of(of_one)
        if not quantity:
            continue
        what = "Credits" if quantity > 0 else "Credits taken back"
        description = f"{what}, {written(first.day)}"
        if remark := facts.remarks.get(first.source_id or 0):
            description += f", {remark}"
        line = BillLine(PURCHASE, description, quantity, first.unit_price, sum_of(of_one))
        yield drawn(line, of_one, f"addition:{first.source_id}")


def _postpaid(_: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield one line for each price at which credits were used beyond the balance."""
    for of_price in by(charges, lambda charge: (charge.unit_price,)):
        first, quantity, exact = of_price[0], count_of(of_price), sum_of(of_price)
        if not exact and not quantity:
            continue
        days = span(min(charge.day for charge in of_price), max(charge.day for charge in of_price) + ONE_DAY)
        description = f"Credits used beyond the balance, {days}{_back(quantity)}"
        yield drawn(BillLine(POSTPAID, description, quantity, first.unit_price, exact), of_price, "postpaid")


def _consumed(facts: InvoiceFacts, _: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    if facts.credits_consumed:
        description = "Credits used, paid with credits"
        yield BillLine(INFORMATION, description, facts.credits_consumed, Decimal(0), Decimal(0)), ()


def _uses(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield one line for each price tier of each service and month, in the order in which they were reached.

    Use that is charged at cost is one tier.
    """
    for of_month in by(
        charges, lambda charge: (charge.day.replace(day=1), charge.service_id or 0, _is_in_money(charge))
    ):
        first = of_month[0]
        month = first.day.replace(day=1)
        name = facts.services.get(first.service_id or 0, f"service {first.service_id or 0}")
        description = f"{name}, {month:%B %Y}"
        portions = [
            portion for portion in by(of_month, lambda charge: charge.unit_price) if count_of(portion)
        ]
        late = _late(facts, of_month)
        if _is_in_money(first):
            for portion in portions:
                yield drawn(_line_at_cost(portion, description, late), portion, f"usage:{first.service_id}")
            continue
        before = facts.units_before.get((first.service_id, month), 0)
        at, portions = (
            before,
            sorted(
                portions,
                key=lambda portion: (min(charge.place or 0 for charge in portion), portion[0].unit_price),
            ),
        )
        for portion in portions:
            units = count_of(portion)
            text = description + _back(units)
            # More may have been given back than was billed.
            if units >= 0 and at >= 0 and (before or len(portions) > 1):
                text += f", units {at + 1:,} to {at + units:,}"
            at += units
            text, late = text + late, ""
            exact = sum_of(portion)
            line = BillLine(USAGE, text, units, portion[0].unit_price, exact, service_id=first.service_id)
            yield drawn(line, portion, f"usage:{first.service_id}")


def _service_discounts(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> Iterator[Drawn]:
    """Yield one line for the discount on the use of each service in each month."""
    for of_month in by(charges, lambda charge: (charge.day.replace(day=1), charge.service_id or 0)):
        first, exact = of_month[0], sum_of(of_month)
        if exact:
            service_id, month = first.service_id or 0, first.day.replace(day=1)
            name = facts.services.get(service_id, f"service {service_id}")
            rate = rate_on(facts.discounts.get(service_id, ()), month)
            line = _discount(rate, f"{name}, {month:%B %Y}", exact, service_id)
            yield drawn(line, of_month, f"{SERVICE_DISCOUNTS.basis}:{service_id}")


def _late(facts: InvoiceFacts, charges: Sequence[SupplyCharge]) -> str:
    """Return a note on use in the period's first month that was reported after its invoice; else empty."""
    units = count_of(charge for charge in charges if charge.day < facts.since)
    if units <= 0 or charges[0].day.replace(day=1) != facts.since.replace(day=1):
        return ""
    amount = f"{EXACT.normalize(units * ONE_NANO):f}" if _is_in_money(charges[0]) else f"{units:,}"
    return f", {amount} of it used before {written(facts.since)}"


def _line_at_cost(charges: Sequence[SupplyCharge], description: str, late: str) -> BillLine:
    """Return the invoice line for use that is charged at its cost; `late` is a note to append."""
    exact = sum_of(charges)
    sign = -QUANTITY_ONE if exact < 0 else QUANTITY_ONE
    text = f"{description}, at cost{_back(exact)}{late}"
    return BillLine(USAGE, text, sign, abs(exact), exact, service_id=charges[0].service_id)


def _taxes(lines: Sequence[BillLine], currency: str) -> list[BillLine]:
    """Return a line for each tax on the lines; none for a tax of zero without a reason to print."""
    taxes = []
    for tax, subtotal in taxes_of((line.tax, line.amount) for line in lines).items():
        exact = EXACT.multiply(subtotal, tax.rate)
        if exact or (tax.said and not tax.rate):
            taxes.append(BillLine("tax", tax.said, QUANTITY_ONE, exact, rounded(exact, currency), tax=tax))
    return taxes


# How the charges of each kind become lines, in order; information has no charges.
_ORDER: tuple[tuple[Draw, ChargeKind | None], ...] = (
    (fees, FEES),
    (discounts, FEE_DISCOUNTS),
    (_early_uses, EARLY_USES),
    (_overages, OVERAGES),
    (_purchases, PURCHASES),
    (_postpaid, POSTPAID_CREDITS),
    (_consumed, None),
    (_uses, USES),
    (_service_discounts, SERVICE_DISCOUNTS),
    (commitments, COMMITMENTS),
)


def _is_in_money(charge: SupplyCharge) -> bool:
    return charge.unit_price == IN_MONEY[0].unit_price


# Credit notes: they give back whole lines of an invoice or parts of them, and the tax on those.
#
# Pure. All notes of an invoice together give back no more of a line than was billed. The last note gets
# the rest of the tax to the last minor unit.

NOTHING = Decimal(0)

# Lines by their position on the invoice.
Lines = Mapping[int, BillLine]
Amounts = Mapping[int, Decimal]


def whole_note(lines: Lines, given: Amounts) -> dict[int, BillLine]:
    """Return lines that give back the rest of an invoice. `given` are earlier amounts given back, by line.

    Raise `Conflict` if nothing is left.
    """
    note = {
        position: _credit_line(line, line.amount - given.get(position, NOTHING))
        for position, line in lines.items()
        if line.kind != INFORMATION and (line.amount != given.get(position, NOTHING) or line.amount == 0)
    }
    if not any(line.amount for line in note.values()) and given:
        raise Conflict("All of this invoice was given back already.")
    return note


def partial_note(
    lines: Lines, given: Amounts, asked: Mapping[int, Decimal | None], currency: str
) -> dict[int, BillLine]:
    """Return lines that give back the amounts `asked` by line, with their tax; None asks for all of a line.

    Raise `Unprocessable`, with the lines at fault, if a line cannot give back that much.
    """
    errors: list[tuple[str, str]] = []
    note: dict[int, BillLine] = {}
    for position, amount in asked.items():
        line = lines.get(position)
        if line is None or line.kind in {INFORMATION, "tax"}:
            errors.append((f"lines.{position}", "there is no such line to give back"))
            continue
        rest = line.amount - given.get(position, NOTHING)
        wanted = rest if amount is None else amount
        if wanted != rounded(wanted, currency):
            errors.append((f"lines.{position}", f"has more decimals than {currency}"))
        elif not 0 < wanted <= rest:
            left = rounded(max(rest, NOTHING), currency)
            errors.append((f"lines.{position}", f"{left:f} is left of it, not {wanted:f}"))
        else:
            note[position] = _credit_line(line, wanted)
    if errors:
        raise Unprocessable("This cannot be given back.", tuple(errors))
    return note | _tax(lines, given, note, currency)


def amended_back(lines: Lines, given: Amounts, amended: Amounts, currency: str) -> dict[int, Decimal]:
    """Return what amended prices gave back of an invoice, rounded, by line, with the lines of its tax."""
    note = {at: _credit_line(lines[at], rounded(amount, currency)) for at, amount in amended.items()}
    return {at: -line.amount for at, line in (note | _tax(lines, given, note, currency)).items()}


def _tax(lines: Lines, given: Amounts, note: Lines, currency: str) -> dict[int, BillLine]:
    """Return the tax lines of a credit note, by position in the invoice.

    A line has the share of the invoice's tax for what `note` and earlier notes (`given`) give back, less
    what `given` gave back of that tax.
    """
    rates = {}
    for position, line in lines.items():
        if line.kind != "tax":
            continue
        net = [
            at
            for at, other in lines.items()
            if other.kind not in {INFORMATION, "tax"} and other.tax == line.tax
        ]
        billed = sum((lines[at].amount for at in net), NOTHING)
        if not billed:
            continue
        back = sum((given.get(at, NOTHING) for at in net), NOTHING)
        back -= sum((note[at].amount for at in net if at in note), NOTHING)
        due = rounded(EXACT.divide(EXACT.multiply(line.amount, back), billed), currency)
        amount = min(due, line.amount) - given.get(position, NOTHING)
        if amount > 0:
            rates[position] = _credit_line(line, amount)
    return rates


def _credit_line(line: BillLine, amount: Decimal) -> BillLine:
    """Return a line of a credit note that gives back `amount` of an invoice line.

    For a part of the line, the quantity is -1 and the price is the amount. For a part of a discount it is 1.
    """
    if amount == line.amount:
        return replace(line, quantity=-line.quantity, amount=-amount)
    quantity = QUANTITY_ONE if amount < 0 else -QUANTITY_ONE
    return replace(line, quantity=quantity, unit_price=abs(amount), amount=-amount)
