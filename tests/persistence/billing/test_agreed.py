"""Terms of a running subscription that change from a day on, and a plan's price for all who have it.

Figures are added up by hand: 30.00 a month is 1.00 a day in April. Random ones are compared with fractions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from gateway.errors import Conflict, Unprocessable
from persistence.billing import charges
from tests.persistence.april import April, april, at, invoiced, opened, plan
from tests.persistence.billing.drawn import some
from tests.persistence.billing.owed import Term, days
from tests.persistence.billing.test_due import act, billed, customer
from tests.persistence.migrated import empty

__all__ = ["april"]


async def to_charge(april: April) -> Sequence[int]:
    def read(connection: Connection) -> Sequence[int]:
        found = charges.charges_due(connection, april.now.date(), 0, 10)
        assert not found or not charges.charges_due(connection, april.now.date(), found[-1], 10)
        return found

    return await april.store.run(read)


BEGINS, DAY = date(2026, 4, 1), timedelta(days=1)


async def agree(
    april: April, ids: dict[str, int], day: int, month: int = 4, **said: object
) -> dict[str, Any]:
    made = {name: Decimal(each) if isinstance(each, str) else each for name, each in said.items()}
    return await april.do(
        "organization-subscriptions", "terms", ids["subscription"], **{"from": date(2026, month, day)}, **made
    )


async def reprice(april: April, plan_id: int, since: date, monthly: str) -> dict[str, Any]:
    return await april.do(
        "subscription-plans", "reprice", plan_id, **{"from": since}, monthly_cost=Decimal(monthly)
    )


@pytest.mark.parametrize(
    ("told", "said", "april_owes", "may_owes"),
    [
        (1, {"quantity": 3}, "60.00", "90.00"),
        (28, {"quantity": 3}, "60.00", "90.00"),
        (16, {"discount": "0.5"}, "22.50", "15.00"),
        (28, {"negotiated_cost": "12.00"}, "21.00", "12.00"),
        (1, {"negotiated_cost": "12.00", "quantity": 2, "discount": "0.25"}, "24.00", "18.00"),
        # Half of April's minimum, of which thirty are paid by the fee.
        (28, {"minimum": "100.00"}, "50.00", "100.00"),
    ],
)
async def test_changed_subscription_terms_bill_from_the_start_day_even_when_entered_after_that_day(
    april: April, told: int, said: dict[str, Any], april_owes: str, may_owes: str
) -> None:
    starter = await plan(april, "Starter", "30.00", 1_000)
    ids = await customer(april, starter, BEGINS, None)
    await april.on(at(4, told))
    row = await agree(april, ids, 16, **said)
    assert [(each["from"], each["waits"]) for each in row["terms"]] == [("2026-04-16", told == 1)]
    assert len(row["segments"]) == (1 if told == 1 else 2)
    await april.on(at(4, 30))
    row = await april.store.get("organization-subscriptions", ids["subscription"])
    assert row["quantity"] == said.get("quantity", 1)
    assert str(row["discount_rate"]) == str(said.get("discount"))
    assert [each["waits"] for each in row["terms"]] == [False]
    assert await billed(april, ids, 4) == Decimal(april_owes)
    assert await billed(april, ids, 5) == Decimal(may_owes)


@pytest.mark.parametrize(
    ("interval", "how", "times"),
    [
        ("annual", "change", 2), ("quarterly", "terms", 2), ("annual", "reprice", 2),
        ("quarterly", "change", Fraction(1, 2)), ("annual", "cancel", 0),
    ],
)  # fmt: skip
async def test_plan_change_with_fees_in_advance_invoices_refund_and_new_fee_together(
    april: April, interval: str, how: str, times: Fraction
) -> None:
    """By day of the cycle, 1 April on: a change on 1 June owes what its other days cost more, and no less."""
    whole, last = (
        (Fraction(600), date(2027, 4, 1)) if interval == "annual" else (Fraction(180), date(2026, 7, 1))
    )
    rest = sum((whole / len(days(BEGINS, last)) for _ in days(date(2026, 6, 1), last)), Fraction(0))
    owed = (times - 1) * rest
    basic = await plan(april, "Basic", "60.00", 1_000)
    other = await plan(april, "Other", str(60 * float(times)), 1_000)
    await april.on(at(4, 1))
    ids = await customer(april, basic, BEGINS, None, billing="advance", billing_interval=interval)
    assert await open_fees(april, ids) == whole
    await invoiced(april, ids, BEGINS, date(2026, 4, 2))
    await april.on(at(6, 1, 9))
    if how == "reprice":
        costs = {"monthly_cost": Decimal(120), "annual_cost": Decimal(1200)}
        await april.do("subscription-plans", "reprice", basic, **{"from": date(2026, 6, 1)}, **costs)
        await april.on(at(6, 1, 9))
    elif how == "terms":
        await agree(april, ids, 1, 6, quantity=2)
    elif how == "change":
        await act(april, ids, "change", plan_id=other, when="now")
    else:
        await act(april, ids, "cancel", when="now")
    for day in (1, 3):
        await april.on(at(6, day, 10))
        assert abs(await open_fees(april, ids) - owed) < Fraction(1, 10**8)
        await april.charge(ids["organization"])
    may = owed if how == "cancel" else Fraction(0)
    if how != "cancel":
        [(first,)] = april.rows("SELECT min(id) FROM subscription_segment")
        alone = {"source": "subscription_segment", "source_id": first}
        with pytest.raises(Conflict):
            await april.do("invoices", "create", organization_id=ids["organization"], **alone)
    made = await invoiced(april, ids, date(2026, 4, 2), date(2026, 6, 1))
    assert abs(Fraction(str(made.get("total_amount") or 0)) - may) <= Fraction(1, 200)
    made = await invoiced(april, ids, date(2026, 6, 1), date(2026, 6, 2))
    # Two lines, each rounded.
    assert abs(Fraction(str(made.get("total_amount") or 0)) - (owed - may)) <= Fraction(1, 100)
    assert await april.store.unbilled(ids["organization"]) == []


async def open_fees(april: April, ids: dict[str, int]) -> Fraction:
    """Fees that no invoice has."""
    rows = await april.store.unbilled(ids["organization"])
    return sum((Fraction(str(each["amount"])) for each in rows), Fraction(0))


async def test_advance_fee_is_charged_once_on_the_first_day_of_each_cycle(april: April) -> None:
    starter = await plan(april, "Starter", "30.00", 1_000)
    ids = await customer(april, starter, BEGINS, None, billing="advance")
    for month, sold in ((4, 30), (5, 60)):
        await april.on(at(month, 1))
        assert await open_fees(april, ids) == sold
        for owner in await to_charge(april):
            await april.charge(owner)
        assert april.rows("SELECT sum(amount) FROM charge") == [(Decimal(sold),)]
        assert await to_charge(april) == []


async def test_plan_change_keeps_the_quantity_and_drops_the_negotiated_fee(april: April) -> None:
    starter, pro = await plan(april, "Starter", "30.00", 1_000), await plan(april, "Pro", "90.00", 9_000)
    ids = await customer(april, starter, BEGINS, None, negotiated_cost=Decimal("15.00"), quantity=2)
    await april.on(at(4, 1))
    await agree(april, ids, 11, quantity=4)
    await april.do(
        "organization-subscriptions", "change", ids["subscription"], plan_id=pro, when="period_end"
    )
    assert await billed(april, ids, 4) == 10 + 40
    row = await april.store.get("organization-subscriptions", ids["subscription"])
    assert (row["quantity"], row["negotiated_cost"]) == (4, None)
    assert await billed(april, ids, 5) == 360
    with pytest.raises(Unprocessable) as refused:
        await agree(april, ids, 30, quantity=1)
    assert [field for field, _ in refused.value.errors] == ["from"]
    await agree(april, ids, 1, 6, negotiated_cost=None, quantity=1)
    assert await billed(april, ids, 6) == 90


async def test_subscription_change_without_terms_or_dated_outside_the_subscription_is_refused(
    april: April,
) -> None:
    starter = await plan(april, "Starter", "30.00", 1_000)
    ids = await customer(april, starter, BEGINS, date(2026, 7, 1))
    for day, month, said, fields in (
        (31, 3, {"quantity": 2}, {"from"}),
        (1, 7, {"quantity": 2}, {"from"}),
        (2, 4, {}, {"discount", "minimum", "negotiated_cost", "quantity"}),
    ):
        with pytest.raises(Unprocessable) as refused:
            await agree(april, ids, day, month, **said)
        assert {field for field, _ in refused.value.errors} == fields
    await april.on(at(7, 1))
    with pytest.raises(Conflict):
        await agree(april, ids, 2, quantity=2)


async def test_new_plan_price_bills_every_subscriber_without_a_negotiated_fee_from_the_start_day(
    april: April,
) -> None:
    starter = await plan(april, "Starter", "30.00", 1_000)
    plain = await customer(april, starter, BEGINS, None)
    terms: tuple[dict[str, object], ...] = (
        {"negotiated_cost": Decimal("12.00")}, {"quantity": 2}, {"billing_interval": "quarterly"},
    )  # fmt: skip
    others = [await customer(april, starter, BEGINS, None, **more) for more in terms]
    others.append(await customer(april, starter, date(2026, 4, 21), None))
    await april.on(at(4, 3))
    made = await reprice(april, starter, date(2026, 4, 16), "60.00")
    assert (made["monthly_cost"], [each["waits"] for each in made["prices"]]) == (30, [False, True])
    # Another price by hand is that of subscriptions to come.
    await april.do("subscription-plans", "change", starter, monthly_cost=Decimal("36.00"))
    with pytest.raises(Unprocessable) as refused:
        await reprice(april, starter, date(2026, 4, 2), "1.00")
    assert [field for field, _ in refused.value.errors] == ["from"]
    await april.on(at(4, 16))
    late = await customer(april, starter, date(2026, 4, 16), None)
    row = await april.store.get("subscription-plans", starter)
    assert (row["monthly_cost"], row["annual_cost"]) == (60, 300)
    assert [(each["monthly_cost"], each["waits"]) for each in row["prices"]] == [(30, False), (60, False)]
    # Ninety-one days of a quarter, of which half a month is at the old price.
    quarter = Fraction(90 * 15, 91) + Fraction(180 * 15, 91)
    due = [Fraction(45), Fraction(12), Fraction(90), quarter, Fraction(20), Fraction(30)]
    for ids, owes in zip((plain, *others, late), due, strict=True):
        assert abs(Fraction(str(await billed(april, ids, 4))) - owes) <= Fraction(1, 200)
    assert await billed(april, plain, 5) == 60


STEPS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(-25, 40),
        st.fixed_dictionaries(
            {},
            optional={
                "quantity": st.integers(1, 5),
                "discount": st.sampled_from([None, "0.2", "0.333333"]),
                "negotiated_cost": st.sampled_from([None, "12.34", "0.01", "1000"]),
            },
        ),
    ),
    min_size=1,
    max_size=12,
)


@some(2)
@given(
    steps=STEPS, billing=st.sampled_from([None, "advance", "arrears"]), interval=st.sampled_from([1, 3, 12])
)
def test_subscription_terms_entered_in_any_order_charge_each_day_by_the_terms_of_that_day(
    migrated: str, steps: list[tuple[int, int, dict[str, Any]]], billing: str | None, interval: int
) -> None:
    asyncio.run(live(migrated, steps, billing, interval))


async def live(
    url: str, steps: list[tuple[int, int, dict[str, Any]]], billing: str | None, months: int
) -> None:
    """By day: what was said last of the terms of the latest day by then."""
    empty(url)
    async with opened(url, at(3, 25)) as april:
        starter = await plan(april, "Starter", "29.99", 1_000)
        names = {1: "monthly", 3: "quarterly", 12: "annual"}
        ids = await customer(april, starter, BEGINS, None, billing=billing, billing_interval=names[months])
        said: dict[date, dict[str, Any]] = {}
        today, invoiced_until = BEGINS, BEGINS
        await april.on(at(4, 1))
        for waits, ahead, terms in steps:
            today += waits * DAY
            await april.on(at(today.month, today.day, year=today.year))
            day = max(BEGINS, today + ahead * DAY)
            if terms:
                await agree_on(april, ids, day, terms)
                said.setdefault(day, {}).update(terms)
            if waits % 3 == 0 and today > invoiced_until:
                await invoiced(april, ids, invoiced_until, today)
                invoiced_until = today
        today += 45 * DAY
        await april.on(at(today.month, today.day, year=today.year))
        await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
        due = sum((_fee(said, day, months) for day in days(BEGINS, today)), Fraction(0))
        [(charged,)] = april.rows("SELECT coalesce(sum(amount), 0) FROM charge WHERE kind <> 'early_use'")
        assert Fraction(str(charged)) == due
        await invoiced(april, ids, invoiced_until, today)
        assert await april.store.unbilled(ids["organization"]) == []
        assert april.broken() == []


async def agree_on(april: April, ids: dict[str, int], day: date, terms: dict[str, Any]) -> None:
    made = {name: Decimal(each) if isinstance(each, str) else each for name, each in terms.items()}
    await april.do("organization-subscriptions", "terms", ids["subscription"], **{"from": day}, **made)


def _fee(said: dict[date, dict[str, Any]], day: date, months: int) -> Fraction:
    known: dict[str, Any] = {}
    for since in sorted(said):
        if since <= day:
            known |= said[since]
    cost = Fraction("29.99") * (10 if months == 12 else months)
    if known.get("negotiated_cost") is not None:
        cost = Fraction(known["negotiated_cost"])
    whole = Term(cost * known.get("quantity", 1), months, BEGINS, BEGINS, date.max)
    return whole.fee(day) * (1 - Fraction(known.get("discount") or 0))
