"""Refused calls come to their rows and counts, once, whatever callers make up and whoever dies between."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.flushing.late import RefusedDrain
from gateway.background.loops import Isolation
from gateway.core.accounts.refusals import Refusals, RefusedBatch, RefusedCall
from gateway.counters.admission.refused_calls import RefusedCalls
from gateway.counters.keeper.outbox import RefusedStream
from gateway.counters.redis import keys
from gateway.errors import LedgerUnavailable
from persistence.ledger.redrive import NAMED_A_DAY_MAX, RefusedJournal
from tests.background.backend import Backend, backend_at
from tests.builders import World, new_id
from tests.connections import connected
from tests.persistence.scenario import broken, rows_of
from tests.waiting import eventually

WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


class Line:
    """A worker's end of the stream and a keeper's."""

    def __init__(self, backend: Backend, **bounds: int) -> None:
        self.backend = backend
        self.refusals = Refusals(time.time, **bounds)
        self.worker = RefusedCalls(backend.wire, self.refusals, str(uuid.uuid4()), batches_max=4)
        self.stream = RefusedStream(backend.counters)
        self.drain = RefusedDrain(self.stream, RefusedJournal(backend.engine))

    def refuse(self, world: World, model: str = "m", **said: Any) -> RefusedCall:
        caller = world.caller
        facts: dict[str, Any] = {
            "request_id": new_id(), "at_ms": self.refusals.now_ms(),
            "organization_id": caller.organization_id, "tenant_id": caller.tenant_id, "key_id": caller.key_id,
            "service_id": 1, "user": "",
            "attribution": "", "session": "", "route": "/v1/chat/completions", "model": model,
            "streamed": False, "status": 429, "reason": "rate_limited", "duration_ms": 1,
        }  # fmt: skip
        call = RefusedCall(**(facts | said))
        self.refusals.note(call)
        return call

    async def told(self) -> None:
        await self.worker.send()
        await self.drain.finish()

    def rows(self) -> list[dict[str, Any]]:
        return self.backend.rows("SELECT *, request_id::text AS request FROM call ORDER BY id")

    def counted(self, span: str = "hour") -> list[tuple[str, int]]:
        found = self.backend.rows(
            "SELECT model, sum(refused) AS refused FROM usage_rollup WHERE span = %s AND refused <> 0"
            " GROUP BY 1 ORDER BY 1",
            span,
        )
        return [(row["model"], int(row["refused"])) for row in found]


@asynccontextmanager
async def lined(valkey: str, migrated: str, **bounds: int) -> AsyncIterator[tuple[Line, World]]:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        world.client.delete(keys.REFUSED)
        yield Line(backend, **bounds), world


async def test_a_refused_call_has_a_row_and_is_counted_apart(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated) as (line, world):
        world.reserve(need=1, user="ann").settle(tokens=7)
        await line.backend.flush()
        call = line.refuse(world, user="ann", attribution="7\t8\tv3", session="s", groups=(4, 9))
        line.refuse(world, user="nobody knows")
        await line.told()
        [settled, row, other] = line.rows()
        told = ("request", "status", "reason", "model", "session", "project_id", "content_id",
                "feature_version", "tokens", "cost", "user_id", "refused", "service_id", "route", "groups")  # fmt: skip
        assert [row[name] for name in told] == [
            call.request_id, 429, "rate_limited", "m", "s", 8, 7, "v3",
            0, None, settled["user_id"], True, 1, "/v1/chat/completions", [4, 9],
        ]  # fmt: skip
        assert (other["user_id"], other["groups"]) == (None, None)
        for span in ("hour", "day"):
            assert line.counted(span) == [("m", 2)]
        [sums] = line.backend.rows("SELECT sum(requests) AS n FROM usage_rollup WHERE span = 'hour'")
        assert sums["n"] == 1
        assert len(line.backend.rows("SELECT FROM app_user WHERE first_sight")) == 1
        assert await broken(migrated) == []


async def test_many_invented_models_leave_few_rows_and_exact_counts(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated, rows_a_minute_max=100) as (line, world):
        before = world.client.info("memory")["used_memory"]
        for number in range(10_000):
            said = {"user": f"user {number}", "attribution": f"\t{number}\t", "session": "s" * 128}
            line.refuse(world, f"model {number}", **said)
            if number % 2_500 == 0:
                await line.worker.send()
        assert world.client.info("memory")["used_memory"] - before < 2 << 20
        await line.told()
        await line.told()
        # A minute may have begun meanwhile.
        assert 100 <= len(line.rows()) <= 200
        counted = line.counted()
        assert sum(refused for _, refused in counted) == 10_000
        assert len(counted) <= NAMED_A_DAY_MAX + 1
        assert dict(counted)["other"] >= 10_000 - NAMED_A_DAY_MAX
        rows = line.backend.rows("SELECT FROM usage_rollup WHERE span = 'hour'")
        assert len(rows) <= 2 * (NAMED_A_DAY_MAX + 1)
        assert line.backend.rows("SELECT FROM app_user WHERE first_sight") == []
        assert line.refusals.untold == 10_000 - len(line.rows())
        assert world.client.xlen(keys.REFUSED) == 0
        assert await broken(migrated) == []


async def test_a_refused_call_has_its_run_and_what_refused_it(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated) as (line, world):
        of = {"o": world.caller.organization_id, "t": world.caller.tenant_id}
        [made] = line.backend.rows("INSERT INTO token_plan (name) VALUES ('p') RETURNING id")
        run, plan, none = 2**52, made["id"], (None, None, None)
        line.backend.rows(
            "INSERT INTO run (id, organization_id, tenant_id, name, unit, created_at, expires_at)"
            " VALUES (%s, %s, %s, 'nightly', 'money', now(), now()) RETURNING id",
            run, *of.values(),
        )  # fmt: skip
        line.backend.rows(
            "INSERT INTO tenant_quota (tenant_id, plan_id) VALUES (%s, %s)"
            " ON CONFLICT (tenant_id) DO UPDATE SET plan_id = excluded.plan_id RETURNING tenant_id",
            of["t"], plan,
        )  # fmt: skip
        line.refuse(world, run="nightly", refused_kind="budget", refused_by=7)
        line.refuse(world, run="nightly", refused_kind="run")
        line.refuse(world, run="not stored", refused_kind="run")
        line.refuse(world, refused_kind="plan")
        line.refuse(world, refused_kind="of a newer version", refused_by=9)
        await line.told()
        assert [(row["run_id"], row["refused_kind"], row["refused_by"]) for row in line.rows()] == [
            (run, "budget", 7), (run, "run", run), none, (None, "plan", plan), none,
        ]  # fmt: skip


async def test_a_batch_counts_once_however_often_it_comes(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated) as (line, world):
        line.refuse(world)
        await line.worker.send()
        [(_, packed)] = world.client.xrange(keys.REFUSED)
        world.client.xadd(keys.REFUSED, packed)  # its acknowledgement was lost, and it was sent again
        found = await line.stream.read(10)
        journal = RefusedJournal(line.backend.engine)
        assert [await journal.store([batch for _, batch in found if batch]) for _ in range(2)] == [1, 0]
        await line.drain.finish()  # a keeper that died before it deleted what was stored
        assert (line.counted(), len(line.rows())) == ([("m", 1)], 1)
        line.refuse(world)
        await line.told()
        assert (line.counted(), len(line.rows())) == ([("m", 2)], 2)


async def test_two_keepers_at_once_count_once(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated) as (line, world):
        for _ in range(3):
            line.refuse(world)
            await line.worker.send()
        batches = [batch for _, batch in await line.stream.read(10) if batch]
        journals = [RefusedJournal(line.backend.engine) for _ in range(2)]
        stored = await asyncio.gather(*(journal.store(batches) for journal in journals))
        assert sorted(stored) == [0, 3]
        assert (line.counted(), len(line.rows())) == ([("m", 3)], 3)


async def test_batches_are_claimed_in_one_order_by_all_keepers(migrated: str, pool: AsyncEngine) -> None:
    """Another keeper has claimed the first one, and then claims the other."""
    first, other = (str(uuid.UUID(int=number)) for number in (1, 2))
    claim = "INSERT INTO refused_batch (worker, number) VALUES (%s, 1)"
    async with await psycopg.AsyncConnection.connect(migrated) as keeper:
        await keeper.execute(claim, (first,))
        batches = [RefusedBatch(one, 1, [], []) for one in (other, first)]
        storing = asyncio.create_task(RefusedJournal(pool).store(batches))
        await eventually(lambda: rows_of(migrated, WAITS) == [(1,)])
        await keeper.execute(claim, (other,))
        await keeper.commit()
        assert await storing == 0


async def test_while_nobody_reads_the_stream_stays_small_and_nothing_goes_uncounted(
    valkey: str, migrated: str
) -> None:
    async with lined(valkey, migrated, rows_max=5) as (line, world):
        for _ in range(20):
            line.refuse(world)
            line.refuse(world)
            await line.worker.send()
        assert world.client.xlen(keys.REFUSED) == 4
        for _ in range(3):
            await line.told()
        assert line.counted() == [("m", 40)]
        assert len(line.rows()) == 4 * 2 + 2 + 5
        assert line.refusals.untold == 40 - 15


async def test_what_is_no_batch_holds_nothing_up(valkey: str, migrated: str) -> None:
    async with lined(valkey, migrated) as (line, world):
        for packed in (b"\xff", b'["x",1,[],[]]', b'["x",-1,[],[]]'):
            world.client.xadd(keys.REFUSED, {b"b": packed})
        line.refuse(world)
        await line.told()
        assert (line.counted(), world.client.xlen(keys.REFUSED)) == ([("m", 1)], 0)


@pytest.fixture
def no_teapots(migrated: str) -> Iterator[None]:
    """A table that refuses one of all statuses."""
    with connected(migrated, autocommit=True) as connection:
        connection.execute("ALTER TABLE call ADD CONSTRAINT no_teapots CHECK (status <> 418)")
        yield
        connection.execute("ALTER TABLE call DROP CONSTRAINT no_teapots")


@pytest.mark.usefixtures("no_teapots")
async def test_a_batch_that_postgresql_refuses_is_dropped_and_said_and_others_are_stored(
    valkey: str, migrated: str
) -> None:
    async with lined(valkey, migrated) as (line, world):
        isolation = Isolation()
        line.drain = RefusedDrain(line.stream, RefusedJournal(line.backend.engine), isolation=isolation)
        for status in (429, 418, 429):
            line.refuse(world, status=status)
            await line.worker.send()
        await line.drain.finish()
        assert (world.client.xlen(keys.REFUSED), line.counted()) == (0, [("m", 2)])
        assert [row["status"] for row in line.rows()] == [429, 429]
        assert isolation.figures() == {"loop_failures": [["refused", "item", 1]]}


async def test_what_cannot_be_stored_now_waits_in_the_stream_and_the_drain_says_so(
    valkey: str, migrated: str
) -> None:
    async with lined(valkey, migrated) as (line, world):
        line.refuse(world)
        await line.worker.send()
        with connected(migrated, autocommit=True) as connection:
            connection.execute("ALTER TABLE refused_batch RENAME TO not_there")
            with pytest.raises(LedgerUnavailable):
                await line.drain.loop().run()
            assert world.client.xlen(keys.REFUSED) == 1
            connection.execute("ALTER TABLE not_there RENAME TO refused_batch")
        await line.drain.finish()
        assert (world.client.xlen(keys.REFUSED), line.counted()) == (0, [("m", 1)])


@pytest.mark.parametrize("text", ["\0", "\ud800", "é" * 300])
async def test_no_text_of_a_caller_keeps_others_from_being_told(
    valkey: str, migrated: str, text: str
) -> None:
    async with lined(valkey, migrated) as (line, world):
        line.refuse(world, text, user=text)
        line.refuse(world)
        await line.told()
        assert sum(refused for _, refused in line.counted()) == 2
        assert len(line.rows()) == 2
