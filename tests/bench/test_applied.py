"""The bench of large configurations, on a small one."""

from __future__ import annotations

from persistence.schema import migrate
from tests.bench.applied import measure, objects_of


async def test_a_configuration_is_applied_and_nothing_of_it_is_changed_again(database: str) -> None:
    migrate.upgrade(database)
    assert sum(map(len, objects_of(10_000).values())) == 10_000
    found = await measure(database, 200)
    assert (found["applied"], found["unchanged"]) == (200, 200)
    assert {"read_s", "plan_s", "apply_s", "again_s"} <= found.keys()
