"""Lines from facts: the worked example in figures, sums that agree, nothing billed twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.invoice import Bill, Facts, Fee, Overage, Purchase, Use, bill, span
from gateway.core.billing.pricing import Portion, Tier, rounded, spread
from gateway.core.billing.subscription import Segment, begin, cancel, change_now, covered

APRIL, MAY = date(2026, 4, 1), date(2026, 5, 1)
TIERS = (Tier(10_000, Decimal("0.0010")), Tier(None, Decimal("0.0008")))


def amounts(made: Bill) -> list[str]:
    return [str(line.amount) for line in made.lines]


def totals(made: Bill) -> tuple[Decimal, Decimal]:
    """What the lines come to before tax, and the tax."""
    tax = sum((line.amount for line in made.lines if line.kind == "tax"), Decimal(0))
    return sum((line.amount for line in made.lines), Decimal(0)) - tax, tax


def use(units: int, billed: int = 0) -> Use:
    """So many units of April, some of them billed before."""
    return Use(3, "rerank", APRIL, billed, tuple(spread(TIERS, billed, units - billed)))


def worked_example() -> Facts:
    starter = begin(1, "monthly", Decimal("29.00"), APRIL, date(2027, 4, 1))
    upgraded = change_now(starter, 2, Decimal("99.00"), date(2026, 4, 16))
    return Facts(
        currency="USD",
        tax_rate=Decimal("0.20"),
        since=APRIL,
        until=MAY,
        fees=[
            Fee(segment, name) for segment, name in zip(upgraded.segments, ("Starter", "Pro"), strict=True)
        ],
        overages=[Overage(7, "Main", 1, APRIL, 2_345_678, 0, Decimal("0.000003"))],
        purchases=[Purchase(2, APRIL, 8_000, Decimal("0.01"))],
        credits_consumed=1_500 * 6 + 500,
        uses=[use(41_250)],
    )


def test_the_worked_example() -> None:
    made = bill(worked_example())
    assert amounts(made) == ["14.50", "49.50", "7.04", "80.00", "0.00", "10.00", "25.00", "37.21"]
    assert [line.kind for line in made.lines] == [
        "subscription", "subscription", "overage", "credits_purchased", "credits_consumed", "usage", "usage",
        "tax",
    ]  # fmt: skip
    assert [line.quantity for line in made.lines] == [15, 15, 2_345_678, 8_000, 9_500, 10_000, 31_250, 1]
    assert totals(made) == (Decimal("186.04"), Decimal("37.21"))
    assert [line.description for line in made.lines] == [
        "Starter, 1 to 15 April 2026 (15 of 30 days)",
        "Pro, 16 to 30 April 2026 (15 of 30 days)",
        "Tokens beyond the plan, Main, cycle from 1 April 2026",
        "Credits, 1 April 2026",
        "Credits used, paid with credits",
        "rerank, April 2026, units 1 to 10,000",
        "rerank, April 2026, units 10,001 to 41,250",
        "Tax 20 %",
    ]


def test_nothing_to_bill_is_an_invoice_without_lines() -> None:
    assert bill(Facts("USD", Decimal(0), APRIL, MAY)) == Bill((), ())


def test_late_units_go_on_in_the_tier_their_month_had_reached() -> None:
    late = use(12_000, 9_000)
    made = bill(Facts("USD", Decimal(0), MAY, date(2026, 6, 1), uses=[late]))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [(1_000, "1.00"), (2_000, "1.60")]


def test_units_of_two_prices_are_lines_of_their_own_and_units_given_back_are_negative() -> None:
    prices = ((40, "0.02"), (60, "0.03"), (-10, "0.02"))
    dearer = tuple(Portion(at, units, Decimal(price)) for at, (units, price) in enumerate(prices))
    made = bill(Facts("USD", Decimal(0), APRIL, MAY, uses=[Use(3, "rerank", APRIL, 0, dearer)]))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [
        (40, "0.80"), (60, "1.80"), (-10, "-0.20"),
    ]  # fmt: skip
    assert made.lines[2].description == "rerank, April 2026, given back"


def test_zero_decimal_currencies_bill_whole_units() -> None:
    facts = replace(worked_example(), currency="JPY")
    assert amounts(bill(facts)) == ["15", "50", "7", "80", "0", "10", "25", "37"]


def test_a_whole_cycle_costs_the_whole_cost() -> None:
    segment = begin(1, "annual", Decimal("1200.00"), date(2026, 1, 31), date(2030, 1, 1)).current
    year = Facts("USD", Decimal(0), date(2026, 1, 31), date(2027, 1, 31), fees=[Fee(segment, "Pro")])
    [line] = bill(year).lines
    assert (line.quantity, str(line.amount)) == (1, "1200.00")


def test_an_invoice_over_two_cycles_has_a_line_for_each() -> None:
    segment = begin(1, "monthly", Decimal("31.00"), date(2026, 3, 10), date(2027, 1, 1)).current
    made = bill(Facts("USD", Decimal(0), APRIL, MAY, fees=[Fee(segment, "Pro")]))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [(9, "9.00"), (21, "21.70")]


def test_days_billed_ahead_are_given_back_after_a_cancellation() -> None:
    subscription = begin(1, "monthly", Decimal("30.00"), APRIL, date(2027, 4, 1))
    ended = cancel(subscription, date(2026, 4, 16), now=True).current
    made = bill(Facts("USD", Decimal(0), MAY, date(2026, 6, 1), fees=[Fee(ended, "Pro", ((APRIL, MAY),))]))
    [line] = made.lines
    assert (line.quantity, str(line.amount)) == (-15, "-15.00")
    assert line.description == "Pro, 16 to 30 April 2026 (15 of 30 days), given back"
    [basis] = made.basis
    assert (basis.start, basis.end, basis.quantity) == (date(2026, 4, 16), MAY, -15)


def test_spans_read_as_people_write_them() -> None:
    assert span(APRIL, date(2026, 4, 2)) == "1 April 2026"
    assert span(APRIL, MAY) == "1 to 30 April 2026"
    assert span(date(2026, 4, 16), date(2026, 5, 16)) == "16 April to 15 May 2026"
    assert span(date(2026, 12, 16), date(2027, 1, 16)) == "16 December 2026 to 15 January 2027"


MONEY = st.decimals("0", "10000", places=4)
CURRENCY = st.sampled_from(["USD", "JPY", "KWD"])


@given(
    currency=CURRENCY,
    rate=st.decimals("0", "1", places=4),
    purchases=st.lists(st.tuples(st.integers(-10_000, 10_000).filter(bool), MONEY), max_size=5),
    tokens=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=4),
)
def test_totals_are_sums_of_rounded_lines(
    currency: str, rate: Decimal, purchases: list[tuple[int, Decimal]], tokens: list[tuple[int, int]]
) -> None:
    made = bill(
        Facts(
            currency, rate, APRIL, MAY,
            purchases=[Purchase(n, APRIL, count, cost) for n, (count, cost) in enumerate(purchases)],
            overages=[
                Overage(n, "t", 1, None, used, billed, Decimal("0.000003"))
                for n, (used, billed) in enumerate(tokens)
            ],
        )
    )  # fmt: skip
    assert all(line.amount == rounded(line.amount, currency) for line in made.lines)
    subtotal, tax = totals(made)
    assert tax == (rounded(subtotal * rate, currency) if rate else 0)


@given(
    start=st.integers(0, 20),
    length=st.integers(1, 120),
    shorter=st.integers(0, 120),
    cuts=st.lists(st.integers(1, 130), min_size=1, max_size=6),
)
def test_no_day_is_billed_twice_and_none_is_kept_that_was_lost(
    start: int, length: int, shorter: int, cuts: list[int]
) -> None:
    """Invoices in any order over a segment that ends earlier than thought: what stays billed are its days."""
    origin = date(2026, 1, 1)
    segment = Segment(
        1, "monthly", Decimal("30.00"), origin, origin + timedelta(days=start),
        origin + timedelta(days=start + length), 1,
    )  # fmt: skip
    spans: list[tuple[date, date, int]] = []

    def invoice(since: date, until: date, of: Segment) -> None:
        made = bill(Facts("USD", Decimal(0), since, until, fees=[Fee(of, "Pro", covered(spans))]))
        for basis in made.basis:
            assert basis.start is not None
            assert basis.end is not None
            assert abs(basis.quantity) == (basis.end - basis.start).days
            spans.append((basis.start, basis.end, 1 if basis.quantity > 0 else -1))

    for cut in cuts:
        invoice(origin + timedelta(days=cut // 2), origin + timedelta(days=cut), segment)
    ended = replace(segment, end=max(segment.start, segment.end - timedelta(days=shorter)))
    invoice(origin, origin + timedelta(days=200), ended)
    assert covered(spans) == (((ended.start, ended.end),) if ended.start < ended.end else ())
    assert sum((end - begun).days * sign for begun, end, sign in spans) == (ended.end - ended.start).days


@given(
    usage=st.lists(st.integers(0, 30_000), min_size=1, max_size=8),
    invoiced=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_units_are_billed_once_however_often_invoices_are_made(
    usage: list[int], invoiced: list[bool]
) -> None:
    billed = total = 0
    lines = []
    for step, units in enumerate(usage):
        total += units
        if invoiced[step]:
            lines += bill(Facts("USD", Decimal(0), APRIL, MAY, uses=[use(total, billed)])).lines
            billed = total
    assert sum(line.quantity for line in lines) == billed
    first = sum(line.quantity for line in lines if line.unit_price == TIERS[0].unit_price)
    assert first == min(billed, 10_000)
