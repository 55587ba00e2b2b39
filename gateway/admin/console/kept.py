"""What is looked up every few seconds, however many people look.

Who looks gets what was found last; only the first one waits, and not for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway.errors import StoreUnavailable

T = TypeVar("T")


class Kept(Generic[T]):
    """An answer of the store, asked for anew by whoever looks when it is older than `fresh_s`."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], clock: Callable[[], float], *, fresh_s: float, wait_s: float
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._fresh_s = fresh_s
        self._wait_s = wait_s
        self._asked_at = float("-inf")
        self._found: T | None = None
        self._asking: asyncio.Task[None] | None = None

    async def now(self) -> T | None:
        """What was found last; None while nothing was, or the store is away."""
        if self._clock() - self._asked_at >= self._fresh_s and (self._asking is None or self._asking.done()):
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._look())
        if self._found is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=self._wait_s)
        return self._found

    async def _look(self) -> None:
        try:
            self._found = await self._ask()
        except StoreUnavailable:
            self._found = None
