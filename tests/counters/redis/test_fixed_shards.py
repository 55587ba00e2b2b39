"""Servers without a cluster that share the data: who has what, and who is refused."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import PLACES_MAX, parse_url
from gateway.counters.redis.calls import CallTemplate, VerbEncoding, bulks
from gateway.counters.redis.cluster import RedisConnections, wires_to
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from tests.conftest import ValkeyServer
from tests.waiting import WITHIN_S, eventually

Start = Callable[..., ValkeyServer]


def url_of(*servers: ValkeyServer) -> str:
    return "redis+shards://" + ",".join(f"127.0.0.1:{one.port}" for one in servers)


def wires_of(url: str, *, loads: bool = True) -> RedisConnections:
    return wires_to(parse_url(url), lambda where: RedisConnection(where, time.monotonic, loads=loads))


async def is_refused(url: str, why: str) -> None:
    """Wait until these servers are refused for this reason."""
    wires = wires_of(url)
    wires.start()
    try:
        await eventually(lambda: why in wires.trouble)
    finally:
        await wires.close()


def part_in(server: ValkeyServer) -> bytes | None:
    with server.connect() as client:
        found: bytes | None = client.get(keys.SHARD)
        return found


@pytest.mark.parametrize("count", range(2, PLACES_MAX + 1))
def test_each_of_so_many_servers_has_as_many_partitions_and_some_place_has_each_key(count: int) -> None:
    places = [(f"server{number}", 6379) for number in range(count)]
    found = keys.shard_map(places)
    parts = [found.partitions_of(place) for place in places]
    assert sorted(one for part in parts for one in part) == [*range(PARTITIONS)]
    assert {len(part) for part in parts} <= {PARTITIONS // count, -(-PARTITIONS // count)}
    assert {found.place_of(slot) for slot in range(keys.SLOTS)} == {*places}


async def test_each_server_has_its_part_and_is_used_for_no_other(own_valkey: Start) -> None:
    first, second, third = own_valkey(), own_valkey(), own_valkey()
    looking = wires_of(url_of(first, second), loads=False)
    wires = wires_of(url_of(first, second))
    try:
        await looking.open()
        assert await looking.connected_within(WITHIN_S)
        assert (part_in(first), part_in(second)) == (None, None)
        await wires.open()
        assert await wires.connected_within(WITHIN_S)
        for partition in range(PARTITIONS):
            await in_task(wires.of(partition).send(encode(b"SET", keys.marked(partition).encode(), b"1")))
        with first.connect() as one, second.connect() as other:
            there = [sum(client.exists(keys.marked(p)) for p in range(PARTITIONS)) for client in (one, other)]
        assert there == [PARTITIONS // 2] * 2
    finally:
        await wires.close()
        await looking.close()
    assert (part_in(first), part_in(second)) == (b"1/2", b"2/2")
    for url, why in (
        (url_of(third, first, second), "it has part 1/2 of the data, and the URL asks it for part 2/3"),
        (url_of(third, first), "it has part 1/2 of the data, and the URL asks it for part 2/2"),
        (url_of(second, first), "it has part 2/2 of the data, and the URL asks it for part 1/2"),
        (url_of(first, second, third), "it has part 1/2 of the data, and the URL asks it for part 1/3"),
        (first.url, "it has part 1/2 of the data, and the URL asks it for all of it"),
        (
            f"redis+shards://localhost:{first.port},127.0.0.1:{first.port}",
            f"127.0.0.1:{first.port} and localhost:{first.port} are one server: name it once",
        ),
    ):
        await is_refused(url, why)
        assert part_in(third) is None


async def test_a_server_that_had_all_data_or_is_of_a_cluster_is_not_taken(
    own_valkey: Start, valkey_cluster: ValkeyServer
) -> None:
    whole, empty = own_valkey(), own_valkey()
    with whole.connect() as client:
        for partition in range(PARTITIONS):
            client.set(keys.marker(partition), "x")
    await is_refused(url_of(whole, empty), "it has data of other parts")
    assert (part_in(whole), part_in(empty)) == (None, None)
    await is_refused(url_of(valkey_cluster, empty), "it is no standalone server")


async def test_wires_name_each_server_that_is_away_with_its_cause(own_valkey: Start) -> None:
    servers = first, second, third = own_valkey(), own_valkey(), own_valkey()
    names = [f"127.0.0.1:{server.port}" for server in servers]
    wires = wires_of(url_of(*servers))
    try:
        await wires.open()
        assert await wires.connected_within(WITHIN_S)
        assert (wires.servers, wires.missing, wires.trouble) == (names, {}, "")
        assert second.process
        second.process.send_signal(signal.SIGSTOP)
        asked = wires.wires[1].send(encode(b"PING"))
        with pytest.raises(CountersUnavailable):
            await in_task(asked)
        assert wires.trouble == f"{names[1]}: does not answer in time"
        third.stop(signal.SIGKILL)
        await eventually(lambda: "Errno 111" in wires.missing.get(names[2], ""))
        assert wires.missing.keys() == {names[1], names[2]}
        assert wires.missing[names[1]] == "does not answer in time"
        first.stop(signal.SIGKILL)
        await eventually(lambda: len(wires.missing) == 3)
        assert wires.away == PARTITIONS
    finally:
        second.process.send_signal(signal.SIGCONT)
        await wires.close()


async def test_calls_of_all_partitions_of_a_server_are_one_command(own_valkey: Start) -> None:
    """As with one server; a cluster takes those of one partition at a time."""
    servers = [own_valkey(), own_valkey()]
    wires = wires_of(url_of(*servers))
    try:
        await wires.open()
        assert await wires.connected_within(WITHIN_S)
        waits = []
        for partition in range(PARTITIONS):
            shared = keys.deadlines(partition), keys.outbox(partition), keys.marker(partition)
            alone = packing.ALONE["reserve"]
            group = VerbEncoding("reserve", 1, shared, f"tk:{{p{partition:02d}}}:h:", alone)
            accounts = tuple(kind(partition, 1) for kind in (keys.tenant_state, keys.organization_state))
            form = CallTemplate(group, (*accounts, keys.key_state(partition, 1)), 2)
            said = bulks(bytes(alone), b"")
            waits.append(wires.of(partition).send_call(form, b"%036d" % partition, said))
        answers = await asyncio.gather(*map(in_task, waits))
        assert {type(one) for one in answers} == {bytes}
        for one in servers:
            with one.connect() as client:
                calls = int(client.info("commandstats")["cmdstat_fcall"]["calls"])
            assert 1 <= calls <= 2, calls
    finally:
        await wires.close()


async def test_nothing_is_noted_until_all_servers_are_there(own_valkey: Start) -> None:
    """A server that is away afterwards has its part when it is back, and an emptied one is given it again."""
    first, second = own_valkey(), own_valkey()
    url = url_of(first, second)
    second.stop()
    wires = wires_of(url)
    try:
        await wires.open()
        await eventually(lambda: "it has no part of the data yet" in wires.wires[0].trouble)
        assert part_in(first) is None
        second.start()
        assert await wires.connected_within(WITHIN_S)
        await eventually(lambda: wires.connected)
        assert (part_in(first), part_in(second)) == (b"1/2", b"2/2")
        second.stop()
        late = wires_of(url)
        await late.open()
        await eventually(lambda: late.wires[0].connected)
        assert late.away == PARTITIONS // 2
        second.start()  # it kept nothing
        await eventually(lambda: wires.connected and late.connected)
        assert part_in(second) == b"2/2"
        await late.close()
    finally:
        await wires.close()


async def test_a_replica_is_not_used(own_valkey: Start) -> None:
    first, second = own_valkey(), own_valkey()
    with second.connect() as client:
        client.replicaof("127.0.0.1", str(first.port))
        await is_refused(url_of(first, second), "READONLY")
        client.replicaof("NO", "ONE")


async def test_one_server_is_refused_where_it_has_a_part(own_valkey: Start) -> None:
    server = own_valkey()
    with server.connect() as client:
        client.set(keys.SHARD, b"2/3")
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    try:
        with pytest.raises(CountersUnavailable, match="it has part 2/3 of the data"):
            await wire.open()
    finally:
        await wire.close()
