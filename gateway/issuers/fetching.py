"""Reading an issuer's keys: from a file, from where they are said to be, or by its discovery document.

Over HTTPS, bounded in bytes and seconds; nobody is followed elsewhere (OpenID Connect Discovery 1.0, 4).
It waits, so a thread runs it.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop

from gateway.core.issuers.issuer import Issuer, may_lead_to
from gateway.core.shown_urls import without_password
from gateway.core.upstreams.connect import ProxyFailed
from gateway.files import https_with, read_regular
from gateway.issuers.key_set import FETCH_S_MAX, Endpoints, KeySet, UnreadableKeys
from gateway.issuers.signatures import read_key_set
from gateway.outbound.client import ANSWER_BYTES_MAX, TooLarge, ask

DOCUMENT_BYTES_MAX: Final = ANSWER_BYTES_MAX
# Until there is a connection, its TLS with it; an answer then has until its deadline.
CONNECT_S_MAX: Final = 3.0
_PLAIN: Final = re.compile(r"[!-~]{1,2048}", re.ASCII)
DISCOVERY: Final = "/.well-known/openid-configuration"


def read_keys(issuer: Issuer, within_s: float = FETCH_S_MAX) -> KeySet:
    """The issuer's keys as they are now; `UnreadableKeys` says why they cannot be read."""
    with _told():
        if issuer.jwks_file:
            return read_key_set(read_file(issuer.jwks_file))
        deadline = time.monotonic() + within_s
        place = issuer.jwks_uri or _address(issuer, _discovered(issuer, deadline), "jwks_uri")
        # What it is asked with goes where the configuration says, and to the issuer itself, nowhere else.
        trusted = bool(issuer.jwks_uri) or _origin(place) == _origin(issuer.issuer)
        return read_key_set(_fetched(issuer, place, deadline, with_token=trusted))


def read_provider(issuer: Issuer, within_s: float = FETCH_S_MAX) -> KeySet:
    """The same of one by which people sign in, with where they do."""
    with _told():
        deadline = time.monotonic() + within_s
        said = _discovered(issuer, deadline)
        # OpenID Connect Discovery 1.0, 3: who names no methods takes the secret as HTTP Basic has it.
        methods = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        endpoints = Endpoints(
            _address(issuer, said, "authorization_endpoint"),
            _address(issuer, said, "token_endpoint"),
            isinstance(methods, list) and "client_secret_basic" not in methods,
            said.get("authorization_response_iss_parameter_supported") is True,
            _end_session(issuer, said),
        )
        keys = read_key_set(_fetched(issuer, _address(issuer, said, "jwks_uri"), deadline, with_token=False))
        return KeySet(keys.keys, endpoints)


def post_form(issuer: Issuer, url: str, form: bytes, fields: Mapping[str, str]) -> tuple[int, bytes]:
    """What the issuer answers to a form: its status, and its body; `UnreadableKeys` where it does not."""
    with _told():
        sent = {"content-type": "application/x-www-form-urlencoded", **fields}
        return _asked(issuer, url, time.monotonic() + FETCH_S_MAX, sent, form)


@contextmanager
def _told() -> Iterator[None]:
    """Say in words why an issuer cannot be asked."""
    try:
        yield
    except (OSError, ValueError) as error:
        if (untrusted := _untrusted(error)) is not None:
            raise UnreadableKeys(f"its certificate cannot be verified: {untrusted.verify_message}") from error
        raise UnreadableKeys(str(error).strip() or type(error).__name__) from error


def read_file(path: str) -> bytes:
    """What a small file holds."""
    return read_regular(path, DOCUMENT_BYTES_MAX)


def _discovered(issuer: Issuer, deadline: float) -> dict[str, Any]:
    """What the discovery document says."""
    url = issuer.issuer.rstrip("/") + DISCOVERY
    found = json.loads(_fetched(issuer, url, deadline, with_token=True))
    if not isinstance(found, dict) or found.get("issuer") != issuer.issuer:
        raise UnreadableKeys(f"{without_password(url)} is another issuer's")
    return found


def _address(issuer: Issuer, said: Mapping[str, Any], name: str) -> str:
    """Where the discovery document says that something is."""
    place = said.get(name)
    if not isinstance(place, str) or not may_lead_to(issuer.issuer, place):
        url = without_password(issuer.issuer.rstrip("/") + DISCOVERY)
        raise UnreadableKeys(f"{url} names no {name} that begins with https://, or one on this machine")
    return place


def _end_session(issuer: Issuer, said: Mapping[str, Any]) -> str:
    """Where people sign out; a wrong address is none, since it must keep nobody from signing in."""
    place = said.get("end_session_endpoint")
    well = isinstance(place, str) and _PLAIN.fullmatch(place) and may_lead_to(issuer.issuer, place)
    return str(place) if well else ""


def _fetched(issuer: Issuer, url: str, deadline: float, *, with_token: bool) -> bytes:
    fields = {}
    if issuer.token_file and with_token:
        token = read_file(issuer.token_file).decode("ascii").strip()
        fields["authorization"] = f"Bearer {token}"
    status, body = _asked(issuer, url, deadline, fields)
    if status != 200:
        raise UnreadableKeys(f"{without_password(url)} answers {status}")
    return body


def _asked(
    issuer: Issuer, url: str, deadline: float, fields: Mapping[str, str], form: bytes | None = None
) -> tuple[int, bytes]:
    shown, left = without_password(url), deadline - time.monotonic()
    context = https_with(issuer.ca_file) if url.startswith("https:") else None
    sent = {"accept": "application/json", "user-agent": "tollkeeper", **fields}
    try:
        return uvloop.run(ask(
            "GET" if form is None else "POST", url, sent, form, proxies=lambda: issuer.proxies,
            context=context, connect_s=CONNECT_S_MAX, within_s=max(0.001, left),
        ))  # fmt: skip
    except TimeoutError as error:
        raise UnreadableKeys(f"{shown} was not read in time") from error
    except TooLarge as error:
        raise UnreadableKeys(f"{shown} {error}") from error


def _untrusted(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The fault of the issuer's certificate that an error comes from; None of a proxy's or any other."""
    while error is not None and not isinstance(error, ProxyFailed):
        error = getattr(error, "certificate_error", error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ if error.__cause__ is not error else None
    return None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
