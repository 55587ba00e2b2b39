"""Tokens taken apart: what could be read in two ways, or is of another kind, is no token."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.issuers import TOKEN_BYTES_MAX, is_token, may_be_read, read_token
from gateway.errors import InvalidApiKey
from tests.signing import claims, encoded, encoded_json, rsa_key, token


def failure(text: bytes) -> str:
    with pytest.raises(InvalidApiKey) as caught:
        read_token(text)
    return caught.value.failure


def made(header: bytes, said: bytes, signature: bytes = b"x" * 32) -> bytes:
    return b".".join((encoded_json(header), encoded_json(said), encoded(signature).encode()))


HEADER = b'{"alg":"RS256"}'


def test_a_token_says_its_algorithm_its_key_and_its_claims() -> None:
    said = claims(sub="agent")
    found = read_token(token(said))
    assert (found.algorithm, found.key_id, found.claims, found.issuer) == ("RS256", "one", said, said["iss"])
    assert found.signed == token(said).rpartition(b".")[0]
    assert read_token(token(kid=None, typ=None)).key_id is None


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"}, {"alg": "None"}, {"alg": "HS256"}, {"alg": "HS512"}, {"alg": "dir"}, {"alg": "RS1"},
        {"alg": ["RS256"]}, {"alg": None}, {},
    ],
)  # fmt: skip
def test_only_signatures_of_key_pairs_count(header: dict[str, object]) -> None:
    assert failure(made(json.dumps(header).encode(), b"{}")) == "token_algorithm"


@pytest.mark.parametrize(
    "more",
    [
        {"crit": ["exp"]}, {"crit": []}, {"cty": "JWT"}, {"typ": "logout+jwt"}, {"typ": "dpop+jwt"},
        {"typ": 1}, {"kid": 1}, {"kid": ["one"]},
    ],
)  # fmt: skip
def test_headers_that_change_what_a_token_is_are_refused(more: dict[str, object]) -> None:
    header = json.dumps({"alg": "RS256"} | more).encode()
    assert failure(made(header, b"{}")) == "token_malformed"


def test_headers_that_offer_a_key_change_nothing() -> None:
    offered = {
        "jku": "https://evil.example",
        "x5u": "https://evil.example",
        "jwk": {"kty": "RSA"},
        "x5c": ["x"],
    }
    plain, found = read_token(token()), read_token(token(**offered))
    assert (found.algorithm, found.key_id) == (plain.algorithm, plain.key_id)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b'{"alg":"RS256","alg":"RS256"}', b"{}"), (HEADER, b'{"sub":"a","sub":"b"}'),
        (HEADER, b'{"a":{"b":1,"b":2}}'), (HEADER, b'{"exp":NaN}'), (HEADER, b'{"exp":1e999}'),
        (HEADER, b'{"exp":' + b"9" * 4400 + b"}"), (HEADER, b'{"sub":"\xff"}'), (HEADER, b'["sub"]'),
        (HEADER, b'"sub"'), (HEADER, b"{} {}"), (HEADER, b""), (b"[]", b"{}"),
        (HEADER, b'{"a":' + b"[" * 5000),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_no_token(header: bytes, said: bytes) -> None:
    assert failure(made(header, said)) == "token_malformed"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"eyJ", b"eyJ.eyJ", b"a.b.c.d.e", b"..", b"eyJhIjoxfQ..x", b"eyJhIjoxfQ.eyJhIjoxfQ.",
        b" " + token(key=rsa_key()), token(key=rsa_key()) + b"\n", token(key=rsa_key()) + b"=",
        token(key=rsa_key()).replace(b".", b" . "), token(claims(pad="x" * TOKEN_BYTES_MAX)),
    ],
)  # fmt: skip
def test_other_text_is_no_token(text: bytes) -> None:
    assert not may_be_read(text)
    assert failure(text) == "token_malformed"


@given(st.binary(min_size=1, max_size=40), st.integers(1, 63))
def test_a_part_is_written_in_one_way_alone(signature: bytes, more: int) -> None:
    """The last character of two or three has bits that stand for nothing (RFC 4648, 3.5)."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    whole = made(HEADER, b"{}", signature)
    assert read_token(whole).signature == signature
    other = whole[:-1] + bytes([alphabet[(alphabet.index(whole[-1:]) + more) % 64]])
    spare = {0: 0, 1: 4, 2: 2}[len(signature) % 3]
    if alphabet.index(other[-1:]) % (1 << spare):
        assert failure(other) == "token_malformed"
    else:
        assert read_token(other).signature != signature


@pytest.mark.parametrize("at", [0, 1])
def test_header_and_claims_are_too(at: int) -> None:
    parts = made(HEADER, b'{"a":1}', b"x").split(b".")
    said = b'{"alg":"RS256"} ' if at == 0 else b'{"a":1} 2'[:8]
    assert len(said) % 3 != 0
    parts[at] = encoded_json(said)
    read_token(b".".join(parts))
    last = parts[at][-1]
    parts[at] = parts[at][:-1] + bytes([last + 1])
    assert failure(b".".join(parts)) == "token_malformed"


def test_the_longest_token_that_is_read_is_told_before_it_is_taken_apart() -> None:
    longest = token(claims(sub="x" * 5000))
    assert len(longest) <= TOKEN_BYTES_MAX
    assert read_token(longest).claims["sub"] == "x" * 5000
    assert not may_be_read(longest + b"x" * (TOKEN_BYTES_MAX + 1 - len(longest)))


def test_keys_are_no_tokens() -> None:
    assert is_token(token())
    assert not any(is_token(key) for key in (b"tk_0123456789", b"sk-ant-1.2.3", b"eyJhIjoxfQ", b""))


@given(st.binary(max_size=300) | st.text("eyJ.-_a09=", max_size=300).map(str.encode))
def test_no_text_is_anything_but_a_token_or_refused(text: bytes) -> None:
    failures = []
    try:
        read_token(text)
    except InvalidApiKey as wrong:
        failures.append(wrong.failure)
    assert set(failures) <= {"token_malformed", "token_algorithm"}
