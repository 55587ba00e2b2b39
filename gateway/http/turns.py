"""Turns of one worker: a caller with much work waits until others had some, so that nobody has the loop.

The kernel hands over as much of a fast connection as it has, thirty reads in a row. New work goes first (a
head, the beginning of an answer); more of the same is done at once while there is little of it, and else in
order, for a moment of every turn of the loop. Large bodies are read one at a time, by turns of organizations,
in a share of the worker's time: reading one takes milliseconds, and nothing else of the process runs then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# Of a worker's time, what reading large bodies may take while others have calls too.
TIME_SHARE = 0.25
REST_S_MAX = 0.5  # after one body

_READER = ThreadPoolExecutor(1, "bodies")
# Done at once between two turns, bytes of answers: a millisecond where they are many small events.
AT_ONCE_BYTES_MAX = 32 * 1024
TURN_S_MAX = 0.001


class FairQueue:
    """Ask with `take_now`; where that says no, `wait_for` one."""

    __slots__ = ("_left", "_loop", "_scheduled", "_seconds", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._left = AT_ONCE_BYTES_MAX
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def take_now(self, size: int) -> bool:
        """Return whether so many bytes may be dealt with at once."""
        left = self._left - size
        if left < 0 or self._waiting:
            return False
        self._left = left
        return True

    def wait_for(self, go_on: Callable[[], None]) -> None:
        """Schedule `go_on` for its turn; by then it may be in vain."""
        self._waiting.append(go_on)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Run the functions that wait now, one after the other, for a moment."""
        waiting, until = self._waiting, self._seconds() + TURN_S_MAX
        for _ in range(len(waiting)):
            waiting.popleft()()
            if self._seconds() >= until:
                break
        if waiting:
            self._loop.call_soon(self._turn)
        else:
            self._left = AT_ONCE_BYTES_MAX
            self._scheduled = False


class _FairWaiter:
    """One who waits for a turn; nobody does any more where `read` is None."""

    __slots__ = ("read", "result")

    def __init__(self, read: Callable[[], Any], result: asyncio.Future[Any]) -> None:
        self.read: Callable[[], Any] | None = read
        self.result = result


class LargeBodies:
    """Ask with `read`: it is read in a thread when it is its organization's turn. `turns` counts these."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: dict[int, deque[_FairWaiter]] = {}
        self._taken = False
        self.turns = 0

    async def read(self, organization_id: int, read: Callable[[], T]) -> T:
        """Return the result of `read`, run in the turn of its organization."""
        one = _FairWaiter(read, self._loop.create_future())
        self._waiting.setdefault(organization_id, deque()).append(one)
        if not self._taken:
            self._next()
        try:
            result: T = await one.result
            return result
        finally:
            one.read = None  # a client that left has no turn, and its body is let go

    def rest(self, took_s: float) -> asyncio.Future[None]:
        """Return a future that ends after a pause, which work that took the loop so long makes for others."""
        pause: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_later(_rest_s(took_s), pause.set_result, None)
        return pause

    def _next(self) -> None:
        """Begin with the first of the organization whose turn it is; it is the last one to have another."""
        self._taken = False
        while self._waiting and not self._taken:
            organization_id = next(iter(self._waiting))
            waiting = self._waiting.pop(organization_id)
            one = waiting.popleft()
            if waiting:
                self._waiting[organization_id] = waiting
            if one.read is not None:
                self._taken = True
                self.turns += 1
                doing = self._loop.run_in_executor(_READER, one.read)
                doing.add_done_callback(partial(self._done, one, self._seconds()))

    def _done(self, one: _FairWaiter, began: float, doing: asyncio.Future[Any]) -> None:
        """Set the result of a waiter, and rest, so that reading takes no more than its share of time."""
        self._loop.call_later(_rest_s(self._seconds() - began), self._next)
        error = doing.exception()
        if one.read is None:
            return
        if error is None:
            one.result.set_result(doing.result())
        else:
            one.result.set_exception(error)


def _rest_s(took_s: float) -> float:
    return min(REST_S_MAX, took_s * (1 / TIME_SHARE - 1))
