"""Rows in which PostgreSQL is away, refuses, or is set back."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from gateway.core.accounts.outbox import decode
from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests.bench.figures import percentile
from tests.faults.audit import Expected, Figures
from tests.faults.cast import WIDE_TOKENS, Cast, Tenant, make_tenant
from tests.faults.scene import Scene, row
from tests.faults.servers import ROOT
from tests.faults.workload import Call, Caller, Kind, Load
from tests.faults.world import FaultError, World

P99_RATIO_MAX = 1.2
DRAIN_RATE_MIN = 10_000
BACKLOG_ENTRIES = 1_000_000
CONNECTIONS_MAX = 300
DETECTED_S_MAX = 5.0
RELEASES_MAX = 100
RIVAL_S_MAX, DEADLOCKS_S_MAX = 2.0, 240.0
WAITED_FOR = (
    "SELECT pid FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)) LIMIT 1"
)


@dataclass(slots=True)
class Depth:
    """How full Redis is: entries that wait, in the outbox or apart, and bytes used."""

    entries: int
    used_bytes: int

    @classmethod
    def of(cls, world: World) -> Depth:
        """As it is now."""
        with world.counters() as counters:
            entries = sum(counters.xlen(keys.outbox(one)) for one in range(PARTITIONS))
            apart = [count for one in range(PARTITIONS) for count in counters.hvals(keys.parked(one))]
            entries += sum(map(int, apart))
            return cls(entries, int(counters.info("memory")["used_memory"]))


def _p99_ms(calls: list[Call], began: float, ended: float) -> float:
    times = [one.seconds for one in calls if one.complete and began <= one.began and one.ended <= ended]
    return percentile(times, 0.99) * 1000 if times else 0.0


async def _out(scene: Scene, out_s: float) -> Figures:
    """PostgreSQL crashes and stays away under load; the stream grows and drains by itself."""
    await scene.set_up()
    world = scene.world
    async with scene.load(callers=6, pause_s=0.02) as load:
        await load.more(30)
        began = time.monotonic()
        await asyncio.sleep(min(out_s, 30.0))
        await asyncio.to_thread(world.postgres.stop, signal.SIGQUIT)
        out, first = time.monotonic(), Depth.of(world)
        await asyncio.sleep(out_s)
        await load.more(10)  # the hot path goes on
        back, last = time.monotonic(), Depth.of(world)
        await asyncio.to_thread(world.postgres.start)
        await load.more(30)
    figures = await scene.finish()
    drained = time.monotonic()
    waiting = last.entries - first.entries
    before, during = _p99_ms(load.calls, began, out), _p99_ms(load.calls, out, back)
    each = (last.used_bytes - first.used_bytes) / max(1, waiting)
    figures.other = {
        "out_s": out_s, "p99_before_ms": round(before, 2), "p99_out_ms": round(during, 2),
        "ratio": round(during / max(before, 0.01), 2), "backlog": waiting, "bytes_an_event": round(each),
        "mib_in_60_min": round(each * waiting / (back - out) * 3600 / 2**20, 1),
        "drained_s": round(drained - back, 1),
        "refused": sum(one.status not in (0, 200, 429) for one in load.calls),
    }  # fmt: skip
    if scene.long and during > before * P99_RATIO_MAX:
        figures.broken.append(f"p99 {during:.1f} ms while PostgreSQL was away, {before:.1f} ms before")
    if scene.long and figures.other["refused"]:
        figures.broken.append(f"{figures.other['refused']} calls were refused while PostgreSQL was away")
    return figures


@row("PostgreSQL is out for 1 minute under load", only_long=True)
async def postgres_out(scene: Scene) -> Figures:
    """The hot path does not notice."""
    return await _out(scene, 60.0 if scene.long else 1.0)


@row("PostgreSQL is out for 10 minutes under load", only_long=True, limit_s=1800)
async def postgres_out_long(scene: Scene) -> Figures:
    """What 10 minutes show says what 60 need."""
    return await _out(scene, 600.0)


@row("A backlog of 1,000,000 events drains", only_long=True, limit_s=1800)
async def backlog(scene: Scene) -> Figures:
    """By the flusher's own bench: a real Valkey, the embedded PostgreSQL, fsync on."""
    command = [sys.executable, "-m", "tests.bench.flush", "--entries", str(BACKLOG_ENTRIES)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if not done.stdout:
        raise FaultError(done.stderr[-500:])
    figures = Figures(other=json.loads(done.stdout))
    if done.returncode or figures.other["rows_per_second"] < DRAIN_RATE_MIN:
        figures.broken.append(f"{figures.other['rows_per_second']} rows a second")
    return figures


async def _around(scene: Scene, load: Load, hold_s: float, what: str) -> None:
    """Calls go on while PostgreSQL cannot store them."""
    before = Depth.of(scene.world).entries
    await scene.world.until(lambda: Depth.of(scene.world).entries > before, what=f"a backlog while {what}")
    await asyncio.sleep(hold_s)
    await load.more(10)


@row("PostgreSQL is read-only")
async def postgres_read_only(scene: Scene) -> Figures:
    """As after a failover to a standby, or with a full disk."""
    await scene.set_up()
    world = scene.world
    async with scene.load() as load:
        await load.more(20)
        world.rows("ALTER SYSTEM SET default_transaction_read_only = on")
        world.rows("SELECT pg_reload_conf()")
        try:
            await _around(scene, load, 20.0 if scene.long else 0.2, "it is read-only")
        finally:
            with psycopg.connect(world.postgres.url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")
        await load.more(20)
    return await scene.finish()


@row("PostgreSQL is out of connections")
async def postgres_full(scene: Scene) -> Figures:
    """Others have them all, and the keeper's own are gone."""
    await scene.set_up()
    world = scene.world
    taken: list[psycopg.Connection[tuple[object, ...]]] = []

    def take() -> None:
        with suppress(psycopg.OperationalError):
            while len(taken) < CONNECTIONS_MAX:
                taken.append(psycopg.connect(world.postgres.url, autocommit=True))

    async with scene.load() as load:
        await load.more(20)
        try:
            await asyncio.to_thread(take)
            ours = [one.info.backend_pid for one in taken]
            for _ in range(3):  # what becomes free by it is taken before the keeper is back
                taken[0].execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)", [ours],
                )  # fmt: skip
                await asyncio.to_thread(take)
                ours = [one.info.backend_pid for one in taken]
            await _around(scene, load, 10.0 if scene.long else 0.1, "it is full")
        finally:
            for connection in taken:
                connection.close()
        await load.more(20)
    figures = await scene.finish()
    figures.other = {"connections": len(taken)}
    return figures


@row("PostgreSQL deadlocks", only_long=True)
async def postgres_deadlocks(scene: Scene) -> Figures:
    """A rival takes the rows of two balances, either way round."""
    cast = await scene.set_up()
    world = scene.world
    wanted = 3 if scene.long else 1
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = world.rows(query)[0][0]
    ended = asyncio.Event()
    async with scene.load() as load:
        await load.more(10)
        rival = asyncio.create_task(asyncio.to_thread(_rival, cast, ended))
        try:
            async with asyncio.timeout(DEADLOCKS_S_MAX):
                while (await asyncio.to_thread(world.rows, query))[0][0] < before + wanted:
                    await asyncio.sleep(0.1)  # the callers go on meanwhile
        finally:
            ended.set()
            await rival
        await load.more(10)
    figures = await scene.finish()
    figures.other = {"deadlocks": world.rows(query)[0][0] - before}
    return figures


def _rival(cast: Cast, ended: asyncio.Event) -> None:
    """Take the balances of two tenants that never run out, one and, once the writer waits for it, the other.

    Whichever the writer takes first, every other turn is the other way round. What waits behind the
    first row makes the writer's next batch one of both tenants.
    """
    one, other = (tenant.id for tenant in cast.tenants[:2])
    with psycopg.connect(cast.world.postgres.url) as connection:
        connection.execute("SET deadlock_timeout = '10s'")  # so that it is not always the rival who is chosen
        connection.commit()
        for turn in itertools.cycle(((other, one), (one, other))):
            if ended.is_set():
                return
            with suppress(psycopg.errors.DeadlockDetected), connection.transaction():
                _take(connection, turn[0])
                end = time.monotonic() + RIVAL_S_MAX
                while not connection.execute(WAITED_FOR).fetchone() and time.monotonic() < end:
                    time.sleep(0.01)
                _take(connection, turn[1])


def _take(connection: psycopg.Connection[Any], tenant: int) -> None:
    connection.execute("SELECT 1 FROM tenant_quota WHERE tenant_id = %s FOR UPDATE", [tenant])


RELEASED = "restored from an older backup"


@row("PostgreSQL is restored from an older backup", only_long=True)
async def postgres_restored(scene: Scene) -> Figures:
    """Accounts whose rows are gone are stopped; released, what is missing is on file, exactly."""
    cast = await scene.set_up()
    world = scene.world
    backup = world.folder / "postgres-backup"
    async with scene.load() as load:
        await load.more(30)
        await asyncio.to_thread(world.postgres.copy, backup)
        await world.until_admin()
        stored = _stored(world, cast)
        await load.more(60)
        await world.until(lambda: _stored(world, cast) > stored + 30, what="rows that a backup has not")
        await asyncio.to_thread(world.postgres.stop)
        gone = await asyncio.to_thread(_movements, world, cast, backup)
        restored = time.monotonic()
        await world.until_admin()
        await world.until(lambda: _stopped(world), what="accounts are stopped")
        detected = time.monotonic()
        await load.more(30)  # callers notice nothing
    released = await asyncio.to_thread(_release, world)
    figures = await scene.finish(Expected(lost=True, lost_events=True, rows_gone=True, unheard=True))
    figures.detected_s = detected - restored
    figures.other = {"rows_gone": gone, "released": released}
    if figures.counted_lost != gone or (scene.long and figures.detected_s > DETECTED_S_MAX):
        found = f"{gone} rows are gone, {figures.counted_lost} are counted"
        figures.broken.append(f"{found}; noticed after {figures.detected_s:.1f} s")
    return figures


@row("PostgreSQL is set back behind a customer who was made meanwhile", alone=True)
async def ids_behind_a_backup(scene: Scene) -> Figures:
    """The next customer has no id of that one, whose key is refused and whose movements are named by their seq."""
    cast = await scene.set_up()
    world, link = scene.world, scene.world.keepers[0].sql
    assert link is not None
    backup = world.folder / "postgres-backup"
    async with scene.load(callers=4) as load:
        await load.more(30)
        await asyncio.to_thread(world.postgres.copy, backup)
        await world.until_admin()
        gone = await asyncio.to_thread(make_tenant, world, WIDE_TOKENS, None, {})
        async with cast.load(lambda draw: cast.ask(Kind.CHAT, gone, draw), callers=1, pause_s=0.05) as theirs:
            await theirs.more(20)
            await world.until(lambda: _last_seq(world, gone), what="rows that the backup has not")
            await asyncio.to_thread(world.postgres.stop)
            await theirs.more(20)  # these wait in Redis
            link.black_hole = True
            await asyncio.to_thread(world.postgres.start)
            stored = await asyncio.to_thread(_last_seq, world, gone)
            await asyncio.to_thread(world.postgres.stop)
            movements = await asyncio.to_thread(_movements, world, cast, backup)
            link.black_hole, back = False, time.monotonic()
            await world.until_admin()
            await world.until(lambda: _stopped(world), what="accounts are stopped")
            detected = time.monotonic()
        new = await asyncio.to_thread(make_tenant, world, WIDE_TOKENS, None, {})
        cast.tenants.append(new)
        await load.more(60)
        statuses = await _statuses(scene, gone)
    await world.until(lambda: world.rows(NAMED, f"tenant:{gone.id}"), what="an account that is unknown")
    named = await asyncio.to_thread(world.rows, NAMED, f"tenant:{gone.id}")
    released = await asyncio.to_thread(_release, world)
    figures = await scene.finish(Expected(lost=True, lost_events=True, rows_gone=True, unheard=True))
    seqs = sorted(decode(raw).seq for (raw,) in world.rows(DEAD, gone.organization_id))
    figures.detected_s = detected - back
    figures.other = {"rows_gone": movements, "released": released, "dead_letters": len(seqs)}
    are_new = [new.id > gone.id, new.organization_id > gone.organization_id, new.key_id > gone.key_id]
    if not all(are_new) or statuses != [401] * len(world.gateways):
        figures.broken.append(
            f"{gone} is gone, {new} is new, and the key of the former is answered {statuses}"
        )
    # What was stored and is gone, and what waited: together each movement there was, once.
    if named != [("unknown_account", stored)] or seqs != list(range(stored + 1, stored + 1 + len(seqs))):
        figures.broken.append(f"{stored} movements were stored; named: {named}, dead letters: {seqs[:3]}…")
    if sum(call.complete for call in theirs.calls) > stored + len(seqs):
        figures.broken.append(f"of {len(theirs.calls)} calls {stored + len(seqs)} are named")
    if figures.counted_lost != movements:
        figures.broken.append(f"{movements} rows are gone, {figures.counted_lost} are counted")
    return figures


# By account: why it waits, and the last of its movements that is gone.
NAMED = "SELECT kind, found_seq - 1 FROM quarantine WHERE account = %s AND released_at IS NULL"
DEAD = "SELECT raw FROM dead_letter WHERE organization_id = %s"


async def _statuses(scene: Scene, tenant: Tenant) -> list[int]:
    """What each gateway answers a tenant."""
    callers = [Caller(node.door) for node in scene.world.gateways]
    calls = [await caller.call(scene.cast.ask(Kind.CHAT, tenant, scene.draw)) for caller in callers]
    for caller in callers:
        caller.leave()
    return [call.status for call in calls]


def _last_seq(world: World, tenant: Tenant) -> int:
    """The last movement of a tenant's tokens by a call that is a row; 0 before any."""
    query = (
        "SELECT coalesce(max(seq), 0) FROM token_ledger WHERE tenant_id = %s AND transaction_type = 'consume'"
    )
    return int(world.rows(query, tenant.id)[0][0])


MOVEMENTS = (
    "SELECT (SELECT count(*) FROM token_ledger WHERE tenant_id = ANY(%s)) "
    "+ (SELECT count(*) FROM credit_transaction WHERE organization_id = ANY(%s)) "
    "+ (SELECT count(*) FROM credit_posting WHERE organization_id = ANY(%s)) "
    "+ (SELECT count(*) FROM feature_usage WHERE organization_id = ANY(%s))"
)


def _stored(world: World, cast: Cast) -> int:
    """Movements of the cast that are rows."""
    tenants, organizations = [one.id for one in cast.tenants], cast.organizations
    return int(world.rows(MOVEMENTS, tenants, organizations, organizations, organizations)[0][0])


def _movements(world: World, cast: Cast, backup: Path) -> int:
    """Restore the backup; how many movements of the cast are gone by that."""
    world.postgres.start()
    before = _stored(world, cast)
    world.postgres.stop()
    world.postgres.set_back(backup)
    world.postgres.start()
    return before - _stored(world, cast)


def _stopped(world: World) -> int:
    return int(world.rows("SELECT count(*) FROM quarantine WHERE released_at IS NULL")[0][0])


def _release(world: World) -> int:
    """As an operator would: accept what is missing until no account is stopped any more."""
    released = 0
    for _ in range(RELEASES_MAX):
        found = world.admin("GET", "/quarantine?released=false&limit=100")["items"]
        for one in found:
            body = {"reason": RELEASED, "accept": True}
            world.admin("POST", f"/quarantine/{one['id']}/release", body)
            released += 1
        if not found and not Depth.of(world).entries:
            break
        time.sleep(0.2)
    return released
