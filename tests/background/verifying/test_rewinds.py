"""Counters that are older than the ledger are told from it, and what went on in them is charged once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import redis

from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.background.backend import Backend, parted, rejoined
from tests.background.verifying.guarded import at_one, guarded, settle, stopped, verified
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.persistence.scenario import release, stop

START = Callable[..., ValkeyServer]
DEBUGGED = ("--enable-debug-command", "yes")


@pytest.fixture
async def backend(own_valkey: START, migrated: str) -> AsyncIterator[Backend]:
    async with guarded(own_valkey(*DEBUGGED).url, migrated) as one:
        yield one


@pytest.fixture
async def world(backend: Backend) -> World:
    return await backend.settle_in(10_000)


def reload(world: World) -> None:
    world.client.execute_command("DEBUG", "RELOAD", "NOSAVE")  # type: ignore[no-untyped-call]  # untyped in redis-py


async def older(backend: Backend, world: World, *, stored: bool) -> int:
    """Data that was saved takes the place of data that moved on, and moves on itself; the seq of the rows."""
    settle(world, 3, 10)
    await backend.flush()
    world.client.save()
    settle(world, 4, 20)
    if stored:
        await backend.flush()
    (last,) = backend.rows("select last_seq from tenant_quota where tenant_id = %s", world.caller.tenant_id)
    reload(world)
    settle(world, 2, 30)
    return int(last["last_seq"])


async def test_what_goes_on_beside_stored_movements_is_dropped_and_nobody_is_stopped(
    backend: Backend, world: World
) -> None:
    last = await older(backend, world, stored=True)
    with suppress(CountersUnavailable):
        await backend.flush()
    assert stopped(backend) == []
    await verified(backend, world)
    assert (world.tenant.seq, world.tenant.used) == (last, 3 * 10 + 4 * 20)
    assert world.client.xlen(keys.outbox(world.p)) == 0
    settle(world, 1, 5)
    await backend.flush()
    at_one(backend, world)


async def test_what_goes_on_where_nothing_more_was_stored_is_stored(backend: Backend, world: World) -> None:
    """PostgreSQL was away: to it the older data is the only one there ever was."""
    await older(backend, world, stored=False)
    await verified(backend, world)
    assert world.tenant.used == 3 * 10 + 2 * 30
    await backend.flush()
    at_one(backend, world)


async def test_what_goes_on_behind_what_waits_apart_follows_it(
    backend: Backend, world: World, migrated: str
) -> None:
    """Nothing of a stopped account is stored: what waits of it is all there is, in older data too."""
    caller = world.caller
    await backend.flush()
    name = stop(migrated, world.p, caller.organization_id, caller.tenant_id)
    await older(backend, world, stored=True)
    with suppress(CountersUnavailable):
        await backend.flush()
    await verified(backend, world)
    settle(world, 1, 5)
    await backend.flush()
    assert world.client.xlen(keys.parked_entries(world.p, caller.organization_id)) == 3 + 2 + 1
    await release(migrated, name)
    await backend.flush()
    assert world.tenant.used == 3 * 10 + 2 * 30 + 5
    assert backend.rows("select * from quarantine where released_at is null") == []
    (quota,) = backend.rows("select tokens_used from tenant_quota where tenant_id = %s", caller.tenant_id)
    assert quota["tokens_used"] == world.tenant.used


async def test_a_control_write_of_older_data_is_applied_again(backend: Backend, world: World) -> None:
    await older(backend, world, stored=True)
    before = world.tenant.remaining
    await backend.write("tenants", "recharge", world.caller.tenant_id, amount=500)
    await backend.push()
    assert world.tenant.remaining == before + 500
    await verified(backend, world)
    assert world.tenant.remaining == 10_000 - 3 * 10 - 4 * 20 + 500
    await backend.flush()
    at_one(backend, world)
    assert [kind for _, kind, _, _ in backend.ledger(world.caller.tenant_id)].count("recharge") == 1


@pytest.mark.parametrize("first", ["verifier", "flusher"])
async def test_a_keeper_that_was_not_there_knows_by_what_is_stored(
    own_valkey: START, migrated: str, first: str
) -> None:
    url = own_valkey(*DEBUGGED).url
    async with guarded(url, migrated) as backend:
        world = await backend.settle_in(10_000)
        last = await older(backend, world, stored=True)
        before = backend.wire.run_id
    async with guarded(url, migrated) as backend:
        assert backend.wire.run_id == before  # nothing it sees says so, but that it lacks what is stored
        if first == "flusher":
            assert backend.flusher._before_storing is not None
            await backend.flusher._before_storing()
            await backend.flush()
        await verified(backend, world)
        assert backend.wire.run_id != before
        assert world.tenant.seq == last
        settle(world, 1, 5)
        await backend.flush()
        at_one(backend, world)


async def test_a_ledger_that_is_behind_or_level_says_nothing(backend: Backend, world: World) -> None:
    before = backend.wire.run_id
    for _ in range(3):
        settle(world, 2, 10)
        assert await backend.verify() == []
        await backend.flush()
        assert await backend.verify() == []
    assert backend.wire.run_id == before


async def test_a_restart_that_forgot_what_is_stored_is_verified_once(
    own_valkey: START, migrated: str
) -> None:
    """Nothing went on in it: it is older, and said so by being another process."""
    server = own_valkey("--appendonly", "no", "--save", "")
    async with guarded(server.url, migrated) as backend:
        world = await backend.settle_in(10_000)
        settle(world, 3, 10)
        await backend.flush()
        server.stop()
        await parted(backend.wire)
        server.start()
        await rejoined(backend.wire)
        world = world.again()
        await verified(backend, world)
        assert backend.wire.run_id == str(world.client.info("server")["run_id"]).encode()
        assert await backend.verify() == []
        settle(world, 1, 5)
        await backend.flush()
        at_one(backend, world)


@pytest.mark.parametrize("during", ["is_marked_verified", "note", "truth", "held"])
async def test_what_is_vouched_for_is_stored_where_others_say_meanwhile_that_the_data_is_older(
    backend: Backend, world: World, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reads what a dead one left may say so at any moment, and once more than the others."""
    rewinds, verifier = backend.verifier._rewinds, backend.verifier
    assert rewinds is not None
    await rewinds._fence.announce("one worker knows more")
    part = verifier._source if during in {"note", "truth"} else verifier._target
    original = getattr(part, during)

    async def announced(*arguments: object) -> object:
        monkeypatch.undo()
        found = await original(*arguments)
        await rewinds._fence.announce("another worker knows more")
        return found

    monkeypatch.setattr(part, during, announced)
    await verified(backend, world)
    assert backend.verifier.ready
    settle(world, 1, 5)
    await backend.flush()
    at_one(backend, world)


@pytest.mark.parametrize("after", [0, 20, 63])
async def test_data_that_is_exchanged_while_it_is_verified_is_verified_anew(
    backend: Backend, world: World, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = await older(backend, world, stored=True)
    mark, marked = backend.counters.mark, 0

    async def exchanged(
        run_id: bytes, partition: int, before: bytes, epoch: int, catalogue: int | None
    ) -> bool:
        nonlocal marked
        marked += 1
        if marked == after + 1:
            reload(world)
        return await mark(run_id, partition, before, epoch, catalogue)

    monkeypatch.setattr(backend.counters, "mark", exchanged)
    with suppress(CountersUnavailable):
        await backend.verify()
    assert marked > after
    assert not backend.verifier.ready
    await verified(backend, world)
    assert backend.verifier.ready
    assert (await backend.counters.markers()).unverified == []
    assert world.tenant.seq == last
    settle(world, 1, 5)
    await backend.flush()
    at_one(backend, world)


async def test_a_promotion_is_said_to_be_looked_at_where_nothing_is_left_of_before(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that was verified before, or that another version looks after, may be older still."""
    said: list[bytes] = []

    async def keep_promotion(run_id: bytes) -> None:
        said.append(run_id)

    monkeypatch.setattr(backend.verifier._rewinds, "keep_promotion", keep_promotion)
    client, markers = redis.Redis.from_url(backend.valkey), [keys.marker(one) for one in range(PARTITIONS)]
    await backend.verify()
    whole = [backend.wire.run_id]
    assert said == whole
    client.delete(markers[3])
    await backend.verify()
    client.delete(*markers)
    client.set(markers[3], bytes([LAYOUT + 1]))
    await backend.verify()
    assert said == whole
    client.delete(*markers)
    await backend.verify()
    assert said == whole * 2
