"""A worker that has nothing to do asks each primary of a cluster for next to nothing; it hears of markers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.wait import in_task
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.keeper.moves import SlotMoves
from gateway.counters.keeper.worker_reports import SAY_AGAIN_S
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.connection import encode, encode_script
from tests.builders import CHAT
from tests.counters.idle_stage import Idle, asked, reported
from tests.valkey_cluster import ValkeyCluster
from tests.waiting import eventually


@pytest.fixture
async def worker(cluster: ValkeyCluster, tmp_path: Path) -> AsyncIterator[Idle]:
    """All is verified, it knows and has said so, and does nothing."""
    made = Idle(cluster.url, tmp_path)
    await made.wires.open()
    assert await made.wires.connected_within(60)
    for wire in made.wires.wires:
        for partition in wire.partitions:
            await mark(made, partition, 1, b"")
        await in_task(wire.send(encode(b"SET", keys.verified(wire.part.anchor).encode(), wire.run_id)))
    catalogue = keys.CATALOGUE.encode()
    await in_task(made.wires.of_key(catalogue).send(encode(b"SET", catalogue, encode_catalogue(1, [CHAT]))))
    async with made.running():
        await eventually(lambda: made.is_current and made.resubmitter.is_calm)
        yield made
    await made.close()


async def mark(worker: Idle, partition: int, epoch: int, before: bytes) -> bytes:
    """As a keeper does."""
    wire = worker.wires.of(partition)
    marker = packing.marker(wire.run_id, epoch, 1)
    call = packing.rebuild(wire.run_id, partition, keys.marker(partition), marker, before)
    answer = await in_task(wire.send(encode_script("load", *call)))
    assert isinstance(answer, bytes)
    assert packing.code_of(answer) == 1
    return marker


def said(cluster: ValkeyCluster, partition: int) -> int:
    """What the worker says of a partition to the primary that has it."""
    owner = cluster.owner(partition)
    return reported(owner.client, min(cluster.partitions_of(owner)))[partition]


async def test_what_is_asked_of_each_primary_while_nothing_happens(
    cluster: ValkeyCluster, worker: Idle
) -> None:
    """Counted beside the reports, of which there is one in five seconds: two a second would be ten each."""
    clients = [one.client for one in cluster.primaries]
    for client in clients:
        client.config_resetstat()
    await eventually(lambda: all(asked(client).get("hset", 0) >= 2 for client in clients))
    assert SAY_AGAIN_S == 5.0
    for client in clients:
        found = asked(client)
        reports = found.pop("hset")
        # Rare looks of the fence, at word, catalogue, prices and upstreams; one a second at slots, in turn.
        assert sum(found.values()) <= 14 + 6 * reports, found
        assert "mget" not in found


async def test_a_marker_that_changes_is_told_and_no_other_is_read(
    cluster: ValkeyCluster, worker: Idle
) -> None:
    clients = [one.client for one in cluster.primaries]
    partitions = [cluster.partitions_of(one)[1] for one in cluster.primaries]
    for client in clients:
        client.config_resetstat()
    for partition in partitions:
        await mark(worker, partition, 2, packing.marker(worker.wires.of(partition).run_id, 1, 1))
    for partition in partitions:
        await eventually(lambda p=partition: said(cluster, p) == 2)
    # One that the script gives that writes it, and one of the worker.
    assert [asked(client)["mget"] for client in clients] == [2, 2, 2]


async def test_a_partition_that_is_moved_is_known_under_its_new_marker(
    cluster: ValkeyCluster, worker: Idle
) -> None:
    partition = cluster.partitions_of(cluster.primaries[0])[-1]
    moves = SlotMoves(worker.wires)
    await moves.take_up()
    before = worker.wires.of(partition)
    cluster.move(partition, cluster.primaries[1])
    await eventually(moves.take_up)
    await eventually(lambda: worker.wires.of(partition) is not before)
    await mark(worker, partition, 5, packing.marker(worker.wires.of(partition).run_id, 1, 1))
    await eventually(lambda: said(cluster, partition) == 5)


async def test_who_is_connected_again_reads_all_markers_of_that_primary(
    cluster: ValkeyCluster, worker: Idle
) -> None:
    """What changed meanwhile was told to nobody."""
    partition = cluster.partitions_of(cluster.primaries[2])[3]
    wire, owner = worker.wires.of(partition), cluster.owner(partition)
    since = wire.hearing.since
    marker = packing.marker(wire.run_id, 4, 1)
    # A write that nobody is told of, and then a connection that is lost.
    owner.client.set(keys.marker(partition), marker)
    owner.client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: wire.hearing.since > since)
    await eventually(lambda: said(cluster, partition) == 4)
