"""Budgets as gateways and the keeper use them: at once, while Redis is away, late and reclaimed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.accounts.budgets import (
    OTHERS,
    Budget,
    PersonalOverride,
    PersonalRaise,
    account_of,
    define_windows,
    owner_of,
)
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.definitions import ControlWrite, OrganizationTerms
from gateway.core.accounts.holds import ChargedAmounts, LateResolution, LateSettlement, ReclaimPolicy, Verb
from gateway.core.accounts.outbox import EventKind, WindowKey
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import BudgetAccount, HoldExtension, SettleResult, Verdict
from gateway.counters.admission.stored import encode_terms
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.control_writes import RESET_ACCOUNTS
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.late import ReclaimClient
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import unpack
from gateway.errors import CountersUnavailable
from tests.builders import World, new_id
from tests.counters.conftest import Connect
from tests.counters.lease_stage import Employ, Worker
from tests.counters.segments import answered
from tests.lua.windows import NAME, account, fill_places, window

DAY_MS = 86_400_000
# A nano-unit a token.
RATE = TokenRate(0, 10**6, 10**6, in_money=True)
DAILY = Budget(1, "daily", "money", 100, "day")
EACH = Budget(2, "each", "requests", 9, "total", each="user")


@pytest.fixture
async def worker(world: World, employ: Employ) -> Worker:
    world.plan(None, on_store_failure="allow")
    hired: Worker = await employ(world)
    return hired


@pytest.fixture
async def keeping(world: World, connect: Connect) -> ReclaimClient:
    return ReclaimClient(Client(await connect(world.url)))


def budgeted(world: World, budget: Budget, value: str = "") -> BudgetAccount:
    """The account of a budget, as the organization's terms have it."""
    terms = OrganizationTerms(budgets=(DAILY, EACH))
    world.client.set(keys.organization_terms(1), encode_terms(1, terms))
    return BudgetAccount(
        account_of(1, budget, value), define_windows([budget], world.now_ms()), enforced=False
    )


def names(*accounts: BudgetAccount) -> tuple[str, ...]:
    return tuple(one.name for one in accounts)


def used(world: World, *accounts: BudgetAccount) -> list[tuple[int, int]]:
    return [(one.used, one.held) for each in accounts for one in world.windows(each.name)]


# --- calls ------------------------------------------------------------------------------------


async def test_a_call_counts_what_it_used_and_its_record_says_so(
    world: World, worker: Worker, tmp_path: Path
) -> None:
    here, hers = account(window(1, 100), window(2, 100, "tokens")), account(window(3, 9), value="ann")
    request, decision = await worker.reserve(5, budgets=(here, hers), money=9, budget_tokens=5)
    assert (decision.verdict, decision.money_held, decision.budget_tokens_held) == (Verdict.ADMITTED, 9, 5)
    spent = {"money": 7, "budget_tokens": 4, "budgets": names(here, hers)}
    assert await worker.settle(request, 4, **spent) is SettleResult.DONE
    assert used(world, here, hers) == [(7, 0), (4, 0), (7, 0)]
    await worker.log.written()
    (record,) = (one for file in tmp_path.rglob("*") if file.is_file() for one in answered(file.read_bytes()))
    kept = unpack(record.arguments)
    assert (kept.money, kept.budget_tokens, kept.budgets) == (7, 4, names(here, hers))


async def test_a_stream_is_extended_in_money(world: World, worker: Worker) -> None:
    here = account(window(1, 1000))
    request, _ = await worker.reserve(5, budgets=(here,), money=20)
    observed = HoldExtension(request.caller, request.request_id, 20, 25, counts=False)
    observed.budgets, observed.money_rate = names(here), RATE
    worker.counters.watch(observed)
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (25 + 256, False)
    assert used(world, here) == [(0, 281)]
    observed.tokens = 900
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted, observed.cut) == (1000, True, False)
    worker.counters.unwatch(observed)


async def test_one_too_many_of_each_shares_the_account_of_all_others(world: World, worker: Worker) -> None:
    hers = account(window(1, 100), value="ann")
    fill_places(world, until=world.now_ms() + DAY_MS)
    request, decision = await worker.reserve(budgets=(hers,), money=9)
    assert decision.verdict is Verdict.ADMITTED
    assert names(*request.budgets) == (f"{NAME}:{OTHERS}",)
    assert await worker.settle(request, 0, money=7, budgets=names(*request.budgets)) is SettleResult.DONE
    assert used(world, *request.budgets) == [(7, 0)]
    assert worker.counters.crowded.calls == 1


async def test_a_release_that_nobody_waits_for_gives_budgets_back(world: World, worker: Worker) -> None:
    here = account(window(1, 100))
    request, _ = await worker.reserve(budgets=(here,), money=9)
    worker.counters._came_late(request, None)
    await asyncio.wait_for(worker.counters.releases._releasing, 10)
    assert used(world, here) == [(0, 0)]


# --- while Redis is away ----------------------------------------------------------------------


async def test_what_a_budget_that_enforces_covers_is_served_from_no_lease(worker: Worker) -> None:
    await worker.renew()
    await worker.lose()
    here = account(window(1, 100))
    with pytest.raises(CountersUnavailable, match="budget"):
        await worker.reserve(5, budgets=(here,), money=9)
    _, decision = await worker.reserve(5, budgets=(replace(here, enforced=False),), money=9)
    assert decision.verdict is Verdict.ADMITTED


async def test_what_was_used_meanwhile_counts_once_redis_is_back(
    world: World, worker: Worker, keeping: ReclaimClient
) -> None:
    here, hers = budgeted(world, DAILY), budgeted(world, EACH, "ann")
    await worker.renew()
    await worker.lose()
    request, _ = await worker.reserve(5, budgets=(here, hers), money=9)
    assert await worker.settle(request, 4, money=7, budgets=names(here, hers)) is SettleResult.SPOOLED
    await worker.find()
    await worker.resubmitter.resubmit()
    [late] = await late_ones(world, keeping)
    assert (late.settlement.money, late.settlement.budgets) == (7, names(here, hers))
    assert await keeping.end(
        [LateResolution(late, Verb.POST, ChargedAmounts(4, money=7, budget_tokens=4, requests=1))]
    ) == [True]
    assert used(world, here, hers) == [(7, 0), (1, 0)]
    start = world.windows(here.name)[0].start
    value = hers.name.partition(":")[2]
    assert world.events()[-1].budgets == (WindowKey(1, start), WindowKey(2, 0, value))


@pytest.mark.parametrize(
    "own",
    [
        {"raises": {owner_of("ann"): PersonalRaise(50, 2**52)}},
        {"overrides": {"group:7": PersonalOverride(50)}},
    ],
)
async def test_a_late_call_of_an_owner_with_an_own_limit_leaves_that_owners_limit(
    world: World, worker: Worker, keeping: ReclaimClient, own: dict[str, Any]
) -> None:
    """What comes late brings windows of now: by those of everybody a stream of hers would be cut at 9."""
    hers = budgeted(world, EACH, "ann")
    terms = OrganizationTerms(budgets=(replace(EACH, **own),))
    world.client.set(keys.organization_terms(1), encode_terms(1, terms))
    request, _ = await worker.reserve(5, budgets=(hers,), money=9)
    world.client.delete(keys.hold(world.p, request.request_id))
    facts = write_facts(CallFacts(groups=(4, 7)))
    ended = await worker.settle(request, 4, money=7, budgets=names(hers), metadata=facts)
    assert ended is SettleResult.UNKNOWN
    [late] = await late_ones(world, keeping)
    ending = LateResolution(late, Verb.POST, ChargedAmounts(4, money=7, requests=1))
    assert await keeping.end([ending]) == [True]
    assert [(one.limit, one.used) for one in world.windows(hers.name)] == [(50, 1)]


async def late_ones(world: World, keeping: ReclaimClient) -> list[LateSettlement]:
    """What is late, once everything before it is rows."""
    world.client.xtrim(keys.outbox(world.p), maxlen=0)
    return list(await keeping.late(10))


async def test_a_late_call_of_a_budget_that_is_no_more_is_posted_all_the_same(
    world: World, worker: Worker, keeping: ReclaimClient
) -> None:
    here, gone = budgeted(world, DAILY), account(window(7, 100), value="ann")
    request, _ = await worker.reserve(5, budgets=(here, gone), money=9)
    world.client.delete(keys.hold(world.p, request.request_id))
    assert await worker.settle(request, 4, money=7, budgets=names(here, gone)) is SettleResult.UNKNOWN
    [late] = await late_ones(world, keeping)
    ending = LateResolution(late, Verb.POST, ChargedAmounts(4, money=7, requests=1))
    # Until the partitions are verified, what is not there may only not be there yet.
    with pytest.raises(CountersUnavailable):
        await keeping.end([ending])
    world.client.set(keys.verified(0), world.run_id)
    assert await keeping.end([ending]) == [True]
    assert [at for at, _ in used(world, here, gone)] == [7, 0]


# --- whose gateway died -----------------------------------------------------------------------


@pytest.mark.parametrize("stored", [b"{", b'{"version":1,"terms":[]}', b"[" * 100_000, None])
async def test_budgets_nobody_can_read_keep_no_other_late_call_waiting(
    world: World, keeping: ReclaimClient, stored: bytes | None
) -> None:
    here = budgeted(world, DAILY)
    calls = [world.reserve(need=5, budgets=(here,), money=20), world.reserve(need=5)]
    for call in calls:
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=5, money=7 * (call is calls[0]))
    late = await late_ones(world, keeping)
    ends = [
        LateResolution(one, Verb.POST, ChargedAmounts(5, money=one.settlement.money, requests=1))
        for one in late
    ]
    terms = keys.organization_terms(world.caller.organization_id)
    right = world.client.getdel(terms)
    if stored is None:
        world.client.rpush(terms, "no text")
    else:
        world.client.set(terms, stored)
    assert await keeping.end(ends) == [not one.settlement.budgets for one in late] == [False, True]
    assert keeping._client.left_alone.count("account") == 1
    world.client.delete(terms)
    world.client.set(terms, right)
    assert await keeping.end(ends[:1]) == [True]
    assert (used(world, here), keeping._client.left_alone.count("account")) == ([(7, 0)], 0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (ReclaimPolicy.CHARGE_OBSERVED, [(30, 0), (30, 0), (1, 0)]),
        (ReclaimPolicy.RELEASE, [(0, 0), (0, 0), (0, 0)]),
        (ReclaimPolicy.CHARGE_HOLD, [(50, 0), (50, 0), (1, 0)]),
    ],
)
async def test_a_reclaim_counts_in_budgets_what_its_policy_says(
    world: World, keeping: ReclaimClient, policy: ReclaimPolicy, expected: list[tuple[int, int]]
) -> None:
    world.plan(None)
    here = account(window(1, 1000), window(2, 1000, "tokens"), window(3, 9, "requests"))
    call = world.reserve(need=5, budgets=(here,), money=20, budget_tokens=5)
    live = HoldExtension(
        world.caller, call.id, 0, 30, budgets=names(here), money_rate=RATE, counts_budget_tokens=True
    )
    world.kept([(live, 20)])
    world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    [expired] = await keeping.expired(10)
    assert expired.release.budgets == names(here)
    assert await keeping.reclaim(expired, expired.charge(policy))
    assert used(world, here) == expected


async def test_what_comes_after_a_reclaim_counts_what_differs(world: World, keeping: ReclaimClient) -> None:
    world.plan(None)
    here = budgeted(world, DAILY)
    call = world.reserve(need=5, budgets=(here,), money=20)
    call.reclaim(3, money=12)
    call.settle(tokens=5, money=17)
    [late] = await late_ones(world, keeping)
    more = ChargedAmounts(2, money=5, budget_tokens=2)
    assert await keeping.end([LateResolution(replace(late), Verb.CORRECT, more)]) == [True]
    assert used(world, here) == [(17, 0)]
    assert world.events()[-1].requests == 0


async def test_holds_of_before_a_backup_are_let_go_with_their_budgets(world: World, connect: Connect) -> None:
    world.plan(None)
    here = account(window(1, 100))
    call = world.reserve(budgets=(here,), money=20)
    keeper = KeeperCounters(await connect(world.url))
    assert await keeper.release_holds(world.p, world.get(keys.marker(world.p)), 2, [call.id])
    assert (call.hold, used(world, here)) == (None, [(0, 0)])


# --- a window begins again --------------------------------------------------------------------


def write_of(budget: Budget, name: str) -> ControlWrite:
    payload = {"budget_id": budget.id, "account": name, "reason": "by hand"}
    return ControlWrite(new_id(), 1, "organization:1", "budget", payload, organization_id=1)


async def test_a_keeper_resets_a_budget_once(world: World, connect: Connect) -> None:
    world.plan(None)
    here = budgeted(world, DAILY)
    world.reserve(budgets=(here,), money=20).settle(money=15)
    keeper, write = KeeperCounters(await connect(world.url)), write_of(DAILY, here.name)
    assert await keeper.apply(write)
    world.reserve(budgets=(here,), money=20).settle(money=3)
    assert await keeper.apply(write)
    assert used(world, here) == [(3, 0)]
    told = [one for one in world.events() if one.kind == EventKind.BUDGET]
    assert [(one.source, one.money, one.metadata) for one in told] == [
        (write.id, 15, b'{"reason":"by hand"}')
    ]


async def test_a_keeper_takes_once_what_an_amended_price_counted_too_much(
    world: World, connect: Connect
) -> None:
    world.plan(None)
    here = budgeted(world, DAILY)
    world.reserve(budgets=(here,), money=20).settle(money=15)
    [window] = world.windows(here.name)
    payload = {"budget_id": DAILY.id, "start_ms": window.start, "taken": {here.name: 12}, "reason": "a price"}
    write = ControlWrite(new_id(), 1, "organization:1", "amend", payload, organization_id=1)
    keeper = KeeperCounters(await connect(world.url))
    for _ in range(2):
        assert await keeper.apply(write)
        assert used(world, here) == [(3, 0)]
    told = [one for one in world.events() if one.kind == EventKind.BUDGET]
    assert [(one.source, one.money, one.metadata) for one in told] == [
        (write.id, 12, b'{"reason":"a price"}')
    ]


async def test_a_keeper_resets_all_accounts_of_each(world: World, connect: Connect) -> None:
    world.plan(None)
    accounts = [budgeted(world, EACH, f"user {at}") for at in range(RESET_ACCOUNTS + 3)]
    for one in accounts:
        world.reserve(budgets=(one,)).settle()
    world.client.xtrim(keys.outbox(world.p), maxlen=0)
    keeper = KeeperCounters(await connect(world.url))
    write = write_of(EACH, account_of(1, EACH))
    assert await keeper.apply(write)
    assert used(world, *accounts) == []
    told = world.events()
    assert sum(one.requests for one in told) == len(accounts)
    assert [one.source for one in told].count(write.id) == 3
