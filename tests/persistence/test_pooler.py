"""A keeper works through PgBouncer in transaction mode; what needs a session of its own says so."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import text

from gateway.core.model import PARTITIONS
from gateway.errors import ArchiveFailed, BackupFailed
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import back_up
from gateway.local.embedded.unprivileged import borrow
from gateway.ops import doctor
from persistence import engine as engines
from persistence.archive import months
from persistence.engine import shares_sessions
from persistence.schema import migrate, roles
from tests.background.backend import Backend, backend_at
from tests.background.test_flusher_for_real import append, sharing, waiting
from tests.conftest import STOP_S_MAX, free_port
from tests.deploy.programs import program
from tests.persistence.scenario import broken, rows_of, settle_in
from tests.waiting import eventually, wait_until

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
                psycopg.connect(through(postgres), connect_timeout=1).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(answers)
            yield through
        finally:
            running.kill()
            running.wait(STOP_S_MAX)


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
    with pytest.raises(ArchiveFailed, match=asked), months.connected(url):
        pass
    assert list(tmp_path.iterdir()) == []
    assert [one.well for one in doctor.pooler_findings(url, url)] == [True, False]
    assert [one.well for one in doctor.pooler_findings(url, migrated)] == [True]
    assert list(doctor.pooler_findings(migrated, migrated)) == []
    nobody = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    assert list(doctor.pooler_findings(migrated, nobody)) == [], "that it is away is said elsewhere"


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
    await roles.refuse_unfit(engine := engines.create(url))
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
