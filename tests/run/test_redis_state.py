"""A Redis that is there and refuses is known by itself, and so is a clock that is another's."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from gateway.run.health import RedisState
from tests.conftest import ValkeyServer, free_port
from tests.waiting import eventually

Said = list[tuple[str, str]]


@asynccontextmanager
async def looked_at(
    server: ValkeyServer, said: Said, **made: Any
) -> AsyncIterator[tuple[RedisState, RedisConnection]]:
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    await wire.open()

    def log(event: str, code: str = "", **_: object) -> None:
        said.append((event, code))

    state = RedisState(wire, log, **made)
    asking = asyncio.create_task(state.keep_asking(ask_s=0.01))
    try:
        yield state, wire
    finally:
        asking.cancel()
        await wire.close()


async def full(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    client.config_set("maxmemory", 1)


async def of_another(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    client.replicaof("127.0.0.1", str(free_port()))


async def without_a_disk(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    """Its snapshot fails, and a write is answered so."""
    client.config_set("save", "1 1")
    shutil.rmtree(server.folder)
    client.set("x", 1)

    async def refused() -> bool:
        with suppress(redis.ResponseError):
            client.bgsave()
        with suppress(CountersUnavailable):
            await in_task(wire.send(encode(b"SET", b"x", b"1")))
        return wire.refusal[0] == "MISCONF"

    await eventually(refused)


def well_again(client: redis.Redis, code: str) -> None:
    match code:
        case "OOM":
            client.config_set("maxmemory", 0)
        case "READONLY":
            client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("code", "break_it", "takes"),
    [("OOM", full, False), ("READONLY", of_another, False), ("MISCONF", without_a_disk, True)],
)
async def test_why_redis_refuses_is_told_until_it_takes_calls_again(
    own_valkey: Callable[..., ValkeyServer],
    code: str,
    break_it: Callable[[ValkeyServer, redis.Redis, RedisConnection], Awaitable[None]],
    takes: bool,
) -> None:
    """By what calls are answered alone a server is not given up: only calls can say that it is well again."""
    server, said = own_valkey("--save", ""), Said()
    with redis.Redis(port=server.port) as client:
        async with looked_at(server, said) as (state, wire):
            await eventually(state.figures)
            assert (state.taking, state.why) == (PARTITIONS, "")
            await break_it(server, client, wire)
            await eventually(lambda: state.refusing)
            assert state.snapshot()["partitions_refusing"] == [(code, PARTITIONS)]
            assert state.why.startswith(f"{code}: ")
            assert (state.taking > 0) is takes
            if code == "MISCONF":
                assert state.figures()["redis_files_failing"] == [("append_only", 0), ("snapshot", 1)]
                client.config_set("save", "")  # else it does not end
            else:
                well_again(client, code)
                await eventually(lambda: state.taking == PARTITIONS and not state.refusing)
                await eventually(lambda: ("redis takes everything again", "") in said)
    assert said[0] == ("redis refuses", code)


async def test_memory_of_the_server_and_what_follows_it_are_figures(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    server, said = own_valkey("--maxmemory", "64mb"), Said()
    async with looked_at(server, said) as (state, _):
        await eventually(state.figures)
        before = state.figures()
        with redis.Redis(port=server.port) as client:
            client.set("much", b"x" * 4_000_000)
        wanted = int(str(before["redis_memory_used_bytes"])) + 3_900_000
        await eventually(lambda: int(str(state.figures()["redis_memory_used_bytes"])) > wanted)
    assert (before["redis_memory_max_bytes"], before["redis_replicas"]) == (64 * 1024 * 1024, 0)
    assert before["redis_files_failing"] == [("append_only", 0), ("snapshot", 0)]
    assert "redis_replica_lag_seconds" not in before
    assert not said


@pytest.mark.parametrize("ahead_s", [-7_200, 0, 7_200])
async def test_a_clock_that_is_wrong_is_told_by_how_much(
    own_valkey: Callable[..., ValkeyServer], ahead_s: int
) -> None:
    async with looked_at(own_valkey(), [], wall=lambda: time.time() + ahead_s) as (state, _):
        await eventually(state.figures)
        assert abs(state.clock_off_s - ahead_s) < 5
