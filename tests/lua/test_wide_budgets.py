"""Windows of money beyond 2^53 billionths: counted in two numbers, to the billionth."""

from __future__ import annotations

import random

import pytest

from gateway.core.accounts.budgets import FLAG_MONEY, packed_limit
from gateway.core.accounts.outbox import money_moved, sign_of
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import INTEGER_MAX, BudgetAccount, BudgetWindow, HoldExtension, SettleResult, Verdict
from gateway.counters.layouts import packing
from tests.builders import Call, World, new_id
from tests.lua.windows import NAME, account, window
from tests.search import another, examples

NANO = 10**9
# 10^15 of the smallest unit, which is so many billionths: of dongs, of cents, of thousandths.
LARGE = [10**15 * step for step in (10**9, 10**7, 10**6)]
BORDER = [INTEGER_MAX, 9_007_199 * NANO, 9_007_200 * NANO, 9_007_200 * NANO + 10**6, 8_999_999_999_999_999]
STEPS = 60


@pytest.fixture(autouse=True)
def plan(world: World) -> None:
    world.plan(None)


class Story:
    """An account of two windows of money, one that enforces and one that counts; with a count in Python."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.limit, self.audited = chance.choice(LARGE + BORDER), chance.choice([1, 10**9, *LARGE])
        self.used, self.held, self.counted = 0, 0, 0
        self.live: list[tuple[Call, int]] = []

    @property
    def here(self) -> BudgetAccount:
        return account(
            window(1, self.limit),
            window(2, self.audited, enforce=False),
            window(3, 9, "tokens", enforce=False),
        )

    def amount(self) -> int:
        some = self.chance.choice([1, NANO - 1, NANO, 2_500_000_000, 10**15, INTEGER_MAX])
        return self.chance.randint(0, some)

    def play(self) -> None:
        self.chance.choice([
            self.reserve, self.reserve, self.reserve, self.settle, self.settle, self.release, self.change,
            self.reset, self.take, self.fill, self.correct, self.rebuild,
        ])()  # fmt: skip
        first, second, tokens = self.world.windows(NAME) or (None, None, None)
        if first and second and tokens:
            assert (first.used, first.held, second.used, tokens.used) == (
                self.used,
                self.held,
                self.counted,
                0,
            )

    def reserve(self) -> None:
        need, free = self.amount(), self.limit - self.used - self.held
        if self.chance.random() < 0.5:  # about what is free
            need = max(0, min(INTEGER_MAX, free + self.chance.randint(-2, 2)))
        call = self.world.reserve(budgets=(self.here,), money=need)
        told = BudgetWindow(1, self.limit, self.used, 0, FLAG_MONEY)
        if need == 0 or need <= free:
            assert call.verdict is Verdict.ADMITTED
            self.held += need
            told.used += self.held
            self.live.append((call, need))
        else:
            assert call.verdict is (
                Verdict.QUOTA_HELD if need <= self.limit - self.used else Verdict.BUDGET_EXCEEDED
            )
            told.held, told.need = self.held, need
        found = call.decision.budget
        assert found is not None
        if told.used > INTEGER_MAX >= self.limit:  # one number says used and held of one that is not wide
            assert abs(found.used - told.used) <= 1
            told.used = found.used
        assert found == told

    def settle(self) -> None:
        if self.live:
            call, need = self.live.pop(self.chance.randrange(len(self.live)))
            money = self.chance.choice([need, self.amount()])
            assert call.settle(money=money) is SettleResult.DONE
            self.held, self.used, self.counted = self.held - need, self.used + money, self.counted + money

    def release(self) -> None:
        if self.live:
            call, need = self.live.pop()
            assert call.release() is SettleResult.DONE
            self.held -= need

    def correct(self) -> None:
        call, money = self.world.reserve(budgets=(self.here,)), -min(self.amount(), self.used)
        call.correct(money=money)
        self.used, self.counted = self.used + money, self.counted + money

    def change(self) -> None:
        near = max(1, min(self.used + self.amount(), INTEGER_MAX))
        self.limit = self.chance.choice([*LARGE, *BORDER, near])
        self.audited = self.chance.choice([1, near, *LARGE])
        self.reserve()  # the scripts hear of it by the next call

    def reset(self) -> None:
        call = packing.grant(
            self.world.run_id, "budget", 1, new_id(), tenant_id=0,
            organization_id=self.world.caller.organization_id, accounts=[NAME],
        )  # fmt: skip
        self.world.run("grant", call)
        if self.used:
            entry = self.world.events()[-1]
            assert (money_moved(entry), entry.raw_tokens, entry.requests) == (self.used, 0, 0)
        self.used = 0

    def take(self) -> None:
        """A part is taken off, no more than is used, or added, as far as one number counts."""
        amount = self.chance.choice([self.amount(), -min(self.amount(), max(0, INTEGER_MAX - self.used))])
        call = packing.grant(
            self.world.run_id, "budget", 1, new_id(), tenant_id=0,
            organization_id=self.world.caller.organization_id, accounts=[NAME], parts=[(0, amount)],
        )  # fmt: skip
        self.world.run("grant", call)
        if not self.world.windows(NAME):
            return
        taken = min(amount, self.used)
        if taken:
            assert money_moved(self.world.events()[-1]) == taken
        self.used -= taken

    def fill(self) -> None:
        """So much was used before: a rebuild says it, and calls of years."""
        windows = self.world.windows(NAME)
        if windows:
            self.used = self.counted = max(0, self.limit - self.amount())
            windows[0].used = windows[1].used = self.used
            self.world.put_windows(NAME, windows)

    def rebuild(self) -> None:
        if windows := self.world.windows(NAME):
            self.world.put_windows(NAME, windows)


@pytest.mark.parametrize("seed", range(examples(100)))
def test_whatever_calls_changes_and_resets_do_each_billionth_is_counted_once(world: World, seed: int) -> None:
    story = Story(world, random.Random(another(seed)))
    for _ in range(STEPS):
        story.play()
    for call, _ in story.live:
        call.release()
    assert [one.held for one in world.windows(NAME)] == [0, 0, 0]


def test_small_calls_do_not_drift_and_entries_say_what_the_window_counts(world: World) -> None:
    here = account(window(1, LARGE[0]))
    world.reserve(budgets=(here,), money=1).settle(money=INTEGER_MAX)
    for _ in range(9):
        world.reserve(budgets=(here,), money=2_500_000_001).settle(money=2_500_000_001)
    [one] = world.windows(NAME)
    assert (one.used, one.held, one.limit) == (INTEGER_MAX + 9 * 2_500_000_001, 0, LARGE[0])
    assert sum(sign_of(entry) * money_moved(entry) for entry in world.events() if entry.budgets) == one.used


def test_a_stream_takes_more_of_a_wide_window_as_far_as_it_is_free(world: World) -> None:
    here = account(window(1, LARGE[1], cut=True))
    call = world.reserve(need=5, budgets=(here,), money=10)
    windows = world.windows(NAME)
    windows[0].used = LARGE[1] - 100
    world.put_windows(NAME, windows)
    rate = TokenRate(0, 10**6, 10**6, in_money=True)
    live = HoldExtension(world.caller, call.id, 0, 30, budgets=(NAME,), money_rate=rate)
    [found] = world.kept([(live, 200)])
    assert (found[2], found[3]) == (2, 100)
    assert world.windows(NAME)[0].held == 100
    call.settle(money=100)
    [one] = world.windows(NAME)
    assert (one.used, one.held) == (LARGE[1], 0)
    spent = world.reserve(budgets=(here,), money=1)
    assert spent.verdict is Verdict.BUDGET_EXCEEDED


def test_limits_travel_exactly_and_one_that_no_step_divides_is_rounded_down() -> None:
    for limit in (*LARGE, *BORDER[:3]):
        said, flags = packed_limit(limit, FLAG_MONEY)
        assert said == int(float(said)) <= INTEGER_MAX
        assert (flags == FLAG_MONEY) == (limit <= INTEGER_MAX)
    assert packed_limit(LARGE[0] + 1, FLAG_MONEY) == packed_limit(LARGE[0], FLAG_MONEY)


@pytest.mark.parametrize("left", [1, 5, 10])
def test_uses_pass_the_largest_integer_by_a_little(world: World, left: int) -> None:
    """Money goes on in two numbers; tokens end there."""
    here = account(window(1, 1, enforce=False), window(2, 1, "tokens", enforce=False))
    for amount in (INTEGER_MAX - left, 11):
        call = world.reserve(budgets=(here,), money=1, budget_tokens=1)
        assert call.settle(money=amount, budget_tokens=amount) is SettleResult.DONE
    assert [one.used for one in world.windows(NAME)] == [INTEGER_MAX - left + 11, INTEGER_MAX]
