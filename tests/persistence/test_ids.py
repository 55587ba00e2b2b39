"""Ids are given once, also behind a PostgreSQL that was set back while Redis went on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.counters.layouts import states
from gateway.counters.redis import keys
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


@dataclass
class SetBack:
    """A keeper over a database that lacks the customer whose ids are `lost`, while Redis has him."""

    backend: Backend
    lost: tuple[int, int, int, int]
    database: str

    def has_credential(self, digest: str) -> bool:
        return bool(self.backend.client().exists(keys.identity(digest)))


@asynccontextmanager
async def set_back(valkey: str, database: str) -> AsyncIterator[SetBack]:
    async with backend_at(valkey, database) as backend:
        await backend.verify()
        await customer(backend, SURVIVING)
    with older_copy(database) as older:
        async with backend_at(valkey, database) as backend:
            lost = await customer(backend, LOST)
            await limit(backend, 9)
        async with backend_at(valkey, older) as backend:
            yield SetBack(backend, lost, older)


async def test_ids_go_on_above_those_that_redis_knows_behind_a_database_set_back_twice(
    valkey: str, migrated: str
) -> None:
    async with set_back(valkey, migrated) as there:
        lost = there.lost
        await there.backend.close()
        for digest in (NEW, "d" * 64):
            with older_copy(there.database) as once:
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
        backend, (organization, tenant, _, key) = there.backend, there.lost
        world = World(valkey, organization_id=organization, tenant_id=tenant, key_id=key, made=True)
        await backend.verify()
        for _ in range(3):
            world.reserve(need=10).settle(tokens=10)
        given = await customer(backend, NEW)
        await backend.flush()
        while stopped := backend.rows("SELECT account FROM quarantine WHERE released_at IS NULL"):
            await release(there.database, stopped[0]["account"], accept=True)
            await backend.flush()
        # Of the plan and of three calls.
        kept = backend.rows("SELECT organization_id, tenant_id FROM dead_letter")
        assert [(row["organization_id"], row["tenant_id"]) for row in kept] == [(organization, tenant)] * 4
        assert backend.ledger(given[1]) == [(1, "reset", 1_000, 1_000)]
