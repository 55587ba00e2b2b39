"""Whom an ID token names, once its signature is verified."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.core.issuers import IdentityProvider, Issuer, Person, PersonIdentity, known_as, read_person
from gateway.errors import InvalidApiKey
from tests.signing import ISSUER, claims


def provider(**rules: Any) -> IdentityProvider:
    return IdentityProvider("a", "A", Issuer(ISSUER, ("console",), **rules), "console")


def said(**more: object) -> dict[str, Any]:
    return claims(**{"aud": "console", "nonce": "n", "sub": "u-1"} | more)


def test_a_person_is_known_for_good_by_their_id_and_to_people_by_their_name() -> None:
    now = time.time()
    assert read_person(provider(), said(), "n", now) == Person(
        PersonIdentity(ISSUER, "u-1", "u-1"), (known_as(ISSUER, "u-1"),)
    )
    named = said(name="Kim", groups=["b", "a", "b"])
    found = read_person(provider(subject="/groups", user="/name"), named, "n", now)
    assert found == Person(
        PersonIdentity(ISSUER, "u-1", "Kim"), (known_as(ISSUER, "b"), known_as(ISSUER, "a")), ("b", "a")
    )


@pytest.mark.parametrize(
    "more",
    [
        {"aud": ["console"]},
        {"azp": "console"},
        {"aud": ["console", "api"], "azp": "console"},
    ],
)
def test_a_token_for_this_client_is_taken(more: dict[str, object]) -> None:
    assert read_person(provider(), said(**more), "n", time.time()).who.identity == "u-1"


@pytest.mark.parametrize("rule", ["subject", "user", "require"])
def test_an_address_that_the_provider_has_not_verified_is_nobodys(rule: str) -> None:
    """Else whoever may type in an address would have what its owner has."""
    wanted = (("/email", ("kim@example.com",)),) if rule == "require" else "/email"
    by_mail, now = provider(**{rule: wanted}), time.time()
    for verified in (True, "true"):
        mailed = said(email="kim@example.com", email_verified=verified)
        assert read_person(by_mail, mailed, "n", now).who.identity == "u-1"
    for verified in (None, False, "false", 1, "yes"):
        with pytest.raises(InvalidApiKey, match="is verified"):
            read_person(by_mail, said(email="kim@example.com", email_verified=verified), "n", now)
