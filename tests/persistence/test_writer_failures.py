"""Each row exactly once, whatever fails around the transaction."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from gateway.errors import LedgerUnavailable
from persistence.ledger.writer import LedgerWriter
from tests.persistence.lossy_proxy import LossyProxy
from tests.persistence.scenario import (
    batch_of,
    broken,
    busy,
    entries_of,
    rows_of,
    settle_in,
)
from tests.waiting import eventually, wait_until


async def test_a_partition_another_flusher_holds_is_left(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    other.reset()
    batch = batch_of(account, other)
    with psycopg.connect(migrated) as rival:
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
    with psycopg.connect(migrated) as rival:
        rival.execute("LOCK TABLE tenant_quota IN EXCLUSIVE MODE")  # the writer waits here, behind its COPY
        failed: list[BaseException] = []

        def attempt() -> None:
            try:
                writer.write_now(batch)
            except LedgerUnavailable as error:
                failed.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        with psycopg.connect(migrated, autocommit=True) as admin:
            sql = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: admin.execute(sql).fetchall())
        thread.join(60)
    assert len(failed) == 1
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(0,)]
    assert (await writer.write(batch)).rows["token_ledger"] == 6
    assert await broken(migrated) == []


async def test_a_deadlock_is_retried(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with psycopg.connect(migrated) as rival, ThreadPoolExecutor(1) as pool:
        rival.execute("SET deadlock_timeout = '20s'")  # the writer is the one to be cancelled
        rival.execute("UPDATE organization SET name = 'x'")
        writing = pool.submit(writer.write_now, batch)
        with psycopg.connect(migrated, autocommit=True) as admin:
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
