"""Lines from facts: the worked example in figures, sums that agree, nothing billed twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.charge_kinds import ADDITION, TOKENS, UNITS
from gateway.core.billing.charges import (
    FEE,
    OVERAGE,
    PURCHASE,
    USAGE,
    SupplyCharge,
    day_fees,
    due,
    fee_charge,
    gather_charges,
    spread_amount,
)
from gateway.core.billing.document import EffectiveTax, Tax
from gateway.core.billing.invoice import Bill, Fee, InvoiceFacts, bill, span
from gateway.core.billing.money import NANO, ONE_NANO, Portion, PriceTier, rounded, spread
from gateway.core.billing.subscription import (
    PlanSegment,
    SegmentTerms,
    Subscription,
    begin,
    change_now,
    cycle_of,
    midnight,
)

APRIL, MAY = date(2026, 4, 1), date(2026, 5, 1)
TIERS = (PriceTier(10_000, Decimal("0.0010")), PriceTier(None, Decimal("0.0008")))
DAY = timedelta(days=1)


def amounts(made: Bill) -> list[str]:
    return [str(line.amount) for line in made.lines]


def totals(made: Bill) -> tuple[Decimal, Decimal]:
    """What the lines come to before tax, and the tax."""
    tax = sum((line.amount for line in made.lines if line.kind == "tax"), Decimal(0))
    return sum((line.amount for line in made.lines), Decimal(0)) - tax, tax


def fact(kind: str, source: str, day: date, quantity: int, price: Decimal, **more: int) -> SupplyCharge:
    amount = quantity * price
    return SupplyCharge(
        kind, midnight(day), midnight(day + DAY), Decimal(quantity), price, amount, source, **more
    )


def units(portions: Sequence[Portion], day: date = APRIL) -> list[SupplyCharge]:
    return [
        fact(USAGE, UNITS, day, each.quantity, each.unit_price, service_id=3, place=at)
        for at, each in enumerate(portions)
    ]


def overage(tokens: int, price: str = "0.000003", **more: int) -> SupplyCharge:
    return fact(OVERAGE, TOKENS, APRIL, tokens, Decimal(price), **{"tenant_id": 7, "place": 1} | more)


def purchase(addition_id: int, credits_: int, unit_cost: Decimal) -> SupplyCharge:
    return fact(PURCHASE, ADDITION, APRIL, credits_, unit_cost, source_id=addition_id)


def of(charges: Sequence[SupplyCharge], **more: object) -> InvoiceFacts:
    facts = InvoiceFacts("USD", Decimal(0), MAY, charges, tenants={7: "Main"}, services={3: "rerank"})
    return replace(facts, **more)  # type: ignore[arg-type]  # its own fields


def fees(subscription: Subscription, since: date, until: date, *plans: str) -> InvoiceFacts:
    """The days of a subscription's segments, whose ids are counted from 1."""
    segments = [replace(each, id=number) for number, each in enumerate(subscription.segments, 1)]
    charges = [charge for each in segments for charge in day_fees(each, since, until)]
    named = {each.id: Fee(each, plan) for each, plan in zip(segments, plans, strict=True)}
    return of(charges, fees=named, until=until)


def worked_example() -> InvoiceFacts:
    starter = begin(1, "monthly", Decimal("29.00"), APRIL, date(2027, 4, 1))
    upgraded = change_now(starter, 2, Decimal("99.00"), date(2026, 4, 16))
    facts = fees(upgraded, APRIL, MAY, "Starter", "Pro")
    others = [overage(2_345_678), purchase(2, 8_000, Decimal("0.01")), *units(spread(TIERS, 0, 41_250))]
    return replace(
        facts, tax_rate=Decimal("0.20"), charges=[*others, *facts.charges], credits_consumed=1_500 * 6 + 500
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
    assert bill(InvoiceFacts("USD", Decimal(0), MAY)) == Bill((), ())


def test_every_charge_is_placed_on_its_line() -> None:
    facts = worked_example()
    made = bill(facts)
    assert len(made.placed) == len(facts.charges)
    for position, line in enumerate(made.lines[:-1], 1):
        assert sum(charge.amount for charge, at in made.placed if at == position) == (line.exact or 0)


def test_late_units_go_on_in_the_tier_their_month_had_reached() -> None:
    late = units(spread(TIERS, 9_000, 3_000))
    made = bill(of(late, units_before={(3, APRIL): 9_000}))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [(1_000, "1.00"), (2_000, "1.60")]
    assert made.lines[0].description == "rerank, April 2026, units 9,001 to 10,000"
    # Its invoice is void, and what was given back of it is not: no range below nothing.
    again = bill(of(late, units_before={(3, APRIL): -18}))
    assert again.lines[0].description == "rerank, April 2026"


def test_units_of_two_prices_are_lines_of_their_own_and_units_given_back_are_negative() -> None:
    prices = ((40, "0.02"), (60, "0.03"), (-10, "0.01"))
    dearer = [Portion(at, units, Decimal(price)) for at, (units, price) in enumerate(prices)]
    made = bill(of(units(dearer)))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [
        (40, "0.80"), (60, "1.80"), (-10, "-0.10"),
    ]  # fmt: skip
    assert made.lines[2].description == "rerank, April 2026, given back"


def test_zero_decimal_currencies_bill_whole_units() -> None:
    facts = replace(worked_example(), currency="JPY")
    assert amounts(bill(facts)) == ["15", "50", "7", "80", "0", "10", "25", "37"]


def test_a_whole_cycle_costs_the_whole_cost() -> None:
    year = begin(1, "annual", Decimal("1200.00"), date(2026, 1, 31), date(2030, 1, 1))
    [line] = bill(fees(year, date(2026, 1, 31), date(2027, 1, 31), "Pro")).lines
    assert (line.quantity, str(line.amount)) == (1, "1200.00")


def test_an_invoice_over_two_cycles_has_a_line_for_each() -> None:
    months = begin(1, "monthly", Decimal("31.00"), date(2026, 3, 10), date(2027, 1, 1))
    made = bill(fees(months, APRIL, MAY, "Pro"))
    assert [(line.quantity, str(line.amount)) for line in made.lines] == [(9, "9.00"), (21, "21.70")]


def test_days_billed_ahead_are_given_back() -> None:
    segment = replace(begin(1, "monthly", Decimal("30.00"), APRIL, date(2027, 4, 1)).current, id=1)
    lost = [
        fee_charge(FEE, 1, each.day, -each.quantity, -each.amount)
        for each in day_fees(segment, date(2026, 4, 16), MAY)
    ]
    made = bill(of(lost, fees={1: Fee(segment, "Pro")}))
    [line] = made.lines
    assert (line.quantity, str(line.amount)) == (-15, "-15.00")
    assert line.description == "Pro, 16 to 30 April 2026 (15 of 30 days), given back"


def test_days_charged_and_lost_before_any_invoice_are_no_line() -> None:
    segment = replace(begin(1, "monthly", Decimal("30.00"), APRIL, date(2027, 4, 1)).current, id=1)
    charged = list(day_fees(segment, APRIL, MAY))
    lost = [fee_charge(FEE, 1, each.day, -each.quantity, -each.amount) for each in charged]
    made = bill(of([*charged, *lost], fees={1: Fee(segment, "Pro")}))
    assert made.lines == ()
    assert [at for _, at in made.placed] == [None] * 60


def test_an_invoice_takes_what_was_supplied_and_gives_back_what_was_billed_ahead() -> None:
    segment = replace(begin(1, "monthly", Decimal("30.00"), APRIL, date(2027, 4, 1)).current, id=1)
    april, may = list(day_fees(segment, APRIL, MAY)), list(day_fees(segment, MAY, date(2026, 6, 1)))
    back = [fee_charge(FEE, 1, each.day, -each.quantity, -each.amount) for each in may]
    assert gather_charges([*april, *may], MAY, {}) == april
    assert gather_charges([*april, *back], MAY, {}) == [*april, *back]
    # Of what no invoice had there is nothing to give back.
    assert gather_charges([*april, *may, *back], MAY, {}) == april
    # What is owed again of days that were given back is not left until those days come.
    assert gather_charges([*april, *may], MAY, {1: replace(segment, end=MAY)}) == [*april, *may]


@pytest.mark.parametrize(
    ("billing", "trial_end", "day", "from_end"),
    [
        (None, None, date(2026, 4, 20), date(2026, 4, 21)),
        ("arrears", None, date(2026, 4, 20), MAY),
        ("arrears", None, MAY, date(2026, 5, 11)),  # the plan's last term ends with it
        ("advance", None, date(2026, 4, 20), date(2026, 4, 2)),
        ("advance", date(2026, 4, 15), date(2026, 4, 20), date(2026, 4, 16)),
        ("advance", date(2026, 4, 15), date(2026, 4, 3), date(2026, 4, 4)),  # a free day waits for nothing
        ("advance", date(2026, 4, 15), MAY, date(2026, 5, 2)),  # the trial ended a term before
    ],
)
def test_a_fee_is_due_with_its_term(
    billing: str | None, trial_end: date | None, day: date, from_end: date
) -> None:
    plan = begin(1, "monthly", Decimal("30.00"), APRIL, date(2026, 5, 11)).current
    segment = replace(plan, id=1, terms=SegmentTerms(billing=billing, trial_end=trial_end))
    fee = fee_charge(FEE, 1, day, Decimal(1), Decimal("1.00"))
    assert due(fee, {1: segment}) == midnight(from_end)
    assert due(fee, {}) == midnight(day + timedelta(days=1))


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
    tokens=st.lists(st.integers(0, 10**9), max_size=4),
)
def test_totals_are_sums_of_rounded_lines(
    currency: str, rate: Decimal, purchases: list[tuple[int, Decimal]], tokens: list[int]
) -> None:
    sold = [purchase(n, count, cost) for n, (count, cost) in enumerate(purchases, 1)]
    beyond = [overage(used, tenant_id=n, place=n) for n, used in enumerate(tokens, 1)]
    made = bill(of([*sold, *beyond], currency=currency, tax_rate=rate))
    assert all(line.amount == rounded(line.amount, currency) for line in made.lines)
    subtotal, tax = totals(made)
    assert tax == (rounded(subtotal * rate, currency) if rate else 0)


@given(
    cost=st.decimals("0", "100000", places=4),
    interval=st.sampled_from(["monthly", "annual"]),
    anchor=st.dates(date(2024, 1, 1), date(2028, 12, 31)),
    cuts=st.lists(st.integers(1, 800), max_size=12),
    currency=CURRENCY,
)
def test_parts_come_to_what_the_whole_does_however_it_is_cut(
    cost: Decimal, interval: str, anchor: date, cuts: list[int], currency: str
) -> None:
    """Invoices over a segment: exact charges add up to its cycles' cost, and paper to the rounded whole."""
    whole = replace(begin(1, interval, cost, anchor, anchor + timedelta(days=800)).current, id=1)
    carried: dict[str, Decimal] = {}
    paper, exact, since = Decimal(0), Decimal(0), 0
    for cut in [*sorted(set(cuts)), 800]:
        charges = list(day_fees(whole, anchor + timedelta(days=since), anchor + timedelta(days=cut)))
        made = bill(of(charges, fees={1: Fee(whole, "Pro")}, carried=carried, currency=currency))
        exact += sum(charge.amount for charge in charges)
        paper += sum(line.amount for line in made.lines)
        carried, since = {"segment:1": exact - paper}, cut
    assert paper == rounded(exact, currency)
    assert exact % ONE_NANO == 0
    assert abs(exact - owed_for(whole)) <= ONE_NANO


def owed_for(segment: PlanSegment) -> Decimal:
    """The cost of a segment by fractions of its cycles: another way to the same."""
    owed, day = Fraction(0), segment.start
    while day < segment.end:
        first, following = cycle_of(segment.anchor, segment.interval, day)
        owed += Fraction(segment.cost) / (following - first).days
        day += DAY
    return Decimal(owed.numerator * NANO**2 // owed.denominator) / NANO**2


@given(
    amount=st.decimals("-1000", "1000", places=2),
    weights=st.lists(st.decimals("-50", "50", places=9), min_size=1, max_size=9),
)
def test_what_is_given_back_of_many_charges_adds_up(amount: Decimal, weights: list[Decimal]) -> None:
    parts = spread_amount(amount, weights)
    assert (len(parts), sum(parts)) == (len(weights), amount)


@given(
    usage=st.lists(st.integers(0, 30_000), min_size=1, max_size=8),
    invoiced=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_units_are_billed_once_however_often_invoices_are_made(
    usage: list[int], invoiced: list[bool]
) -> None:
    billed = total = 0
    lines = []
    for step, used in enumerate(usage):
        total += used
        if invoiced[step]:
            charges = units(spread(TIERS, billed, total - billed))
            lines += bill(of(charges, units_before={(3, APRIL): billed})).lines
            billed = total
    assert sum(line.quantity for line in lines) == billed
    first = sum(line.quantity for line in lines if line.unit_price == TIERS[0].unit_price)
    assert first == min(billed, 10_000)


@given(st.lists(st.integers(-60, 60), min_size=1, max_size=6))
def test_units_cost_one_by_one_what_their_tier_says_below_zero_too(steps: list[int]) -> None:
    tiers = [PriceTier(10, Decimal(7)), PriceTier(25, Decimal(3)), PriceTier(None, Decimal(1))]

    def worth(end: int) -> int:
        cost = sum(7 if unit < 10 else 3 if unit < 25 else 1 for unit in range(abs(end)))
        return cost if end > 0 else -cost

    for before, after in pairwise(accumulate(steps, initial=0)):
        cost = sum(each.quantity * each.unit_price for each in spread(tiers, before, after - before))
        assert cost == worth(after) - worth(before)


def test_what_is_too_small_for_a_document_adds_up_over_documents() -> None:
    carried: dict[str, Decimal] = {}
    paid = Decimal(0)
    for cycle in range(1, 31):
        made = bill(of([overage(100, "0.00004", place=cycle)], carried=carried))
        [line] = made.lines
        assert line.exact is not None
        assert line.basis is not None
        carried[line.basis] = carried.get(line.basis, Decimal(0)) + line.exact - line.amount
        paid += line.amount
    assert paid == Decimal("0.12")


@given(
    data=st.lists(st.tuples(st.integers(0, 29), st.integers(1, 3_000)), min_size=1, max_size=25),
    changes=st.dictionaries(st.integers(1, 29), st.sampled_from(["0", "0.1", "0.16", "0.19"]), max_size=3),
)
def test_what_is_used_is_taxed_with_the_rate_of_its_day(
    data: list[tuple[int, int]], changes: dict[int, str]
) -> None:
    price, cent = Fraction("0.0007"), Fraction(1, 100)
    charges = [
        fact(USAGE, UNITS, APRIL + at * DAY, quantity, Decimal("0.0007"), service_id=3, place=0)
        for at, quantity in data
    ]
    dated = [EffectiveTax(APRIL + at * DAY, Tax(Decimal(rate))) for at, rate in sorted(changes.items())]
    made = bill(of(charges, tax_rate=Decimal("0.2"), taxes=dated))
    by_rate: dict[Fraction, Fraction] = {}
    for at, quantity in data:
        rate = Fraction(next((changes[day] for day in range(at, 0, -1) if day in changes), "0.2"))
        by_rate[rate] = by_rate.get(rate, Fraction(0)) + quantity * price
    net = {
        Fraction(line.tax.rate): Fraction(line.amount)
        for line in made.lines
        if line.kind == USAGE and line.tax
    }
    taxed = {
        Fraction(line.tax.rate): Fraction(line.amount)
        for line in made.lines
        if line.kind == "tax" and line.tax
    }
    assert net.keys() == by_rate.keys()
    for rate, exact in by_rate.items():
        assert abs(net[rate] - exact) <= cent
        assert 2 * abs(taxed.get(rate, Fraction(0)) - net[rate] * rate) <= cent
    assert 2 * abs(sum(net.values()) - sum(by_rate.values())) <= cent
    assert len([line for line in made.lines if line.kind == USAGE]) == len(by_rate)


def test_a_line_says_what_of_its_month_was_used_before_the_period() -> None:
    late, due = (
        units(spread(TIERS, 0, 300), APRIL + 2 * DAY),
        units(spread(TIERS, 300, 500), APRIL + 20 * DAY),
    )
    before = units(spread(TIERS, 0, 40), APRIL - 5 * DAY)
    made = bill(of([*late, *due, *before], since=APRIL + 15 * DAY))
    assert [line.description for line in made.lines] == [
        "rerank, March 2026", "rerank, April 2026, 300 of it used before 16 April 2026",
    ]  # fmt: skip
    assert [line.description for line in bill(of(due, since=APRIL + 15 * DAY)).lines] == [
        "rerank, April 2026"
    ]


def test_units_go_on_behind_a_change_of_the_rate() -> None:
    late = units(spread(TIERS, 9_000, 3_000))
    later = units(spread(TIERS, 12_000, 500), APRIL + 20 * DAY)
    dated = [EffectiveTax(APRIL + 15 * DAY, Tax(Decimal("0.1")))]
    made = bill(of([*late, *later], tax_rate=Decimal("0.2"), taxes=dated, units_before={(3, APRIL): 9_000}))
    assert [line.description for line in made.lines] == [
        "rerank, April 2026, units 9,001 to 10,000", "rerank, April 2026, units 10,001 to 12,000",
        "rerank, April 2026, units 12,001 to 12,500", "Tax 20 %", "Tax 10 %",
    ]  # fmt: skip
    assert amounts(made) == ["1.00", "1.60", "0.40", "0.52", "0.04"]
