"""Whatever amounts change to and when, scripts, pages and a rebuild carry what a list of the intervals comes to.

The list has the amounts by the time of each change. Where nobody can know that of an ended interval without calls,
less is carried, never more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budget_balances import StoredUse, compute_balance
from gateway.core.accounts.budgets import Budget, PersonalOverride, account_of, define_windows, owner_of
from gateway.core.accounts.windows import Carry
from gateway.core.integrity.reconciliation import StoredBudgets, as_they_should_be, collect_use, waiting_in
from gateway.core.model import BudgetAccount, SettleResult, Verdict
from gateway.core.times import HOUR_MS
from gateway.counters.keeper.budget_accounts import _packed
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from tests.lua.clocks import ClockWorld
from tests.search import examples

BEGIN = 4_102_488_000_000 // HOUR_MS * HOUR_MS
OWNER, GROUP = owner_of("ann"), 9
LARGE = 10**14


class CarryWorld(ClockWorld):
    """One owner of a budget of an amount an hour, in one group."""

    def __init__(self, url: str, *, unit: str = "tokens", amount: int = 100, most: int = 1000) -> None:
        redis.Redis.from_url(url).flushdb()
        super().__init__(url, BEGIN)
        self.plan(None)
        self.budget = Budget(
            1, "carries", unit, amount, "hour", each="user", carry=Carry(most), changed_ms=BEGIN - 1
        )
        self.name = account_of(1, self.budget, "ann")

    def passes(self, ms: int) -> None:
        self.set_clock(self.at_ms + ms)

    def change(self, **fields: Any) -> None:
        self.budget = replace(self.budget, changed_ms=self.at_ms, **fields)

    def overrides(self, who: str, amount: int | None, until_ms: int = 0) -> None:
        self.change(overrides={**self.budget.overrides, who: PersonalOverride(amount, until_ms)})

    def uses(self, amount: int, ahead_ms: int = 0) -> int:
        """Have a call use an amount, whatever is left, by a gateway's clock; return what is carried then."""
        defined = define_windows([self.budget], self.at_ms + ahead_ms, OWNER, (GROUP,))
        is_money = self.budget.unit == "money"
        call = self.reserve(budgets=(BudgetAccount(self.name, defined, enforced=True),))
        assert call.verdict is Verdict.ADMITTED
        done = call.settle(money=amount * is_money, budget_tokens=amount * (not is_money))
        assert done is SettleResult.DONE
        return self.shown()

    def shown(self) -> int:
        """Return what the pages show as carried."""
        packed = self.get(keys.budget_account(self.p, self.name))
        live = live_windows(packed) if packed else None
        return compute_balance(self.budget, self.at_ms, None, live, OWNER, groups=(GROUP,)).carried

    def stored(self) -> StoredUse:
        """Return what entries tell of the account."""
        waiting = waiting_in(self.told(), [self.budget])
        uses = {key.start_ms: used for key, used in waiting.used.items()}
        told = waiting.carried.get(max(waiting.carried)) if waiting.carried else None
        return StoredUse(uses, None if told is None else told.amount, None if told is None else told.at_end)

    def rebuilds(self) -> None:
        """Lose the account, and have it again by what entries tell."""
        waiting = waiting_in(self.told(), [self.budget])
        known = collect_use([self.budget], StoredBudgets(b"", {}), waiting, self.at_ms)
        for account in as_they_should_be(1, [self.budget], known):
            self.client.set(keys.budget_account(self.p, account.name), _packed(account, {}, self.at_ms, 0, 0))

    def told(self) -> list[bytes]:
        return [fields[b"e"] for _, fields in self.entries(keys.outbox(self.p))]


@pytest.fixture
def world(valkey: str) -> Iterator[CarryWorld]:
    made = CarryWorld(valkey)
    yield made
    made.client.close()


def test_amount_changed_before_the_end_is_left_by_the_interval_and_by_later_intervals(
    world: CarryWorld,
) -> None:
    world.uses(5)
    world.passes(60_000)
    world.change(amount=10)
    world.passes(3 * HOUR_MS - 60_000)
    assert world.shown() == world.uses(1) == 25


@pytest.mark.parametrize(("amount", "right"), [(30_000, 95), (10, 95)])
def test_amount_changed_after_the_end_leaves_earlier_intervals_alone(
    world: CarryWorld, amount: int, right: int
) -> None:
    world.uses(5)
    world.passes(HOUR_MS)
    world.change(amount=amount)
    assert world.shown() == right
    world.rebuilds()
    assert world.shown() == world.uses(1) == right


def test_override_until_the_end_of_an_interval_is_left_by_the_interval(world: CarryWorld) -> None:
    world.change(carry=Carry(5_000))
    world.overrides(OWNER, 900, BEGIN + HOUR_MS)
    world.uses(5)
    world.passes(3 * HOUR_MS)
    assert world.shown() == world.uses(1) == 1095


def test_override_after_the_end_leaves_earlier_intervals_alone(world: CarryWorld) -> None:
    world.uses(5)
    world.passes(HOUR_MS)
    world.overrides(OWNER, 900)
    assert world.shown() == world.uses(1) == 95


def test_rebuilt_account_carries_by_the_override_of_a_group(world: CarryWorld) -> None:
    world.overrides(f"group:{GROUP}", 70)
    world.uses(50)
    world.passes(HOUR_MS)
    world.rebuilds()
    assert world.shown() == 20
    world.passes(HOUR_MS)
    assert world.uses(1) == 90


@pytest.mark.parametrize(("hours", "right"), [(1, 5), (2, 15), (5, 45)])
def test_call_that_ends_in_a_later_interval_carries_no_more_than_the_changed_amount(
    world: CarryWorld, hours: int, right: int
) -> None:
    here = BudgetAccount(world.name, define_windows([world.budget], world.at_ms, OWNER), enforced=True)
    world.uses(5)
    call = world.reserve(budgets=(here,))
    world.change(amount=10)
    world.passes(hours * HOUR_MS)
    call.settle(budget_tokens=1)
    assert world.shown() == world.uses(1) == right
    assert world.stored().carried == right


def test_gateway_without_a_raised_amount_leaves_the_carried_amount(
    world: CarryWorld,
) -> None:
    world.change(amount=10, carry=Carry(1000, debt=True))
    before = world.budget
    world.uses(5)
    world.passes(HOUR_MS)
    world.change(amount=100)
    raised = world.budget
    carried = [world.uses(1)]
    for known in (before, raised):
        world.budget = known
        carried.append(world.uses(1))
    assert carried == [5, 5, 5]
    world.passes(HOUR_MS)
    assert world.shown() == world.uses(1) == 102


def test_call_of_many_hours_counts_in_the_hour_of_its_end(world: CarryWorld) -> None:
    here = BudgetAccount(world.name, define_windows([world.budget], world.at_ms, OWNER), enforced=True)
    world.uses(5)
    call = world.reserve(budgets=(here,))
    world.passes(5 * HOUR_MS)
    call.settle(budget_tokens=70)
    assert world.uses(1) == 495
    assert world.stored().uses == {BEGIN: 5, BEGIN + 5 * HOUR_MS: 71}
    world.passes(HOUR_MS)
    assert world.shown() == world.uses(1) == 524


def test_interval_with_only_a_released_call_leaves_its_amount(world: CarryWorld) -> None:
    world.uses(100)
    world.passes(HOUR_MS)
    here = BudgetAccount(world.name, define_windows([world.budget], world.at_ms, OWNER), enforced=True)
    world.reserve(budgets=(here,), budget_tokens=5).release()
    world.passes(HOUR_MS)
    assert world.shown() == world.uses(1) == 100


@pytest.mark.parametrize(("hours", "right"), [(0, 94), (1, 99)])
def test_carry_that_is_set_later_counts_from_the_next_call_on(
    world: CarryWorld, hours: int, right: int
) -> None:
    world.change(carry=None)
    world.uses(5)
    world.change(carry=Carry(1000))
    world.passes(hours * HOUR_MS)
    assert world.shown() == world.uses(1) == 0
    world.passes(HOUR_MS)
    assert world.shown() == right
    world.rebuilds()
    assert world.shown() == world.uses(1) == right


def test_smaller_maximum_and_no_debt_count_from_the_next_call_on(world: CarryWorld) -> None:
    world.uses(5)
    world.passes(HOUR_MS)
    assert world.uses(0) == 95
    world.change(carry=Carry(30, debt=True))
    assert world.shown() == world.uses(190) == 30
    world.passes(HOUR_MS)
    assert world.uses(1) == -60
    world.change(carry=Carry(30))
    assert world.shown() == world.uses(1) == world.stored().carried == 0


@pytest.mark.parametrize("ahead_ms", [-HOUR_MS, 60_000, HOUR_MS, 2 * HOUR_MS])
def test_carry_goes_by_the_intervals_of_redis_where_a_gateway_clock_is_off(
    world: CarryWorld, ahead_ms: int
) -> None:
    world.change(carry=Carry(150))
    world.passes(HOUR_MS - 30_000)
    carried = [world.uses(5, ahead_ms), world.shown(), world.uses(5)]
    for _ in range(2):
        world.passes(HOUR_MS)
        carried += [world.uses(70, ahead_ms), world.shown(), world.uses(70)]
    assert carried == [0, 0, 0, 90, 90, 90, 50, 50, 50]
    world.passes(3 * HOUR_MS)
    assert world.uses(1, ahead_ms) <= 150
    assert world.uses(1) == world.shown() == 150


def test_account_that_a_gateway_ahead_began_is_rebuilt_without_carry(world: CarryWorld) -> None:
    world.passes(HOUR_MS - 30_000)
    world.uses(5, 60_000)
    world.rebuilds()
    assert world.shown() == world.uses(5) == 0


@dataclass
class Ledger:
    """The intervals of an owner: what each used, and every amount with the time from which it was so."""

    versions: list[tuple[int, Budget]]
    hour: int = 0
    carried: Fraction = Fraction(0)
    used: dict[int, Fraction] = field(default_factory=dict)
    known: int = 0  # how many versions the last call knew

    def limit(self, hour: int) -> Fraction | None:
        """Return the amount in force at the end of an interval."""
        end = (hour + 1) * HOUR_MS - 1
        budget = [budget for at, budget in self.versions if at <= end][-1]
        amount = budget.limit_of(OWNER, end, (GROUP,)).amount
        return None if amount is None else Fraction(amount)

    def bounded(self, amount: Fraction | None) -> Fraction:
        carry = self.versions[-1][1].carry
        assert carry is not None
        if amount is None or amount > carry.max:
            return Fraction(carry.max)
        return amount if carry.debt or amount > 0 else Fraction(0)

    def at(self, hour: int) -> Fraction:
        """Return what an interval carries."""
        if not self.used:
            return Fraction(0)
        carried = self.bounded(self.carried) if hour == self.hour else self.carried
        for passing in range(self.hour, hour):
            limit = self.limit(passing)
            carried = self.bounded(None if limit is None else carried + limit - self.used.get(passing, 0))
        return carried

    def doubt(self, at_ms: int) -> str:
        """Return what a call may carry of ended intervals: `exact`, `less`, or `any` where nobody can know."""
        changes = self.versions[self.known :]
        now = at_ms // HOUR_MS
        between = {self.limit(hour) for hour in range(self.hour + 1, now)}
        present = self.versions[-1][1].limit_of(OWNER, at_ms, (GROUP,)).amount
        if not between <= {None if present is None else Fraction(present)} or self.ends(at_ms):
            return "any" if changes and self.ends(at_ms) else "less"
        return "exact"

    def ends(self, at_ms: int) -> bool:
        """Return whether an override ends in an interval from the last call's on to the present one."""
        return any(
            self.hour * HOUR_MS < override.until_ms <= (at_ms // HOUR_MS + 1) * HOUR_MS
            for _, budget in self.versions[max(0, self.known - 1) :]
            for override in budget.overrides.values()
        )


PASSES = st.one_of(st.integers(1, HOUR_MS), st.integers(0, 4).map(lambda hours: hours * HOUR_MS))
CHANGES = st.one_of(
    st.just(("none",)),
    st.tuples(st.just("amount"), st.integers(1, 150)),
    st.tuples(
        st.just("override"), st.sampled_from([OWNER, f"group:{GROUP}"]),
        st.one_of(st.none(), st.integers(0, 200)), st.sampled_from([0, 0, 0, 1, 2, 6]),
    ),
    st.tuples(st.just("carry"), st.sampled_from([0, 30, 500, 2_000]), st.booleans()),
)  # fmt: skip
# Each call with what came before it: time, a change, time again, and a loss.
ROUNDS = st.lists(
    st.tuples(PASSES, CHANGES, PASSES, st.booleans(), st.integers(1, 80)), min_size=4, max_size=12
)


@settings(max_examples=examples(150), deadline=None)
@given(rounds=ROUNDS, unit=st.sampled_from(["tokens", "money", "wide"]))
def test_history_of_changes_carries_the_rest_of_each_interval(
    valkey: str, rounds: list[tuple[int, tuple[Any, ...], int, bool, int]], unit: str
) -> None:
    size = LARGE if unit == "wide" else 1
    world = CarryWorld(
        valkey, unit="tokens" if unit == "tokens" else "money", amount=100 * size, most=500 * size
    )
    ledger = Ledger([(BEGIN - 1, world.budget)], BEGIN // HOUR_MS)
    for before, (change, *values), after, is_lost, amount in rounds:
        world.passes(before)
        if change == "amount":
            world.change(amount=values[0] * size)
        elif change == "override":
            limit, hours = None if values[1] is None else values[1] * size, values[2]
            world.overrides(values[0], limit, hours and (world.at_ms // HOUR_MS + hours) * HOUR_MS)
        elif change == "carry":
            world.change(carry=Carry(values[0] * size, values[1]))
        if change != "none":
            ledger.versions.append((world.at_ms, world.budget))
        world.passes(after + 1)
        hour, carried = world.at_ms // HOUR_MS, world.shown()
        right, doubt = ledger.at(hour), ledger.doubt(world.at_ms)
        assert carried == right or (doubt == "less" and carried < right) or doubt == "any", (
            carried,
            right,
            doubt,
        )
        if is_lost:
            world.rebuilds()
            again = world.shown()
            assert (
                again == carried
                or (world.budget.has_groups and again <= max(Fraction(carried), right))
                or doubt == "any"
            )
            carried = again
        assert world.uses(amount * size) == carried
        ledger.carried, ledger.hour, ledger.known = Fraction(carried), hour, len(ledger.versions)
        ledger.used[hour] = ledger.used.get(hour, Fraction(0)) + amount * size
        stored = compute_balance(world.budget, world.at_ms, world.stored(), None, OWNER, groups=(GROUP,))
        assert stored.carried == carried
    world.client.close()
