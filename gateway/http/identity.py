"""Reads the credential of a request from its head.

A key is used only as its HMAC-SHA-256 digest under the pepper; a signed token is also verified once.
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import unquote_to_bytes

from gateway.core.families.header_fields import CREDENTIAL_FIELDS, KEY_PROTOCOLS, PROTOCOLS_FIELD
from gateway.core.issuers import is_token, may_be_read
from gateway.errors import InvalidApiKey, InvalidRequest
from gateway.http.protocol.request import Values

# Names without `$`, case, hyphens and underscores, since APIs accept many spellings.
_QUERY_NAMES = frozenset(b"key accesstoken oauthtoken bearertoken idtoken jwt".split()) | {
    name.replace(b"-", b"") for name in CREDENTIAL_FIELDS
}
_SEPARATOR = re.compile(rb"[&;]")
_CREDENTIAL = re.compile(rb"[\x21-\x7e]{1,512}")


def check_query_names(query: bytes) -> None:
    """Raise `InvalidRequest` if a query parameter has the name of a credential."""
    pairs = _SEPARATOR.split(query[1:]) if query else ()
    for pair in pairs:
        name = pair.partition(b"=")[0]
        if _plain(name) in _QUERY_NAMES:
            message = "A credential in the query ends up in logs; send it in a header field."
            raise InvalidRequest(message, param=name.decode())


def credential_of(values: Values, tokens: bool = False) -> tuple[bytes, bool]:
    """Return the credential in the header fields `values`, and whether it is a signed token.

    Tokens are accepted only if `tokens` is True. Raise `InvalidApiKey` if the credential is missing or
    malformed, `InvalidRequest` if there are two different ones.
    """
    found = {
        key
        for name in CREDENTIAL_FIELDS & values.keys()
        for value in values[name]
        if (key := _key_in(name, value))
    }
    if len(found) > 1:
        raise InvalidRequest("The request carries two different credentials.")
    sent, credential = bool(found), found.pop() if found else b""
    signed = tokens and is_token(credential)
    if not may_be_read(credential) if signed else _CREDENTIAL.fullmatch(credential) is None:
        nobody = InvalidApiKey("The API key is malformed." if sent else "The request carries no API key.")
        nobody.failure = "malformed" if sent else "missing"
        raise nobody
    return credential, signed


def key_digest(credential: bytes, pepper: bytes) -> str:
    """Return the hex HMAC-SHA-256 of a credential, with the pepper as its key."""
    return hmac.digest(pepper, credential, "sha256").hex()


def key_digests(credential: bytes, peppers: tuple[bytes, ...]) -> tuple[str, ...]:
    """Return the digest of a credential under each pepper."""
    return tuple([key_digest(credential, pepper) for pepper in peppers])


def upload_pass(upload: str, digest: str, pepper: bytes) -> str:
    """Return the token for an upload's URL that stands for the key with this digest."""
    return f"{digest}.{key_digest(f'{upload} {digest}'.encode(), pepper)}"


def passed_digest(text: str, upload: str, pepper: bytes) -> str:
    """Return the key's digest from an upload's token `text`; empty if `upload_pass` did not make it."""
    digest = text.partition(".")[0]
    known = upload_pass(upload, digest, pepper)
    return digest if hmac.compare_digest(text.encode(), known.encode()) else ""


def _plain(name: bytes) -> bytes:
    """Return a parameter's name as lenient APIs compare it: decoded, lower case, without `$`, `_` and `-`."""
    plain = unquote_to_bytes(name.replace(b"+", b" ")).strip().lower().lstrip(b"$")
    return plain.replace(b"_", b"").replace(b"-", b"")


def _key_in(name: bytes, value: bytes) -> bytes:
    """Return the API key in the value of a header field; empty if the value has none."""
    if name == PROTOCOLS_FIELD:
        named = [part.strip(b" \t") for part in value.split(b",")]
        return b" ".join(
            [one.removeprefix(begun) for one in named for begun in KEY_PROTOCOLS if one.startswith(begun)]
        )
    return _bearer(value) if name == b"authorization" and value else value


def _bearer(value: bytes) -> bytes:
    """Return the token of `Bearer <token>`; for another scheme return b" ", a malformed key."""
    scheme, _, token = value.partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else b" "
