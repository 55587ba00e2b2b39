"""The operations port answers its probes, whoever holds connections to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.run.health import ANSWERS_MAX, SILENT_MAX, Ops, listen

PROBE = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def port(
    metrics: bytes = b"x 1\n", answers_max: int = ANSWERS_MAX, **others: bool
) -> AsyncIterator[int]:
    async def dependencies() -> dict[str, bool]:
        return {"redis": True, **others}

    ops = Ops(dependencies, lambda accept: (metrics, "text/plain"))
    server = await listen(ops, "127.0.0.1", 0, answers_max)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask(number: int, path: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(PROBE % path)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def eventually_closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), 30)


async def test_a_full_disk_or_a_primary_that_is_away_is_told_and_calls_go_on() -> None:
    async with port(disk=False, every_partition=False) as number:
        answer = await ask(number, b"/readyz")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"disk": false' in answer
    async with port(disk=True, counters_verified=False) as number:
        assert (await ask(number, b"/readyz")).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("path", [b"/livez", b"/readyz", b"/metrics"])
async def test_half_requests_starve_nobody(path: bytes) -> None:
    async with port() as number:
        held = []
        for _ in range(5 * SILENT_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"GET /livez HT")
            held.append((reader, writer))
        assert (await ask(number, path)).startswith(b"HTTP/1.1 200 ")
        assert await asyncio.wait_for(held[0][0].read(), 30) == b""  # the oldest gave way
        for _, writer in held:
            writer.close()


async def test_slow_readers_of_metrics_leave_room_for_liveness() -> None:
    async with port(b"x" * 32_000_000, 2) as number:
        held = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", number, limit=1024)
            writer.write(PROBE % b"/metrics")
            await reader.readexactly(10)
            held.append(writer)
        assert await ask(number, b"/metrics") == b""
        assert (await ask(number, b"/livez")).startswith(b"HTTP/1.1 200 ")
        for writer in held:
            writer.transport.abort()
            await eventually_closed(writer)
