"""A batch that nobody asks for is charged once, whatever is killed meanwhile."""

from __future__ import annotations

from tests.bench.killed_batch import by_hand, play
from tests.journey.stack import Stack

LINES, KILLS = 300, 4


def test_a_batch_that_nobody_asks_for_is_charged_once_whatever_is_killed(broken_stack: Stack) -> None:
    rows, _, spent = play(broken_stack, LINES, KILLS)
    assert len({row["request_id"] for row in rows}) == len(rows) == LINES
    assert spent == by_hand(rows)
