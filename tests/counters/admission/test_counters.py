"""The counters as a worker uses them, over a real wire to a real server."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget, CallAttributes, PersonalOverride, account_of, owner_of
from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.model import (
    NO_SERVICE,
    BudgetAccount,
    Caller,
    HoldRequest,
    Limits,
    Service,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import FRAME_BYTES, TOMBSTONE_MS, USER_COPIES, Frames
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, CREDITS, ONE_TIME, TTL_MS, UNITS, World, driven, new_id, settlement_log
from tests.conftest import ValkeyServer
from tests.counters.admission.hired_worker import Hire, counters_on, hire, noted
from tests.counters.conftest import WITHIN_S, Connect
from tests.counters.fake_redis import bulk, fake_redis
from tests.lua.windows import account, window
from tests.waiting import eventually

__all__ = ["hire"]
# Calls at one instant.
CALLS = 500


async def test_reserve_and_settle_move_account(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(100)
    request = worker.request(40, user="ann")
    decision = await worker.reserve(request)
    assert (decision.verdict, decision.held_tokens, decision.tokens_remaining) == (Verdict.ADMITTED, 40, 60)
    metadata, attribution = b'{"a":"\r\n"}', "1\t2\tv\n"
    assert await worker.settle(request, 55, metadata=metadata, attribution=attribution) is SettleResult.DONE
    event = world.events()[-1]
    assert (event.amount, event.remaining, event.source, event.user) == (55, 45, request.request_id, "ann")
    assert (event.metadata, event.attribution) == (metadata, attribution)
    assert worker.took == ["reserve", "settle"]


async def test_reserve_answers_which_steps_of_budgets_are_reached_among_other_calls(
    world: World, hire: Hire
) -> None:
    """Of 500 calls at one instant each second one brings steps; 40 hold the half of a budget of 80."""
    worker = await hire(world)
    world.plan(None)
    budget = account(window(1, 80))
    steps = ((1, 500_000, 1), (1, 500_001, 0))
    requests = [
        replace(
            worker.request(1),
            budgets=(budget,),
            names=(budget.name,),
            money=1,
            steps=steps if number % 2 else (),
        )
        for number in range(CALLS)
    ]
    decisions = await asyncio.gather(*[worker.reserve(request) for request in requests])
    answers = Counter((decision.verdict, getattr(decision, "reached", b"")) for decision in decisions)
    passed = answers.pop((Verdict.ADMITTED, b""))
    assert passed == 80 == world.windows(budget.name)[0].held
    assert {verdict for verdict, _ in answers} == {Verdict.STEP_REACHED, Verdict.QUOTA_HELD}
    assert {reached for _, reached in answers} <= {b"", b"\1\0", b"\1\1"}
    assert answers[Verdict.STEP_REACHED, b"\1\1"] > 0


async def test_settle_counts_account_that_held_less(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(100)
    request = worker.request(40)
    await worker.reserve(request)
    world.put_tenant(held=0)
    before = dict(SETTLE_RESULTS.snapshot())
    assert await worker.settle(request, 55) is SettleResult.DONE
    assert dict(SETTLE_RESULTS.snapshot()) == before | {"unheld": before["unheld"] + 1}
    assert (world.tenant.used, world.tenant.held) == (55, 0)


async def test_reserve_raises_hold_of_head_after_its_body(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.define_key(Limits(concurrency=1))
    world.plan(100)
    head = HoldRequest(world.caller, new_id(), "", NO_SERVICE, 0, 0, units=0)
    assert (await worker.reserve(head)).verdict is Verdict.ADMITTED
    assert (await worker.reserve(worker.request(1))).verdict is Verdict.CONCURRENCY_LIMITED
    whole = replace(head, service=CHAT, need=40, ceiling=40, raises=True)
    decision = await worker.reserve(replace(whole, need=1, ceiling=1, service=CREDITS, credits=1))
    assert decision.verdict is Verdict.INSUFFICIENT_CREDITS
    decision = await worker.reserve(whole)
    assert (decision.verdict, decision.held_tokens, world.key.inflight) == (Verdict.ADMITTED, 40, 1)
    assert await worker.settle(whole, 40) is SettleResult.DONE
    assert (world.key.inflight, world.tenant.remaining) == (0, 60)


async def test_calls_of_a_write_carry_its_number(connect: Connect, tmp_path: Path) -> None:
    """So that it shares the time Redis says; and each is timed by its own write."""
    caller, took = Caller(1, 2, 3, keys.partition_of(1)), list[float]()
    request = HoldRequest(caller, new_id(), "", CHAT, 1, 1)
    used = Settlement(caller, request.request_id, "", CHAT, charge=True, tokens=1)
    async with fake_redis(lambda _: bulk(struct.pack("<d", Verdict.UNVERIFIED))) as fake:
        wire = await connect(fake.url)
        log = settlement_log(tmp_path / "settlements")
        counters = counters_on(wire, Directory(wire, time.monotonic), log, lambda _: took.append)
        for _ in range(2):
            calls = driven(counters.reserve(request)), driven(counters.settle(used))
            await asyncio.gather(*calls, return_exceptions=True)
        packed = [[command[3 + int(command[2])] for command in chunk] for chunk in fake.chunks]
    (first, same), (second, too) = [[struct.unpack_from("<d", one)[0] for one in chunk] for chunk in packed]
    assert packing.NO_BATCH < first == same < second == too
    assert len(took) == 4
    assert all(0 <= seconds < WITHIN_S for seconds in took)


@pytest.mark.parametrize("names", [(), ("account", "account:each")])
@pytest.mark.parametrize("kept", [True, False])
async def test_arguments_follow_their_layouts(
    connect: Connect, tmp_path: Path, names: tuple[str, ...], kept: bool
) -> None:
    caller = Caller(1, 2, 3, keys.partition_of(1))
    request = HoldRequest(caller, new_id(), "ünï", UNITS, 2**40, 7, 3, 4, least=5, credits_least=6)
    request.budgets = tuple([BudgetAccount(name, b"defined " + name.encode(), True) for name in names])
    request.money, request.money_most, request.money_least = 11, 2**53 - 1, 13
    request.budget_tokens, request.budget_tokens_most, request.budget_tokens_least = 14, 15, 16
    used = Settlement(
        caller, request.request_id, "ünï", UNITS, charge=True, tokens=2**31, credits=1, units=9,
        attribution="1\t2\tü", metadata=b"x" * 1_023 + b"\r", over=2, budgets=names, money=5, budget_tokens=6,
    )  # fmt: skip
    admitted = packing.ADMITTED.pack(Verdict.ADMITTED, *range(1, 16))
    answers = iter([admitted, packing.SETTLED.pack(SettleResult.DONE, *range(1, 9))])
    async with fake_redis(lambda _: bulk(next(answers))) as fake:
        wire = await connect(fake.url)
        log = settlement_log(tmp_path / "settlements")
        counters = counters_on(wire, Directory(wire, time.monotonic), log, lambda _: lambda _: None)
        wanted = [
            packing.reserve(wire.run_id, 0, TTL_MS, request, wire.batch),
            packing.settle(wire.run_id, TOMBSTONE_MS, used, packing.MODE_CHARGE, batch=wire.batch + 1),
        ]
        decision = await driven(counters.reserve(request))
        used.frame = decision.frame if kept else None
        assert await driven(counters.settle(used)) is SettleResult.DONE
        (reserved,), (settled,) = fake.chunks[-2:]
    for (names_, arguments), sent in zip(wanted, (reserved, settled), strict=True):
        assert sent[3:] == [*(one.encode() for one in names_), *arguments]


@pytest.mark.parametrize("service", [CHAT, CREDITS, ONE_TIME, UNITS], ids=lambda one: str(one.key))
@pytest.mark.parametrize("user", ["", "ann", "ünï¢ode\r\n$5"])
async def test_frame_is_sent_as_packed_call(world: World, hire: Hire, service: Service, user: str) -> None:
    """A caller's frame is cut and filled; the script must see the call as `packing` makes it."""
    worker = await hire(world)
    world.plan(100)
    world.grant("credits", 100)
    for _ in range(2):
        request = worker.request(3, service=service, user=user, credits_=5)
        assert (await worker.reserve(request)).verdict is Verdict.ADMITTED
        assert await worker.settle(request, 4, credits=5, units=2) is SettleResult.DONE
    assert world.slots(user) == [0, 0, 0, 0]
    assert {event.user for event in world.events() if event.source == request.request_id} == {user}


async def test_settle_sets_charge_of_service_with_single_price(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.grant("credits", 100)
    requests = [worker.request(service=ONE_TIME, credits_=50) for _ in range(2)]
    charged = []
    for request in requests:
        await worker.reserve(request)
    for request in (*requests, requests[0]):
        settlement = Settlement(world.caller, request.request_id, "", ONE_TIME, charge=True, credits=50)
        await driven(worker.counters.settle(settlement))
        charged.append(settlement.credits)
    assert charged == [50, 0, 0]


async def test_reserve_refreshes_stale_catalogue_and_admits(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10)
    world.mark(catalogue=3)
    world.client.set(keys.CATALOGUE, encode_catalogue(3, [CHAT]))
    assert (await worker.reserve(worker.request(5))).verdict is Verdict.ADMITTED
    assert worker.directory.version == 3


async def test_reserve_is_unavailable_while_catalogue_stays_stale(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10)
    world.mark(catalogue=3)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(worker.request(5))
    assert world.tenant.inflight == 0


async def test_reserve_is_unavailable_in_unverified_partition(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10)
    request = worker.request(5)
    await worker.reserve(request)
    world.client.set(keys.marker(world.p), packing.marker(b"0" * 40, 1, 1))
    with pytest.raises(CountersUnavailable):
        await worker.reserve(worker.request(5))
    assert await worker.settle(request, 5) is SettleResult.SPOOLED
    with pytest.raises(CountersUnavailable):  # a hold that is not let go of ends by its deadline
        await worker.settle(request, 0, charge=False)


async def test_reserve_and_settle_load_flushed_functions_again(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(100)
    world.client.function_flush()
    request = worker.request(5)
    assert (await worker.reserve(request)).verdict is Verdict.ADMITTED
    world.client.function_flush()
    assert await worker.settle(request, 5) is SettleResult.DONE
    assert world.tenant.used == 5


async def test_settle_charges_once_after_late_answer(
    own_valkey: Callable[..., ValkeyServer], hire: Hire
) -> None:
    server = own_valkey()
    world = World(server.url)
    worker = await hire(world, call_s=1.0, stall_s=30)
    world.plan(100)
    request = worker.request(5)
    await worker.reserve(request)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert await worker.settle(request, 7) is SettleResult.SPOOLED
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: worker.wire.available)
    assert await worker.settle(request, 7) in {SettleResult.DONE, SettleResult.UNKNOWN}
    assert (world.tenant.used, world.tenant.held) == (7, 0)
    assert [event.amount for event in world.events()[1:]] == [7]


async def test_settle_spools_to_disk_without_redis(own_valkey: Any, hire: Hire) -> None:
    server = own_valkey()
    world = World(server.url)
    worker = await hire(world)
    world.plan(100)
    request = worker.request(5)
    await worker.reserve(request)
    server.stop()
    async with asyncio.timeout(30):
        assert await worker.settle(request, 7) is SettleResult.SPOOLED
        with pytest.raises(CountersUnavailable):
            await worker.reserve(worker.request(1))
    assert worker.log.waiting == 1


# Of a user of so few characters.
SMALL = FRAME_BYTES + 12 * USER_COPIES


async def test_frames_are_bounded(world: World, hire: Hire) -> None:
    worker = await hire(world)
    frames = Frames(2 * SMALL)
    worker.counters = counters_on(
        worker.wire, worker.directory, worker.log, partial(noted, []), frames=frames
    )
    world.plan(100)
    for user in ("a", "b", "c", "a"):
        assert (await worker.reserve(worker.request(1, user=user))).verdict is Verdict.ADMITTED
    assert len(frames) == 2


def test_frames_of_frequent_caller_outlive_made_up_users() -> None:
    frames, often, many = Frames(3 * SMALL), Caller(1, 2, 3, 4), Caller(1, 2, 4, 4)
    first = frames.frame_of(often, "ann", CHAT)
    for number in range(10):
        frames.frame_of(many, f"made up {number}", CHAT)
        assert frames.frame_of(often, "ann", CHAT) is first
    assert frames.frame_of(often, "ann", replace(CHAT)) is not first
    assert len(frames) == 3


def test_frames_are_bounded_by_size() -> None:
    """Callers say who they are: what a worker keeps of them is bounded by its size."""
    frames, caller = Frames(50_320), Caller(1, 2, 3, 4)
    for number in range(100):
        names = tuple(f"{at:016x}:{number:024x}" for at in range(16))
        frames.frame_of(caller, f"made up {number}", CHAT, names)
    assert len(frames) == 5
    for number in range(100):
        frames.frame_of(caller, f"another {number}", CHAT)
    assert len(frames) == 26


def test_frames_share_common_bytes() -> None:
    frames, made = Frames(), []
    for key_id in (3, 4):
        caller = Caller(1, 2, key_id, 4)
        request = HoldRequest(caller, new_id(), "ann", CHAT, 5, 5)
        request.budgets = (BudgetAccount("all", f"{7:08}".encode(), enforced=True),)
        frame = frames.frame_of(caller, "ann", CHAT, ("all",))
        assert frame.end_of(request).endswith(b"00000007\r\n")
        made.append(frame)
    first, second = made
    assert first.who != second.who
    assert first.settle_end is second.settle_end
    assert first._defined is second._defined


async def test_settle_charges_service_as_resolved_now(world: World, hire: Hire) -> None:
    """A frame belongs to a service as it was resolved; another resolution makes another frame."""
    worker = await hire(world)
    world.plan(100)
    world.grant("credits", 10)
    changed = replace(CHAT, meter="consumption", counts_tokens=False)
    for service in (CHAT, changed):
        request = worker.request(5, service=service, credits_=0)
        await worker.reserve(request)
        await worker.settle(request, 5, credits=5)
    assert (world.tenant.used, world.organization.balance) == (5, 5)


@pytest.mark.parametrize(
    ("override", "admitted"),
    [(PersonalOverride(37), 37), (PersonalOverride(0), 0), (PersonalOverride(None), CALLS), (None, 20)],
)
async def test_reserve_admits_as_many_simultaneous_calls_as_fit_in_an_override(
    world: World, hire: Hire, override: PersonalOverride | None, admitted: int
) -> None:
    """Everybody has 20: two workers send Ada's calls, and one of Bob's among each ten of hers."""
    world.plan(None)
    own = {} if override is None else {owner_of("ada"): override}
    each = Budget(1, "each", "requests", 20, "total", each="user", overrides=own)
    budgets = OrganizationBudgets(world.caller.organization_id, (each,), "USD")
    workers, users = [await hire(world) for _ in range(2)], (["ada"] * 10 + ["bob"]) * (CALLS // 10)
    asked = {"ada": list[HoldRequest](), "bob": list[HoldRequest]()}
    for user in users:
        asked[user].append(request := workers[0].request(user=user))
        attributes = CallAttributes(world.caller.tenant_id, world.caller.key_id, 0, user)
        request.budgets = budgets.find(attributes, world.now_ms()).accounts
    sent = [request for user in ("ada", "bob") for request in asked[user]]
    decisions = await asyncio.gather(*[workers[at % 2].reserve(one) for at, one in enumerate(sent)])
    verdicts = Counter(
        (request.user, decision.verdict) for request, decision in zip(sent, decisions, strict=True)
    )
    expected = {
        ("ada", Verdict.ADMITTED): admitted, ("ada", Verdict.QUOTA_HELD): CALLS - admitted,
        ("bob", Verdict.ADMITTED): 20, ("bob", Verdict.QUOTA_HELD): CALLS // 10 - 20,
    }  # fmt: skip
    if override == PersonalOverride(0):
        expected |= {("ada", Verdict.QUOTA_HELD): 0, ("ada", Verdict.BUDGET_EXCEEDED): CALLS}
    assert verdicts == Counter(expected)
    held = [window.held for window in world.windows(account_of(world.caller.organization_id, each, "ada"))]
    assert held == ([] if admitted == 0 else [admitted])
