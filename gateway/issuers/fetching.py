"""Reading an issuer's keys: from a file, from where they are said to be, or by its discovery document.

Over HTTPS, bounded in bytes and seconds; nobody is followed elsewhere (OpenID Connect Discovery 1.0, 4).
It waits, so a thread runs it.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gateway.core.issuers.issuer import Issuer, may_be_asked
from gateway.issuers.key_set import FETCH_S_MAX, KeySet, UnreadableKeys
from gateway.issuers.signatures import read_key_set

DOCUMENT_BYTES_MAX: Final = 256 * 1024
STEP_S_MAX: Final = 3.0
DISCOVERY: Final = "/.well-known/openid-configuration"


def read_keys(issuer: Issuer, within_s: float = FETCH_S_MAX) -> KeySet:
    """The issuer's keys as they are now; `UnreadableKeys` says why they cannot be read."""
    try:
        if issuer.jwks_file:
            return read_key_set(_file(issuer.jwks_file))
        deadline = time.monotonic() + within_s
        place = issuer.jwks_uri or _discovered(issuer, deadline)
        # What it is asked with goes where the configuration says, and to the issuer itself, nowhere else.
        trusted = bool(issuer.jwks_uri) or _origin(place) == _origin(issuer.issuer)
        return read_key_set(_fetched(issuer, place, deadline, with_token=trusted))
    except ssl.SSLCertVerificationError as error:
        raise UnreadableKeys(f"its certificate cannot be verified: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreadableKeys(str(error).strip() or type(error).__name__) from error


def _file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(DOCUMENT_BYTES_MAX + 1)


def _discovered(issuer: Issuer, deadline: float) -> str:
    """Where the discovery document says that the keys are."""
    url = issuer.issuer.rstrip("/") + DISCOVERY
    found = json.loads(_fetched(issuer, url, deadline, with_token=True))
    if not isinstance(found, dict) or found.get("issuer") != issuer.issuer:
        raise UnreadableKeys(f"{url} is another issuer's")
    place = found.get("jwks_uri")
    if not isinstance(place, str) or not may_be_asked(place):
        raise UnreadableKeys(f"{url} names no jwks_uri that begins with https://")
    return place


def _fetched(issuer: Issuer, url: str, deadline: float, *, with_token: bool) -> bytes:
    parts = urlsplit(url)
    connection = _connection(issuer, parts)
    fields = {"accept": "application/json", "user-agent": "tollkeeper", "connection": "close"}
    if issuer.token_file and with_token:
        token = _file(issuer.token_file).decode("ascii").strip()
        fields["authorization"] = f"Bearer {token}"
    try:
        connection.connect()
        with _over_at(deadline, connection.sock, url):
            connection.request(
                "GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", headers=fields
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise UnreadableKeys(f"{url} answers {answer.status}")
            return _body(answer, url)
    finally:
        connection.close()


@contextmanager
def _over_at(deadline: float, sock: socket.socket, url: str) -> Iterator[None]:
    """Break a connection off at the deadline: each byte that comes begins a step's own bound anew."""

    def end() -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    ending = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    ending.daemon = True
    ending.start()
    try:
        yield
    finally:
        ending.cancel()
        if time.monotonic() >= deadline:  # what came until then is no whole answer
            raise UnreadableKeys(f"{url} was not read in time")


def _body(answer: http.client.HTTPResponse, url: str) -> bytes:
    body = b""
    while more := answer.read1(65_536):
        body += more
        if len(body) > DOCUMENT_BYTES_MAX:
            raise UnreadableKeys(f"{url} answers more than {DOCUMENT_BYTES_MAX} bytes")
    return body


def _connection(issuer: Issuer, parts: SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=STEP_S_MAX)
    context = ssl.create_default_context(cafile=issuer.ca_file or None)
    return http.client.HTTPSConnection(host, parts.port, timeout=STEP_S_MAX, context=context)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
