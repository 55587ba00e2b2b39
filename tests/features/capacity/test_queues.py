"""Calls that wait for what their upstream can take, by an account that says whom it lets in."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import pytest

from gateway.core.accounts.definitions import Share
from gateway.core.calls.routes import (
    MODELS_MAX,
    PER_MINUTE_MAX,
    Capacity,
    CapacityLimits,
    ModelRule,
    ModelTarget,
    UpstreamTarget,
)
from gateway.core.http_limits import HttpLimits
from gateway.core.model import BATCH
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersRefused, CountersUnavailable, StartError
from gateway.features.capacity import queues
from gateway.features.capacity.accounts import CapacityAccounts, CapacityAsk, CapacityEnd, CapacityPort
from gateway.features.capacity.limits import LearnedLimits
from gateway.features.capacity.queues import CapacityQueue, CapacityQueues, WaitingCall
from gateway.http.ports import Ports
from tests.conftest import ValkeyServer
from tests.http.fakes import CALLER, answer, post
from tests.http.stage import Answer, Stage, staged
from tests.http.test_models import chat, paired
from tests.waiting import eventually

CAPACITY = Capacity(CapacityLimits(600, 60_000, 0), (("own", CapacityLimits(concurrency=3)),))


class FakeCapacity:
    """Lets in as many as it has `room` for, the first that ask; `down` it does not answer, or `refuses`."""

    def __init__(self, room: int = 100) -> None:
        self.room, self.down, self.refuses = room, False, False
        self.accounts: list[tuple[str, str]] = []
        self.limits: dict[tuple[str, str], CapacityLimits] = {}
        self.asked: list[CapacityAsk] = []
        self.ended: list[CapacityEnd] = []
        self.over: list[str] = []

    async def ask(  # noqa: PLR0917  # as the port has it
        self,
        account: tuple[str, str],
        limits: CapacityLimits,
        asks: Sequence[CapacityAsk],
        ended: Sequence[CapacityEnd],
        over: Sequence[str],
        going: Sequence[str],
    ) -> list[int]:
        if self.down:
            raise CountersRefused if self.refuses else CountersUnavailable
        self.accounts.append(account)
        self.limits[account] = limits
        self.asked += asks
        self.ended += ended
        self.over += over
        answers = []
        for _ in asks:
            answers.append(int(self.room > 0))
            self.room -= answers[-1]
        return [5, *answers]


def limiter_of(accounts: CapacityPort) -> Callable[..., CapacityQueues]:
    """Make the queues that ask these accounts."""
    return partial(CapacityQueues, accounts)


def limiter_in(stage: Stage) -> CapacityQueues:
    """The queues of the stage."""
    assert isinstance(stage.plane.limiter, CapacityQueues)
    return stage.plane.limiter


@pytest.fixture
def capacity() -> FakeCapacity:
    return FakeCapacity()


@pytest.fixture
async def stage(capacity: FakeCapacity) -> AsyncIterator[Stage]:
    async with staged(of_target={"capacity": CAPACITY}, limiter=limiter_of(capacity)) as made:
        yield made


async def asking(stage: Stage, *requests: bytes) -> list[asyncio.Task[Answer]]:
    return [asyncio.ensure_future(stage.ask(one)) for one in requests]


async def test_call_within_upstream_capacity_is_admitted_at_once_and_returns_the_unused_part(
    stage: Stage, capacity: FakeCapacity
) -> None:
    answer = await stage.ask(post(chat("gpt")))
    assert (answer.status, answer.all(b"x-tollkeeper-waited-ms")) == (200, [])
    [one] = capacity.asked
    assert (one.share, one.weight, one.batch, one.need > 0) == ("o1", 1, 0, True)
    [ended] = await eventually(lambda: capacity.ended)
    assert (ended.by, ended.requests, ended.tokens) == (1, 0, one.need - 12)


async def test_call_is_charged_even_if_returning_the_unused_upstream_capacity_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("a fault of the queue")

    monkeypatch.setattr(queues.CapacityQueue, "end", fail)
    await stage.ask(post(chat("gpt")))
    assert [one.tokens for one in stage.counters.charges] == [12]
    [failed] = stage.events("request_failed")
    assert failed["error"] == "AttributeError"
    stage.logged.clear()


async def test_call_without_upstream_capacity_waits_and_the_answer_states_the_waiting_time(
    stage: Stage, capacity: FakeCapacity
) -> None:
    capacity.room = 0
    [call] = await asking(stage, post(chat("gpt")))
    await eventually(lambda: len(capacity.asked) > 2)
    assert stage.plane.snapshot()["capacity_waiting"] == [("up", 1)]
    assert not stage.upstream.received
    capacity.room = 1
    answer = await call
    assert (answer.status, int(answer.one(b"x-tollkeeper-waited-ms")) > 0) == (200, True)
    assert stage.plane.snapshot()["capacity_waiting"] == [("up", 0)]


async def test_call_waiting_too_long_for_upstream_capacity_is_429_with_retry_after(
    capacity: FakeCapacity,
) -> None:
    capacity.room = 0
    of_target: dict[str, object] = {"capacity": CAPACITY}
    async with staged(of_target=of_target, limiter=limiter_of(capacity), capacity_wait_s=0.02) as stage:
        answer = await stage.ask(post(chat("gpt")))
        assert (answer.status, answer.one(b"x-tollkeeper-reason")) == (429, b"capacity_exceeded")
        assert answer.one(b"x-tollkeeper-refused-by") == b"upstream"
        assert int(answer.one(b"retry-after")) >= 1
        assert not stage.upstream.received
        assert limiter_in(stage).refused_calls == {"up": 1}


async def test_client_that_disconnects_leaves_the_capacity_queue_and_the_next_call_is_admitted(
    stage: Stage, capacity: FakeCapacity
) -> None:
    capacity.room = 0
    left = await stage.client()
    await left.send(post(chat("gpt")))
    [stays] = await asking(stage, post(chat("gpt")))
    await eventually(lambda: stage.plane.snapshot()["capacity_waiting"] == [("up", 2)])
    left.writer.close()
    await eventually(lambda: stage.plane.snapshot()["capacity_waiting"] == [("up", 1)])
    capacity.room = 1
    assert (await stays).status == 200
    made = limiter_in(stage)
    assert [one.used for one in (*made.places, made.bytes)] == [0, 0, 0]


async def test_organization_over_the_share_of_waiting_places_is_429_but_may_queue_batch_calls(
    capacity: FakeCapacity,
) -> None:
    capacity.room = 0
    bounds = {"capacity_waiting_max": 2, "capacity_waiting_share": 1.0}
    async with staged(of_target={"capacity": CAPACITY}, limiter=limiter_of(capacity), **bounds) as stage:
        [first] = await asking(stage, post(chat("gpt")))
        await eventually(lambda: capacity.asked)
        answer = await stage.ask(post(chat("gpt")))
        assert (answer.status, answer.one(b"x-tollkeeper-reason")) == (429, b"capacity_exceeded")
        batch = (b"x-tollkeeper-priority: batch\r\n",)
        [other] = await asking(stage, *(post(chat("gpt"), fields=one) for one in batch))
        await eventually(lambda: capacity.asked[-1].batch)  # a batch has places of its own
        capacity.room = 9
        assert [(await one).status for one in (first, other)] == [200, 200]


class _Loop:
    """Gives handles without a time, as a fast loop does where there is no delay."""

    def time(self) -> float:
        return 1.0

    def call_later(self, _: float, __: object) -> object:
        return object()


def test_call_ending_before_the_scheduled_capacity_request_still_returns_unused_capacity() -> None:
    loop = cast("asyncio.AbstractEventLoop", _Loop())
    made = CapacityQueues(FakeCapacity(), cast("Ports", None), loop, HttpLimits())
    queue, share = CapacityQueue(made, "up", ""), Share("up", "", CALLER.organization_id)
    queue._again(0.0)
    queue.end(WaitingCall("1", share, CALLER.organization_id, 0, 5, 1, 0.0), 1, 3, True)
    assert queue._ended == [CapacityEnd(share.name, 1, share.weight, 0, 2)]


async def test_capacity_request_of_a_call_states_the_share_and_priority_of_the_tenant(
    stage: Stage, capacity: FakeCapacity
) -> None:
    mine = Share("up", "", CALLER.organization_id, CALLER.tenant_id, 3, 60, 900)
    stage.directory.shares_there = (Share("up", "", CALLER.organization_id), mine, replace(mine, model="x"))
    assert (await stage.ask(post(chat("gpt")))).status == 200
    one = capacity.asked[-1]
    assert (one.share, one.weight, one.requests, one.tokens, one.batch) == ("t2", 3, 60, 900, 0)
    parent = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    claimed = post(chat("gpt"), fields=parent + b"x-tollkeeper-priority: batch\r\n")
    assert (await stage.ask(claimed)).status == 200
    assert capacity.asked[-1].batch == 1
    stage.directory.shares_there = (replace(mine, priority=BATCH),)
    assert (await stage.ask(post(chat("gpt")))).status == 200
    assert capacity.asked[-1].batch == 1


async def test_call_priority_above_the_key_priority_is_refused(stage: Stage, capacity: FakeCapacity) -> None:
    stage.directory.caller = replace(CALLER, priority=BATCH)
    refused = await stage.ask(post(chat("gpt"), fields=b"x-tollkeeper-priority: interactive\r\n"))
    assert (refused.status, refused.one(b"x-tollkeeper-reason")) == (403, b"priority_not_allowed")
    unknown = await stage.ask(post(chat("gpt"), fields=b"x-tollkeeper-priority: urgent\r\n"))
    assert unknown.status == 400
    assert (await stage.ask(post(chat("gpt")))).status == 200
    assert [one.batch for one in capacity.asked] == [1]


async def test_model_with_own_limits_uses_a_capacity_account_apart_from_the_upstream_account(
    stage: Stage, capacity: FakeCapacity
) -> None:
    for model in ("gpt", "own"):
        assert (await stage.ask(post(chat(model)))).status == 200
    assert capacity.accounts[:2] == [("up", ""), ("up", "own")]
    await eventually(lambda: capacity.over)


async def test_call_is_forwarded_without_waiting_while_capacity_accounts_are_unavailable(
    stage: Stage, capacity: FakeCapacity
) -> None:
    capacity.down = True
    assert (await stage.ask(post(chat("gpt")))).status == 200


@pytest.mark.parametrize("refuses", [True, False])
async def test_call_ended_during_an_outage_of_capacity_accounts_is_reported_after_the_outage(
    stage: Stage, capacity: FakeCapacity, refuses: bool
) -> None:
    """What it left may have been given back already where nobody knows: it is not given back twice."""
    goes_on, capacity.refuses = asyncio.Event(), refuses
    stage.upstream.scripts += [[goes_on, answer()] for _ in range(3)]
    calls = await asking(stage, *(post(chat("own")) for _ in range(3)))
    await eventually(lambda: len(stage.upstream.received) == 3)
    capacity.down = True
    goes_on.set()
    assert [(await one).status for one in calls] == [200] * 3
    queue = limiter_in(stage)._queues["up", "own"]
    await eventually(lambda: queue._told_at < 0 and len(queue._over) == 3)
    capacity.down = False
    await eventually(lambda: len(capacity.over) == 3)
    assert set(capacity.over) == {one.id for one in capacity.asked}
    assert len(capacity.ended) == (3 if refuses else 0)
    queue._put_back([], ["gone"] * (queues.UNTOLD_MAX + 1))
    assert len(queue._over) == queues.UNTOLD_MAX


@pytest.mark.parametrize("broken", [False, True])
async def test_concurrency_slots_of_calls_that_ended_while_redis_hung_are_freed_afterwards(
    own_valkey: Callable[..., ValkeyServer], broken: bool
) -> None:
    """Whether its connection held or broke; and those of calls that it was asked about in vain."""
    server = own_valkey()
    assert server.process is not None
    wire = RedisConnection(parse_url(server.url), time.monotonic, call_s=0.3, stall_s=0.6 if broken else 60)
    await wire.open()
    accounts, goes_on = CapacityAccounts(wire), asyncio.Event()
    _, (_, slots) = keys.capacity("up", "own")
    async with staged(of_target={"capacity": CAPACITY}, limiter=limiter_of(accounts)) as stage:
        with server.connect() as client:
            stage.upstream.scripts += [[goes_on, answer()] for _ in range(3)]
            calls = await asking(stage, *(post(chat("own")) for _ in range(3)))
            await eventually(lambda: len(stage.upstream.received) == 3)
            assert client.zcard(slots) == 3
            server.process.send_signal(signal.SIGSTOP)
            assert (await stage.ask(post(chat("own")))).status == 200  # its question runs later
            assert not wire.available
            goes_on.set()
            assert [(await one).status for one in calls] == [200] * 3
            await eventually(lambda: wire.connected is not broken)
            server.process.send_signal(signal.SIGCONT)
            await eventually(lambda: wire.available and not client.zcard(slots), 20)
            assert (await stage.ask(post(chat("own")))).status == 200
    await wire.close()


async def test_upstream_capacity_setting_is_refused_if_the_capacity_feature_is_not_installed() -> None:
    target = UpstreamTarget("up", "http://127.0.0.1:9", capacity=CAPACITY)
    async with staged() as stage:
        with pytest.raises(StartError, match=r"upstreams\.up\.capacity: .* not installed"):
            stage.plane.renew([], [target], HttpLimits())


async def test_stopping_worker_reports_finished_calls_to_the_capacity_account(
    stage: Stage, capacity: FakeCapacity
) -> None:
    assert (await stage.ask(post(chat("own")))).status == 200
    await stage.plane.drain(1)
    assert capacity.over == [one.id for one in capacity.asked]


async def test_call_goes_to_the_next_target_at_once_when_the_first_has_no_capacity(
    capacity: FakeCapacity,
) -> None:
    capacity.room = 0
    rule = ModelRule("fast", False, (ModelTarget("up", "first"), ModelTarget("other", "second")))
    of_target: dict[str, object] = {"capacity": CAPACITY}
    async with paired(rule, of_target=of_target, limiter=limiter_of(capacity)) as pair:
        assert (await pair.ask(chat("fast"))).status == 200
        assert pair.asked == (0, 1)
        assert pair.stage.tally.fallbacks == {("up", "429"): 1}


# Limits that nobody states: answers do.

OPENAI = (
    b"x-ratelimit-limit-requests: 500\r\nx-ratelimit-limit-tokens: 30000\r\n"
    b"x-ratelimit-remaining-tokens: 9\r\n"
)
ANTHROPIC = (
    b"anthropic-ratelimit-requests-limit: 50\r\nanthropic-ratelimit-input-tokens-limit: 20000\r\n"
    b"anthropic-ratelimit-output-tokens-limit: 4000\r\n"
)
LEARNED = Capacity(models=(("own", CapacityLimits(concurrency=3)),), learned=True)


@pytest.mark.parametrize(("said", "limits"), [(OPENAI, (500, 30_000)), (ANTHROPIC, (50, 24_000))])
async def test_capacity_limits_are_learned_per_model_from_upstream_response_headers(
    capacity: FakeCapacity, said: bytes, limits: tuple[int, int]
) -> None:
    async with staged(of_target={"capacity": LEARNED}, limiter=limiter_of(capacity)) as stage:
        for _ in range(2):
            stage.upstream.scripts.append([answer(fields=said)])
            assert (await stage.ask(post(chat("gpt")))).status == 200
        assert (await stage.ask(post(chat("other")))).status == 200
        assert (await stage.ask(post(chat("own")))).status == 200
        await eventually(lambda: len(capacity.accounts) >= 2)
        assert {*capacity.accounts} == {("up", "gpt"), ("up", "own")}
        assert capacity.limits["up", "gpt"] == CapacityLimits(*limits)
        assert capacity.limits["up", "own"] == CapacityLimits(concurrency=3)


async def test_capacity_limits_are_not_learned_from_failed_calls_or_for_too_many_models(
    capacity: FakeCapacity,
) -> None:
    async with staged(of_target={"capacity": LEARNED}, limiter=limiter_of(capacity)) as stage:
        for status in (b"404 Not Found", b"500 Broken"):
            stage.upstream.scripts.append([answer(fields=OPENAI, status=status)])
            await stage.ask(post(chat("gpt")))
        await stage.ask(post(chat("gpt")))
    assert not capacity.accounts
    learned = LearnedLimits()
    for number in range(MODELS_MAX + 1):
        learned.note(f"m{number}", 0, 10, 0)
    assert (learned.of("m0", 1), learned.of(f"m{MODELS_MAX}", 1)) == (CapacityLimits(10), CapacityLimits())


def test_upstream_key_without_an_answer_so_far_counts_with_the_average_learned_limit() -> None:
    learned = LearnedLimits()
    learned.note("m", 0, 100, 0)
    assert learned.of("m", 3) == CapacityLimits(300)
    learned.note("m", 2, 50, 10**15)
    assert learned.of("m", 3) == CapacityLimits(225)
    learned.note("m", 0, 100, 7)
    assert learned.of("m", 2) == CapacityLimits(150, PER_MINUTE_MAX + 7)
