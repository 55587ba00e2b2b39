"""Valkey, the flusher and PostgreSQL together: every entry a row, once, whatever dies between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import Any

import pytest
import redis
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.flushing.flusher import FailedBatch, FlushedBatch, Flusher, KeeperShare
from gateway.core.accounts.flush_batch import History, fan_out
from gateway.core.model import PARTITIONS
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from persistence import engine
from persistence.keeper.shares import KeeperShares
from persistence.ledger.writer import LedgerWriter
from persistence.resources.integrity import Quarantines
from tests.connections import connected
from tests.persistence.scenario import Account, broken, release, rows_of, settle_in, stop
from tests.search import steps
from tests.waiting import eventually

STEPS = ("read", "parked", "read_parked", "acknowledge", "park", "acknowledge_parked")


class Killed(BaseException):
    """The process is gone."""


class Dying(Outbox):
    """The outbox of a flusher that is killed at one of its steps, before or behind it."""

    def __init__(self, client: Client, step: str, nth: int, *, behind: bool) -> None:
        super().__init__(client)
        for name in STEPS:
            vars(self)[name] = self._step(getattr(self, name), name == step)
        self._left, self._behind = nth, behind

    def _step(self, run: Callable[..., Awaitable[object]], dies: bool) -> Callable[..., Awaitable[object]]:
        async def step(*arguments: object) -> object:
            self._left -= dies
            if dies and self._left == 0 and not self._behind:
                raise Killed
            answer = await run(*arguments)
            if dies and self._left == 0:
                raise Killed
            return answer

        return step


@asynccontextmanager
async def flushing(
    valkey: str,
    database: str,
    seen: list[FlushedBatch | FailedBatch] | None = None,
    outbox: Callable[[Client], Outbox] = Outbox,
) -> AsyncIterator[Flusher]:
    wire = RedisConnection(parse_url(valkey), time.monotonic)
    await wire.open()
    writer = LedgerWriter(database)
    try:
        yield Flusher(
            outbox(Client(wire)), writer, (seen if seen is not None else []).append, flush_interval_s=0.01
        )
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


def parked(valkey: str, account: Account) -> int:
    """Entries of an account's organization that wait apart."""
    with redis.Redis.from_url(valkey) as client:
        length = int(client.xlen(keys.parked_entries(account.partition, account.organization_id)))
        count: Any = client.hget(keys.parked(account.partition), str(account.organization_id))
        assert int(count or 0) == length
        return length


def seqs(database: str, account: Account) -> object:
    """Of the movements that are rows."""
    sql = "SELECT array_agg(seq ORDER BY seq) FROM token_ledger WHERE tenant_id = %s"
    [(found,)] = rows_of(database, sql, [account.tenant_id])
    return found


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


class Reading(Outbox):
    """Notes which entries were read, and of which owners what waits was."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.entries: list[tuple[int, bytes]] = []
        self.judged_again: list[tuple[int, int]] = []

    async def read(self, after: Mapping[int, bytes], count: int) -> dict[int, list[tuple[bytes, bytes]]]:
        found = await super().read(after, count)
        self.entries += [(p, entry_id) for p, entries in found.items() for entry_id, _ in entries]
        return found

    async def read_parked(
        self, after: Mapping[tuple[int, int], bytes], count: int
    ) -> dict[tuple[int, int], list[tuple[bytes, bytes]]]:
        self.judged_again += after
        return await super().read_parked(after, count)


@asynccontextmanager
async def sharing(valkey: str, database: str) -> AsyncIterator[tuple[Flusher, Reading, KeeperShare]]:
    """A keeper's flusher, which flushes its share of the partitions."""
    wire, writer = RedisConnection(parse_url(valkey), time.monotonic), LedgerWriter(database)
    await wire.open()
    pool, outbox = engine.create(database, connections_max=1), Reading(Client(wire))
    share = KeeperShare(
        KeeperShares(pool, 0), held_s=3600
    )  # however slow the machine is, it is there until it says otherwise
    flusher = Flusher(outbox, writer, lambda _: None, partitions=share.partitions, flush_interval_s=0.01)
    try:
        yield flusher, outbox, share
    finally:
        await share.leave()
        await wire.close()
        await pool.dispose()
        writer.close()


async def test_keepers_that_share_read_each_entry_once_and_what_waits_too(valkey: str, migrated: str) -> None:
    stopped, *accounts = settle_in(migrated, *[10_000] * 9)
    stopped.reset()
    stopped.take()  # its first movement never arrives
    for account in accounts:
        account.reset()
    async with sharing(valkey, migrated) as first, sharing(valkey, migrated) as second:
        keepers = (first, second)
        for _, _, share in keepers * 3:
            await share.renew(range(PARTITIONS), tuple)
        runs = [asyncio.create_task(flusher.run()) for flusher, _, _ in keepers]
        appended = 0
        for _ in range(5):
            for account in (stopped, *accounts):
                for _ in range(20):
                    account.consume(1)
            appended += append(valkey, stopped, *accounts)
            await eventually(lambda: waiting(valkey, stopped, *accounts) == 0)
        # One goes in the middle of it: the other takes over what it had.
        first[0].stop()
        await runs[0]
        await first[2].leave()
        for account in accounts:
            account.consume(1)
        appended += append(valkey, *accounts)
        await second[2].renew(range(PARTITIONS), tuple)
        await eventually(lambda: waiting(valkey, *accounts) == 0)
        second[0].stop()
        await runs[1]
        read = [one for _, outbox, _ in keepers for one in outbox.entries]
    assert (len(read), len({*read})) == (appended, appended)
    assert parked(valkey, stopped) == 100
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(8 * 102,)]
    again = [one for _, outbox, _ in keepers for one in outbox.judged_again]
    assert len(again) <= 1, "what waits is read once, by whoever takes it over"
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
    seen: list[FlushedBatch | FailedBatch] = []
    async with flushing(valkey, migrated, seen) as flusher:
        assert await flusher.flush() == 1
        for _ in range(3):
            account.consume(1)
            other.consume(1)
            append(valkey, account, other)
            assert await flusher.flush() == 1
        held = [one.report.held for one in seen if isinstance(one, FlushedBatch)]
        assert held == [5, 1, 1, 1]
        assert (waiting(valkey, account), parked(valkey, account)) == (0, 8)

        # Judged again without what is missing, it waits again, from its first entry on.
        await release(migrated, f"tenant:{account.tenant_id}")
        account.consume(1)
        append(valkey, account)
        assert await flusher.flush() == 0
        # What was missing turns up: it goes on in order.
        await release(migrated, f"tenant:{account.tenant_id}")
        writer = LedgerWriter(migrated)
        await writer.write(fan_out({account.partition: first}))
        writer.close()
        account.consume(1)
        append(valkey, account)
        assert await flusher.flush() == 10
    assert (waiting(valkey, account), parked(valkey, account)) == (0, 0)
    assert seqs(migrated, account) == list(range(1, 12))
    assert await broken(migrated) == []


@pytest.mark.parametrize(("step", "behind"), steps(list(product(STEPS, (False, True)))))
async def test_a_flusher_killed_at_any_step_loses_and_doubles_nothing_that_waits(
    valkey: str, migrated: str, step: str, behind: bool
) -> None:
    """Killed on the way aside, and again on the way back; another one goes on, with newer entries there."""
    met = 0
    for nth in (1, 2):
        account, other = settle_in(migrated, 10_000, 10_000, together=True)
        name = stop(migrated, account.partition, account.organization_id, account.tenant_id)
        for one in (account, other):
            one.reset()
        for dies in (True, False, True, False):
            for one in (account, other):
                one.consume(1, credits_=1)
                one.consume(1)
            append(valkey, account, other)
            dying = partial(Dying, step=step, nth=nth, behind=behind)
            async with flushing(valkey, migrated, outbox=dying if dies else Outbox) as flusher:
                try:
                    for _ in range(3):
                        await flusher.flush()
                except Killed:
                    met += 1
            if not dies and name:
                assert parked(valkey, account) == 5
                await release(migrated, name)
                name = ""
        assert (waiting(valkey, account, other), parked(valkey, account)) == (0, 0)
        for one in (account, other):
            assert seqs(migrated, one) == list(range(1, 10))
        assert rows_of(migrated, "SELECT count(*) FROM quarantine WHERE released_at IS NULL") == [(0,)]
    assert met, "nobody was killed"
    assert await broken(migrated) == []


async def test_two_flushers_at_once_move_aside_and_back_what_waits(valkey: str, migrated: str) -> None:
    account, other = settle_in(migrated, 10_000, 10_000, together=True)
    name = stop(migrated, account.partition, account.organization_id, account.tenant_id)
    async with flushing(valkey, migrated) as first, flushing(valkey, migrated) as second:
        runs = [asyncio.create_task(flusher.run()) for flusher in (first, second)]
        for turn in range(12):
            for one in (account, other):
                one.reset()
                for _ in range(20):
                    one.consume(1)
            append(valkey, account, other)
            if turn % 2:
                await eventually(lambda: waiting(valkey, account) == 0)
            if turn == 5:
                assert parked(valkey, account) == 6 * 21
                await release(migrated, name)
        await eventually(lambda: not parked(valkey, account) and not waiting(valkey, account))
        first.stop()
        second.stop()
        await asyncio.gather(*runs)
    for one in (account, other):
        assert seqs(migrated, one) == list(range(1, 12 * 21 + 1))
    assert rows_of(migrated, "SELECT count(*) FROM quarantine WHERE released_at IS NULL") == [(0,)]
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
        writer = LedgerWriter(migrated)
        [judged] = (await writer.judged([account.partition])).values()
        await release(migrated, f"tenant:{account.tenant_id}")
        epochs = await writer.epochs()
        account.consume(1)
        newer = fan_out({account.partition: account.take()})
        report = await writer.write(newer, History(b"", epochs, {account.partition: judged}))
        writer.close()
    assert (report.left_over, report.held, report.quarantined) == (frozenset(newer), 0, [])


async def test_tenants_are_refused_once_where_too_much_waits(migrated: str, pool: AsyncEngine) -> None:
    account, other = settle_in(migrated, 10_000, 10_000)
    refused = Quarantines(pool)
    wanted = {account.partition: [account.tenant_id, 999_999], other.partition: [other.tenant_id]}
    assert await refused.refuse(wanted) == sorted(f"tenant:{one.tenant_id}" for one in (account, other))
    assert await refused.refuse(wanted) == []
    blocks = "SELECT account, partition, state FROM control_write WHERE verb = 'block'"
    assert set(rows_of(migrated, blocks)) == {
        (f"tenant:{one.tenant_id}", one.partition, "pending") for one in (account, other)
    }
    # Whoever was let in again by a person is refused again, if still too much comes in.
    with connected(migrated) as connection:
        connection.execute(
            "INSERT INTO control_write (partition, account, verb) VALUES (%s, %s, 'unblock')",
            (account.partition, f"tenant:{account.tenant_id}"),
        )
    assert await refused.refuse(wanted) == [f"tenant:{account.tenant_id}"]
