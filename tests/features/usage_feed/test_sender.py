"""The sender of usage feeds: an event that cannot be sent keeps no other from being told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from gateway.background.loops import Isolation
from gateway.errors import StoreUnavailable
from gateway.features.usage_feed import events as usage_feed
from gateway.features.usage_feed.events import FeedEvent, FeedResult, Pause, Terms
from gateway.features.usage_feed.sender import UsageFeedSender

AT = datetime(2026, 5, 4, tzinfo=UTC)


@dataclass
class Queue:
    """Events in memory."""

    waiting: list[int]
    taken: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    pauses: list[Pause] = field(default_factory=list)
    away: bool = False

    async def begin(self, terms: Terms) -> bool:
        return True

    async def claim(self, service: usage_feed.Service, count: int) -> Sequence[FeedEvent]:
        gone = {*self.taken, *self.refused}
        left = [one for one in self.waiting if one not in gone]
        return [FeedEvent(one, f"e{one}", "1", AT, {}) for one in left[:count]]

    async def keep(self, taken: Collection[int], refused: Mapping[int, str]) -> None:
        if self.away:
            raise StoreUnavailable
        self.taken += taken
        self.refused |= refused

    async def pause(self, pause: Pause) -> None:
        self.pauses.append(pause)


@dataclass
class Service:
    """Takes batches, but for those with an event it breaks at, or behind which it wants a pause."""

    breaks: frozenset[int] = frozenset()
    tires: int | None = None
    batches: list[list[int]] = field(default_factory=list)

    async def send(self, events: Sequence[FeedEvent]) -> FeedResult:
        ids = [event.id for event in events]
        self.batches.append(ids)
        if self.breaks.intersection(ids):
            raise KeyError("of somebody")
        return FeedResult(set(ids), {}, Pause("busy", 7.0) if self.tires in ids else None)


def sender(queue: Queue, service: Service, isolation: Isolation) -> UsageFeedSender:
    return UsageFeedSender(
        queue, service, Terms("openmeter"), lambda *_, **__: None, batch=8, at_once=4, isolation=isolation
    )


async def test_usage_events_that_cannot_be_encoded_are_marked_failed_and_all_others_are_sent() -> None:
    queue, isolation = Queue([*range(100)]), Isolation()
    service = Service(breaks=frozenset({0, 3, 50, 99}))
    loop = sender(queue, service, isolation)
    turns = 0
    while await loop.turn():
        turns += 1
    assert turns == 4, "32 at a time"
    assert sorted(queue.taken) == [one for one in range(100) if one not in service.breaks]
    assert queue.refused == dict.fromkeys(sorted(service.breaks), "it cannot be sent: KeyError")
    assert isolation.figures() == {"loop_failures": [["usage feed", "item", 4]]}
    assert len(service.batches) < 100 // 8 + 1 + 4 * 2 * 3 + 1, "by halves"


async def test_usage_sender_stops_at_an_outage_without_marking_any_usage_event_failed() -> None:
    queue, isolation = Queue([*range(32)]), Isolation(is_away=lambda error: isinstance(error, KeyError))
    service = Service(breaks=frozenset({9}))
    with pytest.raises(KeyError):
        await sender(queue, service, isolation).turn()
    assert sorted(queue.taken) == [*range(8), *range(16, 32)]
    assert (queue.refused, isolation.figures()) == ({}, {"loop_failures": []})


async def test_usage_sender_marks_no_usage_event_failed_while_the_database_is_unavailable() -> None:
    queue, isolation = Queue([1, 2], away=True), Isolation()
    with pytest.raises(StoreUnavailable):
        await sender(queue, Service(), isolation).turn()
    assert (queue.refused, isolation.figures()) == ({}, {"loop_failures": []})


async def test_service_pause_in_the_middle_of_a_split_batch_leaves_the_second_half_for_later() -> None:
    queue, isolation = Queue([*range(8)]), Isolation()
    service = Service(breaks=frozenset({7}), tires=2)
    assert await sender(queue, service, isolation).turn() is False
    assert (queue.taken, queue.refused) == ([0, 1, 2, 3], {})
    assert [pause.seconds for pause in queue.pauses] == [7.0]
