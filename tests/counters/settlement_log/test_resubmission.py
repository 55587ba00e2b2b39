"""What Redis did not acknowledge, or may have forgotten, is sent again: whole, once, and within bounds."""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gateway.core.model import PARTITIONS, Service, SettleResult
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import HEADER_BYTES, MAGIC, PIECE_BYTES, LogLimits
from gateway.counters.settlement_log.resubmission import BATCH_MAX
from gateway.counters.settlement_log.settlement_record import EARLIER_MAX, Positions
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, CREDITS, ONE_TIME, UNITS, World
from tests.conftest import ValkeyServer
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
