"""A signed token (JWS compact serialization, RFC 7515) taken apart, before anything in it is believed.

Bytes that could be read in two ways are none: a name twice, numbers that no double holds. Of the header
only `alg`, `kid` and `typ` count. What else it offers (`jku`, `jwk`, `x5u`, `x5c`) is never looked at: whose
key it is, the configuration says alone.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from gateway.core.issuers.issuer import FAMILY_OF
from gateway.errors import InvalidApiKey

TOKEN_BYTES_MAX: Final = 8192
# The first bytes of every header: `{"`.
BEGIN: Final = b"eyJ"
_PARTS = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# RFC 9068 has a name for access tokens; those of other purposes, such as logout+jwt, are for others.
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})

# Why tokens are refused, as metrics count it.
FAILURES: Final = (
    "token_malformed", "token_algorithm", "token_issuer", "token_key", "token_signature", "token_expired",
    "token_audience", "token_claims", "token_subject",
)  # fmt: skip
MALFORMED, ALGORITHM, UNKNOWN_ISSUER, UNKNOWN_KEY, SIGNATURE, EXPIRED, AUDIENCE, CLAIMS, SUBJECT = FAILURES


def refused(failure: str, message: str) -> InvalidApiKey:
    """Why a token is not accepted: in a word for people who watch, in a sentence for its sender."""
    wrong = InvalidApiKey(message)
    wrong.failure = failure
    return wrong


@dataclass(frozen=True, slots=True)
class SignedToken:
    """What a token says: nothing of it is true before its signature was verified."""

    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @property
    def issuer(self) -> str:
        """Who is said to have issued it; empty where nobody is."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else ""


def is_token(credential: bytes) -> bool:
    """Whether a credential is meant to be a token: keys of ours have no dot."""
    return credential.startswith(BEGIN) and b"." in credential


def may_be_read(token: bytes) -> bool:
    """Whether it has the form of a signed token, of no more bytes than are read."""
    return len(token) <= TOKEN_BYTES_MAX and _PARTS.fullmatch(token) is not None


def read_token(token: bytes) -> SignedToken:
    """Take a token apart; `InvalidApiKey` for what is none."""
    parts = _PARTS.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
    if parts is None:
        raise _malformed()
    try:
        header, claims, signature = _object(parts[1]), _object(parts[2]), _decoded(parts[3])
    except (ValueError, RecursionError):
        raise _malformed() from None
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if "crit" in header or "cty" in header or not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise refused(MALFORMED, "The token is of a kind that is not accepted.")
    if not isinstance(algorithm, str) or algorithm not in FAMILY_OF:
        raise refused(ALGORITHM, "The token's algorithm is not accepted.")
    if key_id is not None and not isinstance(key_id, str):
        raise _malformed()
    return SignedToken(algorithm, key_id, claims, token[: parts.end(2)], signature)


def _malformed() -> InvalidApiKey:
    return refused(MALFORMED, "The token is malformed.")


def _decoded(part: bytes) -> bytes:
    """What is written; `ValueError` where other bits stand behind its end, as nobody writes it."""
    decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise ValueError("bits behind the end")
    return decoded


def _object(part: bytes) -> dict[str, Any]:
    found = json.loads(
        _decoded(part).decode("utf-8"),
        object_pairs_hook=_once,
        parse_float=_double,
        parse_constant=_no_number,
    )
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004  # told as any other text that is no token
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _double(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("no double")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(name)
