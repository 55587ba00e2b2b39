"""Waits with a bound: by the time in which the loop is awake."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.core.wait import LOOKS_MIN, Awake, AwakeTimeout


async def test_a_stall_is_a_part_of_a_wait() -> None:
    """What came meanwhile is still taken, on either side of the stall."""
    came = asyncio.get_running_loop().create_future()
    async with AwakeTimeout(0.4):
        for _ in range(LOOKS_MIN - 2):
            time.sleep(0.6)  # noqa: ASYNC251  # the loop stands still: this is what is tested
            await asyncio.sleep(0)
        came.set_result(None)
        await came


async def test_what_does_not_come_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with AwakeTimeout(0.01):
            await asyncio.get_running_loop().create_future()


def test_time_passes_as_it_does_where_the_loop_looks_often() -> None:
    awake = Awake(100.0, 1.0)
    for now in (100.5, 101.5, 101.75):
        assert awake.advance(now) == now
        assert awake.at(now + 0.25) == now + 0.25


def test_a_stall_counts_as_one_gap() -> None:
    awake = Awake(100.0, 1.0)
    assert awake.at(500.0) == 101.0
    assert awake.advance(500.0) == 101.0
    assert awake.advance(500.5) == 101.5
    assert awake.at(900.0) == 102.5
