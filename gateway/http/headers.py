"""Which fields pass, in both directions; ours are added last, so nothing can shadow them.

RFC 9110, 7.6.1: hop-by-hop fields and those that `Connection` nominates end here. Credentials,
forwarded fields and everything of ours never passes to an upstream; an upstream's own limits
and ids never pass to a client as if they were ours.
"""

from __future__ import annotations

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


# What an answer's field is to a gateway. Plain numbers: an enumeration costs a lookup a line.
PASS, DROP, CONNECTION, LENGTH, CODING, CONTENT_TYPE, CONTENT_ENCODING = range(7)
REQUEST_ID, PLAIN_REQUEST_ID, USAGE_AMOUNT = range(7, 10)

_KINDS = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"content-type": CONTENT_TYPE,
    b"content-encoding": CONTENT_ENCODING,
    b"x-request-id": REQUEST_ID,
    b"request-id": PLAIN_REQUEST_ID,
    b"x-usage-amount": USAGE_AMOUNT,
}
known_kinds: dict[bytes, int] = {}


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


def kind_of(name: bytes) -> int:
    """What an answer's field is, by its name; each spelling is remembered in `known_kinds`, within bounds."""
    lower = name.lower()
    kind = _KINDS.get(lower, PASS)
    if kind == PASS and (lower in _NOT_RETURNED or lower.startswith(_NOT_RETURNED_PREFIXES)):
        kind = DROP
    if len(known_kinds) < NAMES_MAX:
        known_kinds[name] = kind
    return kind
