"""Fetching an issuer's keys: from a file, from a configured URL, or by its discovery document.

Over HTTPS, bounded in bytes and seconds. Redirects are not followed (OpenID Connect Discovery 1.0, 4). Calls
block, so a thread runs them.
"""

from __future__ import annotations

import json
import re
import ssl
import time
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt
import uvloop
from jwt.algorithms import get_default_algorithms

from gateway.core.issuers import FAMILY_OF, IdentityProvider, Issuer, SignedToken, may_lead_to
from gateway.core.network import ProxyFailed, without_password
from gateway.errors import TollkeeperError
from gateway.files import https_with, read_regular
from gateway.issuers.key_set import FETCH_S_MAX, Endpoints, KeySet, UnreadableKeys, VerifyingKey
from gateway.outbound.client import ANSWER_BYTES_MAX, TooLarge, ask

# Public keys in an issuer's format (JWK Set, RFC 7517), and their signatures (RFC 7515, RFC 7518).
#
# Only this module uses the library. It is loaded only if there are issuers.

KEYS_MAX: Final = 64
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192
_VERIFIERS = get_default_algorithms()


def read_key_set(data: bytes) -> KeySet:
    """Return the usable keys of a JWK Set. Raise `UnreadableKeys` if it is malformed or has none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableKeys("what was read is no JSON") from error
    written = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(written, list):
        raise UnreadableKeys("what was read is no set of keys: its `keys` is no list")
    if len(written) > KEYS_MAX:
        raise UnreadableKeys(f"there are {len(written)} keys, {KEYS_MAX} are read at most")
    keys = tuple(_usable(written))
    if not keys:
        raise UnreadableKeys("none of its keys is a public key that a token may be verified by")
    return KeySet(keys)


def _usable(written: list[Any]) -> Iterator[VerifyingKey]:
    """Yield the keys that verify signatures, of the written ones; skip others."""
    for one in written:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig" or "d" in one:
            continue
        operations = one.get("key_ops", ["verify"])
        family = "RSA" if one.get("kty") == "RSA" else one.get("crv")
        algorithms = [name for name, algorithm_family in FAMILY_OF.items() if algorithm_family == family]
        only, key_id = one.get("alg"), one.get("kid")
        if not algorithms or not isinstance(operations, list) or "verify" not in operations:
            continue
        if (only is not None and only not in algorithms) or not isinstance(key_id, str | None):
            continue
        public = _public(one, only or algorithms[0])
        if public is not None:
            yield VerifyingKey(key_id, str(family), only, public, _is_by)


def _public(written: Mapping[str, Any], algorithm: str) -> Any:
    """Return the public key of a JSON Web Key; None if it is invalid, or has a size that is not accepted."""
    named = {name: value for name, value in written.items() if name not in {"alg", "use", "key_ops"}}
    try:
        with warnings.catch_warnings(action="ignore"):  # about small keys, which are refused below
            key = jwt.PyJWK.from_dict(named, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    size = getattr(key, "key_size", RSA_BITS_MIN) if written.get("kty") == "RSA" else RSA_BITS_MIN
    return key if RSA_BITS_MIN <= size <= RSA_BITS_MAX else None


def _is_by(token: SignedToken, public: Any) -> bool:
    return _VERIFIERS[token.algorithm].verify(token.signed, public, token.signature)


DOCUMENT_BYTES_MAX: Final = ANSWER_BYTES_MAX
# Seconds for connecting, TLS included; the deadline applies to the answer.
CONNECT_S_MAX: Final = 3.0
_PLAIN: Final = re.compile(r"[!-~]{1,2048}", re.ASCII)
DISCOVERY: Final = "/.well-known/openid-configuration"


def fetch_keys(issuer: Issuer, within_s: float = FETCH_S_MAX) -> KeySet:
    """Return the current keys of an issuer. Raise `UnreadableKeys` with the reason if that fails."""
    with _translate_errors():
        if issuer.jwks_file:
            return read_key_set(read_file(issuer.jwks_file))
        deadline = time.monotonic() + within_s
        place = issuer.jwks_uri or _address(issuer, _discovered(issuer, deadline), "jwks_uri")
        # The token is sent only to a configured URL, and to the issuer itself.
        trusted = bool(issuer.jwks_uri) or _origin(place) == _origin(issuer.issuer)
        return read_key_set(_fetched(issuer, place, deadline, with_token=trusted))


def read_provider(issuer: Issuer, within_s: float = FETCH_S_MAX) -> KeySet:
    """Return the current keys and sign-in endpoints of an identity provider.

    Raise `UnreadableKeys` with the reason if that fails.
    """
    with _translate_errors():
        deadline = time.monotonic() + within_s
        said = _discovered(issuer, deadline)
        # OpenID Connect Discovery 1.0, 3: without named methods the secret is sent by HTTP Basic.
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
    """Post a form to a URL of the issuer; return status and body, or raise `UnreadableKeys`."""
    with _translate_errors():
        sent = {"content-type": "application/x-www-form-urlencoded", **fields}
        return _send_request(issuer, url, time.monotonic() + FETCH_S_MAX, sent, form)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Convert errors of a request to an issuer to `UnreadableKeys` with a readable reason."""
    try:
        yield
    except (OSError, ValueError) as error:
        if (untrusted := _untrusted(error)) is not None:
            raise UnreadableKeys(f"its certificate cannot be verified: {untrusted.verify_message}") from error
        raise UnreadableKeys(str(error).strip() or type(error).__name__) from error


def read_file(path: str) -> bytes:
    """Return the content of a file; of a large one, only the first `DOCUMENT_BYTES_MAX` + 1 bytes."""
    return read_regular(path, DOCUMENT_BYTES_MAX)


def _discovered(issuer: Issuer, deadline: float) -> dict[str, Any]:
    """Fetch the discovery document, and check that it belongs to this issuer."""
    url = issuer.issuer.rstrip("/") + DISCOVERY
    document = json.loads(_fetched(issuer, url, deadline, with_token=True))
    if not isinstance(document, dict) or document.get("issuer") != issuer.issuer:
        raise UnreadableKeys(f"{without_password(url)} is another issuer's")
    return document


def _address(issuer: Issuer, document: Mapping[str, Any], name: str) -> str:
    """Return the URL of `name` in the discovery document. Raise `UnreadableKeys` if it is not acceptable."""
    place = document.get(name)
    if not isinstance(place, str) or not may_lead_to(issuer.issuer, place):
        url = without_password(issuer.issuer.rstrip("/") + DISCOVERY)
        raise UnreadableKeys(f"{url} names no {name} that begins with https://, or one on this machine")
    return place


def _end_session(issuer: Issuer, document: Mapping[str, Any]) -> str:
    """Return the URL for signing out; empty if it is wrong, since that must not prevent signing in."""
    place = document.get("end_session_endpoint")
    well = isinstance(place, str) and _PLAIN.fullmatch(place) and may_lead_to(issuer.issuer, place)
    return str(place) if well else ""


def _fetched(issuer: Issuer, url: str, deadline: float, *, with_token: bool) -> bytes:
    fields = {}
    if issuer.token_file and with_token:
        token = read_file(issuer.token_file).decode("ascii").strip()
        fields["authorization"] = f"Bearer {token}"
    status, body = _send_request(issuer, url, deadline, fields)
    if status != 200:
        raise UnreadableKeys(f"{without_password(url)} answers {status}")
    return body


def _send_request(
    issuer: Issuer, url: str, deadline: float, fields: Mapping[str, str], form: bytes | None = None
) -> tuple[int, bytes]:
    """Send a request to an issuer before the deadline; return status and body."""
    shown, left = without_password(url), deadline - time.monotonic()
    context = https_with(issuer.ca_file) if url.startswith("https:") else None
    sent = {"accept": "application/json", "user-agent": "tollkeeper", **fields}
    try:
        status, _, said = uvloop.run(ask(
            "GET" if form is None else "POST", url, sent, form, proxies=lambda: issuer.proxies,
            context=context, connect_s=CONNECT_S_MAX, within_s=max(0.001, left),
        ))  # fmt: skip
    except TimeoutError as error:
        raise UnreadableKeys(f"{shown} was not read in time") from error
    except TooLarge as error:
        raise UnreadableKeys(f"{shown} {error}") from error
    return status, said


def _untrusted(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the certificate error of the issuer behind `error`; None for a proxy's or any other error."""
    while error is not None and not isinstance(error, ProxyFailed):
        error = getattr(error, "certificate_error", error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ if error.__cause__ is not error else None
    return None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


# Token requests to an identity provider: client and secret, a form, an answer in JSON.
#
# They block, so a thread runs them.

_ERROR: Final = re.compile(r"[a-z_]{1,64}", re.ASCII)


class TokensRefused(TollkeeperError, reason="tokens_refused", status=502):
    """The provider gives no tokens; the message is its word for why (RFC 6749, 5.2)."""


def redeem(provider: IdentityProvider, endpoints: Endpoints, form: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the provider's answer to a token request.

    Raise `TokensRefused` for a refusal, `UnreadableKeys` without a readable answer.
    """
    sent, fields, secret = dict(form), {}, _secret_of(provider)
    if secret and not endpoints.sends_post:
        pair = f"{quote_plus(provider.client_id)}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
        fields["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    else:
        sent["client_id"] = provider.client_id
        if secret:
            sent["client_secret"] = secret
    status, body = post_form(provider.issuer, endpoints.token, urlencode(sent).encode(), fields)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if status == 200 and isinstance(document, dict):
        return document
    word = document.get("error") if isinstance(document, dict) else None
    if status in {400, 401, 403} and isinstance(word, str) and _ERROR.fullmatch(word):
        raise TokensRefused(word)
    raise UnreadableKeys(f"{without_password(endpoints.token)} answers {status}, and no JSON that says what")


def _secret_of(provider: IdentityProvider) -> str:
    """Return the client's secret, from its file if it has one; empty without a secret."""
    if not provider.client_secret_file:
        return provider.client_secret
    try:
        return read_file(provider.client_secret_file).decode("ascii").strip()
    except (OSError, ValueError) as error:
        message = f"the client's secret cannot be read from {provider.client_secret_file}"
        raise UnreadableKeys(message) from error
