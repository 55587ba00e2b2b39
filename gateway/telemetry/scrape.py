"""The metrics of a scrape: prometheus-client writes a merged snapshot, and its own metrics of this process.

Gateway workers never load this module. Metrics that a snapshot lacks are left out, and so are rows with the
labels of another version.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway import extras
from gateway.telemetry.metrics import FACTS, PREFIX, Fact

OPEN_METRICS = "application/openmetrics-text"


def content_type_of(accept: str) -> str:
    """Return the content type of a scrape whose `Accept` field is `accept`."""
    return _encoder(accept)[1]


def render(accept: str, snapshot: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the body of a scrape and its content type: OpenMetrics if `accept` names it."""
    write, content_type = _encoder(accept)
    return write(SnapshotCollector(snapshot)), content_type


class SnapshotCollector(Collector):
    """Metrics of one snapshot merged by `gateway/telemetry/metrics.py`.

    A snapshot has numbers, rows `[label…, number]`, and histograms `{"buckets": […], "sum": seconds}` with
    counts that are not cumulative; the last bucket is above the last of `bounds`.
    """

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot
        self._bounds = [*map(str, map(float, snapshot.get("bounds", ()))), "+Inf"]

    def collect(self) -> Iterator[Metric]:
        for fact in FACTS:
            if (value := self._snapshot.get(fact.name)) is not None:
                yield self._histogram(fact, value) if fact.kind == "histogram" else _numbers(fact, value)
        build = {"version": extras.version(), "python": platform.python_version()}
        yield InfoMetricFamily(f"{PREFIX}build", "The running version.", build)
        yield from REGISTRY.collect()

    def _histogram(self, fact: Fact, value: Mapping[str, Any]) -> Metric:
        family = HistogramMetricFamily(PREFIX + fact.name, fact.help, labels=fact.labels)
        rows = [([label], counts) for label, counts in value.items()] if fact.labels else [([], value)]
        for labels, counts in rows:
            if isinstance(counts, Mapping):
                totals = accumulate(counts["buckets"])
                family.add_metric(labels, [*zip(self._bounds, totals, strict=True)], counts["sum"])
        return family


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    # The library gets only the name: a scraper can choose neither version nor escaping of names.
    wanted = {each.partition(";")[0].strip() for each in accept.split(",")}
    return choose_encoder(OPEN_METRICS if OPEN_METRICS in wanted else "")


def _numbers(fact: Fact, value: Any) -> Metric:
    make = CounterMetricFamily if fact.kind == "counter" else GaugeMetricFamily
    family = make(PREFIX + fact.name, fact.help, labels=fact.labels)
    rows = value if isinstance(value, list | tuple) else [[value]]
    for *labels, number in rows:
        if len(labels) == len(fact.labels):
            family.add_metric([str(label) for label in labels], number)
    return family
