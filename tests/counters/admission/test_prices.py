"""The price book of a worker: followed, in force by the clock, and kept where a newer one cannot be read."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from gateway.core.accounts.definitions import PricesDefinition
from gateway.core.billing.price_book import read_price
from gateway.core.billing.vector import ModelPrice
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.catalogue import CATALOGUE_S
from gateway.counters.admission.stored import PRICES_LAYOUT, encode_head
from gateway.counters.keeper.control_writes import ControlClient
from gateway.counters.redis import keys
from tests.core.billing.prices import price_row
from tests.counters.conftest import Connect
from tests.waiting import eventually

NOW_MS = 1_768_392_000_000


@dataclass(slots=True)
class Till:
    """A worker's directory and the keeper that tells it."""

    directory: Directory
    control: ControlClient
    client: redis.Redis
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def tell(self, version: int, *prices: ModelPrice) -> None:
        assert await self.control.define(PricesDefinition(prices), version) is True

    def found(self, model: str = "gpt-x", at_ms: int = NOW_MS) -> int | None:
        vector = self.directory.prices.vector(model, "USD", at_ms)
        return vector.price_id if vector else None


@pytest.fixture
async def till(valkey: str, connect: Connect) -> Till:
    said: list[tuple[str, dict[str, Any]]] = []
    directory = Directory(
        await connect(valkey), time.monotonic, log=lambda what, **facts: said.append((what, facts))
    )
    client = redis.Redis.from_url(valkey)
    client.delete(keys.PRICES, keys.PRICES_HEAD)
    return Till(directory, ControlClient(await connect(valkey)), client, said)


def price(number: int, at_ms: int = 0, **over: Any) -> ModelPrice:
    since = datetime.fromtimestamp(at_ms / 1000, UTC)
    return read_price(price_row(id=number, model="gpt-x", effective_from=since, input="2.5", **over))


async def test_there_is_no_price_before_the_first_book(till: Till) -> None:
    await till.directory.prices.refresh()
    assert (till.directory.prices.version, till.found()) == (0, None)


async def test_prices_that_were_lost_are_read_once_they_are_back(till: Till) -> None:
    """Their head was left, or is written again as it was."""
    await till.tell(5, price(1))
    book = till.client.getdel(keys.PRICES)
    for _ in range(2):
        await till.directory.prices.refresh()
    assert (till.directory.prices.version, [what for what, _ in till.said]) == (0, ["prices cannot be read"])
    assert isinstance(book, bytes)
    till.client.set(keys.PRICES, book)
    await till.directory.prices.refresh()
    assert till.found() == 1


async def test_prices_are_in_force_at_the_gateway_once_they_are_told(till: Till) -> None:
    await till.tell(5, price(1))
    task = asyncio.create_task(till.directory.keep_fresh())
    await eventually(lambda: till.found() == 1)
    await till.tell(6, price(2))
    await eventually(lambda: till.found() == 2)
    task.cancel()
    assert till.said == []


def test_a_look_for_prices_is_due_well_within_a_second() -> None:
    assert CATALOGUE_S <= 0.5


async def test_a_price_that_comes_later_is_in_force_from_its_millisecond_on(till: Till) -> None:
    await till.tell(5, price(1), price(2, NOW_MS))
    await till.directory.prices.refresh()
    assert [till.found(at_ms=NOW_MS + late) for late in (-1, 0, 1)] == [1, 2, 2]


async def test_an_older_book_is_not_brought_over_a_newer_one(till: Till) -> None:
    await till.tell(6, price(2))
    await till.tell(5, price(1))
    await till.directory.prices.refresh()
    assert (till.directory.prices.version, till.found()) == (6, 2)


SHORT = b'{"version":7,"layout":1,"prices":[["m",false,"",false,0,[1,"USD",[1,2]]]]}'
NEWER = b'{"version":7,"layout":%d,"prices":[],"more":[]}' % (PRICES_LAYOUT + 1)


@pytest.mark.parametrize(
    "raw", [NEWER, SHORT, b"", b"{", b"[]", b'{"version":7,"layout":1,"prices":[["m"]]}', b'{"version":7}']
)
async def test_what_cannot_be_read_is_told_once_and_leaves_the_old_book_in_force(
    till: Till, raw: bytes
) -> None:
    await till.tell(5, price(1))
    await till.directory.prices.refresh()
    till.client.set(keys.PRICES, raw)
    till.client.set(keys.PRICES_HEAD, encode_head(7, raw))
    for _ in range(3):
        await till.directory.prices.refresh()
    assert till.found() == 1
    [(what, facts)] = till.said
    assert (what, facts["in_force"], facts["level"]) == ("prices cannot be read", 5, "error")
    till.client.delete(keys.PRICES, keys.PRICES_HEAD)
    await till.tell(8, price(2))
    await till.directory.prices.refresh()
    assert till.found() == 2


async def test_other_prices_are_read_although_they_have_the_same_version(till: Till) -> None:
    """The first write of a new database has the version that nothing had before it."""
    await till.tell(1)
    await till.directory.prices.refresh()
    await till.tell(1, price(1))
    await till.directory.prices.refresh()
    assert till.found() == 1


async def test_the_book_is_read_once(till: Till) -> None:
    await till.tell(5, price(1))
    await till.directory.prices.refresh()
    till.client.config_resetstat()
    for _ in range(5):
        await till.directory.prices.refresh()
    asked: Any = till.client.info("commandstats")
    assert asked["cmdstat_get"]["calls"] == 5
