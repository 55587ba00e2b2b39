"""What an upstream is sent of a request: whole where it is here or may be small, else as it comes."""

from __future__ import annotations

from gateway.core.call import Call
from gateway.http.exchange import ClientGone, Exchange
from gateway.http.limits import HttpLimits
from gateway.http.link import Link
from gateway.http.plan import with_coding


def is_collected(exchange: Exchange, limits: HttpLimits) -> bool:
    """Whether a body that is not here yet may be small: whoever sends it cannot leave half a request then."""
    plan, length = exchange.plan, exchange.body_length
    return not plan.buffered and (length is None or length <= limits.collected_bytes_max)


def send(exchange: Exchange, link: Link, call: Call) -> None:
    """Send the request in one write; a body that is still arriving follows by itself."""
    if exchange.gone:  # while connecting: nothing was asked for yet
        raise ClientGone
    plan, connection = exchange.plan, exchange.connection
    opening = with_coding(plan.opening, b"identity") if call.strip_usage else plan.opening
    if exchange.trace is not None:
        opening += exchange.trace.line
    opening = b"%bx-request-id: %b\r\n" % (opening, exchange.request_id.encode())
    head_only = plan.method == b"HEAD"
    if plan.buffered:
        link.ask(opening, call.take_body(), False)
    elif connection.body_complete:
        body = connection.body()
        framed = body or exchange.body_length is not None or plan.chunked
        link.ask(opening, body if framed else None, head_only)
    else:
        link.ask_in_parts(
            opening, None if plan.chunked else exchange.body_length, connection.body(), head_only
        )
        exchange.invite_body()
        connection.stream_body(link)
    exchange.forwarded = link.failure is None
