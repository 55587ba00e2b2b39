"""reserve, of a call that was admitted by its head alone: the hold is raised once its body is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from gateway.core.model import NO_SERVICE, LimitKind, Limits, Scope, Service, SettleResult, Verdict
from gateway.counters.redis import keys
from tests.builders import BY_TOKEN, CHAT, COUNTED, CREDITS, EVERYTHING, ONE_TIME, UNITS, Call, World

ONE_OF_ALL = Limits(requests_per_minute=1, tokens_per_minute=1000, concurrency=1)


def limited(world: World, limits: Limits = ONE_OF_ALL) -> None:
    """One request, one slot, so many tokens a minute on each scope, and a quota."""
    world.define_key(limits)
    world.define_tenant(limits, users=limits)
    world.define_organization(limits)
    world.plan(10_000)


def head(world: World, service: Service = NO_SERVICE, **more: str) -> Call:
    return world.reserve(service=service, **more)


@pytest.mark.parametrize("service", [NO_SERVICE, CHAT])
def test_a_head_takes_a_request_and_a_slot_and_nothing_else(world: World, service: Service) -> None:
    limited(world)
    assert head(world, service, user="ann").verdict is Verdict.ADMITTED
    assert world.slots("ann") == [1, 1, 1, 1]
    assert (world.tenant.held, world.organization.credits_held, world.tenant.tokens_used) == (0, 0, 0)
    refused = head(world, service, user="ann").decision
    assert (refused.verdict, refused.kind) == (Verdict.RATE_LIMITED, LimitKind.REQUESTS)


@pytest.mark.parametrize("service", [NO_SERVICE, EVERYTHING])
def test_a_raise_takes_tokens_and_credits_but_no_second_request_or_slot(
    world: World, service: Service
) -> None:
    limited(world)
    world.grant("credits", 50)
    first = head(world, service, user="ann")
    raised = first.raised(need=700, service=EVERYTHING, credits_=20, user="ann")
    assert raised.verdict is Verdict.ADMITTED
    assert world.slots("ann") == [1, 1, 1, 1]
    assert world.key.requests_used <= 60_000
    assert (world.tenant.held, world.organization.credits_held) == (700, 20)
    taken = [state.tokens_used for state in (world.key, world.user("ann"), world.tenant, world.organization)]
    assert all(690 * 60_000 < level <= 700 * 60_000 for level in taken)
    assert world.deadlines().keys() == {first.id}
    assert raised.settle(tokens=500, credits=10) is SettleResult.DONE
    assert world.slots("ann") == [0, 0, 0, 0]
    assert (world.tenant.held, world.tenant.used, world.organization.balance) == (0, 500, 40)
    assert world.organization.credits_held == 0


def test_a_user_known_from_the_body_alone_is_taken_in_full(world: World) -> None:
    limited(world)
    raised = head(world).raised(need=5, user="ann")
    assert raised.verdict is Verdict.ADMITTED
    assert world.slots("ann") == [1, 1, 1, 1]
    raised.release()
    assert world.slots("ann") == [0, 0, 0, 0]


def tokens_a_minute(world: World) -> tuple[Call, Verdict]:
    world.define_key(Limits(tokens_per_minute=10))
    world.reserve(need=10).release()
    world.reserve(need=10).settle(tokens=11)
    return head(world).raised(need=1, user="ann"), Verdict.RATE_LIMITED


def a_users_slot(world: World) -> tuple[Call, Verdict]:
    world.define_tenant(users=Limits(concurrency=1))
    world.reserve(need=1, user="ann")
    return head(world).raised(need=1, user="ann"), Verdict.CONCURRENCY_LIMITED


def quota(world: World) -> tuple[Call, Verdict]:
    world.reserve(need=1000).settle(tokens=1000)
    return head(world).raised(need=1), Verdict.QUOTA_EXCEEDED


def credits_of_the_organization(world: World) -> tuple[Call, Verdict]:
    return head(world).raised(service=CREDITS, credits_=1), Verdict.INSUFFICIENT_CREDITS


def no_plan(world: World) -> tuple[Call, Verdict]:
    world.plan(None, plan_id=0)
    return head(world).raised(need=1), Verdict.NOT_INCLUDED


def blocked(world: World) -> tuple[Call, Verdict]:
    first = head(world)
    world.grant("block")
    return first.raised(need=1), Verdict.TENANT_BLOCKED


@pytest.mark.parametrize(
    "refused", [tokens_a_minute, a_users_slot, quota, credits_of_the_organization, no_plan, blocked]
)
def test_a_raise_that_is_refused_changes_nothing_and_the_head_is_released(
    world: World, refused: Callable[[World], tuple[Call, Verdict]]
) -> None:
    world.plan(1000)
    world.define_key(COUNTED)
    call, verdict = refused(world)
    assert call.verdict is verdict
    before = world.everything()
    again = call.raised(
        call.request.need, user=call.request.user, service=call.request.service, credits_=call.request.credits
    )
    assert (again.verdict, world.everything()) == (verdict, before)
    in_flight = world.key.inflight
    assert call.release() is SettleResult.DONE
    assert world.key.inflight == in_flight - 1
    assert call.hold is None


@pytest.mark.parametrize("end", [Call.release, Call.reclaim])
def test_a_hold_that_is_gone_is_taken_anew(world: World, end: Callable[[Call], SettleResult]) -> None:
    limited(world, Limits(concurrency=1))
    first = head(world)
    assert end(first) is SettleResult.DONE
    assert world.key.inflight == 0
    raised = first.raised(need=5)
    assert (raised.verdict, world.key.inflight, world.tenant.held) == (Verdict.ADMITTED, 1, 5)
    assert world.client.pttl(keys.hold(world.p, first.id)) == -1
    assert raised.settle(tokens=5) is SettleResult.DONE
    assert world.key.inflight == 0


def test_a_raise_that_is_refused_takes_no_one_elses_slot_where_its_hold_is_gone(world: World) -> None:
    limited(world, Limits(concurrency=1))
    first = head(world)
    first.release()
    world.reserve(need=1)
    assert first.raised(need=1).verdict is Verdict.CONCURRENCY_LIMITED


def test_one_time_is_joined_by_the_raise_alone(world: World) -> None:
    world.grant("credits", 100)
    first, other = head(world, ONE_TIME), head(world, ONE_TIME)
    assert world.organization.credits_held == 0
    raised = first.raised(service=ONE_TIME, credits_=50)
    assert (raised.verdict, world.organization.credits_held) == (Verdict.ADMITTED, 50)
    assert other.release() is SettleResult.DONE
    assert world.organization.credits_held == 50
    raised.settle(credits=50)
    assert (world.organization.balance, world.organization.credits_held) == (50, 0)


def test_a_spend_cap_is_asked_by_the_raise(world: World) -> None:
    world.define_organization(cap=0)
    assert head(world).raised(service=UNITS, units=3).verdict is Verdict.ADMITTED


def test_a_raised_hold_is_not_given_back_as_its_heads(world: World) -> None:
    """The units it holds are kept with a service: who does not name it cannot give them back."""
    world.define_organization(cap=5)
    first = head(world)
    raised = first.raised(service=UNITS, units=3)
    before = world.everything()
    assert first.release() is SettleResult.RAISED
    assert world.everything() == before
    assert raised.release() is SettleResult.DONE
    assert head(world).raised(service=UNITS).release() is SettleResult.DONE
    assert world.key.inflight == 0


def test_a_hold_is_raised_to_its_own_service_alone(world: World) -> None:
    world.plan(10)
    first = head(world, CHAT)
    with pytest.raises(redis.ResponseError, match="its own service"):
        first.raised(service=BY_TOKEN)


def test_a_free_hold_ends_without_a_row(world: World) -> None:
    limited(world, Limits(concurrency=5))
    before = len(world.events())
    assert head(world, user="ann").release() is SettleResult.DONE
    reclaimed = head(world, user="ann")
    assert reclaimed.extend(0, 0) == (0, 0)
    assert reclaimed.reclaim() is SettleResult.DONE
    assert (len(world.events()), world.late(), world.slots("ann")) == (before, [], [0, 0, 0, 0])
    assert world.deadlines() == {}


# --- what costs nothing -----------------------------------------------------------------


@pytest.mark.parametrize("scope", [one for one in Scope if one is not Scope.BUDGET])
def test_what_needs_no_tokens_is_admitted_in_any_debt_of_tokens(world: World, scope: Scope) -> None:
    limits, none = Limits(tokens_per_minute=100), Limits()
    world.define_key(limits if scope is Scope.KEY else none)
    world.define_tenant(
        limits if scope is Scope.TENANT else none, users=limits if scope is Scope.USER else none
    )
    world.define_organization(limits if scope is Scope.ORGANIZATION else none)
    world.plan(1000)
    world.reserve(need=100, user="ann").settle(tokens=1100)
    assert world.reserve(need=1, user="ann").verdict is Verdict.RATE_LIMITED
    free = world.reserve(service=CREDITS, user="ann")
    assert free.verdict is Verdict.ADMITTED
    assert free.decision.tokens is not None
    assert free.decision.tokens.used > free.decision.tokens.limit
    assert world.reserve(need=0, user="ann").verdict is Verdict.ADMITTED


def test_a_missing_slot_is_told_before_missing_tokens(world: World) -> None:
    """Requests and slots of every scope come first, then what the plan includes, then tokens."""
    world.define_key(Limits(tokens_per_minute=10))
    world.define_organization(Limits(concurrency=1))
    world.plan(1000)
    world.reserve(need=10).settle(tokens=100)
    slot = world.reserve(service=CREDITS)
    assert world.reserve(need=1).verdict is Verdict.CONCURRENCY_LIMITED
    slot.release()
    assert world.reserve(need=1).verdict is Verdict.RATE_LIMITED
    world.plan(None, plan_id=0)
    assert world.reserve(need=1).verdict is Verdict.NOT_INCLUDED
