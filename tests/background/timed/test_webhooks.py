"""Messages go out side by side: a receiver that answers late keeps nobody waiting but itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from gateway.background.timed.deliveries import DELIVERIES_AT_ONCE, DELIVERIES_EACH, WebhookDeliveries
from gateway.core.alerts.messages import Delivery, DeliveryOutcome
from tests.waiting import eventually

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


class Waiting:
    """A queue: messages of webhooks, by id."""

    def __init__(self, **messages: int) -> None:
        ids = iter(range(1, 10_000))
        self.due = [
            Delivery(next(ids), f"https://{name}/", "whsec_AAAA", "webhook.test", {}, NOW, 1, number)
            for number, (name, count) in enumerate(messages.items(), 1)
            for _ in range(count)
        ]
        self.results: list[tuple[str, DeliveryOutcome]] = []
        self.fails = False

    async def claim_due(self, count: int, each: int, busy: Collection[int]) -> Sequence[Delivery]:
        if self.fails:
            raise ConnectionError
        found: list[Delivery] = []
        for delivery in self.due:
            mine = [one for one in found if one.webhook_id == delivery.webhook_id]
            if len(found) < count and len(mine) < each and delivery.webhook_id not in busy:
                found.append(delivery)
        self.due = [one for one in self.due if one not in found]
        return found

    async def done(self, delivery: Delivery, outcome: DeliveryOutcome) -> None:
        self.results.append((delivery.url, outcome))

    def delivered(self, name: str) -> int:
        return sum(url == f"https://{name}/" for url, _ in self.results)


class Receivers:
    """The other side: answers at once, but those called slow."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.under_way = self.most = 0

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if "slow" in url:
            await self.goes_on.wait()
        await asyncio.sleep(0)
        self.under_way -= 1
        return DeliveryOutcome(204)


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_slow_receiver_keeps_no_other_waiting() -> None:
    waiting, receivers = Waiting(slow=500, quick=50), Receivers()
    running = asyncio.create_task(WebhookDeliveries(waiting, receivers, lambda: NOW).run())
    await eventually(lambda: waiting.delivered("quick") == 50)
    assert waiting.delivered("slow") == 0
    assert receivers.under_way == DELIVERIES_EACH
    receivers.goes_on.set()
    await eventually(lambda: waiting.delivered("slow") == 500)
    await stopped(running)


async def test_no_more_than_so_many_are_under_way() -> None:
    waiting, receivers = Waiting(**{f"slow{n}": 9 for n in range(20)}), Receivers()
    running = asyncio.create_task(WebhookDeliveries(waiting, receivers, lambda: NOW).run())
    await eventually(lambda: receivers.under_way == DELIVERIES_AT_ONCE)
    receivers.goes_on.set()
    await eventually(lambda: len(waiting.results) == 180)
    assert receivers.most == DELIVERIES_AT_ONCE
    await stopped(running)


async def test_after_a_failure_everything_may_be_under_way_again() -> None:
    waiting, receivers = Waiting(slow=9), Receivers()
    webhook_deliveries = WebhookDeliveries(waiting, receivers, lambda: NOW)
    running = asyncio.create_task(webhook_deliveries.run())
    await eventually(lambda: receivers.under_way == DELIVERIES_EACH)
    await stopped(running)
    receivers.goes_on.set()
    running = asyncio.create_task(webhook_deliveries.run())
    await eventually(lambda: waiting.delivered("slow") == 5)
    waiting.fails = True
    with suppress(ExceptionGroup):
        await running
    assert running.done()
