"""Ids are given once, also behind a PostgreSQL that was set back while Redis went on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import redis

from gateway.core.accounts.budgets import account_of, define_windows
from gateway.core.model import BudgetAccount, SettleResult
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict
from persistence.keeper import definitions
from persistence.store import Store
from tests.background.backend import Backend, backend_at
from tests.background.flushing.test_rollbacks import older_copy
from tests.builders import World
from tests.persistence.scenario import release

# Each set-back moves ids by so much beyond all that Redis knows.
AHEAD = 1_000_000
SURVIVING, LOST, NEW = "a" * 64, "b" * 64, "c" * 64
TABLES = ("organization", "tenant", "budget", "api_key")


async def customer(backend: Backend, digest: str) -> tuple[int, int, int, int]:
    """Create an organization with a tenant, a budget and a key, and push them; return their ids."""
    organization = await backend.made("organizations", name=digest)
    plan = await backend.made("token-plans", name=digest, total_amount=1_000)
    tenant = await backend.made("tenants", name=digest, organization_id=organization, plan_id=plan)
    budget = await backend.made(
        "budgets", organization_id=organization, name="all", unit="tokens", amount=1_000, interval="month"
    )
    key = await backend.made("api-keys", tenant_id=tenant, name="key", digest=digest, prefix="tk_test")
    await backend.push()
    return organization, tenant, budget, key


async def limit(backend: Backend, rpm: int) -> int:
    """Limit the surviving organization's requests a minute; return what Redis has then."""
    [own] = backend.rows("SELECT id FROM organization WHERE name = %s", SURVIVING)
    await backend.write("organizations", "change", own["id"], limits={"requests_per_minute": rpm})
    await backend.push()
    pairs = [(keys.partition_of(own["id"]), own["id"])]
    stored = (await backend.counters.stored(states.OrganizationState, pairs))[own["id"]]
    assert stored is not None
    return stored.rpm


def world_of(valkey: str, ids: tuple[int, int, int, int]) -> World:
    return World(valkey, organization_id=ids[0], tenant_id=ids[1], key_id=ids[3], made=True)


async def account_of_budget(backend: Backend, organization: int, now_ms: int) -> BudgetAccount:
    async with backend.engine.connect() as connection:
        [budget] = (await definitions.budgets_of(connection, [organization]))[organization]
    return BudgetAccount(account_of(organization, budget), define_windows([budget], now_ms), True)


async def spend(backend: Backend, ids: tuple[int, int, int, int]) -> str:
    """Make a call that takes 10 tokens of the quota and of the budget; return the name of its account."""
    world = world_of(backend.valkey, ids)
    account = await account_of_budget(backend, ids[0], await backend.counters.now_ms())
    call = world.reserve(need=10, budgets=(account,), budget_tokens=10)
    assert call.settle(tokens=10, budget_tokens=10) is SettleResult.DONE
    return keys.budget_account(world.p, account.name)


@dataclass
class SetBack:
    """A keeper over a database that lacks the customer whose ids are `lost`, while Redis has him."""

    backend: Backend
    lost: tuple[int, int, int, int]
    database: str
    spent: str

    def has_credential(self, digest: str) -> bool:
        return bool(self.client.exists(keys.identity(digest)))

    @property
    def client(self) -> redis.Redis:
        return self.backend.client()


@asynccontextmanager
async def set_back(valkey: str, database: str) -> AsyncIterator[SetBack]:
    async with backend_at(valkey, database) as backend:
        await backend.verify()
        await customer(backend, SURVIVING)
    async with older_copy(database) as older:
        async with backend_at(valkey, database) as backend:
            lost = await customer(backend, LOST)
            await limit(backend, 9)
            spent = await spend(backend, lost)
        async with backend_at(valkey, older) as backend:
            yield SetBack(backend, lost, older, spent)


async def test_ids_go_on_above_those_that_redis_knows_behind_a_database_set_back_twice(
    valkey: str, migrated: str
) -> None:
    async with set_back(valkey, migrated) as there:
        lost = there.lost
        await there.backend.close()
        for digest in (NEW, "d" * 64):
            async with older_copy(there.database) as once:
                async with backend_at(valkey, once) as backend:
                    given = await customer(backend, digest)
                    assert all(new > old + AHEAD for new, old in zip(given, lost, strict=True))
                    assert await backend.made("organizations", name="again") == given[0] + 1
                lost = given


async def test_credentials_of_lost_rows_are_forgotten_and_others_stay(valkey: str, migrated: str) -> None:
    async with set_back(valkey, migrated) as there:
        assert there.has_credential(LOST)
        await customer(there.backend, NEW)
        await there.backend.push()
        assert [one for one in (SURVIVING, LOST, NEW) if there.has_credential(one)] == [SURVIVING, NEW]


async def test_a_keeper_moves_ids_before_anything_is_created(valkey: str, migrated: str) -> None:
    async with set_back(valkey, migrated) as there:
        assert await there.backend.pusher.keep_ids()
        assert not await there.backend.pusher.keep_ids()
        [last] = there.backend.rows("SELECT nextval('organization_id_seq') AS id")
        assert last["id"] > there.lost[0] + AHEAD


async def test_definitions_behind_a_set_back_are_newer_than_those_that_redis_has(
    valkey: str, migrated: str
) -> None:
    async with set_back(valkey, migrated) as there:
        assert await limit(there.backend, 7) == 7


async def test_ids_move_while_redis_is_away_by_what_the_process_knew(valkey: str, migrated: str) -> None:
    async with set_back(valkey, migrated) as there:
        await there.backend.counters.newest_write()
        await there.backend.wire.close()
        assert await there.backend.made("organizations", name=NEW) > there.lost[0] + AHEAD


async def test_movements_of_a_lost_customer_become_dead_letters_once_they_are_accepted(
    valkey: str, migrated: str
) -> None:
    async with set_back(valkey, migrated) as there:
        backend, (organization, tenant, *_) = there.backend, there.lost
        world = world_of(valkey, there.lost)
        await backend.verify()
        for _ in range(3):
            world.reserve(need=10).settle(tokens=10)
        given = await customer(backend, NEW)
        await backend.flush()
        while stopped := backend.rows("SELECT account FROM quarantine WHERE released_at IS NULL"):
            await release(there.database, stopped[0]["account"], accept=True)
            await backend.flush()
        # Of the plan, of a call before and of three behind it.
        kept = backend.rows("SELECT organization_id, tenant_id FROM dead_letter")
        assert [(row["organization_id"], row["tenant_id"]) for row in kept] == [(organization, tenant)] * 5
        assert backend.ledger(given[1]) == [(1, "reset", 1_000, 1_000)]


async def test_nothing_is_created_before_redis_has_ever_answered(valkey: str, migrated: str) -> None:
    backend = Backend(valkey, migrated)
    with pytest.raises(Conflict, match="wait until Redis answers"):
        await backend.made("organizations", name=NEW)
    await backend.wire.open()
    organization = await backend.made("organizations", name=NEW)
    await backend.wire.close()
    await backend.write("organizations", "change", organization, name=LOST)
    assert await backend.made("tenants", name=NEW, organization_id=organization)
    await backend.close()


async def test_an_id_that_is_given_again_while_redis_is_away_has_nothing_of_the_lost_row(
    valkey: str, migrated: str
) -> None:
    """The process knows nothing of what others told Redis meanwhile."""
    async with set_back(valkey, migrated) as there:
        await there.backend.close()
        backend = Backend(valkey, there.database)
        backend.store = Store(backend.engine, partition_of)
        assert there.client.exists(there.spent)
        assert await customer(backend, NEW) == there.lost
        await backend.wire.open()
        await backend.push()
        await backend.push()
        tenant, client = world_of(valkey, there.lost).tenant, there.client
        assert (tenant.used, tenant.remaining) == (0, 1_000)
        assert not client.exists(there.spent)
        assert [one for one in (SURVIVING, LOST, NEW) if there.has_credential(one)] == [SURVIVING, NEW]
        await backend.close()
