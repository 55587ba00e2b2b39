"""A batch that nobody asks for is charged once, whatever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.bench.killed_batch import by_hand, play

LINES, KILLS = 300, 4


def test_a_batch_that_nobody_asks_for_is_charged_once_whatever_is_killed(tmp_path: Path) -> None:
    rows, _, spent = play(tmp_path / "data", LINES, KILLS)
    assert len({row["request_id"] for row in rows}) == len(rows) == LINES
    assert spent == by_hand(rows)
