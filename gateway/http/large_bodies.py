"""Large bodies of one worker: one at a time is read, by turns of organizations, in a share of its time.

Reading one takes milliseconds, in which nothing else of the process runs. So whoever sends many waits for
itself, and all of them together leave most of the time to others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")

# Of a worker's time, what reading large bodies may take while others have calls too.
TIME_SHARE = 0.25
REST_S_MAX = 0.5  # after one body

_READER = ThreadPoolExecutor(1, "bodies")


class _Waiting(Generic[T]):
    """One who waits for a turn; nobody does any more where `read` is None."""

    __slots__ = ("read", "result")

    def __init__(self, read: Callable[[], T], result: asyncio.Future[T]) -> None:
        self.read: Callable[[], T] | None = read
        self.result = result


class LargeBodies(Generic[T]):
    """Ask with `read`: it is read in a thread when it is its organization's turn. `turns` counts these."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: dict[int, deque[_Waiting[T]]] = {}
        self._taken = False
        self.turns = 0

    async def read(self, organization_id: int, read: Callable[[], T]) -> T:
        """What `read` returns, once it had its turn."""
        one = _Waiting(read, self._loop.create_future())
        self._waiting.setdefault(organization_id, deque()).append(one)
        if not self._taken:
            self._next()
        try:
            result: T = await one.result
            return result
        finally:
            one.read = None  # whoever left has no turn, and its body is let go

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

    def _done(self, one: _Waiting[T], began: float, doing: asyncio.Future[T]) -> None:
        """Tell who waited, and rest: the next one begins once this one has taken no more than the share."""
        took = self._seconds() - began
        self._loop.call_later(min(REST_S_MAX, took * (1 / TIME_SHARE - 1)), self._next)
        error = doing.exception()
        if one.read is None:
            return
        if error is None:
            one.result.set_result(doing.result())
        else:
            one.result.set_exception(error)
