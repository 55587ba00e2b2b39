"""Issuers of signed tokens, and the claims by which their tokens identify callers and people."""

from __future__ import annotations

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from math import isfinite
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.core.network import DIRECT, Proxies
from gateway.errors import InvalidApiKey

# The accepted algorithms of signatures. Shared secrets (HMAC) and unsigned tokens are not accepted.
FAMILY_OF: Final = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}  # fmt: skip
USUAL_ALGORITHMS: Final = ("RS256", "ES256")
LEEWAY_S: Final = 30.0
SUBJECT: Final = "/sub"
# Where most providers name the groups of a person.
GROUPS: Final = "/groups"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class PersonIdentity:
    """A person named by an identity provider. `identity` never changes, `name` is for display.

    Both are unique only together with the `issuer`: two providers may use the same, and names may repeat.
    """

    issuer: str
    identity: str
    name: str

    def is_who(self, other: PersonIdentity | None) -> bool:
        """Return whether `other` is the same person. The displayed name may have changed."""
        return other is not None and (self.issuer, self.identity) == (other.issuer, other.identity)


@dataclass(frozen=True, slots=True)
class Issuer:
    """A configured issuer of tokens. Claims are named by JSON pointers (RFC 6901).

    Its keys are in `jwks_file`, at `jwks_uri`, or at the URL in its discovery document; `token_file` holds a
    bearer token for requests to it. `subject` is the claim by which API keys are found, and `subjects` maps
    its values to names of keys; if empty, values are the names. `user` is the claim with the user, empty for
    none; `groups` is the claim with names of groups. A token must have one of the listed values of each claim in `require`. `proxies` are used to reach
    it.
    """

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...] = USUAL_ALGORITHMS
    jwks_uri: str = ""
    jwks_file: str = ""
    ca_file: str = ""
    token_file: str = ""
    leeway_s: float = LEEWAY_S
    subject: str = SUBJECT
    subjects: tuple[tuple[str, str], ...] = ()
    user: str = ""
    require: tuple[tuple[str, tuple[str, ...]], ...] = ()
    groups: str = GROUPS
    proxies: Proxies = DIRECT


def known_as(issuer: str, subject: str) -> str:
    """Return the name of the API key for a token's subject; no request can send it as a key."""
    return f"\0{issuer}\0{subject}"


def may_fetch(url: str) -> bool:
    """Return whether signing keys may be fetched from a URL: it must use HTTPS, or be on this machine."""
    try:
        parts = urlsplit(url)
        well = bool(parts.hostname) and parts.port != 0 and parts.username is None and not parts.fragment
    except ValueError:
        return False
    return well and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK))


def may_lead_to(issuer: str, url: str) -> bool:
    """Return whether an issuer of tokens may refer to a URL, such as that of its keys.

    Only an issuer on this machine may refer to this machine.
    """
    return may_fetch(url) and (not _is_here(url) or _is_here(issuer))


def _is_here(url: str) -> bool:
    """Return whether a URL's host is a name or address of this machine, such as `localhost`."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


# Parsing of a signed token (JWS compact serialization, RFC 7515), before anything in it is trusted.
#
# Ambiguous tokens are refused: a name twice, numbers beyond doubles. Of the header only `alg`, `kid` and
# `typ` count. Keys that it offers (`jku`, `jwk`, `x5u`, `x5c`) are ignored: only the configuration decides
# which keys are trusted.

TOKEN_BYTES_MAX: Final = 8192
# The first bytes of every header: `{"`.
BEGIN: Final = b"eyJ"
_PARTS = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# RFC 9068 names access tokens; tokens for other purposes, such as logout+jwt, are refused.
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})

# Labels of metrics for refused tokens.
FAILURES: Final = (
    "token_malformed", "token_algorithm", "token_issuer", "token_key", "token_signature", "token_expired",
    "token_audience", "token_claims", "token_subject",
)  # fmt: skip
MALFORMED, ALGORITHM, UNKNOWN_ISSUER, UNKNOWN_KEY, SIGNATURE, EXPIRED, AUDIENCE, CLAIMS, SUBJECT_CLAIM = (
    FAILURES
)


def refused(failure: str, message: str) -> InvalidApiKey:
    """Return the error for a refused token: `failure` is a metric's label, `message` is for the sender."""
    wrong = InvalidApiKey(message)
    wrong.failure = failure
    return wrong


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A parsed token. Its content is untrusted until its signature is verified."""

    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @property
    def issuer(self) -> str:
        """The issuer claimed by the token; empty without one."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else ""


def is_token(credential: bytes) -> bool:
    """Return whether a credential looks like a signed token: it has a dot, which API keys never have."""
    return credential.startswith(BEGIN) and b"." in credential


def may_be_read(token: bytes) -> bool:
    """Return whether the bytes have the form of a signed token, of at most `TOKEN_BYTES_MAX`."""
    return len(token) <= TOKEN_BYTES_MAX and _PARTS.fullmatch(token) is not None


def read_token(token: bytes) -> SignedToken:
    """Return a parsed token, whose signature is not checked yet.

    Raise `InvalidApiKey` if it is malformed, or its type or algorithm is not accepted.
    """
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
    """Decode base64url. Raise `ValueError` unless the text is the canonical encoding."""
    decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise ValueError("bits behind the end")
    return decoded


def _object(part: bytes) -> dict[str, Any]:
    document = json.loads(
        _decoded(part).decode("utf-8"),
        object_pairs_hook=_once,
        parse_float=_double,
        parse_constant=_no_number,
    )
    if not isinstance(document, dict):
        raise ValueError("no object")  # noqa: TRY004  # reported like any malformed token
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name twice")
    return members


def _double(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("no double")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(name)


# The subject of a token by the rules of its issuer. Its signature was verified before.
#
# A token that lacks a claim that a rule needs, or has it in another type, is refused: there is no default
# access.

SUBJECTS_MAX: Final = 16
SUBJECT_CHARACTERS_MAX: Final = 512
USER_CHARACTERS_MAX: Final = 128
_NEVER: Final = 2.0**53


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """The key and user that a token stands for. `known_as` are names of keys: the first that exists counts.

    `ends` is in seconds since the epoch. `groups` are names of groups that it says its holder is in.
    """

    known_as: tuple[str, ...]
    user: str
    ends: float
    groups: tuple[str, ...] = ()


def read_claims(issuer: Issuer, claims: Mapping[str, Any], now: float) -> TokenSubject:
    """Return the subject of a token with these claims; `InvalidApiKey` if invalid at `now` (Unix time)."""
    if "events" in claims:
        # RFC 8417, 2.2: the token reports an event, such as a sign-out.
        raise refused(CLAIMS, "The token tells of events, so it is nobody's credential.")
    ends = _end(issuer, claims, now)
    # Refuse a token that was made for none of the issuer's audiences (RFC 7519, 4.1.3)
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(audience, str) and audience in issuer.audiences for audience in audiences):
        raise refused(AUDIENCE, "The token is not meant for this gateway.")
    for pointer, wanted in issuer.require:
        if not any(text in wanted for text in _texts(claims, pointer)):
            raise refused(CLAIMS, f"The token's claim {pointer} has none of the values that are accepted.")
    groups = tuple(dict.fromkeys(_texts(claims, issuer.groups)))
    return TokenSubject(_subjects(issuer, claims), _user(issuer, claims), ends, groups)


def _end(issuer: Issuer, claims: Mapping[str, Any], now: float) -> float:
    """Return the Unix time at which the token expires, leeway included (RFC 7519, 4.1.4 to 4.1.6)."""
    ends, begins, issued = (moment(claims, name) for name in ("exp", "nbf", "iat"))
    if ends is None:
        raise refused(EXPIRED, "The token does not say when it expires.")
    if ends + issuer.leeway_s <= now:
        raise refused(EXPIRED, "The token has expired.")
    if begins is not None and begins - issuer.leeway_s > now:
        raise refused(EXPIRED, "The token is not valid yet.")
    if issued is not None and issued - issuer.leeway_s > now:
        raise refused(EXPIRED, "The token says that it was issued later than now.")
    return ends + issuer.leeway_s


def moment(claims: Mapping[str, Any], name: str) -> float | None:
    """Return the time in a token's claim, in seconds since the epoch; None if it is missing."""
    claim = claims.get(name)
    if claim is None:
        return None
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not 0 <= claim < _NEVER:
        raise refused(CLAIMS, f"The token's {name} is no time.")
    return float(claim)


def _subjects(issuer: Issuer, claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of API keys for a token's subject, to be tried in this order.

    Raise `InvalidApiKey` if the token names no subject, or too many.
    """
    texts = _texts(claims, issuer.subject)
    names = [name for value, name in issuer.subjects if value in texts] if issuer.subjects else texts
    names = list(dict.fromkeys(names))
    if not names:
        raise refused(CLAIMS, f"The token's claim {issuer.subject} has no value that stands for somebody.")
    if len(names) > SUBJECTS_MAX or any(len(name) > SUBJECT_CHARACTERS_MAX for name in names):
        most = f"{SUBJECTS_MAX} values of {SUBJECT_CHARACTERS_MAX} characters"
        raise refused(CLAIMS, f"The token's claim {issuer.subject} has more than {most}.")
    return tuple(known_as(issuer.issuer, name) for name in names)


def _user(issuer: Issuer, claims: Mapping[str, Any]) -> str:
    """Return the user in a token's claims, "" if the issuer names none."""
    if not issuer.user:
        return ""
    user = _value_at(claims, issuer.user)
    texts = [] if isinstance(user, list) else _texts(claims, issuer.user)
    if len(texts) != 1 or len(texts[0]) > USER_CHARACTERS_MAX:
        right = f"one printable text of at most {USER_CHARACTERS_MAX} characters"
        raise refused(CLAIMS, f"The token's claim {issuer.user} must be {right}.")
    return texts[0]


def _texts(claims: Mapping[str, Any], pointer: str) -> list[str]:
    """Return the printable texts at a JSON pointer: one text, or those of a list. Whole numbers count too."""
    value = _value_at(claims, pointer)
    values = value if isinstance(value, list) else [value]
    texts = [str(item) if type(item) is int else item for item in values]
    printable = [text for text in texts if isinstance(text, str) and text.isprintable()]
    return [text for text in printable if text]


def _value_at(claims: Mapping[str, Any], pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901), or None."""
    value: Any = claims
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, dict) else None
    return value


# Sign-in to the console: identity providers (OpenID Connect Core 1.0), and the person in their ID tokens.

# How long a provider's confirmation of a person counts, and how long a session may last in all.
VOUCHED: Final = timedelta(hours=1)
LIFE_MAX: Final = timedelta(hours=12)
IDENTITY_CHARACTERS_MAX: Final = 255  # of a `sub` (OpenID Connect Core 1.0, 2)
USUAL_SCOPES: Final = ("openid", "email", "profile")
_EMAIL: Final = "/email"


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """A provider for sign-in to the console: `name` is part of its URLs here, `label` is for people.

    `issuer` has the rules for its ID tokens: their audience is the client's id, `subject` the claim by which
    admin tokens are found, `user` the claim that identifies the person. The client's secret is given, or in a
    file. With `end_session` signing out here also signs out there.
    """

    name: str
    label: str
    issuer: Issuer
    client_id: str
    client_secret: str = field(default="", repr=False)
    client_secret_file: str = ""
    scopes: tuple[str, ...] = USUAL_SCOPES
    end_session: bool = True


@dataclass(frozen=True, slots=True)
class SignIn:
    """Settings of sign-in; `console_url` is the public URL of the console."""

    console_url: str = ""
    providers: tuple[IdentityProvider, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """A person named by a provider. Their admin token is that of the first existing name in `known_as`.

    `groups` are names of groups that the provider says they are in.
    """

    who: PersonIdentity
    known_as: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """The result of a sign-in or its renewal: the person, None if a renewal did not name one.

    `renewal` is the credential for asking the provider later whether the person still has access; empty if it
    gives none. `id_token` is sent to the provider at sign-out; empty if it is not needed, or too long.
    """

    person: Person | None
    renewal: str = field(repr=False)
    id_token: str = field(default="", repr=False)


def read_person(
    provider: IdentityProvider, claims: Mapping[str, Any], nonce: str | None, now: float
) -> Person:
    """Return the person that a verified ID token names.

    Raise `InvalidApiKey` if it is meant for others, or names nobody. Its `nonce` must be that of the
    sign-in. A token from a renewal needs none (OpenID Connect Core 1.0, 12.2).
    """
    meaning = read_claims(provider.issuer, claims, now)
    audience, party = claims.get("aud"), claims.get("azp")
    alone = not isinstance(audience, list) or len(audience) == 1
    if party != provider.client_id and not (party is None and alone):
        raise refused(AUDIENCE, "The token was made for somebody else.")
    claim = claims.get("nonce")
    if nonce is not None and not (
        isinstance(claim, str) and hmac.compare_digest(_bytes(claim), _bytes(nonce))
    ):
        raise refused(CLAIMS, "The token is of another sign-in.")
    identity = claims.get("sub")
    if (
        not isinstance(identity, str)
        or not identity.isprintable()
        or not 0 < len(identity) <= IDENTITY_CHARACTERS_MAX
    ):
        raise refused(CLAIMS, "The token does not say whom it is of.")
    if _EMAIL in _believed(provider.issuer) and not _is_verified(claims):
        raise refused(CLAIMS, "The provider does not say that this address of e-mail is verified.")
    who = PersonIdentity(provider.issuer.issuer, identity, meaning.user or identity)
    return Person(who, meaning.known_as, meaning.groups)


def _believed(issuer: Issuer) -> set[str]:
    """Return the JSON pointers of all claims that decide whether a person may sign in, and as whom."""
    return {issuer.subject, issuer.user, *(pointer for pointer, _ in issuer.require)}


def _is_verified(claims: Mapping[str, Any]) -> bool:
    """Return whether the provider has verified the mail address; otherwise people could choose any."""
    claim = claims.get("email_verified")
    return claim is True or claim == "true"


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


# Signed tokens of an issuer, and the callers that they stand for.
