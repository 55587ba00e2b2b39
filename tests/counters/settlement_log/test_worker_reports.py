"""A worker reports of each partition how far its log was sent again: by that the keeper opens it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from gateway.core.integrity.recovery import SILENT_S_MAX
from gateway.core.model import PARTITIONS
from gateway.counters.admission.cache import HEARD
from gateway.counters.keeper import status
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from tests.builders import World
from tests.counters.settlement_log.test_resubmission import QUICK, unverify, verify, worker_at
from tests.waiting import eventually

ONES, TWOS = [1] * PARTITIONS, [2] * PARTITIONS


def reported(world: World) -> set[int]:
    """The epochs before which the worker says it has sent everything again."""
    (raw,) = world.client.hvals(keys.workers(0))
    report = status.unpack(raw)
    assert report is not None
    assert report.run_id == world.run_id
    return set(report.epochs)


async def test_a_worker_reports_when_all_of_its_log_was_sent_again(world: World, tmp_path: Path) -> None:
    async with worker_at(world.url, tmp_path) as worker:
        world.plan(100)
        verify(world)
        await worker.look()
        assert reported(world) == {1}
        await worker.settle(world.reserve(need=5), 7)
        verify(world, epoch=2)
        late = keys.late(world.p)
        world.client.set(late, "no stream")
        await worker.look()
        assert reported(world) == {1, 2}
        world.client.delete(late)
        verify(world, epoch=3)  # at once, however lately it failed
        await worker.look()
        assert (reported(world), len(world.late())) == ({3}, 1)


async def test_a_call_in_flight_is_waited_for_but_not_for_ever_and_that_is_said(
    world: World, tmp_path: Path
) -> None:
    said: list[str] = []
    async with worker_at(world.url, tmp_path) as worker:
        worker.resubmitter._say = lambda event, **_: said.append(event)
        verify(world)
        await worker.look()
        worker.resubmitter._in_flight = lambda _: True
        verify(world, epoch=2)
        await worker.look()
        assert reported(world) in ({0}, {1})
        worker.resubmitter._in_flight = lambda _: False
        await worker.look()
        assert (reported(world), said) == ({2}, [])
        worker.resubmitter._in_flight = lambda _: True
        verify(world, epoch=3)
        worker.resubmitter._bounds = replace(QUICK, calls_s_max=0.0)
        for _ in range(2):
            await worker.look()
            assert (reported(world), said) == ({3}, ["reporting before all calls in flight have settled"])


async def test_a_call_in_flight_is_waited_for_while_its_partition_is_away(
    world: World, tmp_path: Path
) -> None:
    """What reads as no epoch is what was never reported: it waits all the same."""
    unverify(world)
    async with worker_at(world.url, tmp_path) as worker:
        worker.resubmitter._in_flight = lambda _: True
        worker.resubmitter._bounds = replace(QUICK, together_s_max=60.0)  # what is away is not looked through
        verify(world)
        await worker.look()
        assert reported(world) == {0}
        unverify(world)
        await worker.look()
        assert reported(world) == {0}
        verify(world)
        await worker.look()
        assert reported(world) == {0}
        worker.resubmitter._in_flight = lambda _: False
        await worker.look()
        assert reported(world) == {1}


async def test_a_call_that_began_later_keeps_only_partitions_waiting_that_were_verified_later(
    world: World, tmp_path: Path
) -> None:
    """The keeper verifies one after another: whoever is done is not held up by those to come."""
    async with worker_at(world.url, tmp_path) as worker:
        verify(world)
        await worker.look()
        resubmitter = worker.resubmitter
        verify(world, epoch=2, partitions=[3])
        await worker.look()
        began = resubmitter._clock()
        resubmitter._in_flight = lambda moment: moment >= began
        verify(world, epoch=2, partitions=[4])
        await worker.look()
        (raw,) = world.client.hvals(keys.workers(0))
        report = status.unpack(raw)
        assert report is not None
        assert [one for one, epoch in enumerate(report.epochs) if epoch == 2] == [3]


class Reporting:
    """Reports over a wire of its own, by a clock of the test's."""

    def __init__(self, world: World, hears: tuple[bytes, ...]) -> None:
        self.now, self.world = 0.0, world
        self.wire = RedisConnection(parse_url(world.url), time.monotonic, hears=hears)
        self.reports = status.WorkerReports(self.wire, "one", 0, lambda: self.now)

    async def beat(self, epochs: list[int]) -> int:
        """Report, and the number of the report that is there then."""
        await self.reports.report(epochs)
        raw = self.world.client.hget(keys.workers(0), "one")
        report = status.unpack(raw) if isinstance(raw, bytes) else None
        assert report is not None
        assert list(report.epochs) == epochs
        return report.beat


async def test_a_server_that_tells_what_changes_is_told_the_same_seldom(world: World) -> None:
    one = Reporting(world, HEARD)
    await one.wire.open()
    assert one.wire.hearing.since
    found = [await one.beat(epochs) for epochs in (ONES, ONES, TWOS, TWOS)]
    assert found == [1, 1, 3, 3]
    one.now += status.SAY_AGAIN_S
    assert [await one.beat(TWOS), await one.beat(TWOS)] == [5, 5]
    since = one.wire.hearing.since
    world.client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: one.wire.available and one.wire.hearing.since > since)
    assert await one.beat(TWOS) == 7
    await one.reports.leave()
    assert await one.beat(TWOS) == 8
    await one.wire.close()


async def test_a_server_that_tells_nothing_is_told_each_time(world: World) -> None:
    one = Reporting(world, ())
    await one.wire.open()
    assert [await one.beat(ONES), await one.beat(ONES)] == [1, 2]
    await one.wire.close()


def test_a_keeper_waits_for_more_than_one_report() -> None:
    assert status.SAY_AGAIN_S * 2 < SILENT_S_MAX
