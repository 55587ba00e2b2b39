"""The outbox as the flusher reads it: in order, from where it was left, removed when stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, repeat
from typing import Any

import pytest

from gateway.core.accounts.outbox import VERSION
from gateway.core.model import PARTITIONS
from gateway.counters.keeper.client import Client, are_any_there, entries_of, markers_of, with_late
from gateway.counters.keeper.outbox import KEPT_S, DeletedEntries, Outbox, park
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.late import ReclaimClient
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.counters.lease_stage import Clock
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
    await outbox.parked([world.p])
    assert figure() == 1
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


async def test_depth_counts_entries_and_finds_the_oldest(world: World, connect: Connect) -> None:
    client = AccountHeads(await connect(world.url))
    assert await client.depth() == (0, 0)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    world.plan(1)
    other.plan(1)
    other.grant("recharge", 1)
    total, oldest = await client.depth()
    first = min(int(one.entries(keys.outbox(one.p))[0][0].split(b"-")[0]) for one in (world, other))
    assert (total, oldest) == (3, first)


async def test_an_entry_without_its_field_is_an_empty_event(world: World, outbox: Outbox) -> None:
    world.client.xadd(keys.outbox(world.p), {"a": "1", "b": "2"})
    ((_, packed),) = (await outbox.read({world.p: b""}, 10))[world.p]
    assert packed == b""


async def test_a_stream_that_is_none_keeps_no_other_partition_waiting(world: World, connect: Connect) -> None:
    said: list[str] = []
    client = AccountHeads(await connect(world.url))
    outbox = Outbox(client, lambda event, **facts: said.append(f"{event}: {facts['partition']}"))
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
    assert (await client.depth())[0] == 1
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


# --- deleted ----------------------------------------------------------------------------
# The newest entry deleted of a stream: told at once where it was deleted here, else some seconds later.


async def test_what_is_deleted_here_is_seen_at_once_and_elsewhere_later(
    world: World, connect: Connect
) -> None:
    client, clock = Client(await connect(world.url)), Clock()
    deleted = DeletedEntries(client, clock)
    outbox = Outbox(client, deleted=deleted)
    world.moved(1, 4)
    entries = (await outbox.read({world.p: b""}, 10))[world.p]
    first, second, third, fourth = (entry_id for entry_id, _ in entries)
    assert (await outbox.deleted(anew=False))[world.p] == b"0-0"
    await outbox.acknowledge({world.p: [first]}, {})
    assert (await outbox.deleted(anew=False))[world.p] == first
    world.client.xdel(keys.outbox(world.p), second)
    assert (await outbox.deleted(anew=False))[world.p] == first
    assert (await outbox.deleted())[world.p] == second
    world.client.xdel(keys.outbox(world.p), third)
    clock.now += KEPT_S
    assert (await outbox.deleted(anew=False))[world.p] == third
    await outbox.park({(world.p, 1): [fourth]})
    assert (await outbox.deleted(anew=False))[world.p] == fourth


async def test_nothing_is_asked_again_of_one_history_and_all_of_another(
    world: World, connect: Connect
) -> None:
    wire = await connect(world.url)
    client = Client(wire)
    deleted = DeletedEntries(client, Clock())
    world.moved(1, 2)
    for entry_id, _ in world.entries(keys.outbox(world.p)):
        world.client.xdel(keys.outbox(world.p), entry_id)
        await deleted.newest(range(64), anew=False)
    (last,) = (await deleted.newest([world.p], anew=False)).values()
    assert last != entry_id
    wire.run_id = b"another history".ljust(40, b".")
    assert await deleted.newest([world.p], anew=False) == {world.p: entry_id}


# --- one question -----------------------------------------------------------------------
# What a keeper asks again and again: some commands for all partitions, or the same answers one by one.


EVERY = range(PARTITIONS)
# Without what asks for all partitions at once.
RIGHTS = "reset on nopass ~* +@all -xread -exists"


def calls(world: World) -> int:
    """How many commands were given since the last reset."""
    stats = world.client.info("commandstats")
    return sum(int(one["calls"]) for name, one in stats.items() if name != "cmdstat_config|resetstat")


async def test_a_look_where_nothing_happens_is_some_commands_however_many_partitions(
    world: World, connect: Connect
) -> None:
    client = Client(await connect(world.url))
    outbox, keeping = Outbox(client), ReclaimClient(client)
    await keeping.expired(10)
    world.client.config_resetstat()
    assert await outbox.parked(EVERY) == {}
    assert await outbox.read(dict.fromkeys(EVERY, b""), 100) == {}
    assert list(await keeping.late(10)) == []
    assert list(await keeping.expired(10)) == []
    assert calls(world) == 6  # what is set aside, markers, entries, late ones, the time, deadlines


async def test_deadline_beyond_twice_the_longest_is_due(world: World, connect: Connect) -> None:
    """A job's hold lasts 49 hours, the longest; beyond twice that a clock was ahead."""
    keeping, name = ReclaimClient(Client(await connect(world.url))), keys.deadlines(world.p)
    world.plan(100)
    waiting, due = world.reserve(need=1), world.reserve(need=1)
    seconds, _ = world.client.time()
    world.client.zadd(name, {waiting.id: 1000 * (seconds + 97 * 3600), due.id: 1000 * (seconds + 99 * 3600)})
    assert [hold.release.request_id for hold in await keeping.expired(10)] == [due.id]
    assert [hold.release.request_id for hold in await keeping.expired(10)] == [due.id]


async def test_who_may_not_ask_so_finds_the_same(
    own_valkey: Callable[..., ValkeyServer], connect: Connect
) -> None:
    server = own_valkey()
    world = World(server.url)
    world.client.execute_command("ACL", "SETUSER", "older", *RIGHTS.split())  # type: ignore[no-untyped-call]  # untyped in redis-py
    world.plan(100)
    for _ in range(4):
        world.reserve(need=1).settle(tokens=1)
    ids = [one for one, _ in world.entries(keys.outbox(world.p))]
    world.run("park", park(world.run_id, (world.p, 1), moved=ids[:1]))
    world.client.xadd(keys.late(world.p), {"e": "first"})
    found = []
    for url in (server.url, server.url.replace("://", "://older:none@")):
        client = Client(await connect(url))
        streams = {keys.outbox(world.p): ids[2], keys.outbox(world.p + 1): b"", keys.parked(world.p): b""}
        *read, refused = await entries_of(client, streams, 2)
        assert isinstance(refused, CountersRefused)
        found.append((
            read, await entries_of(client, {keys.outbox(one): b"" for one in EVERY}, 2),
            await with_late(client), await markers_of(client, EVERY), await Outbox(client).parked(EVERY),
        ))  # fmt: skip
        assert await are_any_there(client, [keys.parked(one) for one in EVERY])
    assert found[0] == found[1]
    read, entries, late, markers, parked = found[0]
    assert [entry_id for entry_id, _ in read[0]] == ids[3:5]
    assert [len(one) for one in entries if one] == [2]
    assert [(partition, len(first)) for partition, first in late] == [(world.p, 1)]
    assert [partition for partition, marker in markers.items() if marker] == [world.p]
    assert parked == {(world.p, 1): 1}
