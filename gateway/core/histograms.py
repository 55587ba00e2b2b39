"""Histograms of seconds. All processes have the same buckets, so that counts can be added."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from typing import Final

# Upper bounds of buckets in seconds, inclusive. One more bucket has all above.
SECONDS: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
# Most models with costs counted by name, in one worker and for ended workers of a host; others are summed.
COSTS_MAX = 256
OTHER_MODELS = "other"


class Histogram:
    """Counts of observations in seconds by bucket. The last used bucket is tried first."""

    __slots__ = ("_above", "_place", "_up_to", "counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0
        self._place, self._above, self._up_to = 0, -inf, SECONDS[0]

    def observe(self, seconds: float) -> None:
        """Count one observation, of `seconds`."""
        if not self._above < seconds <= self._up_to:
            self._find(seconds)
        self.counts[self._place] += 1
        self.total += seconds

    def _find(self, seconds: float) -> None:
        """Find the bucket of an observation, and store its position and bounds, to try it first next time."""
        place = self._place = bisect_left(SECONDS, seconds)
        self._above = SECONDS[place - 1] if place else -inf
        self._up_to = SECONDS[place] if place < len(SECONDS) else inf

    def snapshot(self) -> dict[str, object]:
        """Return the count of each bucket (the last one has no upper bound) and the sum in seconds."""
        return {"buckets": list(self.counts), "sum": self.total}


def quantile_of(counts: Sequence[float], bounds: Sequence[float], share: float) -> float | None:
    """Return a quantile (`share`, 0 to 1) of a histogram, interpolated within its bucket; None without data.

    In the last, unbounded bucket it is the lower bound.
    """
    total = sum(counts)
    if not total or not bounds:
        return None
    rank, seen = share * total, 0.0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            low = bounds[index - 1] if index else 0.0
            if index >= len(bounds):
                return low
            return low + (bounds[index] - low) * (rank - seen) / count
        seen += count
    return bounds[-1]
