"""What an error of the machine's says of why a connection was not made."""

from __future__ import annotations

import re
import socket
import ssl
from errno import ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT, errorcode

from gateway.core.upstreams.connect import ProxyFailed
from gateway.core.upstreams.failing import (
    CONNECT_TIMEOUT,
    OTHER,
    PROXY,
    REFUSED,
    RESET,
    TLS,
    UNRESOLVED,
    UNROUTABLE,
)

_NUMBERS = {
    ECONNREFUSED: REFUSED, ECONNRESET: RESET, EHOSTUNREACH: UNROUTABLE, ENETUNREACH: UNROUTABLE,
    ETIMEDOUT: CONNECT_TIMEOUT,
}  # fmt: skip
# What was tried at several addresses has the numbers in its text alone.
_SAID = re.compile(r"\[Errno (\d+)\]")


def cause_of(error: Exception) -> tuple[str, str]:
    """Why a connection was not made: the cause, and what the machine calls it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLS, error.verify_message or "certificate not trusted"
    if isinstance(error, ssl.SSLError):
        return TLS, getattr(error, "reason", None) or str(error)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UNRESOLVED, f"the name cannot be resolved: {getattr(error, 'strerror', None) or error}"
    if isinstance(error, ProxyFailed):
        return PROXY, str(error)
    number = getattr(error, "errno", None)
    if number is None and (said := _SAID.search(str(error))):
        number = int(said[1])
    if number is None:
        return OTHER, str(error)
    return _NUMBERS.get(number, OTHER), errorcode.get(number, str(error))
