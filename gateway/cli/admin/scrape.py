"""What a scrape of `/metrics` says, as far as a person watching wants to know it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from gateway.core.quantile import quantile_of

_SAMPLE = re.compile(r'^tollkeeper_(\w+?)(?:\{le="([^"]+)"\})? (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scrape:
    """Gauges and counters without labels by name, and histograms: how many took at most so many seconds."""

    values: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def quantile(self, histogram: str, share: float, since: Scrape | None = None) -> float | None:
        """Seconds that a share of the calls since an earlier scrape took at most; None without calls."""
        earlier = since.histograms.get(histogram, {}) if since is not None else {}
        known = sorted(self.histograms.get(histogram, {}).items())
        sums = [count - earlier.get(bound, 0.0) for bound, count in known]
        counts = [most - least for least, most in pairwise([0.0, *sums])]
        return quantile_of(counts, [bound for bound, _ in known[:-1]], share)


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
