"""Fair sharing of a worker's time: a caller with much work waits until others had some.

The kernel may deliver thirty reads of a fast connection in a row. New work (a head, the beginning of an
answer) goes first. More data of the same answer is processed at once if it is little, else in order, for a
moment of each iteration of the event loop. Large bodies are parsed one at a time, in rotation of
organizations, in a share of the worker's time: parsing one takes milliseconds that block the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# The share of a worker's time for large bodies.
TIME_SHARE = 0.25
REST_S_MAX = 0.5  # maximum pause after one body

_READER = ThreadPoolExecutor(1, "bodies")
# Bytes of answers processed at once in one loop iteration: a millisecond if these are many small events.
AT_ONCE_BYTES_MAX = 32 * 1024
TURN_S_MAX = 0.001


class FairQueue:
    """A queue for work on answers: try `take_now`; if it returns False, queue with `wait_for`."""

    __slots__ = ("_bytes_left", "_loop", "_scheduled", "_seconds", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._bytes_left = AT_ONCE_BYTES_MAX
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def take_now(self, size: int) -> bool:
        """Return whether `size` bytes may be processed now, without waiting for a turn, and count them."""
        left = self._bytes_left - size
        if left < 0 or self._waiting:
            return False
        self._bytes_left = left
        return True

    def wait_for(self, go_on: Callable[[], None]) -> None:
        """Queue the function `go_on` for its turn; it must check whether its work is still needed."""
        self._waiting.append(go_on)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Run the queued functions in order, for at most `TURN_S_MAX`."""
        waiting, until = self._waiting, self._seconds() + TURN_S_MAX
        for _ in range(len(waiting)):
            waiting.popleft()()
            if self._seconds() >= until:
                break
        if waiting:
            self._loop.call_soon(self._turn)
        else:
            self._bytes_left = AT_ONCE_BYTES_MAX
            self._scheduled = False


class _FairWaiter:
    """A body in the queue of its organization; `read` is None once its client has left."""

    __slots__ = ("read", "result")

    def __init__(self, read: Callable[[], Any], result: asyncio.Future[Any]) -> None:
        self.read: Callable[[], Any] | None = read
        self.result = result


class LargeBodies:
    """A queue of large bodies, parsed in one thread in rotation of organizations; `turns` counts them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: dict[int, deque[_FairWaiter]] = {}
        self._is_taken = False
        self.turns = 0

    async def read(self, organization_id: int, read: Callable[[], T]) -> T:
        """Run `read` in the parser's thread when it is the organization's turn, and return its result."""
        one = _FairWaiter(read, self._loop.create_future())
        self._waiting.setdefault(organization_id, deque()).append(one)
        if not self._is_taken:
            self._next()
        try:
            result: T = await one.result
            return result
        finally:
            one.read = None  # a client that left loses its turn, and its body is freed

    async def gather(self, organization_id: int, items: Iterator[T]) -> list[T]:
        """Return all that `items` yields, made in turns of the organization of a millisecond each."""
        made: list[T] = []
        while await self.read(organization_id, partial(self._make, items, made)):
            pass
        return made

    def _make(self, items: Iterator[T], made: list[T]) -> bool:
        """Add items to those `made` for `TURN_S_MAX`; return whether there may be more."""
        until = self._seconds() + TURN_S_MAX
        for item in items:
            made.append(item)
            if self._seconds() >= until:
                return True
        return False

    def rest(self, took_s: float) -> asyncio.Future[None]:
        """Return a future that ends after a pause for other work; the pause grows with `took_s`."""
        pause: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_later(_rest_s(took_s), pause.set_result, None)
        return pause

    def _next(self) -> None:
        """Start to parse the first waiting body of the next organization, which then becomes the last."""
        self._is_taken = False
        while self._waiting and not self._is_taken:
            organization_id = next(iter(self._waiting))
            waiting = self._waiting.pop(organization_id)
            one = waiting.popleft()
            if waiting:
                self._waiting[organization_id] = waiting
            if one.read is not None:
                self._is_taken = True
                self.turns += 1
                doing = self._loop.run_in_executor(_READER, one.read)
                doing.add_done_callback(partial(self._done, one, self._seconds()))

    def _done(self, one: _FairWaiter, began: float, doing: asyncio.Future[Any]) -> None:
        """Set the result of parsing a body, and schedule the next body after a pause."""
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
