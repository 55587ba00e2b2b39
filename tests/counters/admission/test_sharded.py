"""A worker whose Redis is a cluster: calls in flight while a slot moves, and while a primary is replaced."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from gateway.core.accounts.outbox import EventKind
from gateway.core.model import (
    PARTITIONS,
    Caller,
    HoldExtension,
    HoldRequest,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.core.wait import in_task
from gateway.counters.admission.account_limit import AccountLimit
from gateway.counters.admission.callers import AGAIN_S, IDENTITY_S, Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.live_holds import LiveHolds
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.admission.sharded import ShardedCounters
from gateway.counters.admission.shared_circuit_breaker import SharedCircuitBreaker
from gateway.counters.admission.stored import encode_catalogue, encode_identity
from gateway.counters.admission.usage import Usages
from gateway.counters.keeper.activity import Activity
from gateway.counters.keeper.moves import SlotMoves, has_current_history
from gateway.counters.layouts import packing
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.address import Address, parse_url
from gateway.counters.redis.calls import TOMBSTONE_MS
from gateway.counters.redis.cluster import RedisConnections, Shards
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.counters.settlement_log.settlement_record import unpack
from gateway.errors import CountersUnavailable, InvalidApiKey
from tests.builders import CHAT, CREDITS, TTL_MS, World, driven, new_id, settlement_log
from tests.conftest import free_port
from tests.search import another
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import WITHIN_S, eventually

TOKENS = 7
LOOK_S = 0.05
CALLERS = 4  # of each organization, at once


class Organization(World):
    """One of the cluster's organizations, seen on whichever server has it."""

    def __init__(self, cluster: ValkeyCluster, organization_id: int) -> None:
        self.cluster = cluster
        owner = cluster.owner(keys.partition_of(organization_id))
        ids = {"organization_id": organization_id, "tenant_id": organization_id, "key_id": organization_id}
        super().__init__(owner.url, **ids)
        self.plan(10**9)
        self.answers: Counter[object] = Counter()

    def marker_names(self) -> bytes:
        """The history its partition is verified under."""
        return packing.read_marker(self.get(keys.marker(self.p)))[0]

    def follow(self) -> Organization:
        """Look where it is now."""
        self.client = self.cluster.owner(self.p).client
        return self


class Worker:
    """A worker's counters, over all primaries; and the part of a keeper that follows slots."""

    def __init__(self, cluster: ValkeyCluster, folder: Path) -> None:
        members = tuple(("127.0.0.1", one.port) for one in cluster.members)
        self.shards = Shards(
            Address("", 0, members=members), lambda where: RedisConnection(where, time.monotonic),
            has_current_history=has_current_history,
            hand_over_s_max=WITHIN_S,
        )  # fmt: skip
        keepers = Shards(
            Address("", 0, members=members),
            lambda where: RedisConnection(where, time.monotonic),
            look_s=LOOK_S,
        )
        self.keepers, self.moves = keepers, SlotMoves(keepers)
        self.allowances, self.log = Allowances(time.monotonic), settlement_log(folder)
        self.directory = Directory(self.shards, time.monotonic)
        clock = time.monotonic
        self.live = LiveHolds(self.shards, self.allowances, TTL_MS, clock, lambda _: None)
        self.counters = ShardedCounters(
            self.shards, self._counters, self.live, AccountLimit(clock, lambda *_, **__: None),
            hold_ttl_s=TTL_MS / 1000, clock=clock,
        )  # fmt: skip

    def _counters(self, wire: RedisConnection) -> Counters:
        took = dict.fromkeys(("reserve", "settle", "extend"), lambda _: None)
        return Counters(
            wire, self.directory, TTL_MS, time.monotonic, took, log=self.log, allowances=self.allowances
        )

    async def open(self) -> None:
        for shards in (self.shards, self.keepers):
            await shards.open()
            assert await shards.connected_within(30)
        self.directory.version = 1

    async def close(self) -> None:
        await self.shards.close()
        await self.keepers.close()
        await self.log.close()

    async def keep(self, took: list[int]) -> None:
        """What a keeper does about moved slots."""

        async def take_up() -> None:
            with suppress(CountersUnavailable):
                took.extend(await self.moves.take_up())

        await eventually(take_up, within_s=math.inf)

    async def call(self, organization: Organization) -> object:
        """One call, charged; what became of it."""
        request = HoldRequest(organization.caller, new_id(), "", CHAT, 10, 10)
        try:
            decision = await driven(self.counters.reserve(request))
        except CountersUnavailable:
            return CountersUnavailable
        if decision.verdict is not Verdict.ADMITTED:
            return decision.verdict
        settlement = Settlement(organization.caller, request.request_id, "", CHAT, charge=True, tokens=TOKENS)
        return await driven(self.counters.settle(settlement))


@pytest.fixture
async def worker(cluster: ValkeyCluster, tmp_path: Path) -> AsyncIterator[Worker]:
    made = Worker(cluster, tmp_path / "log")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def organizations(cluster: ValkeyCluster) -> list[Organization]:
    """One of each primary."""
    firsts = [cluster.partitions_of(one)[0] for one in cluster.primaries]
    ids = [next(n for n in range(1, 999) if keys.partition_of(n) == first) for first in firsts]
    return [Organization(cluster, one) for one in ids]


@asynccontextmanager
async def calling(worker: Worker, organizations: list[Organization]) -> AsyncIterator[None]:
    """Have all of them call again and again; their last calls are over when the block is."""
    ends = asyncio.Event()

    async def call_on(organization: Organization) -> None:
        while not ends.is_set():
            organization.answers[await worker.call(organization)] += 1
            await asyncio.sleep(0)

    callers = [asyncio.create_task(call_on(one)) for one in organizations for _ in range(CALLERS)]
    try:
        yield
    finally:
        ends.set()
        await asyncio.gather(*callers)


def went_on(organizations: list[Organization], count: int = 50) -> Callable[[], bool]:
    """Whether each of them was served so many times more."""
    before = [one.answers[SettleResult.DONE] for one in organizations]
    return lambda: all(
        one.answers[SettleResult.DONE] - old >= count for one, old in zip(organizations, before, strict=True)
    )


async def sent_again(worker: Worker) -> int:
    """Settle what the log kept since nobody acknowledged it."""
    count = 0
    for segment in list(worker.log.segments):
        for record in map(segment.record, list(segment.waiting)):
            settlement = unpack(record.arguments)
            wire = worker.shards.of(settlement.caller.partition)
            call = packing.settle(wire.run_id, TOMBSTONE_MS, settlement, packing.MODE_CHARGE)
            answer = await in_task(wire.send(encode_script("settle", *call)))
            assert isinstance(answer, bytes)
            count += packing.code_of(answer) == SettleResult.DONE
    return count


def is_charged(organization: Organization) -> None:
    """Each of its calls that was settled, or is to be settled, is in its account and in the outbox, once.

    On a busy machine an answer may be late, whoever is struck: its call is refused, or sent again.
    """
    answers = organization.answers
    assert answers.keys() <= {SettleResult.DONE, SettleResult.SPOOLED, CountersUnavailable}
    times = answers[SettleResult.DONE] + answers[SettleResult.SPOOLED]
    found = [one.source for one in organization.follow().events() if one.kind == EventKind.CONSUME]
    assert len(set(found)) == len(found) == times
    assert organization.tenant.used == times * TOKENS


# --- slots that move --------------------------------------------------------------------


async def test_calls_go_on_while_slots_move_and_each_is_charged_once(
    cluster: ValkeyCluster, worker: Worker, organizations: list[Organization]
) -> None:
    moving, taken = organizations[0], list[int]()
    first, second, third = cluster.primaries
    keeping = asyncio.create_task(worker.keep(taken))
    async with calling(worker, organizations):
        await eventually(went_on(organizations))
        for member in (second, third, first):
            await asyncio.to_thread(cluster.move, moving.p, member)
            await eventually(lambda to=member: worker.shards.of(moving.p) is wire_to(worker, to))
            await eventually(went_on(organizations))
        go_on = await asyncio.to_thread(cluster.begin_move, moving.p, second)
        while not await asyncio.to_thread(go_on, 10):
            pass
        await eventually(lambda: worker.shards.of(moving.p) is wire_to(worker, second))
        await eventually(went_on(organizations))
    await eventually(lambda: taken == [moving.p] * 4)
    keeping.cancel()
    assert await sent_again(worker) <= sum(one.answers[SettleResult.SPOOLED] for one in organizations)
    for one in organizations:
        is_charged(one)
        if not one.answers[CountersUnavailable]:  # who was refused late may hold something for a while
            await eventually(lambda one=one: (one.tenant.held, one.tenant.inflight) == (0, 0))
        assert one.follow().marker_names() == worker.shards.of(one.p).run_id


def wire_to(worker: Worker, member: Member) -> RedisConnection:
    """A worker's wire to a primary, by a partition that it had from the beginning."""
    return at(worker.shards, member)


def at(shards: Shards, member: Member) -> RedisConnection:
    """The wire to a primary."""
    return shards.of(shards.map.partitions_of(("127.0.0.1", member.port))[-1])


# --- a primary that is replaced -----------------------------------------------------------


async def test_who_loses_a_primary_is_refused_until_it_is_verified_and_nobody_else(
    cluster: ValkeyCluster, worker: Worker, organizations: list[Organization]
) -> None:
    lost, *others = organizations
    victim, before = cluster.owner(lost.p), worker.shards.of(lost.p)
    keeping = asyncio.create_task(worker.keep(list[int]()))
    async with calling(worker, organizations):
        await eventually(went_on(organizations))
        await asyncio.to_thread(victim.stop, signal.SIGKILL)
        await eventually(lambda: lost.answers[CountersUnavailable])
        await eventually(went_on(others))
        await eventually(lambda: worker.shards.of(lost.p) is not before)
        await eventually(lambda: worker.shards.of(lost.p).available)
        served = lost.answers[SettleResult.DONE]
        refused = lost.answers[CountersUnavailable]
        await eventually(lambda: lost.answers[CountersUnavailable] > refused + 100)
        assert lost.answers[SettleResult.DONE] == served
        lost.follow().run_id = worker.shards.of(lost.p).run_id
        assert lost.mark(epoch=2) == 1
        await eventually(went_on(organizations))
    keeping.cancel()
    await sent_again(worker)
    for one in others:
        is_charged(one)
    assert lost.answers.keys() <= {SettleResult.DONE, SettleResult.SPOOLED, CountersUnavailable}


async def test_a_primary_that_hangs_holds_up_nobody_whose_slots_moved(cluster: ValkeyCluster) -> None:
    """Those that it was given are verified, then. No other bound of a wait for it is near."""
    hangs, source, to = cluster.primaries
    one, other = cluster.partitions_of(source)[:2]
    shards = Shards(
        parse_url(cluster.url),
        lambda where: RedisConnection(where, time.monotonic, call_s=3_600.0, stall_s=3_600.0),
        look_s=LOOK_S,
    )
    await shards.open()
    assert await shards.connected_within(WITHIN_S)
    giver = at(shards, source)
    for partition in (one, other):
        marker = packing.marker(giver.run_id, 1, 1)
        assert await in_task(giver.send(encode(b"SET", keys.marker(partition).encode(), marker))) == b"OK"
    moves = SlotMoves(shards)
    assert await moves.take_up() == []
    for partition, member in ((one, hangs), (other, to)):
        await asyncio.to_thread(cluster.move, partition, member)
        await eventually(lambda given=partition, its=member: given in at(shards, its).part.partitions)
    assert hangs.process
    hangs.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(WITHIN_S):
            assert one not in await moves.take_up()
        await eventually(lambda: shards.place_of(shards.of(one))[1] != hangs.port)
    finally:
        hangs.process.send_signal(signal.SIGCONT)
        await shards.close()
    await eventually(lambda: hangs.info()["role"] == "slave")


async def test_a_call_under_way_is_extended_wherever_its_partition_is(
    cluster: ValkeyCluster, worker: Worker, organizations: list[Organization]
) -> None:
    one, taken = organizations[0], list[int]()
    keeping = asyncio.create_task(worker.keep(taken))
    request = HoldRequest(one.caller, new_id(), "", CHAT, 10, 10)
    assert (await driven(worker.counters.reserve(request))).verdict is Verdict.ADMITTED
    observed = HoldExtension(one.caller, request.request_id, 10, 5)
    worker.counters.watch(observed)
    to = cluster.primaries[1]
    await asyncio.to_thread(cluster.move, one.p, to)
    await eventually(lambda: taken == [one.p])
    await eventually(lambda: worker.shards.of(one.p) is wire_to(worker, to))
    before = one.follow().deadlines()[request.request_id]
    await eventually(lambda: extended(worker, one, request.request_id, before))
    worker.counters.unwatch(observed)
    assert worker.live.live == 0
    used = Settlement(one.caller, request.request_id, "", CHAT, charge=True, tokens=TOKENS)
    assert await driven(worker.counters.settle(used)) is SettleResult.DONE
    keeping.cancel()


async def extended(worker: Worker, organization: Organization, request_id: str, before: int) -> bool:
    """Whether the hold ends later than before."""
    await worker.live.extend_all()
    return organization.deadlines()[request_id] > before


# --- what a worker asks besides -----------------------------------------------------------


async def test_usage_and_objects_are_asked_of_the_primary_that_has_them(
    worker: Worker, organizations: list[Organization]
) -> None:
    usages = Usages(worker.shards, time.monotonic)
    objects = ObjectOwners(worker.shards, time.time, 60.0, 100)
    ids = [f"file-{number}" for number in range(40)]  # owners on all primaries
    for at, one in enumerate(organizations):
        assert await worker.call(one) is SettleResult.DONE
        told = msgspec.json.decode(await driven(usages.usage_of(one.caller)))
        assert (told["organization"], told["tokens_used"]) == (one.caller.organization_id, TOKENS)
        await driven(objects.keep(one.caller, ids))
        await driven(objects.keep(one.caller, [f"own-{at}"]))
        assert await driven(objects.owned(one.caller, ids)) is (one is organizations[0])
        assert await driven(objects.owned(one.caller, [f"own-{at}"]))
        assert one.client.exists(keys.bucket(one.p, one.caller.key_id))
        listed = one.client.zcard(keys.objects(one.p, one.caller.organization_id))
        assert listed == 1 + len(ids) * (one is organizations[0])
    assert not await driven(objects.owned(organizations[0].caller, ["file-41"]))


async def test_an_object_whose_owner_is_away_is_claimed_later(
    cluster: ValkeyCluster, worker: Worker, organizations: list[Organization]
) -> None:
    first, other = organizations[:2]
    objects, lost = ObjectOwners(worker.shards, time.time, 60.0, 100), cluster.primaries[1]
    id_ = next(
        one
        for one in (f"file-{number}" for number in range(999))
        if keys.partition_of_digest(sha256(one.encode()).hexdigest()[:32]) == other.p
    )
    assert lost.client.exists(keys.marker(other.p))
    lost.process.send_signal(signal.SIGSTOP)
    try:
        await driven(objects.keep(first.caller, [id_]))
        with pytest.raises(CountersUnavailable):
            await driven(objects.owned(first.caller, [id_]))
    finally:
        lost.process.send_signal(signal.SIGCONT)
    # What it was asked meanwhile it does when it goes on.
    await eventually(lambda: served(objects, first, id_))
    await driven(objects.keep(other.caller, [id_]))
    assert not await driven(objects.owned(other.caller, [id_]))


async def served(objects: ObjectOwners, organization: Organization, id_: str) -> bool:
    with suppress(CountersUnavailable):
        return await driven(objects.owned(organization.caller, [id_]))
    return False


async def test_what_is_everybodys_is_asked_of_who_has_its_key(worker: Worker) -> None:
    clock = time.monotonic
    one, other = SharedCircuitBreaker(worker.shards, clock), SharedCircuitBreaker(worker.shards, clock)
    one.table.begin("slow", 30.0, (), clock())
    await one.share()
    await other.share()
    assert "slow" in other.table.entries
    now = [1_000_000.0]
    activity = Activity(worker.shards, lambda: now[0])
    for _ in range(6):  # hashes of as many names stand in as many slots
        await activity.publish({(7, "requests"): 2})
        now[0] += 5
    found, _ = await activity.read(30)
    assert sum(count for _, count in found) == 12


# --- sharded directory ------------------------------------------------------------------
# Who calls and what is served where Redis is a cluster: each is asked of the primary that has it.


ORGANIZATION = 1


class Clock:
    """Goes on as it is told, so that nothing is fresh that should not be."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Desk:
    """A worker's directory over all primaries."""

    def __init__(self, cluster: ValkeyCluster) -> None:
        self.cluster, self.clock = cluster, Clock()
        members = tuple(("127.0.0.1", one.port) for one in cluster.members)
        self.shards = Shards(
            Address("", 0, members=members), lambda where: RedisConnection(where, self.clock, hears=HEARD)
        )
        self.directory = Directory(self.shards, self.clock)
        self.caller = Caller(ORGANIZATION, 7, 3, keys.partition_of(ORGANIZATION))

    @property
    def home(self) -> Member:
        """The primary of the organization."""
        return self.cluster.owner(self.caller.partition)

    def digest_at(self, member: Member, number: int = 0) -> str:
        """A credential's digest whose identity stands there."""
        mine = self.cluster.partitions_of(member)
        made = (sha256(b"%d %d" % (number, n)).hexdigest() for n in range(10_000))
        return next(one for one in made if keys.partition_of_digest(one) in mine)

    def introduce(self, digest: str) -> None:
        """Write whom a credential stands for."""
        owner = self.cluster.owner(keys.partition_of_digest(digest))
        owner.client.set(keys.identity(digest), encode_identity(self.caller))

    async def hear(self) -> None:
        """Be told all that changed until now: that comes with the next answer."""
        for wire in self.shards.wires:
            assert await in_task(wire.send(encode(b"PING"))) == b"PONG"

    def vouch(self) -> None:
        """Every primary is verified."""
        for wire in self.shards.wires:
            owner = self.cluster.owner(wire.part.anchor)
            owner.client.set(keys.verified(wire.part.anchor), wire.run_id)


@pytest.fixture
async def desk(cluster: ValkeyCluster) -> AsyncIterator[Desk]:
    made = Desk(cluster)
    await made.shards.open()
    assert await made.shards.connected_within(10)
    yield made
    await made.shards.close()


def elsewhere(desk: Desk) -> Member:
    """A primary that does not have the organization."""
    return next(one for one in desk.cluster.primaries if one is not desk.home)


async def test_an_identity_and_its_terms_may_stand_on_two_servers(desk: Desk) -> None:
    digest = desk.digest_at(elsewhere(desk))
    desk.introduce(digest)
    await desk.hear()
    assert await driven(desk.directory.identify(digest)) == desk.caller
    for _ in range(3):  # nothing of it is read again, while both tell that nothing changed
        desk.clock.ahead += IDENTITY_S * 2 / 3
        await desk.hear()
        assert desk.directory.cached(digest) == desk.caller
    desk.vouch()
    elsewhere_ = desk.cluster.owner(keys.partition_of_digest(digest))
    elsewhere_.client.delete(keys.identity(digest))

    async def is_gone() -> bool:
        desk.clock.ahead += IDENTITY_S
        try:
            await driven(desk.directory.identify(digest))
        except InvalidApiKey:
            return True
        return False

    await eventually(is_gone)


async def test_those_of_several_servers_are_read_again_together(desk: Desk) -> None:
    digests = [desk.digest_at(one) for one in desk.cluster.primaries]
    for digest in digests:
        desk.introduce(digest)
    await desk.hear()
    for digest in digests:
        assert await driven(desk.directory.identify(digest)) == desk.caller
    for wire in desk.shards.wires:
        wire.hearing.listeners = []  # servers that forget to tell
    gone = desk.cluster.owner(keys.partition_of_digest(digests[0]))
    gone.client.delete(keys.identity(digests[0]))
    desk.vouch()
    desk.clock.ahead += AGAIN_S + 1
    await desk.hear()
    assert [desk.directory.cached(digest) for digest in digests] == [desk.caller] * len(digests)
    task = desk.directory._rereading.task
    assert task is not None
    await asyncio.wait_for(task, 30)
    await desk.hear()
    found = [desk.directory.cached(digest) for digest in digests]
    assert found == [None, *[desk.caller] * (len(digests) - 1)]


async def test_who_was_known_stays_known_while_another_server_than_its_own_is_away(desk: Desk) -> None:
    away = elsewhere(desk)
    known, unknown = desk.digest_at(away), desk.digest_at(away, 1)
    desk.introduce(known)
    desk.introduce(unknown)
    assert await driven(desk.directory.identify(known)) == desk.caller
    lost = desk.shards.of(desk.cluster.partitions_of(away)[0])
    for one in desk.cluster.members:  # whoever could take over first
        if one is not away and one.client.info("replication").get("master_port") == away.port:
            one.stop(signal.SIGKILL)
    away.stop(signal.SIGKILL)
    await eventually(lambda: not lost.available)
    desk.clock.ahead += 3600.0
    assert await driven(desk.directory.identify(known)) == desk.caller
    with pytest.raises(CountersUnavailable):
        await driven(desk.directory.identify(unknown))


async def test_an_older_catalogue_counts_where_it_is_verified_alone(desk: Desk) -> None:
    """The replica of its primary may lack the latest, and then everybody's calls would be stale."""
    name = keys.CATALOGUE.encode()
    owner = next(
        one for one in desk.cluster.primaries
        if desk.shards.of_key(name) in {desk.shards.of(p) for p in desk.cluster.partitions_of(one)}
    )  # fmt: skip
    owner.client.set(name, encode_catalogue(8, [CHAT, CREDITS]))
    await driven(desk.directory.refresh())
    owner.client.set(name, encode_catalogue(7, [CHAT]))
    for look in (desk.directory._read_catalogue(), driven(desk.directory.refresh())):
        await look
        assert desk.directory.version == 8
    desk.vouch()
    await desk.directory._read_catalogue()
    assert (desk.directory.version, list(desk.directory.catalogue())) == (7, [CHAT.key])


async def test_catalogue_counts_no_partition_before_each_reachable_server_has_answered(
    desk: Desk,
) -> None:
    """A gateway that knows one server of three would be ready, and refuse the callers of both others."""
    desk.vouch()
    here, later, dead = desk.shards.wires
    made = RedisConnection(later.address, time.monotonic)
    made.part = later.part
    gone = RedisConnection(replace(dead.address, port=free_port()), time.monotonic)
    gone.part = dead.part
    some = cast(
        "RedisConnections",
        SimpleNamespace(wires=[here, made, gone], of_key=desk.shards.of_key, hear=desk.shards.hear),
    )
    gone.start()
    try:
        await eventually(lambda: gone.cause)
        directory = Directory(some, time.monotonic)
        await directory._read_catalogue()
        assert directory.unverified == frozenset(range(PARTITIONS)), "one of those that answer is not asked"
        await made.open()
        await directory._read_catalogue()
        assert directory.unverified == frozenset(dead.part.partitions), "who cannot be reached delays nobody"
    finally:
        await made.close()
        await gone.close()


async def test_partitions_of_a_server_that_is_verified_meanwhile_go_by_their_markers(desk: Desk) -> None:
    draw = random.Random(another(3))
    served = frozenset(draw.sample(range(PARTITIONS), 20))
    for partition in range(PARTITIONS):
        here = desk.shards.of(partition).run_id
        of_another, is_paused = (
            packing.marker(b"." * len(here), 3, 5),
            packing.marker(here, 3, packing.CLOSED),
        )
        waiting = draw.choice([b"", of_another, is_paused])
        marker = packing.marker(here, 3, 5) if partition in served else waiting
        desk.cluster.owner(partition).client.set(keys.marker(partition), marker)
    await desk.directory._read_catalogue()
    assert desk.directory.unverified == frozenset(range(PARTITIONS)) - served
    desk.vouch()
    await desk.directory._read_catalogue()
    assert desk.directory.verified
