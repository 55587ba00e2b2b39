"""Each cause, by what the machine says."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from gateway.core.circuit_breaker import CAUSES
from gateway.outbound.tunnel import cause_of


@pytest.mark.parametrize(
    ("error", "cause", "says"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "refused", "ECONNREFUSED"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect …"),
            "refused",
            "ECONNREFUSED",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "unresolved", "not known"),
        (socket.gaierror("upstream.example has no address"), "unresolved", "no address"),
        (UnicodeError("label too long"), "unresolved", "label too long"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "tls", "wrong version number"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unroutable", "EHOSTUNREACH"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset", "ECONNRESET"),
        (OSError("something else"), "other", "something else"),
    ],
)
def test_each_error_has_a_cause_and_says_what_the_machine_calls_it(
    error: Exception, cause: str, says: str
) -> None:
    found, detail = cause_of(error)
    assert (found, found in CAUSES) == (cause, True)
    assert says in detail


def test_a_certificate_that_is_not_trusted_says_why() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    assert cause_of(error) == ("tls", "self-signed certificate")
