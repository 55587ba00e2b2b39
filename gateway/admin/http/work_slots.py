"""Slots for work at the admin port: each organization has its own, and so have staff.

Without a free slot, a caller waits in the queue of its organization. A free slot goes to staff first, then to
the organizations in turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from gateway.errors import Overloaded, TollkeeperError, TooManyRequests

Whose = int | None


@dataclass(frozen=True, slots=True)
class ConcurrencyLimits:
    """Maxima of concurrent work: of staff, of one organization, of all organizations, and of all together.

    In each organization's queue, and in staff's, up to `waiting_max` wait for a slot, each up to `wait_s`
    seconds (None: without limit).
    """

    staff_max: int
    own_max: int
    others_max: int
    all_max: int | None = None
    waiting_max: int = 0
    wait_s: float | None = 10.0


class WorkSlots:
    """Work slots under these limits; `taken` counts the slots in use by organization (None: staff)."""

    def __init__(self, room: ConcurrencyLimits) -> None:
        self._room = room
        self.taken: Counter[Whose] = Counter()
        # Waiting callers; the organization that got a slot last is last.
        self._queues: dict[Whose, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def of(self, whose: Whose) -> AsyncIterator[None]:
        """Acquire a slot for an organization, or for staff (None), within the context.

        If none becomes free in time, raise `TooManyRequests` if the organization itself uses its share, else
        `Overloaded`.
        """
        await self._take(whose)
        try:
            yield
        finally:
            self._give_back(whose)

    async def _take(self, whose: Whose) -> None:
        """Acquire a slot, at once or after waiting; raise the refusal if none becomes free."""
        full = self._full(whose)
        if full is None:  # then nobody of this organization waits: all that could go have gone
            self.taken[whose] += 1
            return
        queue = self._queues.get(whose, ())
        if len(queue) < self._room.waiting_max:
            with suppress(TimeoutError):
                await self._wait(whose)
                return
        raise full

    def _full(self, whose: Whose) -> TollkeeperError | None:
        """Return the error for an organization, or staff (None), without a free slot; None if one is free."""
        room, mine, total = self._room, self.taken[whose], self.taken.total()
        others = total - self.taken[None]
        if whose is not None and mine >= room.own_max:
            return TooManyRequests(_describe_count(mine, " for this organization"))
        if whose is not None and others >= room.others_max:
            return Overloaded(_describe_count(others, " for other organizations"))
        if whose is None and mine >= room.staff_max:
            return Overloaded(_describe_count(mine))
        return (
            Overloaded(_describe_count(total)) if room.all_max is not None and total >= room.all_max else None
        )

    async def _wait(self, whose: Whose) -> None:
        """Wait for a slot in the queue of `whose`, and leave the queue if that takes too long."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(whose, deque()).append(turn)
        try:
            async with asyncio.timeout(self._room.wait_s):
                await turn
        except BaseException:
            queue = self._queues.get(whose, deque())
            if turn not in queue:  # it was given a place just now
                self._give_back(whose)
                raise
            queue.remove(turn)
            if not queue:
                del self._queues[whose]
            raise

    def _give_back(self, whose: Whose) -> None:
        self.taken[whose] -= 1
        if not self.taken[whose]:
            del self.taken[whose]
        while (turn := self._next()) is not None:
            if not turn.done():  # who just left gives the place back
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        """Return the first waiter that may work now, and count its slot as taken; None if there is none."""
        for whose in sorted(self._queues, key=lambda queue: queue is not None):
            if self._full(whose) is None:
                queue = self._queues.pop(whose)
                turn = queue.popleft()
                if queue:
                    self._queues[whose] = queue
                self.taken[whose] += 1
                return turn
        return None


def _describe_count(count: int, whose: str = "") -> str:
    number = "1 of these is" if count == 1 else f"{count} of these are"
    return f"{number} under way already{whose}: try again in a while."
