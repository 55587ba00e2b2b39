"""The page of meetings has each program of the table, and no cell that is wrong."""

from __future__ import annotations

from tests.world.meetings import MEETINGS
from tests.world.meetings_page import PAGE, lines


def test_each_program_has_its_cells_and_none_is_wrong() -> None:
    kept = lines()
    assert list(kept) == list(MEETINGS)
    assert all(line.count(" | ") == 3 for cells in kept.values() for line in cells)
    assert "WRONG" not in PAGE.read_text()
