"""Bounded waits for what a process needs at its start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from gateway.core.model import Service
from gateway.core.wait import in_task
from gateway.counters.admission.stored import services_of
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import RedisConnections, wires_to
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import StartError, TollkeeperError
from gateway.ops import hints
from gateway.settings.settings import Settings

ASK_INTERVAL_S = 0.25
# The first interval; each is twice the one before. A server that starts with us is available soon.
ASK_INTERVAL_MIN_S = 0.02
# The last attempt gets at least this time, so that its error says more than "no time".
ASK_S_MIN = 1.0
ASK_S_MAX = 10.0
SAY_INTERVAL_S = 5.0


async def wait_until_reached(
    name: str,
    trouble: Callable[[], Awaitable[str]],
    *,
    wait_s: float,
    stop: asyncio.Event,
    log: Callable[..., None],
    hint: Callable[[str], str] = lambda _: "tollkeeper doctor says what to do",
) -> bool:
    """Wait until the server `name` answers; return False if `stop` is set meanwhile.

    `trouble` returns why it does not answer, or "". After `wait_s` seconds raise StartError, with the advice
    that `hint` returns for that reason.
    """
    clock, interval_s = asyncio.get_running_loop().time, ASK_INTERVAL_MIN_S
    began = said = clock()
    while True:
        why = await _ask_trouble(trouble, min(ASK_S_MAX, max(wait_s - (clock() - began), ASK_S_MIN)))
        if not why:
            return True
        waited = clock() - began
        if stop.is_set():
            return False
        if waited >= wait_s:
            raise StartError(f"{name} cannot be reached, after {wait_s:g} s: {why}; {hint(why)}")
        if clock() - said >= SAY_INTERVAL_S or said == began:
            said = clock()
            log(f"waiting for {name}", waited_s=round(waited, 1), at_most_s=wait_s, why=why, level="warning")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), interval_s)
        interval_s = min(2 * interval_s, ASK_INTERVAL_S)


async def redis_reached(
    wires: RedisConnections, wait_s: float, stop: asyncio.Event, log: Callable[..., None],
    waits_for: Callable[[], str] = str,
) -> bool:  # fmt: skip
    """Wait for a connection to Redis; return False if `stop` is set meanwhile.

    One primary of a cluster is enough. StartError after `wait_s` seconds, or at once if the server may delete
    counters, or this process `waits_for` others.
    """

    async def trouble() -> str:
        there = await wires.connected_within(ASK_INTERVAL_S) or any(wire.connected for wire in wires.wires)
        wires.refuse_eviction()
        if not there and (why := waits_for()):
            raise StartError(why)
        return "" if there else wires.trouble or "no connection"

    return await wait_until_reached(
        "Redis", trouble, wait_s=wait_s, stop=stop, log=log, hint=hints.redis_hint
    )


async def catalogue_of(settings: Settings) -> Mapping[str, Service]:
    """Return the services of the catalogue in Redis by key; {} if it cannot be read."""
    address, name = parse_url(settings.url_file("redis_url"), settings.redis_files), keys.CATALOGUE.encode()
    wires = wires_to(address, lambda where: RedisConnection(where, time.monotonic, call_s=ASK_S_MAX))
    try:
        async with asyncio.timeout(ASK_S_MAX):
            await wires.open()
            await wires.connected_within(ASK_S_MIN)
            raw = await in_task(wires.of_key(name).send(encode(b"GET", name)))
    except (TollkeeperError, OSError, TimeoutError):
        return {}
    finally:
        await wires.close()
    return services_of(raw)


async def _ask_trouble(trouble: Callable[[], Awaitable[str]], within_s: float) -> str:
    try:
        async with asyncio.timeout(within_s):
            return await trouble()
    except TimeoutError:
        return f"no answer within {within_s:g} s"
