"""What the journal is told of a call that was refused: facts on their way, which nothing waits for."""

from __future__ import annotations

from gateway.core.accounts.refusals import RefusedCall
from gateway.core.model import Caller
from gateway.errors import InternalError, Refusal
from gateway.http.routing.routes import USAGE_PATH
from gateway.http.server.exchange import Exchange


def note_refused(exchange: Exchange, caller: Caller, failure: BaseException) -> None:
    """Count a call of somebody known that was never admitted, and tell of it.

    One that was admitted tells of itself by its settlement.
    """
    charge, head, routed, call = exchange.charge, exchange.head, exchange.routed, exchange.call
    if (charge is not None and charge.charges) or routed.label == USAGE_PATH:
        return
    ports = exchange.worker.ports
    refusal = failure if isinstance(failure, Refusal) else InternalError()
    service = ports.directory.service(routed.service_key)
    ports.refusals.note(
        RefusedCall(
            exchange.request_id,
            ports.refusals.now_ms(),
            caller.organization_id,
            caller.tenant_id,
            caller.key_id,
            0 if service is None else service.id,
            caller.acts_for(head.attribution.user, "" if call is None else call.user),
            head.said.columns,
            head.attribution.session,
            routed.label,
            "" if call is None else call.model,
            call is not None and call.streamed,
            refusal.status,
            refusal.reason,
            int((ports.seconds() - exchange.started) * 1000),
        )
    )
