"""Places by organization: nobody has more than its own, whoever can go on does, and nothing stays taken."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.http.concurrency import ConcurrencyLimits, Whose, WorkSlots
from gateway.errors import Overloaded, TooManyRequests

ROOM = ConcurrencyLimits(staff_max=2, own_max=2, others_max=3, all_max=4, waiting_max=2, wait_s=None)
WHOSE = (None, 1, 2, 3)


class Worker:
    """Somebody who has a place, or waits for one, until told to go."""

    def __init__(self, places: WorkSlots, whose: Whose, order: list[Whose]) -> None:
        self.whose, self.works = whose, False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._work(places, order))

    async def _work(self, places: WorkSlots, order: list[Whose]) -> None:
        async with places.of(self.whose):
            self.works = True
            order.append(self.whose)
            try:
                await self._leave.wait()
            finally:
                self.works = False

    async def go(self) -> None:
        self._leave.set()
        await asyncio.wait({self.task})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def may_go(workers: list[Worker], whose: Whose) -> bool:
    """The rule, by who works now."""
    working = Counter(each.whose for each in workers if each.works)
    others = working.total() - working[None]
    own = working[whose] < (ROOM.staff_max if whose is None else ROOM.own_max)
    return own and (whose is None or others < ROOM.others_max) and working.total() < (ROOM.all_max or 0)


STEP = st.tuples(st.sampled_from(("come", "come", "go", "cancel")), st.integers(0, 99))


@given(st.lists(STEP, max_size=60))
def test_bounds_hold_nobody_waits_who_could_go_and_all_is_given_back(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        places, workers, order = WorkSlots(ROOM), list[Worker](), list[Whose]()
        for step, number in steps:
            if step == "come":
                workers.append(Worker(places, WHOSE[number % len(WHOSE)], order))
            elif workers:
                one = workers[number % len(workers)]
                if step == "cancel":
                    one.task.cancel()
                elif one.works:
                    await one.go()
            if number % 3:  # else the next step comes at the same moment
                await settle()
                workers = [each for each in workers if not each.task.done()]
                check(places, workers)
        for each in workers:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in workers), return_exceptions=True)
        assert (places.taken.total(), places.waiting) == (0, 0)

    asyncio.run(run())


def check(places: WorkSlots, workers: list[Worker]) -> None:
    working = Counter(each.whose for each in workers if each.works)
    waiting = Counter(each.whose for each in workers if not each.works)
    assert places.taken == working
    assert working[None] <= ROOM.staff_max
    assert all(working[each] <= ROOM.own_max for each in WHOSE[1:])
    assert working.total() - working[None] <= ROOM.others_max
    assert working.total() <= (ROOM.all_max or 0)
    assert not [each for each in waiting if may_go(workers, each)]
    assert all(count <= ROOM.waiting_max for count in waiting.values())


async def test_staff_go_first_then_organizations_in_turn() -> None:
    places, order = (
        WorkSlots(ConcurrencyLimits(1, 1, 1, all_max=1, waiting_max=9, wait_s=None)),
        list[Whose](),
    )
    workers = [Worker(places, whose, order) for whose in (1, 1, 1, 1, 2, 2, None)]
    await settle()
    while working := [each for each in workers if each.works]:
        await working[0].go()
        await settle()
    assert order == [1, None, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("taken", "whose", "told"),
    [
        ((1, 1), 1, "2 of these are under way already for this organization: try again in a while."),
        ((1, 2, 3), 4, "3 of these are under way already for other organizations: try again in a while."),
        ((None, None), None, "2 of these are under way already: try again in a while."),
        ((None, 1, 1, 2), None, "4 of these are under way already: try again in a while."),
    ],
)
async def test_who_has_no_place_in_time_is_told_whose_they_are(
    taken: tuple[Whose, ...], whose: Whose, told: str
) -> None:
    places = WorkSlots(ConcurrencyLimits(2, 2, 3, all_max=4, waiting_max=1, wait_s=0.001))
    workers = [Worker(places, each, []) for each in taken]
    await settle()
    for _ in range(2):
        with pytest.raises(TooManyRequests if "this organization" in told else Overloaded) as refused:
            async with places.of(whose):
                pass
        assert (refused.value.message, places.waiting) == (told, 0)
    for each in workers:
        await each.go()
