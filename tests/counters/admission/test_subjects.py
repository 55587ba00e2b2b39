"""Keys of subjects, from the keeper through a real server to who shows a token: made, found, revoked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest

from gateway.core.accounts.definitions import KeyDefinition
from gateway.core.issuers.issuer import known_as
from gateway.core.model import Caller, Limits
from gateway.core.peppers import Peppers
from gateway.counters.admission.changes import HEARD
from gateway.counters.admission.directory import Directory
from gateway.counters.keeper.control import Control
from gateway.counters.redis import keys
from gateway.errors import InvalidApiKey
from gateway.http.routing.identity import key_digest
from gateway.issuers.callers import TokenCallers
from gateway.issuers.keys import AllKeys
from gateway.issuers.signatures import read_key_set
from tests.builders import World, driven
from tests.counters.conftest import Connect
from tests.signing import ISSUER, claims, issuer, jwks, token
from tests.waiting import eventually

PEPPER = b"a pepper of the tests"


def key_of(number: int, subject: str, *, revoked: bool = False) -> KeyDefinition:
    digest = key_digest(known_as(ISSUER, subject).encode(), PEPPER)
    return KeyDefinition(
        number, 7, 1, digest, Limits(concurrency=2), models=frozenset({"m"}), revoked=revoked
    )


@dataclass(slots=True)
class Desk:
    """A keeper, and a gateway that is told what changes."""

    control: Control
    callers: TokenCallers

    async def asked(self, text: bytes) -> Caller | None:
        """Who a call with this token is by; None for nobody."""
        digest = key_digest(text, PEPPER)
        try:
            return self.callers.cached(digest) or await driven(self.callers.identify(digest, text))
        except InvalidApiKey:
            return None


@pytest.fixture
async def desk(world: World, connect: Connect) -> Desk:
    wire = await connect(world.url, hears=HEARD)
    world.client.set(keys.verified(0), wire.run_id)
    all_keys = AllKeys(time.monotonic, lambda *_, **__: None, lambda _: read_key_set(jwks()))
    directory = Directory(wire, time.monotonic)
    callers = TokenCallers(all_keys, directory, Peppers(PEPPER).digests, time.time)
    callers.renew([issuer(subject="/groups", user="/email")])
    found = all_keys.of(ISSUER)
    assert found is not None
    await found.refresh()
    return Desk(Control(await connect(world.url)), callers)


async def test_a_group_is_let_in_by_its_key_and_out_with_it(desk: Desk) -> None:
    good = token(claims(groups=["research", "everybody"], email="ada@example.com"))
    assert await desk.asked(good) is None
    for number, subject in ((11, "research"), (12, "everybody")):
        assert await desk.control.define(key_of(number, subject), number)

    async def is_by(number: int) -> bool:
        found = await desk.asked(good)
        expected = Caller(1, 7, number, keys.partition_of(1), "ada@example.com", frozenset({"m"}))
        return found == expected

    await eventually(lambda: is_by(11))
    await desk.control.define(replace(key_of(11, "research"), revoked=True), 13)
    # Told by the server, for a token that is known: the next group is whose calls these are.
    await eventually(lambda: is_by(12))
    await desk.control.define(replace(key_of(12, "everybody"), revoked=True), 14)

    async def is_nobody() -> bool:
        return await desk.asked(good) is None

    await eventually(is_nobody)
