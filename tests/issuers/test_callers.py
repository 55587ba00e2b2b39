"""Who a token stands for, and how soon it stands for nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from gateway.core.issuers import Issuer, known_as
from gateway.core.model import Caller
from gateway.errors import EndedApiKey, InvalidApiKey, IssuerUnavailable
from gateway.issuers.callers import AGAIN_S, ENTRY_BYTES, SUBJECT_BYTES, TokenCallers
from gateway.issuers.fetching import read_key_set
from gateway.issuers.key_set import KeySet, UnreadableKeys
from gateway.issuers.keys import FRESH_S, AllKeys
from tests.signing import ISSUER, claims, ec_key, issuer, jwks, public_jwk, rsa_key, token
from tests.waiting import HUNG_S

CALLER = Caller(1, 2, 3, 4)
AGENT = known_as(ISSUER, "agent")


class Directory:
    """Keys by what stands in their place, each for a caller."""

    def __init__(self) -> None:
        self.there: dict[str, Caller] = {AGENT: CALLER}
        self.ended: set[str] = set()
        self.asked: list[str] = []

    def cached(self, digest: str) -> Caller | None:
        return self.there.get(digest)

    async def identify(self, digest: str) -> Caller:
        self.asked.append(digest)
        found = self.there.get(digest)
        if found is None:
            raise EndedApiKey if digest in self.ended else InvalidApiKey
        return found


class Scene:
    """Callers by tokens, with clocks of the test; `away` says why the issuer's keys cannot be read."""

    def __init__(
        self,
        *issuers: Issuer,
        bytes_max: int = 1 << 20,
        digests_of: Callable[[str], Sequence[str]] = lambda name: (name,),
    ) -> None:
        self.past, self.document, self.away, self.directory = 0.0, jwks(), "", Directory()
        self.read_began, self.may_be_read = threading.Event(), threading.Event()
        self.may_be_read.set()
        self.keys = AllKeys(lambda: 1000.0 + self.past, lambda *_, **__: None, self.read)
        self.callers = TokenCallers(
            self.keys,
            self.directory,
            digests_of,
            lambda: time.time() + self.past,
            bytes_max=bytes_max,
        )
        self.callers.renew(issuers or (issuer(),))

    def read(self, _: object) -> KeySet:
        self.read_began.set()
        assert self.may_be_read.wait(HUNG_S)
        if self.away:
            raise UnreadableKeys(self.away)
        return read_key_set(self.document)

    async def asked(self, text: bytes) -> Caller | str:
        """Who a call with this token is by, as the data plane asks; else why it is nobody's."""
        digest = text.hex()
        try:
            return self.callers.cached(digest) or await self.callers.identify(digest, text)
        except InvalidApiKey as wrong:
            return wrong.failure
        except IssuerUnavailable as unknown:
            return unknown.reason


async def test_a_token_is_verified_once_and_known_from_then_on() -> None:
    scene, good = Scene(), token()
    assert scene.callers.cached(good.hex()) is None
    assert await scene.asked(good) == CALLER
    assert scene.callers.cached(good.hex()) is CALLER
    assert scene.callers.cached(token(claims(jti="another")).hex()) is None


async def test_its_user_acts_unless_the_key_has_one_of_its_own() -> None:
    scene, good = Scene(issuer(user="/email")), token(claims(email="ada@example.com"))
    assert await scene.asked(good) == replace(CALLER, user="ada@example.com")
    known = scene.callers.cached(good.hex())
    assert scene.callers.cached(good.hex()) is known
    scene.directory.there[AGENT] = replace(CALLER, user="batch")
    assert scene.callers.cached(good.hex()) == replace(CALLER, user="batch")


async def test_groups_of_its_token_are_claims_of_the_caller() -> None:
    scene, good = Scene(), token(claims(groups=["b", "a"]))
    assert await scene.asked(good) == replace(CALLER, claims=("b", "a"))
    assert await scene.asked(token(claims(groups=[]))) == CALLER
    changed = scene.directory.there[AGENT] = replace(CALLER, priority="batch")
    assert scene.callers.cached(good.hex()) == replace(changed, claims=("b", "a"))


async def test_who_revokes_a_key_is_obeyed_by_tokens_that_are_known() -> None:
    scene, good = Scene(), token()
    await scene.asked(good)
    scene.directory.there.clear()
    assert await scene.asked(good) == "token_subject"
    scene.directory.there[AGENT] = CALLER
    assert await scene.asked(good) == CALLER


async def test_the_first_group_that_has_a_key_decides_and_is_asked_for_again() -> None:
    scene, good = Scene(issuer(subject="/roles")), token(claims(roles=["a", "b"]))
    first, second = known_as(ISSUER, "a"), known_as(ISSUER, "b")
    scene.directory.there = {second: replace(CALLER, key_id=2)}
    assert await scene.asked(good) == replace(CALLER, key_id=2)
    scene.directory.there[first] = replace(CALLER, key_id=1)
    assert await scene.asked(good) == replace(CALLER, key_id=2)
    scene.past += AGAIN_S
    assert await scene.asked(good) == replace(CALLER, key_id=1)
    del scene.directory.there[first]  # a key that is deleted, at once
    assert await scene.asked(good) == replace(CALLER, key_id=2)
    scene.directory.there.clear()
    assert await scene.asked(good) == "token_subject"


async def test_a_first_group_whose_key_has_ended_stands_for_nobody_and_not_for_the_next() -> None:
    scene, good = Scene(issuer(subject="/roles")), token(claims(roles=["none", "a", "b"]))
    first, second = known_as(ISSUER, "a"), known_as(ISSUER, "b")
    scene.directory.there = {first: replace(CALLER, key_id=1), second: replace(CALLER, key_id=2)}
    assert await scene.asked(good) == replace(CALLER, key_id=1)
    del scene.directory.there[first]
    scene.directory.ended.add(first)
    assert await scene.asked(good) == "token_subject"
    scene.past += AGAIN_S
    assert await scene.asked(good) == "token_subject"
    assert second not in scene.directory.asked
    scene.directory.ended.clear()
    assert await scene.asked(good) == replace(CALLER, key_id=2)


async def test_a_key_that_lives_counts_before_one_of_the_same_subject_that_has_ended() -> None:
    """Under another pepper the same subject has another digest."""
    scene = Scene(digests_of=lambda name: (f"new {name}", f"old {name}"))
    scene.directory.there, scene.directory.ended = {f"old {AGENT}": CALLER}, {f"new {AGENT}"}
    assert await scene.asked(token()) == CALLER


async def test_a_token_that_is_known_ends_when_it_says() -> None:
    scene = Scene(issuer(leeway_s=0.0))
    good = token(claims(exp=int(time.time()) + 600))
    assert await scene.asked(good) == CALLER
    scene.past += 601
    assert scene.callers.cached(good.hex()) is None
    assert await scene.asked(good) == "token_expired"


async def test_a_key_that_its_issuer_took_back_is_no_key_a_moment_later() -> None:
    scene, good = Scene(), token()
    await scene.asked(good)
    scene.document = jwks(public_jwk(rsa_key(1), kid="one"))
    scene.past += FRESH_S
    found = scene.keys.of(ISSUER)
    assert found is not None
    await found.refresh()
    assert await scene.asked(good) == "token_signature"


async def test_other_issuers_algorithms_and_signatures_are_refused() -> None:
    scene = Scene(issuer(algorithms=("RS256",)))
    scene.document = jwks(public_jwk(rsa_key(), kid="one"), public_jwk(ec_key(), kid="two"))
    assert await scene.asked(token(claims(iss="https://issuer.example/"))) == "token_issuer"
    assert await scene.asked(token(claims(iss=None))) == "token_issuer"
    assert await scene.asked(token(claims(iss=[ISSUER]))) == "token_issuer"
    assert await scene.asked(token(algorithm="ES256", kid="two")) == "token_algorithm"
    assert await scene.asked(token(key=rsa_key(1))) == "token_signature"
    assert await scene.asked(token() + b"AA") == "token_signature"
    assert await scene.asked(token(kid="x")) == "issuer_unavailable"  # it may be new
    assert await scene.asked(token(claims(aud="another"), kid="x")) == "token_audience"
    assert await scene.asked(token(claims(aud="another"))) == "token_audience"
    assert await scene.asked(token(claims(sub="nobody"))) == "token_subject"
    # Only the last of them was worth a question.
    assert scene.directory.asked == [known_as(ISSUER, "nobody")]


async def test_nobody_is_unknown_while_the_issuer_cannot_be_asked() -> None:
    scene = Scene()
    scene.away = "it is away"
    assert await scene.asked(token()) == "issuer_unavailable"
    assert await scene.asked(token(claims(iss="https://another.example"))) == "token_issuer"


async def test_what_is_kept_of_tokens_is_bounded_in_bytes_and_of_refused_ones_nothing() -> None:
    scene = Scene(bytes_max=3 * (ENTRY_BYTES + SUBJECT_BYTES))
    tokens = [token(claims(jti=str(number))) for number in range(5)]
    for each in tokens:
        await scene.asked(each)
        await scene.asked(token(claims(sub="nobody")))
    assert [scene.callers.cached(each.hex()) is not None for each in tokens] == [False] * 2 + [True] * 3


async def test_other_rules_count_for_tokens_that_are_known() -> None:
    scene, good = Scene(), token()
    await scene.asked(good)
    scene.callers.renew([issuer(audiences=("another",))])
    assert await scene.asked(good) == "token_audience"
    assert scene.callers.snapshot() == {"issuers_unread": [(ISSUER, 1)]}  # nobody was asked for that
    scene.callers.renew([])
    assert not scene.callers.accepts
    assert scene.callers.snapshot() == {}


@pytest.mark.parametrize("claim", ["/realm/roles", "/kubernetes.io/namespace"])
async def test_a_claim_may_be_deep(claim: str) -> None:
    scene = Scene(issuer(subject=claim))
    said = {"realm": {"roles": ["agent"]}, "kubernetes.io": {"namespace": "agent"}}
    assert await scene.asked(token(claims(**said))) == CALLER


@pytest.mark.parametrize(
    ("left", "why"), [([], "token_issuer"), ([issuer(audiences=("another",))], "token_audience")]
)
async def test_other_rules_count_for_a_token_that_is_verified_when_they_come(
    left: list[Issuer], why: str
) -> None:
    scene, good = Scene(), token()
    scene.may_be_read.clear()
    asking = asyncio.ensure_future(scene.asked(good))
    try:
        assert await asyncio.to_thread(scene.read_began.wait, 60)
        scene.callers.renew(left)
    finally:
        scene.may_be_read.set()
    assert await asking == CALLER  # it came before them
    assert scene.callers.cached(good.hex()) is None
    assert await scene.asked(good) == why
