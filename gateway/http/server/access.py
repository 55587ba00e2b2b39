"""What the log says of a request where it says something of each: who called what, and how it went.

Never what was asked or answered, nor a credential. A caller is known by the ids of its tenant and
organization.
"""

from __future__ import annotations

from gateway.http.server.exchange import Exchange


def accessed(exchange: Exchange, took_s: float, upstream_s: float) -> dict[str, object]:
    """The facts of one line, in milliseconds; those of a caller or an upstream where there is one."""
    caller, call, routed = exchange.caller, exchange.call, exchange.routed
    facts: dict[str, object] = {
        "request_id": exchange.request_id,
        "route": routed.label,
        "status": exchange.status,
        "reason": exchange.reason,
        "duration_ms": round(took_s * 1000, 3),
    }
    if caller is not None:
        facts |= {"organization_id": caller.organization_id, "tenant_id": caller.tenant_id}
    if call is not None:
        facts["model"] = call.model
    if upstream_s > 0.0:
        facts |= {"upstream": routed.upstream, "upstream_ms": round(upstream_s * 1000, 3)}
    return facts
