"""peek: states as they stand now; changes nothing."""

from __future__ import annotations

import pytest

from gateway.core.model import Limits
from gateway.counters.layouts import states
from tests.builders import COUNTED, World


def test_peek_shows_every_kind_as_it_is(world: World) -> None:
    world.define_user("ann", Limits(concurrency=4))
    world.define_organization(COUNTED)
    world.define_key(COUNTED)
    world.plan(100)
    world.reserve(need=30, user="ann")
    assert states.unpack(states.KeyState, world.peek(1, world.api_key)[0]).inflight == 1
    assert states.unpack(states.UserState, world.peek(2, world.user_key("ann"))[0]).concurrency == 4
    assert states.unpack(states.TenantState, world.peek(3, world.tenant_key)[0]).held == 30
    assert states.unpack(states.OrganizationState, world.peek(4, world.organization_key)[0]).inflight == 1


def test_peek_says_what_is_not_there_and_keeps_the_order(world: World) -> None:
    first, missing, last = world.peek(3, world.tenant_key, world.tenant_key + "9", world.tenant_key)
    assert missing is None
    assert (
        states.unpack(states.TenantState, first).tenant_id
        == states.unpack(states.TenantState, last).tenant_id
        == 7
    )


@pytest.mark.parametrize("arrange", ["nothing", "due", "held", "drained"])
def test_peek_changes_nothing(world: World, arrange: str) -> None:
    world.define_tenant(Limits(requests_per_minute=60, tokens_per_minute=60))
    world.plan(100, reset_interval="daily")
    if arrange == "held":
        world.reserve(need=10)
    if arrange == "due":
        world.put_tenant(next_reset=world.now_ms() - 5)
    if arrange == "drained":
        world.put_tenant(at=world.now_ms() - 1000, requests_used=600_000, tokens_used=60_000)
    before = world.everything()
    for kind, name in ((1, world.api_key), (3, world.tenant_key), (4, world.organization_key)):
        world.peek(kind, name)
    assert world.everything() == before


def test_peek_shows_a_due_reset_before_the_ledger_has_it(world: World) -> None:
    world.plan(100, reset_interval="daily")
    world.reserve(need=10).settle(tokens=60)
    world.put_tenant(next_reset=world.now_ms() - 5)
    shown = states.unpack(states.TenantState, world.peek(3, world.tenant_key)[0])
    assert (shown.remaining, shown.used, shown.cycle) == (100, 0, 2)
    assert shown.next_reset > world.now_ms()
    assert len(world.events()) == 2


def test_peek_shows_buckets_as_they_have_drained(world: World) -> None:
    world.define_tenant(Limits(requests_per_minute=60))
    world.put_tenant(at=world.now_ms() - 10_000, requests_used=60 * 60_000)
    shown = states.unpack(states.TenantState, world.peek(3, world.tenant_key)[0])
    assert shown.requests_used <= 50 * 60_000


def test_peek_is_refused_where_unverified(world: World) -> None:
    world.run_id = b"1" * 40
    assert world.peek(3, world.tenant_key) == [0]
