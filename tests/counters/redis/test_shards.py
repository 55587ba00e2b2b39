"""Commands over a real cluster: each to its primary, also while slots move and primaries are replaced."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from redis.exceptions import AskError

from gateway.core.accounts import upstream_jobs as jobs
from gateway.core.accounts.definitions import KeyDefinition, OrganizationDefinition, TenantDefinition
from gateway.core.accounts.outbox import VERSION
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import PARTITIONS, Verdict
from gateway.core.wait import in_task
from gateway.counters.admission.stored import decode_identity
from gateway.counters.history_guard import HistoryGuard, HistoryGuards
from gateway.counters.keeper.client import markers_of
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import Address, parse_url
from gateway.counters.redis.cluster import (
    ANOTHER_S,
    MOVING_MAX,
    MOVING_S_MIN,
    ClusterViews,
    MovingSlots,
    Shards,
)
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.counters.redis.keys import (
    PRIMARIES_MAX,
    SLOT_OF_PARTITION,
    SLOTS,
    WHOLE,
    Redirection,
    ServerPartitions,
    SlotMap,
    SlotRange,
    are_doubtful,
    newest,
    read_redirection,
    read_slots,
    slot_of,
)
from gateway.errors import CountersRefused, CountersUnavailable
from gateway.features.jobs.rows import ListedJobs
from gateway.files import UrlFile
from tests.builders import CHAT, NO_LIMITS, World
from tests.conftest import free_port
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import eventually

CALL_S = 10.0
Connect = Callable[..., Awaitable[Shards]]


@pytest.fixture
async def connect(cluster: ValkeyCluster) -> AsyncIterator[Connect]:
    made: list[Shards] = []

    async def opened(call_s: float = CALL_S, **more: object) -> Shards:
        nobody = "127.0.0.1", free_port()  # the first that is named does not answer: the next is asked
        address = Address("", 0, members=(nobody, *(("127.0.0.1", one.port) for one in cluster.members)))
        shards = Shards(
            address,
            lambda where: RedisConnection(where, time.monotonic, call_s=call_s),
            call_s=call_s,
            **more,
        )  # type: ignore[arg-type]  # a test names what it needs
        made.append(shards)
        await shards.open()
        assert await shards.connected_within(CALL_S)
        return shards

    yield opened
    for one in made:
        await one.close()


def port_of(shards: Shards, wire: RedisConnection) -> int:
    return shards._places[wire][1]


async def ask(wire: RedisConnection, *parts: bytes | str) -> object:
    return await in_task(wire.send(encode(*(one.encode() if isinstance(one, str) else one for one in parts))))


def name(partition: int, end: str = "test") -> str:
    """A key of a partition."""
    return f"tk:{{p{partition:02d}}}:{end}"


def others(cluster: ValkeyCluster, partition: int) -> list[Member]:
    """The primaries that do not have a partition."""
    return [one for one in cluster.primaries if one is not cluster.owner(partition)]


# --- whose is what ----------------------------------------------------------------------


async def test_each_partition_is_asked_for_where_it_is(cluster: ValkeyCluster, connect: Connect) -> None:
    shards = await connect()
    for partition in range(PARTITIONS):
        assert await ask(shards.of(partition), "SET", name(partition), str(partition)) == b"OK"
    for member in cluster.primaries:
        mine = cluster.partitions_of(member)
        assert [int(member.client.get(name(one)) or -1) for one in mine] == mine
        (wire,) = {shards.of(one) for one in mine}
        assert (wire.part.partitions, wire.part.anchor) == (tuple(mine), mine[0])
    assert len(shards.wires) == len({one.run_id for one in shards.wires}) == len(cluster.primaries)


async def test_what_is_of_everybody_is_asked_for_by_its_name(connect: Connect) -> None:
    shards = await connect()
    shared = keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD, keys.REFUSED, keys.COOLING, keys.LESSONS
    for key in (*shared, keys.activity(7)):
        assert await ask(shards.of_key(key.encode()), "TYPE", key) == b"none"
        assert shards.map.place_of(slot_of(key.encode()))


async def test_one_who_reads_all_servers_finds_what_each_of_them_has(connect: Connect) -> None:
    counters = KeeperCounters(shards := await connect())
    listed = ListedJobs(counters)
    assert await listed.read() == []
    assert await counters.holds() == 0
    found = []
    for partition in range(PARTITIONS):
        job = jobs.Job(f"{partition:032}", 1, 2, 3, partition, "", "chat", "u", "/", "m", "f", 1, 5, 6)
        await counters.ask(b"SET", keys.job(partition, job.hold_id).encode(), jobs.write_job(job))
        await counters.ask(b"ZADD", keys.jobs(partition).encode(), b"5", keys.listed_job(1, job.hold_id))
        await counters.ask(b"ZADD", keys.deadlines(partition).encode(), b"5", b"a call")
        await counters.ask(b"SET", keys.marker(partition).encode(), b"%d" % partition)
        found.append(job)
    assert len(shards.wires) > 1
    assert await listed.read() == found
    assert await counters.holds() == PARTITIONS
    assert await markers_of(counters, range(PARTITIONS)) == {n: b"%d" % n for n in range(PARTITIONS)}


async def test_without_a_member_that_knows_there_is_no_cluster() -> None:
    address = Address("", 0, members=(("127.0.0.1", free_port()),))
    shards = Shards(address, lambda where: RedisConnection(where, time.monotonic))
    with pytest.raises(CountersUnavailable, match="no member of the cluster"):
        await shards.open()
    with pytest.raises(CountersUnavailable):
        await ask(shards.of(0), "GET", name(0))
    shards.start()
    (member,) = address.members
    await eventually(lambda: shards.trouble.startswith(f"127.0.0.1:{member[1]}: no member of the cluster"))
    await shards.close()


async def test_shards_name_slots_without_a_primary() -> None:
    place = "127.0.0.1", free_port()
    shards = Shards(Address("", 0, members=(place,)), lambda where: RedisConnection(where, time.monotonic))
    shards._apply(SlotMap(1, (SlotRange(0, SLOTS // 2 - 1, place),)))
    lacking = sum(slot >= SLOTS // 2 for slot in SLOT_OF_PARTITION)
    assert [*shards.missing] == [f"127.0.0.1:{place[1]}", "nobody"]
    assert shards.missing["nobody"] == f"no primary has the slots of {lacking} partitions"
    await shards.close()


class FailsOnce(UrlFile):
    """Says where Redis is, but for the first time."""

    fails = True

    def url(self) -> str:
        if self.fails:
            self.fails = False
            raise KeyError("nobody thought of this")
        return super().url()


async def test_after_a_look_that_failed_there_is_another_one(cluster: ValkeyCluster) -> None:
    told = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    address = replace(parse_url(cluster.url), file=FailsOnce(cluster.url))
    shards = Shards(address, lambda where: RedisConnection(where, time.monotonic))
    shards.start()
    assert await shards.connected_within(CALL_S * 6)
    assert [type(one) for one in told] == [KeyError]
    assert shards.trouble == ""
    await shards.close()


async def test_a_wire_that_is_closed_gives_nothing_away(cluster: ValkeyCluster, connect: Connect) -> None:
    shards = await connect()
    wire = shards.of(0)
    shards._leave(shards.place_of(wire), again=True)
    await eventually(lambda: wire not in shards._places)
    assert not await shards._gave_away(wire)


async def test_who_lags_behind_alone_gives_no_partition_back(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    """Its map is of the same epoch: a slot may move without a new one."""
    shards = await connect(look_s=3_600.0)
    named = {one: int(one.info()["cluster_my_epoch"]) for one in cluster.primaries}
    other, lags, owner = sorted(named, key=lambda one: named[one])  # so nobody takes the other's word for it
    partition = cluster.partitions_of(owner)[0]
    slot = SLOT_OF_PARTITION[partition]
    assert {one.info()["cluster_current_epoch"] for one in named} == {str(shards.map.epoch)}
    for _ in range(4 * len(named)):  # each is asked in its turn
        lags.do("CLUSTER SETSLOT", slot, "NODE", other.id)
        await shards.look()
        assert port_of(shards, shards.of(partition)) == owner.port
    lags.do("CLUSTER SETSLOT", slot, "NODE", owner.id)


async def test_each_primary_has_a_wire_whatever_lingers_and_of_others_there_are_only_so_many() -> None:
    shards = Shards(Address("", 0, members=()), lambda where: RedisConnection(where, time.monotonic))

    def spread(epoch: int, begin: int) -> None:
        step = SLOTS // PRIMARIES_MAX
        owned = (
            SlotRange(n * step, (n + 1) * step - 1, ("127.0.0.1", begin + n)) for n in range(PRIMARIES_MAX)
        )
        shards._apply(SlotMap(epoch, tuple(owned)))

    spread(1, 1)
    spread(2, 1001)  # those of before linger
    assert len(shards.wires) == PRIMARIES_MAX
    for partition in range(PARTITIONS):
        assert (
            port_of(shards, shards.of(partition))
            == 1001 + SLOT_OF_PARTITION[partition] * PRIMARIES_MAX // SLOTS
        )
    with pytest.raises(CountersUnavailable):
        await ask(shards._at(("127.0.0.1", 2001)), "GET", name(0))
    assert ("127.0.0.1", 2001) not in shards._wires
    for port in (1, 1001):
        shards._leave(("127.0.0.1", port))
    assert [("127.0.0.1", port) in shards._wires for port in (1, 2, 1001)] == [False, True, True]
    await shards.close()


# --- a slot that moves ------------------------------------------------------------------


async def test_a_command_for_a_slot_that_moved_is_answered_where_it_is_now(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    shards = await connect()
    before = shards.of(3)
    await ask(before, "SET", name(3), "kept")
    to = others(cluster, 3)[0]
    cluster.move(3, to)
    assert await ask(before, "GET", name(3)) == b"kept"
    assert await asyncio.gather(*(ask(before, "INCR", name(3, "count")) for _ in range(200))) == [
        *range(1, 201)
    ]
    await eventually(lambda: port_of(shards, shards.of(3)) == to.port)
    assert 3 in shards.of(3).part.partitions
    assert 3 not in before.part.partitions
    assert await ask(shards.of(3), "GET", name(3)) == b"kept"


async def test_who_comes_later_knows_the_same_anchors(cluster: ValkeyCluster, connect: Connect) -> None:
    shards = await connect()
    source, to = cluster.primaries[:2]
    wire = shards.of(cluster.partitions_of(to)[-1])
    first, second, *_ = cluster.partitions_of(source)
    given = shards.of(first)
    assert given.part.anchor == first
    for partition in (second, first):  # the second is no new anchor of either
        cluster.move(partition, to)
        await eventually(lambda partition=partition: partition in wire.part.partitions)
        there = {one: min(mine) for one in cluster.primaries if (mine := cluster.partitions_of(one))}
        later = await connect()
        for member, anchor in there.items():
            ours, theirs = shards.of(anchor), later.of(anchor)
            assert port_of(later, theirs) == member.port
            assert ours.part.anchor == theirs.part.anchor == anchor


async def test_while_keys_move_one_by_one_a_command_finds_its_keys(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    """ASK for one that is there already, TRYAGAIN for some that are on both sides: until they are on one."""
    shards = await connect()
    wire = shards.of(5)
    names = [name(5, f"{number}") for number in range(40)]
    for key in names:
        await ask(wire, "SET", key, key)
    go_on = cluster.begin_move(5, others(cluster, 5)[0])
    assert await ask(wire, "GET", names[0]) == names[0].encode()
    assert not await asyncio.to_thread(go_on, 20)
    assert [await ask(wire, "GET", key) for key in names] == [key.encode() for key in names]
    assert await ask(wire, "INCR", name(5, "new")) == 1
    together = asyncio.create_task(ask(wire, "MGET", *names))
    while not await asyncio.to_thread(go_on, 20):
        pass
    assert await together == [key.encode() for key in names]
    assert await ask(wire, "INCR", name(5, "new")) == 2


async def test_who_finds_no_place_in_time_is_told_so(cluster: ValkeyCluster, connect: Connect) -> None:
    shards = await connect(call_s=0.3)
    wire = shards.of(9)
    await ask(wire, "MSET", name(9, "a"), "1", name(9, "b"), "1")
    go_on = cluster.begin_move(9, others(cluster, 9)[0])
    assert not await asyncio.to_thread(go_on, 1)
    with pytest.raises(CountersUnavailable, match="in time") as told:
        await ask(wire, "MSET", name(9, "a"), "2", name(9, "b"), "2")
    assert not isinstance(told.value, CountersRefused)
    assert wire.available
    while not await asyncio.to_thread(go_on, 20):
        pass
    assert await ask(wire, "MGET", name(9, "a"), name(9, "b")) == [b"1", b"1"]


async def test_slot_is_named_while_its_commands_wait_for_their_keys(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    shards = await connect(call_s=2 * MOVING_S_MIN)
    wire, written = shards.of(9), ("MSET", name(9, "a"), "1", name(9, "b"), "1")
    await ask(wire, *written)
    close = cluster.open_slot(9, others(cluster, 9)[0])
    assert shards.moving == {}
    with pytest.raises(CountersUnavailable, match="in time"):
        await ask(wire, *written)
    assert shards.moving.keys() == {SLOT_OF_PARTITION[9]}
    close()
    assert await ask(wire, *written) == b"OK"


def test_slot_counts_as_moved_after_half_a_second_until_ten_without_commands() -> None:
    now = [100.0]
    slots = MovingSlots(lambda: now[0])
    for now[0], found in ((100.0, {}), (100.4, {}), (100.6, {7: 3}), (110.5, {7: 4}), (120.6, {})):
        if now[0] < 120:
            slots.note(7)
        assert slots.now() == found
    slots.note(7)
    assert slots.now() == {}, "another move begins"
    for slot in range(2 * MOVING_MAX):
        slots.note(slot)
    now[0] += MOVING_S_MIN
    for slot in range(2 * MOVING_MAX):
        slots.note(slot)
    assert len(slots.now()) == MOVING_MAX


# --- a primary that is replaced -----------------------------------------------------------


async def test_a_primary_that_is_killed_takes_its_partitions_with_it_alone(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    shards = await connect(call_s=1.0)
    victim = cluster.owner(0)
    mine = cluster.partitions_of(victim)
    there = [one for one in range(PARTITIONS) if one not in mine]
    lost = shards.of(mine[0])
    for partition in mine:
        await ask(shards.of(partition), "SET", name(partition), "kept")
    assert await ask(lost, "WAIT", "1", "10000") == 1
    victim.stop(signal.SIGKILL)
    await eventually(lambda: not lost.connected)
    refused, served = 0, set[int]()
    while port_of(shards, shards.of(mine[0])) == victim.port:
        for partition in there:
            with suppress(CountersUnavailable):  # on a busy machine an answer may be late
                assert await ask(shards.of(partition), "SET", name(partition), "meanwhile") == b"OK"
                served.add(partition)
        with suppress(CountersUnavailable):
            await ask(shards.of(mine[0]), "GET", name(mine[0]))
            refused -= 1
        refused += 1
    assert refused > 0
    assert served == set(there)
    new = shards.of(mine[0])
    await eventually(lambda: new.available)
    assert new.run_id not in ("", lost.run_id)
    assert [await ask(shards.of(one), "GET", name(one)) for one in mine] == [b"kept"] * len(mine)
    assert new.part.partitions == tuple(mine)


async def test_nothing_goes_on_to_a_replica_that_took_over(cluster: ValkeyCluster, connect: Connect) -> None:
    """Its data is of another history: only whoever asks anew, under that one, is answered."""
    shards = await connect()
    moves = shards.moves()
    primary = next(one for one in cluster.members if one.port == port_of(shards, shards.of(0)))
    replica = next(
        one for one in cluster.members if one.info()["role"] == "slave"
        and one.client.info("replication")["master_port"] == primary.port
    )  # fmt: skip
    before = shards.of(0)
    await ask(before, "SET", name(0), "1")
    replica.do("CLUSTER FAILOVER")
    await eventually(lambda: primary.info()["role"] == "slave")
    with pytest.raises(CountersUnavailable):
        await ask(before, "INCR", name(0))
    await eventually(lambda: port_of(shards, shards.of(0)) == replica.port)
    assert moves.is_set(), "who takes partitions up is woken"
    await eventually(lambda: shards.of(0).connected)
    assert shards.of(0).run_id != before.run_id
    with pytest.raises(CountersUnavailable):  # although there is a connection to go on over
        await ask(before, "INCR", name(0))
    assert await ask(shards.of(0), "GET", name(0)) == b"1"


async def test_a_primary_that_hangs_keeps_nobody_from_learning_what_the_others_say(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    """However long a call may wait: whoever is asked, others are where it does not answer."""
    shards = await connect(call_s=3_600.0)
    hangs, source, to = cluster.primaries
    partition = cluster.partitions_of(source)[-1]
    assert hangs.process
    hangs.process.send_signal(signal.SIGSTOP)
    try:
        for one in (to, source):
            one.do("CLUSTER SETSLOT", SLOT_OF_PARTITION[partition], "NODE", to.id)
        await eventually(lambda: port_of(shards, shards.of(partition)) == to.port)
        async with asyncio.timeout(CALL_S * 6):
            for _ in cluster.members:  # each of them is asked in its turn
                await shards.look()
    finally:
        hangs.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(cluster.mend)
    cluster.move(partition, source)


async def test_shards_name_a_primary_that_hangs(cluster: ValkeyCluster, connect: Connect) -> None:
    shards = await connect(call_s=0.5)
    hangs = cluster.primaries[0]
    wire = shards.of(cluster.partitions_of(hangs)[0])
    assert (shards.missing, len(shards.servers)) == ({}, len(cluster.primaries))
    assert hangs.process
    hangs.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CountersUnavailable):
            await ask(wire, "PING")
        assert shards.trouble == f"127.0.0.1:{hangs.port}: does not answer in time"
    finally:
        hangs.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(cluster.mend)
    await eventually(lambda: not shards.missing)


# --- what guards a shard's data -----------------------------------------------------------


class Guarded:
    """Shards each with a fence, as a worker has them."""

    def __init__(self) -> None:
        self.fences: dict[RedisConnection, HistoryGuard] = {}

    def begun(self, wire: RedisConnection) -> None:
        self.fences[wire] = HistoryGuard(wire, f"process {len(self.fences)}", time.monotonic)

    async def looked(self, wire: RedisConnection) -> bool:
        """Whether a fence found its data to be what it was, or says now what it is."""
        with suppress(CountersUnavailable):
            await self.fences[wire].check_history()
            return True
        return False

    async def is_another(self, wire: RedisConnection, before: bytes) -> bool:
        """Whether a look finds another history."""
        return await self.looked(wire) and wire.run_id != before


@pytest.mark.parametrize("exchanged", [False, True], ids=["first history", "second history"])
async def test_a_history_stays_while_its_anchor_moves(
    cluster: ValkeyCluster, connect: Connect, exchanged: bool
) -> None:
    guarded = Guarded()
    shards = await connect(begun=guarded.begun)
    source = cluster.primaries[0]
    first, second, *_ = cluster.partitions_of(source)
    wire = shards.of(first)
    to = shards.of(cluster.partitions_of(cluster.primaries[1])[0])
    if exchanged:
        await guarded.fences[wire].announce("somebody knows")
    histories = {one: one.run_id for one in shards.wires}
    assert all([await guarded.looked(one) for one in shards.wires])
    cluster.move(first, cluster.primaries[1])
    await eventually(lambda: wire.part.anchor == second)
    await eventually(lambda: guarded.looked(wire))
    assert all([await eventually(lambda one=one: guarded.looked(one)) for one in shards.wires])
    assert {one: one.run_id for one in shards.wires} == histories
    assert source.client.get(keys.history(second))
    # Another process that comes later goes by the same one.
    later = Guarded()
    others = await connect(begun=later.begun)
    assert others.of(second).run_id == wire.run_id
    assert others.of(first).run_id == to.run_id
    # And what is exchanged then is noticed there.
    source.client.flushall()
    await eventually(lambda: guarded.is_another(wire, histories[wire]))
    assert to.run_id == histories[to]


async def test_history_stays_while_the_slot_of_its_anchor_is_open(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    guarded = Guarded()
    shards = await connect(begun=guarded.begun)
    source, to = cluster.primaries[:2]
    first, second, *_ = cluster.partitions_of(source)
    wire = shards.of(first)
    assert await guarded.looked(wire)
    before = wire.run_id
    close = cluster.open_slot(first, to)
    with pytest.raises(AskError):  # its name is at the other server
        source.client.get(keys.history(first))
    await eventually(lambda: guarded.looked(wire))
    assert (wire.part.anchor, wire.part.moving, wire.run_id) == (second, {first}, before)
    later = await connect(begun=Guarded().begun)
    assert (later.of(first).part.anchor, later.of(first).run_id) == (second, before)
    close()

    async def returned() -> bool:
        return await guarded.looked(wire) and wire.part.anchor == first

    await eventually(returned)
    assert (wire.part.moving, wire.run_id) == (set(), before)


async def test_word_that_all_is_verified_goes_with_the_anchor(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    fences = HistoryGuards("a keeper", time.monotonic, vouches=True)
    shards = await connect(begun=fences.guard)
    source, to = cluster.primaries[:2]
    first, second, *_ = cluster.partitions_of(source)
    wire = shards.of(first)
    counters = KeeperCounters(wire)

    async def anchor_is(partition: int) -> bool:
        with suppress(CountersUnavailable):
            await fences.of(wire).check_history()
        return wire.part.anchor == partition

    await counters.all_verified(wire.run_id)
    close = cluster.open_slot(first, to)
    await eventually(lambda: anchor_is(second))
    assert await counters.last_verified() == wire.run_id
    assert source.client.get(keys.verified(second)) == wire.run_id
    assert not await counters.is_marked_verified(b"another history")
    assert await counters.is_marked_verified(wire.run_id, unverified=[7]), "it was, and is withdrawn"
    close()
    await eventually(lambda: anchor_is(first))
    assert await counters.last_verified() == b"", "nor is an earlier word of the slot one"


async def test_exchange_is_noticed_while_the_slot_of_the_anchor_is_open(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    guarded = Guarded()
    shards = await connect(begun=guarded.begun)
    source, to = cluster.primaries[:2]
    first, second, *_ = cluster.partitions_of(source)
    wire = shards.of(first)
    assert await guarded.looked(wire)
    before = wire.run_id
    close = cluster.open_slot(first, to)
    await eventually(lambda: guarded.looked(wire))
    assert (wire.part.anchor, wire.run_id) == (second, before)
    source.client.flushall()
    await eventually(lambda: guarded.is_another(wire, before))
    close()


async def test_rows_of_all_others_come_while_any_slot_is_open(
    cluster: ValkeyCluster, connect: Connect
) -> None:
    fences = HistoryGuards("a keeper", time.monotonic)
    shards = await connect(begun=fences.guard)
    histories = {one: one.run_id for one in shards.wires}
    boxes = {
        one: Outbox(KeeperCounters(one), check_history=fences.of(one).check_history) for one in shards.wires
    }
    for partition in range(PARTITIONS):
        wire = shards.of(partition)
        await ask(wire, "SET", keys.marker(partition), packing.marker(wire.run_id, 1, 1))
        await ask(wire, "XADD", keys.outbox(partition), "1-1", "e", bytes([VERSION]))

    async def come(wire: RedisConnection, wanted: set[int]) -> bool:
        with suppress(CountersUnavailable):  # of a pass in which the anchor is left
            return wanted <= (await boxes[wire].read(dict.fromkeys(wire.part.partitions, b""), 10)).keys()
        return False

    for partition in range(PARTITIONS):
        wire = shards.of(partition)
        everybody = set(wire.part.partitions)
        close = cluster.open_slot(partition, others(cluster, partition)[0])
        await eventually(partial(come, wire, everybody - {partition}))
        close()
        await eventually(partial(come, wire, everybody))
    assert {one: one.run_id for one in shards.wires} == histories


@pytest.mark.parametrize("verified", [False, True], ids=["goes by its own", "goes by the other's"])
async def test_a_primary_that_followed_another_since_is_not_what_was_verified(
    cluster: ValkeyCluster, connect: Connect, verified: bool
) -> None:
    """Its process is the same. What it acknowledged may be gone, if the other one had not heard of it."""
    fences = HistoryGuards("a worker", time.monotonic)
    shards = await connect(begun=fences.guard)
    partition = 0
    primary = cluster.owner(partition)
    follower = cluster.replica_of(primary)
    before = shards.of(partition)
    assert await ask(before, "SET", keys.marker(partition), packing.marker(before.run_id, 3, 1)) == b"OK"
    assert await ask(before, "WAIT", "1", "60000") == 1
    await taken_over(shards, primary, follower)
    if verified:
        new = packing.marker(shards.of(partition).run_id, 4, 1)
        assert await ask(shards.of(partition), "SET", keys.marker(partition), new) == b"OK"
        assert await ask(shards.of(partition), "WAIT", "1", "60000") == 1
    await taken_over(shards, follower, primary)
    again, marker = shards.of(partition), primary.client.get(keys.marker(partition))
    assert again is not before
    assert (again.run_id == before.run_id, fences.noticed) == ((True, 0) if verified else (False, 1))
    assert packing.read_marker(marker)[0] not in (again.run_id, before.run_id)


async def taken_over(shards: Shards, primary: Member, follower: Member) -> None:
    """A replica takes over, and who was the primary follows it."""
    follower.do("CLUSTER FAILOVER", "TAKEOVER")
    await eventually(lambda: port_of(shards, shards.of(0)) == follower.port and shards.of(0).connected)
    await eventually(lambda: primary.client.info("replication").get("master_link_status") == "up")


# --- another cluster --------------------------------------------------------------------
# A cluster that is built anew where one was, by whose epochs it is older, is gone to.


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    cluster = ValkeyCluster(tmp_path)
    cluster.start()
    yield cluster
    cluster.stop()


def built_anew(cluster: ValkeyCluster, folder: Path) -> None:
    """The same servers without anything, of which others are primaries than before."""
    for one in cluster.members:
        one.stop(signal.SIGKILL)
    for place in folder.iterdir():
        shutil.rmtree(place)
        place.mkdir()
    cluster.members.reverse()
    cluster.start()


async def test_a_cluster_that_is_built_anew_is_gone_to(own_cluster: ValkeyCluster, tmp_path: Path) -> None:
    for _ in range(20):
        own_cluster.primaries[0].do("CLUSTER BUMPEPOCH")
        own_cluster.primaries[1].do("CLUSTER BUMPEPOCH")
    shards = Shards(parse_url(own_cluster.url), lambda where: RedisConnection(where, time.monotonic))
    await shards.open()
    try:
        assert await shards.connected_within(10)
        before = shards.map
        built_anew(own_cluster, tmp_path)
        assert int(own_cluster.members[0].info()["cluster_current_epoch"]) < before.epoch

        async def follows() -> bool:
            owners = {own_cluster.owner(one).announced for one in range(0, PARTITIONS, 16)}
            return shards.connected and {port_of(shards, each) for each in shards.wires} >= owners

        await eventually(follows)
    finally:
        await shards.close()


@pytest.mark.parametrize("epoch", [3, 30])
async def test_a_map_of_another_cluster_counts_where_nobody_of_the_known_one_speaks(epoch: int) -> None:
    views, owned = ClusterViews({}), (SlotRange(0, 9, ("127.0.0.1", 1)),)
    known = SlotMap(7, owned, ids=frozenset({b"one", b"two"}))
    older = SlotMap(6, owned, ids=frozenset({b"two", b"three"}))
    another = SlotMap(epoch, owned, ids=frozenset({b"four"}))
    assert views.is_later(known, SlotMap())
    for found in (known, older, another):
        assert not views.is_later(found, known)
    views._said_at -= ANOTHER_S
    assert views.is_later(another, known)
    assert not views.is_later(known, another), "not back at once"
    views._said_at -= ANOTHER_S
    assert not views.is_later(older, known), "of the same cluster, however long it was silent"
    assert not views.is_later(another, known), "somebody of the known one is there"


# --- slots ------------------------------------------------------------------------------
# Keys and the slots of a cluster: every key has a place that one server has, and scripts keep to it.


NAMES = st.text(alphabet="abtk:{}p0", max_size=12).map(str.encode)


OLDER, MOVED = (SlotMap(7, (SlotRange(0, 9, ("127.0.0.1", port)),)) for port in (1, 2))
LATER, BEFORE = replace(OLDER, epoch=8), replace(MOVED, epoch=6)
OURS, ANOTHER = replace(OLDER, ids=frozenset({b"one"})), replace(MOVED, epoch=9, ids=frozenset({b"other"}))


@pytest.mark.parametrize(
    ("views", "known", "found"),
    [
        ([], OLDER, None), ([MOVED], OLDER, MOVED), ([MOVED, OLDER], OLDER, OLDER),
        ([OLDER, MOVED], MOVED, MOVED), ([OLDER, MOVED, MOVED], OLDER, MOVED),
        ([OLDER, MOVED, OLDER], MOVED, OLDER), ([MOVED, LATER, MOVED], MOVED, LATER),
        ([BEFORE, BEFORE, OLDER], BEFORE, OLDER), ([ANOTHER, ANOTHER, OURS], OURS, OURS),
        ([ANOTHER], OURS, ANOTHER),
    ],
)  # fmt: skip
def test_of_maps_of_one_epoch_that_of_most_counts(
    views: list[SlotMap], known: SlotMap, found: SlotMap | None
) -> None:
    assert newest(views, known) is found


def test_one_alone_is_doubted_who_says_another_map_of_the_epoch_that_is_known() -> None:
    assert are_doubtful([], OLDER)
    assert are_doubtful([MOVED], OLDER)
    for views in ([OLDER], [LATER], [BEFORE], [MOVED, MOVED], [replace(OLDER, members=(("127.0.0.1", 3),))]):
        assert not are_doubtful(views, OLDER)


@given(NAMES)
def test_the_slot_of_a_name_is_what_redis_says(name: bytes) -> None:
    assert slot_of(name) == key_slot(name)  # type: ignore[no-untyped-call]  # untyped in redis-py


def test_what_is_of_a_partition_stands_in_its_slot_and_so_do_identities_and_terms() -> None:
    assert WHOLE.partitions == tuple(range(PARTITIONS))
    for organization_id in range(1, 200):
        p = keys.partition_of(organization_id)
        named = (
            keys.organization_terms(organization_id), keys.organization_state(p, organization_id),
            keys.objects(p, organization_id),
            keys.history(p), keys.promotion(p), keys.pulses(p), keys.verified(p), keys.workers(p),
        )  # fmt: skip
        assert {slot_of(one.encode()) for one in named} == {SLOT_OF_PARTITION[p]}


@pytest.mark.parametrize("name_of", [keys.identity, keys.object_owner])
def test_what_a_digest_names_is_spread_over_the_slots_of_all_partitions(
    name_of: Callable[[str], str],
) -> None:
    names = [f"{number:064x}" for number in range(64 * PARTITIONS)]
    found = Counter(slot_of(name_of(one).encode()) for one in names)
    assert found.keys() == set(SLOT_OF_PARTITION)
    assert max(found.values()) < 3 * 64
    assert all(keys.own_name(name_of(one).encode()) == one for one in names)


# --- who has what -----------------------------------------------------------------------

ASKED = ("10.0.0.9", 6379)
SAID = [
    [5461, 16383, [b"10.0.0.2", 6380, b"id2", []], [b"10.0.0.4", 6382, b"id4", []]],
    [0, 5460, [b"", 6379, b"id1", []], [None, 6381, b"id3", []]],
]


def test_a_map_says_where_the_primary_of_a_slot_is() -> None:
    found = read_slots(7, SAID, ASKED)
    assert (found.place_of(0), found.place_of(5460)) == (ASKED, ASKED)
    assert (found.place_of(5461), found.place_of(16383)) == (("10.0.0.2", 6380), ("10.0.0.2", 6380))
    assert found.epoch == 7
    assert set(found.members) == {ASKED, ("10.0.0.2", 6380), ("10.0.0.9", 6381), ("10.0.0.4", 6382)}
    mine, others = found.partitions_of(ASKED), found.partitions_of(("10.0.0.2", 6380))
    assert sorted(mine + others) == list(range(PARTITIONS))
    assert all(SLOT_OF_PARTITION[one] <= 5460 for one in mine)


def test_nobody_has_a_slot_between_two_ranges_or_behind_them() -> None:
    found = read_slots(1, [[10, 20, [b"a", 1]], [30, 40, [b"b", 2]]], ASKED)
    assert [found.place_of(one) for one in (9, 10, 20, 21, 30, 41)] == [
        None, ("a", 1), ("a", 1), None, ("b", 2), None,
    ]  # fmt: skip
    assert read_slots(1, [], ASKED).place_of(0) is None


@pytest.mark.parametrize(
    "said",
    [
        None, b"", [None], [[0, 1]], [[0, 16384, [b"a", 1]]], [[2, 1, [b"a", 1]]], [[-1, 1, [b"a", 1]]],
        [[0, 1, [b"a", 0]]], [[0, 1, [b"a", 65536]]], [[0, 1, b"a"]], [[0, 1, [7, 1]]],
        [[0, 5, [b"a", 1]], [5, 6, [b"b", 1]]],
    ],
)  # fmt: skip
def test_what_is_no_map_is_none(said: object) -> None:
    with pytest.raises(ValueError, match=r"slot|place"):
        read_slots(1, said, ASKED)


def test_a_map_of_more_primaries_than_are_kept_is_refused_by_name() -> None:
    said = [[slot, slot, [b"a", slot + 1]] for slot in range(PRIMARIES_MAX)]
    assert len(read_slots(1, [*said, [100, 200, [b"a", 1]]], ASKED).owned) == PRIMARIES_MAX + 1
    with pytest.raises(ValueError, match="65 primaries have slots: expected at most 64"):
        read_slots(1, [*said, [100, 200, [b"b", 1]]], ASKED)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("MOVED 3999 10.0.0.2:6380", Redirection("MOVED", ("10.0.0.2", 6380), 3999)),
        ("ASK 3999 ::1:6380", Redirection("ASK", ("::1", 6380), 3999)),
        ("MOVED 3999 :6380", Redirection("MOVED", ("10.0.0.9", 6380), 3999)),
        ("ASK 1 redis-3.example:7000", Redirection("ASK", ("redis-3.example", 7000), 1)),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Redirection("TRYAGAIN")),
        ("MOVED 3999 10.0.0.2:0", None),
        ("MOVED 3999 10.0.0.2", None),
        ("MOVED", None),
        ("MOVED slot 10.0.0.2:6380", None),
        ("CLUSTERDOWN The cluster is down", None),
        ("ERR unknown command", None),
    ],
)
def test_a_redirection_names_a_place(message: str, found: Redirection | None) -> None:
    assert read_redirection(message, ASKED) == found


# --- shards -----------------------------------------------------------------------------


class Shard:
    """A primary, seen by a keeper that takes it for all there is of its partitions."""

    def __init__(self, cluster: ValkeyCluster, member: Member) -> None:
        self.member, self.mine = member, tuple(cluster.partitions_of(member))
        self.wire = RedisConnection(parse_url(member.url), time.monotonic)
        # Not the first: what is said of a server's data stands wherever it was begun.
        self.wire.part = ServerPartitions(self.mine, self.mine[1])
        self.fence = HistoryGuard(self.wire, "a keeper", time.monotonic)
        self.counters = KeeperCounters(self.wire)
        self.organization_id = next(n for n in range(1, 999) if keys.partition_of(n) == self.mine[0])
        self.digest = next(
            f"{n:064x}" for n in range(999) if keys.partition_of_digest(f"{n:064x}") == self.mine[2]
        )

    def get(self, name: str) -> bytes | None:
        """A key of it."""
        found = self.member.client.get(name)
        assert found is None or isinstance(found, bytes)
        return found

    async def verify(self) -> None:
        """Mark each partition, and say of all that they are verified."""
        for partition in self.mine:
            assert await self.counters.mark(self.wire.run_id, partition, b"", 1, 1)
        await self.counters.all_verified(self.wire.run_id)


@pytest.fixture
async def shards(cluster: ValkeyCluster) -> AsyncIterator[list[Shard]]:
    found = [Shard(cluster, member) for member in cluster.primaries]
    for one in found:
        await one.wire.open()
        await one.verify()
    yield found
    for one in found:
        await one.wire.close()


async def test_what_is_defined_of_an_organization_keeps_to_the_slots_of_its_shard(
    shards: list[Shard],
) -> None:
    for one in shards:
        organization = OrganizationDefinition(one.organization_id, NO_LIMITS, 0, None)
        tenant = TenantDefinition(7, one.organization_id, NO_LIMITS, NO_LIMITS, PlanTerms())
        key = KeyDefinition(3, 7, one.organization_id, one.digest, NO_LIMITS)
        for definition in (organization, tenant, key):
            assert await one.counters.define(definition, 1)
        world = World(one.member.url, organization_id=one.organization_id, made=True)
        world.run_id = one.wire.run_id
        call = world.reserve(5, service=replace(CHAT, needs_plan=False))
        assert call.decision.verdict is Verdict.ADMITTED
        assert world.tenant.inflight == 1
        identity = decode_identity(one.get(keys.identity(one.digest)) or b"")
        assert (identity.o, identity.p) == (one.organization_id, one.mine[0])
        assert one.get(keys.organization_terms(one.organization_id))
        world.client.close()


async def test_a_shard_whose_data_is_exchanged_is_of_another_history_alone(shards: list[Shard]) -> None:
    lost, *others = shards
    run_ids = [one.wire.run_id for one in shards]
    lost.member.client.flushall()
    for one in shards:
        with suppress(CountersUnavailable):
            await one.fence.check_history()
    await eventually(lambda: lost.wire.connected)
    assert lost.wire.run_id not in run_ids
    assert (
        await in_task(lost.wire.send(encode(b"GET", keys.verified(lost.wire.part.anchor).encode()))) is None
    )
    assert [one.wire.run_id for one in others] == run_ids[1:]
    for one in others:
        assert await one.counters.is_marked_verified(one.wire.run_id)
        assert packing.read_marker(one.get(keys.marker(one.mine[-1])))[0] == one.wire.run_id


async def test_markers_of_exchanged_data_are_closed_wherever_their_slots_are(shards: list[Shard]) -> None:
    one, run_id = shards[0], shards[0].wire.run_id
    await one.fence.announce("somebody knows")
    assert one.wire.run_id != run_id
    for partition in one.mine:
        assert packing.read_marker(one.get(keys.marker(partition)))[0] not in (run_id, one.wire.run_id)


async def test_a_transaction_of_one_partition_runs_beside_the_watch_of_the_anchors_slot(
    shards: list[Shard],
) -> None:
    one = shards[0]
    name = keys.outbox(one.mine[-1]).encode()
    await one.fence.check_history()
    await one.fence.check_history(encode(b"XADD", name, b"5-1", b"e", b""), encode(b"XDEL", name, b"5-1"))
    assert one.member.client.xinfo_stream(name)["last-generated-id"] == b"5-1"
    one.member.client.set(keys.history(one.wire.part.anchor), "0:another")
    with pytest.raises(CountersUnavailable):
        await one.fence.check_history(encode(b"XADD", name, b"6-1", b"e", b""))
    assert one.member.client.xinfo_stream(name)["last-generated-id"] == b"5-1"
