"""Tokens of a quota beside tokens: the one moves the tenant's account, the other the buckets a minute."""

from __future__ import annotations

import json

from gateway.core.accounts.plans import ONE, Weights
from gateway.core.model import HoldExtension, Limits, SettleResult, Verdict
from gateway.counters.admission.usage import UNIT
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from tests.builders import World

TENTH = Weights.of(dict.fromkeys(("input", "output"), ONE // 10))
PLAN = 4


def bucket(world: World) -> int:
    """Tokens that the tenant's bucket a minute has taken, at least: it drains."""
    return -(-world.tenant.tokens_used // UNIT)


def test_a_hold_is_of_the_quota_and_its_buckets_take_tokens(world: World) -> None:
    world.define_tenant(Limits(tokens_per_minute=1000))
    world.plan(100, plan_id=PLAN)
    call = world.reserve(600, ceiling=800, quota=(60, 80, 0), plan_id=PLAN)
    assert (call.decision.verdict, call.decision.held_tokens) == (Verdict.ADMITTED, 60)
    assert (call.decision.tokens_remaining, call.decision.limit) == (40, 100)
    assert world.tenant.held == 60
    assert bucket(world) == 600
    assert call.settle(tokens=500, weighed=50) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.remaining, world.tenant.held) == (50, 50, 0)
    assert 490 <= bucket(world) <= 500
    assert world.events()[-1].amount == 50


def test_a_strict_plan_goes_by_what_a_call_could_count_at_most(world: World) -> None:
    world.plan(100, plan_id=PLAN, admission="strict")
    refused = world.reserve(10, ceiling=20, quota=(50, 101, 0), plan_id=PLAN)
    assert refused.decision.verdict is Verdict.QUOTA_EXCEEDED
    assert world.reserve(500, ceiling=999, quota=(50, 100, 0), plan_id=PLAN).decision.held_tokens == 100


def test_another_plan_is_told_and_nothing_is_taken(world: World) -> None:
    world.plan(100, plan_id=PLAN)
    refused = world.reserve(5, quota=(1, 1, 0), plan_id=PLAN + 1)
    assert (refused.decision.verdict, refused.decision.limit) == (Verdict.OTHER_PLAN, PLAN)
    assert (world.tenant.held, world.tenant.inflight) == (0, 0)
    assert not world.get(keys.hold(world.p, refused.id))
    assert world.reserve(5, plan_id=packing.ANY_PLAN).decision.verdict is Verdict.ADMITTED


def test_a_weight_above_one_takes_more_than_there_are(world: World) -> None:
    world.plan(1000, plan_id=PLAN)
    call = world.reserve(10, quota=(50, 50, 0), plan_id=PLAN)
    call.settle(tokens=10, weighed=50)
    assert (world.tenant.used, world.tenant.remaining) == (50, 950)


def test_what_counts_nothing_is_a_row_of_nothing(world: World) -> None:
    world.plan(100, plan_id=PLAN)
    call = world.reserve(10, quota=(0, 0, 0), plan_id=PLAN)
    assert call.decision.held_tokens == 0
    call.settle(tokens=10, weighed=0)
    assert (world.events()[-1].amount, world.tenant.used) == (0, 0)
    call = world.reserve(10, quota=(0, 0, 0), plan_id=PLAN)
    call.reclaim(tokens=10, weighed=0)
    assert (world.events()[-1].amount, world.tenant.used) == (0, 0)


def test_a_live_call_is_topped_up_by_what_it_counts(world: World) -> None:
    world.plan(100, plan_id=PLAN)
    call = world.reserve(100, ceiling=5000, quota=(10, 500, 0), plan_id=PLAN)
    live = HoldExtension(world.caller, call.id, 0, tokens=300, weights=TENTH, weighed=30)
    assert world.extended([(live, 100)]) == [(100, 0, 0)]  # all that was free was held already
    live.weighed = 120
    assert world.extended([(live, 100)]) == [(100, 0, 1)]
    hold = states.unpack_hold(world.get(keys.hold(world.p, call.id)))[0]
    assert (hold.tokens, hold.observed, hold.weighed) == (100, 300, 120)


def test_a_hold_of_the_version_before_is_observed_as_it_was(world: World) -> None:
    world.plan(100)
    call = world.reserve(10)
    name = keys.hold(world.p, call.id)
    size = len(states.pack(states.HoldState()))
    packed = world.get(name)
    world.client.set(name, bytes([129]) + packed[1 : size - 8] + packed[size:])
    assert call.extend(7) == (10, 0)
    hold = states.unpack_hold(world.get(name))[0]
    assert (hold.tokens, hold.observed, hold.weighed) == (10, 7, -1)
    assert call.settle(tokens=8) is SettleResult.DONE
    assert world.tenant.remaining == 92


def test_a_late_call_waits_with_what_it_counts(world: World) -> None:
    world.plan(1000, plan_id=PLAN)
    call = world.reserve(500, quota=(50, 50, 0), plan_id=PLAN)
    call.reclaim(tokens=200, weighed=20, metadata=json.dumps({"reclaimed": True}).encode())
    assert (world.tenant.used, world.tenant.held) == (20, 0)
    assert call.settle(tokens=400, weighed=40) is SettleResult.RECLAIMED
    (entry,) = world.client.xrange(keys.late(world.p))
    assert int(entry[1][b"charged"]) == 20
    assert call.correct(tokens=200, weighed=20) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.remaining) == (20, 960)
    assert world.events()[-1].amount == 20


def test_a_correction_may_give_back(world: World) -> None:
    world.plan(1000, plan_id=PLAN)
    call = world.reserve(500, quota=(50, 50, 0), plan_id=PLAN)
    call.reclaim(tokens=0, weighed=50)
    call.correct(tokens=300, weighed=-20)
    assert world.tenant.remaining == 1000 - 50 + 20
