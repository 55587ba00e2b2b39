"""A worker that has nothing to do asks Redis for next to nothing, and is told what it needs to know."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.shared_circuit_breaker import SharedCircuitBreaker
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.connection import encode, encode_script
from tests.builders import CHAT, CREDITS, World
from tests.counters.idle_stage import Idle, asked, reported
from tests.waiting import eventually


@asynccontextmanager
async def idle(world: World, folder: Path, hears: tuple[bytes, ...] = HEARD) -> AsyncIterator[Idle]:
    worker = Idle(world.url, folder, hears)
    await worker.wires.open()
    verify(world, worker.wires.wires[0].run_id)
    async with worker.running():
        await eventually(lambda: worker.is_current and reported(world.client) == (1,) * PARTITIONS)
        yield worker
    await worker.close()


def verify(world: World, run_id: bytes, epoch: int = 1) -> None:
    """As a keeper does: every partition, then the word that it was all."""
    world.client.set(keys.CATALOGUE, encode_catalogue(epoch, [CHAT]))
    world.client.mset({keys.marker(one): packing.marker(run_id, epoch, 1) for one in range(PARTITIONS)})
    world.client.set(keys.verified(0), run_id)


async def test_what_is_asked_while_nothing_happens(world: World, tmp_path: Path) -> None:
    """Counted beside the reports, of which there is one in five seconds."""
    async with idle(world, tmp_path):
        world.client.config_resetstat()
        await eventually(lambda: asked(world.client).get("hset", 0) >= 2)
        found = asked(world.client)
        reports = found.pop("hset")
        # Each is seldom: looks of the fence, at catalogue, prices and upstreams, its name among programs.
        assert sum(found.values()) <= 12 + 2 * reports, found


async def test_a_marker_that_changes_is_told_and_no_other_is_read(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path) as worker:
        (wire,) = worker.wires.wires
        await eventually(lambda: worker.resubmitter.is_calm)
        before = packing.marker(wire.run_id, 1, 1)
        call = packing.rebuild(wire.run_id, 7, keys.marker(7), packing.marker(wire.run_id, 2, 1), before)
        await in_task(wire.send(encode_script("load", *call)))
        await eventually(lambda: reported(world.client)[7] == 2)
        assert sum(reported(world.client)) == PARTITIONS + 1


async def test_what_a_keeper_writes_is_told(world: World, tmp_path: Path) -> None:
    """Without waiting for the next look, which is long in coming."""
    async with idle(world, tmp_path) as worker:
        world.client.set(keys.CATALOGUE, encode_catalogue(2, [CHAT, CREDITS]))
        await eventually(lambda: worker.directory.version == 2, within_s=10.0)
        world.client.delete(keys.marker(0), keys.verified(0))
        await eventually(lambda: not worker.directory.verified, within_s=10.0)
        verify(world, worker.wires.wires[0].run_id, epoch=3)
        await eventually(lambda: min(reported(world.client)) == 3)
        await eventually(lambda: worker.is_current and worker.directory.version == 3)
        other = SharedCircuitBreaker(worker.wires, time.monotonic)
        other.table.begin("upstream", 60.0, (), time.monotonic())
        await other.share()
        await eventually(lambda: "upstream" in worker.cooling.table.entries, within_s=10.0)


async def test_data_that_is_another_is_noticed_by_who_does_nothing(world: World, tmp_path: Path) -> None:
    """As soon as it is told that anything may have changed: the next look is half a minute away."""
    async with idle(world, tmp_path) as worker:
        (wire,) = worker.wires.wires
        before = wire.run_id
        world.client.flushall()
        await eventually(lambda: wire.run_id != before, within_s=20.0)
        assert not worker.directory.verified
        verify(world, wire.run_id, epoch=2)
        await eventually(lambda: min(reported(world.client)) == 2)


async def test_whoever_asks_is_followed_by_a_look_at_the_data(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path) as worker:
        world.client.config_resetstat()
        await in_task(worker.wires.wires[0].send(encode(b"GET", b"tk:{p00}:of a call")))
        await eventually(lambda: asked(world.client).get("exec", 0) > 0, within_s=8.0)


async def test_where_nothing_may_be_told_all_is_asked_again(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path, hears=()) as worker:
        assert worker.wires.wires[0].hearing.since == 0
        world.client.set(keys.CATALOGUE, encode_catalogue(2, [CHAT, CREDITS]))
        await eventually(lambda: worker.directory.version == 2)
        # Nobody tells of this one: it was not written by a script.
        world.client.set(keys.marker(7), packing.marker(worker.wires.wires[0].run_id, 2, 1))
        await eventually(lambda: reported(world.client)[7] == 2)
