"""Requests and tokens a minute, exact in integers: against a model in fractions. Clocks that jump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.core.model import NO_SERVICE, LimitKind, Limits, SettleResult, Verdict
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import UNCOUNTED, HoldState, KeyState, OrganizationState
from tests.builders import CREDITS, NO_LIMITS, Call, World
from tests.lua.conftest import AMONG_OTHERS
from tests.search import examples

UNIT = 60_000
EXAMPLES = settings(max_examples=examples(25))


@dataclass(slots=True)
class Model:
    """One key's buckets: what was taken and has not drained, in requests and tokens."""

    rpm: int
    tpm: int
    at: int
    requests: Fraction = Fraction(0)
    tokens: Fraction = Fraction(0)

    def drain(self, now: int) -> None:
        passed = Fraction(max(0, now - self.at), UNIT)
        self.requests = max(Fraction(0), self.requests - self.rpm * passed)
        self.tokens = max(Fraction(0), self.tokens - self.tpm * passed)
        self.at = max(self.at, now)

    def until(self, need: int) -> tuple[LimitKind, int] | None:
        """Which bucket that is asked has no whole unit left, and in how many ms it will have."""
        for kind, limit, used in (
            (LimitKind.REQUESTS, self.rpm, self.requests),
            (LimitKind.TOKENS, self.tpm if need else 0, self.tokens),
        ):
            if limit and used + 1 > limit:
                return kind, math.ceil((used + 1 - limit) * UNIT / limit)
        return None

    def take(self, need: int) -> int:
        if self.rpm:
            self.requests += 1
        taken = min(need, math.floor(self.tpm - self.tokens)) if self.tpm and need else 0
        self.tokens += taken
        return taken

    def give(self, taken: int, used: int) -> None:
        if self.tpm:
            self.tokens = max(Fraction(0), self.tokens + used - taken)

    def levels(self) -> tuple[Fraction, Fraction]:
        return self.requests * UNIT, self.tokens * UNIT


def levels(state: KeyState) -> tuple[Fraction, Fraction]:
    return Fraction(state.requests_used), Fraction(state.tokens_used)


STEPS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 50), st.integers(0, 120_000)),  # ms that pass before
        st.integers(0, 40),  # tokens needed
        st.one_of(st.none(), st.integers(0, 90)),  # tokens used; None: still running
    ),
    min_size=1,
    max_size=12,
)


@AMONG_OTHERS
@EXAMPLES
@given(st.integers(0, 12), st.one_of(st.integers(0, 60), st.integers(0, 10**9)), STEPS)
def test_buckets_follow_the_model_exactly(
    world: World, rpm: int, tpm: int, steps: list[tuple[int, int, int | None]]
) -> None:
    world.plan(None)
    world.define_key(Limits(requests_per_minute=rpm or None, tokens_per_minute=tpm or None))
    world.put_key(requests_used=0, tokens_used=0, at=world.now_ms(), inflight=0)
    model = Model(rpm, tpm, world.key.at)
    for pause, need, used in steps:
        world.put_key(at=world.key.at - pause)
        model.at -= pause
        call = world.reserve(need=need)
        model.drain(call.decision.now_ms)
        refusal = model.until(need)
        if refusal is not None:
            kind, wait = refusal
            assert (call.verdict, call.decision.kind) == (Verdict.RATE_LIMITED, kind)
            assert call.decision.until_ms == call.decision.now_ms + wait
            model.at = world.key.at
            model.requests, model.tokens = (level / UNIT for level in levels(world.key))
            continue
        taken = model.take(need)
        assert call.verdict is Verdict.ADMITTED
        assert levels(world.key) == model.levels()
        if used is not None:
            call.settle(tokens=used)
            model.drain(world.key.at)
            model.give(taken, used)
            assert levels(world.key) == model.levels()


def test_n_a_minute_lets_n_through_at_once_and_refills_by_whole_units(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(requests_per_minute=3))
    verdicts = [world.reserve().verdict for _ in range(4)]
    assert verdicts == [Verdict.ADMITTED] * 3 + [Verdict.RATE_LIMITED]
    world.put_key(at=world.key.at - 20_000)
    assert [world.reserve().verdict for _ in range(2)] == [Verdict.ADMITTED, Verdict.RATE_LIMITED]


def test_the_moment_named_by_a_refusal_is_exactly_enough(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(requests_per_minute=7))
    refused = [world.reserve() for _ in range(8)][-1]
    wait = refused.decision.until_ms - refused.decision.now_ms
    state = world.key
    level = state.requests_used - state.rpm * (refused.decision.now_ms - state.at)
    assert level - state.rpm * wait + UNIT <= state.rpm * UNIT < level - state.rpm * (wait - 1) + UNIT


def test_tokens_a_minute_run_into_debt_and_out_again(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(tokens_per_minute=60))
    world.reserve(need=10).settle(tokens=180)
    refused = world.reserve(need=1).decision
    assert (refused.verdict, refused.kind, refused.limit) == (Verdict.RATE_LIMITED, LimitKind.TOKENS, 60)
    assert 120_000 < refused.until_ms - refused.now_ms <= 121_000
    world.put_key(at=world.key.at - 121_000)
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


def test_a_call_takes_no_more_tokens_of_a_minute_than_are_there(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(tokens_per_minute=50))
    call = world.reserve(need=500)
    assert call.hold is not None
    assert call.hold.key_tpm == 50
    call.release()
    assert world.key.tokens_used == 0


def test_the_largest_limit_stays_exact(world: World) -> None:
    """Levels are limit × 60,000: a limit up to 150 billion a minute counts exactly."""
    limit = 150_000_000_000
    world.plan(None)
    world.define_key(Limits(tokens_per_minute=limit))
    world.reserve(need=limit - 1)
    assert world.key.tokens_used == (limit - 1) * UNIT < 2**53


# --- clocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_ms", [2_500, 3_600_000, 10**12])
def test_a_state_from_the_future_is_anchored_anew_and_grants_nothing(world: World, ahead_ms: int) -> None:
    world.plan(None)
    world.define_key(Limits(requests_per_minute=2))
    now = world.now_ms()
    world.put_key(at=now + ahead_ms, requests_used=2 * UNIT)
    refused = world.reserve()
    assert refused.verdict is Verdict.RATE_LIMITED
    assert refused.decision.until_ms - refused.decision.now_ms == 30_000
    world.put_key(requests_used=UNIT)
    assert world.reserve().verdict is Verdict.ADMITTED
    assert now <= world.key.at <= world.now_ms()
    assert world.key.requests_used == 2 * UNIT


def test_a_clock_a_little_behind_waits_for_itself(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(requests_per_minute=2))
    ahead = world.now_ms() + 1_900
    world.put_key(at=ahead, requests_used=UNIT)
    assert world.reserve().verdict is Verdict.ADMITTED
    assert (world.key.at, world.key.requests_used) == (ahead, 2 * UNIT)


def test_a_call_that_ends_under_a_clock_set_back_gives_its_slot_back(world: World) -> None:
    world.plan(100)
    world.define_key(Limits(concurrency=1, tokens_per_minute=100))
    call = world.reserve(need=10)
    world.put_key(at=world.now_ms() + 10**9)
    call.settle(tokens=10)
    assert (world.key.inflight, world.key.tokens_used) == (0, 10 * UNIT)
    assert world.key.at <= world.now_ms()


# --- slots ------------------------------------------------------------------------------


def test_slots_come_back_however_a_call_ends(world: World) -> None:
    world.plan(None)
    world.define_key(Limits(concurrency=1))
    ends = [Call.settle, Call.release, Call.reclaim]
    for end in ends:
        call = world.reserve(need=5)
        assert call.verdict is Verdict.ADMITTED
        assert world.reserve(need=5).verdict is Verdict.CONCURRENCY_LIMITED
        end(call)
    assert world.key.inflight == 0


def test_slots_never_fall_below_zero(world: World) -> None:
    world.plan(None)
    call = world.reserve(need=5)
    world.put_key(inflight=0)
    world.put_tenant(inflight=0)
    call.settle(tokens=5, mode=packing.MODE_CHARGE)
    assert (world.key.inflight, world.tenant.inflight) == (0, 0)


# --- users ------------------------------------------------------------------------------
# Users in Redis: nothing is kept of one without limits, of one with its tenant's as long as it matters.


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


# --- unlimited --------------------------------------------------------------------------
# Keys and organizations without limits: calls take nothing of them. Limits come and go meanwhile.


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
        settings=settings(max_examples=examples(25), stateful_step_count=30),
    )
