"""reserve: a hold on every limit of one request, or on none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.core.model import INTEGER_MAX, LimitKind, Limits, Scope, Verdict
from tests.builders import (
    BY_TOKEN,
    CHAT,
    COUNTED,
    CREDITS,
    EVERYTHING,
    NO_LIMITS,
    ONE_TIME,
    TTL_MS,
    UNITS,
    Call,
    World,
)
from tests.lua.conftest import AMONG_OTHERS


def test_reserve_holds_tokens_and_a_slot_on_every_scope(world: World) -> None:
    world.define_organization(COUNTED)
    world.define_key(COUNTED)
    world.plan(1000)
    call = world.reserve(need=100, user="ann")
    assert call.verdict is Verdict.ADMITTED
    assert (call.decision.held_tokens, call.decision.tokens_remaining) == (100, 900)
    assert (world.tenant.remaining, world.tenant.held, world.tenant.used) == (1000, 100, 0)
    assert world.slots("ann") == [1, 1, 1, 1]


def test_reserve_notes_the_hold_and_its_deadline(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=5, user="ann", units=3)
    hold = call.hold
    assert hold is not None
    assert (hold.tokens, hold.service_id, hold.units, hold.observed) == (5, CHAT.id, 3, 0)
    assert (hold.organization_id, hold.tenant_id, hold.key_id) == (1, 7, 3)
    assert hold.created == call.decision.now_ms
    assert hold.deadline == call.decision.now_ms + TTL_MS
    assert world.deadlines() == {call.id: hold.deadline}


# --- refusals change nothing ------------------------------------------------------------


def revoked(world: World) -> Call:
    world.define_key(revoked=True)
    return world.reserve(need=1)


def expired(world: World) -> Call:
    world.define_key(expires_ms=world.now_ms() - 1)
    return world.reserve(need=1)


def blocked(world: World) -> Call:
    world.grant("block")
    return world.reserve(need=1)


def without_a_plan(world: World) -> Call:
    world.plan(None, plan_id=0)
    return world.reserve(need=1)


def requests_used_up(world: World) -> Call:
    world.define_key(Limits(requests_per_minute=1))
    world.reserve().release()
    return world.reserve()


def tokens_used_up(world: World) -> Call:
    world.define_organization(Limits(tokens_per_minute=10))
    world.reserve(need=10).settle(tokens=50)
    return world.reserve(need=1)


def all_slots_taken(world: World) -> Call:
    world.define_tenant(users=Limits(concurrency=1))
    world.reserve(user="ann")
    return world.reserve(user="ann")


def quota_used_up(world: World) -> Call:
    world.plan(10)
    world.reserve(need=10).settle(tokens=10)
    return world.reserve(need=1)


def quota_all_held(world: World) -> Call:
    world.plan(10)
    world.reserve(need=10)
    return world.reserve(need=1)


def strict_over_what_remains(world: World) -> Call:
    world.plan(10, admission="strict")
    return world.reserve(need=11)


def strict_over_what_is_free(world: World) -> Call:
    world.plan(10, admission="strict")
    world.reserve(need=5)
    return world.reserve(need=6)


def no_credits(world: World) -> Call:
    world.grant("credits", 10)
    return world.reserve(service=CREDITS, credits_=11)


def all_credits_held(world: World) -> Call:
    world.grant("credits", 10)
    world.reserve(service=CREDITS, credits_=10)
    return world.reserve(service=CREDITS, credits_=1)


def stale(world: World) -> Call:
    world.mark(catalogue=2)
    return world.reserve()


def unverified(world: World) -> Call:
    world.run_id = b"0" * 40
    return world.reserve()


def unknown_account(world: World) -> Call:
    world.caller = replace(world.caller, tenant_id=99)
    return world.reserve()


REFUSALS: list[tuple[Callable[[World], Call], Verdict, int, int]] = [
    (revoked, Verdict.REVOKED, Scope.KEY, 0),
    (expired, Verdict.REVOKED, Scope.KEY, 0),
    (blocked, Verdict.TENANT_BLOCKED, Scope.TENANT, 0),
    (without_a_plan, Verdict.NOT_INCLUDED, Scope.ORGANIZATION, 0),
    (requests_used_up, Verdict.RATE_LIMITED, Scope.KEY, LimitKind.REQUESTS),
    (tokens_used_up, Verdict.RATE_LIMITED, Scope.ORGANIZATION, LimitKind.TOKENS),
    (all_slots_taken, Verdict.CONCURRENCY_LIMITED, Scope.USER, LimitKind.CONCURRENCY),
    (quota_used_up, Verdict.QUOTA_EXCEEDED, Scope.TENANT, LimitKind.QUOTA),
    (quota_all_held, Verdict.QUOTA_HELD, Scope.TENANT, LimitKind.QUOTA),
    (strict_over_what_remains, Verdict.QUOTA_EXCEEDED, Scope.TENANT, LimitKind.QUOTA),
    (strict_over_what_is_free, Verdict.QUOTA_HELD, Scope.TENANT, LimitKind.QUOTA),
    (no_credits, Verdict.INSUFFICIENT_CREDITS, Scope.ORGANIZATION, LimitKind.CREDITS),
    (all_credits_held, Verdict.QUOTA_HELD, Scope.ORGANIZATION, LimitKind.CREDITS),
    (stale, Verdict.STALE, 0, 0),
    (unverified, Verdict.UNVERIFIED, 0, 0),
    (unknown_account, Verdict.UNKNOWN_ACCOUNT, 0, 0),
]


@AMONG_OTHERS
@pytest.mark.parametrize(
    ("arrange", "verdict", "scope", "kind"), REFUSALS, ids=lambda case: getattr(case, "__name__", "")
)
def test_reserve_says_which_limit_refused_and_changes_nothing(
    world: World, arrange: Callable[[World], Call], verdict: Verdict, scope: int, kind: int
) -> None:
    world.plan(1_000_000)
    refused = arrange(world)
    assert (refused.verdict, refused.decision.scope, refused.decision.kind) == (verdict, scope, kind)
    before = world.everything()
    again = world.reserve(
        need=refused.request.need,
        service=refused.request.service,
        user=refused.request.user,
        credits_=refused.request.credits,
    )
    assert again.verdict is verdict
    assert world.everything() == before


@pytest.mark.parametrize("scope", [one for one in Scope if one is not Scope.BUDGET])
@pytest.mark.parametrize("kind", [LimitKind.REQUESTS, LimitKind.TOKENS, LimitKind.CONCURRENCY])
def test_reserve_limits_every_kind_on_every_scope_without_touching_the_others(
    world: World, scope: Scope, kind: LimitKind
) -> None:
    limits = {
        LimitKind.REQUESTS: Limits(requests_per_minute=2),
        LimitKind.TOKENS: Limits(tokens_per_minute=2),
        LimitKind.CONCURRENCY: Limits(concurrency=2),
    }[kind]
    wide = Limits(requests_per_minute=100, tokens_per_minute=100, concurrency=100)
    world.define_key(limits if scope is Scope.KEY else wide)
    world.define_tenant(
        limits if scope is Scope.TENANT else wide, users=limits if scope is Scope.USER else wide
    )
    world.define_organization(limits if scope is Scope.ORGANIZATION else wide)
    world.plan(1000)
    assert [world.reserve(need=1, user="ann").verdict for _ in range(2)] == [Verdict.ADMITTED] * 2
    before = world.everything()
    refused = world.reserve(need=1, user="ann").decision
    assert (refused.scope, refused.kind, refused.used, refused.limit) == (scope, kind, 2, 2)
    assert refused.until_ms > refused.now_ms
    assert world.everything() == before


def test_reserve_checks_in_the_order_of_the_contract(world: World) -> None:
    """401, 403, 429 rate and concurrency, 429 quota, 402: each cause mended shows the next."""
    world.plan(10)
    world.reserve(need=10, service=EVERYTHING).settle(tokens=10)
    world.define_key(Limits(requests_per_minute=1, concurrency=1), revoked=True)
    world.reserve()
    world.grant("block")
    seen = [world.reserve(need=1, service=EVERYTHING, credits_=1).verdict]
    world.define_key(Limits(requests_per_minute=1, concurrency=1))
    seen.append(world.reserve(need=1, service=EVERYTHING, credits_=1).verdict)
    world.grant("unblock")
    first = world.reserve(need=0, service=UNITS)
    seen.append(world.reserve(need=1, service=EVERYTHING, credits_=1).verdict)
    world.define_key(Limits(concurrency=1))
    seen.append(world.reserve(need=1, service=EVERYTHING, credits_=1).verdict)
    first.release()
    seen.append(world.reserve(need=1, service=EVERYTHING, credits_=1).verdict)
    world.grant("recharge", 5)
    seen.append(world.reserve(need=1, service=EVERYTHING, credits_=1).verdict)
    assert seen == [
        Verdict.REVOKED, Verdict.TENANT_BLOCKED, Verdict.RATE_LIMITED, Verdict.CONCURRENCY_LIMITED,
        Verdict.QUOTA_EXCEEDED, Verdict.INSUFFICIENT_CREDITS,
    ]  # fmt: skip


# --- how much is held -------------------------------------------------------------------


def test_strict_holds_all_a_call_could_use_and_says_so(world: World) -> None:
    world.plan(100, admission="strict")
    stated = world.reserve(need=20, ceiling=60)
    assert (stated.decision.held_tokens, stated.decision.bounded) == (60, True)
    refused = [world.reserve(need=1, ceiling=most).verdict for most in (41, 101)]
    assert refused == [Verdict.QUOTA_HELD, Verdict.QUOTA_EXCEEDED]
    assert world.reserve(need=10, ceiling=500, least=41).verdict is Verdict.QUOTA_HELD
    assert world.reserve(need=10, ceiling=500, least=101).verdict is Verdict.QUOTA_EXCEEDED
    unbound = world.reserve(need=10, ceiling=500, least=40)
    assert (unbound.decision.held_tokens, unbound.decision.bounded) == (40, True)
    unbound.settle(tokens=15)
    assert world.reserve(need=10, ceiling=500, least=5).decision.held_tokens == 25


@pytest.mark.parametrize(
    "terms", [{"admission": "available"}, {"admission": "strict", "overage_policy": "bill"}]
)
def test_a_plan_that_does_not_bind_says_so(world: World, terms: dict[str, str]) -> None:
    world.plan(100, **terms)
    assert not world.reserve(need=20, ceiling=60, least=10).decision.bounded
    world.plan(None, **terms)
    assert not world.reserve(need=20, ceiling=60, least=10).decision.bounded


def test_nothing_left_is_exceeded_and_says_when_it_resets(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=100).settle(tokens=130)
    refused = world.reserve(need=1).decision
    assert (refused.verdict, refused.used, refused.limit) == (Verdict.QUOTA_EXCEEDED, 130, 100)
    assert refused.until_ms == world.tenant.next_reset > refused.now_ms


def test_unlimited_counts_and_never_refuses(world: World) -> None:
    world.plan(None)
    call = world.reserve(need=10**12)
    assert (call.verdict, call.decision.tokens_remaining) == (Verdict.ADMITTED, None)
    call.settle(tokens=10**12)
    assert (world.tenant.used, world.tenant.total, world.tenant.is_blocked) == (10**12, -1, False)


def test_what_does_not_count_tokens_leaves_the_quota_alone(world: World) -> None:
    world.plan(10)
    world.reserve(need=10).settle(tokens=10)
    world.grant("credits", 5)
    assert world.reserve(need=50, service=CREDITS, credits_=5).verdict is Verdict.ADMITTED
    assert world.tenant.held == 0


def test_credits_may_go_down_to_the_credit_limit(world: World) -> None:
    world.define_organization(NO_LIMITS, credit_limit=5)
    refused = world.reserve(service=CREDITS, credits_=6)
    assert (refused.verdict, refused.decision.limit) == (Verdict.INSUFFICIENT_CREDITS, 5)
    assert world.reserve(service=CREDITS, credits_=5).verdict is Verdict.ADMITTED


def test_numbers_near_two_to_the_53rd_stay_exact(world: World) -> None:
    world.plan(INTEGER_MAX)
    call = world.reserve(need=INTEGER_MAX - 3)
    assert (call.decision.held_tokens, call.decision.tokens_remaining) == (INTEGER_MAX - 3, 3)
    call.settle(tokens=INTEGER_MAX - 1)
    assert (world.tenant.used, world.tenant.remaining) == (INTEGER_MAX - 1, 1)
    assert world.events()[-1].amount == INTEGER_MAX - 1


def test_a_key_is_good_until_it_expires(world: World) -> None:
    world.define_key(expires_ms=world.now_ms() + 60_000)
    world.plan(10)
    assert world.reserve().verdict is Verdict.ADMITTED


# --- users, catalogue, One-Time ---------------------------------------------------------


def test_a_new_user_has_the_limits_of_its_tenant(world: World) -> None:
    world.plan(100)
    world.define_tenant(users=Limits(concurrency=1))
    assert world.reserve(user="ann").verdict is Verdict.ADMITTED
    assert world.reserve(user="ann").decision.scope == Scope.USER
    assert world.reserve(user="bob").verdict is Verdict.ADMITTED


def test_a_users_own_limits_override_the_tenants(world: World) -> None:
    world.plan(100)
    world.define_tenant(users=Limits(concurrency=1))
    world.define_user("ann", Limits(concurrency=2))
    assert [world.reserve(user="ann").verdict for _ in range(3)] == [1, 1, Verdict.CONCURRENCY_LIMITED]


def test_a_newer_catalogue_than_redis_knows_is_served(world: World) -> None:
    world.plan(10)
    world.catalogue = 5
    assert world.reserve().verdict is Verdict.ADMITTED


def test_one_time_is_held_once_and_charged_by_the_first_success(world: World) -> None:
    world.grant("credits", 50)
    first, second, third = (world.reserve(service=ONE_TIME, credits_=50) for _ in range(3))
    assert [call.verdict for call in (first, second, third)] == [Verdict.ADMITTED] * 3
    assert world.organization.credits_held == 50
    first.release()
    assert (world.organization.credits_held, world.organization.balance) == (50, 50)
    second.settle(credits=50)
    assert (world.organization.credits_held, world.organization.balance) == (0, 0)
    third.settle(credits=50)
    assert world.organization.balance == 0
    assert world.reserve(service=ONE_TIME, credits_=50).verdict is Verdict.ADMITTED
    assert [event.credits for event in world.events() if event.credits] == [50, 50]


def test_one_time_comes_back_when_the_last_call_fails_and_the_next_one_pays(world: World) -> None:
    world.grant("credits", 50)
    calls = [world.reserve(service=ONE_TIME, credits_=50) for _ in range(2)]
    for call in calls:
        call.release()
    assert (world.organization.credits_held, world.organization.balance) == (0, 50)
    world.reserve(service=ONE_TIME, credits_=50).settle(credits=50)
    assert world.organization.balance == 0


@pytest.mark.parametrize(
    ("credits_", "verdict", "held"),
    [
        (0, Verdict.ADMITTED, 0),
        (30, Verdict.ADMITTED, 30),
        (31, Verdict.QUOTA_HELD, 0),
        (40, Verdict.QUOTA_HELD, 0),
        (41, Verdict.INSUFFICIENT_CREDITS, 0),
    ],
)
@pytest.mark.parametrize("limit", [0, 15])
def test_a_price_by_unit_is_held_whole_or_refused(
    world: World, credits_: int, verdict: Verdict, held: int, limit: int
) -> None:
    """40 credits, of which a credit limit may lend some, and 10 of them are held."""
    world.define_organization(credit_limit=limit)
    if limit < 40:
        world.grant("credits", 40 - limit)
    world.reserve(service=CREDITS, credits_=10)
    call = world.reserve(service=CREDITS, credits_=credits_)
    assert call.verdict is verdict
    assert world.organization.credits_held == 10 + held
    if verdict is not Verdict.ADMITTED:
        assert (call.decision.kind, call.decision.used) == (LimitKind.CREDITS, 10)


def test_a_price_by_token_holds_what_there_is_down_to_the_least(world: World) -> None:
    """Where the call states no maximum: with one it is held whole, or refused."""
    assert world.reserve(service=BY_TOKEN, credits_=0).verdict is Verdict.ADMITTED
    assert (
        world.reserve(service=BY_TOKEN, credits_=1, credits_least=1).verdict is Verdict.INSUFFICIENT_CREDITS
    )
    world.grant("credits", 40)
    first = world.reserve(service=BY_TOKEN, credits_=30)
    assert world.reserve(service=BY_TOKEN, credits_=30).verdict is Verdict.QUOTA_HELD
    assert world.reserve(service=BY_TOKEN, credits_=41).verdict is Verdict.INSUFFICIENT_CREDITS
    assert world.reserve(service=BY_TOKEN, credits_=60, credits_least=11).verdict is Verdict.QUOTA_HELD
    second = world.reserve(service=BY_TOKEN, credits_=60, credits_least=10)
    assert [call.decision.held_credits for call in (first, second)] == [30, 10]
    assert world.organization.credits_held == 40
    second.settle(credits=10)
    first.settle(credits=5)
    assert (world.organization.balance, world.organization.credits_held) == (25, 0)
    world.define_organization(credit_limit=10)
    assert world.reserve(service=BY_TOKEN, credits_=99, credits_least=1).decision.held_credits == 35


def test_what_costs_nothing_is_covered_in_debt(world: World) -> None:
    world.grant("credits", -5)
    for service in (CREDITS, BY_TOKEN, ONE_TIME):
        assert world.reserve(service=service, credits_=0).verdict is Verdict.ADMITTED


# --- what the caller is told ------------------------------------------------------------


def test_reserve_tells_the_tightest_windows(world: World) -> None:
    world.define_key(Limits(requests_per_minute=100))
    world.define_tenant(Limits(requests_per_minute=10, tokens_per_minute=1000))
    world.define_organization(Limits(tokens_per_minute=500))
    world.plan(1000)
    decision = world.reserve(need=60).decision
    assert decision.requests is not None
    assert (decision.requests.scope, decision.requests.limit, decision.requests.used) == (3, 10, 1)
    assert decision.requests.reset_ms == 6000
    assert decision.tokens is not None
    assert (decision.tokens.scope, decision.tokens.limit, decision.tokens.used) == (4, 500, 60)
    assert decision.tokens.reset_ms == 7200


def test_reserve_tells_no_window_where_there_is_no_limit(world: World) -> None:
    world.plan(10)
    decision = world.reserve().decision
    assert (decision.requests, decision.tokens) == (None, None)
