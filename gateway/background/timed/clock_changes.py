"""Tells the counters of clocks: what they know of a zone is exact until its clocks change twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.core.accounts.zones import Clock, clock_of
from gateway.core.moments import ms_of

INTERVAL_S = 10.0
# Tenants that are defined again in one look, of each zone.
TENANTS_MAX = 1_000


class Plans(Protocol):
    """PostgreSQL."""

    async def zones(self) -> Sequence[str]:
        """Time zones of token plans."""

    async def tell(self, time_zone: str, clock: Clock, count: int) -> int:
        """Have tenants of a zone defined again that were not told of this clock; answers how many."""


class ClockChanges:
    """The clock's side of time zones; `now` answers the time in UTC."""

    def __init__(
        self, plans: Plans, now: Callable[[], datetime], *, isolation: Isolation | None = None
    ) -> None:
        self._plans, self._isolation = plans, isolation or Isolation()
        self._now = now

    async def look(self) -> int:
        """Tell what changed; answers of how many tenants."""
        at_ms = ms_of(self._now())
        told = 0

        async def tell(zone: str) -> None:
            nonlocal told
            told += await self._plans.tell(zone, clock_of(zone, at_ms), TENANTS_MAX)

        await self._isolation.each("clock changes", await self._plans.zones(), tell, name=str)
        return told

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)
