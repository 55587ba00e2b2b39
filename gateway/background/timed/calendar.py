"""Lets subscriptions begin, change and end on their day, whoever is awake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Protocol

from gateway.background.isolation import Isolation

INTERVAL_S = 1.0
SUBSCRIPTIONS_MAX = 500


class Subscriptions(Protocol):
    """PostgreSQL."""

    async def plans_due(self, today: date, count: int) -> Sequence[int]:
        """Subscription plans with a price for all whose day has come."""

    async def advance_plan(self, plan_id: int) -> None:
        """Have such prices of one take effect."""

    async def subscriptions_due(self, today: date, count: int) -> Sequence[int]:
        """Subscriptions the calendar has something for."""

    async def advance_subscription(self, subscription_id: int) -> None:
        """Bring one to where it stands today."""


class Calendar:
    """The clock's side of subscriptions; `clock` answers the time in UTC."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        clock: Callable[[], datetime],
        *,
        isolation: Isolation | None = None,
    ) -> None:
        self._subscriptions = subscriptions
        self._clock = clock
        self._isolation = isolation or Isolation()

    async def turn(self) -> int:
        """Carry out what is due; answers how many. One that fails keeps no other from it."""
        plans = await self._subscriptions.plans_due(self._clock().date(), SUBSCRIPTIONS_MAX)
        await self._isolation.each("calendar", plans, self._subscriptions.advance_plan, name=str)
        due = await self._subscriptions.subscriptions_due(self._clock().date(), SUBSCRIPTIONS_MAX)
        advance = self._subscriptions.advance_subscription
        return await self._isolation.each("calendar", due, advance, name=str)

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(INTERVAL_S)
