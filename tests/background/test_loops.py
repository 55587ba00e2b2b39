"""What each loop of the clock does by itself: pages, items that fail, pauses, and errors of everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import cast

import pytest

from gateway.background.loops import Agenda, Isolation, Loop, batches, call, run_each
from gateway.counters.admission.empty_accounts import StoredEmptyAccount
from gateway.errors import Conflict, CountersUnavailable, StoreUnavailable
from gateway.run.timed_loops import LOOK_BACK, empty_accounts_loop, news_loops
from persistence.keeper.news import Notices
from tests.waiting import eventually

POISON, WAITS, IDLE, AWAY = 3, 4, 6, 9


class Items:
    """Items that are due. One is poison, one has to wait, and with one nothing can be done at all."""

    def __init__(self, *ids: int) -> None:
        self.ids, self.done, self.asked = list(ids), list[int](), list[tuple[int, int]]()

    async def due(self, after: int, count: int) -> Sequence[int]:
        self.asked.append((after, count))
        return [one for one in sorted(self.ids) if one > after][:count]

    async def act(self, one: int) -> bool:
        if one == IDLE:
            return False
        if one == AWAY:
            raise StoreUnavailable
        if one == POISON:
            raise KeyError(one)
        if one == WAITS:
            raise Conflict("not now")
        self.done.append(one)
        return True

    async def act_all(self, some: Sequence[int]) -> None:
        for one in some:
            await self.act(one)

    def loop(self, count: int = 2, *, again: bool = False) -> Loop:
        step = run_each(self.due, self.act, count=count, place=int, leaves=(Conflict,))
        return Loop("loop", 3_600.0, (step,), again=again)


async def test_a_pass_goes_through_all_pages_and_leaves_what_fails_or_has_to_wait() -> None:
    items, isolation = Items(1, 2, POISON, WAITS, 5, IDLE), Isolation()
    assert await items.loop().turn(isolation) == len(items.done)
    assert items.done == [1, 2, 5]
    assert items.asked == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert isolation.figures() == {"loop_failures": [["loop", "item", 1]]}  # what waits is no failure


async def test_without_a_place_there_is_one_page_a_pass() -> None:
    items = Items(1, 2, 5)
    assert await Loop("loop", 1.0, (run_each(items.due, items.act, count=2),)).turn() == 2


async def test_batches_are_split_and_an_item_that_fails_its_batch_is_left_alone() -> None:
    items, isolation, seen = Items(1, 2, POISON, 5), Isolation(), list[Sequence[int]]()

    async def act(some: Sequence[int]) -> None:
        seen.append(some)
        if POISON in some:
            raise KeyError
        await items.act_all(some)

    step = batches(items.due, act, place=int, split=lambda page: [page[:1], page[1:]])
    assert await Loop("loop", 1.0, (step,)).turn(isolation) == 3
    assert seen == [[1], [2, POISON, 5], [2], [POISON], [5]]
    assert isolation.figures() == {"loop_failures": [["loop", "item", 1]]}


async def test_what_concerns_everybody_ends_the_pass_with_the_steps_behind_it() -> None:
    items, others = Items(1, AWAY, 10), Items(1)
    loop = Loop("loop", 1.0, (*items.loop().steps, *others.loop().steps))
    with pytest.raises(StoreUnavailable):
        await loop.turn()
    assert (items.done, others.done) == ([1], [])


async def running(loop: Loop, until: object) -> None:
    task = asyncio.create_task(loop.run())
    try:
        await eventually(until)  # type: ignore[arg-type]  # a condition
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_passes_follow_at_once_while_there_is_something() -> None:
    items, counts = Items(1), list[int]()

    async def one() -> int:
        counts.append(len(counts))
        return 2 - len(counts)

    await running(Loop("loop", 3_600.0, (call(one),), again=True), lambda: counts == [0, 1])
    await running(items.loop(again=False), lambda: items.asked == [(0, 2), (1, 2)])


async def test_what_wakes_a_loop_ends_its_pause_and_is_not_missed_during_a_pass() -> None:
    passes, woken, going_on = list[int](), asyncio.Event(), asyncio.Event()

    async def look() -> None:
        passes.append(len(passes))
        await going_on.wait()

    running = asyncio.create_task(Loop("loop", 3_600.0, (call(look),), woken=woken).run())
    await eventually(lambda: len(passes) == 1)
    woken.set()
    going_on.set()
    await eventually(lambda: len(passes) == 2 and not woken.is_set())
    woken.set()
    await eventually(lambda: len(passes) == 3)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_errors_that_are_quiet_end_a_pass_and_others_end_the_run() -> None:
    tries = list[int]()

    async def fails() -> None:
        tries.append(1)
        raise (CountersUnavailable if len(tries) < 3 else StoreUnavailable)

    with pytest.raises(StoreUnavailable):
        await Loop("loop", 0.0, (call(fails),), quiet=(CountersUnavailable,)).run()
    assert len(tries) == 3


def test_a_loop_may_rest_a_multiple_of_what_a_pass_took() -> None:
    loop = Loop("loop", 1.0, (), rest=9.0)
    assert [loop.pause_s(took) for took in (0.01, 2.0)] == [1.0, 18.0]


async def test_each_look_at_news_begins_where_the_last_one_that_was_kept_ended() -> None:
    begun = datetime(2026, 4, 1, 12, tzinfo=UTC)
    clock, noticed, fails = [begun], list[tuple[datetime, datetime]](), {3, 4}

    class Notices:
        async def notice(self, since: datetime, now: datetime) -> None:
            if (now - begun).seconds in fails:
                raise ConnectionError
            noticed.append((since, now))

    news, _ = news_loops(cast("Notices", Notices()), lambda: clock[0])
    for second in range(6):
        clock[0] = begun + timedelta(seconds=second)
        with suppress(ConnectionError):
            await news.turn()
    moments = [begun - LOOK_BACK, *(begun + timedelta(seconds=at) for at in (0, 1, 2, 5))]
    assert noticed == list(pairwise(moments))


async def test_an_empty_account_is_reported_when_new_and_when_empty_again() -> None:
    there, told, fails = dict[str, StoredEmptyAccount](), list[list[tuple[str, str, int, int]]](), [True]

    class Notices:
        async def tell_empty(self, accounts: list[tuple[str, str, int, int]]) -> None:
            if fails.pop():
                raise ConnectionError
            fails.append(False)
            told.append(accounts)

    async def read() -> dict[str, StoredEmptyAccount]:
        return dict(there)

    loop = empty_accounts_loop(cast("Notices", Notices()), read)
    there["a"] = StoredEmptyAccount("deepseek", 402, 7)
    with suppress(ConnectionError):
        await loop.turn()
    fails.append(False)
    for _ in range(2):
        await loop.turn()
    there["b"] = StoredEmptyAccount("openai", 429, 8)
    await loop.turn()
    del there["a"]
    await loop.turn()
    there["a"] = StoredEmptyAccount("deepseek", 402, 9)
    for _ in range(3):
        await loop.turn()
    assert told == [[("a", "deepseek", 402, 7)], [("b", "openai", 429, 8)], [("a", "deepseek", 402, 9)]]


async def test_a_loop_that_has_nothing_to_do_waits_until_it_is_on_the_agenda() -> None:
    due, asked, passes = set[str](), list[int](), list[int]()

    async def ask() -> set[str]:
        asked.append(len(passes))
        return set(due)

    async def work() -> int:
        passes.append(len(asked))
        due.discard("one")
        return len(passes) == 2

    agenda = Agenda(ask, look_s=0.01, look_s_min=0.0)
    loops = [Loop(name, 0.0, (call(work),), agenda=agenda) for name in ("one", "other")]
    running = [asyncio.create_task(one.run()) for one in loops]
    try:
        await eventually(lambda: len(asked) > 3)
        assert len(passes) == 3, "each once, and once more behind the one that did something"
        assert agenda.has("one") is agenda.has("other") is False
        due.add("one")
        await eventually(lambda: len(passes) == 4)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_loop_of_writes_waits_until_there_are_any_behind_a_pass_that_found_nothing() -> None:
    written, passes = [1], list[int]()

    async def ask() -> set[str]:
        return set()

    async def work() -> int:
        passes.append(written[0])
        if len(passes) == 1:
            written[0] += 1  # while it looks: it may not have seen that
        return len(passes) == 3

    agenda = Agenda(ask, look_s=0.001, look_s_min=0.0, written=lambda: written[0])
    running = asyncio.create_task(Loop("one", 0.0, (call(work),), writes=agenda).run())
    try:
        await eventually(lambda: len(passes) == 2)
        await agenda.until_written(1)
        assert passes == [1, 2]
        written[0] += 1
        await eventually(lambda: len(passes) == 4)  # and once more behind the one that did something
        assert passes == [1, 2, 3, 3]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_one_question_is_asked_for_all_who_wait_and_what_it_raises_they_raise() -> None:
    asked = list[int]()

    async def ask() -> set[str]:
        asked.append(1)
        if len(asked) == 1:
            raise StoreUnavailable
        return {"a", "b"}

    agenda = Agenda(ask, look_s=0.0, look_s_min=0.0)
    assert agenda.has("a"), "before it is known it may be"
    failed = await asyncio.gather(agenda.until("a"), agenda.until("b"), return_exceptions=True)
    assert [type(one) for one in failed] == [StoreUnavailable, StoreUnavailable]
    await asyncio.gather(agenda.until("a"), agenda.until("b"))
    assert len(asked) == 2


async def test_an_agenda_is_looked_at_sooner_where_something_was_done() -> None:
    async def ask() -> set[str]:
        return {"a"}

    agenda = Agenda(ask, look_s=3_600.0, look_s_min=0.0)
    await agenda.until("a")
    waiting = asyncio.create_task(agenda.until("a"))
    agenda.hurry()
    await asyncio.wait_for(waiting, 30)
