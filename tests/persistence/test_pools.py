"""Connections have budgets: whoever waits for a lock, the counters or a reader leaves some to others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin.http.guard import ROOM
from gateway.background.timed.invoicing import Invoicing
from gateway.core.model import PARTITIONS
from gateway.counters.redis.keys import partition_of
from gateway.errors import ArchiveFailed, BackupFailed
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import back_up
from gateway.features.dunning.feature import dunning_loop
from gateway.files import UrlFile
from gateway.local.embedded.unprivileged import borrow
from gateway.ops import doctor
from gateway.run.timed_loops import billing_loops
from persistence import engine as engines
from persistence import engine as persistence_engine
from persistence.archive import months
from persistence.dunning import DunningSchedule
from persistence.keeper.definitions import Pushes
from persistence.poolers import shares_sessions
from persistence.schedule import Schedule
from persistence.schema import migrate, privileges
from persistence.store import Store
from tests.background.backend import Backend, backend_at
from tests.background.test_flusher_for_real import append, sharing, waiting
from tests.conftest import free_port
from tests.connections import connected
from tests.deploy.programs import program
from tests.letterhead import LETTERHEAD
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import customer
from tests.persistence.scenario import broken, rows_of, settle_in
from tests.persistence.test_schedule import Agreeing
from tests.waiting import HUNG_S, eventually, wait_until

__all__ = ["april"]

ACCOUNT = "organization:1"
WHO = text("SELECT current_user")
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('control:' || %s, 0))"
INVOICE = """
WITH made AS (INSERT INTO organization (name) VALUES ('Pools') RETURNING id, currency)
INSERT INTO invoice (organization_id, period_start, period_end, currency)
SELECT id, '2026-04-01', '2026-05-01', currency FROM made RETURNING id"""


@pytest.fixture
async def small(migrated: str) -> AsyncIterator[Callable[[int], AsyncEngine]]:
    made = []

    def of(connections: int) -> AsyncEngine:
        made.append(engines.create(migrated, connections_max=connections))
        return made[-1]

    yield of
    for each in made:
        await each.dispose()


async def test_who_waits_for_another_keepers_push_has_no_connection(
    migrated: str, small: Callable[[int], AsyncEngine]
) -> None:
    pool = small(2)
    pushes = [Pushes(pool) for _ in range(4)]  # none knows of the others' turns
    taken = 0

    async def push(of: Pushes) -> None:
        nonlocal taken
        async with of.waiting([ACCOUNT]):
            taken += 1

    with connected(migrated) as other:
        other.execute(LOCK, (ACCOUNT,))
        waiting = [asyncio.create_task(push(of)) for of in pushes for _ in range(3)]
        for _ in range(20):
            assert not await engines.write_trouble(pool)
        assert taken == 0
        other.rollback()
    await asyncio.gather(*waiting)
    assert taken == len(waiting)


async def test_counters_that_hang_have_so_many_connections_at_most(
    small: Callable[[int], AsyncEngine],
) -> None:
    pool, answered = small(3), asyncio.Event()
    pushes = Pushes(pool, at_once_max=2)
    begun = 0

    async def push(account: str) -> None:
        nonlocal begun
        async with pushes.waiting([account]):
            begun += 1
            await answered.wait()

    waiting = [asyncio.create_task(push(f"organization:{each}")) for each in range(1, 7)]

    async def are_begun() -> bool:
        return begun == 2

    await eventually(are_begun)
    assert not await engines.write_trouble(pool)
    assert begun == 2
    answered.set()
    await asyncio.gather(*waiting)
    assert begun == 6


async def test_files_that_are_read_slowly_have_none_of_the_pool(
    migrated: str, small: Callable[[int], AsyncEngine]
) -> None:
    with connected(migrated) as connection:
        found = connection.execute(INVOICE).fetchone()
    assert found is not None
    store = Store(small(1), partition_of)
    file = store.usage(found[0])
    assert await anext(file)
    assert (await store.get("invoices", found[0]))["id"] == found[0]
    assert [piece async for piece in file] == []


async def test_each_loop_that_bills_is_content_with_one_connection(
    april: April, small: Callable[[int], AsyncEngine]
) -> None:
    ids = await customer(april, await plan(april, "Small", "30.00", 1_000), date(2026, 4, 1), None)
    await april.on(at(4, 1))
    await april.do(
        "credit-additions", "create", organization_id=ids["organization"], credits_added=5, unit_cost=2,
        invoicing="prepaid",
    )  # fmt: skip
    await april.on(at(5, 3))
    pool = small(1)
    store = Store(pool, partition_of, lambda: april.now, letterhead=LETTERHEAD)
    due, schedule = Schedule(pool, store, 24, lambda: april.now), DunningSchedule.read("3,7", 21)

    def log(_: str, **__: object) -> None:
        """Nobody reads it."""

    turns: list[Callable[[], Awaitable[object]]] = [
        *(one.turn for one in billing_loops(store, lambda: april.now).values()),
        dunning_loop(store, lambda: april.now, schedule).turn,
        Invoicing(due, Agreeing(), log, finalize=True, at_once=4).turn,
    ]  # fmt: skip
    for turn in turns:
        await turn()
    made = april.rows("SELECT source, status, total_amount::text FROM invoice ORDER BY id")
    assert [(source, status) for source, status, _ in made] == [
        ("credit_addition", "finalized"),
        (None, "finalized"),
    ]


async def test_a_keeper_has_no_more_connections_than_are_said(migrated: str) -> None:
    pools, people = engines.Pools.create(migrated, batches=4), engines.PeoplePools.create(migrated)
    of_all = (pools.loops, pools.billing, pools.share, people.staff, people.organizations, people.probe)
    sizes = [each.pool.size() for each in of_all]  # type: ignore[attr-defined]  # a queue
    await pools.dispose()
    await people.dispose()
    # Files; the flusher, the schedule's claims, whether a silent PostgreSQL answers, who waits for trials.
    assert sum(sizes) + ROOM.staff_max + ROOM.others_max + 4 <= 43


async def test_a_statement_of_an_organization_takes_no_longer_than_it_may(migrated: str) -> None:
    slow = engines.create(migrated, statement_s_max=1)
    with pytest.raises(DBAPIError, match="statement timeout"):
        async with slow.begin() as connection:
            await connection.execute(text("SELECT pg_sleep(60)"))
    await slow.dispose()


async def test_a_process_is_seen_by_its_name_unless_its_address_has_another(migrated: str) -> None:
    named = {}
    for url in (migrated, f"{migrated}{'&' if '?' in migrated else '?'}application_name=ours"):
        engine = engines.create(url)
        async with engine.begin() as connection:
            named[url] = await connection.scalar(text("SELECT current_setting('application_name')"))
        await engine.dispose()
    assert [*named.values()] == [engines.CONNECT["fallback_application_name"], "ours"]


async def test_who_we_are_is_read_again_from_the_file_of_the_url(migrated: str, tmp_path: Path) -> None:
    """A connection that is open stays; whatever is made later, of a pool or apart, is of another user."""
    names = [f"app_{uuid4().hex[:12]}" for _ in range(2)]
    path = tmp_path / "url"

    def become(name: str) -> str:
        url = make_url(migrated).set(username=name, password="p").render_as_string(hide_password=False)
        path.write_text(url)
        return url

    with connected(migrated, autocommit=True) as admin:
        for name in names:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(sql.Identifier(name)))
        try:
            engine = engines.create(UrlFile(become(names[0]), str(path)), connections_max=2)
            async with engine.connect() as first:
                assert await first.scalar(WHO) == names[0]
                become(names[1])
                async with engine.connect() as second, engines.apart(engine) as third:
                    assert [await each.scalar(WHO) for each in (first, second, third)] == [*names, names[1]]
                    assert await engines.alive(engine)
            await engine.dispose()
        finally:
            for name in names:
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


# --- pool -------------------------------------------------------------------------------
# The connections to PostgreSQL, as metrics tell of them.


def failures(engine: AsyncEngine) -> dict[str, int]:
    found = persistence_engine.pool_figures(engine)["postgresql_failures"]
    assert isinstance(found, list)
    return {str(cause): count for cause, count in found if count}


async def test_who_is_busy_and_who_waits_is_counted(database: str) -> None:
    engine = engines.create(database, connections_max=2)
    try:
        one, two = await engine.connect(), await engine.connect()
        waits = asyncio.create_task(engine.connect().start())
        await eventually(lambda: persistence_engine.pool_figures(engine)["postgresql_waiting"] == 1)
        assert persistence_engine.pool_figures(engine)["postgresql_connections"] == [["busy", 2], ["idle", 0]]
        assert persistence_engine.pool_figures(engine)["postgresql_connections_max"] == 2
        await one.close()
        three = await waits
        assert persistence_engine.pool_figures(engine)["postgresql_waiting"] == 0
        await two.close()
        await three.close()
        assert persistence_engine.pool_figures(engine)["postgresql_connections"] == [["busy", 0], ["idle", 2]]
        assert failures(engine) == {}
    finally:
        await engine.dispose()


async def test_a_pool_that_stays_empty_is_a_failure(database: str) -> None:
    engine = engines.create(database, connections_max=1, wait_s=0.05)
    try:
        async with engine.connect():
            with pytest.raises(NoneInTime):
                await engine.connect()
        assert failures(engine) == {"exhausted": 1}
        assert persistence_engine.pool_figures(engine)["postgresql_waiting"] == 0
    finally:
        await engine.dispose()


async def test_what_breaks_is_counted_by_its_cause_and_what_a_statement_says_wrong_is_not(
    database: str,
) -> None:
    engine = engines.create(database)
    away = engines.create(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    try:
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError):
                await connection.execute(text("SELECT nothing"))
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (n integer PRIMARY KEY)"))
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1), (1)"))
        assert failures(engine) == {}
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(text("SET statement_timeout = 1; SELECT pg_sleep(60)"))
        assert failures(engine) == {"statement": 1}
        async with engine.connect() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            with connected(database, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1"))
        assert failures(engine) == {"statement": 1, "connection": 1}
        assert await engines.write_trouble(away)
        assert failures(away) == {"connection": 1}
    finally:
        await engine.dispose()
        await away.dispose()


async def test_no_question_meets_a_connection_that_the_server_ended(database: str) -> None:
    engine = engines.create(database)
    try:
        async with engine.connect() as one, engine.connect() as another:
            ours = [await each.scalar(text("SELECT pg_backend_pid()")) for each in (one, another)]
        with connected(database, autocommit=True) as server:
            for pid in ours:
                server.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))
        for _ in range(2):
            async with engine.begin() as connection:
                assert await connection.scalar(text("SELECT pg_backend_pid()")) not in ours
        async with engines.looking(engine) as connection:
            await connection.execute(text("CREATE TABLE t (n integer PRIMARY KEY)"))
        async with engine.connect() as connection:  # what a look wrote is there, and transactions are again
            assert await connection.scalar(text("SELECT count(*) FROM t")) == 0
            assert await connection.run_sync(lambda its: its.in_transaction())
        assert failures(engine) == {}
    finally:
        await engine.dispose()


# --- pooler -----------------------------------------------------------------------------
# A keeper works through PgBouncer in transaction mode; what needs a session of its own says so.


# Fewer than a keeper has connections: whoever keeps something in one would find it gone, or another's.
SESSIONS_MAX = 3
PACKAGES = ("pgbouncer", "libevent-2.1-7", "libc-ares2")


@contextmanager
def bouncing(postgres: str, mode: str) -> Iterator[Callable[[str], str]]:
    """PgBouncer in front of a server; the address through it of one of that server's databases."""
    found = program("pgbouncer", *PACKAGES, places="/usr/sbin")
    server, port = urlsplit(postgres), free_port()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-pgbouncer-") as name:
        folder = Path(name)
        users, settings = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        settings.write_text(f"""
[databases]
* = host={server.hostname} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {SESSIONS_MAX}
max_client_conn = 200
""")
        borrowed = borrow(None, [folder, Path(found).parent])
        if borrowed:
            for path in (folder, users, settings):
                os.chown(path, borrowed.uid, borrowed.gid)
        command = borrowed.command if borrowed else list
        running = subprocess.Popen(
            command([found, "-q", str(settings)]), cwd=folder, stderr=subprocess.DEVNULL
        )

        def through(database: str) -> str:
            return database.replace(f":{server.port}/", f":{port}/")

        def answers() -> bool:
            try:
                psycopg.connect(
                    through(postgres), connect_timeout=1
                ).close()  # whether a new session is let in
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(answers)
            yield through
        finally:
            running.kill()
            running.wait(HUNG_S)


@pytest.fixture(scope="module")
def pooled(postgres: str) -> Iterator[Callable[[str], str]]:
    with bouncing(postgres, "transaction") as through:
        yield through


def test_whether_sessions_are_shared_is_seen(postgres: str, pooled: Callable[[str], str]) -> None:
    assert shares_sessions(pooled(postgres))
    assert not shares_sessions(postgres)
    with bouncing(postgres, "session") as through:
        assert not shares_sessions(through(postgres))


def test_who_needs_a_session_says_so_and_doctor_too(
    migrated: str, pooled: Callable[[str], str], tmp_path: Path
) -> None:
    url = pooled(migrated)
    asked = "let TOLLKEEPER_DATABASE_OWNER_URL name the server itself"
    with pytest.raises(BackupFailed, match=asked):
        back_up(url, Folder(tmp_path), datetime.now(UTC))
    with pytest.raises(ArchiveFailed, match=asked), months.connect_as_owner(url):
        pass
    assert list(tmp_path.iterdir()) == []
    assert [one.well for one in doctor.pooler_findings(url, url)] == [True, False]
    assert [one.well for one in doctor.pooler_findings(url, migrated)] == [True]
    assert list(doctor.pooler_findings(migrated, migrated)) == []
    nobody = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    assert [one.well for one in doctor.pooler_findings(migrated, nobody)] == [None]
    assert [one.well for one in doctor.pooler_findings(url, "")] == [True], "a lone keeper needs no owner"


def test_the_schema_is_migrated_through_it(database: str, pooled: Callable[[str], str]) -> None:
    version = migrate.upgrade(pooled(database))
    assert rows_of(database, "SELECT version_num FROM alembic_version") == [(version,)]
    assert migrate.upgrade(pooled(database)) == version


async def test_keepers_share_the_work_through_it(
    valkey: str, migrated: str, pooled: Callable[[str], str]
) -> None:
    url = pooled(migrated)
    accounts = settle_in(url, *[10_000] * 6)
    for account in accounts:
        account.reset()
    async with sharing(valkey, url) as first, sharing(valkey, url) as second:
        for _, _, share in (first, second) * 3:
            await share.renew(range(PARTITIONS), tuple)
        runs = [asyncio.create_task(flusher.run()) for flusher, _, _ in (first, second)]
        for _ in range(5):
            for account in accounts:
                for _ in range(20):
                    account.consume(1, user="somebody", credits_=1)
            append(valkey, *accounts)
            await eventually(lambda: waiting(valkey, *accounts) == 0)
        for flusher, _, _ in (first, second):
            flusher.stop()
        await asyncio.gather(*runs)
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(6 * 101,)]
    assert await broken(migrated) == []
    assert left(migrated) == []


async def test_people_and_loops_write_and_read_through_it(
    valkey: str, migrated: str, pooled: Callable[[str], str]
) -> None:
    url = pooled(migrated)
    await privileges.refuse_unfit(engine := engines.create(url))
    async with backend_at(valkey, url) as keeper:
        world = await keeper.settle_in(1_000)
        await asyncio.gather(*(a_call(keeper, world.caller.tenant_id) for _ in range(3 * SESSIONS_MAX)))
        world.reserve(need=300).settle(tokens=300)
        await keeper.flush()
        assert keeper.ledger(world.caller.tenant_id)[-1] == (2 + 3 * SESSIONS_MAX, "consume", -300, 790)
    async with engines.apart(engine) as connection:
        pieces = await connection.stream(text("SELECT seq FROM token_ledger ORDER BY seq"))
        assert [row.seq async for row in pieces] == [*range(1, 3 + 3 * SESSIONS_MAX)]
    await engine.dispose()
    assert await broken(migrated) == []
    assert left(migrated) == []


async def a_call(keeper: Backend, tenant_id: int) -> None:
    """A person's change, pushed as the Admin API does it, while others make theirs."""
    await keeper.write("tenants", "adjust", tenant_id, amount=10, direction="IN", reason="more")
    await keeper.push()


def left(database: str) -> list[tuple[object, ...]]:
    """Locks and statements that sessions would have kept for whoever comes next."""
    sql = "SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND database ="
    return rows_of(database, f"{sql} (SELECT oid FROM pg_database WHERE datname = current_database())")
