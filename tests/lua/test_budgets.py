"""Budgets in the scripts: what is held of them, who is refused, what counts, and what an entry says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_REQUESTS, FLAG_TOKENS, WINDOWS_MAX
from gateway.core.accounts.outbox import WindowKey
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import (
    BudgetWindow,
    HoldExtension,
    LimitKind,
    Limits,
    Refused,
    Scope,
    SettleResult,
    Verdict,
)
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.accounts import WINDOW_GONE
from gateway.counters.layouts.states import pack_windows
from gateway.counters.redis import keys
from tests.builders import Call, World
from tests.lua.windows import EVER, NAME, OTHER_NAME, account, window
from tests.older_layouts import stored_before

HOUR = 3_600_000


@pytest.fixture(autouse=True)
def plan(world: World) -> None:
    world.plan(None)


def meters(world: World, name: str = NAME) -> list[tuple[int, int, int]]:
    """Of each window its budget, what is used and held."""
    return [(one.budget_id, one.used, one.held) for one in world.windows(name)]


def hour_of(world: World) -> tuple[int, int, int]:
    start = world.now_ms() // HOUR * HOUR
    return start, start + HOUR, start + 2 * HOUR


# --- what is held and counted -----------------------------------------------------------------


def test_a_call_holds_in_every_window_by_its_unit_and_counts_there_what_it_used(world: World) -> None:
    at = hour_of(world)
    here = account(window(1, 100, at=at), window(2, 900, "tokens"), window(3, 9, "requests", enforce=False))
    call = world.reserve(need=5, budgets=(here,), money=40, budget_tokens=7)
    assert call.verdict is Verdict.ADMITTED
    assert (call.decision.money_held, call.decision.budget_tokens_held) == (40, 7)
    assert call.decision.budget == BudgetWindow(1, 100, 40, at[1], FLAG_MONEY)
    assert meters(world) == [(1, 0, 40), (2, 0, 7), (3, 0, 1)]
    assert call.settle(tokens=5, money=33, budget_tokens=6) is SettleResult.DONE
    assert meters(world) == [(1, 33, 0), (2, 6, 0), (3, 1, 0)]
    entry = world.events()[-1]
    assert (entry.money, entry.raw_tokens, entry.requests) == (33, 6, 1)
    assert entry.budgets == (WindowKey(1, at[0]), WindowKey(2, 0), WindowKey(3, 0))


def test_a_call_takes_from_many_accounts_at_once(world: World) -> None:
    plain, hers = account(window(1, 100)), account(window(2, 50), name=OTHER_NAME, value="a" * 24)
    call = world.reserve(budgets=(plain, hers), money=10)
    assert call.decision.budget == BudgetWindow(2, 50, 10, 0, FLAG_MONEY)
    call.settle(money=8)
    assert meters(world) == [(1, 8, 0)]
    assert meters(world, hers.name) == [(2, 8, 0)]
    assert world.events()[-1].budgets == (WindowKey(1, 0), WindowKey(2, 0, "a" * 24))


def test_a_release_counts_nothing(world: World) -> None:
    here = account(window(1, 100), window(2, 9, "requests"))
    world.reserve(budgets=(here,), money=40).release()
    assert meters(world) == [(1, 0, 0), (2, 0, 0)]
    assert all(not one.budgets for one in world.events())


def test_a_call_without_budgets_leaves_nothing_of_them(world: World) -> None:
    world.reserve(need=5).settle(tokens=5)
    assert not [name for name in world.everything() if b":b:" in name]
    assert not world.events()[-1].budgets


# --- who is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "need", "least", "verdict"),
    [
        ((0, 0), 100, 0, Verdict.ADMITTED),
        ((0, 0), 101, 0, Verdict.BUDGET_EXCEEDED),
        ((100, 0), 1, 0, Verdict.BUDGET_EXCEEDED),
        ((100, 0), 0, 0, Verdict.ADMITTED),  # what costs nothing is always covered
        ((90, 0), 11, 0, Verdict.BUDGET_EXCEEDED),
        ((50, 50), 1, 0, Verdict.QUOTA_HELD),
        ((50, 45), 6, 0, Verdict.QUOTA_HELD),
        ((50, 45), 51, 0, Verdict.BUDGET_EXCEEDED),
        ((50, 45), 51, 5, Verdict.ADMITTED),  # cut to what is free
        ((50, 45), 51, 6, Verdict.QUOTA_HELD),
        ((50, 49), 51, 1, Verdict.ADMITTED),
        ((50, 45), 51, 51, Verdict.BUDGET_EXCEEDED),
        ((120, 0), 5, 1, Verdict.BUDGET_EXCEEDED),
    ],
)
def test_a_window_that_enforces_holds(
    world: World, taken: tuple[int, int], need: int, least: int, verdict: Verdict
) -> None:
    used, held = taken
    wide = account(window(1, 10**6))
    if used:
        world.reserve(budgets=(wide,), money=used).settle(money=used)
    if held:
        world.reserve(budgets=(wide,), money=held)
    before = world.everything()
    asked = world.reserve(budgets=(account(window(1, 100)),), money=need, money_least=least)
    assert asked.verdict is verdict
    if verdict is Verdict.ADMITTED:
        assert asked.decision.money_held == min(need, 100 - used - held if need else 0)
        return
    assert world.everything() == before  # byte by byte
    assert (asked.decision.scope, asked.decision.kind) == (Scope.BUDGET, LimitKind.BUDGET)
    assert asked.decision.budget == BudgetWindow(1, 100, used, 0, FLAG_MONEY, held=held, need=need)


@pytest.mark.parametrize("admission", ["available", "strict"])
@pytest.mark.parametrize("unit", ["money", "tokens"])
def test_a_strict_plan_holds_all_a_call_could_use(world: World, admission: str, unit: str) -> None:
    world.plan(None, admission=admission)
    strict = admission == "strict"
    here = account(window(1, 100, unit))
    amounts = {
        "money": ("money", "money_most", "money_least"),
        "tokens": ("budget_tokens", "budget_tokens_most", "budget_tokens_least"),
    }
    likely, most, least = amounts[unit]

    def held(**asked: int) -> tuple[Verdict, int]:
        call = world.reserve(budgets=(here,), **asked)
        decision = call.decision
        amount = 0 if isinstance(decision, Refused) else decision.money_held + decision.budget_tokens_held
        return call.verdict, amount

    assert held(**{likely: 10, most: 60}) == (Verdict.ADMITTED, 60 if strict else 10)
    # What states its maximum is held whole or not at all; what states none is cut to what is free.
    whole = held(**{likely: 10, most: 60})
    assert whole == ((Verdict.QUOTA_HELD, 0) if strict else (Verdict.ADMITTED, 10))
    assert held(**{likely: 10, most: 60, least: 5}) == (Verdict.ADMITTED, 40 if strict else 10)


def test_windows_of_tokens_and_requests_hold_too(world: World) -> None:
    tokens = account(window(1, 100, "tokens"))
    assert world.reserve(budgets=(tokens,), budget_tokens=101).verdict is Verdict.BUDGET_EXCEEDED
    cut = world.reserve(budgets=(tokens,), budget_tokens=101, budget_tokens_least=20)
    assert (cut.verdict, cut.decision.budget_tokens_held) == (Verdict.ADMITTED, 100)
    requests = account(window(2, 1, "requests"), name=OTHER_NAME)
    first = world.reserve(budgets=(requests,))
    second = world.reserve(budgets=(requests,))
    assert (second.verdict, second.decision.budget) == (
        Verdict.QUOTA_HELD, BudgetWindow(2, 1, 0, 0, FLAG_REQUESTS, held=1, need=1),
    )  # fmt: skip
    first.settle()
    assert world.reserve(budgets=(requests,)).verdict is Verdict.BUDGET_EXCEEDED


def test_a_window_of_nothing_is_told_to_who_costs_nothing(world: World) -> None:
    free = world.reserve(budgets=(account(window(1, 100), window(2, 0)),), money=0)
    assert free.decision.budget == BudgetWindow(2, 0, 0, 0, FLAG_MONEY)


def test_an_audit_refuses_nobody_and_counts(world: World) -> None:
    here = account(window(1, 10, enforce=False))
    world.reserve(budgets=(here,), money=40).settle(money=35)
    call = world.reserve(budgets=(here,), money=40)
    assert (call.verdict, call.decision.budget) == (Verdict.ADMITTED, None)
    assert meters(world) == [(1, 35, 40)]


def test_of_several_that_refuse_the_one_that_takes_longest_is_told(world: World) -> None:
    hour = hour_of(world)
    held = window(1, 10**6)
    here = (held, window(2, 10, at=hour), window(3, 10, at=(hour[0], hour[2], hour[2] + HOUR)))
    world.reserve(budgets=(account(held),), money=10**6)
    refused = world.reserve(budgets=(account(*here),), money=11)
    assert (refused.verdict, refused.decision.until_ms) == (Verdict.BUDGET_EXCEEDED, hour[2])
    assert refused.decision.budget is not None
    assert refused.decision.budget.budget_id == 3


def test_quota_comes_before_budgets_and_credits_after(world: World) -> None:
    world.plan(10)
    here = account(window(1, 10))
    assert world.reserve(need=5, budgets=(here,), money=11).verdict is Verdict.BUDGET_EXCEEDED
    world.reserve(need=10, budgets=(here,)).settle(tokens=10)
    assert world.reserve(need=5, budgets=(here,), money=11).verdict is Verdict.QUOTA_EXCEEDED


def test_a_refusal_of_any_other_limit_holds_nothing_here(world: World) -> None:
    world.define_key(Limits(concurrency=1))
    here = account(window(1, 100))
    world.reserve(budgets=(here,), money=10)
    before = world.everything()
    assert world.reserve(budgets=(here,), money=10).verdict is Verdict.CONCURRENCY_LIMITED
    assert world.everything() == before


# --- time -------------------------------------------------------------------------------------


def test_what_was_used_goes_with_its_window_and_what_is_held_stays(world: World) -> None:
    now = world.now_ms()
    here = account(window(1, 100, at=(now - HOUR, now + HOUR, now + 2 * HOUR)), window(2, 1000))
    call = world.reserve(budgets=(here,), money=10)
    world.reserve(budgets=(here,), money=20).settle(money=15)
    raw = world.windows(NAME)
    raw[0].start, raw[0].next, raw[0].after = now - 2 * HOUR, now - 1, now + HOUR
    world.client.set(keys.budget_account(world.p, NAME), pack_windows(raw))
    call.settle(money=7)  # brings no definition: the window ends by itself
    first, second = world.windows(NAME)
    assert (first.start, first.next, first.after, first.used, first.held) == (now - 1, now + HOUR, 0, 7, 0)
    assert (second.used, second.held) == (22, 0)
    assert world.events()[-1].budgets == (WindowKey(1, now - 1), WindowKey(2, 0))


def test_a_definition_that_comes_late_says_no_other_time(world: World) -> None:
    now = world.now_ms()
    late, here = (now - 2 * HOUR, now - 10, now + HOUR), (now - 10, now + HOUR, now + 2 * HOUR)
    world.reserve(budgets=(account(window(1, 100, at=late)),), money=10).settle(money=10)
    assert [(one.start, one.next, one.used) for one in world.windows(NAME)] == [(now - 10, now + HOUR, 10)]
    world.reserve(budgets=(account(window(1, 100, at=here)),), money=10).settle(money=10)
    world.reserve(budgets=(account(window(1, 90, at=late)),), money=10).settle(money=10)
    [one] = world.windows(NAME)
    assert (one.start, one.next, one.after, one.limit, one.used) == (*here, 90, 30)


def test_a_definition_of_a_time_to_come_ends_no_window_before_it(world: World) -> None:
    now = world.now_ms()
    here, early = (now - HOUR, now + HOUR, 0), (now + HOUR, now + 2 * HOUR, now + 3 * HOUR)
    world.reserve(budgets=(account(window(1, 100, at=here)),), money=60).settle(money=60)
    ahead = (account(window(1, 100, at=early)),)
    assert world.reserve(budgets=ahead, money=41).verdict is Verdict.BUDGET_EXCEEDED
    world.reserve(budgets=ahead, money=40)
    [one] = world.windows(NAME)
    assert (one.start, one.next, one.after) == (now - HOUR, now + HOUR, now + 2 * HOUR)
    world.reserve(budgets=(account(window(1, 100, at=early), name=OTHER_NAME),), money=1)
    [new] = world.windows(OTHER_NAME)
    assert (new.start, new.next, new.after) == (0, now + HOUR, now + 2 * HOUR)


@pytest.mark.parametrize("ago", [0, 1], ids=["a clock that is right", "a clock behind"])
def test_what_was_used_by_a_clock_ahead_counts_once_another_knows_when_its_window_began(
    world: World, ago: int
) -> None:
    now = world.now_ms()
    ahead = now + HOUR, now + 2 * HOUR, now + 3 * HOUR
    here = (now - HOUR, now - 1, now + HOUR) if ago else (now - HOUR, now + HOUR, now + 2 * HOUR)
    world.reserve(budgets=(account(window(1, 100, at=ahead)),), money=60).settle(money=60)
    right = (account(window(1, 100, at=here)),)
    assert world.reserve(budgets=right, money=41).verdict is Verdict.BUDGET_EXCEEDED
    world.reserve(budgets=right, money=10).settle(money=10)
    [one] = world.windows(NAME)
    assert (one.start, one.next, one.used) == (0 if ago else now - HOUR, now + HOUR, 70)


# --- what is defined --------------------------------------------------------------------------


def test_a_raised_limit_holds_as_long_as_it_is_said(world: World) -> None:
    world.reserve(budgets=(account(window(1, 100)),), money=100).settle(money=100)
    assert world.reserve(budgets=(account(window(1, 120)),), money=20).verdict is Verdict.ADMITTED
    assert world.reserve(budgets=(account(window(1, 100)),), money=1).verdict is Verdict.BUDGET_EXCEEDED


def test_a_window_that_comes_begins_with_nothing_and_gives_nothing_back(world: World) -> None:
    old = world.reserve(budgets=(account(window(1, 100)),), money=40)
    new = world.reserve(budgets=(account(window(1, 100), window(2, 100)),), money=30)
    assert meters(world) == [(1, 0, 70), (2, 0, 30)]
    old.settle(money=35)  # the window there is counts it; it holds nothing of this call
    assert meters(world) == [(1, 35, 30), (2, 35, 30)]
    new.release()
    assert meters(world) == [(1, 35, 0), (2, 35, 0)]


def test_a_window_that_goes_refuses_nobody_and_its_calls_still_count(world: World) -> None:
    both, one = account(window(1, 100), window(2, 10)), account(window(1, 100))
    call = world.reserve(budgets=(both,), money=10)
    assert world.reserve(budgets=(one,), money=50).verdict is Verdict.ADMITTED
    assert [one.flags & WINDOW_GONE for one in world.windows(NAME)] == [0, WINDOW_GONE]
    call.settle(money=9)
    assert meters(world) == [(1, 9, 50), (2, 9, 0)]
    assert world.events()[-1].budgets == (WindowKey(1, 0), WindowKey(2, 0))
    # Whoever has not heard of its end, or was the first to hear of it, finds it as it was.
    assert world.reserve(budgets=(both,), money=2).verdict is Verdict.BUDGET_EXCEEDED
    assert world.reserve(budgets=(both,), money=1).verdict is Verdict.ADMITTED
    assert meters(world) == [(1, 9, 51), (2, 9, 1)]


def test_what_is_gone_is_kept_up_to_a_bound(world: World) -> None:
    for first in range(0, 80, WINDOWS_MAX):
        full = account(*(window(first + at + 1, 100) for at in range(WINDOWS_MAX)))
        assert world.reserve(budgets=(full,), money=1).verdict is Verdict.ADMITTED
    assert len(world.windows(NAME)) == 2 * WINDOWS_MAX


# --- a hold and its accounts ------------------------------------------------------------------


def test_a_hold_ends_with_the_accounts_it_took_from_alone(world: World) -> None:
    here, other = account(window(1, 100)), account(window(2, 100), name=OTHER_NAME)
    call = world.reserve(budgets=(here,), money=10)
    before = world.everything()
    for budgets in ((), (other,), (here, other)):
        call.request.budgets = budgets
        with pytest.raises(redis.ResponseError, match="budget accounts"):
            call.settle(money=1)
    assert world.everything() == before


def test_a_head_is_raised_with_budgets_and_a_refusal_leaves_it(world: World) -> None:
    here = account(window(1, 100))
    head = world.reserve()
    before = world.everything()
    assert head.raised(budgets=(here,), money=101).verdict is Verdict.BUDGET_EXCEEDED
    assert world.everything() == before
    assert head.raised(budgets=(here,), money=60).verdict is Verdict.ADMITTED
    again = head.raised(budgets=(here,), money=100)
    assert (again.verdict, meters(world)) == (Verdict.ADMITTED, [(1, 0, 100)])
    with pytest.raises(redis.ResponseError, match="budget accounts"):
        head.raised()
    again.settle(money=5)
    assert meters(world) == [(1, 5, 0)]


def test_a_head_is_released_that_took_from_no_account(world: World) -> None:
    head = world.reserve()
    head.request.budgets = (account(window(1, 100)),)
    assert head.release() is SettleResult.DONE
    assert meters(world) == []


def test_holds_end_with_the_accounts_user_and_tiers_they_have(world: World) -> None:
    here = account(window(1, 100), window(2, 5, "requests"))
    call = world.reserve(budgets=(here, account(window(3, 9), name=OTHER_NAME)), money=4, user="ünï")
    raw = world.get(keys.hold(world.p, call.id))
    hold, user, tiers = states.unpack_hold(raw)
    assert (user, tiers, hold.money) == ("ünï", b"", 4)
    assert states.held_budgets(raw) == [(NAME, (1, 2)), (OTHER_NAME, (3,))]


# --- calls under way --------------------------------------------------------------------------

# A nano-unit a token, whichever.
RATE = TokenRate(0, 10**6, 10**6, in_money=True)


def kept(world: World, call: Call, tokens: int, margin: int = 0, *, raw: bool = False) -> tuple[int, ...]:
    """Exhausted, then what budgets hold in money and tokens of a call that was seen so far."""
    names = tuple(one.name for one in call.request.budgets)
    live = HoldExtension(
        world.caller, call.id, 0, tokens, budgets=names, money_rate=RATE, counts_budget_tokens=raw
    )
    return world.kept([(live, margin)])[0][2:]


@pytest.mark.parametrize(
    ("limit", "enforce", "cut", "expected"),
    [
        (1000, True, False, (0, 60)),
        (55, True, False, (1, 55)),
        (55, True, True, (2, 55)),
        (55, False, True, (0, 60)),
    ],
)
def test_a_stream_holds_more_money_as_far_as_there_is(
    world: World, limit: int, enforce: bool, cut: bool, expected: tuple[int, int]
) -> None:
    here = account(window(1, limit, enforce=enforce, cut=cut), window(2, 10**6, enforce=False))
    call = world.reserve(budgets=(here,), money=20)
    exhausted, money, _ = kept(world, call, 40, 20)
    assert (exhausted, money) == expected
    assert meters(world) == [(1, 0, money), (2, 0, money)]
    hold = call.hold
    assert hold is not None
    assert (hold.money, hold.money_seen) == (money, 40)
    assert kept(world, call, 10)[1] == money  # never less
    call.settle(money=44)
    assert meters(world) == [(1, 44, 0), (2, 44, 0)]


def test_a_stream_holds_more_tokens_too(world: World) -> None:
    here = account(window(1, 100, "tokens"))
    call = world.reserve(budgets=(here,), budget_tokens=20)
    assert kept(world, call, 40, 20, raw=True) == (0, 60, 60)
    assert kept(world, call, 90, 20, raw=True) == (1, 110, 100)
    assert meters(world) == [(1, 0, 100)]


def test_calls_that_are_kept_together_share_what_is_free(world: World) -> None:
    here = account(window(1, 100))
    both = [world.reserve(budgets=(here,), money=20) for _ in range(2)]
    live = [
        (HoldExtension(world.caller, one.id, 0, 45, budgets=(NAME,), money_rate=RATE), 15) for one in both
    ]
    assert [one[2:4] for one in world.kept(live)] == [(0, 60), (1, 40)]
    assert meters(world) == [(1, 0, 100)]


def test_a_call_that_names_other_accounts_takes_no_more_of_them(world: World) -> None:
    call = world.reserve(budgets=(account(window(1, 100)),), money=20)
    other = account(window(2, 100), name=OTHER_NAME)
    world.reserve(budgets=(other,), money=5)
    call.request.budgets = (other,)
    assert kept(world, call, 40) == (0, 20, 0)
    assert (meters(world), meters(world, OTHER_NAME)) == ([(1, 0, 20)], [(2, 0, 5)])


# --- late, reclaimed, corrected ---------------------------------------------------------------


def test_a_reclaim_counts_what_it_charges_and_a_correction_the_rest(world: World) -> None:
    here = account(window(1, 100), window(2, 100, "tokens"), window(3, 9, "requests"))
    call = world.reserve(need=9, budgets=(here,), money=40, budget_tokens=9)
    assert call.reclaim(5, money=20, budget_tokens=5) is SettleResult.DONE
    assert meters(world) == [(1, 20, 0), (2, 5, 0), (3, 1, 0)]
    assert call.settle(tokens=8, money=33, budget_tokens=8) is SettleResult.RECLAIMED
    assert call.correct(3, money=13, budget_tokens=3, requests=0) is SettleResult.DONE
    assert meters(world) == [(1, 33, 0), (2, 8, 0), (3, 1, 0)]
    correction = world.events()[-1]
    assert (correction.money, correction.raw_tokens, correction.requests) == (13, 3, 0)
    assert len(correction.budgets) == 3


def test_a_call_that_is_taken_back_for_nothing_counts_nothing(world: World) -> None:
    here = account(window(1, 100), window(2, 9, "requests"))
    call = world.reserve(budgets=(here,), money=40)
    assert call.reclaim(requests=0) is SettleResult.DONE
    assert meters(world) == [(1, 0, 0), (2, 0, 0)]


def test_an_account_that_is_gone_is_left_out_and_made_by_who_brings_its_definition(world: World) -> None:
    here, other = account(window(1, 100)), account(window(2, 100), name=OTHER_NAME)
    call = world.reserve(budgets=(here, other), money=40)
    world.client.delete(keys.budget_account(world.p, NAME))
    assert call.settle(money=7) is SettleResult.DONE
    assert meters(world) == []
    assert world.events()[-1].budgets == (WindowKey(2, 0),)
    late = world.reserve(budgets=(other,))
    late.request.budgets = (here, other)
    world.client.delete(keys.hold(world.p, late.id))
    assert late.post(money=5) is SettleResult.DONE
    assert (meters(world), meters(world, OTHER_NAME)) == ([(1, 5, 0)], [(2, 12, 0)])


def test_what_meets_no_hold_waits_with_its_accounts(world: World) -> None:
    here = account(window(1, 100))
    call = world.reserve(budgets=(here,), money=40)
    call.settle(money=7)
    assert call.settle(money=7) is SettleResult.UNKNOWN
    assert meters(world) == [(1, 7, 0)]
    [late] = world.late()
    assert late[b"b"].endswith(NAME.encode())


# --- what the version before has stored -------------------------------------------------------


def test_a_call_of_the_version_before_is_kept_and_ends_as_it_would_have(world: World) -> None:
    world.define_user("ünï", Limits(concurrency=9))
    call = world.reserve(need=5, user="ünï")
    name = keys.hold(world.p, call.id)
    raw, fields = world.get(name), states.HOLD.size
    new = states.HOLD.size - states.HOLD.offset("money")
    older = b"\x82" + raw[1 : fields - new] + raw[fields:]
    world.client.set(name, older)
    for state, was in (
        (world.tenant_key, world.tenant), (world.organization_key, world.organization),
        (world.api_key, world.key), (world.user_key("ünï"), world.user("ünï")),
    ):  # fmt: skip
        world.client.set(state, stored_before(130, was))
    assert states.unpack_hold(older) == states.unpack_hold(raw)
    assert states.held_budgets(older) == []
    assert call.extend(7, 3) == (10, 0)
    assert call.settle(tokens=8) is SettleResult.DONE
    assert (world.tenant.used, world.slots("ünï")) == (8, [0, 0, 0, 0])


# --- arguments --------------------------------------------------------------------------------


def test_what_is_no_definition_changes_nothing(world: World) -> None:
    before = world.everything()
    for defined in (b"", b"x" * 40, b"".join(window(at, 1) for at in range(33))):
        bad = replace(account(), defined=defined)
        with pytest.raises(redis.ResponseError):
            world.reserve(budgets=(bad,), money=1)
    many = tuple(account(window(1, 9), name=f"{at:016x}") for at in range(17))
    with pytest.raises(redis.ResponseError, match="up to 16"):
        world.reserve(budgets=many)
    names, arguments = packing.reserve(world.run_id, 1, 9, world.reserve().request)
    assert before is not None
    with pytest.raises(redis.ResponseError, match="takes"):
        world.run("reserve", (names, (*arguments, b"")))


def test_units_are_told_by_their_flags(world: World) -> None:
    call = world.reserve(budgets=(account(window(4, 50, "tokens", at=EVER)),), budget_tokens=7)
    assert call.decision.budget == BudgetWindow(4, 50, 7, 0, FLAG_TOKENS)
