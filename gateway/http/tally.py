"""The numbers of a worker: plain integers that the hot path increments and a scrape reads.

`gateway/telemetry/metrics.py` gives them names and labels; this module knows no Prometheus.
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
# Names of withheld header fields, and their characters.
NAMES_MAX = 64
NAME_CHARS_MAX = 64
# Statuses with a label of their own; others are counted by class.
OWN_STATUSES = frozenset({400, 401, 403, 404, 408, 429, 529})
ANSWERS = ("2xx", "3xx", *map(str, sorted(OWN_STATUSES)), "4xx", "5xx")
# Families whose answers report usage in a known format.
_REPORTING = tuple(family.name for family in ALL if not all(kind.of_tools for kind in family.shapes.values()))


class RequestCount:
    """The number of answered requests of one route, status and reason."""

    __slots__ = ("count", "reason", "route", "status")

    def __init__(self, route: str, status: int, reason: str) -> None:
        self.route, self.status, self.reason, self.count = route, status, reason, 0


class ChargedTokens:
    """Numbers of tokens that calls were charged for."""

    __slots__ = ("read", "total", "written")

    def __init__(self) -> None:
        self.read = self.written = self.total = 0


class TenantUse:
    """Numbers of a tenant's settled calls and their tokens."""

    __slots__ = ("calls", "tokens")

    def __init__(self) -> None:
        self.calls = self.tokens = 0


class ChargedCost:
    """The cost of calls in nano-units: an object, so that a call looks up its series once."""

    __slots__ = ("nano",)

    def __init__(self) -> None:
        self.nano = 0


@dataclass(slots=True)
class Tally:
    """All numbers of one worker. `requests` is keyed by (route, status, reason).

    `busy` (calls and tokens by tenant id) and `refusals` (by tenant id and reason) are reset when they are
    read. `unknown_usage` starts at 0 for each family, so that the first occurrence is an increase.
    """

    tenants_max: int = TENANTS_MAX
    requests: dict[tuple[str, int, str], RequestCount] = field(default_factory=dict)
    # The series of the last request: the next one is mostly in the same.
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
    # By upstream: seconds for which it is paused, summed over models, and calls refused in that time.
    cooling_seconds: dict[str, float] = field(default_factory=dict)
    cooled_calls: dict[str, int] = field(default_factory=dict)
    # By upstream and cause: calls that went to another target.
    fallbacks: dict[tuple[str, str], int] = field(default_factory=dict)
    # By model, of the first models: calls that a step sent as it, and those of them that it refused.
    substituted_calls: dict[str, int] = field(default_factory=dict)
    steps_refused: dict[str, int] = field(default_factory=dict)
    # By upstream: header fields of calls that it did not get; by upstream and name, of the first names.
    fields_withheld: dict[str, int] = field(default_factory=dict)
    withheld_names: dict[tuple[str, str], int] = field(default_factory=dict)

    def begin_with(self, upstreams: Iterable[str]) -> None:
        """Start the counts of these upstreams at 0, so that metrics show the first failure as a rise."""
        for name in upstreams:
            for cause in CAUSES:
                self.upstream_failures.setdefault((name, cause), 0)
            self.upstream_answers.setdefault(name, {})
            self.untrue_reports.setdefault(name, 0)
            self.costs_apart.setdefault(name, 0)
            self.fields_withheld.setdefault(name, 0)
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
        """Observe the seconds that a request took, and those that its upstream took (0 without upstream)."""
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

    def passed_over(self, upstream: str, cause: str) -> None:
        """Count a call that went to the next target after this upstream failed."""
        series = upstream, cause
        self.fallbacks[series] = self.fallbacks.get(series, 0) + 1

    @staticmethod
    def count_substituted(counts: dict[str, int], model: str) -> None:
        """Count a call of a substitute in one of the two `counts`; models beyond the maximum count together."""
        name = model if model in counts or len(counts) < NAMES_MAX else OTHER_MODELS
        counts[name] = counts.get(name, 0) + 1

    def withheld(self, upstream: str, name: str) -> None:
        """Count a header field that an upstream did not get; names beyond the maximum are not stored."""
        self.fields_withheld[upstream] = self.fields_withheld.get(upstream, 0) + 1
        series, names = (upstream, name[:NAME_CHARS_MAX]), self.withheld_names
        if series in names or len(names) < NAMES_MAX:
            names[series] = names.get(series, 0) + 1

    def cost(self, service: str, model: str, currency: str, nano: int) -> None:
        """Count the cost of a settled call in nano-units.

        If there are too many series, further models are counted together under one label.
        """
        costs, series = self.costs, (service, model, currency)
        known = costs.get(series)
        if known is None and len(costs) >= COSTS_MAX:
            series = (service, OTHER_MODELS, currency)
            known = costs.get(series)
        if known is None:
            known = costs[series] = ChargedCost()
        known.nano += nano

    def charged(self, counted: Counted, upstream: str = "") -> None:
        """Count one charged use, of a call or a job; `upstream` is the one that answered."""
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
        """Count a settled call of a tenant; tenants above the maximum are counted together as tenant 0."""
        busy = self.busy.get(tenant_id)
        if busy is None:
            busy = self.busy.setdefault(tenant_id if len(self.busy) < self.tenants_max else 0, TenantUse())
        busy.calls += 1
        busy.tokens += tokens

    def refused(self, tenant_id: int, reason: str) -> None:
        """Count a refusal to a tenant; refusals to unknown callers or too many tenants count for tenant 0."""
        refusals = self.refusals
        key = (tenant_id if len(refusals) < self.tenants_max else 0, reason)
        refusals[key] = refusals.get(key, 0) + 1

    def budget_refused(self, reason: str, unit: str, interval: str) -> None:
        """Count a refusal because a budget is used up, or reserved by calls in flight."""
        series = reason, unit, interval
        self.budget_refusals[series] = self.budget_refusals.get(series, 0) + 1

    def take_busy(self) -> dict[tuple[int, str], int]:
        """Return the counts of requests, tokens and refusals by tenant id and kind; reset them to 0."""
        busy, self.busy = self.busy, {}
        taken, self.refusals = self.refusals, {}
        for tenant_id, served in busy.items():
            taken[tenant_id, "requests"] = served.calls
            if served.tokens:
                taken[tenant_id, "tokens"] = served.tokens
        return taken

    def snapshot(self) -> dict[str, object]:
        """Return all counts so far as values for JSON."""
        tokens = [
            (service, kind, count)
            for service, used in self.tokens.items()
            for kind, count in (("input", used.read), ("output", used.written), ("total", used.total))
        ]
        return {
            "bounds": list(SECONDS),
            "requests": [(*series, request.count) for series, request in self.requests.items()],
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
            "upstream_seconds": {name: times.snapshot() for name, times in self.upstream_seconds.items()},
            "settlements_estimated": self.settlements_estimated,
            "settlements_failed": self.settlements_failed,
            "budgets_exceeding": self.budgets_exceeding,
            "fields_withheld": list(self.fields_withheld.items()),
            "withheld_names": [(*series, count) for series, count in self.withheld_names.items()],
            "upstream_connections": self.upstream_connections,
            "upstream_cooling_seconds": list(self.cooling_seconds.items()),
            "upstream_cooled_calls": list(self.cooled_calls.items()),
            "upstream_fallbacks": [(*series, count) for series, count in self.fallbacks.items()],
            "substituted_calls": list(self.substituted_calls.items()),
            "steps_refused": list(self.steps_refused.items()),
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
    """Convert counts by status to counts by the labels in `ANSWERS`, with 0 for missing ones."""
    found = dict.fromkeys(ANSWERS, 0)
    for status, count in answers.items():
        name = str(status) if status in OWN_STATUSES else f"{status // 100}xx"
        found[name] = found.get(name, 0) + count
    return found


# The coarse clock of a worker: every deadline of the data plane is an attribute that it checks.
#
# A timer for each request would cost more than the request, so all deadlines are checked every `tick_s`. Time
# in which the event loop was blocked does not count: data that arrived meanwhile is read first.

NEVER = float("inf")
# Maximum of time that counts between two ticks; longer than `FRESH_S` of pooled connections.
GAP_S_MAX = 0.3


class TickClock:
    """The time of the last tick, in seconds without pauses of the process.

    It starts at the monotonic clock's time; `check` is called with the time of each tick.
    """

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
