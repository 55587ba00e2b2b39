"""Pages of other origins that may call (CORS), as far as settings name them.

A browser is never asked for credentials of its own: a page sends its API key itself. Sources: the Fetch
standard, RFC 6454.
"""

from __future__ import annotations

from gateway.errors import Refusal
from gateway.http.protocol.answer import EXPOSED

PREFLIGHT_S = 7200  # for so long a browser need not ask again; some ask earlier
ANY_ORIGIN = b"*"
# Of what a preflight asks for: longer is no header that a browser sends.
ASKED_BYTES_MAX = 8 * 1024
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
        """Return the CORS lines of every answer to this head, joined by CRLF."""
        return self._lines(_asked(head).get(b"origin", b""))

    def preflight(self, head: bytes) -> Preflight | None:
        """Return the answer to a preflight; None if the head is none, or its origin is not allowed."""
        if not head.startswith(b"OPTIONS "):
            return None
        asked = _asked(head)
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


def _asked(head: bytes) -> dict[bytes, bytes]:
    """Return the fields of CORS in a head, by their names; one that stands twice says nothing."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FIELDS:
            found[name] = b"" if name in found or len(value) > ASKED_BYTES_MAX else value.strip(b" \t")
    return found
