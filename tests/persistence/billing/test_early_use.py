"""A plan that ends inside a cycle is paid for its days, or for the tokens that were used: whichever is more.

Figures are added up by hand: a plan of 300.00 with 1,000,000 tokens costs 10.00 a day and 0.0003 a token in
April.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import act, billed, customer, lines
from tests.persistence.scenario import broken, rows_of

__all__ = ["april"]

BEGINS = date(2026, 4, 1)
BLOCKS = {"overage_policy": "block", "overage_unit_price": None}


async def small_and_big(april: April) -> tuple[int, int]:
    return (
        await plan(april, "Small", "1.00", 1_000, **BLOCKS),
        await plan(april, "Big", "300.00", 1_000_000, **BLOCKS),
    )


async def use(april: April, day: int, tokens: int) -> None:
    await april.on(at(4, day))
    april.account.consume(tokens)
    april.flush()


@pytest.mark.parametrize(
    ("day", "tokens", "terms", "due"),
    [
        (1, 999_000, {}, "299.70"),
        (16, 999_000, {}, "299.70"),  # 150.00 of it by days
        (16, 400_000, {}, "150.00"),
        (16, 3_000_000, {}, "300.00"),
        (10, 999_000, {"trial_end": date(2026, 4, 16)}, "0.00"),
        (21, 999_000, {"trial_end": date(2026, 4, 16)}, "149.85"),  # fifteen days are the whole of April
        (11, 500_000, {"discount_rate": Decimal("0.2")}, "120.00"),
        (2, 600_000, {"billing": "arrears"}, "180.00"),
    ],
)
async def test_cancellation_bills_the_elapsed_days_or_the_used_tokens_whichever_costs_more(
    april: April, day: int, tokens: int, terms: dict[str, Any], due: str
) -> None:
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    ids = await customer(april, big, BEGINS, None, **terms)
    await use(april, day, tokens)
    await act(april, ids, "cancel", when="now")
    assert await billed(april, ids, 4) == Decimal(due)
    assert await billed(april, ids, 5) == 0


@pytest.mark.parametrize("reset_first", [True, False])
async def test_plan_taken_only_for_the_last_day_of_a_cycle_is_billed_by_used_tokens(
    april: April, reset_first: bool
) -> None:
    small, big = await small_and_big(april)
    ids = await customer(april, small, BEGINS, None)
    await april.on(at(4, 30))
    await act(april, ids, "change", plan_id=big, when="now")
    await use(april, 30, 960_000)
    await act(april, ids, "change", plan_id=small, when="period_end")
    if reset_first:
        april.account.at_ms = int(at(5, 1, 0).timestamp() * 1000)
        april.account.reset()
    await april.on(at(5, 1, 0))
    # All that its days did not pay.
    assert await billed(april, ids, 4) == Decimal("288.00")
    assert await billed(april, ids, 5) == 1


@pytest.mark.parametrize(
    ("left", "back", "anchor", "due"),
    [
        # Gone to a plan of a thousand, and away altogether, and back the same day: its days.
        ("change", 1, None, ("300.00", "300.00")),
        ("cancel", 1, None, ("300.00", "300.00")),
        # Back when half of the days are over: all tokens are owed, once.
        ("change", 16, None, ("299.70", "300.00")),
        ("cancel", 16, 1, ("299.70", "304.84")),
        # Cycles begin on the day of the subscription: these are other tokens.
        ("cancel", 16, None, ("449.70", "304.84")),
    ],
)
async def test_tokens_of_a_plan_cancelled_and_resumed_within_a_cycle_are_billed_once(
    april: April, left: str, back: int, anchor: int | None, due: tuple[str, str]
) -> None:
    small = await plan(april, "Small", "1.00", 1_000, **BLOCKS)
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS | {"anchor_day": anchor})
    ids = await customer(april, big, BEGINS, None)
    await use(april, 1, 999_000)
    await act(april, ids, left, when="now", **({"plan_id": small} if left == "change" else {}))
    await april.charge(ids["organization"])
    await april.on(at(4, back))
    if left == "change":
        await act(april, ids, "change", plan_id=big, when="now")
    else:
        await april.do(
            "organization-subscriptions", "create", organization_id=ids["organization"], plan_id=big,
            start_date=date(2026, 4, back), billing_interval="monthly",
        )  # fmt: skip
        april.follow()
    for month, owes in zip((4, 5), due, strict=True):
        assert await billed(april, ids, month) == Decimal(owes)


@pytest.mark.parametrize(("leaves", "due"), [(None, "150.00"), (21, "295.16"), (30, "295.16")])
async def test_resumed_plan_is_billed_by_used_tokens_only_if_cancelled_again(
    april: April, leaves: int | None, due: str
) -> None:
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS | {"anchor_day": 1})
    ids = await customer(april, big, BEGINS, None)
    await use(april, 1, 500_000)
    await act(april, ids, "cancel", when="now")
    await april.on(at(4, 16))
    again = await april.do(
        "organization-subscriptions", "create", organization_id=ids["organization"], plan_id=big,
        start_date=date(2026, 4, 16), billing_interval="monthly",
    )  # fmt: skip
    april.follow()
    await use(april, 16, 500_000)
    if leaves is not None:
        await april.on(at(4, leaves))
        await act(april, ids | {"subscription": again["id"]}, "cancel", when="now")
    # Who stays pays fifteen days, as a customer does who begins then. Who leaves pays all tokens, at the
    # lower of two prices: April has fifteen days of the second cycle, of 31 days, and fifteen of one of 30.
    assert await billed(april, ids, 4) == Decimal(due)


async def test_tokens_used_before_a_cancellation_are_charged_once_despite_redelivery_and_void(
    april: April,
) -> None:
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    ids = await customer(april, big, BEGINS, None)
    await april.on(at(4, 1))
    april.account.consume(500_000)
    kept = list(april.account.entries)
    april.flush()
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    assert [row["kind"] for row in await april.store.unbilled(ids["organization"])] == []
    april.follow()
    assert [(row["kind"], row["amount"]) for row in await april.store.unbilled(ids["organization"])] == [
        ("early_use", "150")
    ]
    await april.on(at(4, 2))
    for _ in range(2):
        await april.charge(ids["organization"])
        april.account.entries = list(kept)
        april.flush()
    charged = "SELECT kind, quantity::bigint, unit_price, amount, tenant_id FROM charge"
    assert [(*row[:2], str(row[3])) for row in rows_of(april.url, charged)] == [
        ("early_use", 500_000, "150.000000000")
    ]
    made = await invoiced(april, ids, BEGINS, date(2026, 4, 2))
    assert lines(made) == [("early_use", 500_000, "150.00")]
    assert made["lines"][0]["description"] == "Tokens of the plan used ahead of its days, Main, 1 April 2026"
    await april.do("invoices", "void", made["id"])
    assert await broken(april.url) == []
    again = await invoiced(april, ids, BEGINS, date(2026, 4, 2))
    note = await april.do("invoices", "credit-note", again["id"])
    await april.do("invoices", "finalize", note["id"])
    assert await april.store.unbilled(ids["organization"]) == []


@pytest.mark.parametrize(("month", "due"), [(4, "299.70"), (5, "300.00")])
async def test_cancellation_after_deleting_the_tenant_still_bills_the_used_tokens(
    april: April, month: int, due: str
) -> None:
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    ids = await customer(april, big, BEGINS, None)
    await use(april, 2, 999_000)
    await april.do("tenants", "delete", ids["tenant"])
    # In May nothing was used: April's days were all of them had, and pay its tokens.
    await april.on(at(month, 2) if month == 4 else at(month, 1))
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    await april.charge(ids["organization"])
    assert await billed(april, ids, 4) == Decimal(due)
    assert await billed(april, ids, 5) == 0


async def test_subscription_ending_within_a_cycle_also_bills_tokens_used_beyond_the_paid_days(
    april: April,
) -> None:
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    ids = await customer(april, big, BEGINS, date(2026, 4, 11), minimum_commitment=Decimal("60.00"))
    await use(april, 5, 700_000)
    await april.on(at(4, 11, 0))
    # The days' 100.00 and 110.00 for tokens are more than the minimum's third.
    assert await billed(april, ids, 4) == 210
