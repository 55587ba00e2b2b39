"""A one-shot value that a coroutine can await without an event loop.

The data plane runs each request as a coroutine driven straight from socket callbacks: an
`asyncio.Future` and its `Task` cost several microseconds a step, a `Wait` a fraction of one. The
value's producer calls `set` or `fail` once; the coroutine's driver registers itself with `then`
when it is handed the pending `Wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
LOOKS_MIN: Final = 4  # into how many looks a wait is cut at least


class Waiter:
    """The callback that goes on when the value is there."""

    __slots__ = ()

    def resume(self, wait: Wait[Any]) -> None:
        """Resume after `wait`, which is done."""
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
        """Deliver the value; a second delivery is ignored (a timeout may have won) but by who gave it up."""
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
        """Deliver a failure; ignored once done, but by who gave it up."""
        if not self.done:
            self._error = error
        self.set(None)  # type: ignore[arg-type]  # no value, which the waiter never sees

    def give_up(self, late: Callable[[T | None], None]) -> None:
        """Wait no more: `late` is told the value that comes all the same, or None once none will."""
        self.done = True
        self._callback, self._waiter, self._late = None, None, late

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once done; at once if it is done already."""
        if self.done:
            callback()
        else:
            self._callback = callback

    def resumes(self, waiter: Waiter) -> None:
        """Resume `waiter` once done; at once if it is done already."""
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


# Awaited by a coroutine that is over: its driver knows. An error, by which others end, costs 1 % of a call.
OVER: Wait[None] = Wait()


async def in_task(awaitable: Awaitable[T]) -> T:
    """Await what awaits `Wait`s, and nothing else, or is one, in an asyncio task."""
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
    """Run what awaits `Wait`s, and nothing else. It goes on where nobody awaits its end."""
    over: Wait[T] = Wait()
    steps = awaitable.__await__()

    def go_on() -> None:
        try:
            wait = steps.send(None)
        except StopIteration as end:
            over.set(end.value)
        except Exception as error:  # noqa: BLE001  # who awaits the end gets it
            over.fail(error)
        else:
            wait.then(go_on)

    go_on()
    return over


class AwakeTimeout:
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
    """A clock that advances by at most `gap_s_max` between two looks at the loop.

    While one thing keeps the loop busy, answers that came are not read: that pause is not blamed on the other
    side. A long wait is given up after several looks, with received bytes read in between.
    """

    __slots__ = ("_gap_s_max", "_looked_at", "_now")

    def __init__(self, now: float, gap_s_max: float) -> None:
        self._gap_s_max = gap_s_max
        self._looked_at = now
        self._now = now

    def at(self, now: float) -> float:
        """Return the time awake at a moment after the last look."""
        return self._now + min(now - self._looked_at, self._gap_s_max)

    def advance(self, now: float) -> float:
        """Note that the loop runs at `now`; return the time awake until then."""
        self._now = self.at(now)
        self._looked_at = now
        return self._now
