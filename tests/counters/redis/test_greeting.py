"""What is said first on a connection: on a busy machine all of it may take long."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.counters.redis.address import Ask, Server, parse_url
from gateway.counters.redis.connection import SWEEP_S, RedisConnection
from gateway.errors import CountersUnavailable
from tests.counters.fake_redis import bulk, fake_redis
from tests.waiting import eventually


async def test_who_answers_is_not_given_up_however_long_all_of_it_takes() -> None:
    async def identify(_: Server, asked: Ask) -> bytes:
        for _ in range(4):
            await asyncio.sleep(0.2)
            await asked(b"ECHO", b"here")
        return bytes(await asked(b"ECHO", b"history" if fake.connections > 1 else b"silence"))

    async with fake_redis(lambda command: None if command[-1] == b"silence" else bulk(command[-1])) as fake:
        wire = RedisConnection(parse_url(fake.url), time.monotonic, connect_s=0.3)
        wire.identify = identify
        with pytest.raises(CountersUnavailable, match="no answer in time"):
            await wire.open()
        await eventually(lambda: wire.connected)
        assert (wire.run_id, fake.connections) == (b"history", 2)
        await wire.close()


async def test_who_answers_later_than_calls_may_wait_is_connected_to_again() -> None:
    async def identify(_: Server, asked: Ask) -> bytes:
        return bytes(await asked(b"ECHO", b"history")) if fake.connections > 1 else b"before"

    asked = asyncio.Event()
    async with fake_redis(lambda _: asked.set()) as fake:
        wire = RedisConnection(parse_url(fake.url), time.monotonic, call_s=0.1, stall_s=30, connect_s=30)
        wire.identify = identify
        await wire.open()
        assert wire._transport is not None
        wire._transport.abort()
        await eventually(lambda: not wire.connected)
        await asked.wait()
        await asyncio.sleep(SWEEP_S * 10)  # many looks, each later than a call may be
        wire.data_received(bulk(b"late"))
        await eventually(lambda: wire.connected)
        assert (wire.run_id, fake.connections) == (b"late", 2)
        await wire.close()
