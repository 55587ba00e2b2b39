"""An upstream's own limits: what it says of them when it refuses, and which calls are refused for it then.

They are of the account that all callers share: where one of them is told that a limit is spent, all wait.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from gateway.core.calls.call import Call
from gateway.core.families.refusal import RETRY_HELPS_S
from gateway.core.model import Caller
from gateway.core.upstreams.cooling import EVERYBODY
from gateway.core.upstreams.limits_told import wait_told
from gateway.errors import Refusal, UpstreamLimited
from gateway.http.protocol.answer import AnswerHead
from gateway.http.server.exchange import Exchange
from gateway.http.upstream.pool import Upstream


def left_alone(exchange: Exchange, caller: Caller, call: Call) -> Refusal | None:
    """Why this call may not be sent now; None where its upstream may be asked."""
    worker = exchange.worker
    ports, upstream = worker.ports, worker.upstreams.get(exchange.routed.upstream)
    if upstream is None:
        return None
    now = ports.seconds()
    kind, name = _asked(exchange, call)
    one = ports.cooling.of(_entry(upstream, kind, name), now)
    if one is None or not one.concerns(caller.organization_id):
        return None
    ports.tally.cooled_calls[upstream.name] += 1
    wait_s = max(1, math.ceil(one.until - now))
    until = datetime.fromtimestamp(ports.refusals.now_ms() // 1000 + wait_s, UTC)
    refusal = UpstreamLimited(
        f"Limit of the upstream {upstream.name}: it takes no calls of the {kind} {name} "
        f"until {until:%Y-%m-%dT%H:%M:%SZ}. Try again in {wait_s} s.",
        retry_after_s=wait_s,
        retry_helps=one.told_until - now <= RETRY_HELPS_S,
    )
    refusal.fields = tuple(_field(line) for line in one.fields)
    return refusal


def note_limits(exchange: Exchange, call: Call, answer: AnswerHead) -> None:
    """Have an upstream that refused be left alone for as long as the head of its answer says."""
    tokens = call.input_estimate + (call.output_max or 0) * call.choices
    now_s = exchange.worker.ports.refusals.now_ms() / 1000
    wait_s, spent = wait_told(answer.lines[1:], tokens, now_s)
    leave_alone(exchange, call, answer, wait_s, spent)


def leave_alone(
    exchange: Exchange, call: Call, answer: AnswerHead, wait_s: float, spent: bool = False
) -> None:
    """Have the upstream of a call that it refused be left alone for so long, within the maximum.

    By all where a limit is `spent`, else by the caller's organization.
    """
    upstream, caller, ports = exchange.upstream, exchange.caller, exchange.worker.ports
    if upstream is None or caller is None or upstream.target.limits != "account":
        return
    entry, whose = _entry(upstream, *_asked(exchange, call)), EVERYBODY if spent else caller.organization_id
    more_s = ports.cooling.begin(entry, wait_s, answer.limits, ports.seconds(), whose)
    if more_s:
        ports.tally.cooling_seconds[upstream.name] += more_s
        ports.log(
            "upstream_limited",
            request_id=exchange.request_id,
            upstream=upstream.name,
            route=exchange.routed.label,
            status=answer.status,
            seconds=round(more_s, 3),
        )


def _entry(upstream: Upstream, kind: str, name: str) -> str:
    return f"{upstream.account} {kind} {name}"


def _asked(exchange: Exchange, call: Call) -> tuple[str, str]:
    """What is asked of the account: a model, else a service, else what is free."""
    routed = exchange.routed
    if not routed.metered:
        return "path", routed.label
    return ("model", call.model) if call.model else ("service", routed.service_key)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")
