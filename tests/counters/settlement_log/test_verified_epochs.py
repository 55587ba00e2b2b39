"""A gateway beside what a newer version has: it serves the rest, and says which layouts there are."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.settlement_log.resubmission import VerifiedEpochs
from gateway.errors import CountersUnavailable
from tests.builders import World
from tests.counters.conftest import Connect

REST = [0] + [1] * (PARTITIONS - 1)


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def say(self, line: str, **facts: Any) -> None:
        self.lines.append((line, facts))


def mark(world: World, newer: set[int]) -> None:
    """All partitions are verified; these by a newer version."""
    ours = packing.marker(world.run_id, 1, 1)
    theirs = bytes([LAYOUT + 1]) + ours[1:]
    world.client.mset({keys.marker(one): theirs if one in newer else ours for one in range(PARTITIONS)})


async def test_it_is_said_once_which_layouts_there_are_and_what_to_do(world: World, connect: Connect) -> None:
    heard = Heard()
    epochs = VerifiedEpochs(await connect(world.url), time.monotonic, heard.say)
    mark(world, newer={0})
    for _ in range(2):
        assert (await epochs.read(upkeep=True), epochs.newer) == (REST, {0})
    [(_, facts)] = heard.lines
    assert (facts["partitions"], facts["level"]) == (1, "error")
    for part in (f"of layout {LAYOUT + 1}", f"up to {LAYOUT}", "run that one"):
        assert part in facts["why"]
    mark(world, newer=set())
    assert (await epochs.read(upkeep=True), epochs.newer) == ([1] * PARTITIONS, frozenset())
    assert len(heard.lines) == 2


async def test_where_a_newer_version_has_everything_nothing_is_verified_here(
    world: World, connect: Connect
) -> None:
    epochs = VerifiedEpochs(await connect(world.url), time.monotonic, Heard().say)
    mark(world, newer=set(range(PARTITIONS)))
    with pytest.raises(CountersUnavailable):
        await epochs.read(upkeep=True)
    assert epochs.newer == frozenset(range(PARTITIONS))
