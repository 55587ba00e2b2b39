"""Turns of one worker: whoever has much to be done waits until others had some, so that nobody has the loop.

The kernel hands over as much of a fast connection as it has, thirty reads in a row. What is new goes
first (a head, the beginning of an answer); more of the same is done at once while there is little of
it, and else in order, for a moment of every turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

# Done at once between two turns, bytes of answers: a millisecond where they are many small events.
AT_ONCE_BYTES_MAX = 32 * 1024
TURN_S_MAX = 0.001


class Turns:
    """Ask with `take_now`; where that says no, `wait_for` one."""

    __slots__ = ("_left", "_loop", "_scheduled", "_seconds", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._left = AT_ONCE_BYTES_MAX
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def take_now(self, size: int) -> bool:
        """Whether so many bytes may be dealt with at once."""
        left = self._left - size
        if left < 0 or self._waiting:
            return False
        self._left = left
        return True

    def wait_for(self, go_on: Callable[[], None]) -> None:
        """Go on when it is one's turn; it may be in vain by then."""
        self._waiting.append(go_on)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Let those go on who wait now, one after the other, for a moment."""
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
