"""Tokens of a quota beside tokens: the one moves the tenant's account, the other the buckets a minute."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.outbox import EventFlag
from gateway.core.accounts.weights import ONE, Weights
from gateway.core.billing.money import NANO, whole_credits
from gateway.core.layout import FIRST, LAYOUT, Layout
from gateway.core.model import HoldExtension, Limits, Settlement, SettleResult, Verdict
from gateway.counters.admission.usage import UNIT
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import KEPT
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import settlement_of
from tests.builders import BY_TOKEN, CREDITS, ONE_TIME, Call, World
from tests.lua.conftest import AMONG_OTHERS
from tests.older_layouts import stored_before
from tests.search import examples

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
    assert call.settle(tokens=500, quota_tokens=50) is SettleResult.DONE
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
    call.settle(tokens=10, quota_tokens=50)
    assert (world.tenant.used, world.tenant.remaining) == (50, 950)


def test_what_counts_nothing_is_a_row_of_nothing(world: World) -> None:
    world.plan(100, plan_id=PLAN)
    call = world.reserve(10, quota=(0, 0, 0), plan_id=PLAN)
    assert call.decision.held_tokens == 0
    call.settle(tokens=10, quota_tokens=0)
    assert (world.events()[-1].amount, world.tenant.used) == (0, 0)
    call = world.reserve(10, quota=(0, 0, 0), plan_id=PLAN)
    call.reclaim(tokens=10, quota_tokens=0)
    assert (world.events()[-1].amount, world.tenant.used) == (0, 0)


def test_a_live_call_is_topped_up_by_what_it_counts(world: World) -> None:
    world.plan(100, plan_id=PLAN)
    call = world.reserve(100, ceiling=5000, quota=(10, 500, 0), plan_id=PLAN)
    live = HoldExtension(world.caller, call.id, 0, tokens=300, weights=TENTH, quota_tokens=30)
    assert world.extended([(live, 100)]) == [(100, 0, 0)]  # all that was free was held already
    live.quota_tokens = 120
    assert world.extended([(live, 100)]) == [(100, 0, 1)]
    hold = states.unpack_hold(world.get(keys.hold(world.p, call.id)))[0]
    assert (hold.tokens, hold.observed, hold.quota_tokens) == (100, 300, 120)


def test_a_hold_of_the_version_before_is_observed_as_it_was(world: World) -> None:
    world.plan(100)
    call = world.reserve(10)
    name = keys.hold(world.p, call.id)
    size = len(states.pack(states.HoldState()))
    packed = world.get(name)
    world.client.set(name, bytes([129]) + packed[1 : size - 8] + packed[size:])
    assert call.extend(7) == (10, 0)
    hold = states.unpack_hold(world.get(name))[0]
    assert (hold.tokens, hold.observed, hold.quota_tokens) == (10, 7, -1)
    assert call.settle(tokens=8) is SettleResult.DONE
    assert world.tenant.remaining == 92


def test_a_late_call_waits_with_what_it_counts(world: World) -> None:
    world.plan(1000, plan_id=PLAN)
    call = world.reserve(500, quota=(50, 50, 0), plan_id=PLAN)
    call.reclaim(tokens=200, quota_tokens=20, metadata=json.dumps({"reclaimed": True}).encode())
    assert (world.tenant.used, world.tenant.held) == (20, 0)
    assert call.settle(tokens=400, quota_tokens=40) is SettleResult.RECLAIMED
    (entry,) = world.client.xrange(keys.late(world.p))
    assert int(entry[1][b"charged"]) == 20
    assert call.correct(tokens=200, quota_tokens=20) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.remaining) == (40, 960)
    assert world.events()[-1].amount == 20


def test_a_correction_may_give_back(world: World) -> None:
    world.plan(1000, plan_id=PLAN)
    call = world.reserve(500, quota=(50, 50, 0), plan_id=PLAN)
    call.reclaim(tokens=0, quota_tokens=50)
    call.correct(tokens=300, quota_tokens=-20)
    assert world.tenant.remaining == 1000 - 50 + 20


# --- carried ----------------------------------------------------------------------------
# Parts of credits: what calls cost beyond whole ones is carried to the next, and the sum is exact.


ORGANIZATION = next(one for one in states.LAYOUTS if one.name == "ORGANIZATION")
NANO_COSTS = st.integers(0, 5 * NANO) | st.integers(0, 3).map(lambda whole: whole * NANO)


def hold(world: World, nano: int) -> Call:
    return world.reserve(service=BY_TOKEN, credits_=whole_credits(nano)[0])


def settle(call: Call, nano: int) -> SettleResult:
    credits_, over = whole_credits(nano)
    return call.settle(credits=credits_, over=over)


def used(world: World, balance: int = 0) -> int:
    return balance - world.organization.balance


def test_a_hundred_calls_cost_what_they_cost_together(world: World) -> None:
    world.grant("credits", 1000)
    for _ in range(100):
        assert settle(hold(world, 1_157_500_000), 1_157_500_000) is SettleResult.DONE
    assert used(world, 1000) == 116
    assert world.organization.ahead == 250_000_000
    entries = world.events()[1:]
    assert {one.credits for one in entries} == {1, 2}
    assert sum(one.credits for one in entries) * NANO - sum(one.carried for one in entries) == 115_750_000_000
    assert entries[-1].ahead == 250_000_000
    assert [one.seq for one in entries] == [0] * 100
    assert [one.credit_seq for one in entries] == list(range(2, 102))


def test_whole_credits_leave_entries_as_they_were(world: World) -> None:
    world.grant("credits", 10)
    settle(hold(world, 3 * NANO), 3 * NANO)
    packed = world.entries(keys.outbox(world.p))[-1][1][b"e"]
    assert (world.events()[-1].ahead, world.events()[-1].carried) == (0, 0)
    settle(hold(world, NANO // 2), NANO // 2)
    assert len(world.entries(keys.outbox(world.p))[-1][1][b"e"]) == len(packed) + 16


def test_a_call_that_is_paid_already_still_has_its_entry(world: World) -> None:
    world.grant("credits", 10)
    for _ in range(2):
        settle(hold(world, NANO // 2), NANO // 2)
    first, second = world.events()[1:]
    assert ((first.credits, first.ahead), (second.credits, second.ahead)) == ((1, NANO // 2), (0, 0))
    assert second.flags & EventFlag.CREDITS
    assert second.carried == -NANO // 2
    assert used(world, 10) == 1


def test_a_grant_between_keeps_what_is_ahead(world: World) -> None:
    world.grant("credits", 10)
    settle(hold(world, NANO // 4), NANO // 4)
    world.grant("credits", 5)
    granted = world.events()[-1]
    assert (granted.ahead, granted.carried, granted.balance) == (3 * NANO // 4, 0, 14)


def test_one_time_and_units_know_no_parts(world: World) -> None:
    world.grant("credits", 100)
    world.put_organization(ahead=NANO - 1)
    world.reserve(service=ONE_TIME, credits_=50).settle(credits=50)
    assert (used(world, 100), world.organization.ahead) == (50, NANO - 1)


def test_what_a_correction_gives_back_waits_for_a_charge_with_room(world: World) -> None:
    world.grant("credits", 100)
    for _ in range(2):  # less than was charged, by eight tenths of a credit: never a charge below nothing
        world.reserve(service=CREDITS).correct(credits=0, over=8 * NANO // 10)
    assert (used(world, 100), world.organization.ahead) == (0, 16 * NANO // 10)
    assert [(one.credits, one.carried) for one in world.events()[1:]] == [(0, 8 * NANO // 10)] * 2
    settle(hold(world, 2 * NANO), 2 * NANO)
    assert (used(world, 100), world.organization.ahead) == (1, 6 * NANO // 10)


def test_a_correction_of_nothing_moves_nothing(world: World) -> None:
    world.put_organization(ahead=5)
    seq = world.organization.credit_seq
    world.reserve(service=CREDITS).correct(credits=0, over=0)
    assert (world.organization.credit_seq, world.organization.ahead) == (seq, 5)


@AMONG_OTHERS
@settings(max_examples=examples(60))
@given(costs=st.lists(st.tuples(NANO_COSTS, NANO_COSTS, st.sampled_from("srgc")), max_size=12))
def test_any_history_is_charged_the_sum_rounded_up_once(
    world: World, costs: list[tuple[int, int, str]]
) -> None:
    """Settled, released, reclaimed by what was held, granted in between: the sum by hand is the account's."""
    world.put_organization(balance=1000, ahead=0, credits_held=0)
    cost, grants = Fraction(0), 0
    for held, nano, what in costs:
        before = world.organization
        call = hold(world, max(held, nano))
        if what == "s":
            settle(call, nano)
            cost += Fraction(nano, NANO)
            assert before.balance - world.organization.balance <= whole_credits(max(held, nano))[0]
        elif what == "r":
            call.release()
        elif what == "c":
            credits_, _ = whole_credits(held)
            call.reclaim(credits=credits_)
            cost += credits_
        else:
            call.release()
            world.grant("credits", 7)
            grants += 7
        state = world.organization
        assert used(world, 1000 + grants) == ceil(cost)
        assert state.ahead == (ceil(cost) - cost) * NANO
        assert state.credits_held == 0


def test_no_call_is_admitted_beyond_what_is_there(world: World) -> None:
    """Holds are whole credits, no less than any charge: however calls interleave, none is owed."""
    world.grant("credits", 10)
    calls = [hold(world, 1_000_000_001) for _ in range(8)]
    admitted = [one for one in calls if one.verdict is Verdict.ADMITTED]
    assert len(admitted) == 5
    for one in admitted:
        settle(one, 1_000_000_001)
    assert world.organization.balance == 4
    more = [hold(world, NANO) for _ in range(5)]
    assert [one.verdict for one in more] == [Verdict.ADMITTED] * 4 + [Verdict.QUOTA_HELD]
    for one in more[:4]:
        settle(one, NANO)
    assert (world.organization.balance, world.organization.ahead) == (0, NANO - 5)


def before_parts(layout: Layout, packed: bytes) -> bytes:
    """The same as the first layout had it, without the fields that came since."""
    for one in reversed(layout.fields):
        if one.since > FIRST:
            at = layout.offset(one.name)
            packed = packed[:at] + packed[at + one.kind.size :]
    return bytes([FIRST]) + packed[1:]


def test_an_account_of_the_layout_before_has_nothing_ahead(world: World) -> None:
    world.grant("credits", 10)
    stored = stored_before(FIRST, world.organization)
    world.client.set(world.organization_key, stored)
    assert states.unpack(states.OrganizationState, stored).ahead == 0
    settle(hold(world, NANO // 4), NANO // 4)
    assert (world.organization.ahead, used(world, 10)) == (3 * NANO // 4, 1)
    assert world.get(world.organization_key)[0] == LAYOUT


def test_a_settlement_kept_by_the_version_before_is_over_by_nothing(world: World) -> None:
    call = hold(world, NANO)
    request = call.request
    kept = Settlement(request.caller, call.id, "", BY_TOKEN, charge=True, credits=3, over=7)
    packed = packing.settle(world.run_id, 0, kept, packing.MODE_CHARGE)[1][0][packing.BATCH_BYTES :]
    today = settlement_of(packed, b"", b"", b"", b"")
    assert (today.credits, today.over) == (3, 7)
    old = settlement_of(before_parts(KEPT, packed), b"", b"", b"", b"")
    assert (old.credits, old.over, old.request_id) == (3, 0, call.id)
