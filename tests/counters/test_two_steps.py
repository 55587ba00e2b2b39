"""Calls admitted by their head and raised behind their body, with leases, while Redis comes and goes.

However often it does: one settlement is one charge, and every slot and token that was taken comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from gateway.core.model import NO_SERVICE, HoldRequest, Limits, SettleResult, Verdict
from gateway.counters.leases.leaser import ACTIVE_S
from tests.builders import CHAT, World, driven
from tests.conftest import ValkeyServer
from tests.counters.admission.test_releases import freeze, thaw
from tests.counters.lease_stage import Employ, Worker
from tests.counters.leases.test_leaser import post_late
from tests.waiting import eventually

START = Callable[..., ValkeyServer]
THERE, AWAY = True, False
NEED, USED = 40, 30


async def employed(world: World, employ: Employ, **more: float) -> Worker:
    """A worker with a lease, and a key with one slot."""
    world.plan(1000, on_store_failure="allow")
    world.define_key(Limits(concurrency=1))
    worker: Worker = await employ(world, **more)
    await worker.renew()
    return worker


async def turn(worker: Worker, there: bool) -> None:
    await (worker.find() if there else worker.lose())


async def raise_(worker: Worker, head: HoldRequest) -> HoldRequest:
    """Ask for the rest of the call; what it is now."""
    whole = replace(head, service=CHAT, need=NEED, ceiling=NEED, units=1, raises=True)
    decision = await driven(worker.counters.reserve(whole))
    assert (decision.verdict, decision.held_tokens) == (Verdict.ADMITTED, NEED)
    return whole


async def check_over(worker: Worker, request: HoldRequest, charged: int) -> None:
    """Nothing is held of the call, and it is charged once or not at all."""
    world = worker.world
    await eventually(lambda: not worker.counters.releases._owed)
    await worker.resubmitter.resubmit()
    post_late(world)
    assert (worker.log.waiting, worker.allowances.calls) == (0, {})
    assert [state.inflight for state in (world.key, world.tenant, world.organization)] == [0, 0, 0]
    assert [event.amount for event in world.events() if event.source == request.request_id] == [
        charged
    ] * bool(charged)
    assert world.tenant.remaining == 1000 - charged
    for _ in range(2):
        await worker.renew()
    worker.clock.now += ACTIVE_S + 1
    await worker.leaser.lease()
    assert (world.tenant.held, world.deadlines()) == (0, {})


@pytest.mark.parametrize("charge", [True, False])
@pytest.mark.parametrize("redis", [*product((THERE, AWAY), repeat=3)])
async def test_a_call_of_two_steps_ends_once_wherever_each_was_admitted(
    world: World, employ: Employ, redis: tuple[bool, bool, bool], charge: bool
) -> None:
    at_head, at_body, at_end = redis
    worker = await employed(world, employ)
    await turn(worker, at_head)
    head, decision = await worker.reserve(service=NO_SERVICE, units=0)
    assert decision.verdict is Verdict.ADMITTED
    await turn(worker, at_body)
    request = await raise_(worker, head)
    assert worker.allowances.admitted == (not at_head or not at_body)
    await turn(worker, at_end)
    if charge:
        known = at_end and (at_head or at_body)
        expected = SettleResult.DONE if known else SettleResult.UNKNOWN if at_end else SettleResult.SPOOLED
        assert await worker.settle(request, USED) is expected
    else:
        await worker.release(request)
    await turn(worker, THERE)
    await check_over(worker, request, USED if charge else 0)


@pytest.mark.parametrize("charge", [True, False])
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("still", [*product(("head", "body"), ("body", "end"))])
async def test_a_call_of_two_steps_ends_once_where_redis_stands_still(
    own_valkey: START, employ: Employ, still: tuple[str, str], breaks: bool, charge: bool
) -> None:
    since, until = still
    server = own_valkey()
    worker = await employed(World(server.url), employ, call_s=0.2, stall_s=0.3 if breaks else 30)

    async def go_on() -> None:
        if breaks:
            await eventually(lambda: not worker.wire.connected)
        thaw(server)
        await eventually(lambda: worker.wire.available)

    if since == "head":
        freeze(server)
    head, _ = await worker.reserve(service=NO_SERVICE, units=0)
    if since == "body":
        freeze(server)
    elif until == "body":
        await go_on()
    request = await raise_(worker, head)
    if since == until:
        await go_on()
    if charge:
        await worker.settle(request, USED)
    else:
        await worker.release(request)
    if until == "end":
        await go_on()
    await check_over(worker, request, USED if charge else 0)
