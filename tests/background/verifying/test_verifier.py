"""The verifier: nothing is served that it has not vouched for, and nothing is vouched for unseen."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.background.flushing.late import LateSettlements
from gateway.background.loops import Gauges
from gateway.background.verifying.admission_gate import AdmissionGate
from gateway.background.verifying.verifier import (
    INTERVAL_S,
    TOGETHER_MAX,
    WATCH_S,
    Verifier,
    in_turns,
    together,
)
from gateway.core.integrity.recovery import VerificationResult
from gateway.core.model import PARTITIONS, BlockCause, Service, SettleResult, Verdict
from gateway.core.wait import in_task
from gateway.counters.admission.callers import Directory
from gateway.counters.layouts import packing
from gateway.counters.leases.allowance import lease
from gateway.counters.redis import keys
from gateway.counters.redis.connection import encode
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable, InvalidApiKey
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.verification import LedgerReader
from persistence.resources.integrity import Quarantines
from tests.background.backend import Backend, backend_at, parted, rejoined
from tests.background.verifying.scene import TOTAL, WAITS_LATE_S, WAITS_S, Scene, scene_at, worker_slots
from tests.builders import CHAT, CREDITS, ONE_TIME, UNITS, driven, new_id
from tests.conftest import ValkeyServer
from tests.connections import connected
from tests.waiting import eventually
from tests.worker import Worker, worker_at

START = Callable[..., ValkeyServer]


@asynccontextmanager
async def restarted(server: ValkeyServer, backend: Backend) -> AsyncIterator[None]:
    """A crash: what happens between it and the new start happens in the block."""
    server.stop(signal.SIGKILL)
    await parted(backend.wire)
    yield
    server.start()
    await rejoined(backend.wire)


def ready(backend: Backend) -> bool:
    return backend.verifier.ready


# --- first start ------------------------------------------------------------------------


async def test_an_empty_redis_is_verified_whole(backend: Backend) -> None:
    assert not ready(backend)
    done = await backend.verify()
    assert [one.partition for one in done] == list(range(PARTITIONS))
    assert {one.epoch for one in done} == {1}
    assert ready(backend)
    assert await backend.verify() == []
    with backend.client() as client:
        assert client.get(keys.verified(0)) == backend.wire.run_id
        run_id, epoch, _ = packing.read_marker(client.get(keys.marker(0)) or b"")
        assert (run_id, epoch) == (backend.wire.run_id, 1)
    rows = backend.rows("select count(*) as n, min(epoch) as low, max(epoch) as high from partition_state")
    assert rows == [{"n": PARTITIONS, "low": 1, "high": 1}]


async def test_what_was_verified_is_told_once(backend: Backend) -> None:
    told: list[list[VerificationResult]] = []
    verifier = Verifier(backend.verifier._source, backend.verifier._target, told.append)
    running = asyncio.create_task(verifier.run())
    await eventually(lambda: verifier.ready)
    running.cancel()
    assert [len(done) for done in told] == [PARTITIONS]


# --- after a restart --------------------------------------------------------------------


async def test_after_a_restart_nothing_is_served_until_it_was_compared(
    own_valkey: START, migrated: str
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(1000)
        world.reserve(need=10).settle(tokens=300)
        before = (world.tenant, world.organization, world.key)
        async with restarted(server, backend):
            assert not ready(backend)
        world = world.again()
        assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
        directory = Directory(backend.wire, asyncio.get_running_loop().time)
        with pytest.raises(CountersUnavailable):
            await driven(directory.identify("unknown"))
        assert not ready(backend)
        done = await backend.verify()
        assert all(one.rebuilt == 0 and one.epoch == 2 for one in done)
        assert (world.tenant, world.organization, world.key) == before
        assert world.reserve(need=1).verdict is Verdict.ADMITTED
        with pytest.raises(InvalidApiKey):
            await driven(directory.identify("unknown"))


async def test_an_emptied_redis_is_rebuilt_from_the_ledger_under_the_next_epoch(
    own_valkey: START, migrated: str
) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(
            1000, reset_interval="monthly", rollover_max=7, overage_policy="carry"
        )
        limits = {"requests_per_minute": 50, "tokens_per_minute": 9000, "concurrency": 4}
        await backend.write(
            "tenants", "change", world.caller.tenant_id, limits=limits, user_limits={"concurrency": 2}
        )
        await backend.push()
        world.reserve(need=10, user="ann").settle(tokens=300)
        await backend.flush()
        before = world.tenant
        async with restarted(server, backend):
            pass
        world = world.again()
        assert world.client.dbsize() == 0
        assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
        done = {one.partition: one for one in await backend.verify()}
        assert (done[world.p].rebuilt, done[world.p].epoch) == (2, 2)
        after = world.tenant
        for name in (
            "total", "remaining", "used", "cycle", "next_reset", "anchor", "last_reset", "seq", "plan_id",
            "reset_interval", "overage_policy", "rollover_max", "total_amount", "rpm", "tpm", "concurrency",
            "flags", "user_concurrency",
        ):  # fmt: skip
            assert getattr(after, name) == getattr(before, name), name
        assert (after.held, after.inflight) == (0, 0)
        call = world.reserve(need=5)
        assert call.verdict is Verdict.ADMITTED
        call.settle(tokens=5)
        assert (world.events()[-1].epoch, world.events()[-1].seq) == (2, 3)
        await backend.flush()
        assert backend.ledger(world.caller.tenant_id)[-1] == (3, "consume", -5, 695)
        assert backend.rows("select * from quarantine") == []


@pytest.mark.parametrize("total", [None, 0, 10])
async def test_what_remains_is_never_fresh_after_a_loss(
    own_valkey: START, migrated: str, total: int | None
) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(total)
        call = world.reserve(need=5)
        if call.verdict is Verdict.ADMITTED:
            call.settle(tokens=25)
        await backend.write("tenants", "block", world.caller.tenant_id)
        await backend.push()
        await backend.flush()
        before = world.tenant
        async with restarted(server, backend):
            pass
        world = world.again()
        await backend.verify()
        after = world.tenant
        assert (after.total, after.remaining, after.used, after.seq) == (
            before.total,
            before.remaining,
            before.used,
            before.seq,
        )
        assert (after.manual_block, world.reserve(need=1).verdict) == (True, Verdict.TENANT_BLOCKED)


async def test_rebuild_restores_the_cause_of_a_block(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(1000)
        tenant_id = world.caller.tenant_id
        partition = backend.store.partition(world.caller.organization_id)
        assert await Quarantines(backend.engine).refuse({partition: [tenant_id]}) == [f"tenant:{tenant_id}"]
        await backend.push()
        await backend.flush()
        async with restarted(server, backend):
            pass
        world = world.again()
        await backend.verify()
        assert (world.tenant.block_cause, world.reserve(need=1).decision.used) == (
            BlockCause.BACKLOG,
            BlockCause.BACKLOG,
        )
        assert (await backend.store.get("tenant-quotas", tenant_id))["block_cause"] == "backlog"


async def test_what_was_granted_beyond_an_unlimited_plan_is_there_again_after_a_loss(
    backend: Backend,
) -> None:
    world, name = await backend.settle_in(1000), uuid.uuid4()
    tenant = world.caller.tenant_id
    free = await backend.made("token-plans", name=f"free {name}", total_amount=None)
    plan = await backend.made("token-plans", name=f"again {name}", total_amount=1000)
    world.grant("recharge", 5000)
    await backend.write("tenants", "change", tenant, plan_id=free)
    await backend.push()
    world.reserve(need=1).settle(tokens=10)
    world.grant("adjust", -100)
    await backend.flush()
    with backend.client() as client:
        client.flushall()
    await backend.verify()
    world = world.again()
    assert (world.tenant.total, world.tenant.remaining) == (-1, 4900)
    await backend.write("tenants", "change", tenant, plan_id=plan)
    await backend.push()
    await backend.flush()
    assert world.tenant.remaining == 5890
    assert backend.rows("select * from quarantine") == []


async def test_a_redis_rolled_back_is_brought_forward(backend: Backend) -> None:
    """Another run id with older states: only what is behind is rebuilt."""
    world, other = await backend.settle_in(1000), await backend.settle_in(1000)
    assert world.p != other.p
    old = world.get(world.tenant_key)
    world.reserve(need=10).settle(tokens=400)
    await backend.flush()
    world.client.set(world.tenant_key, old)
    for partition in range(PARTITIONS):
        world.client.set(keys.marker(partition), packing.marker(b"o" * 40, 1, 1))
    assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
    backend.verifier._vouched = b""
    done = {one.partition: one for one in await backend.verify()}
    assert (done[world.p].rebuilt, done[world.p].epoch) == (1, 2)
    assert (done[other.p].rebuilt, done[other.p].epoch) == (0, 2)
    assert (world.tenant.remaining, world.tenant.seq) == (600, 2)


@dataclass(slots=True)
class Rollback:
    """A server's keys as they were, to be put back under another run id."""

    backend: Backend
    kept: dict[bytes, bytes]

    @classmethod
    def of(cls, backend: Backend) -> Rollback:
        with backend.client() as client:
            names = [name for name in client.keys("tk:{*") if not name.endswith((b"}:m", b"}:x"))]
            return cls(backend, {name: client.dump(name) for name in names})

    async def verified(self) -> dict[int, VerificationResult]:
        """Forget everything since, and have that verified."""
        with self.backend.client() as client:
            for name in client.keys("tk:{*"):
                client.delete(name)
            for name, packed in self.kept.items():
                client.restore(name, 0, packed)
            for partition in range(PARTITIONS):
                client.set(keys.marker(partition), packing.marker(b"o" * 40, 1, 1))
        self.backend.verifier._vouched = b""
        return {one.partition: one for one in await self.backend.verify()}


@pytest.mark.parametrize("service", [CHAT, CREDITS, ONE_TIME, UNITS], ids=lambda one: str(one.key))
async def test_holds_a_rolled_back_redis_takes_again_are_let_go_where_the_ledger_has_their_call(
    backend: Backend, service: Service
) -> None:
    """Nobody settles them a second time, and no reclaim charges them."""
    world = await backend.settle_in(1000)
    await backend.limit(world.caller, concurrency=9)
    await backend.push()
    world.grant("credits", 500)
    settled = world.reserve(need=10, service=service, user="ann", credits_=50)
    alive = world.reserve(need=20, user="ann")
    before = Rollback.of(backend)
    settled.settle(tokens=7, credits=50, units=2)
    await backend.flush()
    seqs = world.tenant.seq, world.organization.credit_seq, world.organization.spend_seq
    done = await before.verified()
    assert (done[world.p].let_go, done[world.p].epoch) == (1, 2)
    assert settled.hold is None
    assert (world.slots("ann"), world.tenant.held) == ([1, 0, 1, 1], 20)
    assert (world.organization.credits_held, world.organization.spend_held) == (0, 0)
    assert seqs == (world.tenant.seq, world.organization.credit_seq, world.organization.spend_seq)
    assert settled.settle(tokens=7, credits=50, units=2) is SettleResult.UNKNOWN
    assert await backend.late_settlements.drain() == 1
    assert (world.late(), world.events()) == ([], [])
    assert alive.settle(tokens=5) is SettleResult.DONE
    assert (world.slots("ann"), world.tenant.held) == ([0, 0, 0, 0], 0)


async def test_leases_a_rolled_back_redis_has_stay_held_and_take_no_slot(backend: Backend) -> None:
    world = await backend.settle_in(1000)
    world.put_tenant(on_store_failure=1)
    for _ in range(2):
        world.run("lease", lease(world.run_id, world.caller, new_id(), 60_000, fraction=0.1))
    held = world.tenant.held
    assert held == 190
    before = Rollback.of(backend)
    world.reserve(need=10).settle(tokens=7)
    await backend.flush()
    done = await before.verified()
    assert done[world.p].rebuilt == 1
    assert world.tenant.held == held
    assert (world.tenant.inflight, world.organization.inflight) == (0, 0)


async def test_a_keeper_that_died_while_it_let_holds_go_leaves_them_to_the_next(backend: Backend) -> None:
    world = await backend.settle_in(1000)
    call = world.reserve(need=10)
    before = Rollback.of(backend)
    call.settle(tokens=7)
    await backend.flush()
    mark, backend.counters.mark = backend.counters.mark, nobody  # type: ignore[method-assign]  # dies here
    assert await before.verified() == {}
    assert not ready(backend)
    backend.counters.mark = mark  # type: ignore[method-assign]  # the next one does not
    assert (call.hold, world.reserve(need=1).verdict) == (None, Verdict.UNVERIFIED)
    done = {one.partition: one for one in await backend.verify()}
    assert (done[world.p].let_go, world.tenant.remaining) == (0, 993)
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


async def test_what_a_flush_is_storing_is_waited_for(backend: Backend) -> None:
    """Rows that were read before Redis forgot them are in the ledger before anything is compared with it."""
    world = await backend.settle_in(1000)
    world.client.delete(keys.marker(world.p))
    async with await psycopg.AsyncConnection.connect(backend.database) as flushing:
        await flushing.execute("select pg_advisory_xact_lock(7800, %s)", [world.p])
        verifying = asyncio.create_task(backend.verify())
        waiting = "select 1 from pg_locks where locktype = 'advisory' and classid = 7800 and not granted"
        await eventually(lambda: backend.rows(waiting))
        assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
        await flushing.commit()
        await verifying
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


async def nobody(*_: object) -> bool:
    return False


async def test_control_writes_that_vanished_are_pushed_again(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(100)
        await backend.flush()
        await backend.write("tenants", "recharge", world.caller.tenant_id, amount=50)
        await backend.push()
        assert backend.writes()[-1][2] == "applied"
        async with restarted(server, backend):
            pass
        world = world.again()
        done = await backend.verify()
        assert sum(one.repushed for one in done) == 1
        assert (backend.writes()[-1][2], world.tenant.remaining) == ("pending", 100)
        await backend.push()
        assert world.tenant.remaining == 150
        await backend.flush()
        assert backend.ledger(world.caller.tenant_id) == [(1, "reset", 100, 100), (2, "recharge", 50, 150)]
        assert {state for _, _, state in backend.writes()} == {"done"}


async def test_control_writes_that_survived_are_not_pushed_twice(own_valkey: START, migrated: str) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(100)
        await backend.write("tenants", "recharge", world.caller.tenant_id, amount=50)
        await backend.push()
        async with restarted(server, backend):
            pass
        world = world.again()
        done = await backend.verify()
        assert sum(one.repushed for one in done) == 0
        await backend.push()
        await backend.flush()
        assert world.tenant.remaining == 150
        assert backend.ledger(world.caller.tenant_id)[-1] == (2, "recharge", 50, 150)


async def test_a_revocation_that_vanished_is_in_force_again(backend: Backend) -> None:
    world = await backend.settle_in(100)
    digest = keys.identity(backend.rows("select digest from api_key")[0]["digest"])
    state, identity = world.get(world.api_key), world.get(digest)
    await backend.write("api-keys", "revoke", world.caller.key_id)
    await backend.push()
    world.client.set(world.api_key, state)
    world.client.set(digest, identity)
    for partition in range(PARTITIONS):
        world.client.delete(keys.marker(partition))
    backend.verifier._vouched = b""
    await backend.verify()
    assert world.reserve(need=1).verdict is Verdict.REVOKED
    assert not world.client.exists(digest)


async def test_a_postgresql_that_was_restored_is_told_the_epochs_anew(backend: Backend) -> None:
    """Until then nothing is stored: of which history it would be nobody could tell."""
    world = await backend.settle_in(100)
    world.client.delete(keys.marker(world.p))
    assert [(one.partition, one.epoch) for one in await backend.verify()] == [(world.p, 2)]
    with connected(backend.database) as connection:
        connection.execute("update partition_state set run_id = %s, epoch = 1", ["o" * 40])
    world.reserve(need=1).settle(tokens=30)
    await backend.flush()
    assert backend.ledger(world.caller.tenant_id) == []
    assert await backend.verify() == []
    await backend.flush()
    assert backend.ledger(world.caller.tenant_id)[-1] == (2, "consume", -30, 70)
    query = "select epoch from partition_state where partition = %s and run_id = %s"
    assert backend.rows(query, world.p, backend.wire.run_id.decode()) == [{"epoch": 2}]


# --- several keepers, changing connections ----------------------------------------------


async def test_two_verifiers_at_once_do_it_once(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as one, backend_at(server.url, migrated) as other:
        world = await one.settle_in(1000)
        world.reserve(need=1).settle(tokens=100)
        await one.flush()
        async with restarted(server, one):
            pass
        await rejoined(other.wire)
        first, second = await asyncio.gather(one.verify(), other.verify())
        epochs = {verified.partition: verified.epoch for verified in (*first, *second)}
        assert sorted(epochs) == list(range(PARTITIONS))
        assert len(first) + len(second) == PARTITIONS
        for backend in (one, other):
            await backend.verify()
            assert ready(backend)
        world = world.again()
        # Who hears of the other's epoch before it has closed anything takes the one after that.
        assert packing.read_marker(world.get(keys.marker(world.p)))[1] == epochs[world.p]
        assert (world.tenant.remaining, world.tenant.seq) == (900, 2)


async def test_a_verifier_without_a_connection_waits(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        server.stop()
        await parted(backend.wire)
        with pytest.raises(CountersUnavailable):
            await backend.verify()
        verify, tries = backend.verifier.verify, 0

        async def tried() -> list[VerificationResult]:
            nonlocal tries
            tries += 1
            return await verify()

        backend.verifier.verify = tried  # type: ignore[method-assign]  # counted
        running = asyncio.create_task(backend.verifier.run())
        await eventually(lambda: tries > 1)
        assert not ready(backend)
        server.start()
        await eventually(lambda: ready(backend))
        running.cancel()
        assert (
            await in_task(backend.wire.send(encode(b"GET", keys.verified(0).encode()))) == backend.wire.run_id
        )


async def test_a_keeper_that_died_before_the_keys_left_nobody_unknown(backend: Backend) -> None:
    """All markers stand, but nobody said that everything is there: then it is not."""
    world = await backend.settle_in(100)
    digest = backend.rows("select digest from api_key")[0]["digest"]
    world.client.delete(keys.verified(0), world.api_key, keys.identity(digest))
    async with backend_at(backend.valkey, backend.database) as other:
        directory = Directory(other.wire, asyncio.get_running_loop().time)
        with pytest.raises(CountersUnavailable):
            await driven(directory.identify(digest))
        assert await other.verify() == []
        assert ready(other)
        assert (await driven(directory.identify(digest))).key_id == world.caller.key_id
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


async def test_a_keeper_started_again_finds_everything_said(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        await backend.settle_in(100)
    async with backend_at(valkey, migrated) as backend:
        assert await backend.verify() == []
        assert ready(backend)


# --- groups -----------------------------------------------------------------------------
# Which partitions are read at once: few at first, which have a head start, then as many as is good.


def test_the_first_partitions_that_are_read_have_few_organizations() -> None:
    organizations = {one: range(120) for one in range(8)}
    assert list(together(range(10), organizations, 500)) == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]
    # One that has more is read by itself; where all are few they are read at once.
    assert list(together([3, 4], {3: range(900), 4: range(900)}, 500)) == [[3], [4]]
    assert list(together(range(64), {7: range(3)}, 500)) == [list(range(64))]


async def test_the_first_group_is_read_alone_and_then_some_at_once() -> None:
    reading, goes_on = list[list[int]](), [asyncio.Event() for _ in range(6)]

    async def read(some: list[int]) -> None:
        reading.append(some)
        await goes_on[some[0]].wait()

    groups = [[one] for one in range(6)]
    turns = asyncio.create_task(in_turns(groups, read, head_start_s=3_600.0))
    await eventually(lambda: reading)
    await asyncio.sleep(0)
    assert reading == [[0]]
    goes_on[0].set()
    await eventually(lambda: len(reading) == 1 + TOGETHER_MAX)
    await asyncio.sleep(0)
    assert reading == groups[: 1 + TOGETHER_MAX]
    for one in goes_on:
        one.set()
    await turns
    assert reading == groups


async def test_a_first_group_that_takes_long_keeps_nobody_else_waiting() -> None:
    reading, goes_on = list[list[int]](), asyncio.Event()

    async def read(some: list[int]) -> None:
        reading.append(some)
        if some == [0]:
            await goes_on.wait()

    turns = asyncio.create_task(in_turns([[0], [1], [2], [3]], read, head_start_s=0.0))
    await eventually(lambda: len(reading) == 4)
    assert not turns.done()
    goes_on.set()
    await turns


@pytest.mark.parametrize("fails", [0, 2])
async def test_where_one_fails_no_more_are_begun_and_it_is_raised(fails: int) -> None:
    reading = list[int]()

    async def read(some: list[int]) -> None:
        reading.extend(some)
        if some == [fails]:
            raise RuntimeError("cannot be read")
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="cannot be read"):
        await in_turns([[one] for one in range(100)], read, head_start_s=3_600.0)
    assert len(reading) <= fails + TOGETHER_MAX + 1


# --- soon -------------------------------------------------------------------------------
# After a loss somebody is served as soon as it may be: nobody waits for a look that is due later.


AN_HOUR_S = 3_600.0
LOOKS_MIN = 20


@pytest.fixture
def kept(own_valkey: START) -> ValkeyServer:
    return own_valkey("--appendonly", "yes", "--appendfsync", "always")


async def test_another_server_is_looked_at_soon_however_calm_it_was(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        await backend.verify()
        await backend.verify()
        pauses = [backend.verifier.pause_s]
        server.stop(signal.SIGKILL)
        await parted(backend.wire)
        pauses.append(backend.verifier.pause_s)
        server.start()
        await rejoined(backend.wire)
        pauses.append(backend.verifier.pause_s)
        assert pauses == [WATCH_S, INTERVAL_S, INTERVAL_S]


async def test_what_somebody_waits_for_in_the_late_queue_is_looked_at_at_once(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        backend = scene.backend
        late = LateSettlements(backend.keeping, Sweeps(backend.engine), interval_s=AN_HOUR_S)
        truths = LedgerReader(backend.engine, partition_of)
        gate = AdmissionGate(truths, backend.counters, lambda: 0.0, hurry=late.hurry)
        verifier = Verifier(truths, backend.counters, admission_gate=gate)
        await worker.look()
        assert await verifier.verify() == []
        await scene.use(worker, TOTAL)
        await scene.forget(worker)
        draining, verifying = asyncio.create_task(late.run()), asyncio.create_task(verifier.verify())
        try:
            await eventually(lambda: _looked_until(worker, verifying))
        finally:
            draining.cancel()
            verifying.cancel()
        assert scene.world.tenant.remaining == 0


async def _looked_until(worker: Worker, task: asyncio.Task[object]) -> bool:
    with suppress(CountersUnavailable):  # nothing is verified yet
        await worker.look()
    return task.done()


async def test_a_keeper_knows_who_is_there_once_it_finds_all_verified(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """What is lost a moment later is waited for by name, and not for whoever may show up."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await worker.look()
        assert await scene.verifier.verify() == []
        assert (scene.gate.watched, worker_slots(scene)) == (True, ["1"])


async def test_nobody_is_let_in_on_what_is_brought_and_not_charged_yet(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """Whom the keeper waits for is bounded sooner than its own work is."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.looked(worker)
        await scene.use(worker, TOTAL)
        await scene.forget(worker)
        verifying = asyncio.create_task(scene.verifier.verify())
        counters = scene.backend.counters
        try:
            await eventually(lambda: _is_late(scene, worker))
            looks = 0

            async def looked() -> bool:
                nonlocal looks
                looks += len(await counters.late_waiting())
                return looks > LOOKS_MIN

            scene.clock.ahead += WAITS_S
            await eventually(looked)
            assert scene.world.reserve(need=1).verdict is Verdict.STALE
            scene.clock.ahead += WAITS_LATE_S
            await verifying
            assert scene.world.reserve(need=1).verdict is Verdict.ADMITTED
        finally:
            verifying.cancel()


async def _is_late(scene: Scene, worker: Worker) -> bool:
    with suppress(CountersUnavailable):
        await worker.look()
    return scene.world.p in await scene.backend.counters.late_waiting()


# --- gauges -----------------------------------------------------------------------------
# The watcher keeps what it saw last, and nothing it could not see.


class Sight:
    """Something to look at."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.hidden = False

    async def __call__(self) -> Mapping[str, Any]:
        if self.hidden:
            raise OSError
        return self.facts


async def test_everything_is_seen_and_rows_of_several_looks_stand_together() -> None:
    one, other = Sight(ends=[["redis", 1]], used=5), Sight(ends=[["postgresql", 2]])
    gauges = Gauges((one, other))
    assert gauges.latest == {}
    await gauges.refresh()
    assert gauges.latest == {"ends": [["redis", 1], ["postgresql", 2]], "used": 5}


async def test_what_cannot_be_seen_is_left_out_instead_of_being_old() -> None:
    one, other = Sight(used=5), Sight(dead=0)
    gauges = Gauges((one, other))
    await gauges.refresh()
    one.hidden = True
    await gauges.refresh()
    assert gauges.latest == {"dead": 0}
    one.hidden = False
    await gauges.refresh()
    assert gauges.latest == {"used": 5, "dead": 0}
