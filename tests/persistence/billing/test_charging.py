"""What is known of many organizations is charged together, but for those that somebody else holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

import psycopg

from gateway.run.timed_loops import billing_loops
from persistence.billing import charges
from persistence.store import Store
from tests.persistence.april import April, april, at, plan
from tests.persistence.scenario import broken

__all__ = ["april"]

# 30.00 a month are 1.00 a day of April.
OF_TEN_DAYS = "SELECT count(*), sum(amount) FROM charge WHERE organization_id = %s"


async def three(april: April) -> list[int]:
    monthly = await plan(april, "Monthly", "30.00", 1, overage_policy="block", overage_unit_price=None)
    made = []
    for name in ("Acme", "Bolt", "Cog"):
        owner = await april.do("organizations", "create", name=name)
        made.append(int(owner["id"]))
        await april.do(
            "organization-subscriptions", "create", organization_id=owner["id"], plan_id=monthly,
            start_date=date(2026, 4, 1), end_date=None, billing_interval="monthly",
        )  # fmt: skip
    april.now = at(4, 11)
    return made


async def free(april: April, owners: Sequence[int]) -> Sequence[int]:
    partition, today = april.store.partition(owners[0]), april.now.date()
    return await april.store.run(lambda connection: charges.charge_free(connection, owners, partition, today))


async def test_those_that_nobody_holds_are_charged_together_and_the_others_told(april: April) -> None:
    first, held, last = await three(april)
    with psycopg.connect(april.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(7803, hashint8(%s))", [held])
        assert await free(april, [first, held, last]) == [held]
        assert april.rows(OF_TEN_DAYS, [held]) == [(0, None)]
    for owner in (first, last):
        assert april.rows(OF_TEN_DAYS, [owner]) == [(10, Decimal(10))]
    assert await free(april, [first, held, last]) == []
    for owner in (first, held, last):
        assert april.rows(OF_TEN_DAYS, [owner]) == [(10, Decimal(10))]
    assert await broken(april.url) == []


async def test_an_hour_charges_everybody_once(april: April) -> None:
    owners = await three(april)
    store = Store(april.pool, lambda _: 0, lambda: april.now)
    loop = billing_loops(store, lambda: april.now, page=2)["charging"]
    assert await loop.turn() == 3
    assert await loop.turn() == 0
    assert [april.rows(OF_TEN_DAYS, [owner]) for owner in owners] == [[(10, Decimal(10))]] * 3
