"""Keys at hand: read ahead, again for an unknown one, kept while their issuer is away."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.core.issuers import SignedToken, read_token
from gateway.errors import InvalidApiKey, IssuerUnavailable
from gateway.issuers.fetching import read_key_set
from gateway.issuers.key_set import KeySet, UnreadableKeys
from gateway.issuers.keys import AGAIN_S, FRESH_S, KEPT_S, WAITING_MAX, AllKeys, IssuerKeys
from tests.signing import ISSUER, ec_key, issuer, jwks, public_jwk, rsa_key, token
from tests.waiting import eventually

ONE, TWO = public_jwk(rsa_key(), kid="one"), public_jwk(ec_key(), kid="two")


class Server:
    """What an issuer publishes; `why` it cannot be read, and `held` until it answers."""

    def __init__(self) -> None:
        self.document, self.why, self.asked = jwks(ONE), "", 0
        self.held: threading.Event | None = None

    def read(self, _: object) -> KeySet:
        self.asked += 1
        if self.held is not None:
            assert self.held.wait(30)
        if self.why:
            raise UnreadableKeys(self.why)
        return read_key_set(self.document)


class Scene:
    """The keys of one issuer, by a clock of the test."""

    def __init__(self) -> None:
        self.now, self.server = 1000.0, Server()
        self.logged: list[tuple[str, object]] = []
        self.all = AllKeys(lambda: self.now, self.log, self.server.read)
        self.all.renew([issuer()])

    def log(self, event: str, **facts: object) -> None:
        self.logged.append((event, facts.get("why")))

    @property
    def keys(self) -> IssuerKeys:
        found = self.all.of(ISSUER)
        assert found is not None
        return found

    async def failure(self, said: SignedToken) -> str:
        with pytest.raises((InvalidApiKey, IssuerUnavailable)) as caught:
            await self.keys.find(said)
        wrong = caught.value
        return wrong.failure if isinstance(wrong, InvalidApiKey) else wrong.reason


GOOD = read_token(token())
OTHER = read_token(token(algorithm="ES256", kid="two"))


async def test_the_first_token_has_the_keys_read_and_whoever_comes_meanwhile_waits_for_them() -> None:
    scene = Scene()
    found = await asyncio.gather(*(scene.keys.find(GOOD) for _ in range(20)))
    assert {one.key_id for one in found} == {"one"}
    assert scene.server.asked == 1


async def test_a_new_key_is_good_after_a_pause_whatever_others_make_up_and_until_then_nobody_knows() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.server.document = jwks(ONE, TWO)
    told = []
    for second in range(int(AGAIN_S)):
        await scene.failure(read_token(token(kid=f"made up {second}")))
        with pytest.raises(IssuerUnavailable) as unknown:  # it was asked a moment ago
            await scene.keys.find(OTHER)
        told.append(unknown.value.retry_after_s)
        scene.now += 1.0
    assert told == list(range(int(AGAIN_S), 0, -1))
    assert (await scene.keys.find(OTHER)).key_id == "two"


async def test_a_flood_of_unknown_keys_asks_once_in_a_while() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    refused = 0
    for second in range(100):
        scene.now += 1.0
        failure = await scene.failure(read_token(token(kid=f"made up {second}")))
        assert failure in {"token_key", "issuer_unavailable"}
        refused += failure == "token_key"  # the issuer was asked for this very one
    assert scene.server.asked == 1 + refused == 1 + 100 // AGAIN_S


async def test_keys_are_kept_while_their_issuer_is_away_but_not_for_ever() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.server.why = "it is gone"
    scene.now += FRESH_S
    await scene.keys.refresh()
    assert scene.logged == [("issuer_read", None), ("issuer_unread", "it is gone")]
    assert (await scene.keys.find(GOOD)).key_id == "one"
    # Whether it has that key nobody knows.
    assert await scene.failure(OTHER) == "issuer_unavailable"
    has = scene.keys.keys.keys[0] if scene.keys.keys is not None else None
    assert has is not None
    assert scene.keys.has(has)
    scene.now += KEPT_S
    assert not scene.keys.has(has)  # nor by tokens that are known
    assert await scene.failure(GOOD) == "issuer_unavailable"
    scene.server.why = ""
    scene.now += AGAIN_S
    assert (await scene.keys.find(GOOD)).key_id == "one"
    assert scene.logged[2:] == [("issuer_read", None)]


async def test_metrics_say_which_issuer_cannot_be_read() -> None:
    scene = Scene()
    assert scene.all.unread() == [(ISSUER, 1)]  # not yet
    await scene.keys.refresh()
    assert scene.all.unread() == [(ISSUER, 0)]
    scene.server.why = "it is gone"
    scene.now += FRESH_S
    await scene.keys.refresh()
    assert scene.all.unread() == [(ISSUER, 1)]


async def test_no_more_calls_than_a_bound_wait_for_an_issuer() -> None:
    scene = Scene()
    held = scene.server.held = threading.Event()
    waiting = [asyncio.ensure_future(scene.keys.find(GOOD)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    assert await scene.failure(GOOD) == "issuer_unavailable"
    held.set()
    assert {one.key_id for one in await asyncio.gather(*waiting)} == {"one"}


async def test_who_waits_no_more_leaves_the_others_waiting() -> None:
    scene = Scene()
    held = scene.server.held = threading.Event()
    gone, stays = (asyncio.ensure_future(scene.keys.find(GOOD)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    held.set()
    assert (await stays).key_id == "one"
    assert scene.server.asked == 1


async def test_what_nobody_expected_of_a_document_is_a_failure_to_read_it() -> None:
    scene = Scene()

    def read(_: object) -> KeySet:
        raise LookupError

    scene.all = AllKeys(lambda: scene.now, scene.log, read)
    scene.all.renew([issuer()])
    assert await scene.failure(GOOD) == "issuer_unavailable"
    assert scene.logged == [("issuer_unread", "LookupError")]


async def test_keys_of_an_issuer_that_stays_as_it_was_stay_too() -> None:
    scene = Scene()
    await scene.keys.find(GOOD)
    scene.all.renew([issuer(), issuer(issuer="https://another.example")])
    await scene.keys.find(GOOD)
    assert scene.server.asked == 1
    scene.all.renew([issuer(audiences=("another",))])
    await scene.keys.find(GOOD)
    assert scene.server.asked == 2
    scene.all.renew([])
    assert scene.all.of(ISSUER) is None


async def test_keys_are_read_ahead_of_tokens() -> None:
    scene = Scene()
    keeping = asyncio.ensure_future(scene.all.keep_fresh())
    try:
        await eventually(lambda: scene.keys.keys is not None)
        assert not scene.keys.is_due
        scene.now += FRESH_S
        await eventually(lambda: scene.server.asked == 2)
    finally:
        keeping.cancel()


async def test_what_is_kept_is_at_hand_while_it_is_read_anew() -> None:
    scene = Scene()
    assert len((await scene.keys.at_hand()).keys) == 1
    scene.now += FRESH_S
    scene.server.document, scene.server.held = jwks(ONE, TWO), threading.Event()
    try:
        assert len((await scene.keys.at_hand()).keys) == 1
        await eventually(lambda: scene.server.asked == 2)
    finally:
        scene.server.held.set()

    async def has_both() -> bool:
        return len((await scene.keys.at_hand()).keys) == 2

    await eventually(has_both)
    scene.now += KEPT_S
    scene.server.why = "away"
    with pytest.raises(IssuerUnavailable):
        await scene.keys.at_hand()
