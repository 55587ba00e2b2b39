"""Which model the calls of a session go as: kept for an hour, a bounded number of a tenant's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from gateway.core.accounts.steps import SESSION_KEPT_S, SessionModel
from gateway.core.model import Caller
from gateway.counters.admission.model_sessions import FRESH_S, ModelSessions
from gateway.counters.redis import keys
from tests.builders import driven
from tests.counters.admission.test_objects import Time
from tests.counters.conftest import Connect
from tests.waiting import eventually

CALLER = Caller(1, 2, 3, keys.partition_of(1))
CHEAP = SessionModel("cheap", 7, "team")
LISTED = keys.model_sessions(CALLER.partition, CALLER.tenant_id)


async def find(
    sessions: ModelSessions, session: str, model: str = "dear", caller: Caller = CALLER
) -> SessionModel | None:
    return await driven(sessions.find(caller, session, model))


@pytest.fixture
def client(valkey: str) -> redis.Redis:
    return redis.Redis.from_url(valkey)


async def test_all_workers_know_a_session_of_a_tenant_by_the_model_requested_for(
    valkey: str, connect: Connect, client: redis.Redis
) -> None:
    here, there = [ModelSessions(await connect(valkey), Time()) for _ in range(2)]
    assert await find(here, "s") is None
    here.keep(CALLER, "s", "dear", CHEAP)
    assert await find(here, "s") == CHEAP
    await eventually(lambda: len(client.keys("*:session:*")) == 1)
    assert await find(there, "s", "DEAR") == CHEAP
    assert await find(there, "s", "other") is None
    assert await find(there, "t") is None
    assert await find(there, "s", caller=replace(CALLER, tenant_id=9)) is None
    assert await find(there, "s", caller=replace(CALLER, key_id=9)) == CHEAP
    there.keep(CALLER, "s", "dear", SessionModel())
    await eventually(lambda: client.get(client.keys("*:session:*")[0]) == b'["",0,""]')


async def test_a_session_is_kept_for_an_hour_after_its_last_call_and_renewed_once_a_minute(
    valkey: str, connect: Connect, client: redis.Redis
) -> None:
    time = Time()
    sessions = ModelSessions(await connect(valkey), time)
    sessions.keep(CALLER, "s", "dear", CHEAP)
    await eventually(lambda: bool(client.keys("*:session:*")))
    (name,) = client.keys("*:session:*")
    assert SESSION_KEPT_S <= client.ttl(name) <= SESSION_KEPT_S + FRESH_S
    client.expire(name, 100)
    sessions.keep(CALLER, "s", "dear", CHEAP)
    assert await find(sessions, "s") == CHEAP
    assert client.ttl(name) <= 100
    time.now += FRESH_S
    assert await find(sessions, "s") == CHEAP
    sessions.keep(CALLER, "s", "dear", CHEAP)
    await eventually(lambda: client.ttl(name) > 100)
    client.flushall()  # lost Redis
    time.now += FRESH_S
    assert await find(sessions, "s") is None


async def test_a_tenant_keeps_a_bounded_number_of_sessions(
    valkey: str, connect: Connect, client: redis.Redis
) -> None:
    time = Time()
    sessions, other = [ModelSessions(await connect(valkey), time, sessions_max=2) for _ in range(2)]
    for session in ("a", "b"):
        sessions.keep(CALLER, session, "dear", CHEAP)
        await eventually(lambda session=session: client.zcard(LISTED) == 1 + (session == "b"))
    sessions.keep(CALLER, "c", "dear", CHEAP)
    await eventually(lambda: not sessions.knows(CALLER, "c", "dear"))
    assert client.zcard(LISTED) == len(client.keys("*:session:*")) == 2
    assert await find(other, "c") is None
    time.now += SESSION_KEPT_S + 2 * FRESH_S
    sessions.keep(CALLER, "c", "dear", CHEAP)
    await eventually(lambda: client.zcard(LISTED) == 1)
