"""Each row exactly once, whatever fails around the transaction."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
import pytest

from gateway.core.model import PARTITIONS
from gateway.errors import LedgerUnavailable
from persistence import engine as engines
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from tests.background.test_flusher_for_real import append, sharing, waiting
from tests.bench.flush import postmaster
from tests.conftest import postgres_bin, postgres_of
from tests.connections import connected
from tests.persistence.lossy_proxy import LossyProxy
from tests.persistence.scenario import batch_of, broken, busy, entries_of, rows_of, settle_in
from tests.persistence.test_replica import Standby
from tests.waiting import HUNG_S, eventually, wait_until


async def test_a_partition_another_flusher_holds_is_left(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    other.reset()
    batch = batch_of(account, other)
    with connected(migrated) as rival:
        rival.execute("SELECT pg_advisory_xact_lock(7800, %s)", (account.partition,))
        report = await writer.write(batch)
        assert report.left_over == {account.partition}
        assert report.acknowledged.keys() == {other.partition}
    assert (await writer.write(batch)).left_over == frozenset()
    assert await broken(migrated) == []


async def test_two_writers_at_once_write_each_row_once(migrated: str) -> None:
    accounts = settle_in(migrated, *[10_000] * 6)
    for account in accounts:
        busy(account)
    batches = [batch_of(account) for account in accounts]
    writers = [LedgerWriter(migrated), LedgerWriter(migrated)]

    def insist(which: int) -> None:
        for batch in batches if which else reversed(batches):
            wait_until(lambda batch=batch: not writers[which].write_now(batch).left_over)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(insist, (0, 1)))
    for writer in writers:
        writer.close()
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(36,)]
    assert await broken(migrated) == []


async def test_a_lost_commit_reply_is_recognised_at_redelivery(migrated: str) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with LossyProxy(migrated) as proxy:
        writer = LedgerWriter(proxy.url)
        proxy.swallow_next(b"COMMIT")
        with pytest.raises(LedgerUnavailable):
            await writer.write(batch)
        assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(6,)]
        report = await writer.write(batch)
        writer.close()
    assert (report.rows, report.entries(), report.quarantined) == ({}, entries_of(batch), [])
    assert await broken(migrated) == []


async def test_a_connection_killed_before_the_commit_leaves_nothing(
    migrated: str, writer: LedgerWriter
) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with connected(migrated) as rival:
        rival.execute("LOCK TABLE tenant_quota IN EXCLUSIVE MODE")  # the writer waits here, behind its COPY
        failed: list[BaseException] = []

        def attempt() -> None:
            try:
                writer.write_now(batch)
            except LedgerUnavailable as error:
                failed.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        with connected(migrated, autocommit=True) as admin:
            sql = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: admin.execute(sql).fetchall())
        thread.join(HUNG_S)
    assert len(failed) == 1
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(0,)]
    assert (await writer.write(batch)).rows["token_ledger"] == 6
    assert await broken(migrated) == []


async def test_a_deadlock_is_retried(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with connected(migrated) as rival, ThreadPoolExecutor(1) as pool:
        rival.execute("SET deadlock_timeout = '20s'")  # the writer is the one to be cancelled
        rival.execute("UPDATE organization SET name = 'x'")
        writing = pool.submit(writer.write_now, batch)
        with connected(migrated, autocommit=True) as admin:
            sql = (
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: admin.execute(sql).fetchall())
        rival.execute("UPDATE tenant_quota SET anchor = 1")  # waits for the writer, which waits for us
        rival.commit()
        report = writing.result(60)
    assert report.rows["token_ledger"] == 6
    assert await broken(migrated) == []


async def test_without_postgresql_the_writer_says_so(migrated: str) -> None:
    writer = LedgerWriter("postgresql://postgres@127.0.0.1:9/none")
    with pytest.raises(LedgerUnavailable):
        await writer.write({})


# --- failover ---------------------------------------------------------------------------
# The primary of PostgreSQL dies under load, and its standby takes over: each entry is a row, once.


CALLS = 20


@pytest.fixture
def pair() -> Iterator[tuple[str, Standby]]:
    """A primary that acknowledges what its standby has, and that one."""
    with postgres_of(postgres_bin()) as primary:
        migrate.upgrade(primary)
        standby = Standby(primary)
        standby.start()
        try:
            with connected(primary, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                connection.execute("SELECT pg_reload_conf()")
            there = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_until(lambda: rows_of(primary, there) == [(1,)])
            yield primary, standby
        finally:
            standby.stop()
            shutil.rmtree(standby.folder, ignore_errors=True)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)], ids=["killed", "stopped"]
)
async def test_each_entry_is_a_row_once_whatever_dies(
    valkey: str, pair: tuple[str, Standby], how: signal.Signals
) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{urlsplit(primary).port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    accounts = settle_in(url, *[10**6] * 6)
    for account in accounts:
        account.reset()
    engine = engines.create(url)
    assert not await engines.write_trouble(engine)
    appended = 0

    async def takes_writes() -> bool:
        return not await engines.write_trouble(engine)

    def more() -> None:
        nonlocal appended
        for account in accounts:
            for _ in range(CALLS):
                account.consume(1, credits_=1)
        appended += append(valkey, *accounts)

    async with sharing(valkey, url) as first, sharing(valkey, url) as second:
        keepers = (first, second)
        beats = [
            asyncio.create_task(share.run(lambda: range(PARTITIONS), lambda f=flusher: f.in_hand))
            for flusher, _, share in keepers
        ]
        runs = [asyncio.create_task(flusher.run()) for flusher, _, _ in keepers]
        more()
        await eventually(lambda: waiting(valkey, *accounts) == 0)
        more()
        os.kill(postmaster(primary), how)
        more()
        rows_of(standby.url(primary), "SELECT pg_promote()")
        more()
        await eventually(lambda: waiting(valkey, *accounts) == 0)
        await eventually(takes_writes)
        assert await engines.alive(engine)
        for flusher, _, _ in keepers:
            flusher.stop()
        await asyncio.gather(*runs)
        for beat in beats:
            beat.cancel()
    after = standby.url(primary)
    assert rows_of(after, "SELECT count(*) FROM token_ledger") == [(appended,)]
    assert rows_of(after, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await broken(after) == []
    await engine.dispose()


def test_an_address_may_have_several_hosts() -> None:
    several = "postgresql://u:p@a:1,[::1]:2,c/d?target_session_attrs=read-write"
    spelt = "u:p@/d?host=a,::1,c&port=1,2,5432&target_session_attrs=read-write"
    assert engines.plain_url(several) == f"postgresql://{spelt}"
    assert engines.dialect_url(several) == f"postgresql+psycopg://{spelt}"
    assert engines.plain_url("postgres://u@a,b") == "postgresql://u@/?host=a,b&port=5432,5432"
    assert engines.plain_url("postgresql://u@h:1/d") == "postgresql://u@h:1/d"
    found = psycopg.conninfo.conninfo_to_dict(engines.plain_url(several))
    assert (found["host"], found["port"], found["dbname"]) == ("a,::1,c", "1,2,5432", "d")
    assert engines.plain_url("postgresql://u@a,b?x=y") == "postgresql://u@/?host=a,b&port=5432,5432&x=y"


@pytest.mark.parametrize("host", ["", ":5432", "a:five", "[::1", "::1"])
def test_a_host_of_several_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="not a host of PostgreSQL"):
        engines.plain_url(f"postgresql://u:p@one,{host}/d")
