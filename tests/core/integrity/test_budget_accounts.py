"""Accounts of budgets as they have to be: stored and waiting together, beside what the counters have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import Budget, PersonalRaise, account_of, define_windows
from gateway.core.accounts.outbox import EventKind, WindowKey
from gateway.core.accounts.runs import BUDGET_ID_MIN, ENDED_CALLS
from gateway.core.accounts.windows import EDITIONS_APART_MS
from gateway.core.integrity.reconciliation import (
    BudgetAccountUse,
    DifferenceKind,
    ReconciliationSummary,
    StoredBudgets,
    WaitingUses,
    as_they_should_be,
    collect_use,
    differences,
    differing,
    forgettable,
    waiting_in,
    windows_at,
)
from gateway.core.model import INTEGER_MAX
from tests.builders import encode
from tests.persistence.scenario import BLANK

NOW = 1_789_800_000_000
DAY = 1_789_776_000_000
A, B = "a" * 24, "b" * 24
PLAIN = Budget(1, "plain", "money", 100, "day")
TOKENS = Budget(2, "tokens", "tokens", 100, "total")
EACH = Budget(3, "each", "requests", 100, "day", each="session")
PREFIX = account_of(7, EACH).partition(":")[0]


def live(budget: int, start_ms: int, used: int) -> dict[int, LiveWindow]:
    """A window in the counters."""
    return {budget: LiveWindow(budget, used, 0, start_ms)}


def accounts(
    stored: dict[WindowKey, int], waiting: dict[WindowKey, int] | None = None, *there: str
) -> dict[str, BudgetAccountUse]:
    budgets = (PLAIN, TOKENS, EACH)
    known = collect_use(budgets, StoredBudgets(b"", stored), WaitingUses(waiting or {}), NOW)
    found = as_they_should_be(7, budgets, known, there)
    return {one.name: one for one in found}


def test_an_account_is_what_is_stored_and_what_waits() -> None:
    window = WindowKey(1, DAY)
    found = accounts({window: 5, WindowKey(1, DAY - 1): 99}, {window: 3, WindowKey(2, 0): 7})
    account = found[account_of(7, PLAIN)]
    assert account.windows == (window, WindowKey(2, 0))
    assert account.used == (8, 7)
    assert account.defined == define_windows((PLAIN, TOKENS), NOW)


def test_somebodys_account_is_there_where_anything_is_used_now() -> None:
    stored = {WindowKey(3, DAY, A): 5, WindowKey(3, 1, B): 9}
    found = accounts(stored, {WindowKey(3, DAY, B): 1}, f"{PREFIX}:other")
    assert {name: one.used for name, one in found.items() if ":" in name} == {
        f"{PREFIX}:{A}": (5,), f"{PREFIX}:{B}": (1,), f"{PREFIX}:other": (0,),
    }  # fmt: skip


def test_a_raised_owner_has_windows_of_its_own() -> None:
    raised = replace(EACH, raises={A: PersonalRaise(500, NOW + 1)})
    stored = {WindowKey(3, DAY, A): 5, WindowKey(3, DAY, B): 9}
    known = collect_use((raised,), StoredBudgets(b"", stored), WaitingUses(), NOW)
    found = {one.name: one.defined for one in as_they_should_be(7, (raised,), known)}
    assert found == {
        f"{PREFIX}:{A}": define_windows((replace(EACH, amount=500),), NOW), f"{PREFIX}:{B}": define_windows((EACH,), NOW),
    }  # fmt: skip


def test_what_is_given_back_leaves_nothing_below_0() -> None:
    assert accounts({WindowKey(1, DAY): 5}, {WindowKey(1, DAY): -9})[account_of(7, PLAIN)].used == (0, 0)


def test_entries_that_wait_count_in_each_budgets_unit() -> None:
    windows = (WindowKey(1, DAY), WindowKey(2, 0), WindowKey(3, DAY, A), WindowKey(9, DAY))
    entry = encode(replace(BLANK, money=5, raw_tokens=7, requests=1, budgets=windows))
    assert waiting_in([entry, b"broken", entry], (PLAIN, TOKENS, EACH)).used == {
        windows[0]: 10, windows[1]: 14, windows[2]: 2,
    }  # fmt: skip
    reset = encode(replace(BLANK, kind=int(EventKind.BUDGET), money=4, budgets=windows[:1]))
    assert waiting_in([entry, reset], (PLAIN,)).used == {windows[0]: 1}
    # another edition of the time zones may have begun the day earlier
    assert windows_at((PLAIN, TOKENS), NOW) == [WindowKey(1, DAY - EDITIONS_APART_MS), windows[1]]


def test_only_what_differs_is_told() -> None:
    name, total = account_of(7, PLAIN), live(2, 0, 0)
    known = accounts({WindowKey(1, DAY): 5, WindowKey(3, DAY, A): 2}).values()
    right = {name: live(1, DAY, 5) | total, f"{PREFIX}:{A}": live(3, DAY, 2)}
    assert (differing(known, right), list(differences(known, right))) == ([], [])
    for window, difference in (
        (live(1, DAY, 6), 1),
        (live(1, DAY, 3), -2),
        (live(1, DAY - 1, 9), -5),  # it has not rolled on
        ({}, -5),
    ):
        wrong = right | {name: window | total}
        [item] = differences(known, wrong)
        assert (item.account, item.difference) == ("budget:1", difference)
        assert [one.name for one in differing(known, wrong)] == [name]
        assert bool(differing(known, wrong, less_only=True)) is (difference < 0)
    assert differing(known, right | {name: live(1, DAY + 1, 0) | total}) == []


def test_both_sides_count_to_the_largest_exact_number() -> None:
    name = account_of(7, PLAIN)
    known = accounts({WindowKey(1, DAY): INTEGER_MAX}, {WindowKey(1, DAY): 5}).values()
    full = {name: live(1, DAY, INTEGER_MAX) | live(2, 0, 0)}
    assert differing(known, full) == []
    [item] = differences(known, full)
    assert (item.account, item.kind, item.difference) == ("budget:1", DifferenceKind.FULL, 0)
    assert ReconciliationSummary(1, 0, (item,)).faults == ()
    [item] = differences(known, {name: live(1, DAY, 5) | live(2, 0, 0)})
    assert item.kind is DifferenceKind.DRIFT


@pytest.mark.parametrize(
    ("budget_id", "kind"),
    [
        (1, DifferenceKind.DRIFT),
        (BUDGET_ID_MIN, DifferenceKind.FULL),
        (BUDGET_ID_MIN + 1, DifferenceKind.DRIFT),
    ],
)
def test_only_the_calls_of_a_run_that_has_ended_may_be_full_before_their_time(
    budget_id: int, kind: DifferenceKind
) -> None:
    window = WindowKey(budget_id, DAY)
    known = [BudgetAccountUse("it", b"", (window,), (ENDED_CALLS + 3,))]
    full = {"it": live(budget_id, DAY, INTEGER_MAX)}
    [item] = differences(known, full)
    assert item.kind is kind
    assert bool(differing(known, full)) is (kind is DifferenceKind.DRIFT)


def test_accounts_of_sessions_without_an_end_may_be_forgotten() -> None:
    known = accounts({WindowKey(3, DAY, A): 2}).values()
    assert [item.account for item in differences(known, {})] == [f"budget:3:{A}"]
    assert forgettable((PLAIN, EACH, replace(EACH, id=4, interval="total", each="user"))) == frozenset()
    assert list(differences(known, {}, forgettable((PLAIN, replace(EACH, interval="total"))))) == []
