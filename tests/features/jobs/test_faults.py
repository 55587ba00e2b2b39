"""What an upstream makes is charged once, whatever fails at whichever moment: a worker on a real Valkey.

The upstream keeps what it made, each thing with its price. Behind a fault Redis is well again, and the job is
16 minutes older.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, cast

import h11
import msgspec
import pytest

from gateway.core.accounts.call_facts import CallFacts
from gateway.core.accounts.upstream_jobs import OPENING, RUNNING, UNANSWERED_S_MAX, Job, read_job, write_job
from gateway.core.billing.price_book import read_price
from gateway.core.families import gemini, openai
from gateway.core.model import Service
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import JOB, LogLimits, SettlementLog
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.errors import CountersUnavailable, Overloaded, UpstreamUnreachable
from gateway.features.jobs.polling import Jobs
from gateway.features.jobs.stored import LOOK_MAX, OPEN_KEY_MAX, OPEN_MAX, StoredJobs
from gateway.http import collections
from gateway.http.ports import JobsPort
from gateway.http.server import server
from gateway.settings.settings import Settings
from persistence.jobs import _row
from tests.builders import CHAT, World, driven, settlement_log
from tests.core.billing.prices import price_row
from tests.faults.crashing import Plan, Stepped
from tests.http.fakes import get, post
from tests.http.stage import Client, FakeUpstream, Stage, reset, staged
from tests.search import steps
from tests.waiting import eventually

ROUTES = tuple(
    replace(route, upstream="up") for one in (openai.FAMILY, gemini.FAMILY) for route in one.routes
)
VIDEO = ("/v1/videos", {"model": "draw", "prompt": "a", "seconds": "8"})
RESPONSE = ("/v1/responses", {"model": "draw", "input": "hi", "max_output_tokens": 50, "background": True})
VEO = (
    "/v1beta/models/draw:predictLongRunning",
    {"instances": [{"prompt": "a"}], "parameters": {"durationSeconds": 8}},
)
CALL = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 100}}
BATCH = (
    "/v1beta/models/draw:batchGenerateContent",
    {"batch": {"inputConfig": {"requests": {"requests": [{"request": CALL}] * 3}}}},
)
KINDS = {"video": VIDEO, "response": RESPONSE, "operation": VEO}
# Nano-units: 8 seconds at 0.1; 10 tokens in at a millionth, 20 out at two.
COSTS = {"video": 800_000_000, "response": 50_000, "operation": 800_000_000}
CALL_S = 0.15


class Maker(FakeUpstream):
    """An upstream that makes videos, responses and operations, and remembers them.

    `fault` strikes when a thing is made, and before it is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, dict[str, Any]] = {}
        self.fault: Callable[[asyncio.StreamWriter], Any] | None = None
        self.lists = True
        self.writers: set[asyncio.StreamWriter] = set()
        self.handler = self._answer_all

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        oracle = h11.Connection(h11.SERVER)
        self.writers.add(writer)
        while (asked := await self._request(oracle, reader)) is not None:
            self.received.append(asked)
            status, said = self._told(asked.method, asked.target.decode().partition("?")[0])
            fault, self.fault = (self.fault, None) if asked.method == b"POST" else (None, self.fault)
            body = json.dumps(said).encode()
            if fault is not None:
                told = await fault(writer)
                if told is not None:
                    status, body = told
            head = b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (status, len(body)) + body)
            await writer.drain()
            oracle = self._next(oracle)
        self.writers.discard(writer)

    def _told(self, method: bytes, path: str) -> tuple[int, dict[str, Any]]:
        if path == BATCH[0]:
            self.made["b"] = {}
            return 200, {"name": "batches/b", "metadata": {}}
        kind = next(one for one, (at, _) in KINDS.items() if path.startswith(at.partition(":")[0]))
        if method == b"POST":
            place = "models/draw/operations/" if kind == "operation" else ""
            id_ = f"{place}{kind}_{len(self.made)}"
            self.made[id_.rpartition("/")[2]] = {
                "id": id_, "name": id_, "kind": kind, "model": "draw", "seconds": "8",
                "created_at": int(time.time() - UNANSWERED_S_MAX - 60),
            }  # fmt: skip
            if kind == "operation":
                return 200, {"name": id_}
            return 200, {"id": id_, "object": kind, "status": "queued", "model": "draw"}
        if path == "/v1/videos":
            return (200, {"data": list(self.made.values()), "has_more": False}) if self.lists else (404, {})
        thing = self.made.get(path.rpartition("/")[2])
        if thing is None:
            return 404, {}
        if kind == "operation":
            made = {"generateVideoResponse": {"generatedSamples": [{}]}}
            return 200, {"name": thing["name"], "done": True, "response": made}
        usage = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}
        return 200, thing | {"status": "completed", "object": kind, "usage": usage, "output": []}


@dataclass
class Gateway:
    """One worker: its plane, its jobs, its log."""

    stage: Stage
    world: World
    wire: RedisConnection
    log: SettlementLog
    stored: StoredJobs
    jobs: Jobs
    resubmitter: Resubmitter
    clients: list[Client] = field(default_factory=list)

    @property
    def maker(self) -> Maker:
        return cast("Maker", self.stage.upstream)

    async def ask(self, kind: str) -> int:
        """The status of the answer to a call that makes something; 0 where there is none."""
        path, said = KINDS.get(kind, BATCH)
        client = await self.stage.client()
        self.clients.append(client)
        with suppress(ConnectionError, h11.RemoteProtocolError, asyncio.IncompleteReadError):
            return (await client.ask(post(json.dumps(said).encode(), path.encode()))).status
        return 0

    async def rest(self) -> None:
        """Wait until no request is under way, and what was spooled or owed is in Redis."""
        await eventually(lambda: not any(one.exchange for one in self.stage.plane._connections))
        await eventually(lambda: not self.stage.plane._orphans)

        async def sent() -> bool:
            with suppress(CountersUnavailable):
                await self.resubmitter.resubmit()
            releases = cast("Any", self.stage.plane._ports.counters).releases
            return not self.log.waiting and not releases._owed

        await eventually(sent)

    async def looked(self, later_s: float = UNANSWERED_S_MAX + 60) -> list[Job]:
        """All jobs, once each was looked at when it was so much older."""
        for job in self.listed():
            if job.settled_ms:
                continue
            job.created_ms -= int(1000 * later_s)
            job.next_look_ms -= int(1000 * later_s)
            self.world.client.set(keys.job(job.partition, job.hold_id), write_job(job))
            with suppress(UpstreamUnreachable):
                await self.jobs.look(job)
        return self.listed()

    def listed(self) -> list[Job]:
        ids = cast("list[bytes]", self.world.client.zrange(keys.jobs(self.world.p), 0, -1))
        raw = [self.world.client.get(keys.job(self.world.p, keys.job_of(one))) for one in ids]
        return [job for one in raw if one and (job := read_job(cast("bytes", one))) is not None]

    def charged(self) -> list[CallFacts]:
        """What the outbox has of calls that cost something."""
        return [one.facts for one in self.world.events() if one.facts is not None and one.facts.cost]

    def check(self, kind: str, calls: int = 1, unsure: bool = False) -> None:
        """As much is charged as was made, once each, and nothing is held.

        Where it is `unsure` whether an upstream has read a request, what it did not make may be charged.
        """
        costs = [one.cost or 0 for one in self.charged()]
        made = len(self.maker.made)
        assert made <= calls
        assert len(costs) == made or (unsure and made <= len(costs) <= calls), (costs, self.listed())
        assert all(COSTS[kind] <= one <= 3 * COSTS[kind] for one in costs), costs
        assert not self.world.client.keys(keys.hold(self.world.p, "*"))
        assert not self.world.late()
        open_ = [one for one in self.listed() if not one.settled_ms]
        assert not open_, open_
        told = sum(one.cost for one in self.listed())
        assert told == sum(costs)


def said(event: str, **facts: object) -> None:
    """A test that fails shows why a job was not looked at."""
    print(event, facts)


@asynccontextmanager
async def gateway_at(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A worker whose upstream is a `Maker`."""
    world = World(url, organization_id=1, tenant_id=2, key_id=3)
    world.plan(10**9)
    world.client.set(keys.CATALOGUE, encode_catalogue(1, [CHAT]))
    wire = RedisConnection(parse_url(url), time.monotonic, call_s=CALL_S)
    await wire.open()
    log, directory = settlement_log(folder), Directory(wire, time.monotonic)
    await driven(directory.refresh())
    took = dict.fromkeys(("reserve", "settle", "extend"), lambda _: None)
    counters = Counters(wire, directory, 3_600_000, time.monotonic, took, log=log)
    objects = ObjectOwners(wire, time.time, 3600.0, 1000)
    stored = StoredJobs(wire, objects, log)
    jobs = Jobs(stored, Settings(), said)
    resubmitter = Resubmitter(
        wire, log, time.monotonic, lambda *_, **__: None, others={JOB: stored.resend},
        report=WorkerReports(wire, "1", time.time_ns(), time.monotonic).report, bounds=LogLimits(batch_s=0.0),
    )  # fmt: skip
    monkeypatch.setattr("tests.http.stage.FakeUpstream", Maker)
    async with staged(
        ROUTES, jobs=cast("JobsPort", jobs), counters=counters, stored=objects, drain_s=0.3
    ) as stage:
        stage.directory.caller = world.caller
        for number, key in enumerate(("videos", "gemini", "responses"), 91):
            stage.directory.services[key] = Service(number, key, "subscription")
        price = price_row(id=5, model="draw", video_second="0.1", input="1", output="2")
        stage.directory.prices["draw"] = read_price(price).vector
        jobs.serve(stage.plane, stage.plane._ports)
        try:
            yield Gateway(stage, world, wire, log, stored, jobs, resubmitter)
        finally:
            world.client.execute_command("CLIENT", "UNPAUSE")
            world.client.config_set("maxmemory", "8gb")
            world.client.execute_command("REPLICAOF", "NO", "ONE")
    await log.close()
    await wire.close()
    world.client.close()


@pytest.fixture
async def gateway(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    async with gateway_at(valkey, tmp_path, monkeypatch) as made:
        yield made


# What strikes, and takes its time or not.
async def resets(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def breaks_off(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id')
    await writer.drain()
    writer.close()


async def fails(gateway: Gateway, writer: asyncio.StreamWriter) -> tuple[int, bytes]:
    return 502, b'{"error": {"message": "later"}}'


async def client_leaves(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    gateway.clients[-1].reset()
    await eventually(lambda: gateway.stage.plane._orphans)


async def worker_ends(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    end_calls(gateway)


def end_calls(gateway: Gateway) -> None:
    """End all calls as a worker does that has no more time."""
    for connection in gateway.stage.plane._connections:
        if connection.exchange is not None:
            connection.exchange.interrupt(Overloaded("The gateway stops."))


async def freezes(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    gateway.world.client.execute_command("CLIENT", "PAUSE", "900", "ALL")


async def is_full(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    gateway.world.client.config_set("maxmemory", "1")


async def is_a_replica(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    gateway.world.client.execute_command("REPLICAOF", "127.0.0.1", "1")


UNKNOWN = (resets, breaks_off, fails, worker_ends)
TOLD = (client_leaves, freezes, is_full, is_a_replica)


def well(gateway: Gateway) -> None:
    """Redis takes everything again."""
    gateway.world.client.execute_command("CLIENT", "UNPAUSE")
    gateway.world.client.config_set("maxmemory", "8gb")
    gateway.world.client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(("kind", "fault"), steps(list(product(KINDS, (*UNKNOWN, *TOLD)))))
async def test_job_accepted_by_the_upstream_is_charged_exactly_once_after_a_fault_in_the_gateway(
    gateway: Gateway, kind: str, fault: Callable[[Gateway, asyncio.StreamWriter], Any]
) -> None:
    gateway.maker.fault = lambda writer: fault(gateway, writer)
    status = await gateway.ask(kind)
    if fault in {freezes, is_full, is_a_replica}:
        assert await shown(gateway, kind) == 503
    assert not gateway.charged()
    well(gateway)
    await gateway.rest()
    (job,) = gateway.listed()
    if fault in UNKNOWN:
        assert status in {0, 502, 503}
        assert (job.status, job.id) == (OPENING, "")
    else:
        assert status == (0 if fault is client_leaves else 200)
        assert (job.status, job.id.rpartition("/")[2]) == (RUNNING, *gateway.maker.made)
        assert not status or await shown(gateway, kind) == 200
    await gateway.looked()
    gateway.check(kind)
    (facts,) = gateway.charged()
    assert facts.estimated is (fault in UNKNOWN and kind != "video"), "a video is found in the list"
    await gateway.looked()
    gateway.check(kind)


@pytest.mark.parametrize("kind", ["response", "operation"])
async def test_job_creation_answered_500_by_the_upstream_is_neither_stored_nor_charged(
    gateway: Gateway, kind: str
) -> None:
    async def fails_itself(_: asyncio.StreamWriter) -> tuple[int, bytes]:
        gateway.maker.made.clear()
        return 500, b'{"error": {"message": "later"}}'

    gateway.maker.fault = fails_itself
    assert await gateway.ask(kind) == 500
    await gateway.rest()
    gateway.check(kind)
    assert (gateway.listed(), gateway.charged()) == ([], [])


async def shown(gateway: Gateway, kind: str) -> int:
    """The status of the answer to who asks for the thing that was made."""
    (id_,) = (one["id"] for one in gateway.maker.made.values())
    path = f"/v1beta/{id_}" if kind == "operation" else f"{KINDS[kind][0]}/{id_}"
    return (await gateway.stage.ask(get(path.encode()), "GET")).status


@pytest.mark.parametrize("fault", [resets, fails, is_full], ids=lambda one: one.__name__)
async def test_video_remix_is_charged_once_after_a_fault(gateway: Gateway, fault: Callable[..., Any]) -> None:
    assert await gateway.ask("video") == 200
    gateway.maker.fault = lambda writer: fault(gateway, writer)
    status = (await gateway.stage.ask(post(b'{"prompt": "b"}', b"/v1/videos/video_0/remix"))).status
    assert status == {resets: 502, fails: 502, is_full: 200}[fault]
    well(gateway)
    await gateway.rest()
    assert [job.seconds for job in gateway.listed()] == [8, 8]
    await gateway.looked()
    gateway.check("video", 2)
    assert len(gateway.charged()) == 2


async def test_finished_job_is_charged_later_by_a_keeper_after_the_hold_was_lost(gateway: Gateway) -> None:
    job = await begun(gateway)
    gateway.world.client.delete(keys.hold(gateway.world.p, job.hold_id))
    (job,) = await gateway.looked()
    assert (job.status, _row(job)["cost"], gateway.charged()) == ("completed", None, [])
    assert len(gateway.world.late()) == 1, "a keeper charges it, unless it is charged"


@pytest.mark.parametrize("fault", [None, resets], ids=["answered", "resets"])
async def test_gateway_stores_open_jobs_again_after_redis_lost_the_jobs(
    gateway: Gateway, fault: Callable[..., Any] | None
) -> None:
    job = await begun(gateway, fault)
    client, p = gateway.world.client, gateway.world.p
    stored = cast("list[bytes]", client.keys(keys.job(p, "*")))
    client.delete(keys.jobs(p), keys.open_jobs(p, 1), keys.hold(p, job.hold_id), *stored)
    assert not gateway.listed()
    await gateway.stored.restore({p + 1})
    assert not gateway.listed()
    await gateway.stored.restore({p})
    (again,) = gateway.listed()
    assert (again.id, again.status) == (job.id, job.status)
    (looked,) = await gateway.looked()
    assert looked.settled_ms
    assert len(gateway.world.late()) == 1, "a keeper charges it, since its hold is gone"
    await gateway.stored.restore({p})
    assert [one.settled_ms for one in gateway.listed()] == [looked.settled_ms]


@pytest.mark.parametrize("fault", [*UNKNOWN, *TOLD], ids=lambda one: one.__name__)
async def test_batch_keeps_the_hold_after_a_fault_and_keeps_the_id_if_the_upstream_answered(
    gateway: Gateway, fault: Callable[..., Any]
) -> None:
    gateway.maker.fault = lambda writer: fault(gateway, writer)
    status = await gateway.ask("batch")
    well(gateway)
    await gateway.rest()
    (job,) = gateway.listed()
    assert gateway.world.client.exists(keys.hold(gateway.world.p, job.hold_id))
    if fault in UNKNOWN:
        assert status in {0, 502, 503} or fault is breaks_off  # what came of its answer is passed on
        assert (job.status, job.id) == (OPENING, "")
    else:
        assert status == (0 if fault is client_leaves else 200)
        assert (job.status, job.id) == (RUNNING, "batches/b")


@pytest.mark.parametrize(
    ("tokens", "refused"), [(2, "quota_exceeded"), (3, "invalid_request"), (10**9, "invalid_request")]
)
async def test_batch_with_more_lines_than_remaining_tokens_is_refused_before_lines_are_checked(
    gateway: Gateway, tokens: int, refused: str
) -> None:
    gateway.world.plan(tokens)
    wrong = CALL | {"generationConfig": {"maxOutputTokens": "x"}}
    calls = [{"request": CALL}] * 2 + [{"request": wrong}]
    asked = {"batch": {"inputConfig": {"requests": {"requests": calls}}}}
    got = await gateway.stage.ask(post(json.dumps(asked).encode(), BATCH[0].encode()))
    assert (got.reason, gateway.maker.made) == (refused, {})
    await gateway.rest()
    assert not gateway.world.client.keys(keys.hold(gateway.world.p, "*"))
    assert gateway.world.tenant.remaining == tokens
    gateway.world.plan(10**9)
    assert await gateway.ask("batch") == 200
    (job,) = gateway.listed()
    assert (job.lines, gateway.world.tenant.held) == (3, job.tokens)
    assert gateway.world.tenant.inflight == 1


async def begun(gateway: Gateway, fault: Callable[..., Any] | None = None, kind: str = "video") -> Job:
    """A job whose upstream was asked once, and what a fault left of it."""
    if fault is not None:
        gateway.maker.fault = lambda writer: fault(gateway, writer)
    await gateway.ask(kind)
    await gateway.rest()
    return gateway.listed()[-1]


@pytest.mark.parametrize(
    ("lists", "others", "owner", "charged"),
    [
        (True, 0, "", [False]),
        (True, -1, "", []),  # nobody has it: it was never made
        (True, 1, "", [True]),  # nobody knows which one
        (True, 0, "another", []),
        (True, 1, "hold", [False]),
        (False, 0, "", [True]),
    ],
)
async def test_video_with_a_lost_creation_answer_is_found_by_listing_only_if_unambiguous(
    gateway: Gateway, lists: bool, others: int, owner: str, charged: list[bool]
) -> None:
    job = await begun(gateway, resets)
    gateway.maker.lists = lists
    made = gateway.maker.made
    if others < 0:
        made.clear()
    elif others:
        made["video_x"] = made["video_0"] | {"id": "video_x"}
        made["video_y"] = made["video_0"] | {"id": "video_y", "seconds": "4"}
    if owner:
        await driven(gateway.stored.own(replace_hold(job, owner), "video_0"))
    (job,) = await gateway.looked(UNANSWERED_S_MAX - 60)
    assert (job.status, gateway.charged()) == (OPENING, []), "others may still note their own"
    (job,) = await gateway.looked(120)
    await gateway.looked(0)
    assert [one.estimated for one in gateway.charged()] == charged
    (job,) = gateway.listed()
    assert job.status == ("completed" if charged == [False] else "failed")
    assert not gateway.world.client.keys(keys.hold(gateway.world.p, "*"))


def replace_hold(job: Job, owner: str) -> Job:
    return msgspec.structs.replace(job, hold_id=job.hold_id if owner == "hold" else owner)


@pytest.mark.parametrize(("kind", "back", "other"), steps(list(product(KINDS, range(4), (False, True)))))
async def test_job_missing_at_the_upstream_is_charged_the_full_hold_after_the_third_lookup(
    gateway: Gateway, kind: str, back: int, other: bool
) -> None:
    """Minutes later, then an hour: where it is `back` by then it is charged as it is."""
    await begun(gateway, kind=kind)
    made = dict(gateway.maker.made)
    ((id_, thing),) = made.items()
    another = thing | {"id": f"{thing['id']}x", "name": f"{thing['name']}x", "seconds": "4"}
    for look, later_s in enumerate((1, 200, 100, 3500, 200)):
        gateway.maker.made = made if look >= 2 * back else {id_: another} if other else {}
        if back < 3 or look < 4:
            assert not gateway.charged()
        await gateway.looked(later_s)
        if gateway.charged():
            break
    gateway.maker.made = made
    gateway.check(kind)
    assert [one.estimated for one in gateway.charged()] == [back == 3]


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
@pytest.mark.parametrize("maker", [False, True])
async def test_job_age_is_measured_by_the_redis_clock_even_if_a_gateway_clock_is_wrong(
    gateway: Gateway, ahead_s: int, maker: bool
) -> None:
    """Whichever clock is an hour off, that of the gateway that makes a job or of the one that looks at it."""

    def clock(is_off: bool) -> None:
        gateway.stage.refusals._unix_seconds = lambda: time.time() + ahead_s * is_off

    clock(maker)
    job = await begun(gateway, resets, "response")
    assert abs(job.created_ms / 1000 - time.time()) < 600
    clock(not maker)
    assert [one.status for one in await gateway.looked(0)] == [OPENING]
    assert [one.status for one in await gateway.looked()] == ["failed"]
    gateway.check("response")


async def test_too_many_jobs_due_for_polling_are_taken_in_turn_by_organization(gateway: Gateway) -> None:
    p = gateway.world.p
    other = next(one for one in count(2) if keys.partition_of(one) == p)
    mine = [
        Job(f"{number:032}", 1, 2, 3, p, "", "chat", "up", "/v1/videos", "draw", "", 1, number, 0)
        for number in range(1, LOOK_MAX + 101)
    ]
    theirs = msgspec.structs.replace(mine[-1], hold_id="theirs", organization_id=other)
    for job in (*mine, theirs):
        await driven(gateway.stored.keep(job))
    assert await gateway.stored.due(60) == [mine[0], theirs, *mine[1 : LOOK_MAX - 1]]
    late = msgspec.structs.replace(mine[-1], hold_id="late", created_ms=mine[-1].created_ms + 1)
    await driven(gateway.stored.keep(late))
    assert await gateway.stored.due(60) == [*mine[LOOK_MAX - 1 :], late]
    assert await gateway.stored.due(60) == []
    now = msgspec.structs.replace(late, status=RUNNING)
    await driven(gateway.stored.keep(now))
    assert [await gateway.stored.claim(late, 60) for _ in range(2)] == [now, None]


async def test_job_too_far_ahead_is_due_unless_its_next_look_is_later(
    gateway: Gateway,
) -> None:
    """Redis was an hour ahead when jobs were looked at, each minute; jobs not found wait for 300 or 3600 s."""
    client, p, seconds = gateway.world.client, gateway.world.p, gateway.world.client.time()[0]
    ahead = {"found": (0, 0), "missed": (1, 3600 + 300), "waits": (1, 300), "again": (2, 3600 + 3500)}
    listed = [
        Job(
            name, 1, 2, 3, p, "", "chat", "up", "/v1/videos", "draw", "", 1, 1, 0,
            misses=misses, next_look_ms=1000 * (seconds + wait_s) if wait_s else 0,
        )
        for name, (misses, wait_s) in ahead.items()
    ]  # fmt: skip
    for job in listed:
        await driven(gateway.stored.keep(job))
        until = job.next_look_ms or 1000 * (seconds + 3600 + 60)
        client.zadd(keys.jobs(p), {keys.listed_job(1, job.hold_id): until})
    settled = msgspec.structs.replace(listed[0], hold_id="settled", settled_ms=1)
    await driven(gateway.stored.keep(settled))
    assert {job.hold_id for job in await gateway.stored.due(60)} == {"found", "missed"}
    assert await gateway.stored.due(60) == [], "they are due in a minute, as any others"
    scores = {name: client.zscore(keys.jobs(p), keys.listed_job(1, name)) for name in (*ahead, "settled")}
    assert scores["settled"] == float("inf")
    assert scores["waits"] == 1000 * (seconds + 300)
    assert scores["found"] < 1000 * (seconds + 120)


async def test_claim_from_a_time_ahead_ends_in_half_an_interval(gateway: Gateway) -> None:
    job = Job("claimed", 1, 2, 3, gateway.world.p, "", "chat", "up", "/v1/videos", "draw", "", 1, 1, 0)
    await driven(gateway.stored.keep(job))
    assert await gateway.stored.claim(job, 60) == job
    name = keys.job_look(job.partition, job.hold_id)
    gateway.world.client.expire(name, 3600)
    assert await gateway.stored.claim(job, 60) is None
    assert gateway.world.client.ttl(name) <= 31


@pytest.mark.parametrize(
    ("open_jobs", "key_id", "scope"), [(OPEN_KEY_MAX, 3, b"key"), (OPEN_MAX, 4, b"organization")]
)
async def test_job_beyond_the_maximum_of_open_jobs_is_refused_before_the_upstream_is_called(
    gateway: Gateway, open_jobs: int, key_id: int, scope: bytes
) -> None:
    name = keys.open_jobs(gateway.world.p, 1)
    gateway.world.client.zadd(name, {f"job {number}": key_id for number in range(open_jobs)})
    path, said = RESPONSE
    got = await gateway.stage.ask(post(json.dumps(said).encode(), path.encode()))
    assert (got.status, got.reason) == (429, "too_many_jobs")
    told = [got.one(name) for name in (b"x-tollkeeper-refused-by", b"retry-after", b"x-should-retry")]
    assert told == [scope, b"60", b"false"]
    await gateway.rest()
    assert (gateway.maker.made, gateway.listed(), gateway.charged()) == ({}, [], [])
    assert not gateway.world.client.keys(keys.hold(gateway.world.p, "*"))
    gateway.world.client.zrem(name, "job 0")
    assert await gateway.ask("response") == 200
    await gateway.looked()
    assert gateway.world.client.zcard(name) == open_jobs - 1


async def test_job_with_an_upstream_id_that_belongs_to_another_job_is_not_charged(gateway: Gateway) -> None:
    async def taken(writer: asyncio.StreamWriter) -> None:
        await is_full(gateway, writer)

    gateway.maker.fault = taken
    assert await gateway.ask("video") == 200
    well(gateway)
    job = gateway.listed()[0]
    await driven(gateway.stored.own(replace_hold(job, "another"), "video_0"))
    await gateway.rest()
    (job,) = await gateway.looked(0)
    assert (job.status, gateway.charged()) == ("failed", [])
    assert not gateway.world.client.keys(keys.hold(gateway.world.p, "*"))


async def test_job_that_could_be_stored_neither_in_redis_nor_on_disk_is_charged_the_full_hold(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def strike(writer: asyncio.StreamWriter) -> None:
        monkeypatch.setattr(os, "pwrite", no_room)
        await is_full(gateway, writer)

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    gateway.maker.fault = strike
    assert await gateway.ask("response") == 503
    monkeypatch.undo()
    well(gateway)
    await gateway.rest()
    (job,) = gateway.listed()
    assert job.status == OPENING
    await gateway.looked()
    gateway.check("response")


async def test_new_worker_stores_the_job_that_a_killed_worker_left_on_disk(
    gateway: Gateway, tmp_path: Path
) -> None:
    gateway.maker.fault = lambda writer: is_full(gateway, writer)
    assert await gateway.ask("video") == 200
    for segment in gateway.log.segments:  # as a killed worker leaves them
        segment.leave()
    gateway.log.segments.clear()
    well(gateway)
    gateway.log._current = None
    gateway.resubmitter._adopted_at = float("-inf")
    await eventually(lambda: adopted(gateway))
    await gateway.rest()
    (job,) = gateway.listed()
    assert (job.status, job.id) == (RUNNING, "video_0")
    assert (await gateway.stage.ask(get(b"/v1/videos/video_0"), "GET")).status == 200
    gateway.check("video")


async def adopted(gateway: Gateway) -> bool:
    with suppress(CountersUnavailable):
        await gateway.resubmitter.resubmit()
    return any(one.adopted for one in gateway.log.segments)


# A fault at each moment of a call.
class Striking(Plan):
    """Meets points, and strikes at one of them, once."""

    def __init__(self, point: str = "", strike: Callable[[], Any] = lambda: None) -> None:
        self.points: list[str] = []
        self._at, self._strike = point, strike

    def meet(self, name: str) -> None:
        self.points.append(name)
        if name == self._at:
            self._at = ""
            self._strike()


def leaves(gateway: Gateway) -> None:
    gateway.clients[-1].reset()


def stops(gateway: Gateway) -> None:
    asyncio.get_running_loop().call_soon(end_calls, gateway)


def pauses(gateway: Gateway) -> None:
    gateway.world.client.execute_command("CLIENT", "PAUSE", "400", "ALL")


def fills(gateway: Gateway) -> None:
    gateway.world.client.config_set("maxmemory", "1")


def breaks(gateway: Gateway) -> None:
    for writer in gateway.maker.writers:
        reset(writer)


STRIKES = {"leaves": leaves, "stops": stops, "freezes": pauses, "is_full": fills, "resets": breaks}


@pytest.mark.parametrize(
    "kind", ["video", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("response", "operation"))]
)
@pytest.mark.parametrize("strike", STRIKES)
async def test_fault_at_any_step_of_a_request_leaves_every_created_job_charged_once(
    gateway: Gateway, kind: str, strike: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, plan = server.proxy, Striking()
    for module in (server, collections):
        monkeypatch.setattr(module, "proxy", lambda exchange: Stepped(handle(exchange), plan))
    assert await gateway.ask(kind) == 200
    await gateway.rest()
    points, calls = list(dict.fromkeys(plan.points)), 1
    assert len(points) > 12
    for point in steps(points):
        plan = Striking(point, partial(STRIKES[strike], gateway))
        calls += 1
        await gateway.ask(kind)
        well(gateway)
        await eventually(lambda: gateway.wire.available)
        await gateway.rest()
        await gateway.looked()
        await gateway.looked(0)
        gateway.check(kind, calls, unsure=strike == "resets" and kind != "video")


async def test_a_charged_background_response_is_known_by_its_text(gateway: Gateway) -> None:
    """10 tokens read and 20 written; a call that goes on from it reads all of them."""
    assert await gateway.ask("response") == 200
    (job,) = await gateway.looked()
    sizes = gateway.stage.plane._ports.objects.sizes(job.caller, [job.id])
    assert [tokens for _, tokens in await driven(sizes)] == [30]
