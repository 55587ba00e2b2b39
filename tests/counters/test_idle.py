"""A worker that has nothing to do asks Redis for next to nothing, and is told what it needs to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.admission.changes import HEARD
from gateway.counters.admission.cooling import SharedCooling
from gateway.counters.admission.directory import Directory
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.fences import Fences
from gateway.counters.keeper.worker_reports import WorkerReports, unpack
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.settlement_log.resubmission import Resubmitter
from tests.builders import CHAT, CREDITS, World, settlement_log
from tests.counters.lease_stage import silent
from tests.waiting import eventually

WORKER = "worker"


class Idle:
    """What a worker runs by the clock that asks Redis, on a wire of its own."""

    def __init__(self, url: str, folder: Path, hears: tuple[bytes, ...]) -> None:
        self.fences = Fences("pulse", time.time, silent)
        self.wire = Wire(parse_url(url), time.monotonic, hears=hears)
        self.fences.guard(self.wire)
        self.log = settlement_log(folder, say=silent)
        self.directory = Directory(self.wire, time.monotonic)
        self.cooling = SharedCooling(self.wire, time.monotonic)
        reports = WorkerReports(self.wire, WORKER, 0)
        self.resubmitter = Resubmitter(self.wire, self.log, time.monotonic, silent, report=reports.report)

    @property
    def is_current(self) -> bool:
        """Whether it knows the catalogue and that all is verified."""
        return self.directory.verified and self.directory.version > 0


@asynccontextmanager
async def idle(world: World, folder: Path, hears: tuple[bytes, ...] = HEARD) -> AsyncIterator[Idle]:
    worker = Idle(world.url, folder, hears)
    await worker.wire.open()
    verify(world, worker.wire.run_id)
    loops = [
        worker.fences.keep_looking(), worker.directory.keep_fresh(), worker.cooling.keep_sharing(),
        worker.resubmitter.run(),
    ]  # fmt: skip
    tasks = [asyncio.create_task(loop) for loop in loops]
    await eventually(lambda: worker.is_current and reported(world) == 1)
    yield worker
    for task in tasks:
        task.cancel()
    await worker.wire.close()
    await worker.log.close()


def verify(world: World, run_id: bytes, epoch: int = 1) -> None:
    """As a keeper does: every partition, then the word that it was all."""
    world.client.set(keys.CATALOGUE, encode_catalogue(epoch, [CHAT]))
    world.client.mset({keys.marker(one): packing.marker(run_id, epoch, 1) for one in range(PARTITIONS)})
    world.client.set(keys.verified(0), run_id)


def reported(world: World) -> int:
    """The epoch before which the worker says that all was sent again."""
    raw = world.client.hget(keys.workers(0), WORKER)
    report = unpack(raw) if isinstance(raw, bytes) else None
    return min(report.epochs) if report is not None else 0


def asked(world: World) -> dict[str, int]:
    """How often each command was given since the last reset."""
    stats = world.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}


async def test_what_is_asked_while_nothing_happens(world: World, tmp_path: Path) -> None:
    """Counted beside the looks at markers and the reports, of which there is one each in 1.8 seconds."""
    async with idle(world, tmp_path):
        world.client.config_resetstat()
        await eventually(lambda: asked(world).get("mget", 0) >= 3)
        found = asked(world)
        assert found.pop("mget") + found.pop("hset") <= 7
        found = {name: count for name, count in found.items() if name not in {"info", "config|resetstat"}}
        # One look of the fence, and one at catalogue, prices and upstreams, may have fallen into it.
        assert sum(found.values()) <= 7 + 5, found


async def test_what_a_keeper_writes_is_told(world: World, tmp_path: Path) -> None:
    """Without waiting for the next look, which is long in coming."""
    async with idle(world, tmp_path) as worker:
        world.client.set(keys.CATALOGUE, encode_catalogue(2, [CHAT, CREDITS]))
        await eventually(lambda: worker.directory.version == 2, within_s=10.0)
        world.client.delete(keys.verified(0))
        await eventually(lambda: not worker.directory.verified, within_s=10.0)
        verify(world, worker.wire.run_id, epoch=3)
        await eventually(lambda: reported(world) == 3)
        await eventually(lambda: worker.is_current and worker.directory.version == 3)
        other = SharedCooling(worker.wire, time.monotonic)
        other.table.begin("upstream", 60.0, (), time.monotonic())
        await other.share()
        await eventually(lambda: "upstream" in worker.cooling.table.entries, within_s=10.0)


async def test_data_that_is_another_is_noticed_by_who_does_nothing(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path) as worker:
        before = worker.wire.run_id
        world.client.flushall()
        await eventually(lambda: worker.wire.run_id != before)
        assert not worker.directory.verified
        verify(world, worker.wire.run_id, epoch=2)
        await eventually(lambda: reported(world) == 2)


async def test_whoever_asks_is_followed_by_a_look_at_the_data(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path) as worker:
        world.client.config_resetstat()
        await in_task(worker.wire.send(encode(b"GET", b"tk:{p00}:of a call")))
        await eventually(lambda: asked(world).get("exec", 0) > 0, within_s=8.0)


async def test_where_nothing_may_be_told_all_is_asked_again(world: World, tmp_path: Path) -> None:
    async with idle(world, tmp_path, hears=()) as worker:
        assert worker.wire.hearing.since == 0
        world.client.set(keys.CATALOGUE, encode_catalogue(2, [CHAT, CREDITS]))
        await eventually(lambda: worker.directory.version == 2)
