"""What doctor says of rows that wait in Redis, and of a keeper that cannot store them."""

from __future__ import annotations

import time

import pytest
import redis

from gateway.counters.keeper.presence import KeeperInfo
from gateway.counters.keeper.unstored_rows import UnstoredRows, say_unstored
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.ops import hints
from gateway.ops.doctor_redis import ROWS_AGE_S_MAX, Finding, examine_redis, of_rows
from gateway.settings.settings import load

FULL = "PostgreSQL: 53100 could not extend file"


async def rows(url: str, role: str) -> list[Finding]:
    settings = load({}).with_values(redis_url=url, upstreams=())
    return [one async for one in examine_redis(settings, role) if one.subject == "rows"]


@pytest.mark.parametrize("older_s", [-5, 20])
@pytest.mark.parametrize(("role", "is_there"), [("all", True), ("all", False), ("keeper", False)])
async def test_doctor_names_the_age_of_the_oldest_row_by_the_clock_of_redis(
    valkey: str, role: str, is_there: bool, older_s: int
) -> None:
    """Without a keeper, doctor of the one that starts here has nothing against it."""
    age_s = int(ROWS_AGE_S_MAX) + older_s
    with redis.Redis.from_url(valkey) as client:
        now, _ = client.time()
        client.xadd(keys.outbox(3), {"e": b"-"}, id=f"{(now - age_s) * 1_000}-0")
        client.xadd(keys.outbox(7), {"e": b"-"}, id=f"{now * 1_000}-0")
        if is_there:
            client.set(keys.KEEPERS, '{"version":"9.9","peppers":["one"]}')
    (found,) = await rows(valkey, role)
    is_old = older_s > 0
    assert found.well is (not is_old or role == "keeper")
    assert found.says.startswith("2 wait")
    assert ("the oldest for 3" in found.says) is is_old
    assert not await rows(valkey, "serve"), "a gateway stores none"


def test_doctor_names_the_primary_with_rows_that_wait() -> None:
    waits = {"redis 127.0.0.1:7001": (29, 34.2), "redis 127.0.0.1:7002": (3, 0.1)}
    assert [*of_rows("all", KeeperInfo("9.9", ("one",)), waits, None)] == [
        Finding(False, "rows", f"29 wait at 127.0.0.1:7001, the oldest for 34 s; {hints.ROWS}"),
        Finding(True, "rows", "3 wait at 127.0.0.1:7002, none for long"),
    ]


async def test_doctor_repeats_the_error_of_a_keeper_that_stores_no_rows_with_a_remedy(valkey: str) -> None:
    wire = RedisConnection(parse_url(valkey), time.monotonic)
    await wire.open()
    try:
        await say_unstored(wire, UnstoredRows(FULL, 12.4, "53100"))
        (stored,) = await rows(valkey, "keeper")
        with redis.Redis.from_url(valkey) as client:
            client.xadd(keys.outbox(3), {"e": b"-"})
        first, _ = await rows(valkey, "keeper")
        await say_unstored(wire, UnstoredRows("Redis refused: NOPERM no", 3.0, "", "10.0.0.7:6379"))
        second, _ = await rows(valkey, "all")
        await say_unstored(wire, None)
        (third,) = await rows(valkey, "all")
    finally:
        await wire.close()
    assert (stored.well, third.well) == (True, True)
    said = f"no row could be stored for 12 s: {FULL}; make room on the disk of PostgreSQL"
    assert first == Finding(False, "rows", said)
    said = "no row of 10.0.0.7:6379 could be stored for 3 s: Redis refused: NOPERM no"
    assert second == Finding(False, "rows", f"{said}; give the user what deploy/users.acl says")
