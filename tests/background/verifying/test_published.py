"""The lists of everybody are there again, as PostgreSQL has them, whoever lost them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from gateway.background.verifying.admission_gate import WHOLE_EACH, PublishedLists
from gateway.counters.admission.stored import decode_catalogue, encode_catalogue, version_standing
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from persistence.keeper.verification import LedgerReader
from tests.background.backend import Backend, backend_at
from tests.waiting import eventually

LISTS = [keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD]


@dataclass(slots=True)
class Desk:
    """A keeper that has verified everything, and what it looks at."""

    backend: Backend
    client: redis.Redis
    lists: PublishedLists
    told: list[tuple[str, dict[str, Any]]]
    may_write: list[bool]
    asked: list[int]
    key: str

    def stand(self) -> dict[str, bytes]:
        return {name: self.client.get(name) or b"" for name in LISTS}


@pytest.fixture
async def desk(valkey: str, migrated: str) -> AsyncIterator[Desk]:
    async with backend_at(valkey, migrated) as backend:
        await backend.settle_in()
        (model,) = backend.rows("select id from business_model where name = 'Consumption'")
        key = f"lists-{uuid.uuid4().hex}"
        await backend.made(
            "services", name=key, key=key, credits=8, service_type="Pay-As-You-Go",
            business_model_id=model["id"],
        )  # fmt: skip
        await backend.push()
        told: list[tuple[str, dict[str, Any]]] = []
        may_write, asked = [True], [0]

        def may() -> bool:
            asked[0] += 1
            return may_write[0]

        lists = PublishedLists(
            LedgerReader(backend.engine, partition_of), backend.counters, may,
            lambda what, **facts: told.append((what, facts)),
        )  # fmt: skip
        with backend.client() as client:
            yield Desk(backend, client, lists, told, may_write, asked, key)


async def test_what_stands_is_left_as_it_is(desk: Desk) -> None:
    before = desk.stand()
    for _ in range(WHOLE_EACH + 1):
        assert await desk.lists.look() == []
    assert (desk.stand(), desk.told) == (before, [])


@pytest.mark.parametrize("name", LISTS)
async def test_what_was_lost_is_written_again(desk: Desk, name: str) -> None:
    """Its slot was given out empty, or somebody deleted it; nothing else tells."""
    for _ in range(2):  # the second look asks whether the catalogue is there, and does not read it
        assert await desk.lists.look() == []
        desk.client.delete(name)
        assert await desk.lists.look() == [name]
        assert all(desk.stand().values())
        assert desk.key in decode_catalogue(desk.stand()[keys.CATALOGUE]).services
    assert await desk.lists.look() == []
    assert [(what, facts["keys"]) for what, facts in desk.told] == [("written again", [name])] * 2


async def test_an_older_catalogue_is_replaced(desk: Desk) -> None:
    assert await desk.lists.look() == []
    version = decode_catalogue(desk.stand()[keys.CATALOGUE]).version
    desk.client.set(keys.CATALOGUE, encode_catalogue(version - 1, []))
    looks = [await desk.lists.look() for _ in range(WHOLE_EACH)]
    assert [one for one in looks if one] == [[keys.CATALOGUE]]
    found = decode_catalogue(desk.stand()[keys.CATALOGUE])
    assert found.version >= version
    assert desk.key in found.services


async def test_a_postgresql_that_went_back_is_not_asked_for_ever(desk: Desk) -> None:
    desk.client.set(keys.CATALOGUE, encode_catalogue(10**9, []))
    assert await desk.lists.look() == []
    desk.client.delete(keys.CATALOGUE)
    assert await desk.lists.look() == [keys.CATALOGUE]
    assert [await desk.lists.look() for _ in range(WHOLE_EACH + 1)] == [[]] * (WHOLE_EACH + 1)
    assert desk.key in decode_catalogue(desk.stand()[keys.CATALOGUE]).services


async def test_where_others_write_nothing_is_written(desk: Desk) -> None:
    desk.client.delete(keys.CATALOGUE)
    desk.may_write[0] = False
    running = asyncio.create_task(desk.lists.run())
    await eventually(lambda: desk.asked[0] >= 2)
    assert desk.client.exists(keys.CATALOGUE) == 0
    desk.may_write[0] = True
    await eventually(lambda: desk.client.exists(keys.CATALOGUE) == 1)
    running.cancel()


@pytest.mark.parametrize("name", LISTS)
async def test_what_is_no_list_is_told_and_written_over(desk: Desk, name: str) -> None:
    """Nobody can read what stands there, and every gateway that starts would be without."""
    desk.client.delete(name)
    desk.client.rpush(name, "somebody else's")
    assert await desk.lists.look() == [name]
    if name != keys.PRICES:  # which no look reads
        for none in ("no list", '{"x":' + "[" * 100_000):
            desk.client.set(name, none)
            assert await desk.lists.look() == [name]
    assert all(version_standing(raw) > 0 for raw in desk.stand().values())
    assert {facts["stood_there"] for _, facts in desk.told} == {"something else"}
