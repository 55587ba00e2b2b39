"""Keys of subjects, from the keeper through a real server to who shows a token: made, found, revoked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pytest

from gateway.core.accounts.definitions import KeyDefinition
from gateway.core.credentials import Peppers
from gateway.core.issuers import known_as
from gateway.core.model import Caller, Limits
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.stored import decode_identity, encode_identity
from gateway.counters.keeper.bulk import BulkLoader
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.errors import InvalidApiKey
from gateway.http.identity import key_digest
from gateway.issuers.callers import TokenCallers
from gateway.issuers.fetching import read_key_set
from gateway.issuers.keys import AllKeys
from tests.builders import World, driven
from tests.counters.conftest import Connect
from tests.signing import ISSUER, claims, issuer, jwks, token
from tests.waiting import eventually

PEPPER = b"a pepper of the tests"


def key_of(number: int, subject: str) -> KeyDefinition:
    digest = key_digest(known_as(ISSUER, subject).encode(), PEPPER)
    return KeyDefinition(number, 7, 1, digest, Limits(concurrency=2), models=frozenset({"m"}), of_tokens=True)


@dataclass(slots=True)
class Desk:
    """A keeper, and a gateway that is told what changes."""

    control: BulkLoader
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
    callers.renew([issuer(subject="/roles", user="/email")])
    found = all_keys.of(ISSUER)
    assert found is not None
    await found.refresh()
    return Desk(BulkLoader(await connect(world.url)), callers)


GOOD = token(claims(roles=["research", "everybody"], email="ada@example.com"))
RESEARCH, EVERYBODY = key_of(11, "research"), key_of(12, "everybody")


async def seen(desk: Desk, number: int | None) -> None:
    """Wait until a token is by this key, or by nobody's."""

    async def is_so() -> bool:
        found = await desk.asked(GOOD)
        expected = Caller(1, 7, number or 0, keys.partition_of(1), "ada@example.com", frozenset({"m"}))
        return found == (expected if number is not None else None)

    await eventually(is_so)


async def test_a_group_is_let_in_by_its_key_and_out_with_it(desk: Desk) -> None:
    assert await desk.asked(GOOD) is None
    for number, one in enumerate((RESEARCH, EVERYBODY)):
        assert await desk.control.define(one, number)
    await seen(desk, 11)
    await desk.control.define(replace(RESEARCH, revoked=True), 13)
    # Told by the server, for a token that is known: the next group's key is another's, and pays for nobody.
    await seen(desk, None)
    await desk.control.define(replace(RESEARCH, revoked=True, gone=True), 14)
    await seen(desk, 12)
    await desk.control.define(replace(EVERYBODY, revoked=True), 15)
    await seen(desk, None)


async def test_a_group_whose_key_has_expired_is_nobodys_until_its_end_is_moved(desk: Desk) -> None:
    for number, one in enumerate((RESEARCH, EVERYBODY)):
        assert await desk.control.define(one, number)
    await seen(desk, 11)
    now_ms = int(time.time() * 1000)
    await desk.control.define(replace(RESEARCH, expires_ms=now_ms - 1), 13)
    await seen(desk, None)
    await desk.control.define(replace(RESEARCH, expires_ms=now_ms + 600_000), 14)
    await seen(desk, 11)


async def test_the_newest_key_of_a_subject_has_the_word_whatever_comes_late(desk: Desk) -> None:
    newer = replace(RESEARCH, key_id=13)
    assert await desk.control.define(replace(RESEARCH, revoked=True), 1)
    assert await desk.control.define(newer, 2)
    await seen(desk, 13)
    for late in (replace(RESEARCH, revoked=True), replace(RESEARCH, revoked=True, gone=True), RESEARCH):
        await desk.control.identity(late)
        await desk.control.identities([late])
        found = await desk.control.ask_everybodys(b"GET", keys.identity(RESEARCH.digest).encode())
        assert found == encode_identity(Caller(1, 7, 13, keys.partition_of(1), "", frozenset({"m"})))
    await desk.control.identities([replace(newer, revoked=True), EVERYBODY])
    await seen(desk, None)


async def test_subjects_are_written_together_and_the_newest_key_of_each_has_the_word(
    desk: Desk, world: World
) -> None:
    """In whatever order they come: of two keys of one list, and beside one that is there already."""
    subjects = [key_of(20 + n, f"subject {n}") for n in range(50)]
    there, late = replace(subjects[0], key_id=90), replace(subjects[1], key_id=91)
    await desk.control.identities([there])
    world.client.config_resetstat()
    await desk.control.identities([late, *subjects])
    asked = world.client.info("commandstats")
    # One that is newer is there, and of two of one subject one is written.
    assert (asked["cmdstat_get"]["calls"], asked["cmdstat_set"]["calls"]) == (50, 49)
    found = [decode_identity(world.client.get(keys.identity(one.digest))).k for one in subjects]
    assert found == [90, 91, *range(22, 70)]


async def test_who_displaces_newer_keys_that_came_meanwhile_puts_them_back(
    desk: Desk, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = [key_of(20 + n, f"subject {n}") for n in range(3)]
    newer = [replace(one, key_id=one.key_id + 70) for one in subjects[:2]]
    original, others = desk.control.ask_together, BulkLoader(desk.control._wires)

    async def ask_together(commands: Iterable[Sequence[bytes]], *, everybodys: bool = False) -> list[Reply]:
        found = await original(commands, everybodys=everybodys)
        if newer:  # another keeper writes between our look and our word
            its = [*newer]
            newer.clear()
            await others.identities(its)
        return found

    monkeypatch.setattr(desk.control, "ask_together", ask_together)
    await desk.control.of_subjects(subjects)
    found = [decode_identity(world.client.get(keys.identity(one.digest))).k for one in subjects]
    assert (newer, found) == ([], [90, 91, 22])
