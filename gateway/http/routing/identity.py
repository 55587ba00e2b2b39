"""The credential of a request, found in its head and turned into the digest it is known by.

A key goes no further than its HMAC-SHA-256 under the pepper; a signed token is verified once besides.
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import unquote_to_bytes

from gateway.core.issuers.signed_token import is_token, may_be_read
from gateway.errors import InvalidApiKey, InvalidRequest
from gateway.http.protocol.fields import CREDENTIAL_FIELDS
from gateway.http.protocol.request import Values

# Without `$`, case, hyphens and underscores: APIs take their credential under many spellings of these.
_QUERY_NAMES = frozenset(b"key accesstoken oauthtoken bearertoken idtoken jwt".split()) | {
    name.replace(b"-", b"") for name in CREDENTIAL_FIELDS
}
_SEPARATOR = re.compile(rb"[&;]")
_CREDENTIAL = re.compile(rb"[\x21-\x7e]{1,512}")


def check_query_names(query: bytes) -> None:
    """`InvalidRequest` where a credential is in the query."""
    for pair in _SEPARATOR.split(query[1:]) if query else ():
        name = pair.partition(b"=")[0]
        if _plain(name) in _QUERY_NAMES:
            raise InvalidRequest(
                "A credential in the query ends up in logs; send it in a header field.", param=name.decode()
            )


def credential_of(said: Values, tokens: bool = False) -> tuple[bytes, bool]:
    """The request's credential, and whether it is a signed token, where `tokens` are accepted.

    `InvalidApiKey` where there is none or it is malformed; `InvalidRequest` where there are two that differ.
    """
    found = {
        _bearer(value) if name == b"authorization" else value
        for name in CREDENTIAL_FIELDS & said.keys()
        for value in said[name]
        if value
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
    """The hex digest that a credential is known by."""
    return hmac.digest(pepper, credential, "sha256").hex()


def key_digests(credential: bytes, peppers: tuple[bytes, ...]) -> tuple[str, ...]:
    """The same under each pepper."""
    return tuple([key_digest(credential, pepper) for pepper in peppers])


def _plain(name: bytes) -> bytes:
    """The name of a parameter as an API that is not strict with it may take it."""
    plain = unquote_to_bytes(name.replace(b"+", b" ")).strip().lower().lstrip(b"$")
    return plain.replace(b"_", b"").replace(b"-", b"")


def _bearer(value: bytes) -> bytes:
    """The token of `Bearer <token>`; anything else is no credential of ours and stays malformed."""
    scheme, _, token = value.partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else b" "
