"""The data plane with tracing; imported only if requests are traced.

A request's span has three children: `reserve`, `upstream` and `settle`. Attributes follow OpenTelemetry's
conventions for HTTP and generative models. They contain no credential, body, query, user or metadata; a
model's name only after an upstream accepted it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar
from urllib.parse import urlsplit

from gateway.calls.ports import CountersPort
from gateway.core.accounts.call_facts import read_facts
from gateway.core.calls.routes import Route
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.model import Admitted, HoldRequest, Refused, Settlement, SettleResult
from gateway.core.traces import Span, SpanKind, Trace, Value
from gateway.http.ports import Ports, Tracer
from gateway.http.routing.head import CallHead
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import Attempt, Exchange
from gateway.http.server.server import DataPlane
from gateway.http.upstream.pool import Upstream

MODEL_CHARACTERS_MAX = 128
_T = TypeVar("_T")


class TracedPlane(DataPlane):
    """A `DataPlane` that sends a span of each request to `ports.tracer`."""

    def observed(self, ports: Ports) -> Ports:
        assert ports.tracer is not None
        self._tracer: Tracer = ports.tracer
        self._timed = TimedCounters(ports.counters, ports.seconds)
        return replace(ports, counters=self._timed)

    def exchange(self, connection: ClientConnection, head: CallHead) -> Exchange:
        exchange = super().exchange(connection, head)
        trace = exchange.trace = self._tracer.begin(head.parent)
        if trace.recorded:
            self._timed.traces[exchange.request_id] = trace
        return exchange

    def rename(self, before: str, request_id: str = "") -> str:
        trace, request_id = self._timed.traces.pop(before, None), super().rename(before, request_id)
        if trace is not None:
            self._timed.traces[request_id] = trace
        return request_id

    def _record_end(self, exchange: Exchange, error: BaseException | None) -> None:
        super()._record_end(exchange, error)
        trace = exchange.trace
        if trace is not None and trace.recorded:
            self._timed.traces.pop(exchange.request_id, None)
            self._tracer.end(trace, _spans(exchange, trace, self._timed.seconds()))


class TimedCounters:
    """A `CountersPort` that records the times of reservations and settlements of traced requests."""

    def __init__(self, counters: CountersPort, seconds: Callable[[], float]) -> None:
        self._counters = counters
        self.watch, self.unwatch = counters.watch, counters.unwatch
        self.request_extension = counters.request_extension
        self.seconds = seconds
        self.traces: dict[str, Trace] = {}

    def reserve(self, request: HoldRequest) -> Awaitable[Admitted | Refused]:
        trace = self.traces.get(request.request_id)
        if trace is None:
            return self._counters.reserve(request)
        return self._reserve(request, trace)

    def settle(self, settlement: Settlement) -> Awaitable[SettleResult]:
        trace = self.traces.get(settlement.request_id)
        if trace is None:
            return self._counters.settle(settlement)
        return self._settle(settlement, trace)

    async def _reserve(self, request: HoldRequest, trace: Trace) -> Admitted | Refused:
        """Reserve a hold, and record the time and the verdict in the call's trace."""
        # A call with a late body is first admitted by its head: one span for both.
        span = next((child for child in trace.children if child.name == "reserve"), None)
        if span is None:
            span = Span("reserve", SpanKind.CLIENT, trace.reserve_id, trace.span_id, self.seconds(), 0.0)
            trace.children.append(span)
        span.attributes = {"db.system.name": "redis", "tollkeeper.tokens.estimated": request.need}
        trace.facts = {
            "tollkeeper.organization_id": request.caller.organization_id,
            "tollkeeper.tenant_id": request.caller.tenant_id,
            "tollkeeper.service": request.service.key,
        }
        decision = await self._timed(span, self._counters.reserve(request))
        span.attributes["tollkeeper.verdict"] = decision.verdict.name.lower()
        if isinstance(decision, Admitted):
            span.attributes["tollkeeper.tokens.held"] = decision.held_tokens
        return decision

    async def _settle(self, settlement: Settlement, trace: Trace) -> SettleResult:
        """Settle a hold, and record the time and the amounts in the call's trace."""
        span = Span("settle", SpanKind.CLIENT, trace.settle_id, trace.span_id, self.seconds(), 0.0)
        span.attributes = {
            "db.system.name": "redis",
            "tollkeeper.charged": settlement.charge,
            "tollkeeper.tokens": settlement.tokens,
            "tollkeeper.credits": settlement.credits,
            "tollkeeper.units": settlement.units,
        }
        trace.facts |= _use(settlement.metadata)
        trace.children.append(span)
        settled = await self._timed(span, self._counters.settle(settlement))
        span.error = "" if settled is not SettleResult.UNVERIFIED else "unverified"
        return settled

    async def _timed(self, span: Span, answer: Awaitable[_T]) -> _T:
        span.error = "unanswered"
        try:
            value = await answer
            span.error = ""
            return value
        finally:
            span.ended = self.seconds()


def _use(metadata: bytes) -> dict[str, Value]:
    """Return the models and tokens of a call as attributes with the names of OpenTelemetry's conventions.

    `metadata` has the facts about the call as JSON; without facts the result is empty.
    """
    told = read_facts(metadata)
    if told is None:
        return {}
    plain, cache_read, cache_write, cache_write_1h, output, reasoning = told.counts[:6]
    facts: dict[str, Value] = {"tollkeeper.streamed": told.streamed, "tollkeeper.estimated": told.estimated}
    if told.model or any(told.counts):
        facts["gen_ai.usage.input_tokens"] = plain + cache_read + cache_write + cache_write_1h
        facts["gen_ai.usage.output_tokens"] = output
    parts = {
        "gen_ai.usage.cache_read.input_tokens": cache_read,
        "gen_ai.usage.cache_creation.input_tokens": cache_write + cache_write_1h,
        "gen_ai.usage.reasoning.output_tokens": reasoning,
    }
    facts |= {name: count for name, count in parts.items() if count}
    if told.streamed and told.first_token_ms is not None:
        facts["gen_ai.response.time_to_first_chunk"] = told.first_token_ms / 1000
    # The model of a failed call is shown only if the price book has it: otherwise the caller invented the
    # name.
    if told.model and (200 <= told.status < 300 or told.price_id):
        facts["gen_ai.request.model"] = told.model[:MODEL_CHARACTERS_MAX]
        if told.response_model:
            facts["gen_ai.response.model"] = told.response_model
    return facts


def _spans(exchange: Exchange, trace: Trace, now: float) -> list[Span]:
    """Return the span of a request and its children, in the order of their start."""
    routed, status, reason = exchange.head.routed, exchange.status, exchange.reason
    method = routed.method.decode("ascii", "replace") or "HTTP"
    attributes: dict[str, Value] = {
        "http.request.method": method,
        "http.route": routed.label,
        "http.response.status_code": status,
        "tollkeeper.request_id": exchange.request_id,
    }
    attributes |= _kind_of(routed.route)
    attributes |= trace.facts
    if reason:
        attributes["tollkeeper.reason"] = reason
    request = Span(
        f"{method} {routed.label}", SpanKind.SERVER, trace.span_id, trace.parent_id, exchange.started, now,
        attributes,
    )  # fmt: skip
    # A server's span is an error if the server failed, not if it refused (HTTP conventions).
    if status >= 500 or exchange.broken:
        request.error = reason or str(status)
    spans = [request, *trace.children]
    attempt = exchange.attempt
    if attempt.started_s:
        upstream = exchange.worker.upstreams.get(attempt.name)
        spans.append(_upstream_span(attempt, upstream, request, trace))
    spans.sort(key=lambda span: span.started)
    return spans


def _kind_of(route: Route | None) -> dict[str, Value]:
    """Return the operation and API provider of a call to a model; empty for other calls."""
    meter = "" if route is None else route.meter
    if meter not in SHAPES or not OF_METER[meter].provider:
        return {}
    return {
        "gen_ai.operation.name": SHAPES[meter].operation,
        "gen_ai.provider.name": OF_METER[meter].provider,
    }


def _upstream_span(attempt: Attempt, upstream: Upstream | None, request: Span, trace: Trace) -> Span:
    """Return the span of a request's time at upstreams; `upstream` was the last one."""
    ended, method = attempt.ended, request.attributes["http.request.method"]
    settled = [span.started for span in trace.children if span.span_id == trace.settle_id]
    span = Span(
        "upstream", SpanKind.CLIENT, trace.upstream_id, trace.span_id, attempt.started_s,
        ended or min([request.ended, *settled]),
        {"http.request.method": method, "tollkeeper.upstream": attempt.name},
    )  # fmt: skip
    if attempt.failed_before:
        span.attributes["tollkeeper.passed_over"] = " ".join([name for name, _ in attempt.failed_before])
    if upstream is not None:
        address = urlsplit(upstream.target.base_url)
        span.attributes["server.address"] = address.hostname or ""
        span.attributes["server.port"] = address.port or (443 if address.scheme == "https" else 80)
    if ended:
        span.attributes["http.response.status_code"] = attempt.status
    if not ended or attempt.status >= 400:
        span.error = str(request.attributes.get("tollkeeper.reason") or attempt.status)
    return span
