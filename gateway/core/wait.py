"""A one-shot value that a coroutine can await without an event loop.

The data plane runs each request as a coroutine driven straight from socket callbacks: an `asyncio.Future` and
its `Task` cost several microseconds a step, a `Wait` a fraction of one. The value's producer calls `set` or
`fail` once. The coroutine's driver registers itself with `then` when it receives the pending `Wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
LOOKS_MIN: Final = 4  # parts into which a timeout is divided


class Waiter:
    """An object that resumes a coroutine when the value of a `Wait` arrives."""

    __slots__ = ()

    def resume(self, wait: Wait[Any]) -> None:
        """Resume the coroutine that waits for `wait`, whose value has arrived."""
        raise NotImplementedError


class Wait(Generic[T]):
    """A value that arrives once. Awaiting it returns the value or raises the failure."""

    __slots__ = ("_callback", "_error", "_late", "_value", "_waiter", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callback: Callable[[], None] | None = None
        self._late: Callable[[T | None], None] | None = None
        self._waiter: Waiter | None = None

    def set(self, value: T) -> None:
        """Deliver the value. A second one is ignored; after `give_up`, it is passed to `late`."""
        if self.done:
            late, self._late = self._late, None
            if late is not None:
                late(value)
            return
        self.done = True
        self._value = value
        if self._waiter is not None:
            self._waiter.resume(self)
        elif self._callback is not None:
            self._callback()

    def fail(self, error: BaseException) -> None:
        """Deliver a failure, which the waiter raises. After `give_up`, `late` is called with None instead."""
        if not self.done:
            self._error = error
        self.set(None)  # type: ignore[arg-type]  # no value, which the waiter never sees

    def give_up(self, late: Callable[[T | None], None]) -> None:
        """Stop waiting. `late` is called with a value that still arrives, or with None after a failure."""
        self.done = True
        self._callback, self._waiter, self._late = None, None, late

    def then(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the value has arrived; at once if it has already."""
        if self.done:
            callback()
        else:
            self._callback = callback

    def resumes(self, waiter: Waiter) -> None:
        """Resume `waiter` once the value has arrived; at once if it has already."""
        if self.done:
            waiter.resume(self)
        else:
            self._waiter = waiter

    def __await__(self) -> Generator[Wait[T], None, T]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # done without error means set


# Awaited by a coroutine as its end, known to its driver: the usual StopIteration costs 1 % of a call.
OVER: Wait[None] = Wait()


async def in_task(awaitable: Awaitable[T]) -> T:
    """Return the result of an awaitable that itself awaits only `Wait`s. Must run in an asyncio task."""
    steps = awaitable.__await__()
    while True:
        try:
            wait = steps.send(None)
        except StopIteration as over:
            value: T = over.value
            return value
        if not wait.done:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            wait.then(lambda ended=future: None if ended.done() else ended.set_result(None))
            await future


def begin(awaitable: Awaitable[T]) -> Wait[T]:
    """Start an awaitable that awaits only `Wait`s; return a `Wait` for its result.

    It continues even if nobody awaits the result.
    """
    over: Wait[T] = Wait()
    steps = awaitable.__await__()

    def go_on() -> None:
        try:
            wait = steps.send(None)
        except StopIteration as end:
            over.set(end.value)
        except Exception as error:  # noqa: BLE001  # raised where the end is awaited
            over.fail(error)
        else:
            wait.then(go_on)

    go_on()
    return over


class AwakeTimeout:
    """A timeout like `asyncio.timeout`. A stalled event loop counts as at most one part of `LOOKS_MIN`."""

    __slots__ = ("_left", "_loop", "_part_s", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._part_s = seconds / LOOKS_MIN
        self._left = LOOKS_MIN
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._look()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _look(self) -> None:
        if self._left:
            self._left -= 1
            self._timer = self._loop.call_later(self._part_s, self._look)
        else:
            self._timeout.reschedule(self._loop.time())


class Awake:
    """A clock that advances by at most `gap_s_max` between two calls of `advance`.

    While other work blocks the event loop, received answers are not read, so that time does not count against
    the peer. A long wait ends only after several calls, with received bytes read in between.
    """

    __slots__ = ("_gap_s_max", "_looked_at", "_now")

    def __init__(self, now: float, gap_s_max: float) -> None:
        self._gap_s_max = gap_s_max
        self._looked_at = now
        self._now = now

    def at(self, now: float) -> float:
        """Return the time of this clock at `now`, a moment since the last `advance`, without advancing it."""
        return self._now + min(now - self._looked_at, self._gap_s_max)

    def advance(self, now: float) -> float:
        """Advance the clock to `now`, a time at which the event loop runs, and return the clock's time."""
        self._now = self.at(now)
        self._looked_at = now
        return self._now
