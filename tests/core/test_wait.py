"""Waits with a bound: by the time in which the loop is awake."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.core.awake import LOOKS_MIN
from gateway.core.wait import Within


async def test_a_stall_is_a_part_of_a_wait() -> None:
    """What came meanwhile is still taken, on either side of the stall."""
    came = asyncio.get_running_loop().create_future()
    async with Within(0.4):
        for _ in range(LOOKS_MIN - 2):
            time.sleep(0.6)  # noqa: ASYNC251  # the loop stands still: this is what is tested
            await asyncio.sleep(0)
        came.set_result(None)
        await came


async def test_what_does_not_come_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with Within(0.01):
            await asyncio.get_running_loop().create_future()
