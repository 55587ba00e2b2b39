"""Lets subscriptions begin, change and end on their day, whoever is awake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Protocol

INTERVAL_S = 1.0
SUBSCRIPTIONS_MAX = 500


class Subscriptions(Protocol):
    """PostgreSQL."""

    async def subscriptions_due(self, today: date, count: int) -> Sequence[int]:
        """Subscriptions the calendar has something for."""

    async def advance_subscription(self, subscription_id: int) -> None:
        """Bring one to where it stands today."""


class Calendar:
    """The clock's side of subscriptions; `clock` answers the time in UTC."""

    def __init__(self, subscriptions: Subscriptions, clock: Callable[[], datetime]) -> None:
        self._subscriptions = subscriptions
        self._clock = clock

    async def turn(self) -> int:
        """Carry out what is due; answers how many."""
        due = await self._subscriptions.subscriptions_due(self._clock().date(), SUBSCRIPTIONS_MAX)
        for subscription_id in due:
            await self._subscriptions.advance_subscription(subscription_id)
        return len(due)

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
