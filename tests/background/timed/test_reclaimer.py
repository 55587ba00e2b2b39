"""The reclaimer: what dead calls hold comes back, and only what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from gateway.background.timed.pusher import Reclaimer
from gateway.core.accounts.holds import ChargedAmounts, ExpiredHold, ReclaimPolicy
from gateway.core.accounts.outbox import EventNote
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import (
    NO_SERVICE,
    UNSETTLED_CHARGED,
    Caller,
    Limits,
    Service,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.leases.allowance import lease
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable
from tests.background.backend import Backend
from tests.builders import BY_TOKEN, CHAT, CREDITS, ONE_TIME, UNITS, Call, World, new_id

# --- alone ------------------------------------------------------------------------------


def expired(request_id: str) -> ExpiredHold:
    """A hold; that of `b` is one of the API, and those of names with `m` are in another partition."""
    unsettled = UNSETTLED_CHARGED if request_id == "b" else ""
    settlement = Settlement(
        Caller(1, 7, 3, 9 if request_id.startswith("m") else 0), request_id, "", CHAT, charge=False
    )
    return ExpiredHold(settlement, 5, 0, 1, unsettled=unsettled)


@dataclass
class Holds:
    """Holds that are past their deadline, sweep by sweep."""

    sweeps: list[list[str]]
    settled: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    moving: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    reclaimed: list[str] = field(default_factory=list)

    async def expired(self, count: int) -> list[ExpiredHold]:
        return [expired(one) for one in self.sweeps.pop(0)[:count]]

    async def reclaim(self, hold: ExpiredHold, charge: ChargedAmounts) -> bool:
        if hold.release.request_id in self.refused:
            raise CountersRefused
        if hold.release.request_id in self.moving:
            self.asked.append(hold.release.request_id)
            raise CountersUnavailable
        self.reclaimed.append(hold.release.request_id)
        return hold.release.request_id not in self.settled


async def test_a_hold_is_taken_back_in_the_second_sweep_that_finds_it() -> None:
    holds = Holds([["a"], ["a", "b"], ["b"], []])
    reclaimer = Reclaimer(holds)
    assert [await reclaimer.sweep() for _ in range(4)] == [0, 1, 1, 0]
    assert (holds.reclaimed, dict(reclaimer.reclaimed)) == (["a", "b"], {"call": 1, "hold": 1})


async def test_a_hold_that_was_renewed_in_between_is_left_alone() -> None:
    holds = Holds([["a"], [], ["a"], []])
    reclaimer = Reclaimer(holds)
    assert [await reclaimer.sweep() for _ in range(4)] == [0, 0, 0, 0]
    assert holds.reclaimed == []


async def test_a_hold_that_settled_meanwhile_is_not_counted() -> None:
    holds = Holds([["a"], ["a"]], settled={"a"})
    reclaimer = Reclaimer(holds)
    await reclaimer.sweep()
    assert (await reclaimer.sweep(), reclaimer.reclaimed.total()) == (0, 0)


async def test_a_hold_the_counters_refuse_keeps_no_other() -> None:
    holds = Holds([["a", "b"], ["a", "b"]], refused={"a"})
    reclaimer = Reclaimer(holds)
    await reclaimer.sweep()
    with pytest.raises(CountersUnavailable):
        await reclaimer.sweep()
    assert (holds.reclaimed, reclaimer.reclaimed.total()) == (["b"], 1)


async def test_partition_without_answers_is_tried_once_in_a_sweep() -> None:
    holds = Holds([["m1", "a", "m2", "c"]] * 2, moving={"m1", "m2"})
    reclaimer = Reclaimer(holds)
    await reclaimer.sweep()
    with pytest.raises(CountersUnavailable):
        await reclaimer.sweep()
    assert (holds.asked, holds.reclaimed) == (["m1"], ["a", "c"])


# --- with the counters ------------------------------------------------------------------


async def sweep_twice(backend: Backend) -> int:
    return await backend.reclaimer.sweep() + await backend.reclaimer.sweep()


def dead(world: World, need: int = 50, **more: object) -> Call:
    """A call whose worker died: its deadline is past."""
    return world.reserve(need=need, ttl_ms=-1, **more)  # type: ignore[arg-type]  # reserve's own keywords


async def test_what_was_seen_of_a_dead_call_is_charged(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = dead(world)
    call.extend(observed=20)
    world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    assert await sweep_twice(backend) == 1
    event = world.events()[-1]
    assert (event.amount, event.note, event.source) == (20, EventNote.RECLAIMED, call.id)
    await backend.flush()
    assert backend.ledger(world.caller.tenant_id)[-1] == (2, "consume", -20, 80)
    assert backend.rows("select metadata from token_ledger where seq = 2")[0]["metadata"]["estimated"] is True


async def test_a_dead_call_paid_by_token_costs_what_was_seen(backend: Backend) -> None:
    world = await backend.settle_in(100)
    world.grant("credits", 100)
    call = dead(world, 0, service=BY_TOKEN, credits_=60)
    call.priced(14, 5, TokenRate(read=10, input=2 * 10**15, output=5 * 10**15))
    world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    assert await sweep_twice(backend) == 1
    assert (world.organization.balance, world.organization.credits_held) == (60, 0)
    call.settle(credits=45)
    assert len(world.late()) == 1


async def test_a_live_call_is_not_touched(backend: Backend) -> None:
    world = await backend.settle_in(100)
    live, renewed = world.reserve(need=10), dead(world, 10)
    await backend.reclaimer.sweep()
    renewed.extend(observed=1)
    assert await sweep_twice(backend) == 0
    assert world.tenant.held == 20
    assert [call.settle(tokens=5) for call in (live, renewed)] == [SettleResult.DONE] * 2


async def test_a_deadline_without_a_hold_is_cleared_away(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = dead(world)
    world.client.delete(keys.hold(world.p, call.id))
    assert await sweep_twice(backend) == 0
    assert world.deadlines() == {}


async def test_a_lease_that_nobody_renewed_is_given_back_and_charges_nothing(backend: Backend) -> None:
    world = await backend.settle_in(100)
    world.plan(100, on_store_failure="allow")
    world.define_organization(Limits(concurrency=5))
    call = world.reserve(need=10)
    entries = len(world.events())
    lease_id = new_id()
    world.run("lease", lease(world.run_id, world.caller, lease_id, 60_000, fraction=0.5))
    assert world.tenant.held == 55
    world.client.zadd(keys.deadlines(world.p), {lease_id: 1})
    backend.reclaimer = Reclaimer(backend.keeping, ReclaimPolicy.CHARGE_HOLD)
    assert await sweep_twice(backend) == 0  # by its own word it lasts
    world.run("lease", lease(world.run_id, world.caller, lease_id, 1, fraction=0.5))
    while world.now_ms() < world.deadlines()[lease_id]:
        pass
    assert await sweep_twice(backend) == 1
    assert (world.tenant.held, world.tenant.inflight, len(world.events())) == (10, 1, entries)
    assert list(world.deadlines()) == [call.id]


async def test_a_call_known_by_its_head_alone_becomes_no_row(backend: Backend) -> None:
    world = await backend.settle_in(100)
    entries = len(world.events())
    dead(world, 0, service=NO_SERVICE, user="ann")
    backend.reclaimer = Reclaimer(backend.keeping, ReclaimPolicy.CHARGE_HOLD)
    assert await sweep_twice(backend) == 1
    assert (world.slots("ann"), len(world.events()), world.late()) == ([0] * 4, entries, [])


async def test_holds_of_every_partition_are_found(backend: Backend) -> None:
    worlds = [await backend.settle_in(100) for _ in range(4)]
    for world in worlds:
        dead(world)
    assert await sweep_twice(backend) == 4
    assert [world.tenant.held for world in worlds] == [0] * 4


# --- policies ---------------------------------------------------------------------------

OBSERVED, RELEASE, HOLD = ReclaimPolicy


@pytest.mark.parametrize(
    ("policy", "observed", "charged"),
    [
        (OBSERVED, 20, ChargedAmounts(20, 4, 3, money=7, budget_tokens=20, requests=1)),
        (OBSERVED, 0, ChargedAmounts()),
        (RELEASE, 20, ChargedAmounts()),
        (HOLD, 20, ChargedAmounts(50, 4, 3, money=9, budget_tokens=60, requests=1)),
        (HOLD, 70, ChargedAmounts(70, 4, 3, money=9, budget_tokens=70, requests=1)),
        (HOLD, 0, ChargedAmounts(50, 4, 3, money=9, budget_tokens=60, requests=1)),
    ],
)
def test_what_a_hold_costs_under_each_policy(
    policy: ReclaimPolicy, observed: int, charged: ChargedAmounts
) -> None:
    seen = replace(expired("a"), observed=observed, credits=4, units=3, money=7)
    assert replace(seen, held=50, held_money=9, held_budget_tokens=60).charge(policy) == charged


@pytest.mark.parametrize(
    ("policy", "observed", "charged"),
    [
        (OBSERVED, 200, ChargedAmounts(200, 4, 3, quota_tokens=20, budget_tokens=200, requests=1)),
        (OBSERVED, 0, ChargedAmounts()),
        (RELEASE, 200, ChargedAmounts()),
        (HOLD, 200, ChargedAmounts(300, 4, 3, quota_tokens=50, budget_tokens=200, requests=1)),
        (HOLD, 700, ChargedAmounts(700, 4, 3, quota_tokens=70, budget_tokens=700, requests=1)),
    ],
)
def test_what_a_hold_costs_where_its_plan_weighs_tokens(
    policy: ReclaimPolicy, observed: int, charged: ChargedAmounts
) -> None:
    weighed = replace(expired("a"), observed=observed, quota_tokens=observed // 10, taken=300, held=50)
    assert replace(weighed, credits=4, units=3).charge(policy) == charged


@pytest.mark.parametrize(
    ("service", "held", "kept"),
    [(CREDITS, {"credits_": 30}, 70), (ONE_TIME, {"credits_": 30}, 70), (UNITS, {"units": 4}, 100)],
    ids=["credits", "one-time", "units"],
)
async def test_what_other_meters_held_is_charged_where_that_is_the_policy(
    backend: Backend, service: Service, held: dict[str, int], kept: int
) -> None:
    backend.reclaimer = Reclaimer(backend.keeping, HOLD)
    world = await backend.settle_in(100)
    world.grant("credits", 100)
    call = dead(world, 0, service=service, **held)
    assert call.verdict is Verdict.ADMITTED
    assert await sweep_twice(backend) == 1
    event = world.events()[-1]
    assert (event.source, event.note, event.units) == (call.id, EventNote.RECLAIMED, held.get("units", 0))
    assert (world.organization.credits_held, world.organization.balance) == (0, kept)
