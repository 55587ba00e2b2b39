"""Valkey, the flusher and PostgreSQL together: every entry a row, once, whatever dies between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import redis

from gateway.background.flusher import Failed, Flushed, Flusher
from gateway.core.outbox import FlushReport
from gateway.counters import keys
from gateway.counters.address import parse_url
from gateway.counters.outbox import Outbox
from gateway.counters.wire import Wire
from persistence.writer import Writer
from tests.background.house import WITHIN_S
from tests.persistence.lossy_proxy import LossyProxy
from tests.persistence.scenario import Account, broken, rows_of, settle_in


@asynccontextmanager
async def flushing(
    valkey: str, database: str, seen: list[Flushed | Failed] | None = None
) -> AsyncIterator[Flusher]:
    wire = Wire(parse_url(valkey), time.monotonic)
    await wire.open()
    writer = Writer(database)
    try:
        yield Flusher(Outbox(wire), writer, (seen if seen is not None else []).append, flush_interval_s=0.01)
    finally:
        await wire.close()
        writer.close()


def append(valkey: str, *accounts: Account) -> int:
    """Add what the accounts did to their streams, as the scripts do."""
    count = 0
    with redis.Redis.from_url(valkey) as client, client.pipeline(transaction=False) as pipe:
        for account in accounts:
            for _, packed in account.take():
                pipe.xadd(keys.outbox(account.partition), {"e": packed})
                count += 1
        pipe.execute()
    return count


def waiting(valkey: str, *accounts: Account) -> int:
    """Entries still in the streams of these accounts."""
    with redis.Redis.from_url(valkey) as client:
        return sum(int(client.xlen(name)) for name in {keys.outbox(a.partition) for a in accounts})


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not done():
            await asyncio.sleep(0.01)


async def test_streams_become_rows_and_are_emptied(valkey: str, migrated: str) -> None:
    accounts = settle_in(migrated, 10_000, 10_000, None)
    for account in accounts:
        account.reset()
        for number in range(500):
            account.consume(3, credits_=1, user=f"user-{number % 7}")
    count = append(valkey, *accounts)
    async with flushing(valkey, migrated) as flusher:
        assert await flusher.flush() == count
    assert waiting(valkey, *accounts) == 0
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(1503,)]
    assert await broken(migrated) == []


async def test_ids_of_stored_control_writes_are_forgotten(valkey: str, migrated: str) -> None:
    [account] = settle_in(migrated, 10_000)
    event = account.reset("00000000-0000-4000-8000-00000000000a")
    append(valkey, account)
    with redis.Redis.from_url(valkey) as client:
        client.hset(keys.control(account.partition), event.source, "1")
        client.hset(keys.control(account.partition), "another", "1")
        async with flushing(valkey, migrated) as flusher:
            await flusher.flush()
        assert client.hkeys(keys.control(account.partition)) == [b"another"]


async def test_two_flushers_at_once_store_each_entry_once(valkey: str, migrated: str) -> None:
    accounts = settle_in(migrated, *[10_000] * 8)
    for account in accounts:
        account.reset()
    async with flushing(valkey, migrated) as one, flushing(valkey, migrated) as other:
        runs = [asyncio.create_task(flusher.run()) for flusher in (one, other)]
        for _ in range(10):
            for account in accounts:
                for _ in range(20):
                    account.consume(1, credits_=1)
            append(valkey, *accounts)
            await asyncio.sleep(0.02)
        await until(lambda: waiting(valkey, *accounts) == 0)
        one.stop()
        other.stop()
        await asyncio.gather(*runs)
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(8 * 201,)]
    assert rows_of(migrated, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await broken(migrated) == []


async def test_a_lost_commit_reply_and_killed_sessions_cost_no_row(valkey: str, migrated: str) -> None:
    accounts = settle_in(migrated, *[10_000] * 4)
    for account in accounts:
        account.reset()
    seen: list[Flushed | Failed] = []
    with LossyProxy(migrated) as proxy:
        async with flushing(valkey, proxy.url, seen) as flusher:
            running = asyncio.create_task(flusher.run())
            for turn in range(6):
                for account in accounts:
                    for _ in range(25):
                        account.consume(1, credits_=1, units=1, spend=2)
                if turn % 2:
                    proxy.swallow_next(b"COMMIT")
                append(valkey, *accounts)
                if turn % 3 == 2:
                    with psycopg.connect(migrated, autocommit=True) as admin:
                        admin.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                        )
                await until(lambda: waiting(valkey, *accounts) == 0)
            flusher.stop()
            await running
    reports: list[FlushReport] = [fact.report for fact in seen if isinstance(fact, Flushed)]
    assert any(isinstance(fact, Failed) for fact in seen)
    assert sum(report.repeated for report in reports) > 0
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(4 * 151,)]
    assert await broken(migrated) == []


async def test_a_quarantined_account_does_not_hold_up_its_partition(valkey: str, migrated: str) -> None:
    account, other = settle_in(migrated, 10_000, 10_000, together=True)
    account.reset()
    account.take()
    for _ in range(10):
        account.consume(1)
        other.reset()
    append(valkey, account, other)
    async with flushing(valkey, migrated) as flusher:
        assert await flusher.flush() == 10
        assert await flusher.flush() == 0
    assert waiting(valkey, account) == 10
    assert await broken(migrated) == []
