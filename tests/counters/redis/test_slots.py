"""Keys and the slots of a cluster: every key has a place that one server has, and scripts keep to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from gateway.core.accounts.definitions import KeyDefinition, OrganizationDefinition, TenantDefinition
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import PARTITIONS, Verdict
from gateway.core.wait import in_task
from gateway.counters.admission.stored import decode_identity
from gateway.counters.history_guard import HistoryGuard
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.counters.redis.keys import (
    PRIMARIES_MAX,
    SLOT_OF_PARTITION,
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
)  # fmt: skip
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, NO_LIMITS, World
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import eventually

NAMES = st.text(alphabet="abtk:{}p0", max_size=12).map(str.encode)


OLDER, MOVED = (SlotMap(7, (SlotRange(0, 9, ("127.0.0.1", port)),)) for port in (1, 2))
LATER, BEFORE = replace(OLDER, epoch=8), replace(MOVED, epoch=6)
OURS, ANOTHER = replace(OLDER, ids=frozenset({b"one"})), replace(MOVED, epoch=9, ids=frozenset({b"other"}))


@pytest.mark.parametrize(
    ("views", "known", "found"),
    [
        ([], OLDER, None),
        ([MOVED], OLDER, MOVED),
        ([MOVED, OLDER], OLDER, OLDER),
        ([OLDER, MOVED], MOVED, MOVED),
        ([OLDER, MOVED, MOVED], OLDER, MOVED),
        ([OLDER, MOVED, OLDER], MOVED, OLDER),
        ([MOVED, LATER, MOVED], MOVED, LATER),
        ([BEFORE, BEFORE, OLDER], BEFORE, OLDER),
        ([ANOTHER, ANOTHER, OURS], OURS, OURS),
        ([ANOTHER], OURS, ANOTHER),
    ],
)
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
        ("MOVED 3999 10.0.0.2:6380", Redirection("MOVED", ("10.0.0.2", 6380))),
        ("ASK 3999 ::1:6380", Redirection("ASK", ("::1", 6380))),
        ("MOVED 3999 :6380", Redirection("MOVED", ("10.0.0.9", 6380))),
        ("ASK 1 redis-3.example:7000", Redirection("ASK", ("redis-3.example", 7000))),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Redirection("TRYAGAIN")),
        ("MOVED 3999 10.0.0.2:0", None),
        ("MOVED 3999 10.0.0.2", None),
        ("MOVED", None),
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
        assert await one.counters.said_verified(one.wire.run_id)
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
