"""A one-shot value that a coroutine can await without an event loop.

The data plane runs each request as a coroutine driven straight from socket callbacks: an
`asyncio.Future` and its `Task` cost several microseconds a step, a `Wait` a fraction of one.
Whoever produces the value calls `set` or `fail` once; whoever drives the coroutine registers
itself with `then` when it is handed the pending `Wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Generic, TypeVar

from gateway.core.awake import LOOKS_MIN

T = TypeVar("T")


class Wait(Generic[T]):
    """A value that arrives once. Awaiting it returns the value or raises the failure."""

    __slots__ = ("_callback", "_error", "_late", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callback: Callable[[], None] | None = None
        self._late: Callable[[T | None], None] | None = None

    def set(self, value: T) -> None:
        """Deliver the value; a second delivery is ignored (a timeout may have won) but by who gave it up."""
        if self.done:
            if self._late is not None:
                self._tell(value)
            return
        self.done = True
        self._value = value
        if self._callback is not None:
            self._callback()

    def fail(self, error: BaseException) -> None:
        """Deliver a failure; ignored once done, but by who gave it up."""
        if self.done:
            if self._late is not None:
                self._tell(None)
            return
        self.done = True
        self._error = error
        if self._callback is not None:
            self._callback()

    def give_up(self, late: Callable[[T | None], None]) -> None:
        """Wait no more: `late` is told the value that comes all the same, or None once none will."""
        self.done = True
        self._callback, self._late = None, late

    def _tell(self, value: T | None) -> None:
        late, self._late = self._late, None
        if late is not None:
            late(value)

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once done; at once if it is done already."""
        if self.done:
            callback()
        else:
            self._callback = callback

    def __await__(self) -> Generator[Wait[T], None, T]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # done without error means set


async def in_task(wait: Wait[T]) -> T:
    """Await a `Wait` from an asyncio task, which knows futures only."""
    if not wait.done:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wait.then(lambda: None if future.done() else future.set_result(None))
        await future
    return await wait


class Within:
    """`asyncio.timeout` by time awake: a stall of the loop counts as one part of `LOOKS_MIN` at most."""

    __slots__ = ("_left", "_loop", "_part_s", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._part_s = seconds / LOOKS_MIN
        self._left = LOOKS_MIN
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._arm()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._part_s, self._look)

    def _look(self) -> None:
        self._left -= 1
        if self._left:
            self._arm()
        else:
            self._timeout.reschedule(self._loop.time())
