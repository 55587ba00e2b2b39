"""THE HOT PATH: one request from its first line to its last byte, as one coroutine.

The steps are awaited in order; a step that ends the call raises, and `given_up` follows. Socket callbacks
drive the coroutine directly (`server/buffers.py`), so steps that never wait are plain functions.
"""

from __future__ import annotations

import msgspec

from gateway.core.families.registry import FAMILIES
from gateway.core.wait import OVER
from gateway.errors import UnknownRoute
from gateway.http.admission import admit, cached_caller, identify
from gateway.http.forward import forward
from gateway.http.refused_substitute import ask_as_asked
from gateway.http.relay import own_answer, relay
from gateway.http.server.exchange import Exchange

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def proxy(exchange: Exchange) -> None:
    """Admit one call, forward it, relay the answer, and charge the use."""
    caller = cached_caller(exchange) or await identify(exchange)
    admitted = await admit(exchange, caller)
    if admitted.call.answer_filter.listing:  # a list of configured models needs no upstream
        await admitted.settle(200, True)
        own_answer(exchange, 200, _JSON, admitted.call.answer_filter.listing)
        return
    if admitted.call.spec.background:
        await exchange.worker.ports.run_later(exchange, admitted)
        return
    answer = await forward(exchange, admitted)
    if admitted.asked_body:
        admitted, answer = await ask_as_asked(exchange, admitted, answer)
    await relay(exchange, admitted, answer)
    await OVER


async def usage(exchange: Exchange) -> None:
    """Answer with the remaining limits of the caller, without a charge."""
    caller = cached_caller(exchange) or await identify(exchange)
    left = await exchange.worker.ports.usage(caller, exchange.head.attribution)
    own_answer(exchange, 200, _JSON, left)


async def resource(exchange: Exchange) -> None:
    """Answer with the metadata of a protected resource (RFC 9728), which name the issuers of tokens.

    The resource is the gateway, or an MCP server to which the gateway forwards.
    """
    worker = exchange.worker
    issuers, path = worker.ports.tokens.issuers, exchange.head.routed.params.get("resource", "")
    route = worker.heads.router.route_of("POST", f"/{path}") if path else None
    if not issuers or (path and (route is None or not FAMILIES[route.family].session_field)):
        raise UnknownRoute
    said = {
        "resource": exchange.origin + (f"/{path}" if path else ""),
        "authorization_servers": issuers,
        "bearer_methods_supported": ("header",),
    }
    own_answer(exchange, 200, _JSON, msgspec.json.encode(said))
