"""The metrics of a scrape, rendered from plain snapshots.

A snapshot is what `gateway/telemetry/snapshot_files.py` merges: numbers, rows `[label…, number]`, histograms
`{"buckets": […], "sum": seconds}` whose counts are not cumulative and whose last bucket is
everything above the last of `bounds`. A fact that is absent from the snapshot is not rendered.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.telemetry.facts import FACTS, Fact

PREFIX = "tollkeeper_"


def render(accept: str, snapshot: Mapping[str, Any]) -> tuple[bytes, str]:
    """The scrape's body and content type: Prometheus text, or OpenMetrics where accepted."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Snapshot(Collector):
    """A snapshot as metric families."""

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing is registered ahead of a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every fact of the snapshot."""
        bounds = self._snapshot.get("bounds", [])
        for fact in FACTS:
            value = self._snapshot.get(fact.name)
            if value is not None:
                yield _family(fact, value, bounds)
        build = {"version": version("tollkeeper"), "python": platform.python_version()}
        yield InfoMetricFamily(f"{PREFIX}build", "What is running.", value=build)


def _family(fact: Fact, value: Any, bounds: list[float]) -> Metric:
    name = PREFIX + fact.name
    if fact.kind == "histogram":
        histogram = HistogramMetricFamily(name, fact.help, labels=fact.labels)
        for labels, counts in value.items() if fact.labels else (("", value),):
            if fact.labels and not isinstance(counts, Mapping):
                continue  # an older version counted without labels
            histogram.add_metric([labels] if fact.labels else [], *_cumulative(counts, bounds))
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if fact.kind == "counter":
        family = CounterMetricFamily(name, fact.help, labels=fact.labels)
    else:
        family = GaugeMetricFamily(name, fact.help, labels=fact.labels)
    if fact.labels and not isinstance(value, list | tuple):
        return family  # an older version counted without labels
    for *labels, number in value if fact.labels else ([value],):
        family.add_metric([str(label) for label in labels], number)
    return family


def _cumulative(histogram: Mapping[str, Any], bounds: list[float]) -> tuple[list[tuple[str, float]], float]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, bounds), "+Inf"], histogram["buckets"], strict=True):
        total += count
        buckets.append((bound, total))
    return buckets, histogram["sum"]
