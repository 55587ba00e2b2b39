"""A look-up that is made again once its answer is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

FRESH_S = 1.0
T = TypeVar("T")


class CachedLookup(Generic[T]):
    """The cached result of a look-up, for `fresh_s` seconds; only one look-up runs at a time."""

    def __init__(
        self, look: Callable[[], Awaitable[T]], *, fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._look, self._fresh_s, self._clock = look, fresh_s, clock
        self._turn = asyncio.Lock()
        self._answer: tuple[float, T] | None = None

    async def now(self) -> T:
        """Return the cached result, or that of a new look-up; raise its error, which is not cached."""
        async with self._turn:
            if self._answer is None or self._clock() - self._answer[0] >= self._fresh_s:
                self._answer = None
                found = await self._look()
                self._answer = self._clock(), found
            return self._answer[1]
