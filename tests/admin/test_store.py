"""Writes as transactions: all of it or none, tried again where that helps, told apart where not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
import pytest
from pydantic import TypeAdapter

from gateway.admin.resources.values import Metadata
from gateway.background.timed.pusher import Pusher
from gateway.background.verifying.verifier import Verifier
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Row
from gateway.core.accounts.outbox import CallFacts, write_facts
from gateway.core.accounts.plans import LiveQuota
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from persistence import engine as engines
from persistence.keeper.definitions import Pushes
from persistence.keeper.verification import LedgerReader
from persistence.resources import access
from persistence.store import Store
from tests.admin.conftest import Api, MemoryCounters
from tests.waiting import eventually


async def test_a_write_that_breaks_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(access, "record_audit", break_down)
        answer = await api.post("tenants", {"name": "web"}, key="k")
    assert answer.status == 500
    assert answer.json["detail"] == "Something went wrong; the log says what."
    for table in ("tenant", "organization", "control_write", "audit_log", "idempotency_key", "tenant_quota"):
        assert api.rows(f"select count(*) from {table}") == [(0,)], table
    assert (await api.post("tenants", {"name": "web"}, key="k")).status == 201


async def test_every_write_is_audited_and_no_read_is(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    await api.get(f"tenants/{tenant['id']}")
    await api.patch(f"tenants/{tenant['id']}", {"name": "www"})
    recharged = await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 3})
    await api.delete(f"tenants/{tenant['id']}")
    rows = api.rows(
        "select action, resource, resource_id, before, after, request_id from audit_log order by id"
    )
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (action, "tenants", str(tenant["id"])) for action in ("create", "change", "recharge", "delete")
    ]
    assert rows[0][4] == tenant
    assert (rows[1][3]["name"], rows[1][4]["name"]) == ("web", "www")
    assert rows[2][4] == {"amount": 3}
    assert rows[2][5] == recharged.headers["x-request-id"]


async def test_a_deadlock_is_tried_again(api: Api) -> None:
    plan = await api.make("token-plans", name="p")
    tenant = await api.make("tenants", name="web")
    with psycopg.connect(api.url) as other:
        # The other transaction holds the plan and will ask for the tenant; ours takes them the other way.
        other.execute("set deadlock_timeout = '10s'")
        other.execute("select 1 from token_plan where id = %s for update", (plan["id"],))
        ours = asyncio.create_task(api.patch(f"tenants/{tenant['id']}", {"plan_id": plan["id"]}))
        await api.until_locked()
        await asyncio.to_thread(
            other.execute, "select 1 from tenant where id = %s for update", (tenant["id"],)
        )
        other.rollback()
        assert (await ours).status == 200
    assert api.rows("select count(*) from control_write where verb = 'plan'") == [(1,)]


async def test_without_postgres_the_answer_is_503(api: Api, postgres: str) -> None:
    await api.get("organizations")
    name = api.url.rsplit("/", 1)[1]
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"alter database {name} with allow_connections false")
        try:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )
            answer = await api.get("organizations")
        finally:
            admin.execute(f"alter database {name} with allow_connections true")
    assert (answer.status, answer.json["type"]) == (503, "urn:tollkeeper:problem:store_unavailable")
    assert answer.headers["Retry-After"]
    assert (await api.get("organizations")).status == 200


# --- values -----------------------------------------------------------------------------
# What rows hold is told, also where another version stored it.


told = TypeAdapter(Metadata | None).validate_python


def test_facts_that_an_older_keeper_stored_as_they_came_are_told_as_metadata() -> None:
    stored = json.loads(write_facts(CallFacts(model="m", status=200, counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0))))
    assert told(stored) == {
        "model": "m", "streamed": False, "status": 200, "duration_ms": 0, "input": 14, "output": 7,
        "cached": 4, "reasoning": 6, "estimated": False,
    }  # fmt: skip


def test_a_list_that_is_no_facts_keeps_no_page_from_being_read() -> None:
    assert told([1]) == {"unreadable": True}
    assert (told({"a": [1]}), told(None)) == ({"a": [1]}, None)


# --- counters contract ------------------------------------------------------------------
# The counters in memory behave as the real ones do, as far as the Admin API can tell.


ACTOR = Actor("builtin:admin", "admin")


@dataclass
class Door:
    """The store and one kind of counters."""

    store: Store
    pusher: Pusher
    counters: KeeperCounters

    async def write(self, resource: str, verb: str, row_id: int | None = None, **values: object) -> Row:
        command = Command(resource, verb, ACTOR, "r", lambda _: {}, row_id, values)
        written = await self.store.write(command)
        assert isinstance(written, CommittedWrite)
        assert not await self.pusher.push([intent.account for intent in written.intents])
        return written.row

    async def quota(self, tenant: Row) -> LiveQuota:
        tenant_id, organization_id = int(str(tenant["id"])), int(str(tenant["organization_id"]))
        found = await self.counters.peek_tenants([(partition_of(organization_id), tenant_id)])
        quota = found[tenant_id]
        assert quota is not None
        return quota


@pytest.fixture(params=["memory", "real"])
async def door(request: pytest.FixtureRequest, keeper_database: str) -> AsyncIterator[Door]:
    engine = engines.create(keeper_database)
    store = Store(engine, partition_of)
    if request.param == "memory":
        memory = MemoryCounters(keeper_database)
        yield Door(store, memory, memory)
    else:
        wire = RedisConnection(parse_url(request.getfixturevalue("valkey")), time.monotonic)
        wire.start()
        counters = KeeperCounters(wire)
        verifier = Verifier(LedgerReader(engine, partition_of), counters)
        verifying = asyncio.create_task(verifier.run())
        await eventually(lambda: verifier.ready)
        yield Door(store, Pusher(Pushes(engine), counters), counters)
        verifying.cancel()
        await wire.close()
    await engine.dispose()


async def tenant_with(door: Door, total: int | None) -> Row:
    plan = await door.write("token-plans", "create", name="p", total_amount=total, reset_interval="none")
    return await door.write("tenants", "create", name="web", plan_id=plan["id"])


async def test_a_plan_opens_the_account(door: Door) -> None:
    quota = await door.quota(await tenant_with(door, 1000))
    assert (quota.tokens_remaining, quota.tokens_used, quota.seq, quota.is_blocked) == (1000, 0, 1, False)


async def test_recharge_adjust_and_reset(door: Door) -> None:
    tenant = await tenant_with(door, 100)
    moves = [
        ("recharge", {"amount": 50}, 150),
        ("adjust", {"amount": 30, "direction": "OUT", "reason": "x"}, 120),
        ("adjust", {"amount": 1, "direction": "IN", "reason": "x"}, 121),
        ("reset", {}, 100),
    ]
    for seq, (verb, values, remaining) in enumerate(moves, start=2):
        await door.write("tenants", verb, int(str(tenant["id"])), **values)
        quota = await door.quota(tenant)
        assert (quota.tokens_remaining, quota.seq) == (remaining, seq)


async def test_blocked_by_hand_and_by_what_remains(door: Door) -> None:
    tenant = await tenant_with(door, 10)
    tenant_id = int(str(tenant["id"]))
    await door.write("tenants", "block", tenant_id)
    quota = await door.quota(tenant)
    assert (quota.manual_block, quota.is_blocked) == (True, True)
    await door.write("tenants", "unblock", tenant_id)
    quota = await door.quota(tenant)
    assert (quota.manual_block, quota.is_blocked) == (False, False)
    await door.write("tenants", "adjust", tenant_id, amount=10, direction="OUT", reason="x")
    assert (await door.quota(tenant)).is_blocked is True


async def test_to_unlimited_and_back(door: Door) -> None:
    tenant = await tenant_with(door, 10)
    tenant_id = int(str(tenant["id"]))
    unlimited = await door.write("token-plans", "create", name="u", total_amount=None)
    await door.write("tenant-quotas", "change", tenant_id, plan_id=unlimited["id"])
    assert (await door.quota(tenant)).tokens_remaining is None
    small = await door.write("token-plans", "create", name="s", total_amount=7)
    await door.write("tenant-quotas", "change", tenant_id, plan_id=small["id"])
    assert (await door.quota(tenant)).tokens_remaining == 7


async def test_a_tenant_nobody_loaded_is_unknown(door: Door) -> None:
    assert dict(await door.counters.peek_tenants([(3, 999)])) == {999: None}
