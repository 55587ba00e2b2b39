"""Valkey, the flusher and PostgreSQL together: every entry a row, once, whatever dies between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import redis

from gateway.background.flusher import Failed, Flushed, Flusher
from gateway.core.outbox import FlushReport, History, fan_out
from gateway.counters import keys
from gateway.counters.address import parse_url
from gateway.counters.outbox import Outbox
from gateway.counters.wire import Wire
from persistence import engine
from persistence.quarantine import Quarantines
from persistence.writer import Writer
from tests.background.house import WITHIN_S
from tests.persistence.lossy_proxy import LossyProxy
from tests.persistence.scenario import Account, broken, release, rows_of, settle_in


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


async def test_entries_of_a_stopped_account_are_judged_again_once_it_is_released(
    valkey: str, migrated: str
) -> None:
    """In order, whatever came in before, behind and during the release; others are never kept waiting."""
    account, other = settle_in(migrated, 10_000, 10_000, together=True)
    account.reset()
    first = account.take()
    other.reset()
    append(valkey, other)
    for _ in range(5):
        account.consume(1)
    append(valkey, account)
    seen: list[Flushed | Failed] = []
    async with flushing(valkey, migrated, seen) as flusher:
        assert await flusher.flush() == 1
        for _ in range(3):
            account.consume(1)
            other.consume(1)
            append(valkey, account, other)
            assert await flusher.flush() == 1
        held = [one.report.held for one in seen if isinstance(one, Flushed)]
        assert held == [5, 1, 1, 1]
        assert waiting(valkey, account) == 8

        # Judged again without what is missing, it waits again, from its first entry on.
        await release(migrated, f"tenant:{account.tenant_id}")
        account.consume(1)
        append(valkey, account)
        assert await flusher.flush() == 0
        # What was missing turns up: it goes on in order.
        await release(migrated, f"tenant:{account.tenant_id}")
        writer = Writer(migrated)
        await writer.write(fan_out({account.partition: first}))
        writer.close()
        account.consume(1)
        append(valkey, account)
        assert await flusher.flush() == 10
    assert waiting(valkey, account) == 0
    assert rows_of(
        migrated, "SELECT array_agg(seq ORDER BY seq) FROM token_ledger WHERE tenant_id = %s",
        [account.tenant_id],
    ) == [(list(range(1, 12)),)]  # fmt: skip
    assert await broken(migrated) == []


async def test_a_release_behind_a_read_has_newer_entries_wait_for_those_before_them(
    valkey: str, migrated: str
) -> None:
    [account] = settle_in(migrated, 10_000)
    account.reset()
    account.take()
    account.consume(1)
    append(valkey, account)
    async with flushing(valkey, migrated) as flusher:
        await flusher.flush()
        writer = Writer(migrated)
        [judged] = (await writer.judged([account.partition])).values()
        await release(migrated, f"tenant:{account.tenant_id}")
        epochs = await writer.epochs()
        account.consume(1)
        newer = fan_out({account.partition: account.take()})
        report = await writer.write(newer, History(b"", epochs, {account.partition: judged}))
        writer.close()
    assert (report.left_over, report.held, report.quarantined) == (frozenset(newer), 0, [])


async def test_tenants_are_refused_once_where_too_much_waits(migrated: str) -> None:
    account, other = settle_in(migrated, 10_000, 10_000)
    pool = engine.create(migrated)
    refused = Quarantines(pool)
    wanted = {account.partition: [account.tenant_id, 999_999], other.partition: [other.tenant_id]}
    assert await refused.refuse(wanted) == sorted(f"tenant:{one.tenant_id}" for one in (account, other))
    assert await refused.refuse(wanted) == []
    blocks = "SELECT account, partition, state FROM control_write WHERE verb = 'block'"
    assert set(rows_of(migrated, blocks)) == {
        (f"tenant:{one.tenant_id}", one.partition, "pending") for one in (account, other)
    }
    # Whoever was let in again by a person is refused again, if still too much comes in.
    with psycopg.connect(migrated) as connection:
        connection.execute(
            "INSERT INTO control_write (partition, account, verb) VALUES (%s, %s, 'unblock')",
            (account.partition, f"tenant:{account.tenant_id}"),
        )
    assert await refused.refuse(wanted) == [f"tenant:{account.tenant_id}"]
    await pool.dispose()
