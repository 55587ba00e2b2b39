"""The hold of one call and what becomes of it: charged once, or released.

Everything a settlement says is put together here. Whoever holds a `Charge` ends it with
exactly one `settle` or `release`; neither is ever interrupted, both are bounded in time.
"""

from __future__ import annotations

import json

from gateway.core.call import Call
from gateway.core.meter import AnswerMeter
from gateway.core.model import (
    Caller,
    Decision,
    HoldRequest,
    Observed,
    Service,
    Settled,
    Settlement,
    Usage,
    Verdict,
)
from gateway.core.refusal import from_decision
from gateway.errors import CountersUnavailable
from gateway.http.exchange import Exchange
from gateway.http.ports import Ports

MODELS_MAX = 1024
_quoted: dict[str, str] = {}


class Charge:
    """A hold that was taken. `usage` is what was charged, once it is settled."""

    __slots__ = ("_call", "_caller", "_exchange", "_ports", "_service", "_user", "decision", "meter", "usage")

    def __init__(
        self,
        exchange: Exchange,
        ports: Ports,
        caller: Caller,
        service: Service,
        call: Call,
        user: str,
        decision: Decision,
    ) -> None:
        self._exchange = exchange
        self._ports = ports
        self._caller = caller
        self._service = service
        self._call = call
        self._user = user
        self.decision = decision
        self.meter: AnswerMeter | None = None
        self.usage: Usage | None = None

    @property
    def settles_after_reply(self) -> bool:
        """Whether the route lets a client have its whole answer before it is charged."""
        route = self._exchange.plan.route
        return route is not None and route.settle == "after_reply"

    async def settle(self, status: int, complete: bool) -> bool:
        """Replace the hold by what the meter saw; whether that is acknowledged."""
        meter, exchange, service = self.meter, self._exchange, self._service
        usage = meter.usage() if meter is not None else Usage(units=0)
        if not usage.units and not usage.total:
            await self.release()
            return True
        if exchange.plan.units > 1 and not usage.reported:
            usage.units = exchange.plan.units
        self.usage = usage
        settlement = Settlement(
            self._caller,
            exchange.request_id,
            self._user,
            service,
            True,
            usage.total if service.counts_tokens else 0,
            service.credits * usage.units if service.meter == "consumption" else 0,
            usage.units,
            exchange.plan.attribution_text,
            self._metadata(usage, status),
        )
        acknowledged = await self._settle(settlement)
        if acknowledged:
            self._count(usage, complete)
        return acknowledged

    async def release(self) -> None:
        """Give the hold back: nothing was used. If that fails the hold ends by its deadline."""
        await self._settle(
            Settlement(self._caller, self._exchange.request_id, self._user, self._service, False)
        )

    async def _settle(self, settlement: Settlement) -> bool:
        exchange, ports = self._exchange, self._ports
        exchange.charge = None
        if exchange.observed is not None:
            ports.counters.unwatch(exchange.observed)
            exchange.observed = None
        exchange.shield()
        try:
            return await ports.counters.settle(settlement) is not Settled.UNVERIFIED
        except CountersUnavailable:
            ports.tally.settlements_failed += 1
            return False
        finally:
            exchange.unshield()

    def watch(self) -> None:
        """The call lives long: have its hold renewed until it settles."""
        if self._exchange.observed is None:
            observed = Observed(self._caller, self._exchange.request_id, self.decision.held_tokens)
            self._exchange.observed = observed
            self._ports.counters.watch(observed)

    def _metadata(self, usage: Usage, status: int) -> bytes:
        call, exchange = self._call, self._exchange
        model = _quoted.get(call.model) or _quote(call.model)
        duration_ms = int((self._ports.seconds() - exchange.started) * 1000)
        ours = (
            f'{{"model":{model},"streamed":{"true" if call.streamed else "false"},"status":{status},'
            f'"duration_ms":{duration_ms},"input":{usage.input},"output":{usage.output},'
            f'"cached":{usage.cached},"reasoning":{usage.reasoning},'
            f'"estimated":{"true" if usage.estimated else "false"}}}'
        )
        theirs = exchange.plan.attribution.metadata
        if theirs:
            merged = json.loads(theirs) | json.loads(ours)
            return json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode()
        return ours.encode()

    def _count(self, usage: Usage, complete: bool) -> None:
        """Learn from the call and add it to the worker's numbers."""
        tally, service = self._ports.tally, self._service
        if complete:
            self._ports.estimator.learn(self._call, service.key, usage)
        if service.counts_tokens:
            tally.used(service.key, usage.input, usage.output, usage.total)
        tally.units[service.key] = tally.units.get(service.key, 0) + usage.units
        if usage.estimated:
            tally.settlements_estimated += 1


async def reserve(exchange: Exchange, ports: Ports, caller: Caller, service: Service, call: Call) -> Charge:
    """Take a hold on every limit of a call, or raise the `Refusal` that says which one is short."""
    need, ceiling = ports.estimator.hold(call, service.key) if service.counts_tokens else (0, 0)
    user = caller.user or exchange.plan.attribution.user
    units = exchange.plan.units
    request = HoldRequest(
        caller,
        exchange.request_id,
        user,
        service,
        need,
        ceiling,
        service.credits * units if service.meter == "consumption" else 0,
        units,
    )
    exchange.shield()
    try:
        decision = await ports.counters.reserve(request)
    finally:
        exchange.unshield()
    if decision.verdict is not Verdict.ADMITTED:
        raise from_decision(decision)
    exchange.charge = charge = Charge(exchange, ports, caller, service, call, user, decision)
    return charge


def _quote(model: str) -> str:
    quoted = json.dumps(model, ensure_ascii=False)
    if len(_quoted) < MODELS_MAX:
        _quoted[model] = quoted
    return quoted
