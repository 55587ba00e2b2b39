"""The outbox as the flusher reads it: in order, from where it was left, removed when stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, repeat
from typing import Any

import pytest

from gateway.core.accounts.outbox import VERSION
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.waiting import eventually


def keyed(words: list[str], world: World) -> bool:
    """Whether a command is about what a partition's outbox holds."""
    return len(words) > 1 and words[1] in {keys.control(world.p), keys.outbox(world.p)}


@pytest.fixture
async def outbox(world: World, connect: Connect) -> Outbox:
    return Outbox(Client(await connect(world.url)))


async def test_entries_are_read_in_order_from_where_it_was_left(world: World, outbox: Outbox) -> None:
    world.plan(100)
    for _ in range(4):
        world.reserve(need=1).settle(tokens=1)
    p = world.p
    first = (await outbox.read({p: b"", (p + 1) % 64: b""}, 2))[p]
    rest = (await outbox.read({p: first[-1][0]}, 10))[p]
    assert (len(first), len(rest)) == (2, 3)
    assert [entry for _, entry in first + rest] == [
        fields[b"e"] for _, fields in world.entries(keys.outbox(p))
    ]
    assert await outbox.read({(p + 1) % 64: b""}, 2) == {}


async def test_what_is_acknowledged_is_gone_and_nothing_else(world: World, outbox: Outbox) -> None:
    world.plan(100)
    kept, gone = "k" * 36, "g" * 36
    world.grant("recharge", 1, write_id=gone)
    world.grant("recharge", 2, write_id=kept)
    entries = (await outbox.read({world.p: b""}, 10))[world.p]
    await outbox.acknowledge({world.p: [entries[0][0], entries[1][0]], 5: []}, {world.p: [gone], 5: []})
    assert [event.amount for event in world.events()] == [2]
    assert kept.encode() in world.client.hkeys(keys.control(world.p))
    assert gone.encode() not in world.client.hkeys(keys.control(world.p))


async def test_a_partition_of_another_history_is_left_alone(world: World, outbox: Outbox) -> None:
    world.plan(100)
    assert world.p in await outbox.read({world.p: b""}, 10)
    marker = world.client.get(keys.marker(world.p))
    world.client.set(keys.marker(world.p), packing.marker(b"o" * 40, 1, 1))
    assert await outbox.read({world.p: b""}, 10) == {}
    world.client.set(keys.marker(world.p), marker or b"")
    assert world.p in await outbox.read({world.p: b""}, 10)


async def test_one_entry_of_a_newer_version_is_counted_of_each_stream(world: World, connect: Connect) -> None:
    world.plan(100)
    client = Client(await connect(world.url))
    outbox, streams = Outbox(client), (keys.outbox(world.p), keys.parked_entries(world.p, 1))

    def figure() -> int:
        rows: Any = client.left_alone.figures()["left_alone"]
        return int(dict(rows)["entry"])

    async def counted() -> int:
        await outbox.parked([world.p])
        await outbox.read({world.p: b""}, 10)
        await outbox.read_parked({(world.p, 1): b""}, 10)
        return figure()

    ((_, fields),) = world.entries(streams[0])
    newer = bytes([VERSION + 1]) + fields[b"e"][1:] + bytes(24)
    world.client.delete(streams[0])
    heads = [world.client.xadd(streams[0], {"e": newer}) for _ in range(3)]
    assert await counted() == 1
    world.client.xdel(streams[0], heads[0])  # whoever can read it stores them one by one
    assert await counted() == 1
    world.client.xadd(streams[1], {"e": newer})
    assert [await counted(), await counted()] == [2, 2]
    world.client.delete(streams[1])
    await outbox.parked([world.p])
    assert figure() == 1
    outbox.keep_to([world.p])
    assert await counted() == 1
    outbox.keep_to([])
    assert figure() == 0


async def test_what_was_read_of_data_that_was_exchanged_is_not_given_out(
    world: World, connect: Connect
) -> None:
    wire = await connect(world.url)

    async def look() -> None:
        wire.run_id = other

    outbox, other = Outbox(Client(wire), check_history=look), wire.run_id
    world.plan(100)
    assert world.p in await outbox.read({world.p: b""}, 10)
    other = b"e" * 40
    with pytest.raises(CountersUnavailable):
        await outbox.read({world.p: b""}, 10)


async def test_an_id_never_outlives_its_entry(world: World, outbox: Outbox) -> None:
    world.plan(100)
    write = "w" * 36
    world.grant("recharge", 1, write_id=write)
    entries = (await outbox.read({world.p: b""}, 10))[world.p]
    with world.client.monitor() as monitor:
        await outbox.acknowledge({world.p: [entries[-1][0]]}, {world.p: [write]})
        asked = (str(monitor.next_command()["command"]).split() for _ in repeat(None))
        mine = [words[0].upper() for words in islice((one for one in asked if keyed(one, world)), 2)]
    assert mine == ["HDEL", "XDEL"]


async def test_depth_counts_everything_and_finds_the_oldest(world: World, outbox: Outbox) -> None:
    assert await outbox.depth() == (0, 0)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    world.plan(1)
    other.plan(1)
    other.grant("recharge", 1)
    total, oldest = await outbox.depth()
    first = min(int(one.entries(keys.outbox(one.p))[0][0].split(b"-")[0]) for one in (world, other))
    assert (total, oldest) == (3, first)


async def test_an_entry_without_its_field_is_an_empty_event(world: World, outbox: Outbox) -> None:
    world.client.xadd(keys.outbox(world.p), {"a": "1", "b": "2"})
    ((_, packed),) = (await outbox.read({world.p: b""}, 10))[world.p]
    assert packed == b""


async def test_a_stream_that_is_none_keeps_no_other_partition_waiting(world: World, connect: Connect) -> None:
    said: list[str] = []
    outbox = Outbox(
        Client(await connect(world.url)), lambda event, **facts: said.append(f"{event}: {facts['partition']}")
    )
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    for one in (world, other):
        one.plan(1)
    world.client.rename(keys.outbox(world.p), "aside")
    world.client.set(keys.outbox(world.p), "not a stream")
    everything = dict.fromkeys(range(64), b"")
    for _ in range(2):
        found = await outbox.read(everything, 10)
        assert list(found) == [other.p]
    assert "WRONGTYPE" in outbox.broken[world.p]
    assert (await outbox.depth())[0] == 1
    with pytest.raises(CountersUnavailable):
        await outbox.acknowledge({world.p: [b"1-1"], other.p: [found[other.p][0][0]]}, {})
    assert other.events() == []
    world.client.rename("aside", keys.outbox(world.p))
    assert list(await outbox.read(everything, 10)) == [world.p]
    assert (outbox.broken, len(said)) == ({}, 2)


async def test_entries_of_another_server_are_not_acknowledged_here(
    own_valkey: Callable[..., ValkeyServer], connect: Connect
) -> None:
    """Entry ids repeat after a restart: an acknowledgement belongs to the server that was read."""
    server = own_valkey()
    world = World(server.url)
    wire = await connect(server.url)
    outbox = Outbox(Client(wire))
    world.plan(100)
    entries = (await outbox.read({world.p: b""}, 10))[world.p]
    server.stop()
    await eventually(lambda: not wire.connected)
    server.start()
    await eventually(lambda: wire.connected)
    again = World(server.url)
    again.client.xadd(keys.outbox(world.p), {"e": "new"}, id=entries[0][0])
    with pytest.raises(CountersUnavailable):
        await outbox.acknowledge({world.p: [entries[0][0]]}, {})
    assert again.client.xlen(keys.outbox(world.p)) == 1
    with pytest.raises(CountersUnavailable):
        await outbox.read({world.p: b""}, 10)
    assert len((await outbox.read({world.p: b""}, 10))[world.p]) == 1
