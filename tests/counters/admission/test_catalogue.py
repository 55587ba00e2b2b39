"""The catalogue of a worker: kept where another one cannot be read, and followed again once it can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from gateway.core.accounts.definitions import OrganizationTerms
from gateway.core.model import Caller, Service
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.stored import (
    encode_catalogue,
    encode_head,
    encode_identity,
    encode_prices,
    encode_terms,
)
from gateway.counters.redis import keys
from gateway.errors import CountersRefused
from tests.builders import driven
from tests.counters.conftest import Connect
from tests.waiting import eventually

CHAT, IMAGES = Service(1, "chat"), Service(2, "images")
UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"version":9}',
    b'{"version":9,"services":{"chat":{"id":"one","key":"chat"}}}',
    b'{"version":9,"services":[]}',
    b'{"version":-1,"services":{}}',
    b'{"version":9007199254740992,"services":{}}',
    b'{"version":9,"services":{},"more":' + b"[" * 100_000,
]


@dataclass(slots=True)
class Shelf:
    """A worker's directory, what it said, and the server it reads."""

    directory: Directory
    client: redis.Redis
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def unread(self) -> dict[str, int]:
        return dict(self.directory.unread)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.directory.keep_fresh())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()


@pytest.fixture
async def shelf(valkey: str, connect: Connect) -> Shelf:
    said: list[tuple[str, dict[str, Any]]] = []
    directory = Directory(
        await connect(valkey), time.monotonic, log=lambda what, **facts: said.append((what, facts))
    )
    client = redis.Redis.from_url(valkey)
    client.delete(keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD)
    return Shelf(directory, client, said)


@pytest.mark.parametrize("raw", UNREADABLE, ids=lambda raw: raw[:40].decode("latin-1"))
async def test_the_last_catalogue_that_could_be_read_stays_until_another_can(
    shelf: Shelf, raw: bytes
) -> None:
    shelf.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT]))
    async with shelf.followed():
        await eventually(lambda: shelf.directory.version == 4)
        assert (shelf.unread["catalogue"], shelf.said) == (0, [])
        shelf.client.set(keys.CATALOGUE, raw)
        await eventually(lambda: shelf.unread["catalogue"] == 1)
        assert (shelf.directory.version, shelf.directory.service("chat")) == (4, CHAT)
        # What else is looked at in the same turn is looked at on.
        shelf.client.set(keys.PRICES, encode_prices(3, []))
        shelf.client.set(keys.PRICES_HEAD, encode_head(3, encode_prices(3, [])))
        await eventually(lambda: shelf.directory.prices.version == 3)
        [(what, facts)] = shelf.said
        assert (what, facts["in_force"], facts["level"]) == ("catalogue cannot be read", 4, "error")
        shelf.client.set(keys.CATALOGUE, encode_catalogue(5, [CHAT, IMAGES]))
        await eventually(lambda: shelf.directory.version == 5)
        assert (shelf.unread["catalogue"], shelf.directory.service("images")) == (0, IMAGES)


async def test_a_catalogue_of_another_type_is_told_of_and_the_last_one_stays(shelf: Shelf) -> None:
    shelf.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT]))
    async with shelf.followed():
        await eventually(lambda: shelf.directory.version == 4)
        shelf.client.delete(keys.CATALOGUE)
        shelf.client.rpush(keys.CATALOGUE, "no text")
        await eventually(lambda: shelf.unread["catalogue"] == 1)
        assert shelf.directory.service("chat") == CHAT
        [(_, facts)] = shelf.said
        assert "WRONGTYPE" in facts["error"]


async def test_the_same_catalogue_that_is_back_can_be_read_again(shelf: Shelf) -> None:
    good = encode_catalogue(4, [CHAT])
    async with shelf.followed():
        for times in range(1, 3):
            shelf.client.set(keys.CATALOGUE, good)
            await eventually(lambda: shelf.directory.version == 4 and not shelf.unread["catalogue"])
            shelf.client.set(keys.CATALOGUE, b"{")
            await eventually(lambda: shelf.unread["catalogue"] == 1)
            assert len(shelf.said) == times


async def test_a_call_that_looks_for_a_newer_one_goes_on_with_the_last(shelf: Shelf) -> None:
    shelf.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT]))
    await driven(shelf.directory.refresh())
    shelf.client.set(keys.CATALOGUE, b"[]")
    await driven(shelf.directory.refresh())
    assert (shelf.directory.service("chat"), shelf.unread["catalogue"]) == (CHAT, 1)


async def test_a_worker_that_finds_none_it_can_read_begins_all_the_same(shelf: Shelf) -> None:
    shelf.client.set(keys.CATALOGUE, b"{")
    assert not await shelf.directory.first_catalogue(0.05)
    assert [what for what, _ in shelf.said] == ["catalogue cannot be read"]
    shelf.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT]))
    assert await shelf.directory.first_catalogue(10.0)


async def test_prices_that_cannot_be_read_are_counted_until_others_can(shelf: Shelf) -> None:
    for raw, count in ((b'{"more":' + b"[" * 100_000, 1), (encode_prices(3, []), 0)):
        shelf.client.set(keys.PRICES, raw)
        shelf.client.set(keys.PRICES_HEAD, encode_head(3, raw))
        await shelf.directory.prices.refresh()
        assert shelf.unread["prices"] == count


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b'{"o":"one"}', b'{"more":' + b"[" * 100_000])
async def test_a_caller_whom_nobody_can_read_is_refused_until_that_is_put_right(
    shelf: Shelf, raw: bytes
) -> None:
    digest, caller = "e" * 64, Caller(1, 7, 3, keys.partition_of(1))
    good = {
        keys.identity(digest): encode_identity(caller),
        keys.organization_terms(1): encode_terms(1, OrganizationTerms()),
    }
    for broken in good:
        shelf.client.mset(good | {broken: raw})
        with pytest.raises(CountersRefused, match="cannot be read"):
            await driven(shelf.directory.identify(digest))
        shelf.client.mset(good)
        assert await driven(shelf.directory.identify(digest)) == caller
        shelf.directory._known.drop(digest)
        shelf.directory._terms.drop(1)
