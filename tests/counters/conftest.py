"""Wires to real servers, closed after each test, and a verified world."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from gateway.counters.address import parse_url
from gateway.counters.wire import Wire
from tests.builders import World

Connect = Callable[..., Awaitable[Wire]]


async def eventually(done: Callable[[], Any]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(15):
        while not done():
            await asyncio.sleep(0.01)


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    yield made
    made.client.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens a wire to a URL or address; more keywords are the wire's own."""
    wires: list[Wire] = []

    async def opened(where: Any, **more: Any) -> Wire:
        wire = Wire(parse_url(where) if isinstance(where, str) else where, time.monotonic, **more)
        wires.append(wire)
        await wire.open()
        return wire

    yield opened
    for wire in wires:
        await wire.close()
