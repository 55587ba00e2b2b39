"""Two keepers that see a server each: what one compared with PostgreSQL stays true."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.background.verifying.verifier import OVERTAKEN_S, SupersededPartitions, Verifier
from gateway.core.model import PARTITIONS
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.keys import partition_of
from persistence.keeper.verification import LedgerReader
from tests.background.backend import Backend, backend_at
from tests.background.verifying.scene import Clock
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.waiting import eventually

START = Callable[..., ValkeyServer]


class WhatIsRead(LedgerReader):
    """PostgreSQL, and what a flush reads while it is told of the next epoch."""

    def __init__(self, backend: Backend, partition: int) -> None:
        super().__init__(backend.engine, partition_of)
        self._outbox, self._partition = Outbox(backend.counters), partition
        self.read: list[int] = []

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> frozenset[int]:
        done = await super().note(run_id, epochs)
        if epochs:
            self.read.append(len(await self._outbox.read({self._partition: b""}, 100)))
        return done


def clocked(backend: Backend, truths: LedgerReader | None = None) -> Clock:
    clock, truths = Clock(), truths or LedgerReader(backend.engine, partition_of)
    backend.verifier = Verifier(truths, backend.counters, overtaken=SupersededPartitions(clock))
    return clock


def there(world: World, backend: Backend) -> World:
    """The same account on the other server."""
    of = world.caller
    return World(
        backend.valkey,
        organization_id=of.organization_id,
        tenant_id=of.tenant_id,
        key_id=of.key_id,
        made=True,
    )


async def test_a_server_that_was_cut_off_stores_nothing_once_another_one_is_verified(
    own_valkey: START, migrated: str
) -> None:
    cut_off, took_over = own_valkey(), own_valkey()
    async with backend_at(cut_off.url, migrated) as old, backend_at(took_over.url, migrated) as new:
        world = await old.settle_in(100)
        tenant_id = world.caller.tenant_id
        await old.flush()
        stored = old.ledger(tenant_id)
        assert {one.epoch for one in await new.verify()} == {2}
        world.reserve(need=1).settle(tokens=30)
        for _ in range(2):
            assert await old.verify() == []
            await old.flush()
        assert old.ledger(tenant_id) == stored
        there(world, new).reserve(need=1).settle(tokens=20)
        await new.flush()
        assert new.ledger(tenant_id) == [*stored, (2, "consume", -20, 80)]
        await old.flush()
        assert old.rows("select account from quarantine") == []
        assert {row["epoch"] for row in old.rows("select epoch from partition_state")} == {2}


async def test_where_the_other_server_is_gone_it_is_verified_anew(own_valkey: START, migrated: str) -> None:
    """Nothing would be stored of what is served here."""
    one, gone = own_valkey(), own_valkey()
    async with backend_at(one.url, migrated) as here, backend_at(gone.url, migrated) as other:
        clock = clocked(here)
        world = await here.settle_in(100)
        await other.verify()
        world.reserve(need=1).settle(tokens=30)
        assert await here.verify() == []
        clock.ahead += OVERTAKEN_S - 1
        assert await here.verify() == []
        clock.ahead += 1
        done = await here.verify()
        assert [one.partition for one in done] == list(range(PARTITIONS))
        assert {one.epoch for one in done} == {3}
        assert packing.read_marker(world.get(keys.marker(world.p)))[1] == 3
        assert await here.verify() == []
        await here.flush()
        assert here.ledger(world.caller.tenant_id)[-1] == (2, "consume", -30, 70)


async def test_a_server_that_another_keeper_verified_is_not_overtaken_for_the_one_before(
    own_valkey: START, migrated: str
) -> None:
    """Whoever was led to it has seen the other one overtaken for long enough."""
    cut_off, took_over = own_valkey(), own_valkey()
    async with backend_at(cut_off.url, migrated) as here, backend_at(took_over.url, migrated) as other:
        clock = clocked(here)
        world, before = await here.settle_in(100), here.wire.run_id
        await other.verify()
        assert await here.verify() == []
        here.wire.address = parse_url(took_over.url)
        world.client.client_kill_filter(_type="normal", skipme=True)
        await eventually(lambda: here.wire.run_id != before and here.wire.connected)
        clock.ahead += OVERTAKEN_S
        for _ in range(2):
            assert await here.verify() == []
        assert packing.read_marker(there(world, other).get(keys.marker(world.p)))[:2] == (
            other.wire.run_id,
            2,
        )


async def test_a_partition_is_closed_as_of_the_history_it_was_verified_under(backend: Backend) -> None:
    await backend.verify()
    run_id = backend.wire.run_id
    await backend.counters.close_again(b"o" * 40, [3, 4])
    assert (await backend.counters.markers()).unverified == []
    await backend.counters.close_again(run_id, [3])
    assert [one for one, _, _ in (await backend.counters.markers()).unverified] == [3]


async def test_what_waits_is_not_read_as_of_the_epoch_that_it_is_not_verified_under_yet(
    own_valkey: START, migrated: str
) -> None:
    """What contradicts the other server's rows is dropped before that."""
    one, gone = own_valkey(), own_valkey()
    async with backend_at(one.url, migrated) as here, backend_at(gone.url, migrated) as other:
        world = await here.settle_in(100)
        truths = WhatIsRead(here, world.p)
        clock = clocked(here, truths)
        await other.verify()
        world.reserve(need=1).settle(tokens=30)
        assert await here.verify() == []
        clock.ahead += OVERTAKEN_S
        assert await here.verify() != []
        assert truths.read == [0]


async def test_an_epoch_is_of_one_history(backend: Backend) -> None:
    truths = LedgerReader(backend.engine, partition_of)
    await backend.verify()
    run_id, other = backend.wire.run_id, b"o" * 40
    assert await truths.note(other, {3: 1, 4: 2}) == {4}
    assert await truths.note(run_id, {3: 1, 4: 1, 5: 2}) == {3, 5}
    noted = await truths.noted()
    assert [noted[one] for one in (3, 4, 5)] == [(run_id, 1), (other, 2), (run_id, 2)]
