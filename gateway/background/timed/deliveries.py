"""Delivers webhooks and mails, and retries with growing pauses.

All pending deliveries are in PostgreSQL, so a restart forgets none. A receiver may get the same message
twice, and recognises it by its id. A slow receiver delays no other, because each has only a few deliveries at
once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from gateway.background.loops import Agenda, Isolation
from gateway.core.alerts.messages import (
    Delivery,
    DeliveryOutcome,
    Mail,
    body_of,
    headers_of,
    is_mail,
    mail_of,
)

if TYPE_CHECKING:
    from gateway.outbound.posting import Outgoing
    from persistence.keeper.news import Deliveries

LOOP, INTERVAL_S = "webhooks", 1.0
DELIVERIES_AT_ONCE = 32
DELIVERIES_EACH = 4
DELIVERED, FAILED = "delivered", "failed"


class MailerPort(Protocol):
    """Sends mails from the address `sender`."""

    sender: str

    async def send(self, mail: Mail) -> DeliveryOutcome:
        """Try once to send a mail; return the outcome. Errors of the mail server are never raised."""


class WebhookDeliveries:
    def __init__(
        self,
        queue: Deliveries,
        sender: Outgoing,
        clock: Callable[[], datetime],
        *,
        mailer: MailerPort | None = None,
        isolation: Isolation | None = None,
        agenda: Agenda | None = None,
    ) -> None:
        self._agenda = agenda
        self._isolation = isolation or Isolation()
        self._queue = queue
        self._sender = sender
        self._clock = clock
        self._mailer = mailer
        # Number of deliveries in progress, by webhook id.
        self._under_way: Counter[int] = Counter()
        self._came_to: Counter[str] = Counter()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Deliver all due messages until cancelled."""
        self._under_way.clear()
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._ended.clear()
                claimed = await self.claim()
                for delivery in claimed:
                    attempts.create_task(self.attempt(delivery))
                if self._agenda is not None and not claimed and not self._under_way.total():
                    await self._agenda.until(LOOP)
                    continue
                # More may be due as soon as a delivery ends.
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._ended.wait()

    async def claim(self) -> Sequence[Delivery]:
        room = DELIVERIES_AT_ONCE - self._under_way.total()
        if room <= 0:
            return ()
        due = await self._queue.claim_due(room, DELIVERIES_EACH, (+self._under_way).keys())
        self._under_way.update(delivery.webhook_id for delivery in due)
        return due

    async def attempt(self, delivery: Delivery) -> None:
        """Try one delivery once, and store the outcome; without a stored outcome it is due again later."""
        try:
            await self._isolation.tried(LOOP, delivery, self._attempt, name=lambda due: f"delivery {due.id}")
        finally:
            self._under_way[delivery.webhook_id] -= 1
            self._ended.set()

    async def _attempt(self, delivery: Delivery) -> None:
        outcome = await self._send(delivery)
        self._came_to[DELIVERED if outcome.delivered else FAILED] += 1
        await self._queue.done(delivery, outcome)

    def figures(self) -> list[list[object]]:
        return [[name, self._came_to[name]] for name in (DELIVERED, FAILED)]

    async def _send(self, delivery: Delivery) -> DeliveryOutcome:
        now = self._clock()
        if not is_mail(delivery.url):
            body = body_of(delivery)
            return await self._sender.send(delivery.url, headers_of(delivery, body, now), body)
        if self._mailer is None:
            return DeliveryOutcome(None, "mail is not set up")
        return await self._mailer.send(mail_of(delivery, self._mailer.sender, now))
