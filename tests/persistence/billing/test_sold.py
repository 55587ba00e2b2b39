"""A plan that ends owes by what its cycle was sold with, whatever the plan was changed to meanwhile.

Figures are added up by hand: a plan of 300.00 with 1,000,000 tokens costs 10.00 a day and 0.0003 a token in
April.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.billing.test_early_use import BEGINS, BLOCKS
from tests.persistence.billing.test_events import send
from tests.persistence.billing.test_late_amendments import amend, call, charged, counted
from tests.persistence.scenario import rows_of

__all__ = ["april"]


async def change(april: April, name: str, **terms: Any) -> None:
    """Change a token plan, now."""
    [(plan_id,)] = rows_of(april.url, "SELECT id FROM token_plan WHERE name = %s", [name])
    await april.do("token-plans", "change", int(str(plan_id)), **terms)
    # The database has a clock of its own.
    since = "UPDATE token_plan_price SET since = %s WHERE plan_id = %s AND since > %s RETURNING since"
    rows_of(april.url, since, [april.now, plan_id, april.now])


async def sold(april: April, **terms: Any) -> dict[str, int]:
    """A customer of the big plan since 1 April."""
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS | terms)
    rows_of(april.url, "UPDATE token_plan_price SET since = '2026-01-01' RETURNING since")
    ids = await customer(april, big, BEGINS, None)
    await april.on(at(4, 1))
    return ids


@pytest.mark.parametrize(
    ("used", "terms", "due"),
    [
        (500_000, {"total_amount": 500_000_000}, 150),
        (500_000, {"total_amount": 200}, 150),
        (500_000, {"total_amount": None}, 150),
        (400_000, {"total_amount": 500_000}, 120),
        (500_000, {"total_amount": 0}, 150),
        (500_000, {"reset_interval": "daily"}, 150),
        (500_000, {"reset_interval": "none", "total_amount": 1}, 150),
        (500_000, {"anchor_day": 15}, 150),
        (500_000, {"time_zone": "Asia/Tokyo"}, 150),
        (500_000, {"overage_policy": "bill", "overage_unit_price": Decimal("0.1")}, 150),
        (500_000, {"overage_policy": "carry"}, 150),
        (2_000_000, {"total_amount": 3_000_000}, 300),
    ],
)
async def test_plan_edit_during_a_cycle_does_not_change_the_cancellation_charge_of_that_cycle(
    april: April, used: int, terms: dict[str, Any], due: int
) -> None:
    ids = await sold(april)
    call(april, used)
    await change(april, "Big", **terms)
    # A second change within the cycle says no more than the first.
    await change(april, "Big", rollover_max=5)
    await act(april, ids, "cancel", when="now")
    assert await charged(april, ids) == due


@pytest.mark.parametrize("terms", [{"overage_policy": "block"}, {"total_amount": 10}])
async def test_plan_sold_with_overage_price_still_bills_days_and_overage_after_the_plan_is_edited(
    april: April, terms: dict[str, Any]
) -> None:
    ids = await sold(april, overage_policy="bill", overage_unit_price=Decimal("0.1"))
    call(april, 1_000_050)
    await april.on(at(4, 1, 13))
    await change(april, "Big", **terms)
    await april.on(at(4, 2))
    await act(april, ids, "cancel", when="now")
    assert await charged(april, ids) == 10 + 5


async def test_plan_edit_takes_effect_in_the_cycle_that_starts_with_the_next_reset(april: April) -> None:
    ids = await sold(april)
    await change(april, "Big", total_amount=2_000_000)
    await april.on(at(5, 1, 0))
    april.account.total = 2_000_000
    april.account.reset()
    await april.on(at(5, 1, 1))
    call(april, 500_000)
    await change(april, "Big", total_amount=100)
    await act(april, ids, "cancel", when="now")
    # Half of May's fee by 2,000,000 for a half of its first million, and April's days.
    assert await charged(april, ids) == 300 + 75


async def test_customer_returning_to_an_edited_plan_is_billed_by_the_edited_terms(april: April) -> None:
    ids = await sold(april)
    small = await plan(april, "Small", "30.00", 1_000, **BLOCKS)
    await change(april, "Big", total_amount=2_000_000)
    await act(april, ids, "change", plan_id=small, when="now")
    [(big,)] = rows_of(april.url, "SELECT id FROM subscription_plan WHERE name = 'Big'")
    await april.on(at(4, 1, 14))
    await act(april, ids, "change", plan_id=big, when="now")
    call(april, 500_000)
    await change(april, "Big", total_amount=10_000)
    await act(april, ids, "cancel", when="now")
    assert await charged(april, ids) == 75


@pytest.mark.parametrize("reset_first", [True, False])
async def test_plan_edit_before_a_downgrade_does_not_change_the_bill_of_the_ended_cycle(
    april: April, reset_first: bool
) -> None:
    ids = await sold(april)
    free = await plan(april, "Free", "0.00", 1, **BLOCKS)
    await act(april, ids, "cancel", when="now")
    [(big,)] = rows_of(april.url, "SELECT id FROM subscription_plan WHERE name = 'Big'")
    # From the 16th on, so half of April pays.
    await april.on(at(4, 16))
    made = await april.do(
        "organization-subscriptions", "create", organization_id=ids["organization"], plan_id=big,
        start_date=april.now.date(), end_date=None, billing_interval="monthly",
    )  # fmt: skip
    april.follow()
    call(april, 900_000)
    await change(april, "Big", total_amount=2)
    ids["subscription"] = made["id"]
    await act(april, ids, "change", plan_id=free, when="period_end")
    if reset_first:
        april.account.at_ms = int(at(5, 16, 0).timestamp() * 1000)
        april.account.reset()
    await april.on(at(5, 16, 0))
    await april.on(at(5, 16))
    # Thirty days are the whole cycle, so nothing is owed besides.
    assert await charged(april, ids) == 300


async def test_late_event_and_amendment_after_a_plan_edit_are_billed_by_the_terms_before_the_edit(
    april: April,
) -> None:
    ids = await sold(april)
    call(april, 300_000)
    await change(april, "Big", total_amount=10)
    await april.on(at(4, 4))
    await act(april, ids, "cancel", when="now")
    await send(april, ids["tenant"], at(4, 1, 13), 300_000)
    counted(april)
    assert await charged(april, ids) == 180
    [(request_id,)] = rows_of(april.url, "SELECT request_id::text FROM use_event")
    await amend(april, str(request_id), "IN", 200_000)
    counted(april)
    assert await charged(april, ids) == 120
