"""Requests and tokens a minute, exact in integers: against a model in fractions. Clocks that jump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.model import LimitKind, Limits, Verdict
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import KeyState
from tests.builders import Call, World
from tests.lua.conftest import AMONG_OTHERS

UNIT = 60_000
EXAMPLES = settings(max_examples=25, suppress_health_check=list(HealthCheck))


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
