"""The fence of each wire of a process: what becomes of one server's data is nothing to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from gateway.counters.fence import Fence
from gateway.counters.redis.wire import Wire
from gateway.errors import CountersUnavailable

LOOK_S = 0.5
# While nothing is asked that anybody is served by.
IDLE_S = 30.0


class Fences:
    """`guard` makes the one of a wire before that connects; `pulse` names this process among all."""

    def __init__(
        self, pulse: str, clock: Callable[[], float], say: Callable[..., None] = lambda *_, **__: None
    ) -> None:
        self._pulse, self._clock, self._say = pulse, clock, say
        self._fences: dict[Wire, Fence] = {}
        self._promoted: dict[bytes, bytes] = {}
        self._noticed_before = 0

    @property
    def noticed(self) -> int:
        """The exchanges of data that this process was the first to say."""
        return self._noticed_before + sum(one.noticed for one in self._fences.values())

    def guard(self, wire: Wire) -> None:
        """Make the fence of a wire; those of wires that are closed are forgotten."""
        for closed in [one for one in self._fences if one.closed]:
            self._noticed_before += self._fences.pop(closed).noticed
        self._fences[wire] = Fence(wire, self._pulse, self._clock, self._say, self._promoted)

    def of(self, wire: Wire) -> Fence:
        """The fence of a wire."""
        return self._fences[wire]

    async def announce(self, wire: Wire, trouble: str) -> None:
        """Somebody knows that the data behind a wire is older than it was."""
        await self._fences[wire].announce(trouble)

    async def keep_looking(self) -> None:
        """Have each look twice a second, whatever holds up another, until cancelled."""
        looking: dict[Wire, asyncio.Task[None]] = {}
        try:
            while True:
                for wire in [one for one in looking if one.closed]:
                    looking.pop(wire).cancel()
                for wire, fence in self._fences.items():
                    if wire in looking and looking[wire].done():
                        looking.pop(wire).result()
                    if wire not in looking and wire.part.partitions and not wire.closed:
                        looking[wire] = asyncio.create_task(keep_looking(wire, fence))
                await asyncio.sleep(LOOK_S)
        finally:
            for task in looking.values():
                task.cancel()


async def keep_looking(wire: Wire, fence: Fence) -> None:
    """Look twice a second until cancelled; seldom while nobody is served by what is asked of this server.

    What is asked is followed by a look within half a second, and so is the word that anything may have
    changed. Who asks nothing is misled by nothing.
    """
    seen, idle_s = (0, 0), IDLE_S
    while True:
        now = wire.used, wire.hearing.since
        if seen != now or idle_s >= IDLE_S:
            seen, idle_s = now, IDLE_S  # it looks again soon where it is not answered
            with suppress(CountersUnavailable):
                await fence.check_history()
                idle_s = 0.0
        await asyncio.sleep(LOOK_S)
        idle_s += LOOK_S
