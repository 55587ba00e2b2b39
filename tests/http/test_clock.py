"""The worker's clock: deadlines are of the time in which its loop was awake."""

from __future__ import annotations

import asyncio

from gateway.http.tally import GAP_S_MAX, TickClock


async def test_a_stall_of_the_loop_ends_no_deadline() -> None:
    seconds, told = [100.0], asyncio.Queue[float]()
    clock = TickClock(asyncio.get_running_loop(), lambda: seconds[0], 0.001, told.put_nowait)
    clock.start()
    seconds[0] += 60.0
    while (now := await told.get()) == 100.0:
        pass
    assert now == clock.now == 100.0 + GAP_S_MAX
    seconds[0] += 0.25
    while (later := await told.get()) == now:
        pass
    assert later == now + 0.25
    clock.stop()
