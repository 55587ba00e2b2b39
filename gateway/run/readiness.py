"""Whether something a process depends on answers, told within a bound: a probe never hangs with it.

Whoever asks again and again costs no more than who asks each second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from gateway.core.model import PARTITIONS
from gateway.core.readiness import Found
from gateway.core.wait import in_task
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable
from gateway.run.redis_state import CLOCK_OFF_S_MAX, why
from gateway.run.supervisor.ops import CLOCK, CONFIGURATION, DISK, EVERY_PARTITION, OPEN_FILES
from gateway.run.vitals import DiskWatch, has_files_left
from gateway.settings.settings import Settings
from gateway.telemetry import snapshot_files as tallies

ANSWER_S_MAX = 2.0
FRESH_S = 1.0
T = TypeVar("T")


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


class Recent(Generic[T]):
    """What was looked up a moment ago: who asks within `fresh_s` has the same, and one at a time looks."""

    def __init__(
        self, look: Callable[[], Awaitable[T]], *, fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._look, self._fresh_s, self._clock = look, fresh_s, clock
        self._turn = asyncio.Lock()
        self._found: tuple[float, T] | None = None

    async def now(self) -> T:
        """What was found; it raises what the look does, and keeps nothing then."""
        async with self._turn:
            if self._found is None or self._clock() - self._found[0] >= self._fresh_s:
                self._found = None
                found = await self._look()
                self._found = self._clock(), found
            return self._found[1]


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


async def of_gateway(settings: Settings, serves: Callable[[], bool], disk: DiskWatch) -> Found:
    """What a lone gateway needs, and whether it is there: Redis by what the workers found themselves.

    `serves`: whether a worker accepts calls. Its port is held by us, so that nobody there would refuse.
    Of a cluster one primary that serves is enough: `every_partition` says whether all of them do. A
    configuration file that is wrong is not used: `configuration` says whether the last one is.
    """
    found = tallies.collect(settings.metrics_dir)
    every = PARTITIONS * found.get("workers", 0)
    away, unverified = (found.get(name, 0) for name in ("partitions_away", "partitions_unverified"))
    refuses = why(dict(found.get("partitions_refusing", ())))
    return {
        "gateway": serves() or "no worker accepts calls",
        "redis": (away < every and found.get("partitions_taking", 1) > 0) or refuses,
        "counters_verified": unverified < every,
        EVERY_PARTITION: every > away + unverified == 0 and (refuses or True),
        CONFIGURATION: not found.get("configuration_stale", 0),
        **of_process(found, disk),
    }


def of_process(snapshot: Mapping[str, Any], disk: DiskWatch) -> Found:
    """What is told of processes and their machine, by their numbers."""
    return {
        DISK: not disk.full or f"the disk of {', '.join(disk.full)} is full",
        OPEN_FILES: has_files_left(snapshot) or "hardly any file is left that a process may open",
        CLOCK: _clock(snapshot.get("clock_offset_seconds", ())),
    }


def _clock(offsets: Iterable[tuple[str, float]]) -> bool | str:
    """Whether our clock is that of others, or by how much it is not."""
    said = [
        f"the clock is {abs(off_s):,.0f} s {'ahead of' if off_s > 0 else 'behind'} that of {name}"
        for name, off_s in offsets
        if abs(off_s) >= CLOCK_OFF_S_MAX
    ]
    return not said or ", ".join(said)
