"""How processes wait at their start for what they cannot do without: bounded, and saying so.

Part of the composition root.
"""

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
from gateway.counters.redis.connecting import wires_to
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import StartError, TollkeeperError
from gateway.settings.settings import Settings

ASK_INTERVAL_S = 0.25
# The last look has time to say what is wrong, rather than that there was no time.
ASK_S_MIN = 1.0
ASK_S_MAX = 10.0
SAY_INTERVAL_S = 5.0


async def reached(
    name: str,
    trouble: Callable[[], Awaitable[str]],
    *,
    wait_s: float,
    stop: asyncio.Event,
    log: Callable[..., None],
) -> bool:
    """Wait until something answers; False where the process is to stop meanwhile.

    `trouble` answers why it does not, empty where it does. StartError once `wait_s` seconds are over.
    """
    clock = asyncio.get_running_loop().time
    began = said = clock()
    while True:
        why = await _asked(trouble, min(ASK_S_MAX, max(wait_s - (clock() - began), ASK_S_MIN)))
        if not why:
            return True
        waited = clock() - began
        if stop.is_set():
            return False
        if waited >= wait_s:
            over = f"{name} cannot be reached, after {wait_s:g} s: {why}"
            raise StartError(f"{over} (tollkeeper doctor says what to do)")
        if clock() - said >= SAY_INTERVAL_S or said == began:
            said = clock()
            log(f"waiting for {name}", waited_s=round(waited, 1), at_most_s=wait_s, why=why, level="warning")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), ASK_INTERVAL_S)


async def redis_reached(wires: Wires, wait_s: float, stop: asyncio.Event, log: Callable[..., None]) -> bool:
    """Wait until there is a connection to Redis, as `reached` does; of a cluster to one primary at least.

    StartError at once where it would delete counters.
    """

    async def trouble() -> str:
        there = await wires.connected_within(ASK_INTERVAL_S) or any(one.connected for one in wires.wires)
        wires.refuse_eviction()
        return "" if there else wires.trouble or "no connection"

    return await reached("Redis", trouble, wait_s=wait_s, stop=stop, log=log)


async def catalogue_of(settings: Settings) -> Mapping[str, Service]:
    """The services as Redis has them; empty where it does not say."""
    address, name = parse_url(settings.url_file("redis_url"), settings.redis_files), keys.CATALOGUE.encode()
    wires = wires_to(address, lambda where: Wire(where, time.monotonic, call_s=ASK_S_MAX))
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


async def _asked(trouble: Callable[[], Awaitable[str]], within_s: float) -> str:
    try:
        async with asyncio.timeout(within_s):
            return await trouble()
    except TimeoutError:
        return f"no answer within {within_s:g} s"
