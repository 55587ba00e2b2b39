"""What a scrape of `/metrics` says, as far as a person watching wants to know it. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SAMPLE = re.compile(r'^tollkeeper_(\w+?)(?:\{le="([^"]+)"\})? (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scrape:
    """Gauges and counters without labels by name, and histograms: how many took at most so many seconds."""

    values: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def quantile(self, histogram: str, share: float, since: Scrape | None = None) -> float | None:
        """Seconds that a share of the calls since an earlier scrape took at most; None without calls.

        Between two bounds it is drawn straight, as Prometheus' `histogram_quantile` does.
        """
        earlier = since.histograms.get(histogram, {}) if since is not None else {}
        bounds = sorted(
            (bound, count - earlier.get(bound, 0.0))
            for bound, count in self.histograms.get(histogram, {}).items()
        )
        if not bounds or bounds[-1][1] <= 0:
            return None
        wanted = share * bounds[-1][1]
        below_bound = below_count = 0.0
        for bound, count in bounds:
            if count >= wanted:
                if math.isinf(bound) or count == below_count:
                    return below_bound
                return below_bound + (bound - below_bound) * (wanted - below_count) / (count - below_count)
            below_bound, below_count = bound, count
        return below_bound


def read_scrape(text: str) -> Scrape:
    """Read Prometheus' text format: what has no labels, and histograms whose one label is their bound."""
    values: dict[str, float] = {}
    histograms: dict[str, dict[float, float]] = {}
    for name, bound, number in _SAMPLE.findall(text):
        if bound and name.endswith("_bucket"):
            histograms.setdefault(name.removesuffix("_bucket"), {})[float(bound)] = float(number)
        elif not bound:
            values[name] = float(number)
    return Scrape(values, histograms)
