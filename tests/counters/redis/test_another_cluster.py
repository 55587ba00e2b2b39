"""A cluster that is built anew where one was, by whose epochs it is older, is gone to."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.model import PARTITIONS
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import ANOTHER_S, ClusterViews, Shards
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import SlotMap, SlotRange
from tests.counters.redis.test_shards import port_of
from tests.valkey_cluster import ValkeyCluster
from tests.waiting import eventually


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
