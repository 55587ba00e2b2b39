"""Keys and organizations without limits: calls take nothing of them. Limits come and go meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.core.model import NO_SERVICE, Limits, SettleResult, Verdict
from gateway.counters.layouts.states import UNCOUNTED, HoldState, KeyState, OrganizationState
from tests.builders import CREDITS, NO_LIMITS, Call, World

ONE = Limits(concurrency=1)


def hold_of(call: Call) -> HoldState:
    hold = call.hold
    assert hold is not None
    return hold


@pytest.mark.parametrize("end", [Call.settle, Call.release, Call.reclaim])
def test_a_call_leaves_what_has_no_limits_as_it_is(world: World, end: type[Call]) -> None:
    world.plan(100)
    before = world.get(world.api_key), world.get(world.organization_key)
    call = world.reserve(need=5)
    hold = hold_of(call)
    assert (hold.key_tpm, hold.tenant_tpm, hold.organization_tpm) == (UNCOUNTED, 0, UNCOUNTED)
    assert (world.get(world.api_key), world.get(world.organization_key)) == before
    assert end(call) is SettleResult.DONE
    assert (world.get(world.api_key), world.get(world.organization_key)) == before
    assert (world.tenant.inflight, world.tenant.held) == (0, 0)


def test_credits_are_told_and_taken_of_an_organization_without_limits(world: World) -> None:
    world.plan(100)
    world.grant("credits", 50)
    assert world.reserve(need=5, service=CREDITS).decision.credits_remaining == 50
    call = world.reserve(need=5, service=CREDITS, credits_=20)
    assert (call.decision.credits_remaining, world.organization.credits_held) == (30, 20)
    assert world.reserve(need=5, service=CREDITS).decision.credits_remaining == 30
    assert call.settle(tokens=5, credits=20) is SettleResult.DONE
    assert (world.organization.balance, world.organization.credits_held) == (30, 0)
    assert world.organization.inflight == 0


def test_a_call_of_before_a_limit_gives_no_slot_back(world: World) -> None:
    world.plan(100)
    early = world.reserve(need=1)
    world.define_key(ONE)
    world.define_organization(ONE)
    late = world.reserve(need=1)
    assert early.settle(tokens=1) is SettleResult.DONE
    assert (late.verdict, world.key.inflight, world.organization.inflight) == (Verdict.ADMITTED, 1, 1)
    assert world.reserve(need=1).verdict is Verdict.CONCURRENCY_LIMITED
    assert late.settle(tokens=1) is SettleResult.DONE
    assert (world.key.inflight, world.organization.inflight) == (0, 0)


def test_a_call_of_before_a_limit_counts_its_tokens_when_it_ends(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=1)
    world.define_key(Limits(tokens_per_minute=10))
    assert call.settle(tokens=30) is SettleResult.DONE
    assert world.reserve(need=1).verdict is Verdict.RATE_LIMITED


def test_a_call_gives_its_slot_back_where_the_limit_is_gone(world: World) -> None:
    world.define_key(ONE)
    world.define_organization(ONE)
    world.plan(100)
    call = world.reserve(need=1)
    world.define_key()
    world.define_organization()
    assert world.reserve(need=1).verdict is Verdict.ADMITTED
    assert call.settle(tokens=1) is SettleResult.DONE
    assert (world.key.inflight, world.organization.inflight) == (0, 0)


class Limited(RuleBasedStateMachine):
    """Limits of a key and an organization come and go, and calls too. The model notes who took a slot."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.limits = [NO_LIMITS, NO_LIMITS]
        self.calls: list[tuple[Call, list[bool]]] = []

    @initialize()
    def begin(self) -> None:
        self.world = World(self.url)
        self.world.client.flushdb()
        self.world = World(self.url)
        self.world.plan(None)
        self.world.grant("credits", 10**6)

    def has(self) -> list[bool]:
        return [limits != NO_LIMITS for limits in self.limits]

    @rule(scope=st.integers(0, 1), most=st.sampled_from([0, 2, 5]))
    def limit(self, scope: int, most: int) -> None:
        self.limits[scope] = Limits(concurrency=most) if most else NO_LIMITS
        define = (self.world.define_key, self.world.define_organization)[scope]
        assert define(self.limits[scope]) == 1

    def is_full(self, had: list[bool]) -> bool:
        taken = self.taken()
        return any(
            limits.concurrency and not mine and count >= limits.concurrency
            for limits, mine, count in zip(self.limits, had, taken, strict=True)
        )

    def taken(self) -> list[int]:
        return [sum(counted[scope] for _, counted in self.calls) for scope in (0, 1)]

    @rule(pays=st.booleans(), is_head=st.booleans())
    def reserve(self, pays: bool, is_head: bool) -> None:
        full = self.is_full([False, False])
        if is_head:
            call = self.world.reserve(service=NO_SERVICE)
        elif pays:
            call = self.world.reserve(need=3, service=CREDITS, credits_=2)
        else:
            call = self.world.reserve(need=3)
        assert (call.verdict is Verdict.CONCURRENCY_LIMITED) == full
        if not full:
            # credits are the organization's: who opens it for them is counted there as well
            counted = [self.has()[0], self.has()[1] or hold_of(call).organization_tpm != UNCOUNTED]
            assert counted[1] == (self.has()[1] or (pays and not is_head))
            self.calls.append((call, counted))

    @precondition(lambda self: self.calls)
    @rule(at=st.integers(0, 99))
    def tops_up(self, at: int) -> None:
        call, counted = self.calls[at % len(self.calls)]
        if call.request.service is not NO_SERVICE:
            return
        full = self.is_full(counted)
        raised = call.raised(need=3)
        assert (raised.verdict is Verdict.CONCURRENCY_LIMITED) == full
        if not full:
            now = [had or has for had, has in zip(counted, self.has(), strict=True)]
            self.calls[at % len(self.calls)] = raised, now

    @precondition(lambda self: self.calls)
    @rule(at=st.integers(0, 99), how=st.sampled_from(["settle", "release", "reclaim"]))
    def ends(self, at: int, how: str) -> None:
        call, _ = self.calls.pop(at % len(self.calls))
        more = {"credits": 2} if how == "settle" and call.request.credits else {}
        ended = call.release() if how == "release" else getattr(call, how)(tokens=2, **more)
        assert ended is SettleResult.DONE

    @invariant()
    def counts_what_was_taken(self) -> None:
        if hasattr(self, "world"):
            key: KeyState = self.world.key
            organization: OrganizationState = self.world.organization
            assert [key.inflight, organization.inflight] == self.taken()
            assert self.world.tenant.inflight == len(self.calls)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.client.close()


def test_whoever_took_a_slot_gives_it_back_whatever_limits_there_are(valkey: str) -> None:
    machine = type("At", (Limited,), {"url": valkey})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # untyped in hypothesis
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
