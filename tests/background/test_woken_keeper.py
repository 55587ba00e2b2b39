"""A keeper that wakes with entries of a history that Redis has forgotten stores none of them."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import pytest

from gateway.background.flushing.flusher import Flusher
from gateway.background.flushing.late import ended
from gateway.core.accounts.outbox import Batch, FlushReport, History
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from persistence.ledger.writer import LedgerWriter
from tests.background.backend import Backend, backend_at, parted, rejoined
from tests.conftest import ValkeyServer

START = Callable[..., ValkeyServer]


class Frozen:
    """A writer whose process is stopped between reading a batch and writing it."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self.stopped, self.woken = asyncio.Event(), asyncio.Event()

    async def write(self, batch: Batch, history: History) -> FlushReport:
        self.stopped.set()
        await self.woken.wait()
        return await self._writer.write(batch, history)

    async def epochs(self) -> Mapping[int, int]:
        return await self._writer.epochs()


async def set_back(server: ValkeyServer, houses: list[Backend]) -> None:
    """Kill Redis and start it with the append-only file that was copied."""
    server.stop(signal.SIGKILL)
    wires = [backend.wire for backend in houses]
    await parted(*wires)
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(server.folder / "copy", server.folder / "appendonlydir")
    server.start()
    await rejoined(*wires)


async def emptied(server: ValkeyServer, houses: list[Backend]) -> None:
    """Empty Redis while it runs: the same server, another history."""
    with houses[0].client() as client:
        client.flushall()


@pytest.mark.parametrize("stored_before", [True, False], ids=["stored before", "stored after"])
@pytest.mark.parametrize("forget", [set_back, emptied])
async def test_a_keeper_that_slept_through_a_rollback_stops_no_account(
    own_valkey: START,
    migrated: str,
    forget: Callable[[ValkeyServer, list[Backend]], Awaitable[None]],
    stored_before: bool,
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as keeper, backend_at(server.url, migrated) as other:
        world = await keeper.settle_in(1000)
        await keeper.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        world.reserve(need=300).settle(tokens=300)

        frozen = Frozen(other.writer)
        sleeping = Flusher(Outbox(Client(other.wire)), frozen, lambda _: None)
        passing = asyncio.create_task(sleeping.flush())
        await frozen.stopped.wait()
        await forget(server, [keeper, other])
        await keeper.verify()
        world = world.again()
        world.reserve(need=50).settle(tokens=50)

        if stored_before:
            await keeper.flush()
        frozen.woken.set()
        with suppress(CountersUnavailable):
            await passing
        await keeper.flush()

        assert keeper.rows("select * from quarantine") == []
        rows = [(1, "reset", 1000, 1000), (2, "consume", -50, 950)]
        assert keeper.ledger(world.caller.tenant_id) == rows

        # It goes on from what is there now.
        world.reserve(need=20).settle(tokens=20)
        for _ in range(3):
            with suppress(CountersUnavailable):
                await sleeping.flush()
        assert keeper.ledger(world.caller.tenant_id) == [*rows, (3, "consume", -20, 930)]


async def test_a_keeper_that_slept_through_a_rollback_posts_nothing_a_second_time(
    own_valkey: START, migrated: str
) -> None:
    """The queue has its entry again, and the id of what was posted is forgotten once it is a row."""
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as keeper, backend_at(server.url, migrated) as other:
        world = await keeper.settle_in(1000)
        call = world.reserve(need=300)
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=300)
        await keeper.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        asleep = [ended(one, None)[0] for one in await other.keeping.late(10)]
        assert len(asleep) == 1
        assert await keeper.late_settlements.drain() == 1
        await keeper.flush()

        await set_back(server, [keeper, other])
        await keeper.verify()
        with pytest.raises(CountersUnavailable):
            await other.keeping.end(asleep)
        await other.late_settlements.drain()
        await keeper.flush()
        rows = [(1, "reset", 1000, 1000), (2, "consume", -300, 700)]
        assert keeper.ledger(world.caller.tenant_id) == rows
        assert world.again().tenant.remaining == 700
