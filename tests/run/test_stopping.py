"""Loops that fail go on, and say so without filling a disk."""

from __future__ import annotations

import asyncio

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
