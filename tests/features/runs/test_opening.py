"""Runs: opened by their first call, drawn from by their children, ended once."""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.core.accounts.budgets import CallAttributes
from gateway.core.accounts.call_budgets import OrganizationBudgets, with_runs
from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.run_policies import CallRunPolicies, RunPolicy
from gateway.core.accounts.runs import (
    CLOCKS_DIFFER_MS,
    LEVELS_MAX,
    Run,
    account_of,
    read_news,
    read_run,
    wanted_run,
)
from gateway.core.families.refusal import from_refused
from gateway.core.model import PARTITIONS, SettleResult, Verdict
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.errors import InvalidRequest, RateLimited, Refusal, RunConflict, RunEnded, RunNotFound
from gateway.features.runs import opening as admission
from tests.builders import Call, World, driven
from tests.counters.conftest import Connect
from tests.waiting import eventually

DOLLAR = 10**9
NOBODYS = OrganizationBudgets(1, (), "USD").find(CallAttributes(7, 3, 1), 0)


@dataclass
class Worker:
    """One gateway worker's runs, and calls in them as it makes them. `now_s` is its clock."""

    world: World
    runs: admission.Runs
    ahead_s: float = 0.0

    async def run(self, field: str, policies: CallRunPolicies = ()) -> Run:
        asked = read_run(field)
        return self.runs.cached(self.world.caller, asked) or await driven(
            self.runs.find(self.world.caller, asked, policies)
        )

    async def call(self, field: str, money: int = 0, budget_tokens: int = 0) -> Call:
        """A call of this run, admitted or not; what refuses it by its run knows the run's name."""
        run = await self.run(field)
        taken = with_runs(NOBODYS, run)
        call = self.world.reserve(budgets=taken.accounts, money=money, budget_tokens=budget_tokens)
        if call.decision.budget is not None:
            taken.name_in(call.decision.budget)
        if call.verdict is Verdict.ADMITTED:
            await self.keep(run)
        return call

    async def keep(self, run: Run) -> Run:
        """Keep a run, as a call of it is admitted."""
        self.runs.admitted(self.world.caller, run)
        await eventually(lambda: math.inf not in self.runs._waits.values())
        return run

    async def told(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await driven(self.runs.tell(self.world.caller, id_)))
        return found

    async def end(self, id_: str) -> None:
        await driven(self.runs.end(self.world.caller, id_))


@pytest.fixture
async def worker(world: World, connect: Connect) -> Worker:
    world.plan(None)
    return await another(world, connect)


async def another(world: World, connect: Connect) -> Worker:
    made = Worker(world, None)  # type: ignore[arg-type]  # a moment later
    made.runs = admission.Runs(
        await connect(world.url), time.monotonic, lambda: time.time() + made.ahead_s, os.urandom
    )
    return made


def refusal_of(call: Call) -> Refusal:
    return from_refused(call.decision)


# --- what a run is -------------------------------------------------------------------------------


async def test_run_refuses_calls_beyond_the_amount_and_shows_the_amount_left(worker: Worker) -> None:
    first = await worker.call("nightly; max=1.00; ttl=600", money=600_000_000)
    assert first.verdict is Verdict.ADMITTED
    second = await worker.call("nightly", money=600_000_000)
    assert second.verdict is Verdict.QUOTA_HELD  # until the first one settles
    assert (await worker.told("nightly"))["held"] == "0.6"
    first.settle(money=500_000_000)
    assert (await worker.call("nightly", money=600_000_000)).verdict is Verdict.BUDGET_EXCEEDED
    assert refusal_of(await worker.call("nightly", money=600_000_000)).reason == "run_exceeded"
    (await worker.call("nightly", money=500_000_000)).settle(money=500_000_000)
    told = await worker.told("nightly")
    assert (told["max"], told["used"], told["held"], told["left"], told["calls"]) == ("1", "1", "0", "0", 2)
    assert (told["unit"], told["status"], told["parent_id"], told["parents"]) == (
        "money",
        "exhausted",
        None,
        [],
    )


async def test_run_refuses_calls_beyond_max_calls_and_counts_tokens(worker: Worker) -> None:
    for _ in range(2):
        (await worker.call("two; max_calls=2; max_tokens=100", budget_tokens=10)).settle(budget_tokens=10)
    third = await worker.call("two", budget_tokens=10)
    assert (third.verdict, refusal_of(third).reason) == (Verdict.BUDGET_EXCEEDED, "run_exceeded")
    assert "0 of 2 requests left" in refusal_of(third).message
    told = await worker.told("two")
    assert (told["unit"], told["used"], told["max"], told["max_calls"]) == ("tokens", 20, 100, 2)


async def test_run_without_limits_counts_calls_and_shows_no_remaining_amount(worker: Worker) -> None:
    (await worker.call("free", money=5)).settle(money=5)
    told = await worker.told("free")
    assert (told["max"], told["left"], told["used"], told["calls"]) == (None, None, "0.000000005", 1)


@pytest.mark.parametrize("field", ["a; max=2.00", "a; max_tokens=5", "a; max_calls=4", "a; parent=b"])
async def test_run_reused_with_other_limits_or_another_parent_is_refused_as_a_conflict(
    worker: Worker, world: World, connect: Connect, field: str
) -> None:
    await worker.run("b; max=9.00")
    await worker.run("a; max=1.00; max_calls=3")
    for one in (worker, await another(world, connect)):
        with pytest.raises(RunConflict):
            await one.run(field)
        assert (await one.run("a; max=1; max_calls=3")).amount == DOLLAR


async def test_run_opened_by_several_workers_at_once_exists_once(world: World, connect: Connect) -> None:
    workers = [await another(world, connect) for _ in range(4)]
    found = [await one.run(f"once; max={number + 1}.00") for number, one in enumerate(workers[:1])]
    for one in workers[1:]:
        assert await one.keep(await one.run("once")) == found[0]
    assert len([event for event in world.events() if event.kind == EventKind.RUN]) == 1


# --- policies ------------------------------------------------------------------------------------

POLICIES = (
    ("API key", RunPolicy(calls_max=9, ttl_s=60)),
    ("tenant", RunPolicy(amount=2 * DOLLAR, calls_max=5)),
    ("organization", RunPolicy(amount=3 * DOLLAR, ttl_s=600)),
)


@pytest.mark.parametrize(
    ("said", "opened"),
    [
        ("", (2 * DOLLAR, 5, 60)),
        ("; max=1.5; ttl=30", (1_500_000_000, 5, 30)),
        ("; max=2.00; max_calls=5; ttl=60", (2 * DOLLAR, 5, 60)),
        ("; max_calls=2", (2 * DOLLAR, 2, 60)),
    ],
)
async def test_run_opened_without_limits_takes_the_limits_of_the_narrowest_run_policy(
    worker: Worker, said: str, opened: tuple[int, int, int]
) -> None:
    parent = await worker.run("above; max=9.00")
    for run in (
        await worker.run(f"a{said}", POLICIES),
        await worker.run(f"b; parent=above{said}", POLICIES),
    ):
        lasts_s = round((run.expires_ms - run.created_ms) / 1000)
        assert (run.amount, run.calls_max, lasts_s) == opened
        assert (await worker.run(f"{run.id}{said}", POLICIES)) == run
    assert run.parents == (parent,)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("max=2.01", "has max=2.01, and runs of this tenant have max=2 at most"),
        ("max_tokens=5", "has max_tokens=5, and runs of this tenant have max=2 at most"),
        ("max_calls=6", "has max_calls=6, and runs of this tenant have max_calls=5 at most"),
        ("ttl=61", "has ttl=61, and runs of this API key have ttl=60 at most"),
    ],
)
async def test_run_opened_with_limits_beyond_a_run_policy_is_refused(
    worker: Worker, world: World, connect: Connect, said: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await worker.run(f"a; {said}", POLICIES)
    with pytest.raises(RunNotFound):
        await worker.told("a")
    # One that is open was opened under the policies of then, and goes on wherever it is known.
    run = await worker.run(f"a; {said}")
    assert await (await another(world, connect)).run(f"a; {said}", POLICIES) == run


# --- children ------------------------------------------------------------------------------------


async def test_calls_of_a_child_run_count_against_all_ancestor_runs(worker: Worker) -> None:
    await worker.run("root; max=1.00")
    await worker.run("lead; max=5.00; parent=root")
    calls = [await worker.call(f"agent-{n}; max=0.50; parent=lead", money=300_000_000) for n in range(4)]
    assert [one.verdict for one in calls] == [Verdict.ADMITTED] * 3 + [Verdict.QUOTA_HELD]
    for one in calls[:3]:
        one.settle(money=300_000_000)
    refused = refusal_of(await worker.call("agent-9; parent=lead", money=300_000_000))
    assert refused.reason == "run_exceeded"
    assert '"root"' in refused.message
    told = await worker.told("agent-1")
    assert [(one["id"], one["used"], one["calls"]) for one in told["parents"]] == [
        ("lead", "0.9", 3),
        ("root", "0.9", 3),
    ]


async def test_parent_run_must_be_open_and_of_the_same_tenant(worker: Worker, world: World) -> None:
    with pytest.raises(InvalidRequest, match="no open run"):
        await worker.run("child; parent=made-up")
    await worker.run("theirs; max=1.00")
    stranger = Worker(World(world.url, tenant_id=8, made=True), worker.runs)
    with pytest.raises(InvalidRequest, match="no open run"):
        await stranger.run("child; parent=theirs")
    with pytest.raises(RunNotFound):
        await stranger.told("theirs")
    with pytest.raises(RunNotFound):
        await stranger.end("theirs")
    assert (await stranger.run("theirs; max=2.00")).amount == 2 * DOLLAR  # its own
    await worker.end("theirs")
    with pytest.raises(InvalidRequest, match="no open run"):
        await worker.run("child; parent=theirs")
    stranger.world.client.close()


async def test_run_deeper_than_the_maximum_of_levels_is_refused(worker: Worker) -> None:
    await worker.run("1")
    for level in range(2, LEVELS_MAX + 1):
        await worker.run(f"{level}; parent={level - 1}")
    with pytest.raises(InvalidRequest, match="no more"):
        await worker.run(f"{LEVELS_MAX + 1}; parent={LEVELS_MAX}")


async def test_child_run_expires_no_later_than_the_parent(worker: Worker) -> None:
    parent = await worker.run("parent; ttl=60")
    assert (await worker.run("child; parent=parent; ttl=86400")).expires_ms == parent.expires_ms


async def test_child_run_counts_against_a_parent_that_another_worker_opens_at_the_same_moment(
    world: World, connect: Connect
) -> None:
    world.plan(None)
    first, late = await another(world, connect), await another(world, connect)
    wanted = read_run("root; max=1.00")

    def opening(count: int) -> bytes:  # asked between the look for the parent and the child's opening
        world.run(
            "run", packing.run(world.run_id, packing.RUN_OPEN, world.caller, "root", ttl_ms=60_000,
            budget_id=2**52, packed=wanted_run(wanted)),
        )  # fmt: skip
        return os.urandom(count)

    late.runs = admission.Runs(await connect(world.url), time.monotonic, time.time, opening)
    child = await late.run("child; parent=root")
    assert [one.id for one in child.parents] == ["root"]
    (await late.call("child", money=900_000_000)).settle(money=900_000_000)
    assert (await first.told("root"))["used"] == "0.9"


async def test_run_shows_the_tree_of_child_runs(worker: Worker) -> None:
    await worker.run("root; max=9.00")
    for lead in range(3):
        await worker.run(f"lead-{lead}; parent=root")
        for agent in range(2):
            (await worker.call(f"agent-{lead}-{agent}; parent=lead-{lead}", money=DOLLAR)).settle(
                money=DOLLAR
            )
    told = await worker.told("root")
    assert told["has_more"] is False
    shown = {
        (lead["id"], lead["used"], agent["id"], agent["used"], agent["parent_id"], len(agent["children"]))
        for lead in told["children"]
        for agent in lead["children"]
    }
    assert shown == {
        (f"lead-{lead}", "2", f"agent-{lead}-{agent}", "1", f"lead-{lead}", 0)
        for lead in range(3)
        for agent in range(2)
    }
    assert (await worker.told("agent-0-0"))["children"] == []
    for agent in range(admission.TREE_MAX - 9 + 1):
        await worker.run(f"more-{agent}; parent=agent-0-0")
    told = await worker.told("root")
    below, level = 0, told["children"]
    while level:
        below += len(level)
        level = [each for one in level for each in one["children"]]
    assert (below, told["has_more"]) == (admission.TREE_MAX, True)


# --- a Redis that has lost them --------------------------------------------------------------------


async def lost(world: World) -> World:
    """The same tenant on a Redis that is empty, and verified."""
    world.client.flushall()
    world.client.close()
    caller = world.caller
    found = World(
        world.url, organization_id=caller.organization_id, tenant_id=caller.tenant_id, key_id=caller.key_id
    )
    found.plan(None)
    return found


async def test_worker_restores_known_runs_after_redis_lost_the_runs(
    worker: Worker, world: World, connect: Connect
) -> None:
    await worker.run("root; max=1.00; max_calls=7")
    child = await worker.keep(await worker.run("child; parent=root"))
    await worker.end("child")
    found = await lost(world)
    await worker.runs.restore(range(PARTITIONS))
    elsewhere = await another(found, connect)
    root = await elsewhere.run("root")
    assert root == child.parents[0]
    with pytest.raises(RunEnded):
        await elsewhere.run("child")
    assert [one["id"] for one in (await elsewhere.told("root"))["children"]] == ["child"]
    news = [read_news(event.metadata) for event in found.events() if event.kind == EventKind.RUN]
    assert [(one.id, one.ended, one.created_ms) for one in news if one] == [
        ("root", False, root.created_ms), ("child", True, child.created_ms),
    ]  # fmt: skip
    await worker.runs.restore(range(PARTITIONS))
    assert len([event for event in found.events() if event.kind == EventKind.RUN]) == 2


async def test_worker_restoring_runs_after_a_redis_loss_keeps_a_run_already_reopened_elsewhere(
    worker: Worker, world: World, connect: Connect
) -> None:
    await worker.keep(await worker.run("job; max=1.00"))
    found = await lost(world)
    elsewhere = await another(found, connect)
    again = await elsewhere.run("job; max=1.00")
    await worker.runs.restore(range(PARTITIONS))
    assert await worker.run("job") == again
    await worker.runs.restore([one for one in range(PARTITIONS) if one != world.p])


# --- its end -------------------------------------------------------------------------------------


async def test_calls_of_an_ended_run_or_of_child_runs_are_refused_by_every_worker(
    worker: Worker, world: World, connect: Connect
) -> None:
    elsewhere = await another(world, connect)
    running = await worker.call("job; max=1.00", money=5)
    await elsewhere.run("job")
    await elsewhere.run("task; parent=job")
    await worker.end("job")
    refused = [await elsewhere.call(field, money=5) for field in ("job", "task")]
    assert [refusal_of(one).reason for one in refused] == ["run_ended"] * 2
    assert refusal_of(refused[0]).status == 409
    with pytest.raises(RunEnded):
        await worker.run("job")
    assert running.settle(money=4) is SettleResult.DONE  # what was in flight counts
    told = await elsewhere.told("job")
    assert (told["status"], told["used"], told["held"]) == ("ended", "0.000000004", "0")
    assert told["calls"] == 1
    await elsewhere.end("job")  # again: nothing changes
    assert [one.kind for one in world.events()].count(
        EventKind.RUN
    ) == 2  # of "job": no call was one of "task"


async def test_run_without_calls_can_be_ended(worker: Worker, world: World, connect: Connect) -> None:
    elsewhere = await another(world, connect)
    await elsewhere.run("idle; max=1.00")
    await worker.end("idle")
    assert refusal_of(await elsewhere.call("idle", money=5)).reason == "run_ended"


async def test_child_run_is_not_created_when_the_first_call_exceeds_the_amount_of_the_parent(
    worker: Worker, world: World, connect: Connect
) -> None:
    (await worker.call("root; max=1.00", money=DOLLAR)).settle(money=DOLLAR)
    refused = await worker.call("child; parent=root", money=1)
    assert refusal_of(refused).reason == "run_exceeded"
    elsewhere = await another(world, connect)
    assert (await elsewhere.run("child")).parent_id == "root"  # for a minute others see the same one
    assert len([event for event in world.events() if event.kind == EventKind.RUN]) == 1
    lost_of = await lost(world)
    await worker.runs.restore(range(PARTITIONS))
    assert lost_of.client.exists(keys.run(world.p, (await worker.run("root")).account.name))
    worker.ahead_s = admission.WAITS_S + 1
    assert not lost_of.client.exists(keys.run(world.p, refused_name(world)))
    assert worker.runs.cached(world.caller, read_run("child")) is None


def refused_name(world: World) -> str:
    return account_of(world.caller.organization_id, world.caller.tenant_id, "child")


async def test_calls_of_an_expired_run_are_refused(worker: Worker) -> None:
    run = await worker.run("short; ttl=5")
    worker.ahead_s = 6
    with pytest.raises(RunEnded):
        await worker.run("short")
    assert (await worker.told("short"))["status"] == "ended"
    assert run.expires_ms - run.created_ms == 5000


async def test_redis_keys_of_a_run_expire_within_about_a_day_after_the_run_ends(
    worker: Worker, world: World
) -> None:
    await worker.call("short; ttl=5", money=5)
    name = (await worker.run("short")).account.name
    longest = packing.RUN_KEPT_MS + CLOCKS_DIFFER_MS + 6_000
    for key in (keys.run(world.p, name), keys.budget_account(world.p, name)):
        assert 0 < world.client.pttl(key) <= longest  # type: ignore[operator]  # it does not wait


async def test_tenant_at_the_maximum_of_open_runs_may_not_open_another_run(
    worker: Worker, world: World
) -> None:
    soon = world.now_ms() + 60_000
    name = keys.runs(world.p, world.caller.tenant_id)
    world.client.zadd(name, {f"run {n}": soon for n in range(packing.RUNS_MAX - 1)})
    await worker.run("last")
    with pytest.raises(Refusal) as refused:
        await worker.run("another")
    assert refused.value.reason == "too_many_runs"
    world.client.zadd(name, {"run 1": 1, "run 2": 1, "run 3": 1})
    await worker.run("another")  # others are forgotten


async def test_api_key_may_open_at_most_half_of_the_runs_of_a_tenant(worker: Worker, world: World) -> None:
    soon, half = world.now_ms() + 60_000, packing.RUNS_MAX // 2
    own = {f"run {n}": soon for n in range(half - 1)}
    for name in (keys.runs(world.p, world.caller.tenant_id), keys.opened_runs(world.p, world.caller.key_id)):
        world.client.zadd(name, own)
    await worker.run("half")
    with pytest.raises(Refusal, match="leaves to others") as refused:
        await worker.run("another")
    assert refused.value.reason == "too_many_runs"
    other = replace(world.caller, key_id=world.caller.key_id + 1)
    assert (await driven(worker.runs.find(other, read_run("theirs")))).id == "theirs"
    assert world.client.pttl(keys.opened_runs(world.p, other.key_id)) > 0  # type: ignore[operator]  # it does not wait


async def test_reading_the_state_of_a_run_too_often_is_refused(worker: Worker) -> None:
    await worker.run("job")

    async def many() -> None:
        for _ in range(100):
            await worker.told("job")

    with pytest.raises(RateLimited):
        await many()


# --- history -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_random_tree_of_child_runs_never_exceeds_any_amount_and_counts_all_calls(
    worker: Worker, seed: int
) -> None:
    """Calls of fifty agents on four levels, with what they hold and use at random; beside it plain sums."""
    draw = random.Random(seed)
    parents: dict[str, str] = {}
    for number in range(50):
        id_ = f"agent-{number}"
        level = [one for one in parents if depth(one, parents) < 4]
        parents[id_] = draw.choice(level) if level else ""
        below = f"; parent={parents[id_]}" if parents[id_] else ""
        await worker.run(f"{id_}; max={draw.randint(5, 40)}.00{below}")
    amounts = {id_: (await worker.run(id_)).amount for id_ in parents}
    used, calls, held = dict.fromkeys(parents, 0), dict.fromkeys(parents, 0), dict.fromkeys(parents, 0)
    flying: list[tuple[str, int, Call]] = []
    for _ in range(500):
        if flying and draw.random() < 0.5:
            id_, money, call = flying.pop(draw.randrange(len(flying)))
            spent = draw.randint(0, money)
            call.settle(money=spent)
            for one in chain(id_, parents):
                used[one] += spent
                calls[one] += 1
                held[one] -= money
            continue
        id_, money = draw.choice(list(parents)), draw.randint(1, 5 * DOLLAR)
        call = await worker.call(id_, money=money)
        fits = all(used[one] + held[one] + money <= amounts[one] for one in chain(id_, parents))
        assert (call.verdict is Verdict.ADMITTED) == fits
        if fits:
            flying.append((id_, money, call))
            for one in chain(id_, parents):
                held[one] += money
    for id_ in parents:
        run = await worker.run(id_)
        windows = {one.budget_id: one.used for one in worker.world.windows(run.account.name)}
        assert windows.get(run.budget_id + 1, 0) == used[id_] <= amounts[id_]
        assert windows.get(run.budget_id, 0) == calls[id_]


def depth(id_: str, parents: dict[str, str]) -> int:
    return len(chain(id_, parents))


def chain(id_: str, parents: dict[str, str]) -> list[str]:
    found = [id_]
    while parents[found[-1]]:
        found.append(parents[found[-1]])
    return found
