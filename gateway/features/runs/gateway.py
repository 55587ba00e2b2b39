"""Runs by the API: a caller reads one, or ends it."""

from __future__ import annotations

from gateway.http.admission import cached_caller, identify
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def run(exchange: Exchange) -> None:
    """Answer with a run of the caller's tenant, or end the run, without a charge."""
    caller = cached_caller(exchange) or await identify(exchange)
    runs, id_ = exchange.worker.ports.runs, exchange.head.routed.params["id"]
    if exchange.head.routed.method == b"DELETE":
        await runs.end(caller, id_)
        own_answer(exchange, 204, [], b"")
    else:
        own_answer(exchange, 200, _JSON, await runs.tell(caller, id_))
