"""News is looked for again and again: nothing between two looks is missed, and most of the time is rest."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from gateway.background.timed.news import LOOK_BACK, NewsWatch, pause_s
from tests.waiting import eventually

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


class Notices:
    """Notes when it is asked."""

    def __init__(self) -> None:
        self.noticed: list[tuple[datetime, datetime]] = []
        self.foreseen: list[datetime] = []
        self.fails = False

    async def notice(self, since: datetime, now: datetime) -> None:
        if self.fails:
            raise ConnectionError
        self.noticed.append((since, now))

    async def foresee(self, now: datetime) -> None:
        self.foreseen.append(now)


class Clock:
    """Says what it is set to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


async def test_each_look_begins_where_the_last_one_ended() -> None:
    notices, clock = Notices(), Clock()
    watch = NewsWatch(notices, clock)
    for second in range(6):
        clock.now, notices.fails = NOW + timedelta(seconds=second), second in {3, 4}
        with suppress(ConnectionError):
            await watch.look()
    moments = [NOW - LOOK_BACK, *(NOW + timedelta(seconds=at) for at in (0, 1, 2, 5))]
    assert notices.noticed == list(itertools.pairwise(moments))


async def test_both_are_looked_for_side_by_side() -> None:
    notices = Notices()
    running = asyncio.create_task(NewsWatch(notices, lambda: NOW).run())
    await eventually(lambda: len(notices.noticed) > 1 and notices.foreseen == [NOW])
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_looking_takes_a_tenth_of_the_time() -> None:
    assert pause_s(0.01, 1.0) == 1.0
    assert pause_s(2.0, 1.0) == 18.0
    assert pause_s(2.0, 60.0) == 60.0
