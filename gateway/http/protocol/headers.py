"""Which fields pass, in both directions; ours are added last, so nothing can shadow them.

What a request's fields are stands in `fields.py`, what an answer's are here: an upstream's own
limits and ids never pass to a client as if they were ours. Names that `Connection` nominates
end here in either direction.
"""

from __future__ import annotations

from typing import Final

from gateway.core.calls.route import UpstreamTarget
from gateway.core.families.registry import ALL
from gateway.http.protocol.fields import HOP_BY_HOP
from gateway.http.protocol.remembered import Remembered
from gateway.http.protocol.request import RequestHead

_NOT_RETURNED = HOP_BY_HOP | frozenset({b"ratelimit", b"ratelimit-policy", b"x-upstream-request-id"})
_LIMITS_PREFIXES = tuple({one.limits_prefix for one in ALL})
NAMES_BYTES_MAX = 128 * 1024
NAME_BYTES_MAX = 64


# What an answer's field is to a gateway. Plain numbers: an enumeration costs a lookup a line.
PASS: Final = 0
DROP: Final = 1
CONNECTION: Final = 2
LENGTH: Final = 3
CODING: Final = 4
CONTENT_TYPE: Final = 5
CONTENT_ENCODING: Final = 6
REQUEST_ID: Final = 7
PLAIN_REQUEST_ID: Final = 8
USAGE_AMOUNT: Final = 9
DATE: Final = 10
LIMITS: Final = 11

_KINDS = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"content-type": CONTENT_TYPE,
    b"content-encoding": CONTENT_ENCODING,
    b"x-request-id": REQUEST_ID,
    b"request-id": PLAIN_REQUEST_ID,
    b"x-usage-amount": USAGE_AMOUNT,
    b"date": DATE,
}
_names: Remembered[bytes, int] = Remembered(NAMES_BYTES_MAX, NAME_BYTES_MAX, 1, 192)
known_kinds = _names.known


def forwarded_lines(head: RequestHead, target: UpstreamTarget, withheld: frozenset[bytes]) -> list[bytes]:
    """The fields of a request that its upstream may see, and the upstream's own behind them."""
    ours = {name.lower().encode(): value.encode("latin-1") for name, value in target.headers}
    dropped = head.nominated.union(ours, withheld)
    lines = [line for kind, line in head.fields if kind.passes and kind.lower not in dropped]
    lines += [b"%b: %b" % field for field in ours.items()]
    return lines


def kind_of(name: bytes) -> int:
    """What an answer's field is, by its name; each spelling is remembered in `known_kinds`, within bounds."""
    lower = name.lower()
    kind = _KINDS.get(lower, PASS)
    if kind == PASS and (lower in _NOT_RETURNED or lower.startswith(b"x-tollkeeper-")):
        kind = DROP
    elif kind == PASS and lower.startswith(_LIMITS_PREFIXES):
        kind = LIMITS
    _names.keep(name, kind)
    return kind
