"""The bench of the console fills what the schema has, and every page it measures is there."""

from __future__ import annotations

from persistence.schema import migrate
from tests.bench import console


async def test_a_small_run(database: str) -> None:
    migrate.upgrade(database)
    console.fill(database, tenants=200, rows=4_000)
    found = await console.measure(database, 1)
    assert [page.name for page in found] == [name for name, _ in console.PAGES]
    assert all(page.size > 1_000 for page in found)
