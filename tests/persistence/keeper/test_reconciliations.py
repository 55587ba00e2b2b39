"""Whoever reads accounts, or keeps what comparing them found, is told that PostgreSQL does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.core.integrity.reconciliation import Owner
from gateway.counters.redis.keys import partition_of
from gateway.errors import StoreUnavailable
from persistence import engine
from persistence.keeper.reconciliations import Accounts
from persistence.resources.reconciliation_results import Results

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
        await Results(pool, partition_of).last()
    await pool.dispose()
