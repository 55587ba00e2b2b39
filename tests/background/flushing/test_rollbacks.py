"""A PostgreSQL that is older than it was is noticed without traffic; nothing is dropped, nothing guessed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from gateway.background.flushing.flusher import Flusher
from gateway.background.flushing.late import Rollbacks
from gateway.core.accounts.outbox import AccountPosition
from gateway.core.integrity.reconciliation import Owner
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import back_up, restore
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import Quarantines
from tests.background.backend import Backend, backend_at
from tests.background.verifying.test_reconciler import busy, reconciler_of
from tests.builders import CREDITS, UNITS, World
from tests.connections import connected
from tests.databases import leave_with_engines
from tests.persistence.scenario import broken, release, stop


def rollbacks_of(backend: Backend, **bounds: int) -> Rollbacks:
    return Rollbacks(
        Outbox(backend.counters, **bounds), backend.counters, Accounts(backend.engine),
        Quarantines(backend.engine), partition_of=partition_of,
    )  # fmt: skip


@asynccontextmanager
async def older_copy(url: str, word: str = "older") -> AsyncIterator[str]:
    """The database as it is now, under another name with this word: what a backup would bring back later."""
    base, _, name = url.rpartition("/")
    copy = f"{word}_{os.getpid()}_{name}"[:63]
    await leave_with_engines(url)
    with connected(f"{base}/postgres", autocommit=True) as admin:
        admin.execute(f"create database {copy} template {name}")
        try:
            yield f"{base}/{copy}"
        finally:
            admin.execute(f"drop database {copy} with (force)")


@asynccontextmanager
async def brought_back(url: str, folder: Path) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """A real backup of the database as it is now, and what brings it back later, into another one."""
    base, name = url.rpartition("/")[0], f"brought_back_{os.getpid()}"
    file, _ = await asyncio.to_thread(back_up, url, Folder(folder), datetime.now(UTC))
    with connected(f"{base}/postgres", autocommit=True) as admin:
        admin.execute(f"create database {name}")

        async def back() -> str:
            await asyncio.to_thread(restore, f"{base}/{name}", file, ids_ahead=0)
            return f"{base}/{name}"

        yield back
        admin.execute(f"drop database {name} with (force)")


def use(world: World, times: int) -> None:
    for _ in range(times):
        world.reserve(need=10).settle(tokens=10)
        world.reserve(service=CREDITS, credits_=3).settle(credits=3)
        world.reserve(service=UNITS).settle(units=2)


def accounts_of(world: World) -> list[str]:
    owner = world.caller.organization_id
    return [f"credits:{owner}", f"spend:{owner}", f"tenant:{world.caller.tenant_id}"]


async def test_what_is_stored_or_waits_is_no_setback(backend: Backend) -> None:
    world = await busy(backend)
    rollbacks = rollbacks_of(backend)
    assert await rollbacks.stop_accounts() == []
    use(world, 3)
    assert await rollbacks.stop_accounts() == []
    # Deleted, and stored all the same: a mark that is behind only has everything compared.
    await backend.flush()
    with connected(backend.database) as connection:
        connection.execute("UPDATE partition_state SET last_entry_id = NULL")
    use(world, 1)
    assert await rollbacks.stop_accounts() == []
    assert rollbacks.quarantined == 0
    marks = await Quarantines(backend.engine).marks()
    assert marks[partition_of(world.caller.organization_id)][0]


async def test_what_waits_apart_is_no_setback(backend: Backend) -> None:
    """It left the outbox, and stands where whoever looks for it finds it."""
    world = await busy(backend)
    await backend.flush()
    stop(backend.database, world.p, world.caller.organization_id, world.caller.tenant_id)
    use(world, 3)
    await backend.flush()
    assert world.client.xlen(keys.outbox(world.p)) == 0
    assert world.client.xlen(keys.parked_entries(world.p, world.caller.organization_id)) > 0
    # Its newest entry is on file as one that left; where it is not, everything is compared.
    rollbacks = rollbacks_of(backend)
    for mark in ("last_entry_id", "NULL"):
        with connected(backend.database) as connection:
            connection.execute(f"UPDATE partition_state SET last_entry_id = {mark}")
        assert await rollbacks.stop_accounts() == []


async def test_an_older_postgresql_is_noticed_without_traffic(
    valkey: str, migrated: str, tmp_path: Path
) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await busy(backend)
    async with brought_back(migrated, tmp_path) as back:
        async with backend_at(valkey, migrated) as backend:
            use(world, 4)
            await backend.flush()
        older = await back()
        async with backend_at(valkey, older) as backend:
            rollbacks = rollbacks_of(backend)
            assert await rollbacks.stop_accounts() == accounts_of(world)
            assert rollbacks.quarantined == 3
            assert await rollbacks.stop_accounts() == []
            tokens = backend.rows("select * from quarantine where account like 'tenant:%%'")[0]
            assert (tokens["kind"], tokens["found_seq"] - tokens["stored_seq"] - 1) == ("gap", 4)
            assert tokens["stood"]["balance"] == world.tenant.remaining

            # Traffic goes on and waits; released as it is, it is judged again and waits again.
            use(world, 2)
            await backend.flush()
            for account in accounts_of(world):
                await release(older, account)
            await backend.flush()
            assert len(backend.rows("select 1 from quarantine where released_at is null")) == 3

            # Accepted, the difference is a row and what was lost is counted.
            for account in accounts_of(world):
                await release(older, account, accept=True)
            await backend.flush()
            assert backend.rows("select 1 from quarantine where released_at is null") == []
            assert await broken(older) == []
            lost = backend.rows("select account, last_seq - first_seq + 1 as n from lost_event order by 1")
            assert [(row["account"], row["n"]) for row in lost] == [(one, 4) for one in accounts_of(world)]
            assert backend.ledger(world.caller.tenant_id)[-3:] == [
                (10, "adjust", -40, 910),
                (11, "consume", -10, 900),
                (12, "consume", -10, 890),
            ]
            assert (await reconciler_of(backend).run_now())["items"] == []
            use(world, 1)
            await backend.flush()
            assert (await reconciler_of(backend).run_now())["items"] == []
            assert world.tenant.remaining == 880


async def test_a_look_follows_where_entries_were_removed_or_somebody_wrote_a_while_ago(
    backend: Backend,
) -> None:
    looks, now, written = list[float](), 100.0, 0

    async def first(*, anew: bool) -> None:
        assert not anew
        looks.append(now)

    rollbacks = Rollbacks(
        Outbox(backend.counters), backend.counters, Accounts(backend.engine), Quarantines(backend.engine),
        partition_of=partition_of, first=first, clock=lambda: now, written=lambda: written,
    )  # fmt: skip
    await rollbacks.look()
    for now, written, removed in (  # noqa: B007  # what its functions answer
        (101.0, 0, False), (111.0, 0, False), (112.0, 1, False), (113.0, 2, False), (114.0, 2, True),
        (120.0, 2, False), (121.0, 3, False),
    ):  # fmt: skip
        if removed:
            rollbacks._outbox._deleted.forget([1])
        await rollbacks.look()
    assert looks == [100.0, 112.0, 114.0, 121.0]


async def test_an_account_at_rest_is_noticed_however_soon_others_flush(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await busy(backend)
    async with older_copy(migrated) as older:
        async with backend_at(valkey, migrated) as backend:
            use(world, 4)
            await backend.flush()
        async with backend_at(valkey, older) as backend:
            rollbacks = rollbacks_of(backend)
            looked = asyncio.Event()

            async def look() -> None:
                await rollbacks.stop_accounts()
                looked.set()

            use(world, 1)  # it would be stored, or not, before the second is over
            flusher = Flusher(Outbox(backend.counters), backend.writer, lambda _: None, before_storing=look)
            running = asyncio.create_task(flusher.run())
            await looked.wait()
            flusher.stop()
            await running
            stopped = backend.rows("select account from quarantine order by 1")
            assert [row["account"] for row in stopped] == accounts_of(world)


async def test_a_keeper_started_again_before_it_could_compare_still_notices(
    valkey: str, migrated: str
) -> None:
    """Too much waited to compare at once; what is stored meanwhile hides that rows are gone."""
    async with backend_at(valkey, migrated) as backend:
        world = await busy(backend)
    async with older_copy(migrated) as older:
        async with backend_at(valkey, migrated) as backend:
            other = await backend.settle_in(100)
            use(world, 4)
            await backend.flush()
        assert other.p != world.p
        async with backend_at(valkey, older) as backend:
            use(world, 2)
            assert await rollbacks_of(backend, look_entries_max=1).stop_accounts() == []
            with connected(older) as connection:  # as a flush notes it that stores others' entries
                connection.execute("UPDATE partition_state SET last_entry_id = '99999999999999-0'")
        async with backend_at(valkey, older) as backend:
            rollbacks = rollbacks_of(backend)
            assert await rollbacks.stop_accounts() == accounts_of(world)
            assert backend.rows("select 1 from partition_state where older") == []


async def test_an_account_at_rest_may_be_accepted_too(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await busy(backend)
    async with older_copy(migrated) as older:
        async with backend_at(valkey, migrated) as backend:
            use(world, 1)
            await backend.flush()
        async with backend_at(valkey, older) as backend:
            assert await rollbacks_of(backend).stop_accounts() == accounts_of(world)
            for account in accounts_of(world):
                await release(older, account, accept=True)
            assert await broken(older) == []
            assert (await reconciler_of(backend).run_now())["items"] == []


async def test_what_still_waits_beside_what_is_gone_is_kept(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await busy(backend)
    async with older_copy(migrated) as older:
        async with backend_at(valkey, migrated) as backend:
            use(world, 2)
            await backend.flush()
        use(world, 2)
        async with backend_at(valkey, older) as backend:
            assert await rollbacks_of(backend).stop_accounts() == accounts_of(world)
            [row] = backend.rows("select * from quarantine where account like 'tenant:%%'")
            assert (row["stored_seq"], row["found_seq"]) == (6, 9)
            assert row["stood"]["balance"] == 930
            for account in accounts_of(world):
                await release(older, account, accept=True)
            await backend.flush()
            assert backend.ledger(world.caller.tenant_id)[-1] == (10, "consume", -10, 910)
            assert await broken(older) == []


class Reads:
    """A look that counts what it reads: streams, and organizations with the questions for them."""

    def __init__(self, backend: Backend, owners_a_batch: int) -> None:
        streams, owners = self.streams, self.owners = list[int](), list[list[int]]()

        class CountedOutbox(Outbox):
            async def waiting(self, partition: int) -> dict[str, AccountPosition] | None:
                streams.append(partition)
                return await super().waiting(partition)

        class CountedAccounts(Accounts):
            async def owners(self, after: int, count: int) -> list[Owner]:
                found = await super().owners(after, count)
                owners.append([one.organization_id for one in found])
                return found

        self.rollbacks = Rollbacks(
            CountedOutbox(backend.counters), backend.counters, CountedAccounts(backend.engine),
            Quarantines(backend.engine), partition_of=partition_of, owners_a_batch=owners_a_batch,
        )  # fmt: skip


async def test_everybody_is_read_once_and_each_stream_once_however_many_organizations_there_are(
    backend: Backend,
) -> None:
    world = await busy(backend)
    await backend.flush()
    for _ in range(2):
        many = "insert into organization (name) select gen_random_uuid() from generate_series(1, 90)"
        backend.rows(f"{many} returning id")
        backend.rows("update partition_state set older = true returning partition")
        there = sorted(row["id"] for row in backend.rows("select id from organization"))
        reads = Reads(backend, owners_a_batch=7)
        assert await reads.rollbacks.stop_accounts() == []
        assert [one for some in reads.owners for one in some] == there
        assert len(reads.owners) == -(-len(there) // 7) + 1
        assert reads.streams == sorted({partition_of(one) for one in there})
        assert world.p in reads.streams
        assert backend.rows("select 1 from partition_state where older") == []
    # Where nothing is older nobody is read.
    reads = Reads(backend, owners_a_batch=7)
    assert await reads.rollbacks.stop_accounts() == []
    assert (reads.owners, reads.streams) == ([], [])
