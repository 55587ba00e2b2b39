"""A capability is allowed by the programs in Redis' list and by the markers of all partitions."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import pytest

from gateway.core.accounts.administration import Row
from gateway.core.layout import EARLIER, LAYOUT
from gateway.core.times import zones_edition
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.run.program_list import ProgramList
from tests.background.backend import Backend
from tests.builders import World
from tests.waiting import eventually

# What a gateway of 1.0.0 writes of itself: it lists no capabilities.
OLD_GATEWAY = (
    b'{"id":"g","role":"gateway","version":"1.0.0","layout":%d,"host":"web-7","started_at":1.5,"schema":""}'
)


@dataclass
class Scene:
    """A list with its keeper, over partitions that are all written in today's layout."""

    world: World
    programs: ProgramList


@pytest.fixture
async def scene(backend: Backend) -> Scene:
    found = Scene(await backend.settle_in(100), ProgramList(backend.wire, backend.counters, backend.engine))
    await found.programs.say()
    return found


async def test_wait_reason_is_empty_once_all_partitions_are_written_in_the_layout(
    scene: Scene,
) -> None:
    world, programs = scene.world, scene.programs
    assert await programs.wait_reason("large_budgets") == ""
    before = world.client.get(keys.marker(63))
    world.client.set(keys.marker(63), packing.marker(world.run_id, 1, 0, EARLIER))
    assert f"layout {LAYOUT} is taken up" in await programs.wait_reason("large_budgets")
    world.client.delete(keys.marker(63))
    assert f"layout {LAYOUT} is taken up" in await programs.wait_reason("large_budgets")
    world.client.set(keys.marker(63), before)
    assert await programs.wait_reason("large_budgets") == ""


async def test_wait_reason_names_a_gateway_of_an_earlier_version_in_the_list(
    scene: Scene,
) -> None:
    world, programs = scene.world, scene.programs
    seconds, _ = world.client.time()
    world.client.zadd(keys.PROGRAMS, {OLD_GATEWAY % EARLIER: seconds})
    assert (await programs.wait_reason("large_budgets")).endswith("first: gateway 1.0.0 on web-7.")
    assert await programs.wait_reason("budget_webhooks") == ""  # keepers alone send them


async def test_report_names_the_edition_of_time_zones_that_each_program_reads(scene: Scene) -> None:
    seconds, _ = scene.world.client.time()
    scene.world.client.zadd(keys.PROGRAMS, {OLD_GATEWAY % EARLIER: seconds})
    items = cast("list[Row]", (await scene.programs.report())["items"])
    assert {item["role"]: item["time_zones"] for item in items} == {
        "gateway": None,
        "keeper": zones_edition(),
    }


async def test_a_keeper_is_put_into_a_list_of_programs_without_that_keeper(scene: Scene) -> None:
    async def no_workers() -> int:
        return 0

    scene.world.client.delete(keys.PROGRAMS)
    assert "names no keeper" in await scene.programs.wait_reason("large_budgets")
    looking = asyncio.create_task(scene.programs.keep_looking(no_workers, lambda *_, **__: None, look_s=0.01))
    await eventually(lambda: scene.world.client.zcard(keys.PROGRAMS) == 1)
    assert await scene.programs.wait_reason("large_budgets") == ""
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
