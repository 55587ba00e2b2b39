"""The worker's numbers: plain integers that the hot path adds to and a scrape reads.

Names and labels are given to them in `gateway/telemetry/facts.py`; nothing here knows Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from gateway.core.billing.pricing import NANO
from gateway.core.families.registry import ALL
from gateway.core.model import GENERIC, Usage

# Upper bounds in seconds, each in its own bucket; one more bucket is everything above.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
SERIES_MAX = 4096
TENANTS_MAX = 4096
COSTS_MAX = 256
OTHER_MODELS = "other"
# Whose answers report their use in a form that is known here.
_REPORTING = tuple(one.name for one in ALL if one.name != GENERIC)


class Histogram:
    """Observations in seconds, by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> dict[str, object]:
        """Counts per bucket (not cumulative, the last one is everything above) and the sum in seconds."""
        return {"buckets": list(self.counts), "sum": self.total}


@dataclass(slots=True)
class Tally:
    """All numbers of one worker. `requests` is keyed by (route, status, reason).

    `busy` (calls and tokens by tenant id) and `refusals` (by tenant id and reason) begin again
    whenever they are taken. `unknown_usage` begins with 0 for each family, so that its first is a rise.
    """

    tenants_max: int = TENANTS_MAX
    requests: dict[tuple[str, int, str], int] = field(default_factory=dict)
    busy: dict[int, list[int]] = field(default_factory=dict)
    refusals: dict[tuple[int, str], int] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    credits: dict[str, int] = field(default_factory=dict)
    costs: dict[tuple[str, str, str], int] = field(default_factory=dict)
    unpriced: dict[str, int] = field(default_factory=dict)
    unknown_usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REPORTING, 0))
    request_seconds: Histogram = field(default_factory=Histogram)
    overhead_seconds: Histogram = field(default_factory=Histogram)
    upstream_seconds: Histogram = field(default_factory=Histogram)
    settlements_estimated: int = 0
    settlements_failed: int = 0
    upstream_connections: int = 0
    upstream_failures: int = 0
    client_disconnects: int = 0
    connections_refused: int = 0

    def request(self, route: str, status: int, reason: str) -> None:
        """Count one answered request; `reason` is empty unless it was refused."""
        series = (route, status, reason)
        requests = self.requests
        if series in requests:
            requests[series] += 1
        elif len(requests) < SERIES_MAX:
            requests[series] = 1

    def took(self, request_s: float, upstream_s: float) -> None:
        """Observe how long a request took and how much of that was its upstream's (0: never asked)."""
        self.request_seconds.observe(request_s)
        if upstream_s > 0.0:
            self.upstream_seconds.observe(upstream_s)
            self.overhead_seconds.observe(request_s - upstream_s)

    def used(self, service: str, tokens_in: int, tokens_out: int, total: int) -> None:
        """Count the tokens one settled call was charged for."""
        kinds = self.tokens.get(service)
        if kinds is None:
            kinds = self.tokens[service] = [0, 0, 0]
        kinds[0] += tokens_in
        kinds[1] += tokens_out
        kinds[2] += total

    def cost(self, service: str, model: str, currency: str, nano: int) -> None:
        """Count what a settled call cost, in nano-units; models beyond the maximum are counted together."""
        costs, series = self.costs, (service, model, currency)
        if series not in costs and len(costs) >= COSTS_MAX:
            series = (service, OTHER_MODELS, currency)
        costs[series] = costs.get(series, 0) + nano

    def settled(self, service: str, usage: Usage, credits_charged: int) -> None:
        """Count the units and credits of one settled call."""
        self.units[service] = self.units.get(service, 0) + usage.units
        if credits_charged:
            self.credits[service] = self.credits.get(service, 0) + credits_charged
        if usage.estimated:
            self.settlements_estimated += 1

    def served(self, tenant_id: int, tokens: int) -> None:
        """Count a settled call of a tenant, whom nothing tells apart beyond the maximum."""
        busy = self.busy.get(tenant_id)
        if busy is None:
            busy = self.busy.setdefault(tenant_id if len(self.busy) < self.tenants_max else 0, [0, 0])
        busy[0] += 1
        busy[1] += tokens

    def refused(self, tenant_id: int, reason: str) -> None:
        """Count a refusal to a tenant, or to tenant 0 where nobody is known."""
        refusals = self.refusals
        key = (tenant_id if len(refusals) < self.tenants_max else 0, reason)
        refusals[key] = refusals.get(key, 0) + 1

    def take_busy(self) -> dict[tuple[int, str], int]:
        """What tenants did since this was called last: tenant id and kind, with its count."""
        busy, self.busy = self.busy, {}
        taken, self.refusals = self.refusals, {}
        for tenant_id, (requests, tokens) in busy.items():
            taken[tenant_id, "requests"] = requests
            if tokens:
                taken[tenant_id, "tokens"] = tokens
        return taken

    def snapshot(self) -> dict[str, object]:
        """Everything counted so far; JSON-able."""
        tokens = [
            (service, kind, count)
            for service, kinds in self.tokens.items()
            for kind, count in zip(("input", "output", "total"), kinds, strict=True)
        ]
        return {
            "bounds": list(SECONDS),
            "requests": [(*series, count) for series, count in self.requests.items()],
            "tokens": tokens,
            "units": list(self.units.items()),
            "credits": list(self.credits.items()),
            "cost": [(*series, nano / NANO) for series, nano in self.costs.items()],
            "unpriced_calls": list(self.unpriced.items()),
            "unknown_usage": list(self.unknown_usage.items()),
            "request_seconds": self.request_seconds.snapshot(),
            "overhead_seconds": self.overhead_seconds.snapshot(),
            "upstream_seconds": self.upstream_seconds.snapshot(),
            "settlements_estimated": self.settlements_estimated,
            "settlements_failed": self.settlements_failed,
            "upstream_connections": self.upstream_connections,
            "upstream_failures": self.upstream_failures,
            "client_disconnects": self.client_disconnects,
            "connections_refused": self.connections_refused,
        }
