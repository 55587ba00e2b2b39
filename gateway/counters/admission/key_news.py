"""Wakes a worker that shares a key of Redis with all others: the key changed, or the worker has something to add."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.counters.redis.cluster import RedisConnections
from gateway.errors import CountersUnavailable

# The wait for news if Redis reports changes, and if it does not.
NEWS_S: Final = 20.0
SILENCE_S: Final = 5.0


class KeyNews:
    """News about the key `name`: `come` is called for what this worker has to add."""

    def __init__(self, wires: RedisConnections, name: bytes) -> None:
        self._wires, self._name = wires, name
        self._news = asyncio.Event()
        self.come = self._news.set
        wires.hear(self._hear)

    @property
    def is_reported(self) -> bool:
        """Whether Redis reports changes of the key at present."""
        return self._wires.of_key(self._name).hearing.since > 0

    async def keep_sharing(self, share: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """Call `share` until cancelled, at news and at intervals, with a pause behind each call."""
        while True:
            self.clear()
            with suppress(CountersUnavailable):
                await share()
            await asyncio.sleep(pause_s)
            await self.wait(NEWS_S if self.is_reported else SILENCE_S)

    def clear(self) -> None:
        """Forget the news so far: what is read from now on has them."""
        self._news.clear()

    async def wait(self, longest_s: float) -> None:
        """Return at the next news, or after `longest_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._news.wait()

    def _hear(self, name: bytes) -> None:
        if not name or name == self._name:
            self.come()
