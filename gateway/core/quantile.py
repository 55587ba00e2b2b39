"""Quantiles of a histogram whose buckets are all that is known of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def quantile_of(counts: Sequence[float], bounds: Sequence[float], share: float) -> float | None:
    """A quantile of a histogram, evenly spread within a bucket; the last bucket is its lower bound."""
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
