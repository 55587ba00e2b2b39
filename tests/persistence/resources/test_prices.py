"""Prices in the database: which of them gateways are told, and the bundled list, put in once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, insert

from gateway.errors import Conflict
from persistence import engine as engines
from persistence.keeper.definitions import of_accounts
from persistence.resources.prices import PriceTable, in_force_count, refuse_too_many
from persistence.tables import price
from tests.persistence.scenario import rows_of

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def row(model: str, since: datetime = NOW - DAY, **over: Any) -> dict[str, Any]:
    return {
        "provider": "openai", "model": model, "match": "exact", "currency": "USD", "effective_from": since,
        "input": "2.5", "source": "bundled", **over,
    }  # fmt: skip


async def put_in(url: str, *rows: dict[str, Any]) -> int:
    engine = engines.create(url)
    table = PriceTable(engine)
    added = await table.put_in_bundled(rows)
    assert await table.has_bundled()
    await engine.dispose()
    return added


async def told(url: str) -> list[tuple[str, str]]:
    engine = engines.create(url)
    async with engine.connect() as connection:
        [definition] = (await of_accounts(connection, ["prices"]))["prices"]
    await engine.dispose()
    return sorted((each.model, each.provider) for each in definition.prices)  # type: ignore[union-attr]  # prices


async def test_gateways_are_told_what_is_in_force_or_will_be(migrated: str) -> None:
    await put_in(
        migrated, row("then", NOW - 3 * DAY), row("then", NOW - 2 * DAY), row("Then", NOW + DAY),
        row("then", NOW + 2 * DAY), row("later", NOW + DAY),
    )  # fmt: skip
    assert await told(migrated) == [("later", "openai"), *[("then", "openai")] * 3]


async def test_a_call_under_way_finds_the_price_it_was_admitted_at(migrated: str) -> None:
    hours = [30, 25, 20, 0]
    await put_in(migrated, *(row("m", NOW - timedelta(hours=each)) for each in hours))
    assert await told(migrated) == [("m", "openai")] * 3


async def test_gateways_hold_no_more_than_the_bound(migrated: str) -> None:
    await put_in(migrated, row("m"), row("n"))
    engine = create_engine(engines.dialect_url(migrated))
    with engine.begin() as connection:
        refuse_too_many(in_force_count(connection, NOW), 3)
        with pytest.raises(Conflict, match="2 prices are in force"):
            refuse_too_many(in_force_count(connection, NOW), 2)
    engine.dispose()


async def test_gateways_are_told_what_every_seller_bills(migrated: str) -> None:
    await put_in(migrated, row("m", provider="groq"), row("m", provider=None), row("m"))
    engine = create_engine(engines.dialect_url(migrated))
    with engine.begin() as connection:
        connection.execute(insert(price), [row("m", provider="groq", source="operator")])
    engine.dispose()
    assert await told(migrated) == [("m", ""), ("m", "groq"), ("m", "groq"), ("m", "openai")]


async def test_the_bundled_list_is_put_in_once_however_many_keepers_start(migrated: str) -> None:
    rows = [row(f"m{number}", tools={"web_search": "10"}) for number in range(2_500)]
    added = await asyncio.gather(*(put_in(migrated, *rows) for _ in range(3)))
    assert sorted(added) == [0, 0, 2_500]
    assert rows_of(migrated, "SELECT count(*) FROM price") == [(2_500,)]
    assert rows_of(migrated, "SELECT account, verb FROM control_write") == [("prices", "define")]
    assert await put_in(migrated, row("more")) == 0
