"""How random histories are drawn: how many of each kind, how many steps, and over how much time.

The suite draws few, the same on each run; a night draws all that a test names, and others.
"""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

from tests.search import histories

Step = tuple[str, Any]
# Thirty months.
DAYS = 913


def some(number: int) -> settings:
    """So many histories where nobody asks for another number; what fails is told as it was drawn."""
    return settings(
        max_examples=histories(number),
        phases=(Phase.explicit, Phase.generate)
    )  # fmt: skip


def over_years(steps: st.SearchStrategy[Step], least: int, most: int) -> st.SearchStrategy[list[Step]]:
    """So many steps over thirty months: several on one day, or months apart."""
    return st.lists(st.tuples(st.integers(0, 6), steps), min_size=least, max_size=most).map(_spread)


def _spread(drawn: list[tuple[int, Step]]) -> list[Step]:
    """Wait before each step for its share of the days that no step waits for itself."""
    left = DAYS - sum(how for _, (what, how) in drawn if what == "wait")
    shares = sum(share for share, _ in drawn)
    spread: list[Step] = []
    for share, step in drawn:
        waits = left * share // shares if shares and left > 0 else 0
        spread += [("wait", waits), step] if waits else [step]
    missing = DAYS - sum(how for what, how in spread if what == "wait")
    return [*spread, ("wait", missing)] if missing > 0 else spread
