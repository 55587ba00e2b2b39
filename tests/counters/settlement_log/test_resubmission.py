"""What Redis did not acknowledge, or may have forgotten, is sent again: whole, once, and within bounds."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.core.integrity.roster import SILENT_S_MAX
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS, Service, SettleResult
from gateway.core.wait import in_task
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.keeper import worker_reports
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import HEADER_BYTES, MAGIC, PIECE_BYTES, LogLimits
from gateway.counters.settlement_log.resubmission import BATCH_MAX, VerifiedEpochs
from gateway.counters.settlement_log.settlement_record import EARLIER_MAX, Positions
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, CREDITS, ONE_TIME, UNITS, World
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.waiting import eventually
from tests.worker import Worker
from tests.worker import worker_at as at_work

# Most files of a test are one piece, as they are read for real.
PIECES = pytest.mark.parametrize("piece_bytes", [50, PIECE_BYTES])
SERVICES = [CHAT, CREDITS, ONE_TIME, UNITS]


QUICK = LogLimits(batch_s=0.0, at_risk_s=0.0, together_s_max=0.0)
worker_at = partial(at_work, bounds=QUICK)


def unverify(world: World) -> None:
    world.client.set(keys.marker(world.p), packing.marker(b"0" * 40, 1, 1))


def verify(world: World, epoch: int = 1, partitions: Iterable[int] = range(PARTITIONS)) -> None:
    """Every partition, or some, as the keeper does."""
    for partition in partitions:
        world.client.set(keys.marker(partition), packing.marker(world.run_id, epoch, 1))


def charged(world: World) -> list[tuple[str, int]]:
    return [(event.source, event.amount) for event in world.events() if event.service_id]


# --- spooled ----------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: str(one.key))
@pytest.mark.parametrize("user", ["", "ünï¢ode\r\n$5"])
async def test_what_was_spooled_is_settled_with_all_it_carried(
    world: World, tmp_path: Path, service: Service, user: str
) -> None:
    world.plan(100)
    world.grant("credits", 100)
    async with worker_at(world.url, tmp_path) as worker:
        call = world.reserve(need=10, service=service, user=user, credits_=5)
        unverify(world)
        metadata, attribution = b'{"a":"\r\n"}', "1\t2\tv\n"
        used = {"credits": 5, "units": 2, "metadata": metadata, "attribution": attribution}
        assert await worker.settle(call, 7, **used) is SettleResult.SPOOLED
        assert (worker.log.waiting, world.slots(user)[2]) == (1, 1)
        with pytest.raises(CountersUnavailable):
            await worker.look()
        world.mark()
        await worker.look()
        assert (worker.log.waiting, worker.resubmitter.resubmitted) == (0, 1)
        event = world.events()[-1]
        assert (event.source, event.user, event.metadata, event.attribution) == (
            call.id, user, metadata, attribution,
        )  # fmt: skip
        assert (world.slots(user), world.late()) == ([0, 0, 0, 0], [])
        before = world.events()
        await worker.look()
        assert world.events() == before


@PIECES
async def test_what_a_killed_worker_spooled_is_settled_by_the_next(
    world: World, tmp_path: Path, piece_bytes: int
) -> None:
    bounds = replace(QUICK, piece_bytes=piece_bytes)
    world.plan(1000)
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        calls = [world.reserve(need=5) for _ in range(BATCH_MAX + 3)]
        unverify(world)
        await asyncio.gather(*(worker.settle(call, 7) for call in calls))
        worker.die()
    verify(world)
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        await worker.look()
        assert sorted(charged(world)) == sorted((call.id, 7) for call in calls)
        assert (world.tenant.held, world.late()) == (0, [])
        await worker.log.written()
        await worker.look()
        assert len(worker.log.segments) == 1


async def test_a_partition_of_a_newer_version_keeps_no_other_from_being_sent_again(
    world: World, tmp_path: Path
) -> None:
    organization = next(one for one in range(1, 10_000) if keys.partition_of(one) == PARTITIONS - 1)
    other = World(world.url, organization_id=organization, tenant_id=8, key_id=4)
    other.plan(100)
    async with worker_at(world.url, tmp_path) as worker:
        call = other.reserve(need=10)
        unverify(other)
        assert await worker.settle(call, 7) is SettleResult.SPOOLED
        verify(world)
        newer = packing.marker(world.run_id, 1, 1)
        world.client.set(keys.marker(0), bytes([newer[0] + 1]) + newer[1:])
        await worker.look()
        assert (worker.log.waiting, charged(other)) == (0, [(call.id, 7)])
        assert worker.resubmitter._reported == [0] + [1] * (PARTITIONS - 1)


async def test_a_worker_that_dies_between_settling_and_noting_it_settles_again_through_the_late_lane(
    world: World, tmp_path: Path
) -> None:
    world.plan(1000)
    async with worker_at(world.url, tmp_path) as worker:
        call = world.reserve(need=5)
        unverify(world)
        await worker.settle(call, 7)
        world.mark()
        (segment,) = worker.log.segments
        (offset,) = segment.waiting
        assert packing.code_of(await _settled_again(worker, offset)) == SettleResult.DONE
        worker.die()
    async with worker_at(world.url, tmp_path) as worker:
        await worker.look()
        assert (charged(world), len(world.late()), worker.log.waiting) == ([(call.id, 7)], 1, 0)


async def _settled_again(worker: Worker, offset: int) -> bytes:
    (segment,) = worker.log.segments
    answer = await in_task(worker.resubmitter._send(segment.record(offset), packing.MODE_CHARGE))
    assert isinstance(answer, bytes)
    return answer


async def test_a_redis_that_refuses_one_partition_keeps_nobody_else_waiting(
    world: World, tmp_path: Path
) -> None:
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    assert other.p != world.p
    async with worker_at(world.url, tmp_path) as worker:
        for one in (world, other):
            one.plan(100)
        calls = [one.reserve(need=5) for one in (world, other)]
        unverify(world)
        unverify(other)
        for call in calls:
            await worker.settle(call, 7)
        world.mark()
        other.mark()
        world.client.delete(keys.outbox(world.p))
        world.client.set(keys.outbox(world.p), "no stream")
        await worker.look()
        assert (charged(other), worker.log.waiting) == ([(calls[1].id, 7)], 1)
        world.client.delete(keys.outbox(world.p))
        await worker.look()
        assert (charged(world), worker.log.waiting) == ([(calls[0].id, 7)], 0)


async def test_a_redis_that_freezes_in_a_settlement_charges_it_once(
    own_valkey: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    server = own_valkey()
    world = World(server.url)
    world.plan(100)
    async with worker_at(world.url, tmp_path, call_s=0.5) as worker:
        call = world.reserve(need=5)
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        assert await worker.settle(call, 7) is SettleResult.SPOOLED
        with pytest.raises(CountersUnavailable):
            await worker.look()
        server.process.send_signal(signal.SIGCONT)
        await eventually(lambda: worker.wire.available)
        await worker.look()
        assert (charged(world), world.tenant.held, worker.log.waiting) == ([(call.id, 7)], 0, 0)


async def test_what_is_verified_first_is_reported_at_once_and_the_rest_together(
    world: World, tmp_path: Path
) -> None:
    """Who waits for the first partition does not wait until others are gathered."""
    first, second = (world.p + 1) % PARTITIONS, (world.p + 2) % PARTITIONS

    def reported(worker: Worker) -> set[int]:
        return {one for one, epoch in enumerate(worker.resubmitter._reported) if epoch}

    world.client.delete(keys.marker(world.p))
    async with worker_at(world.url, tmp_path, bounds=replace(QUICK, together_s_max=3_600.0)) as worker:
        verify(world, 2, [first])
        await worker.look()
        assert reported(worker) == {first}
        verify(world, 2, [second])
        await worker.resubmitter.resubmit()
        assert reported(worker) == {first}
        verify(world, 2)
        await worker.resubmitter.resubmit()
        assert reported(worker) == set(range(PARTITIONS))


async def test_it_runs_by_itself(world: World, tmp_path: Path) -> None:
    world.plan(100)
    async with worker_at(world.url, tmp_path, bounds=replace(QUICK, retry_s=0.01)) as worker:
        look, looks = worker.resubmitter.resubmit, 0

        async def looked() -> None:
            nonlocal looks
            looks += 1
            await look()

        worker.resubmitter.resubmit = looked  # type: ignore[method-assign]  # counted
        running = asyncio.create_task(worker.resubmitter.run())
        call = world.reserve(need=5)
        unverify(world)
        await worker.settle(call, 7)
        before = looks
        await eventually(lambda: looks > before + 1)
        assert worker.log.waiting == 1
        world.mark()
        await eventually(lambda: not worker.log.waiting)
        assert charged(world) == [(call.id, 7)]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("busy", [False, True], ids=["nobody calls", "a call is in flight"])
async def test_it_reports_as_soon_as_redis_tells_of_a_marker_or_the_last_call_has_settled(
    world: World, tmp_path: Path, busy: bool
) -> None:
    bounds = replace(QUICK, retry_s=3_600.0, calls_s_max=3_600.0)
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        verify(world)
        unverify(world)
        running = asyncio.create_task(worker.resubmitter.run())
        await eventually(lambda: reported(world) == {0, 1})
        worker.resubmitter._in_flight = lambda _: busy
        verify(world, epoch=2)
        worker.resubmitter._note_change(b"")
        if busy:
            await eventually(lambda: worker.resubmitter._sent_again == [2] * PARTITIONS)
            assert 2 not in reported(world)
            busy = False
        await eventually(lambda: reported(world) == {2})
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


# --- acknowledged -----------------------------------------------------------------------


def acknowledged(entry: dict[bytes, bytes]) -> list[tuple[int, ...]]:
    """Epoch and seqs of each time that it was acknowledged, the latest first."""
    return [tuple(map(int, one)) for one in struct.iter_unpack("<5d", entry[b"acknowledged"])]


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: str(one.key))
async def test_what_was_acknowledged_before_is_told_to_the_keeper_when_the_epoch_moves(
    world: World, tmp_path: Path, service: Service
) -> None:
    world.plan(100)
    world.grant("credits", 100)
    async with worker_at(world.url, tmp_path) as worker:
        call = world.reserve(need=10, service=service, credits_=5)
        assert await worker.settle(call, 7, credits=5, units=2) is SettleResult.DONE
        seqs = (world.tenant.seq, world.organization.credit_seq, world.organization.spend_seq)
        await worker.log.written()
        await worker.look()
        assert world.late() == []
        world.mark(epoch=2)
        await worker.look()
        (entry,) = world.late()
        moved = (service.counts_tokens, service.meter == "consumption", service.meter == "pay_per_use")
        credit_seq, spend_seq = (seq if moves else 0 for seq, moves in zip(seqs[1:], moved[1:], strict=True))
        expected = (seqs[0], int(moved[0]), credit_seq, spend_seq)
        assert acknowledged(entry) == [(1, *expected)]
        assert worker.resubmitter.recovered == 1
        for _ in range(3):  # told once an epoch
            await worker.log.written()
            await worker.look()
        assert len(world.late()) == 1
        world.client.delete(keys.late(world.p))  # before a keeper saw it
        for epoch in range(3, 6):
            world.mark(epoch=epoch)
            await worker.look()
            await worker.log.written()
        assert [acknowledged(one) for one in world.late()] == [[(1, *expected)]] * 3


async def test_each_time_that_a_call_was_charged_is_told_but_for_the_oldest(
    world: World, tmp_path: Path
) -> None:
    """Its hold comes back each time, so each time another movement is acknowledged, and forgotten."""
    world.plan(100)
    async with worker_at(world.url, tmp_path) as worker:
        call = world.reserve(need=10)
        kept, moved = {name: world.client.dump(name) for name in world.client.keys("tk:{*")}, []
        await worker.settle(call, 7)
        for epoch in range(2, EARLIER_MAX + 4):
            moved.insert(0, (epoch - 1, world.tenant.seq, 1, 0, 0))
            for name, packed in kept.items():
                world.client.restore(name, 0, packed, replace=True)
            world.client.delete(keys.late(world.p))
            world.mark(epoch=epoch)
            await worker.log.written()
            await worker.look()
        (entry,) = world.late()
        assert acknowledged(entry) == moved[: EARLIER_MAX + 1]


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: str(one.key))
async def test_a_hold_that_came_back_is_charged_at_once(
    world: World, tmp_path: Path, service: Service
) -> None:
    world.plan(100)
    world.grant("credits", 100)
    async with worker_at(world.url, tmp_path) as worker:
        call = world.reserve(need=10, service=service, user="ann", credits_=50)
        kept = {name: world.client.dump(name) for name in world.client.keys("tk:{*")}
        assert await worker.settle(call, 7, credits=50, units=2) is SettleResult.DONE
        before = (world.tenant, world.organization, world.client.xlen(keys.outbox(world.p)))
        for name, packed in kept.items():
            world.client.restore(name, 0, packed, replace=True)
        world.mark(epoch=2)
        await worker.log.written()
        await worker.look()
        assert (world.tenant.used, world.organization.balance, world.organization.spent) == (
            before[0].used, before[1].balance, before[1].spent,
        )  # fmt: skip
        assert world.client.xlen(keys.outbox(world.p)) == before[2]
        assert (world.slots("ann"), call.hold, len(world.late())) == ([0, 0, 0, 0], None, 1)


@PIECES
async def test_a_workers_whole_memory_is_sent_in_batches_and_only_where_the_epoch_moved(
    world: World, tmp_path: Path, piece_bytes: int
) -> None:
    bounds = replace(QUICK, piece_bytes=piece_bytes)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        count = BATCH_MAX * 2 + 5
        for one in (world, other):
            one.plan(1000)
            for _ in range(count):
                await worker.settle(one.reserve(need=1), 1)
        await worker.log.written()
        world.mark(epoch=2)
        await worker.look()
        assert (len(world.late()), len(other.late())) == (count, 0)
        assert worker.resubmitter.recovered == count


async def test_the_memory_of_a_killed_worker_is_sent_only_where_it_may_be_forgotten(
    world: World, tmp_path: Path
) -> None:
    verify(world)
    world.plan(100)
    async with worker_at(world.url, tmp_path) as worker:
        await worker.settle(world.reserve(need=1), 1)
        await worker.log.written()
        worker.die()
    async with worker_at(world.url, tmp_path) as worker:
        await worker.look()
        assert world.late() == []
        await worker.log.written()
        await worker.settle(world.reserve(need=1), 1)
        await worker.log.written()
        assert len(worker.log.segments) == 1
        worker.die()
    verify(world, epoch=2)
    async with worker_at(world.url, tmp_path):
        assert len(world.late()) == 1


async def test_a_block_that_lies_about_its_length_hides_none_behind_it(world: World, tmp_path: Path) -> None:
    verify(world)
    world.plan(100)
    async with worker_at(world.url, tmp_path) as worker:
        for _ in range(2):
            await worker.settle(world.reserve(need=1), 1)
            await worker.log.written()
        (file,) = worker.log.segments
        file.write(HEADER_BYTES + len(MAGIC) + 1, b"\xff\xff\xff")
        verify(world, epoch=2)
        await worker.look()
        assert len(world.late()) == 1


async def test_what_was_adopted_while_redis_was_away_is_looked_at_when_it_is_back(
    world: World, tmp_path: Path
) -> None:
    verify(world)
    world.plan(100)
    async with worker_at(world.url, tmp_path) as worker:
        await worker.settle(world.reserve(need=1), 1)
        await worker.log.written()
        worker.die()
    world.client.delete(*(keys.marker(partition) for partition in range(PARTITIONS)))
    async with worker_at(world.url, tmp_path) as worker:
        assert len(worker.log.segments) == 2
        verify(world, epoch=2)
        await worker.look()
        assert len(world.late()) == 1


async def test_the_memory_of_a_killed_worker_is_kept_while_redis_may_forget_it(
    world: World, tmp_path: Path
) -> None:
    bounds = replace(QUICK, at_risk_s=60.0)
    world.plan(100)
    verify(world)
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        call = world.reserve(need=5)
        assert await worker.settle(call, 7) is SettleResult.DONE
        await worker.log.written()
        worker.die()
    async with worker_at(world.url, tmp_path, bounds=bounds) as worker:
        await worker.look()
        await worker.look()
        assert world.late() == []
        verify(world, 2)
        await worker.look()
        assert len(world.late()) == 1


# --- reported ---------------------------------------------------------------------------


def listener() -> tuple[list[str], Callable[[RedisConnection, str], Awaitable[None]]]:
    """What is announced, and who is told."""
    said: list[str] = []

    async def announce(_: RedisConnection, trouble: str) -> None:
        said.append(trouble)

    return said, announce


async def settled_by_one_that_died(world: World, folder: Path, count: int) -> None:
    """A worker settles calls, keeps what was acknowledged, and is killed."""
    verify(world)
    async with worker_at(world.url, folder) as worker:
        for _ in range(count):
            await worker.settle(world.reserve(need=5), 5)
        await worker.log.written()
        worker.die()


@pytest.mark.parametrize("older", [True, False])
async def test_what_was_adopted_tells_whether_the_data_is_older(
    world: World, tmp_path: Path, older: bool
) -> None:
    """Whoever was acknowledged is gone, and the markers are as they were."""
    said, announce = listener()
    world.plan(1000)
    before = world.get(world.tenant_key)
    await settled_by_one_that_died(world, tmp_path, 3)
    if older:
        world.client.set(world.tenant_key, before)
    async with worker_at(world.url, tmp_path, announce=announce) as worker:
        assert said == (["a settlement log knows more"] if older else [])
        verify(world, 2)
        await worker.look()
        assert len(said) == older


async def test_what_another_one_said_meanwhile_is_not_said_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is said, all is verified anew, and nobody is served until then."""
    said, announce = listener()
    world.plan(1000)
    await settled_by_one_that_died(world, tmp_path, 1)

    async def said_meanwhile(_: Positions, wire: RedisConnection) -> bool:
        wire.run_id = b"n" * 40
        return True

    monkeypatch.setattr(Positions, "are_ahead", said_meanwhile)
    async with worker_at(world.url, tmp_path, announce=announce) as worker:
        assert (said, worker.resubmitter._uncompared) == ([], worker.log.segments[:1])


# --- verified epochs --------------------------------------------------------------------
# A gateway beside what a newer version has: it serves the rest, and says which layouts there are.


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


# --- worker reports ---------------------------------------------------------------------
# A worker reports of each partition how far its log was sent again: by that the keeper opens it.


ONES, TWOS = [1] * PARTITIONS, [2] * PARTITIONS


def reported(world: World) -> set[int]:
    """The epochs before which the worker says it has sent everything again."""
    (raw,) = world.client.hvals(keys.workers(0))
    report = worker_reports.unpack(raw)
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
        report = worker_reports.unpack(raw)
        assert report is not None
        assert [one for one, epoch in enumerate(report.epochs) if epoch == 2] == [3]


class Reporting:
    """Reports over a wire of its own, by a clock of the test's."""

    def __init__(self, world: World, hears: tuple[bytes, ...]) -> None:
        self.now, self.world = 0.0, world
        self.wire = RedisConnection(parse_url(world.url), time.monotonic, hears=hears)
        self.reports = worker_reports.WorkerReports(self.wire, "one", 0, lambda: self.now)

    async def beat(self, epochs: list[int]) -> int:
        """Report, and the number of the report that is there then."""
        await self.reports.report(epochs)
        raw = self.world.client.hget(keys.workers(0), "one")
        report = worker_reports.unpack(raw) if isinstance(raw, bytes) else None
        assert report is not None
        assert list(report.epochs) == epochs
        return report.beat


async def test_a_server_that_tells_what_changes_is_told_the_same_seldom(world: World) -> None:
    one = Reporting(world, HEARD)
    await one.wire.open()
    assert one.wire.hearing.since
    found = [await one.beat(epochs) for epochs in (ONES, ONES, TWOS, TWOS)]
    assert found == [1, 1, 3, 3]
    one.now += worker_reports.SAY_AGAIN_S
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
    assert worker_reports.SAY_AGAIN_S * 2 < SILENT_S_MAX
