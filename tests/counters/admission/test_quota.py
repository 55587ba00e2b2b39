"""The counters as a worker uses them, over a real wire to a real server."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.core.billing.price_book import TokenRate
from gateway.core.model import (
    NO_SERVICE,
    BudgetAccount,
    Caller,
    Decision,
    HoldExtension,
    HoldRequest,
    Limits,
    Service,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.quota import EXTEND_BATCH_MAX, EXTEND_MARGIN_TOKENS, Counters
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import FRAME_BYTES, TOMBSTONE_MS, USER_COPIES, Frames
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import SettlementLog
from gateway.errors import CountersUnavailable
from tests.builders import (
    BY_TOKEN,
    CHAT,
    CREDITS,
    ONE_TIME,
    TTL_MS,
    UNITS,
    World,
    driven,
    new_id,
    settlement_log,
)
from tests.conftest import ValkeyServer
from tests.counters.conftest import WITHIN_S, Connect
from tests.counters.fake_redis import bulk, fake_redis
from tests.waiting import eventually


@dataclass(slots=True)
class Worker:
    """One worker's counters in a world."""

    world: World
    wire: RedisConnection
    directory: Directory
    counters: Counters
    log: SettlementLog
    took: list[str] = field(default_factory=list)

    def request(
        self, need: int = 0, *, service: Service = CHAT, user: str = "", credits_: int = 0
    ) -> HoldRequest:
        return HoldRequest(self.world.caller, new_id(), user, service, need, need, credits_)

    async def reserve(self, request: HoldRequest) -> Decision:
        decision: Decision = await driven(self.counters.reserve(request))
        return decision

    async def settle(
        self, request: HoldRequest, tokens: int, *, charge: bool = True, **used: Any
    ) -> SettleResult:
        settlement = Settlement(
            request.caller,
            request.request_id,
            request.user,
            request.service,
            charge=charge,
            tokens=tokens,
            **used,
        )
        settled: SettleResult = await driven(self.counters.settle(settlement))
        return settled


def noted(took: list[str], verb: str) -> Callable[[float], None]:
    return lambda _seconds: took.append(verb)


def counters_on(
    wire: RedisConnection,
    directory: Directory,
    log: SettlementLog,
    took: Callable[[str], Callable[[float], None]],
    **more: Any,
) -> Counters:
    """A worker's counters; `took` makes of each verb what is told its seconds."""
    verbs = {verb: took(verb) for verb in ("reserve", "settle", "extend")}
    return Counters(wire, directory, TTL_MS, time.monotonic, verbs, log=log, **more)


Hire = Callable[..., Any]


@pytest.fixture
def hire(connect: Connect, tmp_path: Path) -> Hire:
    """A worker with its own wire, directory and counters."""

    async def hired(world: World, **more: Any) -> Worker:
        wire = await connect(world.url, **more)
        directory = Directory(wire, time.monotonic)
        took: list[str] = []
        log = settlement_log(tmp_path / "settlements")
        counters = counters_on(wire, directory, log, partial(noted, took))
        world.client.set(keys.CATALOGUE, encode_catalogue(1, [CHAT, CREDITS, ONE_TIME, UNITS]))
        await driven(directory.refresh())
        return Worker(world, wire, directory, counters, log, took)

    return hired


async def test_reserve_and_settle_move_the_account(world: World, hire: Hire) -> None:
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


async def test_a_call_known_by_its_head_alone_is_raised_once_its_body_is_read(
    world: World, hire: Hire
) -> None:
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


async def test_what_leaves_in_one_write_carries_its_number(connect: Connect, tmp_path: Path) -> None:
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
async def test_each_argument_is_as_its_layout_has_it(
    connect: Connect, tmp_path: Path, names: tuple[str, ...], kept: bool
) -> None:
    caller = Caller(1, 2, 3, keys.partition_of(1))
    request = HoldRequest(caller, new_id(), "ünï", UNITS, 2**40, 7, 3, 4, least=5, credits_least=6)
    request.budgets = tuple([BudgetAccount(name, b"defined " + name.encode(), True) for name in names])
    request.money, request.money_most, request.money_least = 11, 2**53 - 1, 13
    request.raw_tokens, request.raw_most, request.raw_least = 14, 15, 16
    used = Settlement(
        caller, request.request_id, "ünï", UNITS, charge=True, tokens=2**31, credits=1, units=9,
        attribution="1\t2\tü", metadata=b"x" * 1_023 + b"\r", over=2, budgets=names, money=5, raw_tokens=6,
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
async def test_the_kept_wire_bytes_say_what_packing_says(
    world: World, hire: Hire, service: Service, user: str
) -> None:
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


async def test_what_a_one_time_service_cost_is_said_by_its_settlement(world: World, hire: Hire) -> None:
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


async def test_a_stale_catalogue_is_read_again_and_the_call_served(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10)
    world.mark(catalogue=3)
    world.client.set(keys.CATALOGUE, encode_catalogue(3, [CHAT]))
    assert (await worker.reserve(worker.request(5))).verdict is Verdict.ADMITTED
    assert worker.directory.version == 3


async def test_a_catalogue_that_stays_stale_is_unavailable(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10)
    world.mark(catalogue=3)
    with pytest.raises(CountersUnavailable):
        await worker.reserve(worker.request(5))
    assert world.tenant.inflight == 0


async def test_an_unverified_partition_is_unavailable(world: World, hire: Hire) -> None:
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


async def test_functions_that_were_flushed_are_not_missed(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(100)
    world.client.function_flush()
    request = worker.request(5)
    assert (await worker.reserve(request)).verdict is Verdict.ADMITTED
    world.client.function_flush()
    assert await worker.settle(request, 5) is SettleResult.DONE
    assert world.tenant.used == 5


async def test_a_settlement_whose_answer_is_late_may_be_settled_again_and_is_charged_once(
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


async def test_without_redis_what_was_used_is_kept_on_the_disk_at_once(own_valkey: Any, hire: Hire) -> None:
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


# --- extend -----------------------------------------------------------------------------


def milliseconds(told: tuple[int, int]) -> int:
    """What Redis says of the time, as its scripts go by it."""
    return told[0] * 1000 + told[1] // 1000


async def test_live_calls_are_renewed_and_their_holds_follow(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(1000)
    request, other = worker.request(10), worker.request(10)
    await worker.reserve(request)
    await worker.reserve(other)
    observed = HoldExtension(world.caller, request.request_id, held=10, tokens=50)
    gone = HoldExtension(world.caller, new_id(), held=3)
    worker.counters.watch(observed)
    worker.counters.watch(gone)
    before, began = world.deadlines(), world.client.time()
    await eventually(lambda: milliseconds(world.client.time()) > milliseconds(began))
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (50 + EXTEND_MARGIN_TOKENS, False)
    assert (gone.held, gone.exhausted) == (3, False)
    after = world.deadlines()
    assert after[request.request_id] > before[request.request_id]
    assert after[other.request_id] == before[other.request_id]
    assert worker.counters.live == 2
    worker.counters.unwatch(observed)
    worker.counters.unwatch(gone)
    assert worker.counters.live == 0


async def test_nothing_is_held_ahead_beyond_what_a_call_can_use(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(1000)
    world.grant("credits", 1000)
    rate = TokenRate(read=10, input=10**15, output=2 * 10**15)
    call = world.reserve(service=BY_TOKEN, credits_=30)
    priced = HoldExtension(world.caller, call.id, held=20, tokens=15, counts=False, rate=rate, most=20)
    request = worker.request(10)
    await worker.reserve(request)
    counted = HoldExtension(world.caller, request.request_id, held=10, tokens=9, most=12)
    for observed in (priced, counted):
        worker.counters.watch(observed)
        await worker.counters.extend_all()
    assert (priced.held, priced.exhausted, world.organization.credits_held) == (20, False, 30)
    assert (counted.held, counted.exhausted, world.tenant.held) == (12, False, 12)
    counted.tokens = 40  # its upstream does not keep to the maximum: 256 more are held ahead again
    await worker.counters.extend_all()
    assert (counted.held, world.tenant.held) == (40 + 256, 40 + 256)


async def test_credits_of_a_live_call_follow_its_tokens(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.grant("credits", 1000)
    call = world.reserve(service=BY_TOKEN, credits_=30)
    rate = TokenRate(read=10, input=10**15, output=2 * 10**15)
    observed = HoldExtension(world.caller, call.id, held=20, tokens=50, counts=False, rate=rate)
    worker.counters.watch(observed)
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (50 + EXTEND_MARGIN_TOKENS, False)
    assert world.organization.credits_held == 10 + 2 * (40 + EXTEND_MARGIN_TOKENS)
    observed.tokens = 500
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (10 + 990 // 2, True)


async def test_many_live_calls_go_in_batches(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10**6)
    count = EXTEND_BATCH_MAX * 2 + 1
    for _ in range(count):
        request = worker.request(1)
        await worker.reserve(request)
        worker.counters.watch(HoldExtension(world.caller, request.request_id, held=1, tokens=9))
    await worker.counters.extend_all()
    assert worker.took.count("extend") == 3
    assert world.tenant.held == count * (9 + EXTEND_MARGIN_TOKENS)


async def test_extending_without_redis_keeps_what_is_known(own_valkey: Any, hire: Hire) -> None:
    server = own_valkey()
    world = World(server.url)
    worker = await hire(world)
    observed = HoldExtension(world.caller, new_id(), held=10, tokens=50)
    worker.counters.watch(observed)
    server.stop()
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (10, False)


# --- frames -----------------------------------------------------------------------------


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


def test_a_key_with_many_users_pushes_out_none_that_comes_now_and_then() -> None:
    frames, often, many = Frames(3 * SMALL), Caller(1, 2, 3, 4), Caller(1, 2, 4, 4)
    first = frames.frame_of(often, "ann", CHAT)
    for number in range(10):
        frames.frame_of(many, f"made up {number}", CHAT)
        assert frames.frame_of(often, "ann", CHAT) is first
    assert frames.frame_of(often, "ann", replace(CHAT)) is not first
    assert len(frames) == 3


def test_of_large_frames_there_are_fewer() -> None:
    """Callers say who they are: what a worker keeps of them is bounded by its size."""
    frames, caller = Frames(50_320), Caller(1, 2, 3, 4)
    for number in range(100):
        names = tuple(f"{at:016x}:{number:024x}" for at in range(16))
        frames.frame_of(caller, f"made up {number}", CHAT, names)
    assert len(frames) == 5
    for number in range(100):
        frames.frame_of(caller, f"another {number}", CHAT)
    assert len(frames) == 26


def test_what_callers_have_in_common_is_there_once() -> None:
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


async def test_a_service_that_changed_is_charged_as_it_is_now(world: World, hire: Hire) -> None:
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
