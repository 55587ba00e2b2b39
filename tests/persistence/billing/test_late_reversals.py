"""What events tell of a plan that has ended, and amendments take back of it: as if neither had been said.

What is due is added up by fractions: days of the plan, tokens of it beyond its days, tokens beyond the plan.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.billing.test_early_use import BEGINS, BLOCKS
from tests.persistence.billing.test_events import send
from tests.persistence.billing.test_late_amendments import CARRIES, amend, call, counted
from tests.persistence.scenario import broken, rows_of

__all__ = ["april"]

FEE, TOKENS, PRICE = Fraction(300), 1_000_000, Fraction("0.004")
BILLS = {"overage_policy": "bill", "overage_unit_price": Decimal("0.004")}


def owed(days: int, used: int, *, fee: Fraction = FEE, tokens: int = TOKENS) -> Fraction:
    """A plan that blocks and was had so many days of April: its days, or its tokens."""
    return max(fee * days / 30, fee * min(used, tokens) / tokens)


async def charged(april: April, ids: dict[str, int], *kinds: str) -> Fraction:
    """All charges there are of these kinds, of all kinds if none is named."""
    await april.charge(ids["organization"])
    assert [each for each in await broken(april.url) if each.invariant != "blocked"] == []
    read = "SELECT coalesce(sum(amount), 0) FROM charge WHERE kind = ANY(%s) OR %s"
    [(amount,)] = rows_of(april.url, read, [list(kinds), not kinds])
    return Fraction(str(amount))


async def told(april: April, ids: dict[str, int], moment: datetime, tokens: int) -> str:
    """Tell of use; the id of its call, which the ledger knows."""
    await send(april, ids["tenant"], moment, tokens)
    [(request_id,)] = rows_of(april.url, "SELECT request_id::text FROM use_event ORDER BY id DESC LIMIT 1")
    counted(april)
    return str(request_id)


async def amended(april: April, request_id: str, tokens: int, direction: str = "IN") -> dict[str, Any]:
    await amend(april, request_id, direction, tokens)
    counted(april)
    [row] = rows_of(
        april.url, "SELECT used_at, late_tokens + quota_tokens FROM amendment ORDER BY id DESC LIMIT 1"
    )
    return {"used_at": row[0], "tokens": row[1]}


@pytest.mark.parametrize("then", ["cancel", "change"])
@pytest.mark.parametrize("later", [0, 40])
@pytest.mark.parametrize("tokens", [(500_000, 400_000, 400_000), (649_000, 500_000, 200_000)])
async def test_what_is_taken_back_of_an_event_is_of_the_plan_it_was_used_by(
    april: April, then: str, later: int, tokens: tuple[int, int, int]
) -> None:
    used, late, back = tokens
    big = await plan(april, "Big", "300.00", TOKENS, **BLOCKS)
    free = await plan(april, "Free", "0.00", 1, **BLOCKS)
    ids = await customer(april, big, BEGINS, None)
    await april.on(at(4, 1))
    call(april, used)
    await april.on(at(4, 4))
    if then == "cancel":
        await act(april, ids, "cancel", when="now")
        has = 0
    else:
        await act(april, ids, "change", plan_id=free, when="now")
        has = 1
    assert await charged(april, ids) == owed(3, used - has)
    if later:
        await april.on(at(5, 12))
        if then == "change":
            april.account.reset()
            april.flush()
    request_id = await told(april, ids, at(4, 1, 14), late)
    assert await charged(april, ids) == owed(3, min(used + late, TOKENS) - has)
    said = await amended(april, request_id, back)
    assert said == {"used_at": at(4, 1, 14), "tokens": back}
    for _ in range(2):
        counted(april)
        assert await charged(april, ids) == owed(3, min(used + late - back, TOKENS) - has)
    again = call(april, 10)
    assert await amended(april, again, 10)


@pytest.mark.parametrize("then", ["cancel", "change"])
@pytest.mark.parametrize("later", [0, 40])
async def test_what_is_taken_back_of_an_event_is_owed_no_more_by_a_plan_that_bills(
    april: April, then: str, later: int
) -> None:
    april.is_sound = False  # a plan that bills blocks nobody, but for the account of these tests
    bills = await plan(april, "Bills", "30.00", 1_000, **BILLS)
    other = await plan(april, "Other", "60.00", 1_200, **BILLS | {"overage_unit_price": Decimal("0.07")})
    ids = await customer(april, bills, BEGINS, None)
    await april.on(at(4, 1))
    call(april, 1_250)
    await april.on(at(4, 2))
    if then == "cancel":
        await act(april, ids, "cancel", when="now")
    else:
        await act(april, ids, "change", plan_id=other, when="now")
    if later:
        await april.on(at(5, 12))
        if then == "change":
            april.account.reset()
            april.flush()
    assert await charged(april, ids, "overage") == 250 * PRICE
    # The other plan has 200 more, and what is beyond the first one stays its own.
    request_id = await told(april, ids, at(4, 1, 14), 300)
    beyond = [550, 350 if then == "change" else 0]
    due = beyond[0] * PRICE + max(0, beyond[1] - beyond[0]) * Fraction("0.07")
    assert await charged(april, ids, "overage") == due
    await amended(april, request_id, 120)
    assert await charged(april, ids, "overage") == 430 * PRICE
    await april.on(at(6, 2))
    assert await charged(april, ids, "overage") == 430 * PRICE


async def test_an_event_that_was_told_in_time_is_taken_back_behind_its_plan(april: April) -> None:
    big = await plan(april, "Big", "300.00", TOKENS, **BLOCKS)
    ids = await customer(april, big, BEGINS, None)
    await april.on(at(4, 1))
    await april.on(at(4, 4))
    call(april, 500_000)
    request_id = await told(april, ids, at(4, 1, 13), 300_000)
    await act(april, ids, "cancel", when="now")
    assert await charged(april, ids) == owed(3, 800_000)
    await amended(april, request_id, 250_000)
    assert await charged(april, ids) == owed(3, 550_000)
    first = await told(april, ids, at(4, 1, 13), 100_000)
    await amended(april, first, 7, "OUT")
    assert await charged(april, ids) == owed(3, 650_007)


async def test_what_moved_a_later_quota_is_taken_back_of_that_one_too(april: April) -> None:
    """Debt is carried on, so an event of before moves the quota of now; then its plan bills, and ends."""
    carries = await plan(april, "Carries", "300.00", 1_000, **CARRIES)
    bills = await plan(april, "Bills", "0.00", 1_000, **BILLS)
    blocks = await plan(april, "Blocks", "0.00", 5_000, **BLOCKS)
    ids = await customer(april, carries, BEGINS, None)
    await april.on(at(4, 10))
    call(april, 900)
    await april.on(at(5, 1, 0))
    april.account.reset()
    april.flush()
    await april.on(at(5, 2))
    request_id = await told(april, ids, at(4, 11), 3_000)
    assert april.account.remaining == -2_000
    await act(april, ids, "change", plan_id=bills, when="now")
    await april.on(at(5, 3))
    await act(april, ids, "change", plan_id=blocks, when="now")
    assert await charged(april, ids, "overage") == 2_000 * PRICE
    await april.on(at(6, 1, 1))
    april.account.reset()
    april.flush()
    said = await amended(april, request_id, 1_500)
    assert said == {"used_at": at(4, 11), "tokens": 1_500}
    assert await charged(april, ids, "overage") == 500 * PRICE
