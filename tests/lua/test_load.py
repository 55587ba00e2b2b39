"""load: definitions and rebuilt states, compare-and-set on version or marker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.accounts.definitions import (
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import Limits, Verdict
from gateway.counters.keeper.rebuild import load_call
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from tests.builders import NO_LIMITS, World

ANOTHERS = 3
DONE, ALREADY, UNVERIFIED, UNKNOWN, MOVED_ON = 1, 2, 0, -2, -4
LIMITS = Limits(requests_per_minute=60, tokens_per_minute=600, concurrency=6)


def definitions(limits: Limits) -> list[Definition]:
    return [
        OrganizationDefinition(1, limits, credit_limit=5, cap=9),
        TenantDefinition(7, 1, limits, limits, PlanTerms()),
        KeyDefinition(3, 7, 1, "", limits, expires_ms=4_000_000_000_000),
        UserDefinition(7, 1, "ann", limits),
    ]


@pytest.mark.parametrize("at", range(4), ids=["organization", "tenant", "key", "user"])
def test_a_definition_counts_once_by_its_version(world: World, at: int) -> None:
    definition, narrower = definitions(LIMITS)[at], definitions(Limits(concurrency=1))[at]
    assert world.define(definition, version=100) == DONE
    before = world.everything()
    for older in (1, 99, 100):
        assert world.define(narrower, version=older) == ALREADY
    assert world.everything() == before
    assert world.define(narrower, version=101) == DONE
    assert world.everything() != before


@pytest.mark.parametrize("at", range(3), ids=["organization", "tenant", "key"])
def test_a_definition_of_another_row_begins_a_new_account(world: World, at: int) -> None:
    """Nothing of the row before is in it, whichever version that had."""
    definition = definitions(LIMITS)[at]

    def define(created: int, version: int, *, create: bool = True) -> int:
        return world.define(replace(definition, created=created), version, create=create)  # type: ignore[call-arg]  # none of these is a user

    assert define(0, 100) == DONE
    assert define(1_796_000_000_000_001, 101) == DONE
    world.reserve(need=10).settle(tokens=10)
    used = world.everything()
    assert define(1_796_000_000_000_001, 101) == ALREADY
    assert define(1_796_000_000_000_002, 90, create=False) == UNKNOWN
    assert world.everything() == used
    assert define(1_796_000_000_000_002, 90) == ANOTHERS
    state: states.OrganizationState | states.TenantState | states.KeyState
    state = (world.organization, world.tenant, world.key)[at]
    assert (state.version, state.created) == (90, 1_796_000_000_000_002)
    assert (state.requests_used, state.tokens_used, state.inflight) == (0, 0, 0)
    assert define(0, 91) == DONE


def test_definitions_set_limits_and_what_is_theirs(world: World) -> None:
    for definition in definitions(LIMITS):
        world.define(definition)
    for state in (world.organization, world.tenant, world.key, world.user("ann")):
        assert (state.rpm, state.tpm, state.concurrency) == (60, 600, 6)
    assert (world.organization.credit_limit, world.organization.cap) == (5, 9)
    assert (world.tenant.user_rpm, world.tenant.user_tpm, world.tenant.user_concurrency) == (60, 600, 6)
    assert world.key.expires == 4_000_000_000_000


def test_a_definition_keeps_use_and_holds(world: World) -> None:
    world.define_tenant(LIMITS)
    world.plan(100)
    call = world.reserve(need=40)
    before = world.tenant
    world.define_tenant(Limits(tokens_per_minute=600, requests_per_minute=60, concurrency=9))
    after = world.tenant
    assert replace(before, version=0, concurrency=0, at=0, requests_used=0, tokens_used=0) == replace(
        after, version=0, concurrency=0, at=0, requests_used=0, tokens_used=0
    )
    call.settle(tokens=40)
    assert (world.tenant.held, world.tenant.inflight) == (0, 0)


def test_a_narrower_limit_counts_at_once_and_what_was_used_before_fills_it_at_most(world: World) -> None:
    world.plan(10**6)
    world.define_key(Limits(requests_per_minute=100, tokens_per_minute=1000))
    for _ in range(50):
        world.reserve(need=20).settle(tokens=20)
    world.define_key(Limits(requests_per_minute=2, tokens_per_minute=10))
    refused = world.reserve(need=1)
    assert refused.verdict is Verdict.RATE_LIMITED
    assert refused.decision.until_ms - refused.decision.now_ms <= 30_000


def test_a_limit_taken_away_and_given_again_starts_full(world: World) -> None:
    world.plan(10**6)
    world.define_key(Limits(requests_per_minute=1))
    world.reserve().release()
    world.define_key(NO_LIMITS)
    world.define_key(Limits(requests_per_minute=1))
    assert world.reserve().verdict is Verdict.ADMITTED


def test_token_debt_survives_a_definition_with_the_same_limit(world: World) -> None:
    world.plan(10**6)
    world.define_key(Limits(tokens_per_minute=10))
    world.reserve(need=10).settle(tokens=1000)
    world.define_key(Limits(tokens_per_minute=10))
    assert world.key.tokens_used > 900 * 60_000


def test_revoking_counts_in_the_script(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=1)
    world.define_key(revoked=True)
    assert world.reserve(need=1).verdict is Verdict.REVOKED
    call.settle(tokens=1)
    assert world.key.inflight == 0


def test_an_account_with_a_ledger_is_never_made_anew(world: World) -> None:
    """Rule: a missing account is unknown, never fresh."""
    world.client.delete(world.tenant_key)
    definition = TenantDefinition(7, 1, LIMITS, NO_LIMITS, PlanTerms())
    assert world.define(definition, create=False) == UNKNOWN
    assert not world.client.exists(world.tenant_key)
    assert world.define(definition) == DONE
    assert (world.tenant.total, world.tenant.seq) == (-1, 0)


def test_nothing_is_defined_where_unverified(world: World) -> None:
    world.run_id = b"9" * 40
    before = world.everything()
    for definition in definitions(LIMITS):
        assert world.define(definition) == UNVERIFIED
    assert world.everything() == before


def test_a_plans_new_terms_reach_the_tenants_that_have_it_and_the_total_at_the_next_reset(
    world: World,
) -> None:
    world.plan(100, plan_id=4, reset_interval="monthly")
    world.define_tenant(
        terms=PlanTerms(plan_id=4, total_amount=500, reset_interval="monthly", rollover_max=3)
    )
    assert (world.tenant.total, world.tenant.total_amount, world.tenant.rollover_max) == (100, 500, 3)
    world.grant("reset")
    assert (world.tenant.total, world.tenant.remaining) == (500, 503)


def test_the_terms_of_another_plan_wait_for_the_change_of_plan(world: World) -> None:
    world.plan(100, plan_id=4)
    world.define_tenant(terms=PlanTerms(plan_id=5, total_amount=500))
    assert (world.tenant.plan_id, world.tenant.total_amount) == (4, 100)


def test_an_interval_changed_in_the_plan_moves_the_next_reset(world: World) -> None:
    world.plan(100, plan_id=4, reset_interval="monthly")
    world.define_tenant(terms=PlanTerms(plan_id=4, total_amount=100, reset_interval="daily"))
    now = world.now_ms()
    assert now < world.tenant.next_reset <= now + 86_400_000


# --- rebuild, verify, forget ------------------------------------------------------------


def test_rebuild_and_verify_are_compare_and_set_on_the_marker(world: World) -> None:
    marker = world.get(keys.marker(world.p))
    state = states.pack(replace(world.tenant, seq=99))
    before = world.everything()
    for other in (b"", marker[:-1] + b"x", packing.marker(world.run_id, 2, 1)):
        assert world.rebuild(world.tenant_key, state, other) == MOVED_ON
        assert world.rebuild(keys.marker(world.p), packing.marker(world.run_id, 9, 1), other) == MOVED_ON
    assert world.everything() == before
    assert world.rebuild(world.tenant_key, state, marker) == DONE
    assert world.tenant.seq == 99
    assert world.mark(epoch=2) == DONE
    assert world.rebuild(world.tenant_key, state, marker) == MOVED_ON


def test_many_states_are_rebuilt_in_one_call_or_none_of_them(world: World) -> None:
    marker, before = world.get(keys.marker(world.p)), world.everything()
    written = {
        keys.key_state(world.p, number): states.pack(states.KeyState(key_id=number)) for number in range(50)
    }
    written[world.tenant_key] = states.pack(replace(world.tenant, seq=99))

    def rebuilt(over: bytes) -> int:
        call = load_call(world.run_id, world.p, list(written.items()), over)
        return packing.code_of(world.run("load", call))

    assert rebuilt(packing.marker(world.run_id, 2, 1)) == MOVED_ON
    assert world.everything() == before
    assert rebuilt(marker) == DONE
    assert {name: world.get(name) for name in written} == written
    assert world.get(keys.marker(world.p)) == marker


def test_the_epoch_of_the_marker_is_the_epoch_of_entries(world: World) -> None:
    world.plan(100)
    world.mark(epoch=5)
    world.reserve(need=1).settle(tokens=1)
    assert [event.epoch for event in world.events()] == [1, 5]
