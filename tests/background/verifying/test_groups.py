"""Which partitions are read at once: few at first, which have a head start, then as many as is good."""

from __future__ import annotations

import asyncio

import pytest

from gateway.background.verifying.verifier import TOGETHER_MAX, in_turns, together
from tests.waiting import eventually


def test_the_first_partitions_that_are_read_have_few_organizations() -> None:
    organizations = {one: range(120) for one in range(8)}
    assert list(together(range(10), organizations, 500)) == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]
    # One that has more is read by itself; where all are few they are read at once.
    assert list(together([3, 4], {3: range(900), 4: range(900)}, 500)) == [[3], [4]]
    assert list(together(range(64), {7: range(3)}, 500)) == [list(range(64))]


async def test_the_first_group_is_read_alone_and_then_some_at_once() -> None:
    reading, goes_on = list[list[int]](), [asyncio.Event() for _ in range(6)]

    async def read(some: list[int]) -> None:
        reading.append(some)
        await goes_on[some[0]].wait()

    groups = [[one] for one in range(6)]
    turns = asyncio.create_task(in_turns(groups, read, head_start_s=3_600.0))
    await eventually(lambda: reading)
    await asyncio.sleep(0)
    assert reading == [[0]]
    goes_on[0].set()
    await eventually(lambda: len(reading) == 1 + TOGETHER_MAX)
    await asyncio.sleep(0)
    assert reading == groups[: 1 + TOGETHER_MAX]
    for one in goes_on:
        one.set()
    await turns
    assert reading == groups


async def test_a_first_group_that_takes_long_keeps_nobody_else_waiting() -> None:
    reading, goes_on = list[list[int]](), asyncio.Event()

    async def read(some: list[int]) -> None:
        reading.append(some)
        if some == [0]:
            await goes_on.wait()

    turns = asyncio.create_task(in_turns([[0], [1], [2], [3]], read, head_start_s=0.0))
    await eventually(lambda: len(reading) == 4)
    assert not turns.done()
    goes_on.set()
    await turns


@pytest.mark.parametrize("fails", [0, 2])
async def test_where_one_fails_no_more_are_begun_and_it_is_raised(fails: int) -> None:
    reading = list[int]()

    async def read(some: list[int]) -> None:
        reading.extend(some)
        if some == [fails]:
            raise RuntimeError("cannot be read")
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="cannot be read"):
        await in_turns([[one] for one in range(100)], read, head_start_s=3_600.0)
    assert len(reading) <= fails + TOGETHER_MAX + 1
