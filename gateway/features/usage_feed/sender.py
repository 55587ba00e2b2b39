"""Sends usage events to a billing service: the oldest first, some batches at once, by one keeper.

Everything that waits is in PostgreSQL. Events that were sent but not recorded are sent again, and the
receiver counts them once. An event that cannot be sent is marked like a refused one, so later events do not
wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from gateway.background.loops import Isolation
from gateway.errors import Conflict
from gateway.features.usage_feed import events as usage_feed
from gateway.features.usage_feed.events import (
    BATCH_EVENTS_MAX,
    BATCHES_AT_ONCE,
    FeedEvent,
    FeedResult,
    Pause,
    Terms,
)

INTERVAL_S = 1.0
Log = Callable[..., None]
LOOP = "usage feed"


class UsageEventQueue(Protocol):
    """The events that wait, in PostgreSQL."""

    async def begin(self, terms: Terms) -> bool:
        """Begin to record usage, unless begun already; return False if a person ended the service's feed.

        `Conflict` if it cannot begin now.
        """

    async def claim(self, service: usage_feed.Service, count: int) -> Sequence[FeedEvent]:
        """Return the oldest waiting events of a service; none in a pause, or while another keeper sends."""

    async def keep(self, taken: Collection[int], refused: Mapping[int, str]) -> None:
        """Delete the events in `taken`, which were accepted, and mark those in `refused` as failed."""

    async def pause(self, pause: Pause) -> None:
        """Store a pause, in which no events are claimed."""


class FeedService(Protocol):
    """The receiver of events: a billing service, a webhook or a file."""

    async def send(self, events: Sequence[FeedEvent]) -> FeedResult:
        """Deliver a batch; never raise for faults of the receiver."""


class UsageFeedSender:
    """Sends waiting events to one service, until cancelled."""

    def __init__(
        self, queue: UsageEventQueue, service: FeedService, terms: Terms, log: Log, *,
        batch: int = BATCH_EVENTS_MAX,
        at_once: int = BATCHES_AT_ONCE, isolation: Isolation | None = None,
    ) -> None:  # fmt: skip
        self._isolation = isolation or Isolation()
        self._queue, self._service, self._terms, self._log = queue, service, terms, log
        self._batch, self._at_once = batch, at_once

    async def run(self) -> None:
        """Send waiting events until cancelled."""
        if not await self._begin():
            self._log("usage feed has ended", service=self._terms.service, level="warning")
        while True:
            if not await self.turn():
                await asyncio.sleep(INTERVAL_S)

    async def _begin(self) -> bool:
        """Begin to record usage; retry while current usage is being stored or billed."""
        is_told = False
        while True:
            try:
                return await self._queue.begin(self._terms)
            except Conflict as busy:
                if not is_told:
                    self._log("usage feed waits to begin", error=str(busy), level="warning")
                is_told = True
            await asyncio.sleep(INTERVAL_S)

    async def turn(self) -> bool:
        """Send some batches and store the results; return whether more may be sent at once."""
        events = await self._queue.claim(self._terms.service, self._batch * self._at_once)
        batches = [events[at : at + self._batch] for at in range(0, len(events), self._batch)]
        results = await asyncio.gather(*(self._tell(batch) for batch in batches), return_exceptions=True)
        pauses = list[Pause]()
        for result in results:  # the results of all batches are stored by now
            if isinstance(result, BaseException):
                raise result
            pauses += result
        if pauses:
            pause = max(pauses, key=lambda pause: pause.seconds)
            await self._queue.pause(pause)
            self._log("usage feed pauses", error=pause.reason, level="warning")
        return bool(batches) and not pauses

    async def _tell(self, batch: Sequence[FeedEvent]) -> Sequence[Pause]:
        """Send a batch, by halves if it cannot be sent; return the pauses that the receiver asks for."""
        try:
            return await self._send(batch)
        except Exception as error:
            if self._isolation.is_everybodys(error):
                raise
            if len(batch) == 1:
                # Count an event that cannot be sent, and store it for a person.
                event = batch[0]
                self._isolation.item_failed(LOOP, str(event.id), error)
                await self._queue.keep((), {event.id: f"it cannot be sent: {type(error).__name__}"})
                return []
        half = len(batch) // 2
        return await self._tell(batch[:half]) or await self._tell(batch[half:])

    async def _send(self, batch: Sequence[FeedEvent]) -> Sequence[Pause]:
        sent = await self._service.send(batch)
        await self._queue.keep(sent.taken, sent.refused)
        for id_, why in sent.refused.items():
            self._log("usage event refused", event=id_, error=why, level="warning")
        return [] if sent.pause is None else [sent.pause]
