"""Due resets: every script that touches a tenant runs them first, under the plan in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.outbox import EventFlag, EventKind
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import INTEGER_MAX, Verdict
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from tests.builders import World
from tests.lua.boundaries import boundaries_between, boundary_after

DAY_MS = 86_400_000


def midnight(world: World) -> int:
    """The last daily boundary: a reset that is due."""
    return world.now_ms() // DAY_MS * DAY_MS


def end_cycle(world: World) -> None:
    world.put_tenant(next_reset=midnight(world))
    world.sweep()


# --- every script runs it first ---------------------------------------------------------


def reserve(world: World) -> None:
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


def define(world: World) -> None:
    assert world.define_tenant(terms=PlanTerms(plan_id=1, total_amount=100, reset_interval="daily")) == 1


def sweep(world: World) -> None:
    assert world.sweep().code == 1


def grant(verb: str, **more: Any) -> Callable[[World], None]:
    def run(world: World) -> None:
        assert world.grant(verb, 1, **more).code == 1

    run.__name__ = verb
    return run


SCRIPTS: list[Callable[[World], None]] = [
    reserve,
    define,
    sweep,
    *(grant(verb) for verb in ("recharge", "reset", "adjust", "block", "unblock", "credits")),
    grant("plan", terms=PlanTerms(plan_id=2, total_amount=9, reset_interval="daily")),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.__name__))
def test_a_due_reset_runs_first_in_every_script(world: World, script: Callable[[World], None]) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=10).settle(tokens=130)
    entries = len(world.events())
    world.put_tenant(next_reset=midnight(world))
    script(world)
    reset = world.events()[entries]
    assert (reset.kind, reset.seq, reset.source) == (EventKind.RESET, 3, "")
    assert (reset.amount, reset.remaining, reset.used) == (130, 100, 0)
    assert reset.flags == EventFlag.TOKENS | EventFlag.IN
    moved = [event.seq for event in world.events() if event.flags & EventFlag.TOKENS]
    assert moved == list(range(1, world.tenant.seq + 1))


def test_use_belongs_to_the_cycle_in_which_it_settles(world: World) -> None:
    world.plan(100, reset_interval="daily")
    call = world.reserve(need=60)
    world.put_tenant(next_reset=midnight(world))
    call.settle(tokens=70)
    _, reset, use = world.events()
    assert (reset.kind, reset.cycle, use.kind, use.cycle) == (EventKind.RESET, 2, EventKind.CONSUME, 2)
    assert (use.remaining, use.used, world.tenant.held) == (30, 70, 0)


@pytest.mark.parametrize("mode", [packing.MODE_RELEASE, packing.MODE_RECLAIM, packing.MODE_POST])
def test_a_due_reset_runs_however_a_call_ends(world: World, mode: int) -> None:
    world.plan(100, reset_interval="daily")
    call = world.reserve(need=60)
    world.put_tenant(next_reset=midnight(world))
    call.settle(mode=mode)
    assert [event.kind for event in world.events()[:2]] == [EventKind.RESET, EventKind.RESET]
    assert world.tenant.held == 0


def test_a_due_reset_runs_when_streams_are_extended(world: World) -> None:
    world.plan(100, reset_interval="daily")
    calls = [world.reserve(need=30) for _ in range(2)]
    world.put_tenant(next_reset=midnight(world), remaining=-20, used=120)
    assert world.extend(calls, observed=40) == [(40, 0), (40, 0)]
    assert [event.kind for event in world.events()] == [EventKind.RESET, EventKind.RESET]
    assert world.tenant.remaining == 100


def test_a_refusal_does_not_run_a_due_reset(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.grant("block")
    world.put_tenant(next_reset=midnight(world))
    before = world.everything()
    assert world.reserve(need=1).verdict is Verdict.TENANT_BLOCKED
    assert world.everything() == before


# --- under the plan in force ------------------------------------------------------------


@pytest.mark.parametrize("interval", ["daily", "weekly", "monthly"])
@pytest.mark.parametrize("anchor", [1, 15, 31])
@pytest.mark.parametrize("days", [1, 40, 400])
def test_several_missed_cycles_are_one_row_with_their_number(
    world: World, interval: str, anchor: int, days: int
) -> None:
    world.plan(100, reset_interval=interval, anchor=anchor)
    anchor = 1 if interval == "weekly" else anchor  # a tenant's own anchor is a day of the month
    missed = boundary_after(interval, world.now_ms() - days * DAY_MS, anchor)
    world.put_tenant(next_reset=missed, remaining=3, used=97)
    is_due = missed <= world.now_ms()
    world.sweep()
    tenant, events = world.tenant, world.events()
    assert tenant.next_reset == boundary_after(interval, world.now_ms(), anchor)
    if is_due:
        passed = boundaries_between(interval, missed, tenant.next_reset, anchor)
        assert (tenant.cycle, events[-1].cycle, len(events)) == (1 + passed, 1 + passed, 2)
        assert events[-1].metadata == (b'{"cycles":%d}' % passed if passed > 1 else b"")
    else:
        assert (tenant.cycle, len(events)) == (1, 1)


@pytest.mark.parametrize(
    ("policy", "rollover", "left", "then"),
    [
        ("block", 0, 30, 100), ("block", 0, -30, 100), ("block", 20, 30, 120), ("block", 50, 30, 130),
        ("carry", 0, 30, 100), ("carry", 0, -30, 70), ("carry", 50, -30, 70), ("carry", 0, -130, -30),
        ("carry", 20, 30, 120), ("bill", 0, -30, 100), ("bill", 10, 5, 105),
    ],
)  # fmt: skip
def test_what_a_reset_forgives_keeps_and_rolls_over(
    world: World, policy: str, rollover: int, left: int, then: int
) -> None:
    world.plan(100, reset_interval="daily", overage_policy=policy, rollover_max=rollover)
    world.reserve(need=1).settle(tokens=100 - left)
    end_cycle(world)
    reset = world.events()[-1]
    assert (reset.remaining, reset.used, reset.amount) == (then, 0, abs(then - left))
    assert bool(reset.flags & EventFlag.IN) is (then >= left)
    assert bool(reset.flags & EventFlag.BLOCKED) is (then <= 0)


@pytest.mark.parametrize(
    ("policy", "left", "told"),
    [("block", -30, b'{"forgiven":30}'), ("block", 0, b""), ("carry", -30, b""), ("bill", -30, b"")],
)
def test_a_reset_says_what_debt_it_forgives(world: World, policy: str, left: int, told: bytes) -> None:
    world.plan(100, reset_interval="daily", overage_policy=policy)
    world.reserve(need=1).settle(tokens=100 - left)
    end_cycle(world)
    assert world.events()[-1].metadata == told


def test_beside_it_says_why_and_how_many_cycles(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=1).settle(tokens=130)
    world.grant("reset", metadata=b'{"reason":"x"}')
    assert world.events()[-1].metadata == b'{"reason":"x","forgiven":30}'
    world.reserve(need=1).settle(tokens=101)
    world.put_tenant(next_reset=midnight(world) - 2 * DAY_MS)
    world.sweep()
    assert world.events()[-1].metadata == b'{"cycles":3,"forgiven":1}'


@pytest.mark.parametrize("policy", ["block", "bill"])
def test_what_is_beyond_a_plan_that_does_not_carry_is_not_carried_by_the_next_one(
    world: World, policy: str
) -> None:
    """It was owed for, or forgiven, with that plan; what the next cycle is beyond is carried."""
    carries = {"reset_interval": "daily", "overage_policy": "carry"}
    world.plan(100, reset_interval="daily", overage_policy=policy)
    world.reserve(need=1).settle(tokens=130)
    assert world.plan(50, plan_id=2, **carries).remaining == -80
    assert world.events()[-1].metadata == b'{"forgives":true}'
    world.plan(40, plan_id=3, **carries)
    end_cycle(world)
    assert (world.tenant.remaining, world.events()[-1].metadata) == (40, b'{"forgiven":90}')
    world.reserve(need=1).settle(tokens=60)
    end_cycle(world)
    assert (world.tenant.remaining, world.events()[-1].metadata) == (20, b"")


@pytest.mark.parametrize("resets", ["reserve", "settle"])
def test_a_reset_by_a_call_forgives_what_is_beyond_another_plan_once(world: World, resets: str) -> None:
    carries = {"reset_interval": "daily", "overage_policy": "carry"}
    world.plan(100, reset_interval="daily", overage_policy="block")
    world.reserve(need=1).settle(tokens=130)
    world.plan(1_000, plan_id=2, **carries)
    call = world.reserve(need=1)
    world.plan(40, plan_id=3, **carries)
    world.put_tenant(next_reset=midnight(world))
    if resets == "reserve":
        call = world.reserve(need=1)
    call.settle(tokens=60)
    assert world.tenant.remaining == -20
    end_cycle(world)
    assert (world.tenant.remaining, world.events()[-1].metadata) == (20, b"")


def test_what_fits_a_plan_is_carried_by_a_smaller_one(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=1).settle(tokens=90)
    world.plan(50, plan_id=2, reset_interval="daily", overage_policy="carry")
    end_cycle(world)
    assert world.tenant.remaining == 10


@pytest.mark.parametrize(
    ("before", "after", "then"),
    [("block", "carry", 100), ("bill", "carry", 100), ("carry", "block", 100), ("carry", "carry", 70)],
)
def test_a_plan_that_comes_to_carry_does_so_from_the_next_cycle_on(
    world: World, before: str, after: str, then: int
) -> None:
    world.plan(100, reset_interval="daily", overage_policy=before)
    world.reserve(need=1).settle(tokens=130)
    terms = PlanTerms(plan_id=1, total_amount=100, reset_interval="daily")
    world.define_tenant(terms=replace(terms, overage_policy=after))  # type: ignore[arg-type]  # as listed
    end_cycle(world)
    assert world.tenant.remaining == then
    world.define_tenant(terms=replace(terms, overage_policy="carry"))
    world.put_tenant(next_reset=midnight(world), limit=100, used=0)
    world.sweep()
    world.reserve(need=1).settle(tokens=130)
    end_cycle(world)
    assert world.tenant.remaining == 70


@pytest.mark.parametrize(
    ("ahead_ms", "kinds", "remaining"),
    [
        (0, [EventKind.ADJUST], -80),
        (55_000, [EventKind.RESET, EventKind.ADJUST], 50),
        (180_000, [EventKind.ADJUST], -80),  # nobody goes by a clock that is that far ahead
    ],
)
def test_a_cycle_that_is_over_for_who_decides_on_a_plan_ends_first(
    world: World, ahead_ms: int, kinds: list[EventKind], remaining: int
) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=1).settle(tokens=130)
    entries, now = len(world.events()), world.now_ms()
    world.put_tenant(next_reset=now + 50_000)
    terms = PlanTerms(plan_id=2, total_amount=50, reset_interval="daily", overage_policy="carry")
    assert world.grant("plan", now + ahead_ms, terms=terms).remaining == remaining
    found = world.events()[entries:]
    assert [each.kind for each in found] == kinds
    assert [each.at_ms for each in found] == sorted(each.at_ms for each in found)
    if len(kinds) == 2:  # it ends once
        assert found[0].at_ms == found[1].at_ms == now + ahead_ms
        assert world.sweep().code == 2


def test_rollover_stops_at_what_a_double_counts(world: World) -> None:
    world.plan(INTEGER_MAX - 5, reset_interval="daily", rollover_max=INTEGER_MAX)
    end_cycle(world)
    assert world.tenant.remaining == INTEGER_MAX


def test_an_unlimited_tenants_use_starts_again(world: World) -> None:
    world.plan(None, reset_interval="daily")
    world.reserve(need=1).settle(tokens=70)
    end_cycle(world)
    reset = world.events()[-1]
    assert (reset.amount, reset.used, world.tenant.total) == (0, 0, -1)
    assert EventFlag.UNLIMITED in EventFlag(reset.flags)


def test_a_plans_new_total_comes_with_the_reset(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.define_tenant(terms=PlanTerms(plan_id=1, total_amount=None, reset_interval="daily"))
    end_cycle(world)
    assert (world.tenant.total, world.events()[-1].amount) == (-1, 100)
    assert not world.events()[-1].flags & EventFlag.IN


def test_holds_live_on_through_a_reset(world: World) -> None:
    world.plan(100, reset_interval="daily")
    call = world.reserve(need=80)
    world.put_tenant(next_reset=midnight(world))
    assert world.reserve(need=50).decision.held_tokens == 20
    call.settle(tokens=80)
    assert (world.tenant.remaining, world.tenant.held) == (20, 20)


def test_a_tenant_without_an_interval_is_never_reset(world: World) -> None:
    world.plan(100, reset_interval="none")
    world.put_tenant(last_reset=1)
    assert (world.tenant.next_reset, world.sweep().code) == (0, 2)


def test_a_sweep_changes_one_tenant_and_the_outbox(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.put_tenant(next_reset=midnight(world))
    before = world.everything()
    world.sweep()
    changed = {name for name, kept in world.everything().items() if before.get(name) != kept}
    assert changed == {world.tenant_key.encode(), keys.outbox(world.p).encode()}
