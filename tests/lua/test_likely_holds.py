"""Budgets under holds of what is likely: agents use nearly all of one, and pass it by no more than is stated.

What a call costs is added up here from a price list, in fractions; the product's own rates only hold.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count

import pytest

from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Body, CallRequest, CallSpec, names_in
from gateway.core.calls.claims import BudgetClaim, budget_claim
from gateway.core.calls.estimate import Estimate, Estimator
from gateway.core.model import Family, HoldExtension, TokenUsage, Verdict
from gateway.counters.admission.live_holds import EXTEND_MARGIN_TOKENS
from tests.builders import Call, World
from tests.lua.test_budgets import account, meters, window
from tests.search import examples

NANO = 10**9
# Dollars a million tokens, as a dear model of Anthropic's costs.
PRICES = {"input": "5", "cache_read": "0.5", "cache_write": "6.25", "cache_write_1h": "10", "output": "25"}
LIST = {
    kind: Fraction(PRICES.get(kind, PRICES["output" if kind == "reasoning" else "input"])) for kind in KINDS
}
VECTOR = Vector(
    1, "USD", tuple(int(LIST[kind] * NANO) for kind in KINDS), service_tiers={"fast": (2, 1), "us": (11, 10)}
)
MIXES = examples(500)


@pytest.fixture(autouse=True)
def plan(world: World) -> None:
    world.plan(None)


@dataclass(slots=True)
class Job:
    """One call as it will go: what it states, and what it will use."""

    input_bytes: int
    stated: int | None
    read: int
    cached: int
    written: int
    streamed: bool
    call: CallRequest = field(init=False)

    def __post_init__(self) -> None:
        document: dict[str, object] = {"model": "opus", "system": [{"cache_control": {"type": "ephemeral"}}]}
        self.call = CallRequest(
            "anthropic_messages", Family("anthropic"), Body(document=document, names=names_in(document)), CallSpec("opus", self.streamed), self.stated,
            input_bytes=self.input_bytes,
        )  # fmt: skip

    def cost(self, written: int | None = None) -> int:
        """What it costs in nano-dollars, rounded up, where so much of it was written."""
        fresh = self.read - self.cached
        written = self.written if written is None else written
        dollars = fresh * LIST["cache_write"] + self.cached * LIST["cache_read"] + written * LIST["output"]
        return -int(-dollars * NANO // 10**6)


@dataclass(slots=True)
class Live:
    """A call in flight: what was seen of it, and what it holds."""

    job: Job
    hold: Call
    claim: BudgetClaim
    estimate: Estimate
    watched: HoldExtension
    money: int
    seen: int = 0


@dataclass(slots=True)
class Day:
    """One budget of money and the calls that take from it."""

    world: World
    limit: int
    cut: bool = False
    estimator: Estimator = field(default_factory=Estimator)
    spent: int = 0
    live: list[Live] = field(default_factory=list)
    # Of the calls in flight when the last one was admitted: what they cost beyond their holds.
    beyond: int = 0
    last: set[int] = field(default_factory=set)
    refused: list[Verdict] = field(default_factory=list)

    def begin(self, job: Job) -> bool:
        """Admit a call, or keep why it was refused."""
        here = account(window(1, self.limit, cut=self.cut))
        estimate = self.estimator.hold(job.call, 1, "messages")
        claim = budget_claim([VECTOR], estimate, job.call)
        hold = self.world.reserve(
            budgets=(here,), money=claim.money, money_most=claim.money_most, money_least=claim.money_least
        )
        if hold.verdict is not Verdict.ADMITTED:
            self.refused.append(hold.verdict)
            window_there = hold.decision.budget
            assert window_there is not None
            assert window_there.left < window_there.need == claim.money
            return False
        watched = HoldExtension(
            self.world.caller, hold.id, 0, 0, budgets=(here.name,), hold_rate=claim.likely, most=10**9
        )
        self.live.append(Live(job, hold, claim, estimate, watched, hold.decision.money_held))
        self.last, self.beyond = {id(one) for one in self.live}, 0
        return True

    def goes_on(self, one: Live, tokens: int) -> bool:
        """Let a stream write so many more tokens; whether it may go on."""
        one.seen = min(one.seen + tokens, one.job.written)
        one.watched.tokens = one.job.read + one.seen
        _, _, exhausted, money, _ = self.world.kept([(one.watched, EXTEND_MARGIN_TOKENS)])[0]
        one.money = money
        return exhausted < 2 and one.seen < one.job.written

    def end(self, one: Live, written: int) -> None:
        """Settle a call by what it cost, and learn from it."""
        cost = one.job.cost(written)
        self.live.remove(one)
        one.hold.settle(money=cost)
        self.spent += cost
        if id(one) in self.last:
            self.beyond += max(0, cost - one.money)
        rate = one.claim.likely
        assert rate is not None
        paid = cost - rate.cost(0, written)
        share = max(0.0, paid / (rate.input / one.estimate.input_share * rate.read / 10**6))
        usage = TokenUsage(one.job.read, written, total=one.job.read + written, reported=True)
        self.estimator.learn(one.job.call, 1, "messages", usage, share)


def agents(draw: random.Random, *, turn: int = 1, streamed: bool | None = None) -> Job:
    """A call of a coding agent: a long prompt, in a cache but for the first turn, and a short answer."""
    size = draw.choice([2_000, 20_000, 60_000, 90_000])
    read = size // 4
    return Job(
        size, draw.choice([32_000, 64_000]), read, int(read * draw.uniform(0.9, 0.99) * (turn > 0)),
        min(1 + int(draw.gammavariate(1.2, 250)), 32_000),
        draw.random() < 0.8 if streamed is None else streamed,
    )  # fmt: skip


def anybodys(draw: random.Random) -> Job:
    """A call of whatever size, that may write far more than those before it."""
    job = agents(draw, turn=draw.randint(0, 3))
    written = int(draw.lognormvariate(5.5, 1.8)) + 1
    stated = draw.choice([None, 256, 4_096, 64_000])
    return Job(job.input_bytes, stated, job.read, job.cached, min(written, stated or 64_000), job.streamed)


def test_with_three_dollars_a_day_an_agent_works_until_97_of_a_hundred_are_used(world: World) -> None:
    """It states 64,000 tokens: what all of those would cost is more than half of the budget."""
    draw, day, turns = random.Random(8), Day(world, 3 * NANO), count()
    while day.begin(job := agents(draw, turn=next(turns) % 30, streamed=True)):
        one = day.live[0]
        while day.goes_on(one, 256):
            pass
        day.end(one, job.written)
    assert job.cost() < day.limit // 20
    assert day.refused == [Verdict.BUDGET_EXCEEDED]
    assert 0.97 * day.limit <= day.spent <= day.limit + day.beyond
    assert meters(world) == [(1, day.spent, 0)]


def test_twenty_at_once_are_admitted_under_twenty_dollars(world: World) -> None:
    day = Day(world, 20 * NANO)
    jobs = [Job(90_000, 64_000, 22_500, 0, 300, streamed=True) for _ in range(20)]
    assert all(day.begin(job) for job in jobs)


def test_a_hundred_agents_at_once_share_a_dollar_as_their_cached_calls_cost(world: World) -> None:
    """Each costs 0.023 dollars, at three fifths of these prices: nine tenths of its prompt lie in a cache, as
    thirty calls before showed.
    """
    day, job = Day(world, 100 * NANO), Job(100_000, 32_000, 25_000, 22_500, 450, streamed=True)
    for _ in range(30):
        assert day.begin(job)
        day.end(day.live[0], job.written)
    dollar = NANO * 5 // 3
    day.limit = day.spent + dollar
    admitted = sum(day.begin(job) for _ in range(100))
    for one in list(day.live):
        day.end(one, job.written)
    assert job.cost() * 3 == 5 * 22_875_000
    assert 25 <= admitted <= dollar // job.cost()
    assert set(day.refused) == {Verdict.QUOTA_HELD}


def test_what_does_not_fit_is_told_to_wait_only_where_calls_in_flight_may_free_enough(world: World) -> None:
    day = Day(world, 400_000_000)
    job = Job(90_000, 64_000, 22_500, 0, 300, streamed=True)
    assert day.begin(job)
    assert not day.begin(job)
    assert day.refused == [Verdict.QUOTA_HELD]
    day.end(day.live[0], 300)
    large = Job(400_000, 64_000, 100_000, 0, 300, streamed=True)
    assert not day.begin(large)
    assert day.refused[-1] is Verdict.BUDGET_EXCEEDED


@pytest.mark.parametrize("part", range(5))
def test_a_budget_is_passed_by_no_more_than_calls_in_flight_cost_beyond_their_holds(
    world: World, part: int
) -> None:
    """Of random mixes of sizes, streams and parallel calls; a stream that is cut passes by one step."""
    for mix in range(part, MIXES, 5):
        draw = random.Random(mix)
        world.client.delete(*[key for key in world.everything() if b":b:" in key] or [b"none"])
        day = Day(world, draw.choice([20_000_000, 300_000_000, 2 * NANO]), cut=draw.random() < 0.5)
        at_once, calls = draw.choice([1, 3, 20]), draw.randint(5, 30)
        while calls or day.live:
            if calls and len(day.live) < at_once:
                calls -= 1
                day.begin(draw.choice([agents, anybodys])(draw))
            elif day.live:
                one = draw.choice(day.live)
                if not one.job.streamed or not day.goes_on(one, draw.choice([64, 256, 2_000])):
                    written = one.seen if one.job.streamed else one.job.written
                    day.end(one, written)
            else:
                break
        assert day.spent <= day.limit + day.beyond, mix
        assert sum(used for _, used, _ in meters(world)) == day.spent, mix
