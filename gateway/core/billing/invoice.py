"""From facts to lines: what an invoice says, and what it billed so that no other bills it again.

Each line is rounded to the currency's minor unit, totals are sums of rounded lines. A fact carries
how much of it was billed before; only the rest becomes a line. Pure: where facts come from and
where lines go is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from gateway.core.billing.pricing import EXACT, IN_MONEY, Portion, rounded, times
from gateway.core.billing.subscription import Piece, Segment, pieces

INFORMATION = "credits_consumed"
UNIT_PRICE_DIGITS = 12
QUANTITY_ONE = 1


@dataclass(frozen=True, slots=True)
class Fee:
    """A segment of the subscription, its plan's name, and the days of it billed before (half-open spans)."""

    segment: Segment
    plan: str
    billed: tuple[tuple[date, date], ...] = ()


@dataclass(frozen=True, slots=True)
class Overage:
    """Tokens a tenant used beyond its plan in one cycle, under a plan that bills them."""

    tenant_id: int
    tenant: str
    cycle: int
    began: date | None
    tokens: int
    billed: int
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class Purchase:
    """Credits sold (or taken back: negative) at a price each."""

    addition_id: int
    day: date
    credits: int
    unit_cost: Decimal
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """Pay-Per-Use units of a service in one calendar month, by what they cost when they were used.

    `billed` units of that month were billed before; a negative portion gives billed ones back. Of use at cost
    the units are billionths of the currency, and no other use is beside them.
    """

    service_id: int
    service: str
    month: date
    billed: int
    portions: tuple[Portion, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one invoice is made from, up to the day `until` (not included).

    `since` is the first day whose subscription fee belongs to it.
    """

    currency: str
    tax_rate: Decimal
    since: date
    until: date
    fees: Sequence[Fee] = ()
    overages: Sequence[Overage] = ()
    purchases: Sequence[Purchase] = ()
    credits_consumed: int = 0
    uses: Sequence[Use] = ()


@dataclass(frozen=True, slots=True)
class Basis:
    """What a line billed, to be billed by no other invoice.

    Names a segment's days, a tenant's cycle, or an addition; `quantity` is signed as the line is.
    """

    kind: str
    quantity: int
    segment_id: int | None = None
    start: date | None = None
    end: date | None = None
    tenant_id: int | None = None
    cycle: int | None = None
    addition_id: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `amount` is rounded, `unit_price` is not. Days, tokens, credits and units are whole."""

    kind: str
    description: str
    quantity: int
    unit_price: Decimal
    amount: Decimal
    service_id: int | None = None
    tenant_id: int | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """The lines in order, and what they billed."""

    lines: tuple[Line, ...]
    basis: tuple[Basis, ...]


def bill(facts: Facts) -> Bill:
    """Make an invoice's lines: subscription, overage, credits bought and used, units by tier, tax."""
    billed: list[tuple[Line, Basis | None]] = [
        *_fees(facts),
        *_overages(facts),
        *_purchases(facts),
        *_consumed(facts),
        *_uses(facts),
    ]
    lines = [line for line, _ in billed]
    lines += _tax(sum((line.amount for line in lines), Decimal(0)), facts)
    return Bill(tuple(lines), tuple(basis for _, basis in billed if basis is not None))


def span(start: date, end: date) -> str:
    """Write a half-open span of days as people do: "1 to 15 April 2026"."""
    last = end - timedelta(days=1)
    if last <= start:
        return _day(start)
    if (start.year, start.month) == (last.year, last.month):
        return f"{start.day} to {_day(last)}"
    if start.year == last.year:
        return f"{start.day} {start:%B} to {_day(last)}"
    return f"{_day(start)} to {_day(last)}"


def _fees(facts: Facts) -> Iterator[tuple[Line, Basis]]:
    """Days of each segment not billed yet; days billed that the segment lost since are given back."""
    for fee in facts.fees:
        segment = fee.segment
        for start, end in fee.billed:
            before = replace(segment, end=end)  # as it was when these days were billed
            for piece in pieces(before, max(start, segment.end), end):
                yield _fee(facts, fee, piece, -1)
        at = max(segment.start, facts.since)
        until = min(segment.end, facts.until)
        for start, end in sorted(fee.billed):
            for piece in pieces(segment, at, min(start, until)):
                yield _fee(facts, fee, piece, 1)
            at = max(at, end)
        for piece in pieces(segment, at, until):
            yield _fee(facts, fee, piece, 1)


def _fee(facts: Facts, fee: Fee, piece: Piece, sign: int) -> tuple[Line, Basis]:
    segment, days, whole = fee.segment, piece.days, piece.cycle_days
    amount = rounded(EXACT.divide(times(days, segment.cost), Decimal(whole)), facts.currency) * sign
    description = f"{fee.plan}, {span(piece.start, piece.end)}"
    quantity, price = sign, segment.cost
    if days != whole:
        description += f" ({days} of {whole} days)"
        quantity = days * sign
        price = EXACT.divide(segment.cost, Decimal(whole)).quantize(
            Decimal(1).scaleb(-UNIT_PRICE_DIGITS), ROUND_HALF_EVEN, EXACT
        )
    if sign < 0:
        description += ", given back"
    line = Line("subscription", description, quantity, price, amount)
    return line, Basis("subscription", days * sign, segment_id=segment.id, start=piece.start, end=piece.end)


def _overages(facts: Facts) -> Iterator[tuple[Line, Basis]]:
    for over in facts.overages:
        tokens = over.tokens - over.billed
        if tokens <= 0:
            continue
        since = f"cycle from {_day(over.began)}" if over.began else f"cycle {over.cycle}"
        amount = rounded(times(tokens, over.unit_price), facts.currency)
        description = f"Tokens beyond the plan, {over.tenant}, {since}"
        line = Line("overage", description, tokens, over.unit_price, amount, tenant_id=over.tenant_id)
        yield line, Basis("overage", tokens, tenant_id=over.tenant_id, cycle=over.cycle)


def _purchases(facts: Facts) -> Iterator[tuple[Line, Basis]]:
    for purchase in facts.purchases:
        amount = rounded(times(purchase.credits, purchase.unit_cost), facts.currency)
        what = "Credits" if purchase.credits > 0 else "Credits taken back"
        description = f"{what}, {_day(purchase.day)}"
        if purchase.remark:
            description += f", {purchase.remark}"
        line = Line("credits_purchased", description, purchase.credits, purchase.unit_cost, amount)
        yield line, Basis("credits_purchased", purchase.credits, addition_id=purchase.addition_id)


def _consumed(facts: Facts) -> Iterator[tuple[Line, None]]:
    if facts.credits_consumed:
        nothing = rounded(Decimal(0), facts.currency)
        description = "Credits used, paid with credits"
        yield Line(INFORMATION, description, facts.credits_consumed, Decimal(0), nothing), None


def _uses(facts: Facts) -> Iterator[tuple[Line, None]]:
    """One line a tier; which days' units were billed is kept with the daily roll-up."""
    for use in facts.uses:
        at = use.billed
        for portion in use.portions:
            description = f"{use.service}, {use.month:%B %Y}"
            if portion.unit_price == IN_MONEY[0].unit_price:
                yield _at_cost(facts, use, portion, description), None
                continue
            if portion.quantity < 0:
                description += ", given back"
            elif use.billed or len(use.portions) > 1:
                description += f", units {at + 1:,} to {at + portion.quantity:,}"
            at += portion.quantity
            amount = rounded(times(portion.quantity, portion.unit_price), facts.currency)
            line = Line(
                "usage", description, portion.quantity, portion.unit_price, amount, service_id=use.service_id
            )
            yield line, None


def _at_cost(facts: Facts, use: Use, portion: Portion, description: str) -> Line:
    """Use that is charged what it cost: one line, its price exact to the last unit."""
    exact = times(portion.quantity, portion.unit_price)
    sign, description = QUANTITY_ONE, f"{description}, at cost"
    if exact < 0:
        sign, description = -QUANTITY_ONE, f"{description}, given back"
    amount = rounded(exact, facts.currency)
    return Line("usage", description, sign, abs(exact), amount, service_id=use.service_id)


def _tax(subtotal: Decimal, facts: Facts) -> list[Line]:
    exact = EXACT.multiply(subtotal, facts.tax_rate)
    if not exact:
        return []
    percent = f"{(facts.tax_rate * 100).normalize():f}"
    return [Line("tax", f"Tax {percent} %", QUANTITY_ONE, exact, rounded(exact, facts.currency))]


def _day(day: date) -> str:
    return f"{day.day} {day:%B %Y}"
