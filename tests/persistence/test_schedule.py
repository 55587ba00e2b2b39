"""The schedule drafts months that are over where the customer is, waits, finalizes; advance fees at once."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any

from gateway.background.timed.invoicing import Invoicing
from persistence import engine
from persistence.schedule import Schedule
from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import customer
from tests.persistence.scenario import broken, rows_of

__all__ = ["april"]


class Agreeing:
    """Accounts that agree."""

    async def close(self, organization_id: int) -> None:
        """Nothing to wait for."""


async def turn(april: April, *, keepers: int = 1) -> None:
    pool = engine.create(april.url)
    due = Schedule(pool, april.store, 24, lambda: april.now)
    made = [
        Invoicing(due, Agreeing(), lambda *_, **__: None, finalize=True, at_once=4) for _ in range(keepers)
    ]
    await asyncio.gather(*(each.turn() for each in made))
    await pool.dispose()


def invoices(april: April) -> list[tuple[object, ...]]:
    return rows_of(april.url, "SELECT status, source, total_amount FROM invoice ORDER BY id")


async def subscribed(april: April, **terms: Any) -> dict[str, int]:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    return await customer(april, starter, date(2026, 4, 1), None, **terms)


async def test_a_month_is_drafted_when_it_is_over_and_final_after_its_grace(april: April) -> None:
    ids = await subscribed(april)
    await april.on(at(5, 1, 1))
    await april.store.charge(ids["organization"])
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]
    await april.on(at(5, 1, 23))
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]
    await april.on(at(5, 2, 1))
    await turn(april, keepers=2)
    await turn(april)
    assert invoices(april) == [("finalized", None, Decimal(29))]
    [(left,)] = rows_of(april.url, "SELECT invoicing_left FROM organization")
    assert left is None
    assert await broken(april.url) == []


async def test_a_month_is_over_when_it_is_where_the_customer_is(april: April) -> None:
    ids = await subscribed(april)
    await april.do("organizations", "change", ids["organization"], time_zone="America/Los_Angeles")
    await april.on(at(5, 1, 1))
    await april.store.charge(ids["organization"])
    await turn(april)
    assert invoices(april) == []
    await april.on(at(5, 1, 8))
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]


async def test_a_fee_in_advance_is_billed_on_its_day_once(april: April) -> None:
    await subscribed(april, billing="advance", billing_interval="annual")
    await april.on(at(4, 1, 0))
    await turn(april, keepers=2)
    await turn(april)
    assert invoices(april) == [("finalized", "subscription_segment", Decimal(290))]
    assert await broken(april.url) == []


async def test_a_month_that_gives_back_more_than_it_bills_is_issued_as_well(april: April) -> None:
    ids = await subscribed(april)
    await april.on(at(5, 1, 6))
    await invoiced(april, ids, date(2026, 4, 1), date(2026, 6, 1))
    await april.on(at(5, 12))
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    for day in (1, 2, 3):
        await april.on(at(7, day, 1))
        await turn(april)
    back = -(Decimal(29) * 20 / 31).quantize(Decimal("0.01"))
    assert invoices(april) == [("finalized", None, Decimal(58)), ("finalized", None, back)]
    assert rows_of(april.url, "SELECT kind FROM invoice ORDER BY id") == [("invoice",), ("credit_note",)]
    assert rows_of(april.url, "SELECT invoicing_left FROM organization") == [(None,)]
    assert await broken(april.url) == []
