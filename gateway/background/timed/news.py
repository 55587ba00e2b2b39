"""Looks for news: what happened, each second; what is coming, each minute.

The more there is to look at, the longer the pauses: looking takes a tenth of the time at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol

LOOK_INTERVAL_S = 1.0
FORESEE_INTERVAL_S = 60.0
# A pause is so many times as long as what came before it, or longer.
REST = 9
# News that came up while no keeper ran is told this far back.
LOOK_BACK = timedelta(hours=1)


class Notices(Protocol):
    """PostgreSQL."""

    async def notice(self, since: datetime, now: datetime) -> None:
        """Write down what happened since, and what stands to be told now."""

    async def foresee(self, now: datetime) -> None:
        """Write down what is coming."""


class NewsWatch:
    """The clock's side of news."""

    def __init__(self, notices: Notices, clock: Callable[[], datetime]) -> None:
        self._notices = notices
        self._clock = clock
        self._since = clock() - LOOK_BACK

    async def look(self) -> None:
        """Write down what there is to tell."""
        now = self._clock()
        await self._notices.notice(self._since, now)
        self._since = now

    async def foresee(self) -> None:
        """Write down what is coming."""
        await self._notices.foresee(self._clock())

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(_repeat(self.look, LOOK_INTERVAL_S))
            both.create_task(_repeat(self.foresee, FORESEE_INTERVAL_S))


def pause_s(took_s: float, interval_s: float) -> float:
    """How long to rest after a look."""
    return max(interval_s, REST * took_s)


async def _repeat(look: Callable[[], Awaitable[None]], interval_s: float) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        await look()
        await asyncio.sleep(pause_s(clock() - began, interval_s))
