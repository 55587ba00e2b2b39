"""Refused calls, as a worker reports them: batches in one stream, each sent until Redis has it.

No call waits for this. While Redis is away, or no keeper reads the stream, a batch is kept and sent again
with the same number. Later refusals are counted for the next one, within the bounds of `Refusals`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.core.accounts.refusals import Refusals
from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

SEND_S = 0.5
# Batches of all workers that may wait for a keeper.
BATCHES_MAX = 64
FIELD = b"b"


class RefusedCalls:
    """Sends this worker's batches of refused calls to the stream; `worker` is unique to this process."""

    def __init__(
        self, wires: RedisConnections, refusals: Refusals, worker: str, *, batches_max: int = BATCHES_MAX
    ) -> None:
        self._wires, self._refusals, self._worker, self._batches_max = wires, refusals, worker, batches_max
        self._number, self._waiting = 0, b""

    async def keep_sending(self) -> None:
        """Send this worker's batches of refused calls at intervals until cancelled."""
        while True:
            await asyncio.sleep(SEND_S)
            with suppress(CountersUnavailable):
                await self.send()

    async def leave(self) -> None:
        """Send all remaining batches of refused calls, before this worker stops."""
        with suppress(CountersUnavailable):
            while await self.send():
                pass

    async def send(self) -> bool:
        """Send the next batch of refused calls to the stream; False if there is none, or the stream is full.

        CountersUnavailable if Redis does not answer: then the same batch is sent again.
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
