"""Whether something a process depends on answers, told within a bound: a probe never hangs with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable
from gateway.run.supervisor.ops import CONFIGURATION, DISK, EVERY_PARTITION, OPEN_FILES
from gateway.run.vitals import DiskWatch, has_files_left
from gateway.settings.settings import Settings
from gateway.telemetry import snapshot_files as tallies

ANSWER_S_MAX = 2.0


class Probe:
    """Ask one dependency, once at a time: what is still being asked is asked no second time."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], *, answer_s_max: float = ANSWER_S_MAX) -> None:
        self._ask = ask
        self._answer_s_max = answer_s_max
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether it said yes within the bound; an error is a no."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._told())
        done, _ = await asyncio.wait({self._asking}, timeout=self._answer_s_max)
        return bool(done) and self._asking.result()

    async def _told(self) -> bool:
        try:
            return await self._ask()
        except Exception:  # noqa: BLE001  # whatever it meets, it does not answer
            return False


async def one_answers(wires: Sequence[Wire]) -> bool:
    """Whether Redis answers; of a cluster one primary is enough."""
    asked = [asyncio.create_task(_pinged(wire)) for wire in wires]
    try:
        for each in asyncio.as_completed(asked):
            if await each:
                return True
        return False
    finally:
        for one in asked:
            one.cancel()


async def all_answer(wires: Sequence[Wire]) -> bool:
    """Whether Redis answers; of a cluster each primary."""
    return bool(wires) and all(await asyncio.gather(*map(_pinged, wires)))


async def _pinged(wire: Wire) -> bool:
    with suppress(CountersUnavailable):
        return await in_task(wire.send(encode(b"PING"))) == b"PONG"
    return False


async def of_gateway(settings: Settings, serves: Callable[[], bool], disk: DiskWatch) -> dict[str, bool]:
    """What a lone gateway needs, and whether it is there: Redis by what the workers found themselves.

    `serves`: whether a worker accepts calls. Its port is held by us, so that nobody there would refuse.

    Of a cluster one primary that serves is enough: `every_partition` says whether all of them do. A
    configuration file that is wrong is not used: `configuration` says whether the last one is.
    """
    found = tallies.collect(settings.metrics_dir)
    every = PARTITIONS * found.get("workers", 0)
    away, unverified = (found.get(name, 0) for name in ("partitions_away", "partitions_unverified"))
    return {
        "gateway": serves(),
        "redis": away < every,
        "counters_verified": unverified < every,
        EVERY_PARTITION: every > away + unverified == 0,
        CONFIGURATION: not found.get("configuration_stale", 0),
        DISK: not disk.full,
        OPEN_FILES: has_files_left(found),
    }
