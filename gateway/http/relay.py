"""The answer on its way to the client: through the meter, at the client's speed, its end held back.

Nobody has a complete answer before it is charged: what shows its end waits in the meter, with all
that comes behind it, for the settlement. A whole JSON document is held back up to a bound, so that an
upstream that breaks off is a clean 502; a stream passes event by event.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.call import Call
from gateway.core.circuit_breaker import EVERYBODY, wait_told
from gateway.core.families.family import TOLD_MAX
from gateway.core.families.refusal import RETRY_HELPS_S, render
from gateway.core.http_limits import HttpLimits
from gateway.core.metering.meter import OPEN
from gateway.core.metering.meters import AnswerMeter
from gateway.core.model import Caller, Decision
from gateway.errors import QuotaExceeded, Refusal, UpstreamLimited, UpstreamUnreachable
from gateway.http.admission import asked_as_json
from gateway.http.charge import Charge
from gateway.http.protocol.answer import NO_BODY, AnswerHead
from gateway.http.protocol.framing import LAST_CHUNK, chunk
from gateway.http.reply import answer_head
from gateway.http.server.exchange import ClientGone, Exchange, Worker
from gateway.http.upstream.pool import Link, Upstream


class Outlet:
    """Write one answer: head and first bytes in one write, framed as upstream and client allow."""

    __slots__ = ("_bare", "_chunked", "_exchange", "_head", "_meter")

    def __init__(
        self,
        exchange: Exchange,
        answer: AnswerHead,
        decision: Decision | None,
        altered: bool,
        meter: AnswerMeter,
    ) -> None:
        self._meter = meter
        routed = exchange.routed
        length = None if altered else answer.length
        self._exchange = exchange
        self._chunked = False
        self._bare = routed.method == b"HEAD" or answer.status in NO_BODY
        keep_alive = exchange.decide_keep_alive()
        if length is not None:
            framing = b"content-length: %d" % length if answer.status != 204 else b""
        elif self._bare:
            framing = b""
        elif routed.minor == 1:
            self._chunked = True
            framing = b"transfer-encoding: chunked"
        else:
            framing = b""
            exchange.until_close = True
            exchange.keep_alive = keep_alive = False
        self._head = answer_head(exchange, answer, decision, framing, keep_alive)

    def write(self, data: bytes) -> None:
        """Send bytes of the body, the head in front of the first ones."""
        self._send(chunk(data) if data and self._chunked else data)

    def end(self, data: bytes) -> None:
        """Send the last bytes of the body and say that they were the last."""
        if self._chunked:
            data = chunk(data) + LAST_CHUNK if data else LAST_CHUNK
        self._send(data)

    def fail(self, refusal: Refusal) -> bool:
        """End an answer that is begun by saying why in its own shape; False where that cannot be said."""
        exchange = self._exchange
        if exchange.gone or self._bare or not (self._chunked or exchange.until_close):
            return False
        _, body = render(refusal, exchange.routed.family, exchange.request_id)
        said = self._meter.fail(body)
        if said:
            self.end(said)
        return bool(said)

    def _send(self, data: bytes) -> None:
        if self._bare:
            data = b""
        exchange = self._exchange
        if not exchange.opened:
            exchange.write(self._head + data)
        elif data:
            exchange.write(data)


async def relay_body(  # noqa: PLR0917  # everything an answer passes through
    exchange: Exchange, caller: Caller, link: Link, charge: Charge, meter: AnswerMeter, outlet: Outlet
) -> bytes:
    """Pass the body on as it comes; give back what is left of it at its end. Raises what broke it off.

    A stream that has used up its hold has it extended; where nothing is left and the plan says
    so, the stream is ended here, well-formed where it can be, and the rest of the upstream's is not read.
    """
    worker, call = exchange.worker, charge.call
    limits = worker.limits
    is_read = call.narrow is not None or call.units_pointer or call.meter not in UNREAD_METERS
    passes = call.streamed or not is_read
    held_max = 0 if passes else limits.answer_held_bytes_max
    counted_from = limits.answer_uncounted_bytes_max
    held = b""
    drained, tokens_max = 0, -1
    while True:
        data, complete = link.take_payload(), link.complete
        passed = _metered(worker, caller, call, meter, data)
        if meter.behind:
            passed += await _caught_up(worker, caller, call, link, meter)
        if complete:
            passed += meter.finish()
            return (
                held + passed + (await _caught_up(worker, caller, call, link, meter) if meter.behind else b"")
            )
        _check_unbroken(link, meter)
        passed = held + passed
        if len(passed) < held_max:
            held = passed
        else:
            held, held_max = b"", 0
            outlet.write(passed)
        if call.streamed and meter.phase == OPEN and not charge.covers(meter.observed()):
            return _ended_here(meter)
        size, data, passed = len(data), b"", b""  # while it waits it has this only once: as it is written
        kept = meter.kept + len(held)
        if kept > counted_from or exchange.connection.blocked:
            counted_from = -1  # from now on
            if not exchange.connection.keep_untaken(kept):  # memory is short
                meter.slim()
                held_max = 0
        if exchange.gone:
            drained += size
            tokens = meter.observed() if call.streamed else 0
            tokens_max = tokens_max if tokens_max >= 0 else tokens + limits.drain_tokens_max
            if meter.known or drained > limits.drain_bytes_max or tokens > tokens_max:
                raise ClientGone  # reading on is in vain, or was enough
        elif exchange.connection.blocked:
            link.hold()
            await exchange.connection.writable()
            link.go_on()
        await link.arrival()


def _check_unbroken(link: Link, meter: AnswerMeter) -> None:
    if link.failure is not None:
        raise link.failure
    if meter.surplus:
        meter.finish()  # it is complete, and so is its report
        raise UpstreamUnreachable("The upstream's answer continues after its end.")


def _ended_here(meter: AnswerMeter) -> bytes:
    end = meter.cut()
    if not end:
        raise QuotaExceeded("What covered this answer is used up.")
    return end


async def _caught_up(worker: Worker, caller: Caller, call: Call, link: Link, meter: AnswerMeter) -> bytes:
    """A little that came may be much to read: others have their turns meanwhile."""
    passed: list[bytes] = []
    while meter.behind:
        await link.next_turn()
        passed.append(_metered(worker, caller, call, meter, b""))
    return b"".join(passed)


def _metered(worker: Worker, caller: Caller, call: Call, meter: AnswerMeter, data: bytes) -> bytes:
    """What of the data may pass; objects that it names are the caller's from now on."""
    passed = meter.feed(data) if data or meter.behind else b""
    if meter.told and (told := take_told(meter, call)):
        worker.ports.objects.keep(caller, told)
    return passed


def take_told(meter: AnswerMeter, call: Call) -> list[str]:
    """The ids of objects that an answer names for the first time, but for what its request brought."""
    told = [one for one in dict.fromkeys(meter.told) if one not in call.brought]
    meter.told.clear()
    if told and len(call.brought) < TOLD_MAX:  # many events name the same
        call.brought |= frozenset(told)
    return told


# An upstream's own limits: what it says of them when it refuses, and which calls are refused for it then.
#
# They are of the account that all callers share: where one of them is told that a limit is spent, all wait.


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


# What an upstream is sent of a request: whole where it is here or may be small, else as it comes.


JOINED_BYTES_MAX = 64 * 1024  # a longer body is not copied after its head: that takes a millisecond a MiB


def is_collected(exchange: Exchange, limits: HttpLimits) -> bool:
    """Whether a body is waited for that may be small: whoever sends it cannot leave half a request then."""
    if exchange.routed.buffered or exchange.connection.body_complete:
        return False
    length = exchange.body_length
    return length is None or length <= limits.collected_bytes_max


def send_request(exchange: Exchange, link: Link, call: Call) -> None:
    """Send the request in one write; a body that is still arriving follows by itself."""
    if exchange.gone:  # while connecting: nothing was asked for yet
        raise ClientGone
    routed, connection = exchange.routed, exchange.connection
    closing = routed.closing_plain if call.strip_usage else routed.closing
    if exchange.trace is not None:
        closing += exchange.trace.line
    beginning, passed = routed.opening, exchange.head.passed
    if call.narrow is not None:
        beginning, passed = asked_as_json(beginning, passed)
    parts = (
        beginning,
        passed,
        closing,
        b"x-request-id: ",
        exchange.request_id.encode(),
        b"\r\n",
    )
    opening = b"".join(parts)
    side, head_only = link.side, routed.method == b"HEAD"
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
        link.begin_request(side.ask(opening, body if framed else None, head_only))
    else:
        length = None if routed.chunked else exchange.body_length
        link.begin_request(side.ask_in_parts(opening, length, connection.body.take_parts(), head_only))
        exchange.invite_body()
        connection.stream_body(link)
    exchange.forwarded = link.failure is None
