"""Time awake: what a loop slept through does not pass."""

from __future__ import annotations

from gateway.core.awake import Awake


def test_time_passes_as_it_does_where_the_loop_looks_often() -> None:
    awake = Awake(100.0, 1.0)
    for now in (100.5, 101.5, 101.75):
        assert awake.look(now) == now
        assert awake.at(now + 0.25) == now + 0.25


def test_a_stall_counts_as_one_gap() -> None:
    awake = Awake(100.0, 1.0)
    assert awake.at(500.0) == 101.0
    assert awake.look(500.0) == 101.0
    assert awake.look(500.5) == 101.5
    assert awake.at(900.0) == 102.5
