"""Loops that fail go on, and say so without filling a disk; last things are done in time, or left."""

from __future__ import annotations

import asyncio

from gateway.errors import CountersUnavailable
from gateway.run import stopping


async def test_a_loop_that_keeps_failing_says_so_ever_more_rarely() -> None:
    runs, said = 0, []
    enough = asyncio.Event()

    async def fails() -> None:
        nonlocal runs
        runs += 1
        if runs > 9:
            enough.set()
        raise OSError("gone")

    task = asyncio.create_task(
        stopping.forever(
            "pusher", fails, lambda event, **facts: said.append((event, facts["failures"])), restart_s=0.0
        )
    )
    await enough.wait()
    await stopping.cancel([task])
    assert said == [("loop failed", count) for count in (1, 2, 4, 8)]


async def test_what_is_not_done_in_time_is_left_and_what_fails_is_said() -> None:
    did: list[str] = []
    said: list[tuple[str, str]] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            did.append("left")

    async def fails(error: Exception) -> None:
        raise error

    async def does() -> None:
        did.append("done")

    works = [hangs(), fails(OSError("gone")), fails(CountersUnavailable()), does()]
    await stopping.all_within(0.05, works, lambda event, **facts: said.append((event, facts["error"])))
    assert did == ["done", "left"]
    assert said == [("not done before the end", "OSError('gone')")]
