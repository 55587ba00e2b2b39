"""Refused calls as a worker tells of them: batches in one stream, each sent until Redis has it.

Nothing waits for it. While Redis is away, or nobody reads the stream, a batch is kept and sent again under
its number, and what is refused meanwhile is counted for the next one, within the bounds of `Refusals`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.core.accounts.refusals import Refusals
from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.wire import encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

SEND_S = 0.5
# Batches of all workers that may wait for a keeper.
BATCHES_MAX = 64
FIELD = b"b"


class RefusedCalls:
    """The stream, and what this worker adds to it; `worker` is the name of this process alone."""

    def __init__(
        self, wires: Wires, refusals: Refusals, worker: str, *, batches_max: int = BATCHES_MAX
    ) -> None:
        self._wires, self._refusals, self._worker, self._batches_max = wires, refusals, worker, batches_max
        self._number, self._waiting = 0, b""

    async def keep_sending(self) -> None:
        """Send what there is, again and again, until cancelled."""
        while True:
            await asyncio.sleep(SEND_S)
            with suppress(CountersUnavailable):
                await self.send()

    async def leave(self) -> None:
        """Send all there is, before this worker ends."""
        with suppress(CountersUnavailable):
            while await self.send():
                pass

    async def send(self) -> bool:
        """Add the next batch; False where there is none, or the stream is full.

        CountersUnavailable where Redis does not answer: the same batch is sent again.
        """
        if not self._waiting:
            self._waiting = self._refusals.take(self._worker, self._number + 1)
            self._number += bool(self._waiting)
        if not self._waiting:
            return False
        name = keys.REFUSED.encode()
        wire = self._wires.of_key(name)
        length = await in_task(wire.send(encode(b"XLEN", name)))
        if not isinstance(length, int) or length >= self._batches_max:
            return False
        await in_task(wire.send(encode(b"XADD", name, b"*", FIELD, self._waiting)))
        self._waiting = b""
        return True
