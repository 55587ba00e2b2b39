"""Who is busy now, as workers publish it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from gateway.core.accounts.refusals import Counts, bound_tenants
from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

PUBLISH_S = 2.0
BUCKET_S = 5
WINDOW_S_MAX = 60
KEPT_S = WINDOW_S_MAX + 4 * BUCKET_S
TENANTS_TOLD_MAX = 100  # by one worker, each time


class Activity:
    """The hashes of the last minute; `unix_seconds` returns the time of day."""

    def __init__(self, wires: RedisConnections, unix_seconds: Callable[[], float]) -> None:
        self._wires, self._unix_seconds = wires, unix_seconds

    async def keep_publishing(self, taken: Callable[[], Counts]) -> None:
        """Publish the activity counts that `taken` returns, at intervals until cancelled."""
        while True:
            await asyncio.sleep(PUBLISH_S)
            with suppress(CountersUnavailable):
                await self.publish(taken())

    async def publish(self, counts: Counts) -> None:
        """Add activity counts to the present interval's hash; CountersUnavailable without Redis."""
        if not counts:
            return
        name = keys.activity(int(self._unix_seconds()) // BUCKET_S).encode()
        wire = self._wires.of_key(name)
        waits = [
            wire.send(encode(b"HINCRBY", name, b"%d:%b" % (tenant_id, kind.encode()), b"%d" % count))
            for (tenant_id, kind), count in bound_tenants(counts, TENANTS_TOLD_MAX).items()
        ]
        waits.append(wire.send(encode(b"EXPIRE", name, b"%d" % KEPT_S)))
        for wait in waits:
            await in_task(wait)

    async def read(self, window_s: int) -> tuple[list[tuple[tuple[int, str], int]], float]:
        """Return the activity counts of about the last `window_s` seconds, and the exact number of seconds.

        Each count has its tenant id and kind. CountersUnavailable if Redis does not answer.
        """
        now = self._unix_seconds()
        last = int(now) // BUCKET_S
        first = last - min(window_s, WINDOW_S_MAX) // BUCKET_S
        names = [keys.activity(bucket).encode() for bucket in range(first, last + 1)]
        waits = [self._wires.of_key(name).send(encode(b"HGETALL", name)) for name in names]
        counts: list[tuple[tuple[int, str], int]] = []
        for wait in waits:
            answer = cast("list[bytes]", await in_task(wait))
            for field, count in zip(answer[::2], answer[1::2], strict=True):
                tenant_id, _, kind = field.decode().partition(":")
                counts.append(((int(tenant_id), kind), int(count)))
        return counts, now - first * BUCKET_S
