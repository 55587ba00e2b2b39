"""Answers for web pages of other origins (CORS), if the settings allow the origin.

Browsers are never asked for their own credentials: a page sends its API key itself. Sources: the Fetch
standard, RFC 6454.
"""

from __future__ import annotations

from gateway.errors import Refusal
from gateway.http.protocol.answer import EXPOSED

PREFLIGHT_S = 7200  # seconds for which a browser may cache the answer; some repeat it earlier
ANY_ORIGIN = b"*"
# Maximum of a field in a preflight; browsers send no longer one.
ASKED_BYTES_MAX = 8 * 1024
_EXPOSED = b"access-control-expose-headers: " + b", ".join(EXPOSED)
_VARIES = b"vary: Origin"
_FIELDS = frozenset({b"origin", b"access-control-request-method", b"access-control-request-headers"})


class Preflight(Refusal):
    """The answer to a browser's preflight request (CORS); raised like a refusal, but it is none."""

    reason = ""
    status = 204


class Cors:
    """The origins whose pages may call: a set, or all."""

    def __init__(self, origins: frozenset[bytes]) -> None:
        self._origins = origins
        self._any = ANY_ORIGIN in origins

    def lines(self, head: bytes) -> bytes:
        """Return the CORS fields for the answer to this head, joined by CRLF."""
        return self._lines(_cors_fields(head).get(b"origin", b""))

    def preflight(self, head: bytes) -> Preflight | None:
        """Return the answer to a preflight (a browser's CORS request).

        Return None if the head is no preflight, or its origin is not allowed.
        """
        if not head.startswith(b"OPTIONS "):
            return None
        asked = _cors_fields(head)
        method, origin = asked.get(b"access-control-request-method", b""), asked.get(b"origin", b"")
        if not method or not self._allows(origin):
            return None
        fields: tuple[tuple[bytes, bytes], ...] = (
            (b"access-control-allow-methods", method),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        )
        names = asked.get(b"access-control-request-headers", b"")
        if names:
            fields += ((b"access-control-allow-headers", names),)
        answer = Preflight()
        answer.fields = fields
        return answer

    def _lines(self, origin: bytes) -> bytes:
        if self._any:
            return b"access-control-allow-origin: *\r\n%b" % _EXPOSED
        if not self._allows(origin):
            return _VARIES
        return b"access-control-allow-origin: %b\r\n%b\r\n%b" % (origin, _EXPOSED, _VARIES)

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._any or origin in self._origins)


def _cors_fields(head: bytes) -> dict[bytes, bytes]:
    """Return the fields of a head that concern CORS, by name; the value of a repeated field is empty."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FIELDS:
            found[name] = b"" if name in found or len(value) > ASKED_BYTES_MAX else value.strip(b" \t")
    return found
