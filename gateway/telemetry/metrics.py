"""Every metric, its name, labels and help; rendered from plain snapshots when it is scraped.

A snapshot is what `gateway/telemetry/snapshot_files.py` merges: numbers, rows `[label…, number]`, histograms
`{"buckets": […], "sum": seconds}` whose counts are not cumulative and whose last bucket is
everything above the last of `bounds`. A fact that is absent from the snapshot is not rendered.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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

PREFIX = "tollkeeper_"


@dataclass(frozen=True, slots=True)
class Fact:
    """One metric: `source` is its name in a snapshot, `kind` how it is rendered."""

    name: str
    kind: str
    help: str
    source: str = ""
    labels: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Where the snapshot keeps it."""
        return self.source or self.name


FACTS = (
    Fact("requests", "counter", "Requests answered, refusals included.", "", ("route", "status", "reason")),
    Fact("request_seconds", "histogram", "Time from the request's first byte to the answer's last."),
    Fact("overhead_seconds", "histogram", "Time the gateway itself added to a request."),
    Fact("upstream_seconds", "histogram", "Time from sending a request upstream to the answer's end."),
    Fact("tokens", "counter", "Tokens of settled calls.", "", ("service", "kind")),
    Fact("units", "counter", "Units of settled calls.", "", ("service",)),
    Fact("credits", "counter", "Credits of settled calls.", "", ("service",)),
    Fact("settlements_estimated", "counter", "Calls settled by the gateway's own count."),
    Fact("settlements_failed", "counter", "Settlements that the counters did not acknowledge at once."),
    Fact("upstream_failures", "counter", "Upstream connections or answers that failed."),
    Fact("upstream_connections", "counter", "Connections made to upstreams."),
    Fact("client_disconnects", "counter", "Clients that hung up before their answer was complete."),
    Fact("connections_refused", "counter", "Client connections refused at the gateway's own limit."),
    Fact("buffered_bytes", "gauge", "Bytes of requests and answers kept for slow ends."),
    Fact("shed", "counter", "Calls and bodies refused because too much is kept already."),
    Fact("auth_failures", "counter", "Wrong credentials.", "", ("port", "reason")),
    Fact("spans", "counter", "Spans of traces, sent to the collector or dropped.", "", ("outcome",)),
    Fact("script_seconds", "histogram", "Time from sending a script to its answer.", "", ("script",)),
    Fact("counters_unverified", "gauge", "Workers whose Redis no keeper has verified since its last start."),
    Fact("counters_exchanged", "counter", "Times Redis was found with older data under the same process."),
    Fact("counters_breaker_open", "gauge", "Workers that ask Redis nothing: it is away or stalls."),
    Fact("leases", "gauge", "Tenants that have a lease for while Redis is away."),
    Fact("admitted_locally", "counter", "Calls admitted on a lease while Redis was away."),
    Fact("spool_entries", "gauge", "Settlements waiting in the local log for the counters."),
    Fact("settlement_log_bytes", "gauge", "Bytes of the workers' settlement logs."),
    Fact("settlements_spooled", "counter", "Settlements the local log keeps for the counters."),
    Fact("settlements_resubmitted", "counter", "Spooled settlements that the counters have by now."),
    Fact("settlements_recovered", "counter", "Acknowledged settlements sent again after a loss."),
    Fact("settlements_refused", "counter", "Settlements kept nowhere: their answers were cut."),
    Fact("settlements_unlogged", "counter", "Acknowledged settlements the local log had no room for."),
    Fact("settlements_dropped_early", "counter", "Acknowledged settlements a full local log kept too short."),
    Fact("lost_events", "counter", "Movements Redis acknowledged, forgot, and nobody brought back."),
    Fact("holds", "gauge", "Holds of calls in flight."),
    Fact("outbox_entries", "gauge", "Movements not yet in PostgreSQL."),
    Fact("outbox_oldest_seconds", "gauge", "Age of the oldest movement not yet in PostgreSQL."),
    Fact("waiting_entries", "gauge", "Movements that wait behind stopped accounts, apart from the outbox."),
    Fact("outbox_streams_broken", "gauge", "Partitions whose outbox cannot be read; the others go on."),
    Fact("flush_rows", "counter", "Rows written by the flusher.", "", ("table",)),
    Fact("flush_seconds", "histogram", "Time of one flush, from read to acknowledge."),
    Fact("reclaimed_holds", "counter", "Holds ended by their deadline."),
    Fact("drift_tokens", "gauge", "Sum of absolute differences in tokens at the last reconciliation."),
    Fact("drift_credits", "gauge", "Sum of absolute differences in credits at the last reconciliation."),
    Fact("quarantined_accounts", "gauge", "Accounts stopped until a person releases them."),
    Fact("dead_letters", "gauge", "Entries of the outbox that could not be read or stored."),
    Fact("redis_memory_used_bytes", "gauge", "Memory Redis uses."),
    Fact("redis_memory_max_bytes", "gauge", "Memory Redis may use; 0 is no limit."),
    Fact(
        "certificate_expiry_timestamp_seconds", "gauge", "Until when a certificate is valid.", "", ("peer",)
    ),
    Fact("credential_expiry_timestamp_seconds", "gauge", "When the next credential ends.", "", ("kind",)),
)


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
            value = self._snapshot.get(fact.key)
            if value is not None:
                yield _family(fact, value, bounds)
        build = {"version": _version(), "python": platform.python_version()}
        yield InfoMetricFamily(f"{PREFIX}build", "What is running.", value=build)


def _family(fact: Fact, value: Any, bounds: list[float]) -> Metric:
    name = PREFIX + fact.name
    if fact.kind == "histogram":
        histogram = HistogramMetricFamily(name, fact.help, labels=fact.labels)
        for labels, counts in value.items() if fact.labels else (("", value),):
            histogram.add_metric([labels] if fact.labels else [], *_cumulative(counts, bounds))
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if fact.kind == "counter":
        family = CounterMetricFamily(name, fact.help, labels=fact.labels)
    else:
        family = GaugeMetricFamily(name, fact.help, labels=fact.labels)
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


def _version() -> str:
    try:
        return version("tollkeeper")
    except PackageNotFoundError:
        return "0.0.0"
