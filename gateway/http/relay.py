"""The answer on its way to the client: through the meter, at the client's speed, its end held back.

Nobody has a complete answer before it is charged: the last bytes, or the frame that says they
were the last, wait for the settlement. A whole JSON document is held back up to a bound, so
that an upstream that breaks off is a clean 502; a stream passes as it comes, and its closing
event waits with the end.
"""

from __future__ import annotations

from gateway.core.call import Call
from gateway.core.limits import limit_headers
from gateway.core.meter import AnswerMeter, make_meter
from gateway.errors import CountersUnavailable, Refusal
from gateway.http.answer import AnswerHead
from gateway.http.charge import Charge
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.framing import LAST_CHUNK, chunk
from gateway.http.limits import HttpLimits
from gateway.http.link import Link
from gateway.http.ports import Ports
from gateway.http.reply import answer_head
from gateway.http.routes import UNREAD_METERS

_CLOSING_EVENTS = {
    "openai_chat": (b"data: [DONE]",),
    "openai_completions": (b"data: [DONE]",),
    "openai_responses": (b"response.completed", b"response.incomplete", b"response.failed"),
    "anthropic_messages": (b"message_stop",),
}
_NO_BODY = frozenset({204, 304})


class AnswerCut(Exception):
    """The answer cannot be completed and its beginning is sent: the connection must break."""


class Outlet:
    """Write one answer: head and first bytes in one write, framed as upstream and client allow."""

    __slots__ = ("_bare", "_chunked", "_exchange", "_head", "opened")

    def __init__(self, exchange: Exchange, answer: AnswerHead, call: Call, charge: Charge | None) -> None:
        plan = exchange.plan
        length = None if call.strip_usage else answer.length
        self._exchange = exchange
        self._chunked = self.opened = False
        self._bare = plan.method == b"HEAD" or answer.status in _NO_BODY
        framing = b""
        exchange.decide_keep_alive()
        if self._bare:
            if length is not None and answer.status != 204:
                framing = b"content-length: %d" % length
        elif length is not None:
            framing = b"content-length: %d" % length
        elif plan.minor == 1:
            self._chunked = True
            framing = b"transfer-encoding: chunked"
        else:
            exchange.until_close = True
            exchange.keep_alive = False
        limits = limit_headers(charge.decision) if charge is not None else []
        self._head = answer_head(exchange, answer, limits, framing)

    def write(self, data: bytes) -> None:
        """Send bytes of the body, the head in front of the first ones."""
        if data and self._chunked:
            data = chunk(data)
        self._send(data)

    def end(self, data: bytes) -> None:
        """Send the last bytes of the body and say that they were the last."""
        if self._chunked:
            data = chunk(data) + LAST_CHUNK if data else LAST_CHUNK
        self._send(data)

    def _send(self, data: bytes) -> None:
        if self._bare:
            data = b""
        if not self.opened:
            self.opened = self._exchange.opened = True
            data = self._head + data
        if data:
            self._exchange.write(data)


async def relay(
    exchange: Exchange,
    ports: Ports,
    limits: HttpLimits,
    link: Link,
    answer: AnswerHead,
    call: Call,
    charge: Charge | None,
) -> None:
    """Bring an answer to the client and settle it before its end.

    Raises `AnswerCut` where the client must not take what it has for complete, `ClientGone`
    where there is no client any more, or a `Refusal` where nothing was sent yet.
    """
    exchange.status = answer.status
    meter = make_meter(
        call,
        answer.status,
        answer.content_type,
        answer.content_encoding,
        usage_amount=answer.usage_amount,
    )
    outlet = Outlet(exchange, answer, call, charge)
    if charge is not None:
        charge.meter = meter
    try:
        tail = await _pass(exchange, limits, link, call, meter, outlet)
    except (Refusal, ClientGone) as failure:
        exchange.ended_upstream = ports.seconds()
        if charge is not None:
            await charge.settle(answer.status, False)
        if outlet.opened and isinstance(failure, Refusal):
            raise AnswerCut(failure.message) from failure
        raise
    exchange.ended_upstream = ports.seconds()
    if charge is None:
        outlet.end(tail)
    elif charge.settles_after_reply:
        outlet.end(tail)
        await charge.settle(answer.status, True)
    elif await charge.settle(answer.status, True):
        outlet.end(tail)
    elif outlet.opened:
        raise AnswerCut("the settlement was not acknowledged")
    else:
        raise CountersUnavailable(retry_after_s=1)


async def _pass(
    exchange: Exchange, limits: HttpLimits, link: Link, call: Call, meter: AnswerMeter, outlet: Outlet
) -> bytes:
    """Pass the body on as it comes; what is left of it at its end. Raises what broke it off."""
    held_max = 0 if call.streamed or call.meter in UNREAD_METERS else limits.answer_held_bytes_max
    held = b""
    drained_max = 0
    while True:
        data = link.take()
        passed = meter.feed(data) if data else b""
        if link.complete:
            passed += meter.finish()
            return held + passed if held else passed
        if link.failure is not None:
            raise link.failure
        closes = call.streamed and _closes(call, passed)
        if held:
            passed = held + passed
        if closes or len(passed) < held_max:
            held = passed
        else:
            held, held_max = b"", 0
            if passed or not outlet.opened:
                outlet.write(passed)
        if exchange.observed is not None and call.streamed:
            exchange.observed.tokens = meter.observed()
        if exchange.gone:
            seen = meter.observed() if call.streamed else 0
            drained_max = drained_max or seen + limits.drain_tokens_max
            if seen > drained_max:
                raise ClientGone
        elif exchange.blocked:
            await exchange.writable()
        await link.more()


def _closes(call: Call, passed: bytes) -> bool:
    """Whether these bytes hold the event by which a client knows that a stream is over."""
    for event in _CLOSING_EVENTS.get(call.meter, ()):
        if event in passed:
            return True
    return False
