"""Which fields pass, in both directions; ours are added last, so nothing can shadow them.

RFC 9110, 7.6.1: hop-by-hop fields and those that `Connection` nominates end here. Credentials,
forwarded fields and everything of ours never passes to an upstream; an upstream's own limits
and ids never pass to a client as if they were ours.
"""

from __future__ import annotations

from enum import IntEnum

from gateway.core.model import UpstreamTarget
from gateway.http.identity import CREDENTIAL_FIELDS
from gateway.http.request import RequestHead

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
_NOT_FORWARDED = (
    HOP_BY_HOP
    | CREDENTIAL_FIELDS
    | frozenset(
        b"host content-length expect x-request-id forwarded x-real-ip x-client-ip client-ip true-client-ip "
        b"cf-connecting-ip x-cluster-client-ip x-original-url x-rewrite-url x-http-method-override "
        b"x-original-host via".split()
    )
)
_NOT_FORWARDED_PREFIXES = (b"x-tollkeeper-", b"x-forwarded-")
_NOT_RETURNED = HOP_BY_HOP | frozenset({b"ratelimit", b"ratelimit-policy", b"x-upstream-request-id"})
_NOT_RETURNED_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-", b"x-tollkeeper-")
NAMES_MAX = 1024


class Kind(IntEnum):
    """What an answer's field is to a gateway."""

    PASS = 0
    DROP = 1
    CONNECTION = 2
    LENGTH = 3
    CODING = 4
    CONTENT_TYPE = 5
    CONTENT_ENCODING = 6
    REQUEST_ID = 7
    PLAIN_REQUEST_ID = 8
    USAGE_AMOUNT = 9


_KINDS = {
    b"connection": Kind.CONNECTION,
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.CODING,
    b"content-type": Kind.CONTENT_TYPE,
    b"content-encoding": Kind.CONTENT_ENCODING,
    b"x-request-id": Kind.REQUEST_ID,
    b"request-id": Kind.PLAIN_REQUEST_ID,
    b"x-usage-amount": Kind.USAGE_AMOUNT,
}
_known: dict[bytes, Kind] = {}


def forwarded_lines(head: RequestHead, target: UpstreamTarget, without: frozenset[bytes]) -> list[bytes]:
    """The fields of a request that its upstream may see, and the upstream's own behind them.

    `without` are further names that must not pass.
    """
    ours = [(name.lower().encode(), value.encode("latin-1")) for name, value in target.headers]
    dropped = _NOT_FORWARDED | head.nominated | without | {name for name, _ in ours}
    lines = [
        line
        for name, line in zip(head.names, head.lines, strict=True)
        if name not in dropped and not name.startswith(_NOT_FORWARDED_PREFIXES)
    ]
    lines += [b"%b: %b" % field for field in ours]
    return lines


def kind_of(name: bytes) -> Kind:
    """What an answer's field is, by its name as spelled; spellings are remembered, within bounds."""
    kind = _known.get(name)
    if kind is None:
        lower = name.lower()
        kind = _KINDS.get(lower, Kind.PASS)
        if kind is Kind.PASS and (lower in _NOT_RETURNED or lower.startswith(_NOT_RETURNED_PREFIXES)):
            kind = Kind.DROP
        if len(_known) < NAMES_MAX:
            _known[name] = kind
    return kind
