"""Hands over what is due, some at a time, and tries again with longer and longer pauses.

Everything that waits is in PostgreSQL, so nothing is forgotten by a restart; the other side is asked first
what is there, so nothing is made twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.core.billing.handover import DONE, Handover, Outcome

INTERVAL_S = 1.0
AT_ONCE = 4

Log = Callable[..., None]


class Queue(Protocol):
    """PostgreSQL."""

    async def claim(self, count: int) -> Sequence[Handover]:
        """What is due, each for one sender; an attempt of each is counted."""

    async def note(self, handover: Handover, remote_id: str) -> None:
        """Keep what was made of it there."""

    async def ended(self, handover: Handover, outcome: Outcome) -> None:
        """Keep what came of an attempt."""


class Collector(Protocol):
    """The billing service."""

    async def hand_over(self, handover: Handover, note: Callable[[str], Awaitable[None]]) -> Outcome:
        """Make one attempt; never raises for what the other side does."""


class Handovers:
    """The clock's side of what is handed over."""

    def __init__(
        self,
        queue: Queue,
        collector: Collector,
        log: Log,
        *,
        at_once: int = AT_ONCE,
        isolation: Isolation | None = None,
    ) -> None:
        self._queue, self._isolation = queue, isolation or Isolation()
        self._collector = collector
        self._log = log
        self._at_once = at_once
        self._under_way = 0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Hand over whatever is due, until cancelled."""
        self._under_way = 0
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._ended.clear()
                for handover in await self.claim():
                    attempts.create_task(self.attempt(handover))
                # What waited behind one is due as soon as that is done.
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._ended.wait()

    async def claim(self) -> Sequence[Handover]:
        """Take what is due, as much as may be under way at once."""
        room = self._at_once - self._under_way
        due = await self._queue.claim(room) if room > 0 else ()
        self._under_way += len(due)
        return due

    async def attempt(self, handover: Handover) -> None:
        """Make one attempt, and keep what came of it; one of which nothing can be kept is due again later."""
        try:
            await self._isolation.tried(
                "handovers", handover, self._attempt, name=lambda one: f"handover {one.id}"
            )
        finally:
            self._under_way -= 1
            self._ended.set()

    async def _attempt(self, handover: Handover) -> None:
        outcome = await self._collector.hand_over(handover, lambda made: self._queue.note(handover, made))
        await self._queue.ended(handover, outcome)
        if outcome.state != DONE:
            told = {"handover": handover.id, "kind": handover.kind, "state": outcome.state}
            self._log("not handed over", **told, error=outcome.error, level="warning")
