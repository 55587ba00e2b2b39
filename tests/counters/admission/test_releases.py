"""An admission nobody waits for any more is given back, and a release nobody answered is sent again."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldEnd
from gateway.core.model import NO_SERVICE, Admitted, HoldRequest, Limits, Refused, SettleResult, Verdict
from gateway.core.wait import in_task
from gateway.counters.admission.caller_holds import CallerHolds
from gateway.counters.admission.counters import _release_of
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from gateway.counters.settlement_log.log import DELETION
from gateway.errors import CountersUnavailable
from gateway.features.caller_holds.gateway import delete_again
from tests.builders import CHAT, UNITS, World, driven, new_id
from tests.conftest import ValkeyServer
from tests.counters.admission.hired_worker import Hire, Worker, hire
from tests.waiting import eventually
from tests.worker import worker_at

__all__ = ["hire"]
Own = Callable[..., ValkeyServer]


@pytest.fixture
def server(own_valkey: Own) -> ValkeyServer:
    """One that may be frozen."""
    return own_valkey()


@pytest.fixture
def world(server: ValkeyServer) -> Iterator[World]:
    made = World(server.url)
    yield made
    made.client.close()


def freeze(server: ValkeyServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def thaw(server: ValkeyServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


async def reserve(worker: Worker, request: HoldRequest) -> Admitted | Refused | None:
    try:
        return await worker.reserve(request)
    except CountersUnavailable:
        return None


def nothing_is_held(world: World) -> bool:
    return (world.tenant.held, world.slots("ann"), world.deadlines()) == (0, [0, 0, 0, 0], {})


async def test_release_follows_late_answer_at_once(server: ValkeyServer, world: World, hire: Hire) -> None:
    """Eight callers, a frozen Redis: whoever asks next finds every slot free, in the same write even."""
    world.plan(1000)
    world.define_key(Limits(concurrency=10))
    worker = await hire(world, call_s=0.3, stall_s=30)
    freeze(server)
    requests = [worker.request(10, user="ann") for _ in range(8)]
    assert await asyncio.gather(*(reserve(worker, one) for one in requests)) == [None] * 8
    thaw(server)
    await eventually(lambda: worker.wire.available)
    decisions = await asyncio.gather(*(reserve(worker, worker.request(10)) for _ in range(10)))
    assert [one and one.verdict for one in decisions] == [Verdict.ADMITTED] * 10
    await eventually(lambda: not worker.counters.releases._owed)
    assert (world.tenant.held, world.user("ann").inflight, len(world.deadlines())) == (100, 0, 10)


async def test_release_is_not_sent_after_late_refusal(server: ValkeyServer, world: World, hire: Hire) -> None:
    worker = await hire(world, call_s=0.3, stall_s=30)
    freeze(server)
    assert await reserve(worker, worker.request(1)) is None  # its tenant has no plan
    thaw(server)
    await eventually(lambda: worker.wire.available)
    assert (len(worker.counters.releases._owed), world.deadlines()) == (0, {})


async def test_release_follows_wait_given_up_by_caller(
    server: ValkeyServer, world: World, hire: Hire
) -> None:
    """The deadline of a request passes before that of the wire."""
    world.plan(1000)
    worker = await hire(world, call_s=30, stall_s=30)
    freeze(server)
    asked = worker.counters.reserve(worker.request(10, user="ann"))
    next(asked.__await__())
    with pytest.raises(CountersUnavailable):
        asked.throw(CountersUnavailable())
    thaw(server)
    await eventually(lambda: not worker.wire._pending)
    await eventually(lambda: not worker.counters.releases._owed and nothing_is_held(world))


async def test_release_is_sent_by_id_after_broken_connection(
    server: ValkeyServer, world: World, hire: Hire
) -> None:
    world.plan(1000)
    worker = await hire(world, call_s=0.2, stall_s=0.4)
    freeze(server)
    requests = [worker.request(10, user="ann") for _ in range(8)]
    assert await asyncio.gather(*(reserve(worker, one) for one in requests)) == [None] * 8
    await eventually(lambda: not worker.wire.connected)
    assert len(worker.counters.releases._owed) == 8
    thaw(server)
    await eventually(lambda: worker.wire.connected)
    await eventually(lambda: not worker.counters.releases._owed and nothing_is_held(world))


async def test_release_is_sent_later_if_redis_was_away(
    server: ValkeyServer, world: World, hire: Hire
) -> None:
    world.plan(1000)
    worker = await hire(world, call_s=0.3, stall_s=30)
    request = worker.request(10, user="ann")
    await worker.reserve(request)
    freeze(server)
    assert await reserve(worker, worker.request(1)) is None
    assert not worker.wire.available
    with pytest.raises(CountersUnavailable):
        await worker.settle(request, 0, charge=False)
    thaw(server)
    await eventually(lambda: not worker.counters.releases._owed and nothing_is_held(world))


async def test_owed_releases_are_bounded_and_end_with_hold(
    server: ValkeyServer, world: World, hire: Hire
) -> None:
    worker = await hire(world, call_s=0.2, stall_s=0.4)
    worker.counters.releases._owed_max = 3
    requests = [HoldRequest(world.caller, new_id(), "", CHAT, 1, 1) for _ in range(5)]
    server.stop()
    await eventually(lambda: not worker.wire.connected)
    for request in requests:
        with pytest.raises(CountersUnavailable):
            await worker.settle(request, 0, charge=False)
    assert len(worker.counters.releases._owed) == 3
    for one in worker.counters.releases._owed.values():
        one.until = 0.0
    await eventually(lambda: not worker.counters.releases._owed)


DAY_MS = 86_400_000


async def owed_by_a_refusing_redis(world: World, worker: Worker) -> HoldRequest:
    """A day's hold whose release was refused, as by a server whose disk is full."""
    world.plan(1000)
    request = replace(worker.request(10), ttl_ms=DAY_MS)
    assert (await worker.reserve(request)).verdict is Verdict.ADMITTED
    world.client.config_set("min-replicas-to-write", 1)
    with pytest.raises(CountersUnavailable):
        await worker.settle(request, 0, charge=False, hold_ttl_ms=DAY_MS)
    return request


async def test_release_is_owed_until_end_of_hold(server: ValkeyServer, world: World, hire: Hire) -> None:
    worker = await hire(world)
    releases = worker.counters.releases
    releases._ttl_s = 0.1
    request = await owed_by_a_refusing_redis(world, worker)
    short = worker.request(10)
    with pytest.raises(CountersUnavailable):
        await worker.settle(short, 0, charge=False)
    await eventually(lambda: short.request_id not in releases._owed)
    assert (list(releases._owed), world.tenant.held) == ([request.request_id], 10)
    world.client.config_set("min-replicas-to-write", 0)
    await eventually(lambda: not releases._owed and nothing_is_held(world))


@pytest.mark.parametrize("charged", [False, True])
async def test_next_worker_releases_long_hold_but_no_charged_hold(
    server: ValkeyServer, world: World, hire: Hire, tmp_path: Path, charged: bool
) -> None:
    worker = await hire(world)
    request = await owed_by_a_refusing_redis(world, worker)
    await eventually(lambda: worker.log.waiting and not worker.log._spools)
    worker.counters.releases._owed.clear()
    world.client.config_set("min-replicas-to-write", 0)
    if charged:
        assert await worker.settle(request, 7) is SettleResult.DONE
    await worker.log.written()
    for segment in worker.log.segments:  # killed: its files stay, unlocked
        segment.leave()
    worker.log.segments.clear()
    assert world.tenant.held == (0 if charged else 10)
    async with worker_at(server.url, tmp_path / "settlements") as successor:  # it looks at once
        assert (successor.log.waiting, world.tenant.held, world.late()) == (0, 0, [])
        assert world.tenant.used == (7 if charged else 0)
        assert len(successor.log.segments) <= 2  # what it has taken over, and its own


async def test_next_worker_releases_long_hold_given_up(
    server: ValkeyServer, world: World, hire: Hire, tmp_path: Path
) -> None:
    """Redis stands still, its caller is told so, the worker dies; then the hold is taken all the same."""
    world.plan(1000)
    worker = await hire(world, call_s=0.3, stall_s=30)
    freeze(server)
    assert await reserve(worker, replace(worker.request(10), ttl_ms=DAY_MS)) is None
    await eventually(lambda: worker.log.waiting and not worker.log._spools)
    for segment in worker.log.segments:
        segment.leave()
    worker.log.segments.clear()
    await worker.wire.close()
    thaw(server)
    await eventually(lambda: world.tenant.held == 10)
    async with worker_at(server.url, tmp_path / "settlements"):
        assert nothing_is_held(world)


async def test_a_charge_that_came_first_stands(world: World, hire: Hire) -> None:
    world.plan(1000)
    worker = await hire(world)
    request = worker.request(10)
    await worker.reserve(request)
    assert await worker.settle(request, 10) is SettleResult.DONE
    worker.counters._came_late(request, None)
    await eventually(lambda: not worker.counters.releases._owed)
    assert (world.tenant.used, world.tenant.held, world.late()) == (10, 0, [])


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_settlement_without_room_in_log_is_charged_if_redis_runs_script_late(
    server: ValkeyServer, world: World, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is told 503: nobody knows by then, and nobody may take it back."""
    world.plan(1000)
    worker = await hire(world, call_s=0.3, stall_s=30)
    request = worker.request(10)
    await worker.reserve(request)
    monkeypatch.setattr(os, "pwrite", full)
    freeze(server)
    with pytest.raises(CountersUnavailable):
        await worker.settle(request, 7)
    thaw(server)
    await eventually(lambda: worker.wire.available)
    await eventually(lambda: nothing_is_held(world))
    assert (world.tenant.used, worker.counters.releases._owed) == (7, {})


async def test_raise_given_up_is_released_by_its_request(
    server: ValkeyServer, world: World, hire: Hire
) -> None:
    worker = await hire(world, call_s=0.2, stall_s=0.4)
    head = HoldRequest(world.caller, new_id(), "", NO_SERVICE, 0, 0)
    await worker.reserve(head)
    freeze(server)
    raised = replace(head, service=UNITS, units=3, raises=True)
    assert await reserve(worker, raised) is None
    with pytest.raises(CountersUnavailable):
        await worker.settle(head, 0, charge=False)
    await eventually(lambda: not worker.wire.connected)
    thaw(server)
    await eventually(lambda: not worker.counters.releases._owed and nothing_is_held(world))
    packed = world.get(keys.activation(world.p, 1, UNITS.id))
    assert not packed or states.unpack(states.ActivationState, packed).held == 0


async def test_release_is_cancelled_for_hold_taken_again(world: World, hire: Hire) -> None:
    world.plan(1000)
    worker = await hire(world)
    request = replace(worker.request(10), raises=True)
    worker.counters.releases.owe(_release_of(request))
    await worker.reserve(request)
    await asyncio.sleep(0)  # the turn of the releases
    assert (worker.counters.releases._owed, world.tenant.held) == ({}, 10)
    assert await worker.settle(request, 10) is SettleResult.DONE


@pytest.mark.parametrize("settled", [False, True])
async def test_next_worker_releases_hold_after_failed_deletion(
    server: ValkeyServer, world: World, hire: Hire, tmp_path: Path, settled: bool
) -> None:
    world.plan(1000)
    worker, now_ms = await hire(world), int(time.time() * 1000)
    request = worker.request(10)
    await worker.reserve(request)
    holds = CallerHolds(worker.wire, time.time, worker.log)
    caller = world.caller
    hold = CallerHold(
        request.request_id, caller.organization_id, caller.tenant_id, caller.key_id, caller.partition, CHAT,
        "tokens", 10, HeldAmounts(10), now_ms, now_ms + DAY_MS, "charge", request.user,
    )  # fmt: skip
    await driven(holds.keep(hold))
    freeze(server)
    await in_task(holds.delete_later(caller, hold.id, "DELETE /.tollkeeper/holds/{id}"))
    for segment in worker.log.segments:  # killed: its files stay, unlocked
        segment.leave()
    worker.log.segments.clear()
    thaw(server)
    if settled:
        await eventually(lambda: worker.wire.available)
        await driven(holds.decide(hold, HoldEnd(False, True, "{}", tokens=7, applied=True)))
        assert await worker.settle(request, 7) is SettleResult.DONE
    async with worker_at(server.url, tmp_path / "settlements") as successor:
        assert (successor.log.waiting, world.tenant.held) == (1, 0 if settled else 10)
        ports = cast("Any", SimpleNamespace(holds=holds, counters=successor.counters))
        successor.resubmitter._others = {DELETION: partial(delete_again, ports)}
        await successor.look()
        assert (successor.log.waiting, world.tenant.held, world.late()) == (0, 0, [])
        assert world.tenant.used == (7 if settled else 0)
