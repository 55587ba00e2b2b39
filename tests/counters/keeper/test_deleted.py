"""The newest entry deleted of a stream: told at once where it was deleted here, else some seconds later."""

from __future__ import annotations

from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import KEPT_S, DeletedEntries, Outbox
from gateway.counters.redis import keys
from tests.builders import World
from tests.counters.conftest import Connect
from tests.counters.lease_stage import Clock


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
