"""Leases of workers on a real server: asked for, given back, and what was used of them charged once."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import HoldExtension, HoldRequest, SettleResult, Verdict
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import KEPT
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import ACTIVE_S, CHARGED_S_MAX, RENEW_S
from gateway.counters.redis import keys
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable, InvalidApiKey
from tests.builders import BY_TOKEN, CHAT, CREDITS, ONE_TIME, UNITS, World
from tests.conftest import ValkeyServer
from tests.counters.lease_stage import LEASE_S, Employ, Worker
from tests.waiting import eventually

START = Callable[..., ValkeyServer]


@pytest.fixture
async def alone(allowing: World, employ: Employ) -> Worker:
    """A worker with a lease, to which Redis is away."""
    worker: Worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    return worker


# --- leasing ----------------------------------------------------------------------------


async def test_a_tenant_that_is_seen_has_a_lease_and_one_nobody_sees_gives_it_back(
    allowing: World, employ: Employ
) -> None:
    worker = await employ(allowing)
    await worker.leaser.lease()
    assert allowing.tenant.held == 0
    await worker.renew()
    assert (allowing.tenant.held, allowing.organization.credits_held, worker.left) == (100, 20, 100)
    assert worker.allowances.in_force == 1
    worker.clock.now += ACTIVE_S + 1
    await worker.leaser.lease()
    assert (allowing.tenant.held, allowing.organization.credits_held) == (0, 0)
    assert (worker.allowances.in_force, worker.allowances.all()) == (0, [])
    await worker.renew()
    assert allowing.tenant.held == 100


async def test_leases_are_asked_for_a_few_times_a_minute_and_where_a_plan_denies_never(
    world: World, employ: Employ
) -> None:
    """Redis calls of one tenant that calls all the time, as Redis counts them."""

    async def asked(worker: Worker, seconds: int) -> int:
        found = 0
        for _ in range(seconds):
            request, decision = await worker.reserve(1)
            assert decision.verdict is Verdict.ADMITTED
            await worker.settle(request, 0)
            world.client.config_resetstat()
            for _ in range(4):
                worker.clock.now += 0.25
                await worker.leaser.lease()
            stats = world.client.info("commandstats")
            found += int(stats.get("cmdstat_fcall", {"calls": 0})["calls"])
        return found

    world.plan(1000, on_store_failure="deny")
    worker = await employ(world)
    assert await asked(worker, 70) == 0
    assert not worker.allowances.all()
    world.plan(1000, on_store_failure="allow")
    assert await asked(worker, 60) == 60 / RENEW_S
    world.plan(1000, on_store_failure="deny")
    assert await asked(worker, 60) == 2, (
        "one is told that there is none any more, and gives back what there was"
    )
    assert (world.tenant.held, worker.allowances.all()) == (0, [])


@pytest.mark.parametrize("how", ["deny", "block"])
async def test_a_lease_ends_with_what_allowed_it(allowing: World, employ: Employ, how: str) -> None:
    worker = await employ(allowing)
    await worker.renew()
    if how == "deny":
        allowing.plan(1000, on_store_failure="deny")
    else:
        allowing.grant("block")
        _, decision = await worker.reserve(1)
        assert decision.verdict is Verdict.TENANT_BLOCKED
        assert worker.allowances.in_force == 0
    await worker.renew()
    await worker.leaser.lease()
    assert (worker.allowances.in_force, allowing.tenant.held) == (0, 0)
    await worker.lose()
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)


@pytest.mark.parametrize(("limit", "held"), [(500, 100), (490, 49)])
async def test_what_a_lease_has_no_more_is_freed_at_once_if_it_is_more_than_half(
    allowing: World, employ: Employ, limit: int, held: int
) -> None:
    worker = await employ(allowing)
    await worker.renew()
    allowing.plan(limit, on_store_failure="allow")
    await worker.renew()
    assert (worker.left, allowing.tenant.held) == (limit // 10, 100)
    await worker.leaser.lease()
    assert allowing.tenant.held == held


async def test_who_is_told_that_all_is_held_has_the_lease_looked_at_at_once(
    allowing: World, employ: Employ
) -> None:
    worker = await employ(allowing)
    await worker.renew()
    request, _ = await worker.reserve(900)
    await worker.settle(request, 900)
    assert (await worker.reserve(1))[1].verdict is Verdict.QUOTA_HELD
    await worker.leaser.lease()
    await worker.leaser.lease()
    assert allowing.tenant.held == 10
    assert (await worker.reserve(1))[1].verdict is Verdict.ADMITTED


async def test_a_worker_gives_its_leases_back_when_it_stops(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    await worker.leaser.give_back()
    assert (allowing.tenant.held, allowing.organization.credits_held, allowing.deadlines()) == (0, 0, {})


async def test_who_takes_the_slot_takes_the_lease(allowing: World, employ: Employ) -> None:
    first, second = await employ(allowing), await employ(allowing)
    second.allowances = second.leaser._allowances = Allowances(second.clock, first.allowances._worker_slot)
    await first.renew()
    await second.renew()
    assert allowing.tenant.held == 100


def test_tenants_kept_are_bounded(allowing: World) -> None:
    allowances = Allowances(lambda: 0.0, tenants_max=3)
    for tenant in range(10):
        allowances.wanted(replace(allowing.caller, tenant_id=tenant))
    assert len(allowances.all()) == 3
    assert allowances.snapshot()["leases_left_out"] == 7


# --- back again -------------------------------------------------------------------------


async def test_what_was_used_stays_held_until_it_is_charged(allowing: World, alone: Worker) -> None:
    request, _ = await alone.reserve(60)
    flying, _ = await alone.reserve(10)
    await alone.settle(request, 50)
    await alone.find()
    assert alone.log.waiting == 1
    assert (allowing.tenant.held, alone.left) == (60 + (1000 - 60) // 10, 94)
    await alone.resubmitter.resubmit()
    assert (alone.log.waiting, len(allowing.late())) == (0, 1)
    await alone.renew()
    assert (allowing.tenant.held, alone.left) == (60 + 94, 94)
    post_late(allowing)
    await alone.renew()
    await alone.renew()
    assert allowing.tenant.remaining == 950
    assert allowing.tenant.held == 10 + (950 - 10) // 10
    # A call that began meanwhile and ends now finds no hold: it is charged by the late queue too.
    assert await alone.settle(flying, 10) is SettleResult.UNKNOWN
    post_late(allowing)
    await alone.renew()
    await alone.renew()
    assert (allowing.tenant.remaining, allowing.tenant.held, alone.left) == (940, 94, 94)
    alone.clock.now += ACTIVE_S + 1
    await alone.leaser.lease()
    assert allowing.tenant.held == 0


async def test_a_long_outage_keeps_the_leases_of_those_who_call(own_valkey: START, employ: Employ) -> None:
    """Redis is back after minutes, and empty: until it is verified they go on."""
    world = World(own_valkey().url)
    world.plan(1000, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    worker.clock.now += ACTIVE_S * 3
    worker.seen()
    world.client.flushall()
    await worker.find()
    assert (await worker.reserve(60))[1].tokens_remaining == 40
    world.client.close()


async def test_what_is_unlimited_is_not_asked_for_all_the_time(world: World, employ: Employ) -> None:
    world.plan(None, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    await worker.reserve(1000)
    await worker.find()
    world.client.config_resetstat()
    for _ in range(20):
        worker.clock.now += 0.24
        await worker.leaser.lease()
    assert "cmdstat_fcall" not in world.client.info("commandstats")


async def test_a_call_redis_had_admitted_after_all_is_charged_by_it(allowing: World, alone: Worker) -> None:
    """Its answer was late: the hold is there, and what was taken of the lease comes back."""
    request, _ = await alone.reserve(60)
    allowing.reserve(need=60, request_id=request.request_id)
    alone.wire.available = True
    assert await alone.settle(request, 50) is SettleResult.DONE
    assert alone.left == 100
    assert (allowing.tenant.remaining, allowing.tenant.held) == (950, 100)


async def test_a_call_of_redis_is_released_by_it_while_the_lease_has_another(alone: Worker) -> None:
    await alone.reserve(60)
    alone.wire.available = True
    request, _ = await alone.reserve(10)
    assert await alone.settle(request, 0, charge=False) is SettleResult.DONE
    assert (alone.left, len(alone.allowances.calls)) == (40, 1)


async def test_after_a_restart_every_lease_is_renewed_at_once(own_valkey: START, employ: Employ) -> None:
    server = own_valkey()
    world = World(server.url)
    world.plan(1000, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    server.stop(signal.SIGKILL)
    await eventually(lambda: not worker.wire.available)
    request, _ = await worker.reserve(60)
    await worker.settle(request, 50)
    server.start()
    await eventually(lambda: worker.wire.available)
    assert not worker.leaser.is_current
    await worker.leaser.lease()
    assert worker.left == 50  # not verified: nothing was asked in vain, nothing is forgotten
    assert not worker.leaser.is_current
    rebuilt = World(server.url)
    rebuilt.plan(1000, on_store_failure="allow")
    await worker.leaser.lease()
    assert rebuilt.tenant.held == 50 + 95
    assert worker.leaser.is_current
    world.client.close()
    rebuilt.client.close()


@pytest.mark.parametrize("seed", range(3))
async def test_workers_together_never_use_more_than_there_is(
    allowing: World, employ: Employ, seed: int
) -> None:
    """Calls, outages of single workers, renewals and late settlements, in any order."""
    chance = random.Random(seed)
    workers = [await employ(allowing, chance.choice([0.05, 0.4, 0.9])) for _ in range(4)]
    calls: list[tuple[Worker, HoldRequest, int]] = []
    for _ in range(250):
        worker = chance.choice(workers)
        match chance.randrange(6):
            case 0:
                await worker.renew()
            case 1:
                await (worker.lose() if worker.wire.available else worker.find())
            case 2 | 3:
                calls += await admitted(worker, chance.randrange(1, 30))
            case 4 if calls:
                worker, request, held = calls.pop(0)
                await worker.settle(request, chance.randrange(held + 1))
            case 5:
                await hand_in(workers)
                post_late(allowing)
        tenant = allowing.tenant
        leases = [one.tokens for worker in workers for one in worker.allowances.all()]
        assert sum(one.kept for one in leases) <= tenant.held
        assert sum(max(0, one.left) for one in leases) <= tenant.remaining
        chance.shuffle(calls)
    for worker in workers:
        await worker.find()
    for worker, request, held in calls:
        await worker.settle(request, held)
    await hand_in(workers)
    post_late(allowing)
    assert allowing.tenant.remaining >= 0
    for worker in workers:
        await worker.renew()
        worker.clock.now += ACTIVE_S + 1
        await worker.leaser.lease()
    assert (allowing.tenant.held, allowing.tenant.inflight, allowing.deadlines()) == (0, 0, {})


async def admitted(worker: Worker, need: int) -> list[tuple[Worker, HoldRequest, int]]:
    """One call, if it is admitted."""
    try:
        request, decision = await worker.reserve(need)
    except CountersUnavailable:
        return []
    return [(worker, request, decision.held_tokens)] if decision.verdict is Verdict.ADMITTED else []


async def hand_in(workers: list[Worker]) -> None:
    """What each log does by itself as soon as Redis is there."""
    for worker in workers:
        if worker.wire.available:
            await worker.resubmitter.resubmit()


def post_late(world: World) -> None:
    """What the keeper does with the late queue once everything before it is in the ledger."""
    for entry_id, fields in world.entries(keys.late(world.p)):
        kept = KEPT.read(fields[b"a"])
        caller = world.caller
        request = HoldRequest(caller, kept["request_id"].decode(), "", CHAT, 0, 0)
        world.settle(request, kept["tokens"], mode=packing.MODE_POST)
        world.client.xdel(keys.late(world.p), entry_id)


async def test_a_worker_that_stops_leaves_only_what_is_not_charged_yet(
    allowing: World, alone: Worker
) -> None:
    request, _ = await alone.reserve(60)
    await alone.settle(request, 50)
    alone.wire.available = True
    await alone.leaser.give_back()
    assert (allowing.tenant.held, allowing.organization.credits_held) == (50, 0)
    assert max(allowing.deadlines().values()) <= allowing.now_ms() + ACTIVE_S * 1000


async def test_a_lane_that_is_never_empty_keeps_nothing_held_for_ever(allowing: World, alone: Worker) -> None:
    request, _ = await alone.reserve(60)
    await alone.settle(request, 50)
    await alone.find()
    await hand_in([alone])
    await alone.renew()
    assert allowing.tenant.held == 50 + 95
    alone.clock.now += CHARGED_S_MAX
    await alone.renew()
    await alone.renew()
    assert allowing.tenant.held == 100


async def test_many_tenants_are_asked_for_in_batches(world: World, employ: Employ) -> None:
    worker = await employ(world)
    worker.leaser._batch_max = 3
    for tenant in range(100, 105):
        worker.allowances.wanted(replace(world.caller, tenant_id=tenant))
    world.client.config_resetstat()
    assert [await worker.leaser.lease() for _ in range(3)] == [True, False, False]
    assert world.client.info("commandstats")["cmdstat_fcall"]["calls"] == 5


# --- one of two servers away ------------------------------------------------------------


class Two:
    """Two servers by turns of partitions; the leaser asks no more of them."""

    def __init__(self, *wires: RedisConnection) -> None:
        self.wires = list(wires)
        self.turn = 0

    def of(self, partition: int) -> RedisConnection:
        return self.wires[(partition + self.turn) % 2]


async def divided(allowing: World, employ: Employ) -> tuple[Worker, Worker, Two]:
    """A worker with a lease in the other's server, which goes away, and then one in its own."""
    worker, other = await employ(allowing), await employ(allowing)
    two = Two(worker.wire, other.wire)
    two.turn = allowing.caller.partition
    worker.leaser._wires = two
    worker.allowances.wanted(
        replace(allowing.caller, tenant_id=987_654, partition=allowing.caller.partition ^ 1)
    )
    await worker.renew()
    return worker, other, two


async def test_a_server_that_is_away_keeps_no_lease_of_another_held(allowing: World, employ: Employ) -> None:
    worker, other, _ = await divided(allowing, employ)
    for one in worker.allowances.all():
        one.held = True
    assert worker.allowances.all()[0].caller.tenant_id == 987_654
    assert allowing.tenant.held == 100
    other.wire.available = False
    await worker.leaser.give_back()
    assert allowing.tenant.held == 0


async def test_a_lease_that_was_due_while_its_server_was_away_is_asked_of_who_has_its_partition_then(
    allowing: World, employ: Employ
) -> None:
    worker, other, two = await divided(allowing, employ)
    two.turn += 1  # the tenant's partition goes to the other, which is away
    other.wire.available = False
    allowing.plan(1000, on_store_failure="deny")
    worker.clock.now += RENEW_S
    await worker.leaser.lease()
    two.turn += 1
    assert allowing.tenant.held == 100
    for _ in range(2):
        worker.clock.now += RENEW_S
        await worker.leaser.lease()
    assert allowing.tenant.held == 0


# --- allowance --------------------------------------------------------------------------
# What a worker admits on its leases while Redis is away.


async def test_calls_go_on_within_the_lease_and_then_not(alone: Worker) -> None:
    request, decision = await alone.reserve(60)
    assert (decision.held_tokens, decision.limit, decision.tokens_remaining) == (60, 100, 40)
    assert await alone.settle(request, 30) is SettleResult.SPOOLED
    assert alone.left == 70
    request, decision = await alone.reserve(50, ceiling=4000)
    assert (decision.held_tokens, decision.tokens_remaining) == (70, 0)
    with pytest.raises(CountersUnavailable):
        await alone.reserve(1)
    await alone.settle(request, 0, charge=False)
    assert (alone.left, alone.allowances.calls, alone.allowances.admitted) == (70, {}, 2)


async def test_what_costs_nothing_is_covered_where_nothing_is_left(alone: Worker) -> None:
    await alone.reserve(60, ceiling=4000)
    with pytest.raises(CountersUnavailable):
        await alone.reserve(1)
    _, decision = await alone.reserve(0)
    assert decision.held_tokens == 0


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_call_that_could_be_kept_nowhere_is_charged_to_nobody(
    alone: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, _ = await alone.reserve(60)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CountersUnavailable):
        await alone.settle(request, 30)
    assert (alone.left, alone.allowances.calls) == (100, {})


async def test_a_call_that_used_more_than_is_left_is_debt(alone: Worker) -> None:
    request, _ = await alone.reserve(90)
    await alone.settle(request, 130)
    assert alone.left == -30
    with pytest.raises(CountersUnavailable):
        await alone.reserve(1)


async def test_a_strict_plan_refuses_what_does_not_fit(world: World, employ: Employ) -> None:
    world.plan(1000, on_store_failure="allow", admission="strict")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    with pytest.raises(CountersUnavailable):
        await worker.reserve(101)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(50, ceiling=101)
    for ceiling, least, held in ((1, 0, 1), (60, 0, 60), (4000, 39, 39)):
        _, decision = await worker.reserve(1, ceiling=ceiling, least=least)
        assert (decision.held_tokens, decision.bounded) == (held, True)


async def test_an_unlimited_plan_is_not_limited(world: World, employ: Employ) -> None:
    world.plan(None, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    for _ in range(3):
        _, decision = await worker.reserve(10**6)
        assert (decision.held_tokens, decision.limit, decision.tokens_remaining) == (10**6, 0, None)


async def test_credits_come_from_the_lease(alone: Worker) -> None:
    _, decision = await alone.reserve(service=CREDITS, credits_=15)
    assert decision.credits_remaining == 5
    with pytest.raises(CountersUnavailable):
        await alone.reserve(service=CREDITS, credits_=6)
    with pytest.raises(CountersUnavailable):
        await alone.reserve(service=BY_TOKEN, credits_=400, credits_least=6)
    _, decision = await alone.reserve(service=BY_TOKEN, credits_=400, credits_least=5)
    assert (decision.credits_remaining, decision.held_credits) == (0, 5)


async def test_what_only_redis_knows_the_price_of_is_refused(allowing: World, employ: Employ) -> None:
    allowing.define_organization(cap=10_000_000)
    worker = await employ(allowing)
    await worker.renew()
    await worker.lose()
    priced = replace(UNITS, pricing=ServicePricing((PriceTier(None, Decimal(1)),)))
    for service in (ONE_TIME, priced):
        with pytest.raises(CountersUnavailable):
            await worker.reserve(service=service)
    assert (await worker.reserve(service=UNITS))[1].verdict is Verdict.ADMITTED


async def test_a_key_known_as_revoked_stays_refused(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    await worker.renew()
    allowing.define_key(revoked=True)
    assert (await worker.reserve(1))[1].verdict is Verdict.REVOKED
    await worker.lose()
    with pytest.raises(InvalidApiKey):
        await worker.reserve(1)


async def test_a_lease_is_good_for_a_bounded_time(alone: Worker) -> None:
    alone.clock.now += LEASE_S - 1
    await alone.reserve(1)
    alone.clock.now += 2
    with pytest.raises(CountersUnavailable):
        await alone.reserve(1)


async def test_an_unverified_redis_is_away_and_a_full_one_is_not(own_valkey: START, employ: Employ) -> None:
    world = World(own_valkey().url)
    world.plan(1000, on_store_failure="allow")
    worker = await employ(world)
    await worker.renew()
    world.client.config_set("maxmemory", 1)
    with pytest.raises(CountersUnavailable, match="OOM"):
        await worker.reserve(1)
    world.client.config_set("maxmemory", 0)
    world.client.flushall()
    assert (await worker.reserve(1))[1].tokens_remaining == 99
    world.client.close()


async def test_a_redis_that_is_verified_and_not_open_yet_is_away(allowing: World, employ: Employ) -> None:
    worker = await employ(allowing)
    allowing.mark(catalogue=packing.CLOSED)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(1)
    await worker.renew()
    request, decision = await worker.reserve(1)
    assert decision.tokens_remaining == 99
    assert await worker.settle(request, 1) is SettleResult.UNKNOWN
    assert len(allowing.late()) == 1


async def test_a_stream_that_outgrows_its_hold_takes_from_the_lease(world: World, employ: Employ) -> None:
    world.plan(10_000, on_store_failure="allow", on_exhausted="cut")
    worker = await employ(world)
    await worker.renew()
    await worker.lose()
    request, decision = await worker.reserve(100)
    observed = HoldExtension(world.caller, request.request_id, decision.held_tokens, tokens=100)
    worker.counters.request_extension(observed)
    assert (observed.held, observed.exhausted, worker.left) == (356, False, 644)
    answers: list[int] = []
    for reserved in (1_001, 1_000 - 44):
        observed.reserved, observed.answered = reserved, lambda: answers.append(worker.left)
        worker.counters.request_extension(observed)
    assert (answers, observed.held, observed.exhausted) == ([644, 44], 956, False)
    observed.tokens = 900
    worker.counters.request_extension(observed)
    assert (observed.held, observed.exhausted, observed.cut, worker.left) == (1000, True, True, 0)
