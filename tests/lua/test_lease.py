"""lease: what is set aside for gateways is really held, and all of them together never more than there is."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.model import Limits, SettleResult, Verdict
from gateway.counters.layouts import packing, states
from gateway.counters.leases import allowance
from gateway.counters.leases.allowance import (
    GIVE_BACK,
    IF_OVER,
    NONE,
    NOTHING,
    RENEWED,
    AccountLease,
    LeaseTerms,
)
from gateway.counters.redis import keys
from tests.builders import CREDITS, World, new_id

TTL_MS = 60_000


class Gateway:
    """One gateway's lease: `kept` is what it counts on, `spent` what it used meanwhile."""

    def __init__(self, world: World, fraction: float = 0.1) -> None:
        self.world = world
        self.fraction = fraction
        self.id = new_id()
        self.kept = 0
        self.spent = 0

    def ask(
        self, tokens: AccountLease = NOTHING, credits_: AccountLease = NOTHING, *, ttl_ms: int = TTL_MS
    ) -> LeaseTerms | None:
        call = allowance.lease(
            self.world.run_id, self.world.caller, self.id, ttl_ms,
            fraction=self.fraction, tokens=tokens, credits_=credits_,
        )  # fmt: skip
        answer = self.world.run("lease", call)
        self.code = packing.code_of(answer)
        return allowance.leased(answer)

    def renew(self) -> None:
        """As a gateway does: it counts on less at once, on more once it is held."""
        found = self.ask(AccountLease(max(self.kept, self.spent), self.spent))
        self.kept = found.tokens or 0 if found else 0

    @property
    def hold(self) -> states.HoldState | None:
        raw = self.world.get(keys.hold(self.world.p, self.id))
        return states.unpack_hold(raw)[0] if raw else None


@pytest.fixture
def gateway(world: World) -> Gateway:
    world.plan(1000, on_store_failure="allow")
    world.grant("credits", 200)
    return Gateway(world)


def test_a_share_of_what_is_free_is_set_aside(gateway: Gateway) -> None:
    world = gateway.world
    world.reserve(need=400)
    assert gateway.ask() == LeaseTerms(60, 20, False, False, False, False, plan_id=1)
    hold = gateway.hold
    assert hold is not None
    assert (hold.flags, hold.tokens, hold.credits) == (states.HOLD_LEASE, 60, 20)
    assert (world.tenant.held, world.organization.credits_held) == (460, 20)
    assert world.deadlines()[gateway.id] == hold.deadline
    assert 0 < hold.deadline - world.now_ms() <= TTL_MS


def test_it_takes_no_slot_and_no_rate(gateway: Gateway) -> None:
    world = gateway.world
    limits = Limits(5, 500, 2)
    world.define_tenant(limits)
    world.define_organization(limits)
    before = world.tenant, world.organization
    gateway.ask()
    after = world.tenant, world.organization
    assert after == (replace(before[0], held=100), replace(before[1], credits_held=20))
    gateway.ask(ttl_ms=GIVE_BACK)
    assert (world.tenant, world.organization) == before


def test_what_it_holds_already_counts_as_free_to_itself(gateway: Gateway) -> None:
    for _ in range(3):
        found = gateway.ask(AccountLease(100), AccountLease(20))
        assert found is not None
        assert (found.tokens, found.credits) == (100, 20)
    assert gateway.world.tenant.held == 100


def test_it_shrinks_only_once_the_gateway_counts_on_less(gateway: Gateway) -> None:
    world = gateway.world
    gateway.ask()
    call = world.reserve(need=700)
    call.settle(700)
    found = gateway.ask(AccountLease(100), AccountLease(20))
    assert found is not None
    assert found.tokens == 30
    assert world.tenant.held == 100
    gateway.ask(AccountLease(30), AccountLease(20))
    assert world.tenant.held == 30


def test_what_was_spent_and_not_charged_stays_held_whatever_is_free(gateway: Gateway) -> None:
    world = gateway.world
    world.reserve(need=990)
    found = gateway.ask(AccountLease(50, 50))
    assert found is not None
    assert found.tokens == 50
    assert world.tenant.held == 1040
    assert world.reserve(need=1).verdict is Verdict.QUOTA_HELD


def test_what_was_handed_in_is_held_until_the_late_lane_is_empty(gateway: Gateway) -> None:
    world = gateway.world
    gateway.ask()
    request = world.reserve(need=5).request
    late = replace(request, request_id=new_id())
    assert world.settle(late, 30, mode=packing.MODE_CHARGE) is SettleResult.UNKNOWN
    spent = AccountLease(100, 30, 30)
    found = gateway.ask(spent)
    assert found is not None
    assert (found.charged, found.tokens) == (False, 30 + (1000 - 5 - 30) // 10)
    world.settle(late, 30, mode=packing.MODE_POST)
    world.client.delete(keys.late(world.p))
    found = gateway.ask(spent)
    assert found is not None
    assert (found.charged, found.tokens) == (True, (1000 - 30 - 5) // 10)
    assert world.tenant.held == 5 + 96


def test_given_back_it_is_gone(gateway: Gateway) -> None:
    world = gateway.world
    gateway.ask()
    assert gateway.ask(ttl_ms=GIVE_BACK) is None
    assert (gateway.code, gateway.hold, world.tenant.held, world.deadlines()) == (NONE, None, 0, {})
    before = world.everything()
    assert gateway.ask(ttl_ms=GIVE_BACK) is None
    assert world.everything() == before


def test_only_a_lease_that_is_over_is_ended_for_its_deadline(gateway: Gateway) -> None:
    world = gateway.world
    gateway.ask()
    before = world.everything()
    assert gateway.ask(ttl_ms=IF_OVER) is None
    assert gateway.code == RENEWED
    assert world.everything() == before
    gateway.ask(ttl_ms=1)
    while world.now_ms() <= max(world.deadlines().values()):
        pass
    assert gateway.ask(ttl_ms=IF_OVER) is None
    assert (gateway.code, gateway.hold, world.tenant.held) == (NONE, None, 0)
    assert world.organization.credits_held == 0
    assert [event.amount for event in world.events() if event.seq] == [1000]


@pytest.mark.parametrize("how", ["deny", "block", "unverified", "unknown"])
def test_a_refusal_changes_nothing(gateway: Gateway, how: str) -> None:
    """Not even a lease that is there: the gateway counts on it until it gives it back."""
    world = gateway.world
    gateway.ask()
    match how:
        case "deny":
            world.plan(1000, on_store_failure="deny")
        case "block":
            world.grant("block")
        case "unverified":
            world.run_id = b"0" * 40
        case "unknown":
            world.client.delete(world.tenant_key)
    before = world.everything()
    assert gateway.ask(AccountLease(100)) is None
    assert gateway.code == {"deny": NONE, "block": NONE, "unverified": 0, "unknown": -2}[how]
    assert world.everything() == before
    if how in {"deny", "block"}:
        gateway.ask(ttl_ms=GIVE_BACK)
        assert world.tenant.held == 0


@pytest.mark.parametrize("terms", [{"total": None}, {"total": 5, "overage_policy": "bill"}])
def test_what_is_not_limited_is_not_held(world: World, terms: dict[str, Any]) -> None:
    world.plan(on_store_failure="allow", **terms)
    found = Gateway(world).ask(AccountLease(10, 5))
    assert found is not None
    assert found.tokens is None
    assert world.tenant.held == 0


def test_it_tells_the_plans_terms(world: World) -> None:
    world.define_organization(cap=10)
    world.plan(1000, on_store_failure="allow", admission="strict", on_exhausted="cut")
    assert Gateway(world).ask() == LeaseTerms(100, 0, True, True, True, False, plan_id=1)


def test_a_due_reset_runs_first(gateway: Gateway) -> None:
    world = gateway.world
    world.plan(500, on_store_failure="allow", reset_interval="daily")
    world.reserve(need=500).settle(500)
    day = world.now_ms() // 86_400_000 * 86_400_000
    world.put_tenant(next_reset=day)
    found = gateway.ask()
    assert found is not None
    assert found.tokens == 50
    assert world.events()[-1].remaining == world.tenant.remaining == 500
    assert world.tenant.next_reset == day + 86_400_000


def test_an_account_in_debt_leases_nothing(gateway: Gateway) -> None:
    world = gateway.world
    world.reserve(need=1000).settle(1200)
    found = gateway.ask()
    assert found is not None
    assert found.tokens == 0
    assert (world.tenant.remaining, world.tenant.held) == (-200, 0)


def test_credits_of_one_organization_are_set_aside_for_each_of_its_tenants(gateway: Gateway) -> None:
    world = gateway.world
    gateway.ask()
    assert world.reserve(service=CREDITS, credits_=181).verdict is Verdict.QUOTA_HELD
    assert world.reserve(service=CREDITS, credits_=180).verdict is Verdict.ADMITTED


@pytest.mark.parametrize("seed", range(5))
def test_gateways_together_are_never_promised_more_than_remains(world: World, seed: int) -> None:
    """Calls, renewals, gateways that use their share apart and return, in any order."""
    chance = random.Random(seed)
    world.plan(1000, on_store_failure="allow")
    gateways = [Gateway(world, chance.choice([0.05, 0.3, 0.9])) for _ in range(5)]
    calls: list[tuple[Any, int]] = []
    charged = 0
    for _ in range(250):
        one = chance.choice(gateways)
        match chance.randrange(5):
            case 0 | 1:
                one.renew()
            case 2:
                call = world.reserve(need=chance.randrange(1, 60))
                if call.verdict is Verdict.ADMITTED:
                    calls.append((call, call.decision.held_tokens))
            case 3 if calls:
                call, held = calls.pop(chance.randrange(len(calls)))
                used = chance.randrange(held + 1)
                call.settle(used)
                charged += used
            case 4 if one.kept > one.spent:  # away: it goes on within what it counts on
                one.spent += chance.randrange(one.kept - one.spent) + 1
        tenant = world.tenant
        assert tenant.remaining == 1000 - charged
        assert (
            sum(max(each.kept, each.spent) for each in gateways) + sum(held for _, held in calls)
            <= tenant.held
        )
        assert tenant.held <= tenant.remaining
    for call, _ in calls:
        call.settle(0)
    spent = sum(each.spent for each in gateways)
    assert charged + spent <= 1000
    for each in gateways:
        each.ask(ttl_ms=GIVE_BACK)
    assert (world.tenant.held, world.deadlines()) == (0, {})
