"""Users in Redis: nothing is kept of one without limits, of one with its tenant's as long as it matters."""

from __future__ import annotations

import pytest

from gateway.core.model import NO_SERVICE, Limits, SettleResult, Verdict
from tests.builders import NO_LIMITS, World

HOUR_MS, IDLE_MS, DAY_MS = 3_600_000, 120_000, 86_400_000


def life_ms(world: World, user: str) -> int:
    """Until when a user is kept: -1 for ever, -2 not at all."""
    return int(world.client.pttl(world.user_key(user)))


def test_nothing_is_kept_of_a_user_without_limits(world: World) -> None:
    world.define_tenant(Limits(concurrency=5), users=NO_LIMITS)
    world.plan(10_000)
    before = world.client.dbsize()
    for number in range(20):
        call = world.reserve(need=5, user=f"made up {number}")
        assert (call.verdict, world.tenant.inflight) == (Verdict.ADMITTED, 1)
        assert call.settle(tokens=5) is SettleResult.DONE
        assert world.events()[-1].user == f"made up {number}"
    assert world.client.dbsize() <= before + 1  # the outbox
    assert world.tenant.inflight == 0
    reclaimed = world.reserve(need=5, user="made up")
    assert reclaimed.reclaim(tokens=5) is SettleResult.DONE
    assert life_ms(world, "made up") == -2


def test_a_user_with_its_tenants_limits_is_kept_while_it_calls_and_past_a_window(world: World) -> None:
    world.define_tenant(users=Limits(requests_per_minute=60, tokens_per_minute=6000, concurrency=2))
    world.plan(10**9)
    calls = [world.reserve(need=5, user="ann") for _ in range(2)]
    assert world.reserve(need=5, user="ann").verdict is Verdict.CONCURRENCY_LIMITED
    assert life_ms(world, "ann") == -1  # what holds a slot always gives it back
    calls[0].settle(tokens=5)
    assert life_ms(world, "ann") == -1
    calls[1].settle(tokens=5)
    assert IDLE_MS - 5_000 < life_ms(world, "ann") <= IDLE_MS


def test_debt_is_kept_until_it_has_drained(world: World) -> None:
    world.define_tenant(users=Limits(tokens_per_minute=60))
    world.plan(10**9)
    world.reserve(need=5, user="ann").settle(tokens=60 * 60)
    assert HOUR_MS - 10_000 < life_ms(world, "ann") <= HOUR_MS
    world.client.pexpire(world.user_key("ann"), 1000)
    assert world.reserve(need=5, user="ann").verdict is Verdict.RATE_LIMITED


def test_debt_of_more_than_a_day_is_forgotten_after_one(world: World) -> None:
    world.define_tenant(users=Limits(tokens_per_minute=1))
    world.plan(10**9)
    world.reserve(need=5, user="ann").settle(tokens=10**6)
    assert DAY_MS - 10_000 < life_ms(world, "ann") <= DAY_MS


def test_a_user_with_limits_of_its_own_stays(world: World) -> None:
    world.define_user("ann", Limits(concurrency=3))
    world.plan(100)
    call = world.reserve(need=5, user="ann")
    assert (life_ms(world, "ann"), world.user("ann").inflight) == (-1, 1)
    call.settle(tokens=5)
    assert (life_ms(world, "ann"), world.user("ann").inflight) == (-1, 0)
    world.define_user("ann", NO_LIMITS)
    assert 0 < life_ms(world, "ann") <= HOUR_MS


@pytest.mark.parametrize("late", [Limits(concurrency=1), NO_LIMITS])
def test_limits_that_change_while_a_call_runs_leave_no_slot_behind(world: World, late: Limits) -> None:
    early = NO_LIMITS if late != NO_LIMITS else Limits(concurrency=1)
    world.define_tenant(users=early)
    world.plan(100)
    first = world.reserve(need=5, user="ann")
    world.define_tenant(users=late)
    second = world.reserve(need=5, user="ann")
    assert second.verdict is Verdict.ADMITTED
    first.settle(tokens=5)
    assert world.user("ann").inflight == (1 if late != NO_LIMITS else 0)
    second.settle(tokens=5)
    assert world.user("ann").inflight == 0


def test_a_state_that_ended_meanwhile_is_not_made_again_by_a_settlement(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=5, user="ann")
    world.client.delete(world.user_key("ann"))
    assert call.settle(tokens=5) is SettleResult.DONE
    assert life_ms(world, "ann") == -2


def test_a_user_whose_limits_came_while_its_body_was_read_is_taken_in_full(world: World) -> None:
    world.define_tenant(users=NO_LIMITS)
    world.plan(100)
    head = world.reserve(service=NO_SERVICE, user="ann")
    world.define_tenant(users=Limits(concurrency=1))
    raised = head.raised(need=5, user="ann")
    assert (raised.verdict, world.user("ann").inflight) == (Verdict.ADMITTED, 1)
    raised.settle(tokens=5)
    assert world.user("ann").inflight == 0


def test_a_made_up_user_fills_few_bytes_and_for_two_minutes(world: World) -> None:
    world.define_tenant(users=Limits(requests_per_minute=60, tokens_per_minute=6000, concurrency=2))
    world.plan(10**9)

    name = "\N{GRINNING FACE}" * 128
    assert world.reserve(need=5, user=name).settle(tokens=5) is SettleResult.DONE
    kept = world.client.memory_usage(world.user_key(name))
    assert kept is not None
    assert kept < 400
    assert 0 < life_ms(world, name) <= IDLE_MS
