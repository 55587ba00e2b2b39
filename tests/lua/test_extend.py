"""extend: keep many live calls, and take more where a stream outgrew its hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from gateway.core.billing.price_book import TokenRate
from gateway.core.model import HoldExtension, SettleResult
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from tests.builders import BY_TOKEN, CREDITS, TTL_MS, Call, World, new_id
from tests.lua.windows import NAME, account, window


def test_extend_renews_the_deadline_and_notes_what_was_seen(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50, ttl_ms=1000)
    assert call.extend(observed=20) == (50, 0)
    hold = call.hold
    assert hold is not None
    assert (hold.observed, hold.tokens) == (20, 50)
    assert hold.deadline >= call.decision.now_ms + TTL_MS
    assert world.deadlines() == {call.id: hold.deadline}


def test_what_was_seen_never_goes_back(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=50)
    call.extend(observed=20)
    call.extend(observed=5)
    hold = call.hold
    assert hold is not None
    assert hold.observed == 20


def test_extend_takes_more_where_a_stream_outgrew_its_hold(world: World) -> None:
    world.plan(1000)
    call = world.reserve(need=100)
    assert call.extend(observed=90, margin=50) == (140, 0)
    assert world.tenant.held == 140


def test_extend_takes_no_more_than_is_free_and_says_so(world: World) -> None:
    world.plan(130)
    call = world.reserve(need=100)
    assert call.extend(observed=100, margin=50) == (130, 1)
    assert call.extend(observed=130, margin=50) == (130, 1)
    assert world.tenant.held == 130


def test_extend_says_where_the_plan_cuts_a_call_that_has_nothing_left(world: World) -> None:
    world.plan(130, on_exhausted="cut")
    call = world.reserve(need=100)
    assert call.extend(observed=90, margin=10) == (100, 0)
    assert call.extend(observed=100, margin=50) == (130, 2)


def test_a_plan_that_cuts_says_so(world: World) -> None:
    world.plan(130, on_exhausted="cut")
    call = world.reserve(need=100)
    assert call.extend(observed=100, margin=10) == (110, 0)
    assert call.extend(observed=100, margin=50) == (130, 2)


def test_unlimited_and_bill_always_extend(world: World) -> None:
    world.plan(None)
    assert world.reserve(need=10).extend(observed=10**6) == (10**6, 0)
    world.plan(1, overage_policy="bill")
    assert world.reserve(need=10).extend(observed=10**6) == (10**6, 0)


def test_what_does_not_count_tokens_is_renewed_only(world: World) -> None:
    world.plan(100)
    world.grant("credits", 10)
    call = world.reserve(need=10, service=CREDITS, credits_=10)
    assert call.extend(observed=500) == (0, 0)
    assert world.tenant.held == 0


def test_extend_keeps_many_calls_of_several_tenants_at_once(world: World) -> None:
    other = World.__new__(World)
    for name, value in vars(world).items():
        setattr(other, name, value)
    other.caller = type(world.caller)(1, 8, 3, world.p)
    other.define_tenant()
    world.plan(100)
    other.plan(100)
    calls = [world.reserve(need=10), other.reserve(need=10), world.reserve(need=10)]
    gone = world.reserve(need=10)
    gone.release()
    assert world.extend([*calls, gone], observed=30) == [(30, 0), (30, 0), (30, 0), (-1, 0)]
    assert (world.tenant.held, other.tenant.held) == (60, 30)


def test_two_calls_of_one_tenant_share_what_is_free(world: World) -> None:
    world.plan(100)
    calls = [world.reserve(need=40) for _ in range(2)]
    assert world.extend(calls, observed=55) == [(55, 0), (45, 1)]
    assert world.tenant.held == 100


RATE = TokenRate(read=10, input=10**15, output=2 * 10**15)


def test_a_stream_that_outgrew_its_credits_takes_more_as_far_as_they_are_free(world: World) -> None:
    world.grant("credits", 100)
    call = world.reserve(service=BY_TOKEN, credits_=30)
    assert call.decision.held_credits == 30
    assert call.priced(20, 5, RATE) == (0, 10 + 2 * 15, 0)
    assert world.organization.credits_held == 40
    other = world.reserve(service=BY_TOKEN, credits_=50)
    assert call.priced(30, 5, RATE) == (0, 50, 1)
    assert world.organization.credits_held == 100
    other.release()
    assert call.priced(30, 5, RATE) == (0, 60, 0)
    hold = call.hold
    assert hold is not None
    assert (hold.observed, hold.seen, hold.credits) == (30, 50, 60)
    call.settle(credits=77)
    assert (world.organization.balance, world.organization.credits_held) == (23, 0)


def test_credits_that_are_used_up_end_a_stream_where_the_plan_says_so(world: World) -> None:
    world.plan(1000, on_exhausted="cut")
    world.grant("credits", 20)
    call = world.reserve(need=50, service=replace(BY_TOKEN, counts_tokens=True), credits_=20)
    assert call.priced(15, 0, RATE) == (50, 20, 0)
    assert call.priced(16, 0, RATE) == (50, 20, 2)
    world.define_organization(credit_limit=2)
    assert call.priced(16, 0, RATE) == (50, 22, 0)


def test_a_price_that_is_known_is_never_extended(world: World) -> None:
    world.grant("credits", 100)
    call = world.reserve(service=CREDITS, credits_=30)
    assert call.priced(500, 500, RATE) == (0, 30, 0)


def test_an_extended_hold_settles_to_zero(world: World) -> None:
    world.plan(1000)
    call = world.reserve(need=100, user="ann")
    call.extend(observed=300, margin=100)
    assert call.settle(tokens=333) is SettleResult.DONE
    assert (world.tenant.held, world.tenant.remaining, world.slots("ann")) == (0, 667, [0, 0, 0, 0])


def test_a_gone_hold_gets_no_deadline(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(keys.hold(world.p, call.id))
    world.client.delete(keys.deadlines(world.p))
    assert call.extend(observed=1) == (-1, 0)
    assert world.deadlines() == {}


def test_a_deadline_that_was_taken_off_stays_off(world: World) -> None:
    """The reclaimer may have removed it: extend renews deadlines, it never invents one."""
    world.plan(100)
    call = world.reserve(need=10)
    world.client.delete(keys.deadlines(world.p))
    call.extend(observed=1)
    assert world.deadlines() == {}


def test_unverified_extends_nothing(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    before = world.everything()
    world.run_id = new_id().encode()[:36] + b"zzzz"
    assert world.extend([call], observed=99) == []
    assert world.everything() == before


def asked(call: Call, tokens: int, **more: Any) -> HoldExtension:
    """A request of a message for `tokens` in all."""
    return HoldExtension(call.request.caller, call.id, 0, reserved=tokens, answered=lambda: None, **more)


def test_extend_takes_nothing_for_a_message_that_does_not_fit(world: World) -> None:
    world.plan(130, on_exhausted="cut")
    call, other = world.reserve(need=60), world.reserve(need=40)
    assert world.extended([(asked(call, 100), 50)]) == [(90, 0, 3)]  # 130 - 60 - 40 were free
    assert call.hold is not None
    assert (call.hold.tokens, world.tenant.held) == (60, 100)
    assert world.extended([(asked(call, 90), 50)]) == [(90, 0, 0)]  # whole, and without a margin
    assert (world.tenant.held, other.extend(observed=41)) == (130, (40, 2))


def test_extend_takes_no_tokens_for_a_message_that_lacks_credits(world: World) -> None:
    world.plan(1_000)
    world.grant("credits", 50)
    call = world.reserve(need=50, service=replace(BY_TOKEN, counts_tokens=True), credits_=20)
    # A credit for each of 10 tokens that are read, and two for each of 30 others: 70.
    assert world.extended([(asked(call, 40, rate=RATE), 0)]) == [(50, 50, 3)]
    assert (world.tenant.held, world.organization.credits_held) == (50, 20)
    assert world.extended([(asked(call, 30, rate=RATE), 0)]) == [(50, 50, 0)]
    assert world.organization.credits_held == 50


def test_extend_takes_more_by_the_definition_in_its_arguments_else_by_the_stored_definition(
    world: World,
) -> None:
    """10 are held without a limit; then the limit is 15: 5 more fit, and no 6th."""
    world.plan(None)
    free, bound = account(window(1, 10, enforce=False)), account(window(1, 15))
    call = world.reserve(budgets=(free,), money=10)

    def extend(money: int, *definitions: bytes) -> tuple[int, ...]:
        names = (
            keys.marker(world.p), keys.deadlines(world.p), keys.outbox(world.p), keys.hold(world.p, call.id),
            world.tenant_key, world.organization_key, keys.budget_account(world.p, NAME),
        )  # fmt: skip
        whole = packing.BY_DEFINITIONS if definitions else 1
        packed = packing.EXTEND.pack(0, -1, 0, -1, 0, 0, money, 0, 1, whole, call.id.encode())
        arguments = (world.run_id, b"%d" % TTL_MS, packed, *definitions)
        [(_, _, exhausted, held, _)] = packing.extended(world.run("extend", (names, arguments)))
        return exhausted, held

    assert extend(12) == (0, 12)
    assert extend(12, b"") == (0, 12)
    assert extend(16, bound.defined) == (3, 15)
    assert extend(15, bound.defined) == (0, 15)
    assert extend(16) == (3, 15)
    assert extend(16, free.defined) == (0, 16)
    assert [(one.limit, one.held) for one in world.windows(NAME)] == [(10, 16)]
    with pytest.raises(redis.ResponseError, match="extend takes"):
        extend(20, free.defined, free.defined)


def test_extend_makes_no_account_of_a_definition(world: World) -> None:
    world.plan(None)
    here = account(window(1, 10))
    call = world.reserve(budgets=(here,), money=1)
    world.client.delete(keys.budget_account(world.p, NAME))
    names, arguments = packing.extend(
        world.run_id, TTL_MS, world.p, [(HoldExtension(world.caller, call.id, 0, 0, budgets=(NAME,)), 0)]
    )
    packed = packing.EXTEND.pack(0, -1, 0, -1, 0, 0, 5, 0, 1, packing.BY_DEFINITIONS, call.id.encode())
    world.run("extend", (names, (*arguments[:2], packed, here.defined)))
    assert not world.client.exists(keys.budget_account(world.p, NAME))
