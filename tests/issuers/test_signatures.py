"""Keys and signatures: each algorithm by its own kind of key, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.core.issuers import FAMILY_OF, read_token
from gateway.issuers.fetching import KEYS_MAX, read_key_set
from gateway.issuers.key_set import UnreadableKeys
from tests.signing import claims, ec_key, ed_key, encoded_json, jwks, private_of, public_jwk, rsa_key, token

ALL = jwks(*(public_jwk(private_of(name), kid=name) for name in FAMILY_OF))


def verified(text: bytes, keys: bytes) -> bool:
    said = read_token(text)
    key = read_key_set(keys).find(said)
    return key is not None and key.verifies(said)


@pytest.mark.parametrize("algorithm", FAMILY_OF)
def test_each_algorithm_is_verified_by_its_own_key(algorithm: str) -> None:
    good = token(algorithm=algorithm, kid=algorithm)
    assert verified(good, ALL)
    head, said, signature = good.split(b".")
    other = encoded_json(claims(sub="somebody else"))
    assert not verified(b".".join((head, other, signature)), ALL)
    flipped = (b"A" if signature[:1] != b"A" else b"B") + signature[1:]
    assert not verified(b".".join((head, said, flipped)), ALL)
    shorter = signature[: len(signature) // 4 * 4 - 4]  # whole bytes: else it is no token at all
    assert not verified(b".".join((head, said, shorter)), ALL)


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    public = rsa_key().public_key()
    for form in (serialization.Encoding.PEM, serialization.Encoding.DER):
        secret = public.public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
        forged = token(algorithm="HS256", key=secret)
        with pytest.raises(Exception, match="algorithm is not accepted"):
            read_token(forged)


def test_a_key_verifies_algorithms_of_its_own_family_alone() -> None:
    keys = jwks(public_jwk(rsa_key(), kid="one", alg="RS256"), public_jwk(ec_key("ES384"), kid="two"))
    assert verified(token(kid="one"), keys)
    assert not verified(token(algorithm="PS256", kid="one"), keys)
    assert not verified(token(algorithm="ES256", kid="two"), keys)
    assert not verified(token(algorithm="ES256", kid="one"), keys)


def test_the_key_is_the_named_one_and_without_a_name_the_only_one() -> None:
    other = rsa_key(1)
    two = jwks(public_jwk(rsa_key(), kid="one"), public_jwk(other, kid="two"))
    assert verified(token(kid="one"), two)
    assert not verified(token(kid="two"), two)
    assert not verified(token(kid="three"), two)
    assert not verified(token(kid=None), two)
    assert verified(token(kid=None), jwks(public_jwk(rsa_key()), public_jwk(ec_key())))
    assert verified(token(kid=None), jwks(public_jwk(rsa_key(), kid="one")))
    for injected in ("../one", "one' OR '1'='1", "/dev/null", ""):
        assert not verified(token(kid=injected), two)


def test_a_key_that_the_token_brings_is_not_its_issuers() -> None:
    mine = rsa_key(1)
    brought = token(key=mine, jwk=public_jwk(mine, kid="one"), kid="one")
    assert not verified(brought, jwks())


@pytest.mark.parametrize(
    "written",
    [
        public_jwk(rsa_key(), kid="one", use="enc"),
        public_jwk(rsa_key(), kid="one", key_ops=["encrypt"]),
        public_jwk(rsa_key(), kid="one", key_ops="verify"),
        public_jwk(rsa_key(), kid="one", alg="HS256"),
        public_jwk(rsa_key(), kid="one", alg="RSA-OAEP"),
        public_jwk(rsa_key(), kid="one", d="AQAB"),
        public_jwk(rsa_key(), kid=1),
        public_jwk(rsa_key(2, 1024), kid="one"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
        {"kty": "RSA", "kid": "one"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "one"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "one"},
        "one",
        None,
    ],
)
def test_other_keys_are_left_alone_and_do_not_spoil_the_rest(written: Any) -> None:
    with pytest.raises(UnreadableKeys, match="none of its keys"):
        read_key_set(jwks(written))
    both = read_key_set(jwks(written, public_jwk(ed_key(), kid="two")))
    assert [one.key_id for one in both.keys] == ["two"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no JSON"),
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no list"),
        (b'{"keys":{}}', "no list"),
        (b'{"keys":[]}', "none of its keys"),
        (json.dumps({"keys": [{}] * (KEYS_MAX + 1)}).encode(), "65 keys, 64 are read at most"),
    ],
)
def test_a_document_without_keys_is_told(document: bytes, why: str) -> None:
    with pytest.raises(UnreadableKeys, match=why):
        read_key_set(document)
