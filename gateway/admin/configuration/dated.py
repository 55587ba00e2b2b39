"""Rows of one name that take each other's place in time: which one was made for a moment, or is in force."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from gateway.core.accounts.administration import Row


class Dated:
    """Put in order once, for however many objects ask: `since` is the field that says from when."""

    def __init__(self, rows: Sequence[Row], since: str) -> None:
        self._rows = sorted(rows, key=lambda row: _place(row, since))
        self._moments: list[Any] = [row[since] for row in self._rows]

    def made_for(self, moment: object) -> Row | None:
        """The row of that very moment; of several the newest."""
        place = bisect_right(self._moments, moment)
        return self._rows[place - 1] if place and self._moments[place - 1] == moment else None

    def in_force(self, moment: object) -> Row | None:
        """The row that is in force then; of several of one moment the newest."""
        place = bisect_right(self._moments, moment)
        return self._rows[place - 1] if place else None


def _place(row: Row, since: str) -> Any:
    return row[since], row["id"]
