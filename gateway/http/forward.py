"""A call on its way to its upstream: what that is sent, and what it says of its own limits.

Those limits are of the account that all callers share: where one of them is told that a limit is spent, all
wait.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.core.calls.call import CallRequest
from gateway.core.circuit_breaker import EVERYBODY, wait_hint
from gateway.core.families.refusal import RETRY_HELPS_S
from gateway.core.metering.meters import make_meter
from gateway.core.model import Caller
from gateway.errors import UpstreamLimited, UpstreamUnreachable
from gateway.http.charge import AdmittedCall
from gateway.http.protocol.answer import LIMITED, AnswerHead
from gateway.http.server.exchange import ClientGone, Exchange
from gateway.http.upstream.pool import Upstream

# A longer body is not copied after its head: that takes a millisecond a MiB.
JOINED_BYTES_MAX: Final = 64 * 1024
# A query may ask for another form of an answer than JSON by this.
_FORM: Final = b"alt"
_ACCEPT: Final = b"accept:"


async def forward(exchange: Exchange, admitted: AdmittedCall) -> AnswerHead:
    """Ask the upstream, until the head of its answer is here; where that fails the hold is still due."""
    worker, routed, connection, call = exchange.worker, exchange.routed, exchange.connection, admitted.call
    opening = _opening(exchange, call)
    if not routed.buffered:
        await exchange.small_body(worker.limits.collected_bytes_max)
    if exchange.gone:
        raise ClientGone
    if exchange.body_failure is not None:
        raise exchange.body_failure
    upstream = worker.upstreams.get(routed.upstream)
    if upstream is None:
        raise UpstreamUnreachable(f"No upstream {routed.upstream} is configured.")
    upstream.admit(admitted.caller.organization_id)
    exchange.upstream = upstream
    exchange.began_upstream = worker.ports.seconds()
    link = exchange.link = upstream.idle() or await upstream.connect()
    if exchange.gone:  # while connecting: nothing was asked for yet
        raise ClientGone
    side = link.side
    if routed.buffered:
        body = call.take_body()
        if len(body) <= JOINED_BYTES_MAX:
            link.begin_request(side.ask(opening, body, False))
        else:
            link.begin_request(side.ask_in_parts(opening, len(body), b"", False))
            link.send_part(body)
            link.end_request()
    elif connection.body_complete:
        body = connection.body.take_parts()
        framed = body or exchange.body_length is not None or routed.chunked
        link.begin_request(side.ask(opening, body if framed else None, routed.method == b"HEAD"))
    else:  # what is still arriving follows by itself
        length = None if routed.chunked else exchange.body_length
        parts = connection.body.take_parts()
        link.begin_request(side.ask_in_parts(opening, length, parts, routed.method == b"HEAD"))
        exchange.invite_body()
        connection.stream_body(link)
    exchange.forwarded = link.failure is None
    while link.answer is None and link.failure is None:
        await link.arrival()
    answer = link.answer
    if answer is None:
        raise link.failure or UpstreamUnreachable()
    connection.body.let_go()  # the answer shows that the request was read
    exchange.status = answer.status
    if answer.status in LIMITED:  # it is left alone for as long as the head of its answer says
        tokens = call.input_estimate + (call.output_max or 0) * call.choices
        wait_s, spent = wait_hint(answer.lines[1:], tokens, worker.ports.refusals.now_ms() / 1000)
        leave_alone(exchange, call, answer, wait_s, spent)
    admitted.upstream_id = answer.request_id or answer.plain_request_id
    admitted.meter = make_meter(
        call,
        answer.status,
        answer.content_type,
        answer.content_encoding,
        worker.bounds,
        usage_amount=answer.usage_amount,
    )
    return answer


def _opening(exchange: Exchange, call: CallRequest) -> bytes:
    """The head of the upstream's request, but for its framing."""
    routed = exchange.routed
    closing = routed.closing_plain if call.strip_usage else routed.closing
    if exchange.trace is not None:
        closing += exchange.trace.line
    beginning, passed = routed.opening, exchange.head.passed
    if call.narrow is not None:
        beginning, passed = _json_opening(beginning, passed)
    return b"".join((beginning, passed, closing, b"x-request-id: ", exchange.request_id.encode(), b"\r\n"))


def _json_opening(opening: bytes, passed: bytes) -> tuple[bytes, bytes]:
    """How an upstream's request begins, and the lines that pass, so that its answer can be looked through."""
    line, end, rest = opening.partition(b"\r\n")
    method, target, minor = line.split(b" ")
    path, _, query = target.partition(b"?")
    query = b"&".join([pair for pair in re.split(rb"[&;]", query) if pair and not _is_form(pair)])
    line = b" ".join((method, path + b"?" + query if query else path, minor))
    lines = [one for one in passed.splitlines(keepends=True) if not one.lower().startswith(_ACCEPT)]
    return line + end + rest, b"".join((*lines, _ACCEPT, b" application/json\r\n"))


def _is_form(pair: bytes) -> bool:
    name = pair.partition(b"=")[0].replace(b"+", b" ")
    return unquote_to_bytes(name).strip().lower() == _FORM


# An upstream's own limits: which calls are refused for what it said of them.
def check_circuit(exchange: Exchange, caller: Caller, call: CallRequest) -> None:
    """`UpstreamLimited` where a call may not be sent now."""
    worker = exchange.worker
    ports, upstream = worker.ports, worker.upstreams.get(exchange.routed.upstream)
    if upstream is None:
        return
    now = ports.seconds()
    kind, name = _asked(exchange, call)
    one = ports.cooling.of(_entry(upstream, kind, name), now)
    if one is None or not one.concerns(caller.organization_id):
        return
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
    raise refusal


def leave_alone(
    exchange: Exchange, call: CallRequest, answer: AnswerHead, wait_s: float, spent: bool = False
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


def _asked(exchange: Exchange, call: CallRequest) -> tuple[str, str]:
    """The account's request: a model, else a service, else a free route."""
    routed = exchange.routed
    if not routed.metered:
        return "path", routed.label
    return ("model", call.model) if call.model else ("service", routed.service_key)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")
