"""What a request's field is to a gateway, by its name: whether it passes, and what it is read for.

RFC 9110, 7.6.1: hop-by-hop fields end here. So do credentials, forwarded fields and everything
of ours. Each spelling of a short name is looked at once and remembered, within bounds: who sends
it is not known yet.
"""

from __future__ import annotations

import re
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
_ANY_CALL = tuple(one.names_session for one in ALL if one.names_session)
SESSION_FIELDS = {one.name: (*_ANY_CALL, *filter(None, (one.own_session,))) for one in ALL}
_SESSIONS = frozenset(name for names in SESSION_FIELDS.values() for name in names)
NAMES_BYTES_MAX = 256 * 1024
NAME_BYTES_MAX = 64

_READ_AND_PASSED = frozenset(
    {b"content-type", b"content-encoding", b"accept-encoding", TRACE_FIELD, *_SESSIONS}
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

UNITS_FIELD = OURS_PREFIX + b"units"
OVERRIDES = frozenset(
    {b"x-http-method", b"x-http-method-override", b"x-method-override", b"http-method-override"}
)
# What a body is, and its digests: not what it was once it is written again.
OF_BODIES = frozenset(b"content-type content-encoding content-md5 digest content-digest repr-digest".split())
# Parts of an answer instead of it, or another form of it.
_OF_ANSWERS = frozenset(
    b"range if-range if-match if-none-match if-modified-since if-unmodified-since prefer a-im want-digest "
    b"want-content-digest".split()
)
WITHHELD = OVERRIDES | OF_BODIES | _OF_ANSWERS
# System parameters may be fields as well; what a library says of itself is none of them.
_WITHHELD_PREFIXES = (
    *(prefix for one in ALL for prefix in one.withheld_prefixes),
    # By which gateways in front of a provider choose another model, cache or credential.
    b"x-litellm-", b"x-portkey-", b"cf-aig-", b"helicone-", b"ocp-apim-",
)  # fmt: skip
# By which whatever is behind the gateway gives up early: it has read the input by then, and is not paid.
_GIVES_UP = re.compile(rb"(?!x-stainless-).*(?:timeout|deadline|stream-duration)")
_PASSED = frozenset(one.spoken_by for one in ALL)
_WITHHELD_SOMEWHERE = WITHHELD.union(*(one.withheld for one in ALL))
# Named by whoever traces, retries or forwards a request: nearly each one has another value.
_VARYING = frozenset(
    b"traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-b3-parentspanid sentry-trace "
    b"uber-trace-id x-amzn-trace-id x-cloud-trace-context x-datadog-trace-id x-datadog-parent-id "
    b"x-datadog-tags x-request-id x-client-request-id x-correlation-id idempotency-key x-idempotency-key "
    b"x-envoy-attempt-start-time x-request-start x-queue-start cf-ray x-amz-cf-id x-vercel-id "
    b"fly-request-id content-length date".split()
)

# What the lines of a field do, by its name. PASSES: they go on, where nothing withholds them. DECIDES: how
# the request is routed depends on them. PROVES: they carry its credential. SAYS: they say something of it.
# TRACES: they say which trace it is of. VARIES: not worth remembering. AMBIGUOUS: they refuse the request.
PASSES, DECIDES, PROVES, SAYS, TRACES, VARIES, AMBIGUOUS = 1, 2, 4, 8, 16, 32, 64


class FieldKind(NamedTuple):
    """`lower` is the name as it is compared, `plain` the one that an upstream may take it for.

    It `passes` to the upstream, is `read` here, or `shadows` one of ours. `role` is what its lines do, of the
    constants above.
    """

    lower: bytes
    plain: bytes
    passes: bool
    read: bool
    shadows: bool
    role: int


_names: Remembered[bytes, FieldKind] = Remembered(NAMES_BYTES_MAX, NAME_BYTES_MAX, 3, 384)
known_fields = _names.known


def field_kind(name: bytes) -> FieldKind:
    """What a field of this name is."""
    lower = name.lower()
    plain = lower.replace(b"_", b"-")
    ours = lower.startswith(OURS_PREFIX)
    ended = ours or lower in _READ or lower in _ENDED or lower.startswith(b"x-forwarded-")
    read = ours or lower in _READ or lower in _READ_AND_PASSED
    shadows = plain != lower and (plain in _CONTROLLED or plain.startswith((OURS_PREFIX, b"x-forwarded-")))
    if read:
        role = _purpose(lower)
    else:
        role = AMBIGUOUS if shadows else DECIDES if is_withheld(plain, _WITHHELD_SOMEWHERE) else 0
    role |= (VARIES if lower in _VARYING else 0) | (0 if ended else PASSES)
    kind = FieldKind(lower, plain, not ended, read, shadows, role)
    _names.keep(name, kind)
    return kind


def is_withheld(plain: bytes, names: frozenset[bytes]) -> bool:
    """Whether a field is one of these that do not pass on a route, or is named as none may that passes."""
    return plain not in _PASSED and (
        plain in names or plain.startswith(_WITHHELD_PREFIXES) or _GIVES_UP.match(plain) is not None
    )


def _purpose(lower: bytes) -> int:
    """What the lines of a field that is read here do."""
    if lower == TRACE_FIELD:
        return TRACES
    if lower in CREDENTIAL_FIELDS:
        return PROVES
    if (lower.startswith(OURS_PREFIX) and lower != UNITS_FIELD) or lower in _SESSIONS:
        return SAYS
    return DECIDES
