"""Long timers go off together, and none of them early."""

from __future__ import annotations

import asyncio

import pytest

from gateway.run import coarse_loop
from gateway.run.coarse_loop import COARSE_S_MIN, TICK_S, CoarseLoop, coarse


@pytest.mark.parametrize("now", [0.0, 0.2, 76_000.487, 5_000_000.1 + 0.2])
def test_long_timers_go_off_at_ticks_and_short_ones_when_they_are_due(now: float) -> None:
    for delay in (COARSE_S_MIN, 0.23, 0.5, 1.0, 30.0):
        late = coarse(delay, now)
        ticks = (now + late) / TICK_S
        assert ticks == pytest.approx(round(ticks), abs=1e-3)
        assert delay <= late < delay + TICK_S
    assert coarse(0.05, now) == 0.05


def test_the_loop_of_a_process_has_coarse_timers() -> None:
    found = list[object]()

    async def look() -> None:
        found.append(asyncio.get_running_loop())

    coarse_loop.run(look())
    assert isinstance(found[0], CoarseLoop)
