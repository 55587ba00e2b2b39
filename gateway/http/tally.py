"""The worker's numbers: plain integers that the hot path adds to and a scrape reads.

Names and labels are given to them in `gateway/telemetry/metrics.py`; nothing here knows Prometheus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gateway.calls.charge import Counted
from gateway.core.billing.money import NANO
from gateway.core.circuit_breaker import CAUSES
from gateway.core.families.registry import ALL
from gateway.core.histograms import COSTS_MAX, OTHER_MODELS, SECONDS, Histogram
from gateway.core.wait import Awake

SERIES_MAX = 4096
TENANTS_MAX = 4096
# The statuses that tell something of their own; others are told by their class.
OWN_STATUSES = frozenset({400, 401, 403, 404, 408, 429, 529})
ANSWERS = ("2xx", "3xx", *map(str, sorted(OWN_STATUSES)), "4xx", "5xx")
# Whose answers report their use in a form that is known here.
_REPORTING = tuple(one.name for one in ALL if not all(kind.of_tools for kind in one.shapes.values()))


class RequestCount:
    """Answered requests of one route, with one status and one reason."""

    __slots__ = ("count", "reason", "route", "status")

    def __init__(self, route: str, status: int, reason: str) -> None:
        self.route, self.status, self.reason, self.count = route, status, reason, 0


class ChargedTokens:
    """Tokens that calls were charged for."""

    __slots__ = ("read", "total", "written")

    def __init__(self) -> None:
        self.read = self.written = self.total = 0


class TenantUse:
    """Calls of a tenant that were settled, and their tokens."""

    __slots__ = ("calls", "tokens")

    def __init__(self) -> None:
        self.calls = self.tokens = 0


class ChargedCost:
    """What calls cost, in nano-units: an object, so that a call looks its series up once, and adds to it."""

    __slots__ = ("nano",)

    def __init__(self) -> None:
        self.nano = 0


@dataclass(slots=True)
class Tally:
    """All numbers of one worker. `requests` is keyed by (route, status, reason).

    `busy` (calls and tokens by tenant id) and `refusals` (by tenant id and reason) start over whenever
    they are taken. `unknown_usage` begins with 0 for each family, so that its first is a rise.
    """

    tenants_max: int = TENANTS_MAX
    requests: dict[tuple[str, int, str], RequestCount] = field(default_factory=dict)
    # The series that the last request was of: most are of the same.
    last: RequestCount = field(default_factory=lambda: RequestCount("", -1, ""))
    busy: dict[int, TenantUse] = field(default_factory=dict)
    refusals: dict[tuple[int, str], int] = field(default_factory=dict)
    tokens: dict[str, ChargedTokens] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    credits: dict[str, int] = field(default_factory=dict)
    costs: dict[tuple[str, str, str], ChargedCost] = field(default_factory=dict)
    unpriced: dict[str, int] = field(default_factory=dict)
    budget_refusals: dict[tuple[str, str, str], int] = field(default_factory=dict)
    unknown_usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REPORTING, 0))
    # By the upstream's name.
    untrue_reports: dict[str, int] = field(default_factory=dict)
    costs_apart: dict[str, int] = field(default_factory=dict)
    request_seconds: Histogram = field(default_factory=Histogram)
    overhead_seconds: Histogram = field(default_factory=Histogram)
    first_token_seconds: Histogram = field(default_factory=Histogram)
    # By the upstream's name.
    upstream_seconds: dict[str, Histogram] = field(default_factory=dict)
    upstream_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    # By the upstream's name, then by the status of its answers.
    upstream_answers: dict[str, dict[int, int]] = field(default_factory=dict)
    settlements_estimated: int = 0
    settlements_failed: int = 0
    budgets_exceeding: int = 0
    upstream_connections: int = 0
    upstream_lookup_failures: int = 0
    client_disconnects: int = 0
    connections_refused: int = 0
    # By the upstream's name: seconds for which it is left alone, model by model, and calls refused meanwhile.
    cooling_seconds: dict[str, float] = field(default_factory=dict)
    cooled_calls: dict[str, int] = field(default_factory=dict)
    # By the upstream's name: how long calls waited for its capacity, and those that waited in vain.
    capacity_wait_seconds: dict[str, Histogram] = field(default_factory=dict)
    capacity_refused_calls: dict[str, int] = field(default_factory=dict)
    # By the upstream's name and the cause: calls that another one was asked for.
    fallbacks: dict[tuple[str, str], int] = field(default_factory=dict)

    def begin_with(self, upstreams: Iterable[str]) -> None:
        """Begin with 0 for each upstream, so that its first is a rise."""
        for name in upstreams:
            for cause in CAUSES:
                self.upstream_failures.setdefault((name, cause), 0)
            self.upstream_answers.setdefault(name, {})
            self.untrue_reports.setdefault(name, 0)
            self.costs_apart.setdefault(name, 0)
            self.cooling_seconds.setdefault(name, 0.0)
            self.cooled_calls.setdefault(name, 0)

    def request(self, route: str, status: int, reason: str) -> None:
        """Count one answered request; `reason` is empty unless it was refused."""
        last = self.last
        if last.route is not route or last.status != status or last.reason is not reason:
            series, requests = (route, status, reason), self.requests
            known = requests.get(series)
            if known is None:
                if len(requests) >= SERIES_MAX:
                    return
                known = requests[series] = RequestCount(route, status, reason)
            last = self.last = known
        last.count += 1

    def took(self, request_s: float, upstream_s: float, upstream: str) -> None:
        """Observe how long a request took and how much of that was its upstream's (0: never asked)."""
        self.request_seconds.observe(request_s)
        if upstream_s > 0.0:
            seconds = self.upstream_seconds.get(upstream)
            if seconds is None:
                seconds = self.upstream_seconds[upstream] = Histogram()
            seconds.observe(upstream_s)
            self.overhead_seconds.observe(request_s - upstream_s)

    def upstream_failed(self, upstream: str, cause: str) -> None:
        """Count a failure of an upstream."""
        series = upstream, cause
        self.upstream_failures[series] = self.upstream_failures.get(series, 0) + 1

    def answered(self, upstream: str, status: int) -> None:
        """Count an answer of an upstream."""
        answers = self.upstream_answers[upstream]
        answers[status] = answers.get(status, 0) + 1

    def capacity_waited(self, upstream: str, seconds: float) -> None:
        """Observe how long a call waited for its upstream's capacity."""
        waits = self.capacity_wait_seconds.get(upstream)
        if waits is None:
            waits = self.capacity_wait_seconds[upstream] = Histogram()
        waits.observe(seconds)

    def passed_over(self, upstream: str, cause: str) -> None:
        """Count a call that another upstream was asked for."""
        series = upstream, cause
        self.fallbacks[series] = self.fallbacks.get(series, 0) + 1

    def cost(self, service: str, model: str, currency: str, nano: int) -> None:
        """Count what a settled call cost, in nano-units; models beyond the maximum are counted together."""
        costs, series = self.costs, (service, model, currency)
        known = costs.get(series)
        if known is None and len(costs) >= COSTS_MAX:
            series = (service, OTHER_MODELS, currency)
            known = costs.get(series)
        if known is None:
            known = costs[series] = ChargedCost()
        known.nano += nano

    def charged(self, counted: Counted, upstream: str = "") -> None:
        """Count one settled use, whatever it came as; `upstream` is the one that answered."""
        service, total = counted.service, counted.total if counted.counts_tokens else 0
        self.units[service] = self.units.get(service, 0) + counted.units
        if counted.credits:
            self.credits[service] = self.credits.get(service, 0) + counted.credits
        if counted.estimated:
            self.settlements_estimated += 1
        if counted.counts_tokens:
            tokens = self.tokens.get(service)
            if tokens is None:
                tokens = self.tokens[service] = ChargedTokens()
            tokens.read += counted.input
            tokens.written += counted.output
            tokens.total += total
        self.served(counted.tenant_id, total)
        if (cost := counted.cost) is not None:
            self.cost(service, counted.model, counted.currency, cost)
        if counted.lacks_price:
            self.unpriced[service] = self.unpriced.get(service, 0) + 1
        if counted.says_more:
            self.unknown_usage[counted.family] = self.unknown_usage.get(counted.family, 0) + 1
        if counted.contradicted:
            self.untrue_reports[upstream] = self.untrue_reports.get(upstream, 0) + 1
        if counted.apart is not None:
            self.costs_apart[upstream] = self.costs_apart.get(upstream, 0) + 1

    def served(self, tenant_id: int, tokens: int) -> None:
        """Count a settled call of a tenant, whom nothing tells apart beyond the maximum."""
        busy = self.busy.get(tenant_id)
        if busy is None:
            busy = self.busy.setdefault(tenant_id if len(self.busy) < self.tenants_max else 0, TenantUse())
        busy.calls += 1
        busy.tokens += tokens

    def refused(self, tenant_id: int, reason: str) -> None:
        """Count a refusal to a tenant, or to tenant 0 where nobody is known."""
        refusals = self.refusals
        key = (tenant_id if len(refusals) < self.tenants_max else 0, reason)
        refusals[key] = refusals.get(key, 0) + 1

    def budget_refused(self, reason: str, unit: str, interval: str) -> None:
        """Count a refusal by a budget: used up, or held by calls in flight."""
        series = reason, unit, interval
        self.budget_refusals[series] = self.budget_refusals.get(series, 0) + 1

    def take_busy(self) -> dict[tuple[int, str], int]:
        """Return the counts of tenants since the last call, by tenant id and kind."""
        busy, self.busy = self.busy, {}
        taken, self.refusals = self.refusals, {}
        for tenant_id, served in busy.items():
            taken[tenant_id, "requests"] = served.calls
            if served.tokens:
                taken[tenant_id, "tokens"] = served.tokens
        return taken

    def snapshot(self) -> dict[str, object]:
        """Return everything counted so far; JSON-able."""
        tokens = [
            (service, kind, count)
            for service, used in self.tokens.items()
            for kind, count in (("input", used.read), ("output", used.written), ("total", used.total))
        ]
        return {
            "bounds": list(SECONDS),
            "requests": [(*series, one.count) for series, one in self.requests.items()],
            "tokens": tokens,
            "units": list(self.units.items()),
            "credits": list(self.credits.items()),
            "cost": [(*series, cost.nano / NANO) for series, cost in self.costs.items()],
            "unpriced_calls": list(self.unpriced.items()),
            "budget_refusals": [(*series, count) for series, count in self.budget_refusals.items()],
            "unknown_usage": list(self.unknown_usage.items()),
            "untrue_reports": list(self.untrue_reports.items()),
            "costs_apart": list(self.costs_apart.items()),
            "request_seconds": self.request_seconds.snapshot(),
            "overhead_seconds": self.overhead_seconds.snapshot(),
            "first_token_seconds": self.first_token_seconds.snapshot(),
            "upstream_seconds": {name: each.snapshot() for name, each in self.upstream_seconds.items()},
            "settlements_estimated": self.settlements_estimated,
            "settlements_failed": self.settlements_failed,
            "budgets_exceeding": self.budgets_exceeding,
            "upstream_connections": self.upstream_connections,
            "upstream_cooling_seconds": list(self.cooling_seconds.items()),
            "upstream_cooled_calls": list(self.cooled_calls.items()),
            "capacity_wait_seconds": {
                name: each.snapshot() for name, each in self.capacity_wait_seconds.items()
            },
            "capacity_refused_calls": list(self.capacity_refused_calls.items()),
            "upstream_fallbacks": [(*series, count) for series, count in self.fallbacks.items()],
            "upstream_failures": [(*series, count) for series, count in self.upstream_failures.items()],
            "upstream_answers": [
                (name, status, count)
                for name, answers in self.upstream_answers.items()
                for status, count in by_class(answers).items()
            ],
            "upstream_lookup_failures": self.upstream_lookup_failures,
            "client_disconnects": self.client_disconnects,
            "connections_refused": self.connections_refused,
        }


def by_class(answers: Mapping[int, int]) -> dict[str, int]:
    """Return counts by status as counts by what metrics tell: each of `ANSWERS` is there."""
    found = dict.fromkeys(ANSWERS, 0)
    for status, count in answers.items():
        name = str(status) if status in OWN_STATUSES else f"{status // 100}xx"
        found[name] = found.get(name, 0) + count
    return found


# One coarse clock a worker: every deadline of the data plane is an attribute it looks at.
#
# A timer for each request would cost more than the request, so all deadlines are checked every
# `tick_s`. Time in which the loop stood still does not pass: what others sent meanwhile is read first.

NEVER = float("inf")
# What passes between two ticks at most: longer than a pooled connection is taken for open unlooked at.
GAP_S_MAX = 0.3


class TickClock:
    """The time of the last tick, in seconds awake; it begins as the monotonic clock's. `check` is told it."""

    __slots__ = ("_awake", "_check", "_loop", "_seconds", "_tick_s", "_timer", "now")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: Callable[[], float],
        tick_s: float,
        check: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._tick_s = tick_s
        self._check = check
        self._timer: asyncio.TimerHandle | None = None
        self.now = seconds()
        self._awake = Awake(self.now, max(GAP_S_MAX, tick_s))

    def start(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        self.now = now = self._awake.advance(self._seconds())
        self._check(now)
