"""Callers with a signed token, through the data plane: known by it, limited as by a key, never forwarded."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gateway.core.credentials import Peppers
from gateway.core.issuers import TOKEN_BYTES_MAX, known_as
from gateway.http.identity import key_digest
from gateway.http.ports import Tokens
from gateway.issuers.callers import TokenCallers
from gateway.issuers.fetching import read_key_set
from gateway.issuers.key_set import KeySet, UnreadableKeys
from gateway.issuers.keys import AllKeys
from tests.http.fakes import ANSWER, CALLER, CHAT, KEY, PEPPER, FakeDirectory, get, post
from tests.http.stage import Answer, Stage, staged
from tests.signing import ISSUER, claims, issuer, jwks, rsa_key, token

OWN_KEY = b"authorization: Bearer " + KEY.encode() + b"\r\n"
AGENT = key_digest(known_as(ISSUER, "agent").encode(), PEPPER)


def verifying(directory: FakeDirectory, document: bytes = jwks(), **rules: object) -> Tokens:  # bytes
    """Tokens of the tests' issuer; its keys cannot be read where there is no document."""

    def read(_: object) -> KeySet:
        if not document:
            raise UnreadableKeys
        return read_key_set(document)

    keys = AllKeys(time.monotonic, lambda *_, **__: None, read)
    callers = TokenCallers(keys, directory, Peppers(PEPPER).digests, time.time)
    callers.renew([issuer(**rules)])
    return callers


def by_user(directory: FakeDirectory) -> Tokens:
    return verifying(directory, user="/email")


async def asked(stage: Stage, credential: bytes, field: bytes = b"authorization: Bearer ") -> Answer:
    return await stage.ask(post(CHAT).replace(OWN_KEY, field + credential + b"\r\n"))


@pytest.mark.parametrize(
    "field", [b"authorization: Bearer  ", b"Authorization: bearer ", b"x-api-key: ", b"x-goog-api-key: "]
)
async def test_a_token_stands_for_a_key_and_goes_no_further(field: bytes) -> None:
    async with staged(tokens=verifying, headers=()) as stage:
        good = token()
        for _ in range(2):
            got = await asked(stage, good, field)
            assert (got.status, got.body) == (200, ANSWER)
        assert set(stage.directory.digests) == {AGENT}
        assert [one.caller for one in stage.counters.settlements] == [CALLER, CALLER]
        sent = b"\r\n".join(b"%b: %b" % each for one in stage.upstream.received for each in one.headers)
        assert len(stage.upstream.received) == 2
        assert b"eyJ" not in sent
        assert "eyJ" not in repr(stage.logged)


async def test_keys_are_keys_still() -> None:
    async with staged(tokens=verifying) as stage:
        assert (await stage.ask(post(CHAT))).status == 200
        assert stage.directory.digests == [key_digest(KEY.encode(), PEPPER)]


async def test_the_tokens_user_is_whom_its_calls_act_for_whatever_they_say() -> None:
    async with staged(tokens=by_user) as stage:
        good = token(claims(email="ada@example.com"))
        named = post(CHAT, fields=b"x-tollkeeper-user: somebody else\r\n")
        got = await stage.ask(named.replace(OWN_KEY, b"authorization: Bearer " + good + b"\r\n"))
        assert got.status == 200
        (settled,) = stage.counters.settlements
        assert (settled.user, settled.caller) == ("ada@example.com", replace(CALLER, user="ada@example.com"))
        assert (await asked(stage, token())).status == 401  # it names nobody


async def test_without_an_issuer_a_token_is_an_unknown_key(stage: Stage) -> None:
    stage.directory.known = stage.directory.fresh = False
    assert (await asked(stage, token()[:512])).status == 401
    assert (await asked(stage, token())).status == 401
    assert (stage.failures.counts["unknown"], stage.failures.counts["malformed"]) == (1, 1)


async def test_two_credentials_that_differ_and_one_in_the_query_are_400() -> None:
    async with staged(tokens=verifying) as stage:
        good = token()
        for more in (b"x-api-key: " + KEY.encode(), b"x-api-key: " + token(claims(jti="2"))):
            fields = b"authorization: Bearer " + good + b"\r\n" + more + b"\r\n"
            got = await stage.ask(post(CHAT).replace(OWN_KEY, fields))
            assert (got.status, got.reason) == (400, "invalid_request")
        same = b"authorization: Bearer " + good + b"\r\nx-api-key: " + good + b"\r\n"
        assert (await stage.ask(post(CHAT).replace(OWN_KEY, same))).status == 200
        for name in (b"access_token", b"id_token", b"jwt", b"%61ccess-token"):
            got = await stage.ask(get(b"/v1/models?%b=%b" % (name, good)))
            assert (got.status, got.reason) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("credential", "failure"),
    [
        (token(claims(exp=int(time.time()) - 3600)), "token_expired"),
        (token(claims(aud="another")), "token_audience"),
        (token(claims(iss="https://another.example")), "token_issuer"),
        (token(claims(sub=None)), "token_claims"),
        (token(kid="another"), "token_key"),
        (token(key=rsa_key(1)), "token_signature"),
        (token(algorithm="HS256", key=b"secret"), "token_algorithm"),
        (token(crit=["exp"]), "token_malformed"),
        (token().replace(b".", b" ."), "malformed"),
        (b"eyJhbGciOiJub25lIn0.e30.", "malformed"),
        (token(claims(pad="x" * TOKEN_BYTES_MAX)), "malformed"),
    ],
)
async def test_whatever_is_wrong_with_a_token_is_401_and_counted_by_its_reason(
    credential: bytes, failure: str
) -> None:
    async with staged(tokens=verifying) as stage:
        got = await asked(stage, credential)
        assert (got.status, got.reason) == (401, "invalid_api_key")
        assert {name: count for name, count in stage.failures.counts.items() if count} == {failure: 1}
        assert stage.upstream.received == []
        assert b"eyJ" not in got.body
        assert "eyJ" not in repr(stage.logged)


async def test_a_subject_without_a_key_is_401() -> None:
    async with staged(tokens=verifying) as stage:
        stage.directory.known = stage.directory.fresh = False
        assert (await asked(stage, token())).status == 401
        assert stage.failures.counts["token_subject"] == 1


async def test_while_an_issuers_keys_cannot_be_read_nobody_is_wrong() -> None:
    async with staged(tokens=lambda directory: verifying(directory, b"")) as stage:
        got = await asked(stage, token())
        assert (got.status, got.reason) == (503, "issuer_unavailable")
        assert got.one(b"retry-after") == b"10"
        assert not any(stage.failures.counts.values())
