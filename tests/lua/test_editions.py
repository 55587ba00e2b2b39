"""Gateways of two editions of the time zones: no window forgets a use before its end, none stays open, nothing is carried twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budget_balances import BudgetBalance, compute_balance
from gateway.core.accounts.budgets import Budget, account_of, define_windows
from gateway.core.accounts.intervals import DAY, MONTH, window_bounds
from gateway.core.accounts.windows import Carry
from gateway.core.integrity.reconciliation import (
    StoredBudgets,
    as_they_should_be,
    collect_use,
    waiting_in,
)
from gateway.core.model import BudgetAccount, SettleResult, Verdict
from gateway.core.times import DAY_MS, HOUR_MS, MINUTE_MS, moment_of, ms_of
from gateway.counters.keeper.budget_accounts import _packed
from gateway.counters.layouts.packing import live_windows
from gateway.counters.layouts.states import WindowState
from gateway.counters.redis import keys
from tests.lua.clocks import ClockWorld
from tests.search import examples

# Zones whose law is another one since 2026, each with a zone that keeps the law it had; and a change of clocks that one law has.
LAWS = (
    ("America/Vancouver", "America/Los_Angeles"), ("Canada/Pacific", "America/Los_Angeles"),
    ("America/Edmonton", "America/Denver"), ("America/Yellowknife", "America/Denver"), ("Canada/Mountain", "America/Denver"),
    ("America/Inuvik", "America/Denver"), ("America/Winnipeg", "America/Chicago"), ("Canada/Central", "America/Chicago"),
    ("America/Rainy_River", "America/Chicago"), ("America/Havana", "America/New_York"), ("Cuba", "America/New_York"),
    ("Africa/Casablanca", "Africa/Lagos"), ("Africa/El_Aaiun", "Africa/Lagos"), ("Europe/Berlin", "Africa/Lagos"),
)  # fmt: skip
LIMIT = 10**6
PLAIN = Budget(1, "plain", "tokens", LIMIT, DAY)
CARRIES = Budget(2, "carries", "tokens", LIMIT, DAY, carry=Carry(10**12, debt=True), changed_ms=1)
NAME = account_of(1, PLAIN)


class EditionsWorld(ClockWorld):
    """An account whose gateways know the zone by one of two laws."""

    def __init__(self, url: str, at_ms: int, laws: tuple[str, str], interval: str = DAY) -> None:
        redis.Redis.from_url(url).flushdb()
        super().__init__(url, at_ms)
        self.plan(None)
        self.laws, self.interval = laws, interval
        self.uses: list[tuple[int, int]] = []

    def use(
        self, law: int, amount: int, ahead_ms: int = 0, budgets: tuple[Budget, ...] = (PLAIN, CARRIES)
    ) -> list[WindowState]:
        """Have a call use an amount at a gateway of a law, whose clock may be ahead; return the windows."""
        defined = define_windows(self.by_law(law, budgets), self.at_ms + ahead_ms)
        account = BudgetAccount(NAME, defined, enforced=True)
        call = self.reserve(budgets=(account,), budget_tokens=amount)
        assert call.verdict is Verdict.ADMITTED
        assert call.settle(budget_tokens=amount) is SettleResult.DONE
        self.uses.append((self.at_ms, amount))
        return self.windows(NAME)

    def rebuilds(self, law: int) -> list[WindowState]:
        """Lose the account, and have it again from what entries tell, by a keeper of a law; return the windows."""
        budgets = self.by_law(law)
        told = waiting_in([fields[b"e"] for _, fields in self.entries(keys.outbox(self.p))], budgets)
        self.client.delete(keys.budget_account(self.p, NAME))
        known = collect_use(budgets, StoredBudgets(b"", {}), told, self.at_ms)
        for account in as_they_should_be(1, budgets, known):
            self.client.set(keys.budget_account(self.p, account.name), _packed(account, {}, self.at_ms, 0, 0))
        return self.windows(NAME)

    def by_law(self, law: int, budgets: tuple[Budget, ...] = (PLAIN, CARRIES)) -> list[Budget]:
        return [replace(budget, interval=self.interval, time_zone=self.laws[law]) for budget in budgets]

    def shown(self, law: int) -> list[BudgetBalance]:
        """Return what the pages of a law show."""
        live = live_windows(self.get(keys.budget_account(self.p, NAME)))
        return [compute_balance(budget, self.at_ms, None, live) for budget in self.by_law(law)]

    def bounds(self, law: int, at_ms: int) -> tuple[int, int]:
        return window_bounds(self.interval, self.laws[law], 1, at_ms)[:2]

    def is_over(self, law: int, start_ms: int) -> bool:
        """Return whether a window that began then is over by the length that its interval has by a law."""
        start, end = self.bounds(law, start_ms + 12 * HOUR_MS)
        return start_ms + end - start <= self.at_ms

    def used_since(self, start_ms: int) -> int:
        return sum(amount for at, amount in self.uses if at >= start_ms)


def number(interval: str, start_ms: int) -> int:
    """Return the day or month that begins then somewhere: at noon of UTC all these zones have the date of their midnight."""
    noon = moment_of(start_ms) + timedelta(hours=12)
    return noon.toordinal() if interval == DAY else noon.year * 12 + noon.month


def near_ends() -> st.SearchStrategy[list[tuple[int, int, int, int, int]]]:
    """Calls around three ends: which one, by how many minutes, of which law, what it uses, and whose keeper rebuilds then (2: none)."""
    minutes = st.one_of(
        st.integers(-150, 150), st.sampled_from([-61, -60, -1, 0, 1, 59, 60]), st.integers(-900, 900)
    )
    calls = st.tuples(
        st.integers(0, 3), minutes, st.integers(0, 1), st.integers(1, 50), st.sampled_from([2, 2, 0, 1])
    )
    return st.lists(calls, min_size=3, max_size=16)


WINTER, SPRING, AUTUMN = (
    datetime(2096, 12, 3, tzinfo=UTC),
    datetime(2097, 3, 9, tzinfo=UTC),
    datetime(2097, 11, 2, tzinfo=UTC),
)


@settings(max_examples=examples(100), deadline=None)
@given(
    laws=st.sampled_from([*LAWS, *(pair[::-1] for pair in LAWS)]),
    interval=st.sampled_from([DAY, DAY, MONTH]),
    begin=st.one_of(
        st.sampled_from([WINTER, SPRING, SPRING + timedelta(21), AUTUMN, AUTUMN - timedelta(7)]),
        st.integers(0, 730).map(lambda days: datetime(2096, 1, 1, tzinfo=UTC) + timedelta(days)),
    ),
    calls=near_ends(),
)  # fmt: skip
@example(LAWS[-3], DAY, WINTER, [(at, 5, law, 7, 2) for at in range(4) for law in (1, 0)])
@example(LAWS[-3], DAY, WINTER, [(0, 5, 1, 3, 2), (1, -30, 0, 5, 2), (1, 30, 0, 7, 2), (2, 30, 0, 9, 2)])
@example(LAWS[0][::-1], MONTH, WINTER, [(at, 5, law, 7, 2) for at in range(4) for law in (0, 1)])
@example(LAWS[0], DAY, WINTER, [(0, 5, 1, 3, 0), (0, 90, 0, 5, 1), (0, 600, 1, 7, 0)])
@example(LAWS[0], DAY, WINTER, [(0, 90, 0, 3, 1), (1, -30, 1, 5, 1), (1, 30, 0, 7, 1)])
@example(LAWS[-3], MONTH, WINTER, [(0, 5, law, 3, 1 - law) for law in (0, 1)])
def test_window_of_two_editions_keeps_its_uses_until_its_end(
    valkey: str,
    laws: tuple[str, str],
    interval: str,
    begin: datetime,
    calls: list[tuple[int, int, int, int, int]],
) -> None:
    """A loss changes no window of the account, whichever edition its keeper has."""
    ends = [window_bounds(interval, laws[0], 1, ms_of(begin))[0]]
    for _ in range(3):
        ends.append(window_bounds(interval, laws[0], 1, ends[-1])[1])
    moments = sorted((ends[end] + minutes * MINUTE_MS, *rest) for end, minutes, *rest in calls)
    world = EditionsWorld(valkey, moments[0][0], laws, interval)
    before: list[WindowState] = []
    first = 0
    for at, law, amount, keeper in moments:
        world.set_clock(at)
        windows = world.use(law, amount)
        first = first or windows[0].start
        begins, longest = (
            world.bounds(law, at)[0],
            max(end - start for start, end in (world.bounds(own, at) for own in (0, 1))),
        )
        for window, had in zip(windows, before or windows, strict=True):
            assert window.start <= at < window.next <= window.start + longest + 2 * HOUR_MS
            assert window.used == world.used_since(window.start)
            if had.next > at:
                assert window.start == had.start
                assert window.next == had.next or begins == had.start
            elif window.carry is None or number(interval, begins) > number(interval, had.start):
                assert window.start >= had.next or window.start == begins
        for shown, window in zip(world.shown(0), windows, strict=True):
            assert (shown.used, shown.resets_ms) == (window.used, window.next)
            if number(interval, world.bounds(0, at)[0]) == number(interval, window.start):
                assert shown.carried == (window.carried or 0)
        carries = windows[1]
        ended = number(interval, carries.start) - number(interval, first)
        assert carries.carried == ended * LIMIT - sum(amount for _, amount in world.uses) + carries.used
        if keeper < 2 and not any(world.is_over(keeper, window.start) for window in windows):
            again = world.rebuilds(keeper)
            for window, had in zip(again, windows, strict=True):
                assert (window.start, window.used, window.carried) == (had.start, had.used, had.carried)
                assert abs(window.next - had.next) <= 2 * HOUR_MS
            windows = again
        before = windows
    world.client.close()


@pytest.mark.parametrize("budget", [PLAIN, CARRIES])
def test_day_that_begins_anew_by_the_present_law_ends_by_that_law(valkey: str, budget: Budget) -> None:
    """Casablanca's clocks were an hour ahead until an edition of 2026: a day of that law ends at 23:00 of UTC, one of this at 24:00."""
    midnight = ms_of(datetime(2097, 1, 12, tzinfo=UTC))
    world = EditionsWorld(valkey, midnight - 12 * HOUR_MS, ("Africa/Abidjan", "Africa/Lagos"))
    former = world.use(1, 10, budgets=(budget,))[0]
    assert (former.start, former.next) == (midnight - 25 * HOUR_MS, midnight - HOUR_MS)
    for before_ms, used in ((11 * HOUR_MS, 15), (HOUR_MS + MINUTE_MS, 20)):
        world.set_clock(midnight - before_ms)
        kept = world.use(0, 5, budgets=(budget,))[0]
        assert (kept.start, kept.next, kept.used) == (former.start, former.next, used)
    world.set_clock(midnight)
    anew = world.use(0, 5, budgets=(budget,))[0]
    assert (anew.start, anew.next, anew.used) == (midnight, midnight + DAY_MS, 5)
    world.client.close()


def test_gateway_ahead_ends_no_window_of_another_edition(valkey: str) -> None:
    end = ms_of(datetime(2097, 1, 12, tzinfo=UTC))
    world = EditionsWorld(valkey, end - 12 * HOUR_MS, ("Africa/Abidjan", "Africa/Lagos"))
    kept = world.use(0, 10)
    world.set_clock(end - HOUR_MS - 10_000)
    ahead = world.use(1, 20, ahead_ms=30_000)
    assert [(window.start, window.next, window.used) for window in ahead] == [
        (window.start, end, 30) for window in kept
    ]
    world.set_clock(end - 60_000)
    assert [window.used for window in world.use(0, 1)] == [31, 31]
    world.client.close()
