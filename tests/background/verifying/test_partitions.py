"""Each partition is read, compared and opened by itself, and only what is missing or behind is written."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from gateway.background.verifying.admission_gate import AdmissionGate
from gateway.background.verifying.published_lists import WHOLE_EACH, PublishedLists
from gateway.background.verifying.verifier import PARTITIONS_AT_ONCE_MAX, Verifier
from gateway.core.accounts.definitions import AccountDefinition, UserDefinition
from gateway.core.integrity.recovery import LedgerState
from gateway.core.model import PARTITIONS, Limits, Verdict
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.stored import decode_catalogue, encode_catalogue, version_standing
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable, InvalidApiKey
from persistence.keeper.verification import LedgerReader
from tests.background.backend import Backend, backend_at
from tests.background.verifying.guarded import at_one, guarded, settle, verified
from tests.background.verifying.test_overtaken import there
from tests.background.verifying.test_verifier import restarted
from tests.builders import World, driven
from tests.conftest import ValkeyServer
from tests.waiting import eventually

WRITES = {"set", "del", "fcall", "mset", "hset", "zadd", "xadd"}


def empty(backend: Backend) -> None:
    """Lose everything but the library and who knows what was verified."""
    with backend.client() as client:
        client.flushdb()
    backend.verifier._vouched = b""


async def two_emptied(backend: Backend) -> tuple[World, World]:
    """Two organizations of different partitions, of which Redis has nothing any more."""
    world = await backend.settle_in(100)
    other = world
    while other.p == world.p:
        other = await backend.settle_in(100)
    await backend.flush()
    empty(backend)
    return world, other


def held_up(
    backend: Backend, partition: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[LedgerReader, asyncio.Event]:
    """Truths that do not read a partition before the event is set."""
    source, looks_on = LedgerReader(backend.engine, keys.partition_of), asyncio.Event()
    truth = source.truth

    async def slow(organizations: Mapping[int, Sequence[int]]) -> dict[int, LedgerState]:
        if partition in organizations:
            await looks_on.wait()
        return await truth(organizations)

    monkeypatch.setattr(source, "truth", slow)
    return source, looks_on


async def test_a_partition_is_served_before_others_are_compared(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, other = await two_emptied(backend)
    source, looks_on = held_up(backend, other.p, monkeypatch)
    verifier = Verifier(source, backend.counters, organizations_max=1)
    verifying = asyncio.create_task(verifier.verify())
    await eventually(lambda: world.reserve(need=1).verdict is Verdict.ADMITTED)
    # Whoever is not found may still come.
    directory = Directory(backend.wire, asyncio.get_running_loop().time)
    with pytest.raises(CountersUnavailable):
        await driven(directory.identify("unknown"))
    assert other.reserve(need=1).verdict is Verdict.UNVERIFIED
    assert not verifier.ready
    looks_on.set()
    assert [one.partition for one in await verifying] == list(range(PARTITIONS))
    assert verifier.ready
    assert other.reserve(need=1).verdict is Verdict.ADMITTED
    with pytest.raises(InvalidApiKey):
        await driven(directory.identify("unknown"))


async def test_partitions_that_wait_are_counted_down_as_each_is_opened(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, other = await two_emptied(backend)
    source, looks_on = held_up(backend, other.p, monkeypatch)
    gate = AdmissionGate(source, backend.counters, asyncio.get_running_loop().time, recovery_s_max=0.0)
    verifier = Verifier(source, backend.counters, admission_gate=gate, organizations_max=1)
    directory = Directory(backend.wire, asyncio.get_running_loop().time)
    await directory._read_catalogue()
    assert (verifier.open_count, len(directory.unverified)) == (0, PARTITIONS)
    verifying = asyncio.create_task(verifier.verify())
    await eventually(lambda: world.reserve(need=1).verdict is Verdict.ADMITTED)
    await directory._read_catalogue()
    assert world.p not in directory.unverified
    assert other.p in directory.unverified
    await eventually(lambda: 0 < verifier.open_count < PARTITIONS)
    looks_on.set()
    await verifying
    await directory._read_catalogue()
    assert (verifier.open_count, directory.unverified) == (PARTITIONS, frozenset())


async def test_a_partition_admits_before_others_are_compared_though_redis_was_silent_for_once(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, other = await two_emptied(backend)
    source, looks_on = held_up(backend, other.p, monkeypatch)
    late_waiting, silent = backend.counters.late_waiting, list[bool]()

    async def once_silent() -> frozenset[int]:
        if not silent:
            silent.append(True)
            raise CountersUnavailable
        return await late_waiting()

    monkeypatch.setattr(backend.counters, "late_waiting", once_silent)
    gate = AdmissionGate(source, backend.counters, asyncio.get_running_loop().time, recovery_s_max=0.0)
    verifier = Verifier(source, backend.counters, admission_gate=gate, organizations_max=1)
    verifying = asyncio.create_task(verifier.verify())
    await eventually(lambda: world.reserve(need=1).verdict is Verdict.ADMITTED)
    assert silent
    assert not verifying.done()
    assert other.reserve(need=1).verdict is Verdict.UNVERIFIED
    looks_on.set()
    assert [one.partition for one in await verifying] == list(range(PARTITIONS))
    assert other.reserve(need=1).verdict is Verdict.ADMITTED


async def test_so_many_partitions_are_compared_at_once(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few organizations they have: all of them are read at once."""
    original, goes_on = backend.counters.held, asyncio.Event()
    under_way, most = set[int](), 0

    async def held(partition: int) -> dict[str, int]:
        nonlocal most
        under_way.add(partition)
        most = max(most, len(under_way))
        await goes_on.wait()
        under_way.remove(partition)
        return await original(partition)

    monkeypatch.setattr(backend.counters, "held", held)
    verifying = asyncio.create_task(backend.verify())
    await eventually(lambda: len(under_way) >= PARTITIONS_AT_ONCE_MAX)
    goes_on.set()
    assert [one.partition for one in await verifying] == list(range(PARTITIONS))
    assert most == PARTITIONS_AT_ONCE_MAX


async def test_a_connection_that_is_lost_is_looked_after_at_once(
    own_valkey: Callable[..., ValkeyServer], migrated: str
) -> None:
    """However rarely a keeper looks while all is verified."""
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        truths, rarely_s = LedgerReader(backend.engine, keys.partition_of), 3_600.0
        verifier = Verifier(truths, backend.counters, watch_s=rarely_s)
        running, run_id = asyncio.create_task(verifier.run()), backend.wire.run_id
        await eventually(lambda: verifier.pause_s == rarely_s)
        async with restarted(server, backend):
            pass
        await eventually(lambda: verifier.ready and backend.wire.run_id != run_id)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_fails_in_one_partition_fails_the_verification(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await backend.settle_in(100)
    await backend.flush()
    empty(backend)
    original = backend.counters.held

    async def held(partition: int) -> dict[str, int]:
        if partition == world.p:
            raise CountersUnavailable
        return await original(partition)

    with monkeypatch.context() as patched:
        patched.setattr(backend.counters, "held", held)
        with pytest.raises(CountersUnavailable):
            await backend.verify()
    assert not backend.verifier.ready
    assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
    await backend.verify()
    assert backend.verifier.ready
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


LIMITS = {"requests_per_minute": 50, "tokens_per_minute": 9_000, "concurrency": 4}


async def limited(backend: Backend) -> World:
    """Somebody with limits everywhere, and a key that ends."""
    world = await backend.settle_in(1_000, reset_interval="monthly", overage_policy="carry")
    caller = world.caller
    await backend.write("tenants", "change", caller.tenant_id, limits=LIMITS, user_limits={"concurrency": 2})
    await backend.write("organizations", "change", caller.organization_id, limits=LIMITS, credit_limit=7)
    await backend.write("api-keys", "change", caller.key_id, limits=LIMITS)
    await backend.push()
    return world


def stored(world: World) -> list[object]:
    """What is defined of its accounts, as it stands: all of them but moments and versions."""
    kinds = (
        (states.TenantState, world.tenant_key),
        (states.OrganizationState, world.organization_key),
        (states.KeyState, world.api_key),
    )
    return [replace(states.unpack(kind, world.get(name)), at=0, version=0) for kind, name in kinds]


async def test_what_is_written_whole_is_what_was_defined(backend: Backend) -> None:
    world = await limited(backend)
    await backend.flush()
    before, terms = stored(world), world.get(keys.organization_terms(world.caller.organization_id))
    empty(backend)
    backend.counters.takes_up = lambda: True
    await backend.verify()
    assert stored(world) == before
    after = world.get(keys.organization_terms(world.caller.organization_id))
    assert terms.partition(b",")[2] == after.partition(b",")[2]
    # A later definition is in force, and an earlier one that still waited is not.
    await backend.write("api-keys", "change", world.caller.key_id, limits={"concurrency": 9})
    await backend.push()
    key = states.unpack(states.KeyState, world.get(world.api_key))
    assert (key.concurrency, key.rpm) == (9, 0)


def definitions_of(truth: LedgerState) -> list[AccountDefinition]:
    return [*(one.definition for one in (*truth.organizations, *truth.tenants)), *truth.keys]


async def test_a_definition_is_written_where_any_of_it_differs_and_nowhere_else(backend: Backend) -> None:
    world = await limited(backend)
    caller = world.caller
    truth = (
        await LedgerReader(backend.engine, keys.partition_of).truth({world.p: [caller.organization_id]})
    )[world.p]
    user = UserDefinition(caller.tenant_id, caller.organization_id, "its user", Limits(concurrency=3))
    names = [
        world.organization_key, world.tenant_key, world.api_key,
        keys.user_state(world.p, caller.tenant_id, "its user"),
    ]  # fmt: skip
    kinds = (
        (states.OrganizationState, packing.DEFINE_ORGANIZATION),
        (states.TenantState, packing.DEFINE_TENANT),
        (states.KeyState, packing.DEFINE_KEY),
        (states.UserState, packing.DEFINE_USER),
    )
    definitions, later = [*definitions_of(truth), user], truth.version + 1
    assert await backend.counters.define_all([user], truth.version) == []
    raw = {name: world.get(name) for name in names}
    assert await backend.counters.define_all(definitions, later) == []
    assert {name: world.get(name) for name in names} == raw
    for definition, name, (kind, layout) in zip(definitions, names, kinds, strict=True):
        as_it_is = states.unpack(kind, raw[name])
        # Another plan is a grant, which comes by itself.
        for field in (one.name for one in layout.fields if one.name != "plan_id"):
            other = replace(as_it_is, **{field: 1 - getattr(as_it_is, field) % 2})
            world.client.set(name, states.pack(other))
            assert await backend.counters.define_all([definition], later) == []
            after = states.unpack(kind, world.get(name))
            assert (getattr(after, field), after.version) == (getattr(as_it_is, field), later), field
        world.client.delete(name)
        answered = await backend.counters.define_all([definition], later)
        assert (answered, world.client.exists(name)) == ([], 1), "it is none that has a ledger"


async def test_a_keeper_that_starts_beside_data_that_is_verified_reads_no_account_and_writes_nothing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await backend.settle_in(100)
    assert await backend.verify() == []
    truths = LedgerReader(backend.engine, keys.partition_of)
    for name in ("truth", "places"):
        monkeypatch.delattr(type(truths), name)
    another = Verifier(truths, KeeperCounters(backend.wire))
    world.client.config_resetstat()
    assert await another.verify() == []
    assert another.ready
    asked = {name.removeprefix("cmdstat_") for name in world.client.info("commandstats")}
    assert asked
    assert not asked & WRITES


async def written(backend: Backend, *lost: str) -> dict[str, int]:
    """How often each command that writes ran while a partition was verified that lost these."""
    with backend.client() as client:
        client.delete(*lost)
        backend.verifier._vouched = b""
        client.config_resetstat()
        await backend.verify()
        ran = client.info("commandstats")
    return {name: ran[f"cmdstat_{name}"]["calls"] for name in WRITES if f"cmdstat_{name}" in ran}


async def test_as_little_is_written_however_many_are_there(backend: Backend) -> None:
    world = await limited(backend)
    await backend.flush()
    marker = keys.marker(world.p)
    await written(backend, marker)
    before = await written(backend, marker)
    digests = [uuid.uuid4().hex * 2 for _ in range(12)]
    for number, digest in enumerate(digests):
        ends = {"expires_at": datetime.now(UTC) + timedelta(days=1)} if number % 2 else {}
        await backend.made(
            "api-keys", tenant_id=world.caller.tenant_id, name=f"key {number}", digest=digest,
            prefix="tk_test", **ends,
        )  # fmt: skip
    await backend.push()
    everything = {name: world.get(name) for name in map(keys.identity, digests)}
    assert all(everything.values())
    await written(backend, marker)  # the catalogue and the prices say how new they are
    assert await written(backend, marker) == before
    # Of what is lost so much is written, and no more: a credential, one that ends, another's key
    # (which its script sets).
    lost = [keys.identity(digest) for digest in digests[:2]]
    (key,) = backend.rows("select id from api_key where digest = %s", digests[2])
    after = await written(backend, marker, *lost, keys.key_state(world.p, key["id"]))
    more = {name: after.get(name, 0) - before.get(name, 0) for name in WRITES}
    assert {name: calls for name, calls in more.items() if calls} == {"mset": 1, "set": 2, "fcall": 1}
    assert {name: world.get(name) for name in everything} == everything
    assert 0 < world.client.pttl(lost[1]) <= 86_400_000
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


async def test_a_credential_that_is_somebody_elses_is_put_right(backend: Backend) -> None:
    world = await limited(backend)
    (key,) = backend.rows("select digest from api_key where id = %s", world.caller.key_id)
    name, marker = keys.identity(key["digest"]), keys.marker(world.p)
    right = world.get(name)
    world.client.set(name, right.replace(b'"u":""', b'"u":"another"'))
    assert world.get(name) != right
    await written(backend, marker)
    assert world.get(name) == right
    # One that ended stands for nobody, whatever came back.
    await backend.write("api-keys", "revoke", world.caller.key_id)
    await backend.push()
    assert world.client.get(name) is None
    world.client.set(name, right)
    await written(backend, marker)
    assert world.client.get(name) is None


async def test_of_a_partition_only_what_is_not_there_is_written(backend: Backend) -> None:
    worlds = [await backend.settle_in(100) for _ in range(2)]
    one = worlds[0]
    await backend.flush()
    one.client.delete(one.tenant_key, one.api_key)
    for world in worlds:
        world.client.delete(keys.marker(world.p))
    backend.verifier._vouched = b""
    done = {each.partition: each for each in await backend.verify()}
    assert sum(each.rebuilt for each in done.values()) == 1
    assert all(world.reserve(need=1).verdict is Verdict.ADMITTED for world in worlds)


# --- published --------------------------------------------------------------------------
# The lists of everybody are there again, as PostgreSQL has them, whoever lost them.


LISTS = [keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD]


@dataclass(slots=True)
class Desk:
    """A keeper that has verified everything, and what it looks at."""

    backend: Backend
    client: redis.Redis
    lists: PublishedLists
    told: list[tuple[str, dict[str, Any]]]
    may_write: list[bool]
    asked: list[int]
    key: str

    def stand(self) -> dict[str, bytes]:
        return {name: self.client.get(name) or b"" for name in LISTS}


@pytest.fixture
async def desk(valkey: str, migrated: str) -> AsyncIterator[Desk]:
    async with backend_at(valkey, migrated) as backend:
        await backend.settle_in()
        (model,) = backend.rows("select id from business_model where name = 'Consumption'")
        key = f"lists-{uuid.uuid4().hex}"
        await backend.made(
            "services", name=key, key=key, credits=8, service_type="Pay-As-You-Go",
            business_model_id=model["id"],
        )  # fmt: skip
        await backend.push()
        told: list[tuple[str, dict[str, Any]]] = []
        may_write, asked = [True], [0]

        def may() -> bool:
            asked[0] += 1
            return may_write[0]

        lists = PublishedLists(
            LedgerReader(backend.engine, partition_of), backend.counters, may,
            lambda what, **facts: told.append((what, facts)),
        )  # fmt: skip
        with backend.client() as client:
            yield Desk(backend, client, lists, told, may_write, asked, key)


async def test_what_stands_is_left_as_it_is(desk: Desk) -> None:
    before = desk.stand()
    for _ in range(WHOLE_EACH + 1):
        assert await desk.lists.look() == []
    assert (desk.stand(), desk.told) == (before, [])


@pytest.mark.parametrize("name", LISTS)
async def test_what_was_lost_is_written_again(desk: Desk, name: str) -> None:
    """Its slot was given out empty, or somebody deleted it; nothing else tells."""
    for _ in range(2):  # the second look asks whether the catalogue is there, and does not read it
        assert await desk.lists.look() == []
        desk.client.delete(name)
        assert await desk.lists.look() == [name]
        assert all(desk.stand().values())
        assert desk.key in decode_catalogue(desk.stand()[keys.CATALOGUE]).services
    assert await desk.lists.look() == []
    assert [(what, facts["keys"]) for what, facts in desk.told] == [("written again", [name])] * 2


async def test_an_older_catalogue_is_replaced(desk: Desk) -> None:
    assert await desk.lists.look() == []
    version = decode_catalogue(desk.stand()[keys.CATALOGUE]).version
    desk.client.set(keys.CATALOGUE, encode_catalogue(version - 1, []))
    looks = [await desk.lists.look() for _ in range(WHOLE_EACH)]
    assert [one for one in looks if one] == [[keys.CATALOGUE]]
    found = decode_catalogue(desk.stand()[keys.CATALOGUE])
    assert found.version >= version
    assert desk.key in found.services


async def test_a_postgresql_that_went_back_is_not_asked_for_ever(desk: Desk) -> None:
    desk.client.set(keys.CATALOGUE, encode_catalogue(10**9, []))
    assert await desk.lists.look() == []
    desk.client.delete(keys.CATALOGUE)
    assert await desk.lists.look() == [keys.CATALOGUE]
    assert [await desk.lists.look() for _ in range(WHOLE_EACH + 1)] == [[]] * (WHOLE_EACH + 1)
    assert desk.key in decode_catalogue(desk.stand()[keys.CATALOGUE]).services


async def test_where_others_write_nothing_is_written(desk: Desk) -> None:
    desk.client.delete(keys.CATALOGUE)
    desk.may_write[0] = False
    running = asyncio.create_task(desk.lists.run())
    await eventually(lambda: desk.asked[0] >= 2)
    assert desk.client.exists(keys.CATALOGUE) == 0
    desk.may_write[0] = True
    await eventually(lambda: desk.client.exists(keys.CATALOGUE) == 1)
    running.cancel()


@pytest.mark.parametrize("name", LISTS)
async def test_what_is_no_list_is_told_and_written_over(desk: Desk, name: str) -> None:
    """Nobody can read what stands there, and every gateway that starts would be without."""
    desk.client.delete(name)
    desk.client.rpush(name, "somebody else's")
    assert await desk.lists.look() == [name]
    if name != keys.PRICES:  # which no look reads
        for none in ("no list", '{"x":' + "[" * 100_000):
            desk.client.set(name, none)
            assert await desk.lists.look() == [name]
    assert all(version_standing(raw) > 0 for raw in desk.stand().values())
    assert {facts["stood_there"] for _, facts in desk.told} == {"something else"}


# --- forks ------------------------------------------------------------------------------
# What waits in counters beside which another server went on: it is dropped where that was stored.


START = Callable[..., ValkeyServer]


@pytest.mark.parametrize("waits", [1, 3], ids=["less than was stored", "more than was stored"])
async def test_what_waits_beside_what_another_server_went_on_with_is_dropped(
    own_valkey: START, migrated: str, waits: int
) -> None:
    """It is older than what was stored since: nothing of the stream comes behind that."""
    one, other = own_valkey(), own_valkey()
    async with guarded(one.url, migrated) as here, guarded(other.url, migrated) as elsewhere:
        world = await here.settle_in(10_000)
        await here.flush()
        settle(world, waits, 30)
        await elsewhere.verify()
        settle(there(world, elsewhere), 2, 5)
        await elsewhere.flush()
        await verified(here, world)
        assert world.tenant.used == 10
        assert world.client.xlen(keys.outbox(world.p)) == 0
        settle(world, 1, 7)
        await here.flush()
        at_one(here, world)


# --- servers of a cluster ---------------------------------------------------------------
# What verifying one of several servers goes by: its own partitions, and who stands beside them.


async def test_while_a_partition_is_not_verified_nobody_is_said_not_to_exist(backend: Backend) -> None:
    """It came with a slot, and who stands there may only not be there yet."""
    await backend.verify()
    run_id, counters = backend.wire.run_id, backend.counters
    assert await counters.is_marked_verified(run_id)
    assert await counters.is_marked_verified(run_id, [7])
    assert not await counters.is_marked_verified(run_id)
    await backend.verify()
    assert await counters.is_marked_verified(run_id)


async def test_credentials_are_of_the_partitions_that_they_stand_beside(backend: Backend) -> None:
    """Of a cluster another primary may have them than has their organization."""
    for _ in range(3):
        await backend.settle_in()
    truths = LedgerReader(backend.engine, keys.partition_of, keys.partition_of_digest)
    whole = await truths.places(range(PARTITIONS), {})
    assert not whole.credentials
    found = [one for truth in (await truths.truth(whole.organizations)).values() for one in truth.keys]
    assert len(found) == 3
    for one in found:
        there, home = keys.partition_of_digest(one.digest), keys.partition_of(one.organization_id)
        assert (one.key_id in (await truths.places({there}, {})).credentials) is (there != home)
        assert one.key_id not in (await truths.places({there, home}, {})).credentials
        others = set(range(PARTITIONS)) - {there}
        assert one.key_id not in (await truths.places(others, {})).credentials
        assert await truths.credentials([one.key_id]) == [one]
