"""Tells webhooks what happened: looks for news, delivers it, tries again with longer and longer pauses.

Everything that waits is in PostgreSQL, so nothing is forgotten by a restart. A receiver may get
the same message twice and knows it by its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from gateway.core.webhook import Delivery, Outcome, body_of, headers_of

INTERVAL_S = 1.0
DELIVERIES_AT_ONCE = 16
# News that came up while no keeper ran is told this far back.
LOOK_BACK = timedelta(hours=1)


class News(Protocol):
    """PostgreSQL."""

    async def notice(self, since: datetime, now: datetime) -> None:
        """Write down what happened since, and what stands to be told now."""

    async def claim_due(self, count: int) -> Sequence[Delivery]:
        """Deliveries that are due; an attempt of each is counted."""

    async def done(self, delivery: Delivery, outcome: Outcome) -> None:
        """Keep what came of an attempt."""


class Sender(Protocol):
    """The way out."""

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Post once; never raises for what the other side does."""


class WebhookDeliveries:
    """The clock's side of webhooks."""

    def __init__(self, news: News, sender: Sender, clock: Callable[[], datetime]) -> None:
        self._news = news
        self._sender = sender
        self._clock = clock
        self._since = clock() - LOOK_BACK

    async def write_news(self) -> None:
        """Write down what there is to tell."""
        now = self._clock()
        await self._news.notice(self._since, now)
        self._since = now

    async def deliver(self) -> int:
        """Make one attempt of what is due; answers how many."""
        due = await self._news.claim_due(DELIVERIES_AT_ONCE)
        await asyncio.gather(*(self._attempt(delivery) for delivery in due))
        return len(due)

    async def run(self) -> None:
        """Look and deliver every second, until cancelled."""
        while True:
            await self.write_news()
            while await self.deliver():
                pass
            await asyncio.sleep(INTERVAL_S)

    async def _attempt(self, delivery: Delivery) -> None:
        body = body_of(delivery)
        outcome = await self._sender.send(delivery.url, headers_of(delivery, body, self._clock()), body)
        await self._news.done(delivery, outcome)
