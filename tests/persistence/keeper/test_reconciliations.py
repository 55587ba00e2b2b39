"""Whoever reads accounts, or keeps what comparing them found, is told that PostgreSQL does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.integrity.reconciliation import Owner
from gateway.counters.redis.keys import partition_of
from gateway.errors import StoreUnavailable
from persistence import engine
from persistence.keeper import sweeps, verification
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import ReconciliationResults
from tests.connections import connected

# Nobody listens there.
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
async def accounts() -> AsyncIterator[Accounts]:
    pool = engine.create(NOWHERE)
    yield Accounts(pool)
    await pool.dispose()


@pytest.mark.parametrize(
    "asked",
    [
        lambda accounts: accounts.owners(0, 1),
        lambda accounts: accounts.owners_of([1]),
        lambda accounts: accounts.some_owners(1),
        lambda accounts: accounts.due([1]),
        lambda accounts: accounts.unresolved([1]),
        lambda accounts: accounts.accounts({"credits:1": 1}, deep=False),
        lambda accounts: accounts.disproved([Owner(1, ())], 1),
        lambda accounts: accounts.budgets([1]),
        lambda accounts: accounts.stored(1, [1], []),
    ],
)
async def test_without_postgresql_no_account_is_read(
    accounts: Accounts, asked: Callable[[Accounts], Awaitable[object]]
) -> None:
    with pytest.raises(StoreUnavailable):
        await asked(accounts)


async def test_without_postgresql_there_is_no_last_result() -> None:
    pool = engine.create(NOWHERE)
    with pytest.raises(StoreUnavailable):
        await ReconciliationResults(pool, partition_of).last()
    await pool.dispose()


async def test_a_sample_is_of_everybody_before_anybody_is_looked_at_again(
    migrated: str, pool: AsyncEngine
) -> None:
    with connected(migrated) as connection:
        made = connection.execute(
            "insert into organization (name) select 'one ' || n from generate_series(1, 11) as n returning id"
        ).fetchall()
        gone, *_ = ids = sorted(one for (one,) in made)
        connection.execute("delete from organization where id = %s", (gone,))
        connection.execute("insert into tenant (organization_id, name) values (%s, 'its')", (ids[-1],))
        connection.commit()
        there = [one for (one,) in connection.execute("select id from organization order by id")]
        tenants = dict[int, list[int]]()
        for organization_id, tenant_id in connection.execute("select organization_id, id from tenant"):
            tenants.setdefault(organization_id, []).append(tenant_id)
    for count in (1, 3, len(there) - 1):
        accounts = Accounts(pool)
        looked = [one for _ in range(2 * len(there)) for one in await accounts.some_owners(count)]
        assert all(list(one.tenant_ids) == sorted(tenants.get(one.organization_id, [])) for one in looked)
        turn = [one.organization_id for one in looked]
        begun = there.index(turn[0])
        assert turn == [there[(begun + at) % len(there)] for at in range(len(turn))]
    whole = await Accounts(pool).some_owners(2 * len(there))
    assert sorted(one.organization_id for one in whole) == there


async def test_resets_that_are_due_and_what_was_defined_since_are_found_by_an_index(
    pool: AsyncEngine,
) -> None:
    """Whatever the planner takes for so few rows: it may take that one."""
    asked = {
        "tenant_quota_next_reset_at_idx": (
            sweeps.RESETS_DUE,
            {"n": 10, "since": sweeps._FIRST, "until": sweeps._FIRST},
        ),
        "control_write_defined_idx": (verification._CHANGES, {"position": 7, "n": 10}),
    }
    async with pool.connect() as connection:
        for way in ("seqscan", "bitmapscan", "sort"):
            await connection.execute(text(f"SET LOCAL enable_{way} = off"))
        for index, (query, values) in asked.items():
            plan = await connection.execute(text(f"EXPLAIN {query.text}"), values)
            assert index in "\n".join(plan.scalars())
