"""All that a keeper asks PostgreSQL from its start on has a name, so that a slow query says which it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import event

from gateway.run.keeper import Keeper
from gateway.settings.settings import Settings
from persistence.queries import OPTION, QueryName
from tests.conftest import ValkeyServer, free_port
from tests.persistence.migrated import migrated, shared, template
from tests.waiting import eventually

__all__ = ["migrated", "shared", "template"]
# Asked at the start, and in the first turn of loops that turn each second, minute and hour.
TURNS = {
    "engine.answers", "prices.put_in", "definitions.services", "integrity.marks", "news.calendars", "news.prune",
    "partitions.ensure", "reconciliations.last_deep",
}  # fmt: skip


async def test_all_queries_of_a_keepers_start_and_first_turns_have_names(
    migrated: str, own_valkey: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    keeper = Keeper(
        Settings(
            database_url=migrated, redis_url=own_valkey().url, data_dir=str(tmp_path), admin_port=free_port(),
            admin_token="of-this-test" * 2, key_pepper="of-this-test" * 2,
        )
    )  # fmt: skip
    names: set[QueryName] = set()
    unnamed: set[str] = set()

    def note(_: Any, __: Any, statement: str, ___: Any, context: Any, ____: bool) -> None:
        if context is not None and (name := context.execution_options.get(OPTION)):
            names.add(name)
        else:
            unnamed.add(statement)

    for pool in (keeper._pools.loops, keeper._pools.billing, keeper._pools.share):
        event.listen(pool.sync_engine, "after_cursor_execute", note)
    async with AsyncExitStack() as ended:
        ended.push_async_callback(keeper.stop)
        assert await keeper.start(asyncio.Event())
        await eventually(lambda: {name.name for name in names} >= TURNS)
    assert unnamed == set()
