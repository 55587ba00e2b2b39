"""Plans that weigh kinds, as a worker goes by them: over a real wire, with many calls at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.core.accounts.weights import Weights, millionths
from gateway.core.calls.call import Body, CallRequest
from gateway.core.calls.claims import output_bound
from gateway.core.calls.estimate import Estimate
from gateway.core.model import (
    GENERIC,
    Admitted,
    Caller,
    HoldRequest,
    Refused,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.admission.catalogue import WeightCache
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.layouts.packing import ANY_PLAN
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, CREDITS, World, driven
from tests.counters.lease_stage import Employ, Worker

CACHED, DEAR = {"cache_read": "0.1"}, {"output": "5", "reasoning": "0.5", "cache_write_1h": "1.6"}
PLAN, PLAIN = 4, 9


async def learn(worker: Worker, version: int = 1, **weights: dict[str, str]) -> None:
    """A catalogue with weights by plan, as `p4={…}`."""
    by_plan = {int(plan[1:]): millionths(said) for plan, said in weights.items()}
    worker.world.client.set(keys.CATALOGUE, encode_catalogue(version, [CHAT, CREDITS], by_plan))
    worker.world.mark(catalogue=version)
    await driven(worker.counters._directory.refresh())


@pytest.fixture
async def worker(world: World, employ: Employ) -> Worker:
    made = await employ(world)
    await learn(made, p4=CACHED)
    return made


async def test_a_call_is_held_and_settled_by_its_plans_weights(worker: Worker) -> None:
    world = worker.world
    world.plan(100_000, plan_id=PLAN)
    request, decision = await worker.reserve(300, ceiling=500, read=400, read_likely=250)
    assert (decision.verdict, decision.weights) == (Verdict.ADMITTED, Weights.of(millionths(CACHED)))
    assert decision.held_tokens == 300
    assert await worker.settle(request, 200_503, quota_tokens=38_503) is SettleResult.DONE
    assert world.tenant.used == 38_503


async def test_what_is_held_is_the_dearest_of_what_may_come(world: World, employ: Employ) -> None:
    worker = await employ(world)
    await learn(worker, p4=DEAR)
    world.plan(100_000, plan_id=PLAN, admission="strict")
    _, decision = await worker.reserve(300, ceiling=500, read=400, read_likely=250)
    assert decision.held_tokens == 400 * 16 // 10 + 100 * 5
    world.plan(100_000, plan_id=PLAN)
    _, decision = await worker.reserve(300, ceiling=500, read=400, read_likely=250)
    assert decision.held_tokens == 250 * 16 // 10 + 50 * 5


async def test_a_tenant_that_moves_goes_by_the_other_plan_from_the_next_call(worker: Worker) -> None:
    world = worker.world
    for plan, weighs in ((PLAIN, False), (PLAN, True), (PLAIN, False), (PLAN, True)):
        world.plan(1000, plan_id=plan)
        _, decision = await worker.reserve(5)
        assert (decision.verdict, decision.weights is not None) == (Verdict.ADMITTED, weighs)


async def test_other_weights_hold_for_calls_admitted_from_then_on(worker: Worker) -> None:
    world = worker.world
    world.plan(1000, plan_id=PLAN)
    _, before = await worker.reserve(5)
    world.client.set(keys.CATALOGUE, encode_catalogue(2, [CHAT], {PLAN: millionths(DEAR)}))
    world.mark(catalogue=2)
    _, after = await worker.reserve(5)
    assert (before.weights, after.weights) == (
        Weights.of(millionths(CACHED)),
        Weights.of(millionths(DEAR)),
    )
    world.client.set(keys.CATALOGUE, encode_catalogue(3, [CHAT]))
    world.mark(catalogue=3)
    assert (await worker.reserve(5))[1].weights is None


async def test_weights_and_plan_may_both_be_news(worker: Worker) -> None:
    world = worker.world
    world.plan(1000, plan_id=PLAIN)
    await worker.reserve(5)
    world.plan(1000, plan_id=PLAN)
    world.client.set(keys.CATALOGUE, encode_catalogue(7, [CHAT], {PLAN: millionths(DEAR)}))
    world.mark(catalogue=7)
    assert (await worker.reserve(5))[1].weights == Weights.of(millionths(DEAR))


async def test_without_weights_nobody_is_asked_for_a_plan(world: World, employ: Employ) -> None:
    worker = await employ(world)
    world.plan(1000, plan_id=PLAN)
    asked = scripts_run(world)
    await worker.reserve(5)
    assert scripts_run(world) - asked == 1


def scripts_run(world: World) -> int:
    return int(world.client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])


def test_calls_that_count_no_tokens_go_by_no_plan() -> None:
    weighing = WeightCache()
    weighing.load({PLAN: millionths(CACHED)})
    weighing.learn(7, PLAN)
    caller = Caller(1, 7, 3, 0)
    assert weighing.plan_of(HoldRequest(caller, "", "", CHAT, 1, 1)) == PLAN
    assert weighing.plan_of(HoldRequest(caller, "", "", CREDITS, 1, 1)) == ANY_PLAN


def test_the_plans_of_so_many_tenants_are_known() -> None:
    weighing = WeightCache(tenants_max=2)
    weighing.load({PLAN: millionths(CACHED)})
    for tenant_id in (1, 2, 3):
        weighing.learn(tenant_id, PLAN)
    known = [weighing.plan_of(HoldRequest(Caller(1, one, 3, 0), "", "", CHAT, 1, 1)) for one in (1, 2, 3)]
    assert known == [0, PLAN, PLAN]


# --- at the edge of a quota -------------------------------------------------------------------


def used_of(rng: random.Random, read: int, written: int) -> tuple[int, ...]:
    """Counts of a call that read and wrote as much as it could, of whatever kind."""
    cached = rng.randint(0, read)
    hours = rng.randint(0, read - cached)
    return (read - cached - hours, cached, 0, hours, written, rng.randint(0, written), 0, 0, 0, 0)


@pytest.mark.parametrize("said", [CACHED, DEAR, {"input": "0.3", "output": "0"}], ids=str)
async def test_a_strict_plan_is_never_overshot_whatever_kinds_come(
    world: World, employ: Employ, said: dict[str, str]
) -> None:
    rng = random.Random(5)
    worker = await employ(world)
    await learn(worker, p4=said)
    world.plan(20_000, plan_id=PLAN, admission="strict")
    weights = Weights.of(millionths(said))

    async def one() -> int:
        read, stated = rng.randint(1, 300), rng.choice([None, rng.randint(1, 300)])
        most = stated or 4_000
        least = 0 if stated else read + 1
        request = worker.request(read + 9, ceiling=read + most, least=least, read=read, read_likely=read)
        decision: Admitted | Refused = await driven(worker.counters.reserve(request))
        if decision.verdict is not Verdict.ADMITTED:
            return 0
        assert decision.bounded
        estimate = Estimate(read + 9, read + most, least, read)
        bound = output_bound(None, CallRequest("", GENERIC, Body()), estimate, decision)
        written = most if stated or bound is None else min(bound, most)
        counts = used_of(rng, read, written)
        quota_tokens = weights.count(counts, read + written)
        assert quota_tokens <= decision.held_tokens
        await worker.settle(request, read + written, quota_tokens=quota_tokens)
        return quota_tokens

    counted = sum(await asyncio.gather(*(one() for _ in range(200))))
    assert world.tenant.used == counted <= 20_000
    assert (world.tenant.held, world.tenant.remaining) == (0, 20_000 - counted)


async def test_many_at_once_are_admitted_until_what_they_count_is_held(worker: Worker) -> None:
    world = worker.world
    world.plan(1_000, plan_id=PLAN, admission="strict")
    found = await asyncio.gather(*(worker.reserve(100, read=50, read_likely=50) for _ in range(30)))
    admitted = [request for request, one in found if one.verdict is Verdict.ADMITTED]
    assert (len(admitted), world.tenant.held) == (10, 1_000)
    for request in admitted:  # what was read came from a cache
        await worker.settle(request, 100, quota_tokens=55)
    assert (world.tenant.used, world.tenant.held) == (550, 0)
    found = await asyncio.gather(*(worker.reserve(100, read=50, read_likely=50) for _ in range(30)))
    assert sum(one.verdict is Verdict.ADMITTED for _, one in found) == 4


# --- without Redis ----------------------------------------------------------------------------


async def test_a_lease_is_used_up_by_what_calls_count(worker: Worker) -> None:
    world = worker.world
    world.plan(10_000, plan_id=PLAN, on_store_failure="allow")
    await worker.renew()
    assert worker.left == 1_000
    await worker.lose()
    request, decision = await worker.reserve(400, ceiling=900, read=300, read_likely=300)
    assert (decision.held_tokens, decision.weights) == (400, Weights.of(millionths(CACHED)))
    settlement = Settlement(world.caller, request.request_id, "", CHAT, True, 8_000, quota_tokens=800)
    assert await driven(worker.counters.settle(settlement)) is SettleResult.SPOOLED
    assert worker.left == 200
    await worker.reserve(150, read=100, read_likely=100)
    await worker.reserve(150, read=100, read_likely=100)  # is let in with what is left
    with pytest.raises(CountersUnavailable):
        await worker.reserve(150, read=100, read_likely=100)


async def test_what_is_spooled_settles_by_what_it_counts(worker: Worker) -> None:
    world = worker.world
    world.plan(10_000, plan_id=PLAN)
    request, _ = await worker.reserve(400, read=300, read_likely=300)
    worker.wire.available = False
    settlement = Settlement(world.caller, request.request_id, "", CHAT, True, 8_000, quota_tokens=800)
    assert await driven(worker.counters.settle(settlement)) is SettleResult.SPOOLED
    worker.wire.available = True
    await worker.resubmitter.resubmit()
    assert (world.tenant.used, world.tenant.remaining) == (800, 9_200)
    assert world.events()[-1].amount == 800
