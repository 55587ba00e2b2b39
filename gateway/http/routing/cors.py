"""Pages of other origins that may call (CORS): what their browsers are told, as far as settings name them.

Sources: the Fetch standard, "CORS protocol"; RFC 6454 (origins). A browser is never asked for credentials of
its own: an API key is sent by the page itself.
"""

from __future__ import annotations

from gateway.core.model import Family
from gateway.errors import Refusal
from gateway.http.routing.routed_head import RoutedHead

PREFLIGHT_S = 7200  # for so long a browser need not ask again; some ask earlier
ANY_ORIGIN = b"*"
# Of what a preflight asks for: longer is no header that a browser sends.
ASKED_BYTES_MAX = 8 * 1024
# What a page may read of an answer's fields, beside those that any may.
EXPOSED = (
    b"date", b"request-id", b"retry-after", b"x-request-id", b"x-upstream-request-id", b"x-should-retry",
    b"x-tollkeeper-reason", b"x-tollkeeper-refused-by", b"x-tollkeeper-budget",
    b"x-tollkeeper-tokens-remaining", b"x-tollkeeper-credits-remaining",
    b"ratelimit", b"ratelimit-policy",
    b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
    b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens",
)  # fmt: skip
_EXPOSED = b"access-control-expose-headers: " + b", ".join(EXPOSED)
_VARIES = b"vary: Origin"
_FIELDS = frozenset({b"origin", b"access-control-request-method", b"access-control-request-headers"})


class Preflight(Refusal):
    """A browser's question whether a page may call: answered here, by nobody else, and no refusal."""

    reason = ""
    status = 204


class Cors:
    """The origins that may call: exact ones, or any."""

    def __init__(self, origins: frozenset[bytes]) -> None:
        self._origins = origins
        self._any = ANY_ORIGIN in origins

    def lines(self, head: bytes) -> bytes:
        """What every answer to this head carries: lines joined by CRLF."""
        return self._lines(_asked(head).get(b"origin", b""))

    def preflight(self, head: bytes, routed: RoutedHead) -> RoutedHead | None:
        """How a preflight is answered; None where a head is none, or of an origin that is not named."""
        if not head.startswith(b"OPTIONS ") or routed.fatal:
            return None
        asked = _asked(head)
        method, origin = asked.get(b"access-control-request-method", b""), asked.get(b"origin", b"")
        if not method or not self._allows(origin):
            return None
        answer = Preflight()
        answer.fields = (
            (b"access-control-allow-methods", method),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        )
        names = asked.get(b"access-control-request-headers", b"")
        if names:
            answer.fields += ((b"access-control-allow-headers", names),)
        return RoutedHead(
            Family(routed.family),
            "preflight",
            refusal=answer,
            method=routed.method,
            minor=routed.minor,
            length=routed.length,
            chunked=routed.chunked,
            keep_alive=routed.keep_alive,
            expects=routed.expects,
        )

    def _lines(self, origin: bytes) -> bytes:
        if self._any:
            return b"access-control-allow-origin: *\r\n%b" % _EXPOSED
        if not self._allows(origin):
            return _VARIES
        return b"access-control-allow-origin: %b\r\n%b\r\n%b" % (origin, _EXPOSED, _VARIES)

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._any or origin in self._origins)


def _asked(head: bytes) -> dict[bytes, bytes]:
    """The fields of CORS in a head, by their names; one that stands twice says nothing."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FIELDS:
            found[name] = b"" if name in found or len(value) > ASKED_BYTES_MAX else value.strip(b" \t")
    return found
