"""What an upstream is sent of a request: whole where it is here or may be small, else as it comes."""

from __future__ import annotations

from gateway.core.calls.call import Call
from gateway.core.http_limits import HttpLimits
from gateway.http.listed import asked_as_json
from gateway.http.server.exchange import ClientGone, Exchange
from gateway.http.upstream.connection import Link

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
