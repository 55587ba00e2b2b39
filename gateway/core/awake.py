"""Time in which the event loop was awake: what stood still here is not blamed on whoever is waited for.

While one thing keeps the loop busy, answers that came are not read. So of the time between two looks
at the loop only so much counts: whoever waits a while is judged after several looks, with what
arrived read in between.
"""

from __future__ import annotations

# Into how many looks a wait is cut at least.
LOOKS_MIN = 4


class Awake:
    """A clock that advances by at most `gap_s_max` between two looks."""

    __slots__ = ("_gap_s_max", "_looked_at", "_now")

    def __init__(self, now: float, gap_s_max: float) -> None:
        self._gap_s_max = gap_s_max
        self._looked_at = now
        self._now = now

    def at(self, now: float) -> float:
        """The time awake at a moment behind the last look."""
        return self._now + min(now - self._looked_at, self._gap_s_max)

    def look(self, now: float) -> float:
        """The loop is here: the time awake as of now."""
        self._now = self.at(now)
        self._looked_at = now
        return self._now
