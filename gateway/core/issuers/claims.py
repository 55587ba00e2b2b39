"""Whom the claims of a token stand for, by the rules of its issuer. Its signature was verified before.

Where a rule asks for what a token does not say, or says in another kind, it is refused: nobody is let in
by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.issuers.issuer import Issuer, known_as
from gateway.core.issuers.signed_token import AUDIENCE, CLAIMS, EXPIRED, refused

SUBJECTS_MAX: Final = 16
SUBJECT_CHARACTERS_MAX: Final = 512
USER_CHARACTERS_MAX: Final = 128
_NEVER: Final = 2.0**53


@dataclass(frozen=True, slots=True)
class Meaning:
    """Whose key a token stands for: one of `known_as`, the first that there is; whose user, and until when.

    `ends` is in seconds since the epoch.
    """

    known_as: tuple[str, ...]
    user: str
    ends: float


def read_claims(issuer: Issuer, claims: Mapping[str, Any], now: float) -> Meaning:
    """What a token of this issuer means at a moment; `InvalidApiKey` where it means nothing."""
    if "events" in claims:
        # RFC 8417, 2.2: it says that something happened, such as that somebody signed out.
        raise refused(CLAIMS, "The token tells of events, so it is nobody's credential.")
    ends = _end(issuer, claims, now)
    require_audience(issuer, claims)
    for pointer, wanted in issuer.require:
        if not any(one in wanted for one in _texts(claims, pointer)):
            raise refused(CLAIMS, f"The token's claim {pointer} has none of the values that are accepted.")
    return Meaning(_subjects(issuer, claims), _user(issuer, claims), ends)


def require_audience(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """Refuse a token that was made for none of the issuer's audiences (RFC 7519, 4.1.3)."""
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in issuer.audiences for one in audiences):
        raise refused(AUDIENCE, "The token is not meant for this gateway.")


def _end(issuer: Issuer, claims: Mapping[str, Any], now: float) -> float:
    """When the token ends, leeway included (RFC 7519, 4.1.4 to 4.1.6)."""
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
    """A time that a token says, in seconds since the epoch; None where it says none."""
    said = claims.get(name)
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < _NEVER:
        raise refused(CLAIMS, f"The token's {name} is no time.")
    return float(said)


def _subjects(issuer: Issuer, claims: Mapping[str, Any]) -> tuple[str, ...]:
    """What keys of the token's subjects are known as, in the order in which they are tried."""
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
    """The printable texts that a pointer finds: one, those of a list, or none; a whole number is one too."""
    found = _found(claims, pointer)
    said = found if isinstance(found, list) else [found]
    texts = [str(one) if type(one) is int else one for one in said]
    return [one for one in texts if isinstance(one, str) and one and one.isprintable()]


def _found(claims: Mapping[str, Any], pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) finds; None where it finds nothing."""
    found: Any = claims
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found
