"""Parts of credits: what calls cost beyond whole ones is carried to the next, and the sum is exact."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.outbox import EventFlag
from gateway.core.billing.money import NANO, whole_credits
from gateway.core.layout import FIRST, LAYOUT, Layout
from gateway.core.model import Settlement, SettleResult, Verdict
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import KEPT
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import settlement_of
from tests.builders import BY_TOKEN, CREDITS, ONE_TIME, Call, World
from tests.lua.conftest import AMONG_OTHERS
from tests.older_layouts import stored_before

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
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
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
