"""What a keeper asks again and again: some commands for all partitions, or the same answers one by one."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.model import PARTITIONS
from gateway.counters.keeper.client import Client, are_any_there, entries_of, markers_of, with_late
from gateway.counters.keeper.outbox import Outbox, park
from gateway.counters.late import ReclaimClient
from gateway.counters.redis import keys
from gateway.errors import CountersRefused
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect

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
