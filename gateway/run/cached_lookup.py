"""A look-up that is made again once its answer is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

FRESH_S = 1.0
T = TypeVar("T")


class _CachedAnswer(NamedTuple, Generic[T]):
    at: float
    value: T


class CachedLookup(Generic[T]):
    """The cached result of a look-up, for `fresh_s` seconds; only one look-up runs at a time."""

    def __init__(
        self, look: Callable[[], Awaitable[T]], *, fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._look, self._fresh_s, self._clock = look, fresh_s, clock
        self._turn = asyncio.Lock()
        self._answer: _CachedAnswer[T] | None = None

    async def now(self) -> T:
        """Return the cached result, or that of a new look-up; raise its error, which is not cached."""
        async with self._turn:
            if self._answer is None or self._clock() - self._answer.at >= self._fresh_s:
                self._answer = None
                value = await self._look()
                self._answer = _CachedAnswer(self._clock(), value)
            return self._answer.value
