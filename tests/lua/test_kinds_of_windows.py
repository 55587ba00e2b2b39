"""Windows that roll, that begin at first use, and that carry over, call by call, with a clock that a test sets."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import redis

from gateway.core.accounts.budgets import (
    FLAG_MONEY,
    FLAG_TOKENS,
    Budget,
    account_of,
    define_windows,
)
from gateway.core.accounts.outbox import EventKind, WindowKey, money_moved
from gateway.core.accounts.windows import FIRST_USE, ROLLING, Carry
from gateway.core.layout import EARLIER
from gateway.core.model import BudgetAccount, Settlement, SettleResult, Verdict
from gateway.core.times import HOUR_MS
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import WindowState, pack_windows, unpack_windows
from gateway.counters.redis import keys
from tests.builders import CHAT, Call, new_id
from tests.lua.clocks import ClockWorld

# Noon of a day that real clocks have not reached: expiries are never in the past.
NOON = 4_102_488_000_000 // (24 * HOUR_MS) * 24 * HOUR_MS + 12 * HOUR_MS
LENGTH = 5 * HOUR_MS
PART = LENGTH // 30
ROLLS = Budget(1, "rolls", "money", 100, "", window=ROLLING, length_ms=LENGTH)
BEGINS = Budget(2, "begins", "money", 100, "", window=FIRST_USE, length_ms=LENGTH)
CARRIES = Budget(3, "carries", "money", 100, "hour", carry=Carry(150))
OWES = Budget(4, "owes", "money", 100, "hour", carry=Carry(150, debt=True))


@pytest.fixture
def world(valkey: str) -> Iterator[ClockWorld]:
    made = ClockWorld(valkey, NOON)
    made.plan(None)
    yield made
    made.client.close()


def call(world: ClockWorld, *budgets: Budget, money: int = 0, tokens: int = 0, value: str = "") -> Call:
    """Reserve for a call of these budgets, as its gateway defines them now."""
    name = account_of(1, budgets[0], value)
    here = BudgetAccount(name, define_windows(budgets, world.at_ms), enforced=True)
    return world.reserve(budgets=(here,), money=money, budget_tokens=tokens)


def state(world: ClockWorld, budget: Budget) -> WindowState:
    [window] = [each for each in world.windows(account_of(1, budget)) if each.budget_id == budget.id]
    return window


def used_and_held(world: ClockWorld, budget: Budget) -> tuple[int, int]:
    window = state(world, budget)
    return window.used, window.held


def test_a_rolling_use_counts_from_its_admission_for_the_length_and_a_part(world: ClockWorld) -> None:
    first = call(world, ROLLS, money=60)
    assert first.verdict is Verdict.ADMITTED
    world.set_clock(NOON + 3 * PART + 5)
    assert first.settle(money=60) is SettleResult.DONE
    assert state(world, ROLLS).parts == {NOON: 60}
    assert world.events()[-1].budgets == (WindowKey(1, NOON),)
    world.set_clock(NOON + LENGTH + PART - 1)
    refused = call(world, ROLLS, money=41)
    assert (refused.verdict, refused.decision.until_ms) == (Verdict.BUDGET_EXCEEDED, NOON + LENGTH + PART)
    world.set_clock(NOON + LENGTH + PART)
    assert call(world, ROLLS, money=100).verdict is Verdict.ADMITTED


def test_refusal_of_a_rolling_window_has_the_time_at_which_this_call_fits(
    world: ClockWorld,
) -> None:
    for at, money in enumerate((30, 20, 50)):
        world.set_clock(NOON + at * PART)
        call(world, ROLLS, money=money).settle(money=money)
    fits = {10: 0, 30: 0, 31: 1, 50: 1, 51: 2, 100: 2}
    for money, part in fits.items():
        refused = call(world, ROLLS, money=money).decision
        assert refused.verdict is Verdict.BUDGET_EXCEEDED
        assert refused.until_ms == NOON + part * PART + LENGTH + PART
    assert call(world, ROLLS, money=101).decision.until_ms == 0


def test_an_answer_says_when_the_tightest_rolling_windows_are_free_again(world: ClockWorld) -> None:
    tokens = Budget(5, "tokens", "tokens", 10, "", window=ROLLING, length_ms=2 * LENGTH)
    call(world, ROLLS, tokens, money=10, tokens=8).settle(money=10, budget_tokens=8)
    world.set_clock(NOON + PART)
    call(world, ROLLS, tokens, money=20, tokens=0).settle(money=20)
    frees = call(world, ROLLS, tokens, money=1).decision.frees
    assert [(free.budget_id, free.at_ms, free.amount, free.unit) for free in frees] == [
        (5, NOON + 2 * LENGTH + 2 * PART, 8, FLAG_TOKENS),
        (1, NOON + LENGTH + PART, 10, FLAG_MONEY),
    ]


def test_a_hold_of_a_rolling_window_counts_however_old(world: ClockWorld) -> None:
    old = call(world, ROLLS, money=70)
    world.set_clock(NOON + 10 * LENGTH)
    assert call(world, ROLLS, money=31).verdict is Verdict.QUOTA_HELD
    old.settle(money=70)  # its part is over
    assert used_and_held(world, ROLLS) == (0, 0)
    assert call(world, ROLLS, money=100).verdict is Verdict.ADMITTED


def test_a_use_counts_in_its_part_until_that_is_over(world: ClockWorld) -> None:
    first, second = call(world, ROLLS, money=10), call(world, ROLLS, money=20)
    world.set_clock(NOON + LENGTH + PART - 1)
    first.settle(money=10)
    assert used_and_held(world, ROLLS) == (10, 20)
    world.set_clock(NOON + LENGTH + PART)
    second.settle(money=20)
    assert used_and_held(world, ROLLS) == (0, 0)
    assert world.events()[-1].budgets == (WindowKey(1, NOON),)


def test_window_from_first_use_begins_with_the_first_call_that_takes_an_amount(world: ClockWorld) -> None:
    call(world, BEGINS, money=0).settle(money=0)
    assert state(world, BEGINS).start == 0
    world.set_clock(NOON + 1234)
    first = call(world, BEGINS, money=40)
    assert state(world, BEGINS).start == NOON + 1234
    world.set_clock(NOON + 2000)
    first.settle(money=40)
    assert world.events()[-1].budgets == (WindowKey(2, NOON + 1234),)
    world.set_clock(NOON + 1233 + LENGTH)
    refused = call(world, BEGINS, money=61)
    assert (refused.verdict, refused.decision.until_ms) == (Verdict.BUDGET_EXCEEDED, NOON + 1234 + LENGTH)
    late = call(world, BEGINS, money=60)
    world.set_clock(NOON + 7 * LENGTH)
    late.settle(money=50)
    assert (state(world, BEGINS).start, used_and_held(world, BEGINS)) == (NOON + 7 * LENGTH, (50, 0))


def test_interval_leaves_to_the_next_up_to_the_maximum(world: ClockWorld) -> None:
    call(world, CARRIES, money=30).settle(money=30)
    world.set_clock(NOON + HOUR_MS)
    assert call(world, CARRIES, money=171).verdict is Verdict.BUDGET_EXCEEDED
    call(world, CARRIES, money=170).settle(money=20)
    told = [event for event in world.events() if event.kind == EventKind.CARRY]
    assert [(money_moved(event), event.budgets) for event in told] == [
        (0, (WindowKey(3, NOON),)), (70, (WindowKey(3, NOON + HOUR_MS),)),
    ]  # fmt: skip
    window = state(world, CARRIES)
    assert (window.used, window.carry.carried, window.carry.told) == (20, 70, True)
    world.set_clock(NOON + 9 * HOUR_MS)
    allowed = call(world, CARRIES, money=250)
    assert allowed.verdict is Verdict.ADMITTED
    assert (allowed.decision.budget.limit, allowed.decision.budget.used) == (250, 250)


def test_debt_is_taken_off_until_amounts_have_covered_all(world: ClockWorld) -> None:
    call(world, OWES, money=100).settle(money=350)
    for hours, refused, fits in ((1, 1, 0), (2, 1, 0), (3, 51, 50), (4, 151, 150)):
        world.set_clock(NOON + hours * HOUR_MS)
        assert call(world, OWES, money=refused).verdict is Verdict.BUDGET_EXCEEDED
        if fits:
            call(world, OWES, money=fits).release()


def test_reset_leaves_carried_amounts_and_empties_each_part(world: ClockWorld) -> None:
    call(world, CARRIES, ROLLS, money=30).settle(money=30)
    world.set_clock(NOON + HOUR_MS)
    call(world, CARRIES, ROLLS, money=50).settle(money=50)
    for budget in (CARRIES, ROLLS):
        world.run("grant", packing.grant(
            world.run_id, "budget", budget.id, new_id(), tenant_id=7, organization_id=1,
            accounts=[account_of(1, budget)],
        ))  # fmt: skip
    assert (state(world, CARRIES).used, state(world, CARRIES).carry.carried) == (0, 70)
    assert (state(world, ROLLS).used, state(world, ROLLS).parts) == (0, {})
    resets = [(event.money, event.budgets) for event in world.events() if event.kind == EventKind.BUDGET]
    assert resets == [
        (50, (WindowKey(3, NOON + HOUR_MS),)), (30, (WindowKey(1, NOON),)), (50, (WindowKey(1, NOON + HOUR_MS),)),
    ]  # fmt: skip


@pytest.mark.parametrize("budget", [ROLLS, BEGINS, CARRIES], ids=lambda budget: budget.name)
def test_reserve_admits_of_five_hundred_calls_at_an_instant_as_many_as_fit(
    world: ClockWorld, budget: Budget
) -> None:
    call(world, budget, money=20).settle(money=20)
    world.set_clock(NOON + HOUR_MS)
    fits = {ROLLS.id: 26, BEGINS.id: 26, CARRIES.id: 60}[budget.id]  # of 80, 80, and 100 with 80 carried
    others = [ClockWorld(world.url, world.at_ms, made=True) for _ in range(8)]

    def calls(other: ClockWorld) -> int:
        admitted = [call(other, budget, money=3) for _ in range(500 // len(others) + 1)]
        return sum(each.verdict is Verdict.ADMITTED for each in admitted)

    with ThreadPoolExecutor(len(others)) as pool:
        assert sum(pool.map(calls, others)) == fits
    for other in others:
        other.client.close()
    assert used_and_held(world, budget)[1] == 3 * fits


def test_correction_counts_in_the_part_of_its_call(world: ClockWorld) -> None:
    made = call(world, ROLLS, money=30)
    world.set_clock(NOON + 2 * PART)
    made.reclaim(money=30)
    assert state(world, ROLLS).parts == {NOON: 30}
    world.set_clock(NOON + 4 * PART)
    made.correct(money=-12)
    assert (state(world, ROLLS).parts, used_and_held(world, ROLLS)) == ({NOON: 18}, (18, 0))
    assert world.events()[-1].budgets == (WindowKey(1, NOON),)


def test_a_late_settlement_without_a_hold_counts_as_of_the_time_in_its_id(world: ClockWorld) -> None:
    made = call(world, ROLLS, money=30)
    made.release()
    began = f"{NOON + PART:012x}"
    made.request.request_id = f"{began[:8]}-{began[8:]}-7{made.id[15:]}"
    world.set_clock(NOON + 4 * PART)
    made.post(money=30)
    assert state(world, ROLLS).parts == {NOON + PART: 30}


@pytest.mark.parametrize("used_at", [NOON - LENGTH, NOON - LENGTH + 1])
def test_a_use_from_elsewhere_begins_a_window_only_if_that_still_runs(
    world: ClockWorld, used_at: int
) -> None:
    made = call(world, BEGINS, money=0)
    definitions = (define_windows([BEGINS], NOON),)
    names = tuple(account.name for account in made.request.budgets)
    settlement = Settlement(world.caller, new_id(), "", CHAT, charge=True, budgets=names, money=25)
    made.release()
    packed = packing.settle(
        world.run_id, 0, settlement, packing.MODE_POST, b"%d" % used_at, definitions=definitions
    )
    world.run("settle", packed)
    began = used_at if used_at > NOON - LENGTH else 0
    assert (state(world, BEGINS).start, used_and_held(world, BEGINS)) == (began, (25 if began else 0, 0))


@pytest.mark.parametrize("budget", [ROLLS, BEGINS, CARRIES], ids=lambda budget: budget.name)
def test_partition_that_older_programs_read_refuses_new_kinds_of_windows(
    world: ClockWorld, budget: Budget
) -> None:
    world.client.set(keys.marker(world.p), packing.marker(world.run_id, 1, 1, EARLIER))
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="know no windows of this kind"):
        call(world, budget, money=1)
    assert world.everything() == before


def test_an_account_of_sixteen_windows_takes_so_many_bytes(world: ClockWorld) -> None:
    sizes = dict[str, int]()
    for budget in (replace(CARRIES, carry=None), CARRIES, ROLLS, BEGINS):
        sixteen = [replace(budget, id=place, tenant_id=budget.id) for place in range(1, 17)]
        call(world, *sixteen, money=1).settle(money=1)
        key = keys.budget_account(world.p, account_of(1, sixteen[0]))
        sizes[f"{budget.window} {budget.carry is not None}"] = len(world.get(key) or b"")
    assert sizes == {
        "calendar False": 938, "calendar True": 1850, "rolling False": 5034, "first_use False": 938,
    }  # fmt: skip


@pytest.mark.parametrize("budget", [ROLLS, BEGINS], ids=lambda budget: budget.name)
def test_clock_stepped_forward_and_back_admits_no_more_than_the_amount(
    world: ClockWorld, budget: Budget
) -> None:
    call(world, budget, money=100).settle(money=100)
    world.set_clock(NOON + 2 * LENGTH)
    call(world, budget, money=1).settle(money=1)
    world.set_clock(NOON + 1000)
    admitted = 0
    for _ in range(50):
        made = call(world, budget, money=9)
        if made.verdict is Verdict.ADMITTED:
            admitted += 9
            made.settle(money=9)
    assert admitted == 99


def test_ended_interval_stays_ended_where_a_gateway_ahead_calls_next(world: ClockWorld) -> None:
    hourly = replace(CARRIES, carry=None)
    call(world, hourly, money=50).settle(money=50)
    world.set_clock(NOON + HOUR_MS + 1)
    ahead = BudgetAccount(account_of(1, hourly), define_windows([hourly], NOON + 2 * HOUR_MS), enforced=True)
    world.reserve(budgets=(ahead,), money=90).settle(money=90)
    assert world.events()[-1].budgets == (WindowKey(hourly.id, NOON + HOUR_MS),)
    assert call(world, hourly, money=11).verdict is Verdict.BUDGET_EXCEEDED


@pytest.mark.parametrize("hours", [1, 2, 3, 9])
def test_use_settled_hours_late_counts_in_the_hour_of_its_settlement(world: ClockWorld, hours: int) -> None:
    hourly = replace(CARRIES, carry=None)
    long, longer = call(world, hourly, money=50), call(world, hourly, money=50)
    world.set_clock(NOON + hours * HOUR_MS + 1)
    long.settle(money=30)
    world.set_clock(NOON + 2 * hours * HOUR_MS)
    longer.settle(money=90)
    assert [event.budgets for event in world.events()[-2:]] == [
        (WindowKey(hourly.id, NOON + hours * HOUR_MS),), (WindowKey(hourly.id, NOON + 2 * hours * HOUR_MS),)
    ]  # fmt: skip
    assert call(world, hourly, money=11).verdict is Verdict.BUDGET_EXCEEDED
    assert call(world, hourly, money=10).verdict is Verdict.ADMITTED


def test_rebuilt_window_that_is_ahead_of_the_clock_has_older_uses_in_its_oldest_part(
    world: ClockWorld,
) -> None:
    call(world, ROLLS, money=1).settle(money=1)
    window = state(world, ROLLS)
    window.put_uses({NOON - PART: 5, NOON: 10, NOON + LENGTH: 1}, NOON)
    [again] = unpack_windows(pack_windows([window]))
    assert (again.used, again.parts) == (16, {NOON: 15, NOON + LENGTH: 1})


def test_older_definition_ends_an_interval_of_unknown_end(world: ClockWorld) -> None:
    hourly = replace(CARRIES, carry=None)
    call(world, hourly, money=50).settle(money=50)
    world.set_clock(NOON + 3 * HOUR_MS)
    behind = BudgetAccount(account_of(1, hourly), define_windows([hourly], NOON + HOUR_MS), enforced=True)
    world.reserve(budgets=(behind,), money=90).settle(money=90)
    assert world.events()[-1].budgets == (WindowKey(hourly.id, NOON + 3 * HOUR_MS),)
    assert call(world, hourly, money=11).verdict is Verdict.BUDGET_EXCEEDED
