"""Workloads known by the certificate of their connection, such as one with a SPIFFE id: whose key they use.

Sources: SPIFFE's X.509-SVID (the one URI of a certificate is the id); RFC 5280, 4.2.1.6. The certificate was
verified in the handshake, by the authorities that settings name.
"""

from __future__ import annotations

from gateway.core.certificate import WORKLOAD
from gateway.errors import InvalidApiKey, Refusal
from gateway.http.routing.call_head import CallHead, Proof
from gateway.http.server.exchange import Exchange


def by_certificate(exchange: Exchange, refusal: Refusal) -> CallHead:
    """The head of a call that carries no key, with that of its workload; else the refusal it has earned."""
    head, keys = exchange.head, exchange.worker.workloads
    if not keys or head.routed.query_refusal is not None or not _is_missing(refusal):
        raise refusal
    digests = keys.get(exchange.connection.transport.get_extra_info(WORKLOAD) or "")
    if digests is None:
        raise refusal
    call = CallHead(head.routed, Proof(digests[0], others=digests[1:]), head.said)
    call.attribution, call.parent = head.attribution, head.parent
    call.passed, call.source, call.cors = head.passed, head.source, head.cors
    return call


def _is_missing(refusal: Refusal) -> bool:
    return isinstance(refusal, InvalidApiKey) and refusal.failure == "missing"
