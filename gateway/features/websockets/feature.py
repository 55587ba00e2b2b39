"""WebSockets of the Responses, Realtime and Live APIs."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from gateway.features.record import Feature

if TYPE_CHECKING:
    from gateway.http.server.exchange import Exchange


def open_socket(exchange: Exchange) -> Coroutine[Any, Any, None]:
    """Serve a client that asks for a WebSocket, as its route says."""
    from gateway.features.websockets import session, sockets  # heavy: few clients want one
    from gateway.http.routing.routes import is_live  # of gateways alone

    return (session.open_live if is_live(exchange.head.routed.route) else sockets.open_socket)(exchange)


FEATURE = Feature(name="websockets", ports=lambda _: {"open_socket": open_socket})
