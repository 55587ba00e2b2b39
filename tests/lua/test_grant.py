"""grant: one control write on an account, once by its id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.outbox import EventFlag, EventKind
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import INTEGER_MAX, BlockCause, Verdict
from gateway.counters.layouts.states import HAS_PLAN
from gateway.counters.redis import keys
from tests.builders import Granted, World, new_id

APPLIED, BEFORE, UNVERIFIED, UNKNOWN, OUT_OF_RANGE = 1, 2, 0, -2, -3


def rows(world: World) -> list[tuple[int, int, int, bool]]:
    """(kind, amount, remaining, inward) of every token movement."""
    return [
        (one.kind, one.amount, one.remaining, bool(one.flags & EventFlag.IN))
        for one in world.events()
        if one.flags & EventFlag.TOKENS
    ]


def test_a_first_plan_is_a_reset_in_of_its_total(world: World) -> None:
    answer = world.plan(1000, reset_interval="daily")
    assert (answer.code, answer.seq, answer.remaining) == (APPLIED, 1, 1000)
    (event,) = world.events()
    assert rows(world) == [(EventKind.RESET, 1000, 1000, True)]
    assert (event.seq, event.cycle, event.used) == (1, 1, 0)
    assert event.next_reset_ms == world.tenant.next_reset > answer.now_ms


def test_a_first_plan_without_a_limit_is_a_reset_in_of_nothing(world: World) -> None:
    world.plan(None)
    assert rows(world) == [(EventKind.RESET, 0, 0, True)]
    assert EventFlag.UNLIMITED in EventFlag(world.events()[0].flags)


def test_recharge_adds_to_what_remains(world: World) -> None:
    world.plan(100)
    world.reserve(need=100).settle(tokens=120)
    assert world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED
    write = new_id()
    assert world.grant("recharge", 50, write_id=write).remaining == 30
    event = world.events()[-1]
    assert (event.kind, event.amount, event.remaining, event.used) == (EventKind.RECHARGE, 50, 30, 120)
    assert (event.source, event.flags) == (write, EventFlag.TOKENS | EventFlag.IN)
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


def test_recharging_an_unlimited_tenant_is_a_row_and_counts_under_the_next_plan(world: World) -> None:
    world.plan(None)
    assert world.grant("recharge", 50).remaining == -1
    assert rows(world)[-1][:2] == (EventKind.RECHARGE, 50)
    assert world.events()[-1].flags & EventFlag.UNLIMITED
    assert world.plan(100, plan_id=2).remaining == 150


def test_a_recharge_survives_every_change_of_plan(world: World) -> None:
    """1,000 and 5,000 beyond it: 6,000 less what is used, whatever plans it goes through."""
    world.plan(1000)
    world.grant("recharge", 5000)
    for at, total in enumerate((None, 1000, None, None, 2000, None, 1000)):
        world.plan(total, plan_id=at + 2)
        world.reserve(need=1).settle(tokens=10)
    world.grant("adjust", -7)
    assert world.tenant.remaining == 6000 - 70 - 7
    world.plan(None, plan_id=20)
    world.grant("recharge", 300)
    world.grant("adjust", -100)
    world.reserve(need=1).correct(tokens=3)
    assert world.plan(1000, plan_id=21).remaining == 6000 - 70 - 7 + 200 - 3


def test_a_reset_keeps_of_what_was_granted_what_rolls_over(world: World) -> None:
    world.plan(None, rollover_max=30)
    world.grant("recharge", 50)
    world.grant("reset")
    assert world.plan(100, plan_id=2).remaining == 130


@pytest.mark.parametrize(("amount", "inward"), [(40, True), (-40, False), (-140, False)])
def test_adjust_goes_both_ways(world: World, amount: int, inward: bool) -> None:
    world.plan(100)
    world.grant("adjust", amount, metadata=b'{"reason":"because"}')
    assert rows(world)[-1] == (EventKind.ADJUST, abs(amount), 100 + amount, inward)
    assert world.events()[-1].metadata == b'{"reason":"because"}'
    assert world.tenant.is_blocked is (100 + amount <= 0)


def test_reset_by_hand_starts_a_new_cycle(world: World) -> None:
    world.plan(100, reset_interval="monthly")
    world.reserve(need=10).settle(tokens=70)
    boundary = world.tenant.next_reset
    world.grant("reset")
    tenant = world.tenant
    assert (tenant.remaining, tenant.used, tenant.cycle, tenant.next_reset) == (100, 0, 2, boundary)
    assert rows(world)[-1] == (EventKind.RESET, 70, 100, True)
    assert tenant.last_reset == world.events()[-1].at_ms


def test_reset_takes_back_what_was_recharged_beyond_the_total(world: World) -> None:
    world.plan(100)
    world.grant("recharge", 500)
    world.grant("reset")
    assert rows(world)[-1] == (EventKind.RESET, 500, 100, False)


def test_block_and_unblock_are_entries_without_a_movement(world: World) -> None:
    world.plan(100)
    world.grant("block")
    assert world.reserve().verdict is Verdict.TENANT_BLOCKED
    world.grant("unblock")
    assert world.reserve().verdict is Verdict.ADMITTED
    kinds = [(one.kind, one.flags, one.seq) for one in world.events()[1:]]
    assert kinds == [
        (EventKind.BLOCK, EventFlag.BLOCKED | EventFlag.MANUAL_BLOCK, 1),
        (EventKind.UNBLOCK, 0, 1),
    ]


@pytest.mark.parametrize("cause", BlockCause)
def test_reserve_refuses_a_blocked_tenant_with_the_cause_of_the_last_block(
    world: World, cause: BlockCause
) -> None:
    world.plan(100)
    for last in (BlockCause.BACKLOG, BlockCause.DUNNING, cause):
        world.grant("block", last)
    assert (world.reserve().decision.used, world.tenant.block_cause) == (cause, cause)
    world.grant("unblock")
    assert (world.tenant.block_cause, world.tenant.flags) == (None, HAS_PLAN)
    assert world.reserve().verdict is Verdict.ADMITTED


def test_blocking_twice_is_blocked_once(world: World) -> None:
    world.plan(100)
    world.grant("block")
    world.grant("block")
    world.grant("unblock")
    assert not world.tenant.manual_block


def test_a_reset_does_not_lift_a_block_by_hand(world: World) -> None:
    world.plan(100)
    world.grant("block")
    world.grant("reset")
    assert world.reserve().verdict is Verdict.TENANT_BLOCKED


# --- plans ------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "amount", "inward"), [(150, 50, True), (60, 40, False), (10, 90, False)])
def test_a_change_of_plan_is_an_adjust_of_the_difference(
    world: World, total: int, amount: int, inward: bool
) -> None:
    world.plan(100)
    world.reserve(need=10).settle(tokens=30)
    world.plan(total, plan_id=2)
    assert rows(world)[-1] == (EventKind.ADJUST, amount, 70 + total - 100, inward)
    assert (world.tenant.used, world.tenant.total, world.tenant.plan_id) == (30, total, 2)


def test_a_move_to_unlimited_and_back_keeps_the_chain(world: World) -> None:
    """To unlimited: an adjust of |R| to nothing; back: from nothing to total − used."""
    world.plan(100)
    world.reserve(need=10).settle(tokens=130)
    world.plan(None, plan_id=2)
    world.reserve(need=10).settle(tokens=5)
    world.plan(200, plan_id=3)
    seen = [(kind, amount, inward) for kind, amount, _, inward in rows(world)[2:]]
    assert seen == [
        (EventKind.ADJUST, 30, True),
        (EventKind.CONSUME, 5, False),
        (EventKind.ADJUST, 65, True),
    ]
    assert world.tenant.remaining == 65


def test_a_change_of_interval_moves_the_next_reset(world: World) -> None:
    world.plan(100, reset_interval="monthly")
    world.plan(100, plan_id=2, reset_interval="daily")
    now = world.now_ms()
    assert now < world.tenant.next_reset <= now + 86_400_000
    world.plan(100, plan_id=3, reset_interval="none")
    assert world.tenant.next_reset == 0


def test_taking_the_plan_away_leaves_an_unlimited_count(world: World) -> None:
    world.plan(100)
    world.plan(None, plan_id=0)
    assert (world.tenant.total, world.tenant.flags, world.tenant.is_blocked) == (-1, 0, False)
    assert world.reserve().verdict is Verdict.NOT_INCLUDED


# --- once by its id ---------------------------------------------------------------------

GRANTS: list[tuple[str, int, dict[str, Any]]] = [
    ("recharge", 50, {}),
    ("reset", 0, {}),
    ("adjust", -50, {}),
    ("block", 0, {}),
    ("unblock", 0, {}),
    ("plan", 0, {"terms": PlanTerms(plan_id=2, total_amount=7)}),
    ("credits", 50, {}),
]


@pytest.mark.parametrize(("verb", "amount", "more"), GRANTS, ids=[verb for verb, _, _ in GRANTS])
def test_a_grant_is_applied_once_by_its_id(
    world: World, verb: str, amount: int, more: dict[str, Any]
) -> None:
    world.plan(100)
    write = new_id()
    first = world.grant(verb, amount, write_id=write, **more)
    assert first.code == APPLIED
    assert world.client.hexists(keys.control(world.p), write)
    before = world.everything()
    again = world.grant(verb, amount, write_id=write, **more)
    assert (again.code, again.seq, again.remaining, again.balance) == (
        BEFORE,
        first.seq,
        first.remaining,
        first.balance,
    )
    assert world.everything() == before


@pytest.mark.parametrize(("verb", "amount", "more"), GRANTS, ids=[verb for verb, _, _ in GRANTS])
def test_no_grant_where_unverified_or_unknown(
    world: World, verb: str, amount: int, more: dict[str, Any]
) -> None:
    world.plan(100)
    known = world.run_id
    world.run_id = b"0" * 40
    before = world.everything()
    assert world.grant(verb, amount, **more) == Granted(UNVERIFIED)
    world.run_id = known
    world.caller = replace(world.caller, organization_id=1, tenant_id=99)
    if verb != "credits":
        assert world.grant(verb, amount, **more) == Granted(UNKNOWN)
    assert world.everything() == before


# --- credits ----------------------------------------------------------------------------


def test_credits_move_the_organizations_balance(world: World) -> None:
    world.grant("credits", 100)
    write = new_id()
    assert world.grant("credits", -30, write_id=write).balance == 70
    one, two = world.events()
    assert (one.kind, one.credit_seq, one.credits, one.balance) == (EventKind.CREDIT, 1, 100, 100)
    assert one.flags == EventFlag.CREDITS | EventFlag.IN
    assert (two.credit_seq, two.credits, two.balance, two.flags) == (2, 30, 70, EventFlag.CREDITS)
    assert (two.seq, two.spend_seq) == (0, 0)
    assert (two.source, two.tenant_id) == (write, 0)


def test_credits_need_no_tenant(world: World) -> None:
    assert world.grant("credits", 100, tenant_id=0).balance == 100
    assert world.organization.balance == 100
    assert not world.client.exists(keys.tenant_state(world.p, 0))


# --- sweep, numbers ---------------------------------------------------------------------


def test_a_sweep_of_what_is_not_due_changes_nothing(world: World) -> None:
    world.plan(100, reset_interval="daily")
    before = world.everything()
    assert world.sweep().code == BEFORE
    assert world.everything() == before


def test_a_sweep_runs_what_is_due_and_leaves_no_id(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.put_tenant(next_reset=world.now_ms() - 1, remaining=-5, used=105)
    ids = world.client.hkeys(keys.control(world.p))
    assert world.sweep().code == APPLIED
    assert (world.tenant.remaining, world.tenant.used) == (100, 0)
    assert world.client.hkeys(keys.control(world.p)) == ids
    assert (world.events()[-1].kind, world.events()[-1].source) == (EventKind.RESET, "")


@pytest.mark.parametrize(("verb", "amount"), [("recharge", 1), ("adjust", 1), ("credits", 1)])
def test_no_account_grows_past_what_a_double_counts(world: World, verb: str, amount: int) -> None:
    world.plan(INTEGER_MAX)
    world.grant("credits", INTEGER_MAX)
    before = world.everything()
    assert world.grant(verb, amount).code == OUT_OF_RANGE
    assert world.everything() == before


def test_the_largest_number_is_granted_exactly(world: World) -> None:
    world.plan(0)
    assert world.grant("recharge", INTEGER_MAX).remaining == INTEGER_MAX
    assert world.grant("adjust", -INTEGER_MAX).remaining == 0
    assert world.grant("adjust", -INTEGER_MAX).remaining == -INTEGER_MAX
    assert [one.amount for one in world.events()[1:]] == [INTEGER_MAX] * 3
