"""Who may say who calls: an issuer of signed tokens, and by which of their claims."""

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

# A token may be signed by these alone: a secret that both sides know signs nothing here, and none is none.
FAMILY_OF: Final = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}  # fmt: skip
USUAL_ALGORITHMS: Final = ("RS256", "ES256")
LEEWAY_S: Final = 30.0
SUBJECT: Final = "/sub"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class PersonIdentity:
    """Whom a provider of identities has named: `identity` is who that is there for good, `name` what people
    call them.

    Two providers may name two people alike, and so may one of them: neither word is anybody without the
    `issuer`.
    """

    issuer: str
    identity: str
    name: str

    def is_who(self, other: PersonIdentity | None) -> bool:
        """Return whether it is the same person, whatever they are called meanwhile."""
        return other is not None and (self.issuer, self.identity) == (other.issuer, other.identity)


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer as the configuration has it. Claims are named by JSON pointers (RFC 6901).

    Its keys are in a file, at `jwks_uri`, or where its discovery document says; `token_file` holds what it is
    asked with. `subject` is the claim that API keys of tokens are found by, `subjects` what its values are
    called there; without any they are called as they are. `user` is the claim whose value is the user, empty
    for none. `require` are claims; a token must have one of these values of each. `proxies` are before it.
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
    proxies: Proxies = DIRECT


def known_as(issuer: str, subject: str) -> str:
    """Return the stand-in for a key, for the tokens of a subject: no request can send it as a key."""
    return f"\0{issuer}\0{subject}"


def may_fetch(url: str) -> bool:
    """Return whether an address is one that keys may come from: HTTPS, or this machine."""
    try:
        parts = urlsplit(url)
        well = bool(parts.hostname) and parts.port != 0 and parts.username is None and not parts.fragment
    except ValueError:
        return False
    return well and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK))


def may_lead_to(issuer: str, url: str) -> bool:
    """Return whether an issuer may refer to a URL: URLs of this machine are for its own issuers."""
    return may_fetch(url) and (not _is_here(url) or _is_here(issuer))


def _is_here(url: str) -> bool:
    """Return whether an address is this machine's by its text. Any other name would need its certificate."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


# A signed token (JWS compact serialization, RFC 7515) taken apart, before anything in it is believed.
#
# Bytes that could be read in two ways are none: a name twice, numbers that no double holds. Of the header
# only `alg`, `kid` and `typ` count. What else it offers (`jku`, `jwk`, `x5u`, `x5c`) is never looked at:
# whose key it is, the configuration says alone.

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
MALFORMED, ALGORITHM, UNKNOWN_ISSUER, UNKNOWN_KEY, SIGNATURE, EXPIRED, AUDIENCE, CLAIMS, SUBJECT_CLAIM = (
    FAILURES
)


def refused(failure: str, message: str) -> InvalidApiKey:
    """Return why a token is not accepted: in a word for people who watch, in a sentence for its sender."""
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
    """Return whether a credential is meant to be a token: keys of ours have no dot."""
    return credential.startswith(BEGIN) and b"." in credential


def may_be_read(token: bytes) -> bool:
    """Return whether it has the form of a signed token, of no more bytes than are read."""
    return len(token) <= TOKEN_BYTES_MAX and _PARTS.fullmatch(token) is not None


def read_token(token: bytes) -> SignedToken:
    """Parse a token; `InvalidApiKey` if it is malformed, or of a kind or algorithm that is not accepted."""
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
    """Return the written bytes; `ValueError` where other bits stand behind its end, as nobody writes it."""
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


# Whom the claims of a token stand for, by the rules of its issuer. Its signature was verified before.
#
# Where a rule asks for what a token does not say, or says in another kind, it is refused: nobody is let in
# by default.

SUBJECTS_MAX: Final = 16
SUBJECT_CHARACTERS_MAX: Final = 512
USER_CHARACTERS_MAX: Final = 128
_NEVER: Final = 2.0**53


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """Whose key a token stands for: one of `known_as`, the first that there is; whose user, and until when.

    `ends` is in seconds since the epoch.
    """

    known_as: tuple[str, ...]
    user: str
    ends: float


def read_claims(issuer: Issuer, claims: Mapping[str, Any], now: float) -> TokenSubject:
    """Return the subject of an issuer's token at a moment; `InvalidApiKey` where the token is not valid."""
    if "events" in claims:
        # RFC 8417, 2.2: it says that something happened, such as that somebody signed out.
        raise refused(CLAIMS, "The token tells of events, so it is nobody's credential.")
    ends = _end(issuer, claims, now)
    # Refuse a token that was made for none of the issuer's audiences (RFC 7519, 4.1.3)
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in issuer.audiences for one in audiences):
        raise refused(AUDIENCE, "The token is not meant for this gateway.")
    for pointer, wanted in issuer.require:
        if not any(one in wanted for one in _texts(claims, pointer)):
            raise refused(CLAIMS, f"The token's claim {pointer} has none of the values that are accepted.")
    return TokenSubject(_subjects(issuer, claims), _user(issuer, claims), ends)


def _end(issuer: Issuer, claims: Mapping[str, Any], now: float) -> float:
    """Return when the token ends, leeway included (RFC 7519, 4.1.4 to 4.1.6)."""
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
    """Return a time that a token says, in seconds since the epoch; None where it says none."""
    said = claims.get(name)
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < _NEVER:
        raise refused(CLAIMS, f"The token's {name} is no time.")
    return float(said)


def _subjects(issuer: Issuer, claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names by which the token's subjects have keys, in the order of trial."""
    said = _texts(claims, issuer.subject)
    names = [name for value, name in issuer.subjects if value in said] if issuer.subjects else said
    names = list(dict.fromkeys(names))
    if not names:
        raise refused(CLAIMS, f"The token's claim {issuer.subject} has no value that stands for somebody.")
    if len(names) > SUBJECTS_MAX or any(len(name) > SUBJECT_CHARACTERS_MAX for name in names):
        most = f"{SUBJECTS_MAX} values of {SUBJECT_CHARACTERS_MAX} characters"
        raise refused(CLAIMS, f"The token's claim {issuer.subject} has more than {most}.")
    return tuple(known_as(issuer.issuer, name) for name in names)


def _user(issuer: Issuer, claims: Mapping[str, Any]) -> str:
    if not issuer.user:
        return ""
    found = _found(claims, issuer.user)
    said = [] if isinstance(found, list) else _texts(claims, issuer.user)
    if len(said) != 1 or len(said[0]) > USER_CHARACTERS_MAX:
        right = f"one printable text of at most {USER_CHARACTERS_MAX} characters"
        raise refused(CLAIMS, f"The token's claim {issuer.user} must be {right}.")
    return said[0]


def _texts(claims: Mapping[str, Any], pointer: str) -> list[str]:
    """Return the printable texts at a pointer: one, those of a list, or none; a whole number is one."""
    found = _found(claims, pointer)
    said = found if isinstance(found, list) else [found]
    texts = [str(one) if type(one) is int else one for one in said]
    return [one for one in texts if isinstance(one, str) and one and one.isprintable()]


def _found(claims: Mapping[str, Any], pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901); None where there is none."""
    found: Any = claims
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


# Who may say who is at the console: providers of identities (OpenID Connect Core 1.0), and the person whom
# an ID token of theirs names.

# How long a provider's word of a person counts, and a session in all, however often it says so again.
VOUCHED: Final = timedelta(hours=1)
LIFE_MAX: Final = timedelta(hours=12)
IDENTITY_CHARACTERS_MAX: Final = 255  # of a `sub` (OpenID Connect Core 1.0, 2)
USUAL_SCOPES: Final = ("openid", "email", "profile")
_EMAIL: Final = "/email"


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """A provider by which people sign in: `name` is part of its addresses here, `label` what people read.

    `issuer` has the rules of its ID tokens: the client's id is their audience, `subject` is the claim that
    admin tokens are found by, `user` the one that says who it is. The secret is the client's, or in a file.
    Who signs out here does so there as well where it is to `end_session`.
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
    """How people sign in; `console_url` is where their browsers find the console."""

    console_url: str = ""
    providers: tuple[IdentityProvider, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a provider named; an admin token of one of `known_as` stands for them, the first that there is."""

    who: PersonIdentity
    known_as: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """Who came, None where it was not said again; and what the provider is asked with whether they still may.

    `renewal` is empty where the provider gives nothing for that. `id_token` is what it knows its own session
    by when they sign out; empty where it is not to be told, or is too long to.
    """

    person: Person | None
    renewal: str = field(repr=False)
    id_token: str = field(default="", repr=False)


def read_person(
    provider: IdentityProvider, claims: Mapping[str, Any], nonce: str | None, now: float
) -> Person:
    """Return the person of a verified ID token; `InvalidApiKey` where it was made for others, or names none.

    Its `nonce` must be that of the sign-in. One that comes later need have none (the same, 12.2).
    """
    meaning = read_claims(provider.issuer, claims, now)
    audience, party = claims.get("aud"), claims.get("azp")
    alone = not isinstance(audience, list) or len(audience) == 1
    if party != provider.client_id and not (party is None and alone):
        raise refused(AUDIENCE, "The token was made for somebody else.")
    said = claims.get("nonce")
    if nonce is not None and not (isinstance(said, str) and hmac.compare_digest(_bytes(said), _bytes(nonce))):
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
    return Person(who, meaning.known_as)


def _believed(issuer: Issuer) -> set[str]:
    """Return the claims that say who comes in, and as whom."""
    return {issuer.subject, issuer.user, *(pointer for pointer, _ in issuer.require)}


def _is_verified(claims: Mapping[str, Any]) -> bool:
    """Return whether the provider has made sure of the address; else people could choose whose it is."""
    said = claims.get("email_verified")
    return said is True or said == "true"


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


# What a signed token of an issuer says, and whom it stands for here.
