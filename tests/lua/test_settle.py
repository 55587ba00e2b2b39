"""settle: replace a hold by what was really used, once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.core.accounts.holds import correction_id
from gateway.core.accounts.outbox import PRICED, EventFlag, EventKind, EventNote
from gateway.core.billing.money import PriceTier, ServicePricing, read_tiers
from gateway.core.model import Limits, Settlement, SettleResult, Verdict
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from tests.builders import CHAT, COUNTED, CREDITS, EVERYTHING, ONE_TIME, TOMBSTONE_MS, UNITS, Call, World
from tests.lua.uses import tell


def test_settle_replaces_the_hold_by_the_use(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50, user="ann")
    assert call.settle(tokens=70) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.remaining, world.tenant.held) == (70, 30, 0)
    assert (call.hold, world.deadlines(), world.slots("ann")) == (None, {}, [0, 0, 0, 0])


def test_settle_appends_one_entry_that_says_everything(world: World) -> None:
    world.plan(100, reset_interval="daily")
    call = world.reserve(need=50, user="ann")
    call.settle(tokens=70, attribution="1\t2\tv3", metadata=b'{"model":"m"}')
    event = world.events()[-1]
    assert (event.kind, event.source, event.note) == (EventKind.CONSUME, call.id, 0)
    assert event.flags == EventFlag.TOKENS
    assert (event.organization_id, event.tenant_id, event.key_id, event.service_id) == (1, 7, 3, 1)
    assert (event.epoch, event.seq, event.cycle) == (1, 2, 1)
    assert (event.amount, event.remaining, event.used) == (70, 30, 70)
    assert event.next_reset_ms == world.tenant.next_reset
    assert (event.user, event.attribution, event.metadata) == ("ann", "1\t2\tv3", b'{"model":"m"}')


def test_the_longest_texts_of_a_caller_are_in_its_entry(world: World) -> None:
    world.plan(100)
    user, attribution = "\U0001f600" * 128, f"{2**53 - 1}\t{2**53 - 1}\t" + "\U0001f600" * 64
    call = world.reserve(need=50, user=user)
    assert call.settle(tokens=7, attribution=attribution, metadata=b"{}") is SettleResult.DONE
    event = world.events()[-1]
    assert (event.amount, event.user, event.attribution, event.metadata) == (7, user, attribution, b"{}")


def test_settling_twice_is_settling_once(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    assert call.settle(tokens=70) is SettleResult.DONE
    before = (world.tenant, world.organization, world.key, world.events())
    assert call.settle(tokens=70) is SettleResult.UNKNOWN
    assert (world.tenant, world.organization, world.key, world.events()) == before
    (late,) = world.late()
    assert late[b"charged"] == b"0"


def test_release_charges_nothing_and_leaves_no_entry(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50, user="ann")
    entries = len(world.events())
    assert call.release() is SettleResult.DONE
    assert (world.tenant.remaining, world.tenant.held, world.tenant.used) == (100, 0, 0)
    assert (len(world.events()), world.slots("ann"), call.hold) == (entries, [0, 0, 0, 0], None)


def test_releasing_what_is_gone_is_not_late(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    call.release()
    before = world.everything()
    assert call.release() is SettleResult.UNKNOWN
    assert world.everything() == before


def test_the_answer_that_crosses_the_limit_is_charged_and_leaves_debt(world: World) -> None:
    world.plan(100)
    first, second = world.reserve(need=60), world.reserve(need=60)
    assert (first.decision.held_tokens, second.decision.held_tokens) == (60, 40)
    first.settle(tokens=90)
    second.settle(tokens=90)
    assert (world.tenant.remaining, world.tenant.used, world.tenant.is_blocked) == (-80, 180, True)
    assert world.events()[-1].remaining == -80
    assert EventFlag.BLOCKED in EventFlag(world.events()[-1].flags)
    assert world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


def test_reaching_zero_exactly_blocks(world: World) -> None:
    world.plan(100)
    world.reserve(need=100).settle(tokens=100)
    assert world.tenant.is_blocked
    assert world.events()[-1].flags == EventFlag.TOKENS | EventFlag.BLOCKED


def test_bill_is_in_debt_and_not_blocked(world: World) -> None:
    world.plan(100, overage_policy="bill")
    world.reserve(need=100).settle(tokens=150)
    assert (world.tenant.remaining, world.tenant.is_blocked) == (-50, False)
    assert world.events()[-1].flags == EventFlag.TOKENS


def test_unlimited_use_is_counted_with_a_seq(world: World) -> None:
    world.plan(None)
    world.reserve(need=5).settle(tokens=70)
    event = world.events()[-1]
    assert (event.seq, event.amount, event.used) == (2, 70, 70)
    assert event.flags == EventFlag.TOKENS | EventFlag.UNLIMITED


def test_a_use_of_nothing_is_still_a_row(world: World) -> None:
    world.plan(100)
    world.reserve(need=5).settle(tokens=0)
    assert (world.events()[-1].kind, world.events()[-1].amount) == (EventKind.CONSUME, 0)


# --- the other accounts -----------------------------------------------------------------


def test_credits_are_charged_with_a_running_balance(world: World) -> None:
    world.grant("credits", 100)
    world.reserve(service=CREDITS, credits_=30).settle(credits=20)
    world.reserve(service=CREDITS, credits_=30).settle(credits=90)
    entries = [event for event in world.events() if event.kind == EventKind.CONSUME]
    assert [(one.credit_seq, one.credits, one.balance) for one in entries] == [(2, 20, 80), (3, 90, -10)]
    assert {one.flags for one in entries} == {EventFlag.CREDITS}
    assert (world.organization.balance, world.organization.credits_held) == (-10, 0)
    assert world.tenant.seq == 0


def test_units_are_summed_over_the_month(world: World) -> None:
    for units in (2, 5):
        world.reserve(service=UNITS).settle(units=units)
    entries = world.events()
    assert [(one.spend_seq, one.units, one.flags) for one in entries] == [(1, 2, 4), (2, 5, 4)]


def test_tokens_and_credits_of_one_call_are_one_entry(world: World) -> None:
    world.plan(100)
    world.grant("credits", 100)
    before = len(world.events())
    world.reserve(need=10, service=EVERYTHING, credits_=5).settle(tokens=7, credits=4)
    (event,) = world.events()[before:]
    assert event.flags == EventFlag.TOKENS | EventFlag.CREDITS
    assert (event.amount, event.remaining, event.credits, event.balance) == (7, 93, 4, 96)


def test_one_time_activates_once(world: World) -> None:
    world.grant("credits", 50)
    calls = [world.reserve(service=ONE_TIME, credits_=50) for _ in range(2)]
    for call in calls:
        call.settle(credits=50)
    uses = [event for event in world.events() if event.kind == EventKind.CONSUME]
    assert [bool(one.flags & EventFlag.ACTIVATES) for one in uses] == [True, False]
    assert [one.credits for one in uses] == [50, 0]


# --- unknown, reclaimed, posted ---------------------------------------------------------


def test_an_unknown_hold_goes_to_the_late_lane_and_changes_nothing_else(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(keys.hold(world.p, call.id))
    before = {name: kept for name, kept in world.everything().items() if b"late" not in name}
    assert call.settle(tokens=9, attribution="\t\tv", metadata=b"{}") is SettleResult.UNKNOWN
    assert {name: kept for name, kept in world.everything().items() if b"late" not in name} == before
    (late,) = world.late()
    assert (late[b"u"], late[b"c"], late[b"m"], late[b"charged"]) == (b"", b"\t\tv", b"{}", b"0")
    assert call.id.encode() in late[b"a"]


def test_an_unknown_account_goes_to_the_late_lane(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(world.tenant_key)
    assert call.settle(tokens=9) is SettleResult.UNKNOWN_ACCOUNT
    assert len(world.late()) == 1


def test_unverified_settles_nothing(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    before = world.everything()
    world.run_id = b"f" * 40
    assert call.settle(tokens=9) is SettleResult.UNVERIFIED
    assert world.everything() == before


def test_reclaim_charges_what_was_seen_and_leaves_a_tombstone(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50, user="ann")
    assert call.reclaim(tokens=20) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.held, world.slots("ann")) == (20, 0, [0, 0, 0, 0])
    assert world.events()[-1].note == EventNote.RECLAIMED
    hold = call.hold
    assert hold is not None
    assert hold.charged == 20
    assert 0 < world.client.pttl(keys.hold(world.p, call.id)) <= TOMBSTONE_MS
    assert world.deadlines() == {}


def test_reclaiming_what_nothing_was_seen_of_is_free(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    entries = len(world.events())
    assert call.reclaim() is SettleResult.DONE
    assert (world.tenant.remaining, world.tenant.held, len(world.events())) == (100, 0, entries)


def test_a_late_settle_after_a_reclaim_says_what_was_charged(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    call.reclaim(tokens=20)
    before = (world.tenant, world.events())
    assert call.settle(tokens=70) is SettleResult.RECLAIMED
    assert (world.tenant, world.events()) == before
    assert [late[b"charged"] for late in world.late()] == [b"20"]


def test_reclaiming_twice_is_reclaiming_once(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    call.reclaim(tokens=20)
    before = world.everything()
    assert call.reclaim(tokens=20) is SettleResult.RECLAIMED
    assert call.release() is SettleResult.RECLAIMED
    assert world.everything() == before


def test_post_charges_without_a_hold_once_by_its_id(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    call.release()
    assert [call.post(tokens=30), call.post(tokens=30)] == [SettleResult.DONE, SettleResult.DONE]
    assert (world.tenant.used, world.tenant.remaining) == (30, 70)
    assert (world.events()[-1].note, world.events()[-1].source) == (EventNote.LATE, call.id)
    assert world.client.hexists(keys.control(world.p), call.id)


def test_an_entry_of_the_late_lane_is_dealt_with_once(world: World) -> None:
    """Two keepers, one frozen with what it read: whoever takes the entry charges, nobody else."""
    world.plan(100)
    call = world.reserve(need=50)
    call.release()
    entry = world.client.xadd(keys.late(world.p), {"a": ""})
    used = Settlement(world.caller, call.id, "", CHAT, charge=True, tokens=30)
    for mode in (packing.MODE_POST, packing.MODE_POST, packing.MODE_CORRECT):
        settle = packing.settle(world.run_id, TOMBSTONE_MS, used, mode, entry)  # type: ignore[arg-type]  # untyped in redis-py
        assert packing.code_of(world.run("settle", settle)) == 1
        world.client.delete(keys.control(world.p))  # by the flusher: its row is stored
    assert (world.tenant.used, world.tenant.remaining, world.late()) == (30, 70, [])


def test_a_correction_moves_what_differs_use_as_well(world: World) -> None:
    world.plan(100)
    world.grant("credits", 100)
    call = world.reserve(need=50, service=EVERYTHING, credits_=10, user="ann")
    call.reclaim(tokens=20, credits=10)
    call.correct(tokens=15, credits=4)
    event = world.events()[-1]
    assert (event.kind, event.amount, event.remaining, event.used) == (EventKind.ADJUST, 15, 65, 35)
    assert (event.credits, event.credit_seq, event.balance) == (4, 3, 86)
    assert (event.source, event.user) == (correction_id(call.id), "ann")
    call = world.reserve(need=50, service=EVERYTHING, credits_=10)
    call.reclaim(tokens=20, credits=10)
    call.correct(tokens=-5)
    event = world.events()[-1]
    assert (event.flags & (EventFlag.CREDITS | EventFlag.IN), event.amount) == (EventFlag.IN, 5)
    assert (world.tenant.used, world.tenant.remaining, world.organization.balance) == (50, 50, 76)


def test_units_are_given_back_at_the_prices_they_cost(world: World) -> None:
    tiers = ServicePricing((PriceTier(10, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))))
    call = world.reserve(service=replace(UNITS, pricing=tiers), units=12)
    call.reclaim(tokens=1, units=12)
    assert world.organization.spent == 11_600
    call.correct(units=-4)
    event = world.events()[-1]
    assert (event.units, event.spend, event.spent, event.flags) == (-4, -3_600, 8_000, EventFlag.USAGE)
    assert PRICED.struct.unpack_from(event.priced) == (12,)
    assert read_tiers(event.priced[PRICED.struct.size :]) == tiers.tiers


def test_units_given_back_in_another_month_are_worth_what_the_first_ones_cost(world: World) -> None:
    tiers = ServicePricing((PriceTier(2, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))))
    call = world.reserve(service=replace(UNITS, pricing=tiers), units=12)
    call.reclaim(tokens=1, units=12)
    name = keys.activation(world.p, 1, UNITS.id)
    kept = states.unpack(states.ActivationState, world.get(name))
    world.rebuild(name, states.pack(replace(kept, month=kept.month - 1)))
    world.put_organization(month=kept.month - 1)
    call.correct(units=-3)
    assert (world.events()[-1].spend, world.organization.spent) == (-2_800, -2_800)
    world.reserve(service=replace(UNITS, pricing=tiers), units=4).settle(units=4)
    assert (world.events()[-1].spend, world.organization.spent) == (3_800, 1_000)


def test_post_leaves_the_slots_and_holds_of_others_alone(world: World) -> None:
    world.define_organization(COUNTED)
    world.define_key(COUNTED)
    world.plan(100)
    world.reserve(need=40, user="ann")
    gone = world.reserve(need=10, user="ann")
    gone.release()
    gone.post(tokens=5)
    assert (world.slots("ann"), world.tenant.held) == ([1, 1, 1, 1], 40)


def test_post_to_an_unknown_account_does_nothing(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(world.tenant_key, keys.hold(world.p, call.id))
    before = world.everything()
    assert call.post(tokens=9) is SettleResult.UNKNOWN_ACCOUNT
    after = world.everything()
    assert after.pop(keys.late(world.p).encode())[0] is not None  # its entry stays
    assert after == before


def test_posting_a_reclaimed_call_charges_and_keeps_no_hold(world: World) -> None:
    world.plan(100)
    other, call = world.reserve(need=10), world.reserve(need=10)
    call.reclaim()
    call.post(tokens=9)
    assert (world.tenant.held, world.tenant.inflight, world.tenant.used) == (10, 1, 9)
    assert other.hold is not None


def test_posting_one_time_charges_its_price_where_nobody_paid(world: World) -> None:
    world.grant("credits", 50)
    call = world.reserve(service=ONE_TIME, credits_=50)
    call.release()
    call.post(credits=50)
    assert (world.organization.balance, world.organization.credits_held) == (0, 0)
    assert world.events()[-1].flags == EventFlag.CREDITS | EventFlag.ACTIVATES


def test_posting_one_time_while_others_wait_charges_once(world: World) -> None:
    world.grant("credits", 50)
    gone, waiting = (world.reserve(service=ONE_TIME, credits_=50) for _ in range(2))
    gone.release()
    gone.post(credits=50)
    waiting.settle(credits=50)
    assert (world.organization.balance, world.organization.credits_held) == (0, 0)


# --- buckets and clocks -----------------------------------------------------------------


def test_settle_replaces_tokens_taken_by_tokens_used_in_every_bucket(world: World) -> None:
    limits = Limits(tokens_per_minute=1)
    world.plan(10**9)
    world.define_key(limits)
    world.define_tenant(limits, users=limits)
    world.define_organization(limits)
    world.reserve(need=1, user="ann").settle(tokens=1000)
    levels = [
        world.key.tokens_used,
        world.user("ann").tokens_used,
        world.tenant.tokens_used,
        world.organization.tokens_used,
    ]
    assert all(1000 * 60_000 - 1000 < level <= 1000 * 60_000 for level in levels)


def test_ledger_time_never_runs_backwards(world: World) -> None:
    world.plan(100)
    future = world.now_ms() + 3_600_000
    world.put_tenant(ledger_at=future)
    world.reserve(need=1).settle(tokens=1)
    assert world.events()[-1].at_ms == future


@pytest.mark.parametrize("end", [Call.settle, Call.release, Call.reclaim, Call.post])
def test_a_forgotten_key_does_not_keep_a_call_from_ending(world: World, end: object) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(world.api_key)
    assert callable(end)
    assert end(call) is SettleResult.DONE
    assert (world.tenant.held, world.tenant.inflight) == (0, 0)
    assert world.get(world.api_key) == b""


def test_tombstones_do_not_count_as_holds(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    call.reclaim(tokens=1)
    assert call.extend(observed=5) == (-1, 0)
    assert call.settle(tokens=5, mode=packing.MODE_CHARGE) is SettleResult.RECLAIMED


# --- use that a control write tells ------------------------------------------------------


def test_a_use_of_a_control_write_needs_no_entry_and_is_charged_once_until_it_is_stored(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    call.release()
    now = world.now_ms()
    assert [tell(call, 30, used_ms=now) for _ in range(2)] == [SettleResult.DONE, SettleResult.DONE]
    assert (world.tenant.used, world.late()) == (30, [])
    event = world.events()[-1]
    assert (event.source, event.note, event.amount) == (call.id, EventNote.LATE, 30)
    # Stored, the counters forget it: its control write is done by then.
    world.client.hdel(keys.control(world.p), call.id)
    assert tell(call, 30, used_ms=now) is SettleResult.DONE
    assert world.tenant.used == 60


def test_a_use_of_a_control_write_corrects_too(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    call.settle(tokens=40)
    used = {"mode": packing.MODE_CORRECT, "used_ms": world.now_ms()}
    assert [tell(call, -15, **used) for _ in range(2)] == [SettleResult.DONE, SettleResult.DONE]
    assert (world.tenant.used, world.tenant.remaining) == (25, 75)
    event = world.events()[-1]
    assert (event.kind, event.source, event.amount) == (EventKind.ADJUST, correction_id(call.id), 15)
    assert event.flags & EventFlag.IN


def test_a_partition_that_is_not_verified_takes_no_use_of_a_control_write(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    call.release()
    world.client.delete(keys.marker(world.p))
    before = world.everything()
    assert tell(call, 30, used_ms=world.now_ms()) is SettleResult.UNVERIFIED
    assert world.everything() == before
