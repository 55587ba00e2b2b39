"""Data that comes back where it was compared last: only what was changed since is read, nothing is missed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress

import pytest

from gateway.core.integrity.recovery import LedgerState
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS, Verdict
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from persistence.keeper.verification import LedgerReader
from tests.background.backend import Backend
from tests.background.verifying.test_rewinds import guarded
from tests.background.verifying.test_verifier import restarted
from tests.builders import World
from tests.conftest import ValkeyServer

LIMITS = {"requests_per_minute": 50}
Read = list[Mapping[int, Sequence[int]]]


@pytest.fixture
def server(own_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    return own_valkey()


@pytest.fixture
async def backend(server: ValkeyServer, migrated: str) -> AsyncIterator[Backend]:
    async with guarded(server.url, migrated) as one:
        yield one


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Whose truths were read, by partition, read after read."""
    original, found = LedgerReader.truth, Read()

    async def truth(self: LedgerReader, organizations: Mapping[int, Sequence[int]]) -> dict[int, LedgerState]:
        found.append(dict(organizations))
        return await original(self, organizations)

    monkeypatch.setattr(LedgerReader, "truth", truth)
    return found


def organizations(read: Read) -> set[int]:
    return {one for some in read for its in some.values() for one in its}


async def come_back(server: ValkeyServer, backend: Backend, *worlds: World) -> None:
    """Redis is killed, has what was saved last, and is verified."""
    async with restarted(server, backend):
        pass
    with suppress(CountersUnavailable):
        await backend.verify()
    await backend.verify()
    assert backend.verifier.ready
    for world in worlds:
        world.run_id = backend.wire.run_id


async def two(server: ValkeyServer, backend: Backend, read: Read) -> tuple[World, World]:
    """Organizations in partitions of their own, made long ago, compared, stored, saved."""
    first = await backend.settle_in(1_000)
    while (second := await backend.settle_in(1_000)).p == first.p:
        pass
    backend.rows("update control_write set created_at = created_at - interval '1 hour' returning id")
    first.client.save()
    await come_back(server, backend, first, second)
    for world in (first, second):
        world.reserve(need=10).settle(tokens=10)
    await backend.flush()
    first.client.save()
    read.clear()
    return first, second


def identity(backend: Backend, world: World) -> bytes | None:
    (key,) = backend.rows("select digest from api_key where id = %s", world.caller.key_id)
    found: bytes | None = world.client.get(keys.identity(key["digest"]))
    return found


async def test_where_nothing_was_changed_nobody_is_read(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    worlds = await two(server, backend, read)
    await come_back(server, backend, *worlds)
    assert {one for some in read for one in some} == set(range(PARTITIONS))
    assert organizations(read) == set()
    assert [world.tenant.used for world in worlds] == [10, 10]
    assert {world.reserve(need=1).verdict for world in worlds} == {Verdict.ADMITTED}


async def test_what_was_defined_since_is_brought_in_again(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    await backend.write("api-keys", "revoke", first.caller.key_id)
    await backend.write("tenants", "change", first.caller.tenant_id, limits=LIMITS)
    assert await backend.push() == 0
    assert identity(backend, first) is None
    await come_back(server, backend, first, second)
    assert organizations(read) == {first.caller.organization_id}
    assert identity(backend, first) is None
    assert states.unpack(states.KeyState, first.get(first.api_key)).flags == 1
    assert first.tenant.rpm == LIMITS["requests_per_minute"]
    assert identity(backend, second) is not None


async def test_what_only_moved_is_not_read_again_and_lacks_nothing(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    """It is there, or it is stored nowhere and comes again."""
    first, second = await two(server, backend, read)
    await backend.write("tenants", "recharge", first.caller.tenant_id, amount=50)
    assert await backend.push() == 0
    await backend.flush()
    first.client.save()
    await backend.write("tenants", "recharge", second.caller.tenant_id, amount=70)
    await backend.write("tenants", "block", second.caller.tenant_id)
    assert await backend.push() == 0
    assert (first.tenant.remaining, second.tenant.remaining) == (1_040, 1_060)
    await come_back(server, backend, first, second)
    assert organizations(read) == set()
    assert (first.tenant.remaining, second.tenant.remaining) == (1_040, 990)
    assert await backend.push() == 0
    assert (first.tenant.remaining, second.tenant.remaining) == (1_040, 1_060)
    assert second.tenant.manual_block
    await backend.flush()
    assert {state for _, _, state in backend.writes()} == {"done"}


async def test_where_more_was_defined_than_is_looked_at_everybody_is_compared(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    (last,) = backend.rows("select max(position) as position from control_write")
    for number in range(3):
        await backend.write("tenants", "change", first.caller.tenant_id, name=f"name {number}", limits=LIMITS)
    changes = backend.rows("select 1 from control_write where position > %s", last["position"])
    known = {one: int(last["position"]) for one in range(PARTITIONS)}
    ids = [one.caller.organization_id for one in (first, second)]
    for most, expected in ((len(changes), ids[:1]), (len(changes) - 1, ids)):
        truths = LedgerReader(backend.engine, keys.partition_of, keys.partition_of_digest, changes_max=most)
        places = await truths.places(range(PARTITIONS), known)
        assert sorted(one for its in places.organizations.values() for one in its) == expected


async def test_what_lacks_stored_movements_is_compared_whole(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    first.reserve(need=20).settle(tokens=20)
    await backend.flush()
    await come_back(server, backend, first, second)
    assert organizations(read) == {first.caller.organization_id}
    assert (first.tenant.used, second.tenant.used) == (30, 10)


async def test_data_that_was_never_said_to_be_whole_is_compared_whole(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    first.client.delete(keys.verified(0))
    first.client.save()
    await come_back(server, backend, first, second)
    assert organizations(read) == {one.caller.organization_id for one in (first, second)}


async def test_a_partition_whose_marker_is_gone_is_compared_whole(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    first.client.delete(keys.marker(first.p), first.tenant_key)
    first.client.save()
    await come_back(server, backend, first, second)
    assert organizations(read) == {first.caller.organization_id}
    assert first.tenant.used == 10


async def test_data_of_before_the_last_comparison_is_compared_whole(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    """Somebody may have been defined in the data that was compared, and not in this."""
    first, second = await two(server, backend, read)
    old = {keys.marker(p): first.get(keys.marker(p)) for p in range(PARTITIONS)}
    await come_back(server, backend, first, second)
    read.clear()
    first.client.mset({**old, keys.verified(0): old[keys.marker(0)][1:41]})
    first.client.save()
    await come_back(server, backend, first, second)
    assert organizations(read) == {one.caller.organization_id for one in (first, second)}


def compared(backend: Backend, world: World) -> dict[str, object]:
    (row,) = backend.rows(
        "select compared_run_id, compared_epoch, compared_position, epoch, run_id from partition_state"
        " where partition = %s",
        world.p,
    )
    return row


async def test_what_was_written_lately_is_looked_at_again(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    """Of two that write at once the later one may have the lower position."""
    first, second = await two(server, backend, read)
    (long_ago,) = backend.rows("select max(position) as position from control_write")
    await backend.write("tenants", "change", second.caller.tenant_id, limits=LIMITS)
    await backend.push()
    for _ in range(2):
        first.client.save()
        await come_back(server, backend, first, second)
        noted = compared(backend, first)
        assert noted["compared_position"] == long_ago["position"]
        assert (noted["compared_run_id"], noted["compared_epoch"]) == (noted["run_id"], noted["epoch"])
        assert organizations(read) == {second.caller.organization_id}


async def test_where_a_definition_is_refused_it_is_tried_again(
    server: ValkeyServer, backend: Backend, read: Read
) -> None:
    first, second = await two(server, backend, read)
    raw = first.get(first.api_key)
    first.client.set(first.api_key, bytes([LAYOUT + 1]) + raw[1:])
    first.client.delete(keys.marker(first.p))
    first.client.save()
    await come_back(server, backend, first, second)
    assert compared(backend, first)["compared_epoch"] != compared(backend, first)["epoch"]
    read.clear()
    first.client.set(first.api_key, raw)
    first.client.save()
    await come_back(server, backend, first, second)
    assert organizations(read) == {first.caller.organization_id}
    assert compared(backend, first)["compared_epoch"] == compared(backend, first)["epoch"]


async def test_credentials_are_looked_at_where_they_stand(server: ValkeyServer, backend: Backend) -> None:
    """On other servers than their organizations, maybe."""
    world = await backend.settle_in(1_000)
    (key,) = backend.rows("select digest from api_key where id = %s", world.caller.key_id)
    there = keys.partition_of_digest(key["digest"])
    while there == world.p:
        world = await backend.settle_in(1_000)
        (key,) = backend.rows("select digest from api_key where id = %s", world.caller.key_id)
        there = keys.partition_of_digest(key["digest"])
    (last,) = backend.rows("select max(position) as position from control_write")
    position, key_id = int(last["position"]), world.caller.key_id
    truths = LedgerReader(backend.engine, keys.partition_of, keys.partition_of_digest)
    # Of what was lost all of it, but where its organization is read as well; of what came back, what changed.
    assert list((await truths.places([there], {})).credentials) == [key_id]
    assert list((await truths.places([there, world.p], {})).credentials) == []
    assert list((await truths.places([there, world.p], {world.p: position})).credentials) == [key_id]
    assert list((await truths.places([there], {there: position})).credentials) == []
    await backend.write("api-keys", "change", key_id, limits=LIMITS)
    assert list((await truths.places([there], {there: position})).credentials) == [key_id]
    both = await truths.places([there, world.p], {there: position, world.p: position})
    assert list(both.credentials) == []
    assert both.organizations == {world.p: [world.caller.organization_id]}


async def test_all_credentials_are_looked_through_some_at_a_time(
    server: ValkeyServer, backend: Backend
) -> None:
    world = await backend.settle_in(1_000)
    for number in range(6):
        digest = f"{number}" * 64
        await backend.made(
            "api-keys",
            tenant_id=world.caller.tenant_id,
            name=f"key {number}",
            digest=digest,
            prefix="tk_test",
        )
    rows = backend.rows("select id, digest from api_key")
    others = [one for one in range(PARTITIONS) if one != world.p]
    ours = [row["id"] for row in rows if keys.partition_of_digest(row["digest"]) in others]
    truths = LedgerReader(backend.engine, keys.partition_of, keys.partition_of_digest, credentials_max=2)
    assert len(ours) > 2
    assert list((await truths.places(others, {})).credentials) == sorted(ours)
