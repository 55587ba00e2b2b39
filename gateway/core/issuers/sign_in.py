"""Who may say who is at the console: providers of identities (OpenID Connect Core 1.0), and the person whom
an ID token of theirs names.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from gateway.core.accounts.administration import KnownPerson
from gateway.core.issuers.claims import read_claims
from gateway.core.issuers.issuer import Issuer
from gateway.core.issuers.signed_token import AUDIENCE, CLAIMS, refused

# How long a provider's word of a person counts, and a session in all, however often it says so again.
VOUCHED: Final = timedelta(hours=1)
LIFE_MAX: Final = timedelta(hours=12)
IDENTITY_CHARACTERS_MAX: Final = 255  # of a `sub` (OpenID Connect Core 1.0, 2)
USUAL_SCOPES: Final = ("openid", "email", "profile")
_EMAIL: Final = "/email"


@dataclass(frozen=True, slots=True)
class Provider:
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
    providers: tuple[Provider, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a provider named; an admin token of one of `known_as` stands for them, the first that there is."""

    who: KnownPerson
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


def read_person(provider: Provider, claims: Mapping[str, Any], nonce: str | None, now: float) -> Person:
    """Whom a verified ID token names; `InvalidApiKey` where it was made for others, or names nobody.

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
    who = KnownPerson(provider.issuer.issuer, identity, meaning.user or identity)
    return Person(who, meaning.known_as)


def _believed(issuer: Issuer) -> set[str]:
    """The claims that say who comes in, and as whom."""
    return {issuer.subject, issuer.user, *(pointer for pointer, _ in issuer.require)}


def _is_verified(claims: Mapping[str, Any]) -> bool:
    """Whether the provider has made sure of the address; else people could choose whose it is."""
    said = claims.get("email_verified")
    return said is True or said == "true"


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
