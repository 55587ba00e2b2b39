"""The keeper's parts over a real Valkey and a migrated PostgreSQL, moved by hand, step by step.

People write through the Admin API's own store; `push`, `verify`, `flush` and the rest do one round.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import redis
from psycopg.rows import dict_row

from gateway.background.flushing.flusher import Flusher
from gateway.background.flushing.late import LateSettlements
from gateway.background.timed.pusher import Pusher, Reclaimer
from gateway.background.verifying.verifier import RestoredRows, Verifier
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Realm, Row
from gateway.core.integrity.recovery import VerificationResult
from gateway.core.model import Caller
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.late import ReclaimClient
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from gateway.run.timed_loops import sweeper
from persistence.keeper.definitions import Pushes
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.verification import LedgerReader
from persistence.ledger.writer import LedgerWriter
from persistence.resources.integrity import Quarantines
from persistence.store import Store
from tests.builders import World
from tests.connections import connected
from tests.databases import give_back, take_engine
from tests.everywhere import known_everywhere
from tests.letterhead import LETTERHEAD
from tests.persistence.keeper.agenda import on_agenda
from tests.waiting import eventually

STAFF = Actor("builtin:admin", "admin")
DIGEST = "d" * 64


async def parted(*wires: RedisConnection) -> None:
    """Wait until all of them have noticed that their server is gone."""
    await eventually(lambda: not any(wire.connected for wire in wires))


async def rejoined(*wires: RedisConnection) -> None:
    """Wait until all of them are connected."""
    await eventually(lambda: all(wire.connected for wire in wires))


def _rendered(row: Row) -> Row:
    plain: Row = msgspec.to_builtins(dict(row))
    return plain


class Backend:
    """One keeper, each part by itself; `patience` with Redis is the wire's."""

    def __init__(self, valkey: str, database: str, **patience: float) -> None:
        self.valkey, self.database = valkey, database
        self.engine = take_engine(database)
        self.wire = RedisConnection(parse_url(valkey), time.monotonic, **patience)
        self.counters = KeeperCounters(self.wire)
        self.keeping = ReclaimClient(self.counters)
        sweeps = Sweeps(self.engine)
        self.writer = LedgerWriter(database)
        self.flusher = Flusher(Outbox(self.counters), self.writer, lambda _: None)
        truths = LedgerReader(self.engine, partition_of)
        restored = RestoredRows(truths, self.counters, Quarantines(self.engine))
        self.pusher = Pusher(Pushes(self.engine), self.counters, restored=restored)
        self.verifier = Verifier(truths, self.counters, hold_back=self.pusher.hold_back)
        self.reclaimer = Reclaimer(self.keeping)
        self.sweeper = on_agenda(
            sweeper(sweeps, self.counters), self.engine, lambda: datetime.now(UTC), sweeps.since
        )
        self.late_settlements = LateSettlements(self.keeping, sweeps)
        self.store = Store(
            self.engine, partition_of, letterhead=LETTERHEAD, newest_write=self.counters.newest_write,
            wait_reason=known_everywhere,
        )  # fmt: skip

    async def close(self) -> None:
        self.writer.close()
        await self.wire.close()
        await give_back(self.database, self.engine)

    # --- what people do -----------------------------------------------------------------

    async def write(
        self, resource: str, verb: str, row_id: int | None = None, **values: Any
    ) -> CommittedWrite:
        """One write through the store, as if all accounts were closed: the row and its control writes."""
        owners = (
            "select id, null as tenant from organization union all select organization_id, id from tenant"
        )
        closed = frozenset(Realm(row["id"], row["tenant"]) for row in self.rows(owners))
        command = Command(resource, verb, STAFF, str(uuid.uuid4()), _rendered, row_id, values, closed=closed)
        written = await self.store.write(command)
        assert isinstance(written, CommittedWrite)
        return written

    async def made(self, resource: str, **values: Any) -> int:
        return int(str((await self.write(resource, "create", **values)).row["id"]))

    async def limit(self, caller: Caller, **limits: int) -> None:
        """The same limits for a caller's key, tenant and organization."""
        of = {"api-keys": caller.key_id, "tenants": caller.tenant_id, "organizations": caller.organization_id}
        for kind, one in of.items():
            await self.write(kind, "change", one, limits=limits)

    async def settle_in(self, total: int | None = 1000, **plan: Any) -> World:
        """An organization with a tenant on a plan and a key, verified and pushed."""
        plan_id = await self.made("token-plans", name=f"plan {uuid.uuid4()}", total_amount=total, **plan)
        tenant = (await self.write("tenants", "create", name=f"tenant {uuid.uuid4()}", plan_id=plan_id)).row
        tenant_id, organization_id = int(str(tenant["id"])), int(str(tenant["organization_id"]))
        digest = uuid.uuid4().hex * 2
        key_id = await self.made("api-keys", tenant_id=tenant_id, name="key", digest=digest, prefix="tk_test")
        await self.verify()
        await self.push()
        return World(
            self.valkey, organization_id=organization_id, tenant_id=tenant_id, key_id=key_id, made=True
        )

    # --- what the clock does ------------------------------------------------------------

    async def verify(self) -> list[VerificationResult]:
        return await self.verifier.verify()

    async def push(self) -> int:
        """How many accounts are left with writes."""
        return len(await self.pusher.push(await Pushes(self.engine).accounts(1_000)))

    async def flush(self) -> None:
        """Until nothing waits; the first read after a restart starts over."""
        with suppress(CountersUnavailable):
            await self.flusher.flush()
        while await self.flusher.flush():
            pass

    # --- what is there ------------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with connected(self.database, row_factory=dict_row) as connection:
            return connection.execute(query, values).fetchall()

    def ledger(self, tenant_id: int) -> list[tuple[int, str, int, int | None]]:
        """(seq, type, signed amount, remaining) of a tenant's rows."""
        return [
            (row["seq"], row["transaction_type"], row["signed"], row["total_remaining"])
            for row in self.rows(
                "select seq, transaction_type, total_remaining,"
                " case direction when 'IN' then amount else -amount end as signed"
                " from token_ledger where tenant_id = %s order by seq",
                tenant_id,
            )
        ]

    def writes(self) -> list[tuple[str, str, str]]:
        """(account, verb, state) of every control write, in order."""
        return [
            (row["account"], row["verb"], row["state"])
            for row in self.rows("select account, verb, state from control_write order by position")
        ]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.valkey)


@asynccontextmanager
async def backend_at(valkey: str, database: str) -> AsyncIterator[Backend]:
    """A keeper whose wire is open."""
    backend = Backend(valkey, database)
    await backend.wire.open()
    try:
        yield backend
    finally:
        await backend.close()
