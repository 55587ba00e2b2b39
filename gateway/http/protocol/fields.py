"""What a request's field is to a gateway, by its name: whether it passes, and whether it is read here.

RFC 9110, 7.6.1: hop-by-hop fields end here. So do credentials, forwarded fields and everything
of ours. Each spelling of a short name is looked at once and remembered, within bounds: who sends
it is not known yet.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.core.calls.trace import FIELD as TRACE_FIELD
from gateway.core.families.registry import ALL
from gateway.http.protocol.remembered import Remembered

CREDENTIAL_FIELDS = frozenset(name for one in ALL for name in one.credentials)
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
OURS_PREFIX = b"x-tollkeeper-"
# By which clients name the session a call is of, and which their upstreams get too.
SESSION_FIELDS = tuple(one.names_session for one in ALL if one.names_session)
NAMES_BYTES_MAX = 256 * 1024
NAME_BYTES_MAX = 64

_READ_AND_PASSED = frozenset(
    {b"content-type", b"content-encoding", b"accept-encoding", TRACE_FIELD, *SESSION_FIELDS}
) | {one.spoken_by for one in ALL if one.spoken_by}
_READ = CREDENTIAL_FIELDS | frozenset(
    b"connection transfer-encoding upgrade host content-length expect".split()
)
_ENDED = HOP_BY_HOP | frozenset(
    b"x-request-id forwarded x-real-ip x-client-ip client-ip true-client-ip cf-connecting-ip "
    b"x-cluster-client-ip x-original-url x-rewrite-url x-http-method-override x-original-host via".split()
)
# An underscore must not smuggle in a second spelling of a name that decides something.
_CONTROLLED = _READ | _ENDED | frozenset({b"content-type", b"content-encoding"})


class FieldKind(NamedTuple):
    """`lower` is the name as it is compared; `passes` to the upstream; `read` here; `shadows` ours."""

    lower: bytes
    passes: bool
    read: bool
    shadows: bool


_names: Remembered[bytes, FieldKind] = Remembered(NAMES_BYTES_MAX, NAME_BYTES_MAX, 2, 384)
known_fields = _names.known


def field_kind(name: bytes) -> FieldKind:
    """What a field of this name is."""
    lower = name.lower()
    plain = lower.replace(b"_", b"-")
    ours = lower.startswith(OURS_PREFIX)
    ended = lower in _READ or lower in _ENDED or ours or lower.startswith(b"x-forwarded-")
    kind = FieldKind(
        lower,
        passes=not ended,
        read=lower in _READ or lower in _READ_AND_PASSED or ours,
        shadows=plain != lower and (plain in _CONTROLLED or plain.startswith((OURS_PREFIX, b"x-forwarded-"))),
    )
    _names.keep(name, kind)
    return kind
