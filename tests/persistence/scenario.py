"""Accounts that move as the scripts move them, and the entries they leave in the outbox."""

from __future__ import annotations

import itertools
import json
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from gateway.core.accounts.administration import Actor, Command, Row
from gateway.core.accounts.flush_batch import Batch, fan_out
from gateway.core.accounts.outbox import PRICED, EventFlag, EventKind, OutboxEntry
from gateway.core.billing.money import PriceTier, pack_tiers, spend_micro
from gateway.counters.redis.keys import partition_of
from persistence.ledger import checkpoints
from persistence.store import Store
from tests.builders import encode
from tests.connections import connected, rows_of
from tests.databases import give_back, take_engine

NOW_MS = 1_790_000_000_000
BLANK = OutboxEntry(
    kind=0, flags=0, at_ms=NOW_MS, epoch=1, organization_id=0, tenant_id=0, key_id=0, service_id=0, seq=0,
    cycle=0, amount=0, remaining=0, used=0, next_reset_ms=0, credit_seq=0, credits=0, balance=0, spend_seq=0,
    units=0, spend=0, spent=0, source="", user="", attribution="", metadata=b"",
)  # fmt: skip
INVARIANTS = str(checkpoints.ALL.compile(dialect=PGDialect_psycopg(), compile_kwargs={"literal_binds": True}))
METADATA = b'{"model":"gpt-4o","status":200,"input":100,"output":23,"estimated":false}'

_entry_ids = itertools.count(1)


def entry_id() -> bytes:
    """The next id a stream would give."""
    return b"%d-0" % (NOW_MS + next(_entry_ids))


@dataclass
class Account:
    """One organization with one tenant: what Redis would hold of them."""

    organization_id: int
    tenant_id: int
    total: int | None = 1_000_000
    service_id: int = 1
    # What becomes of debt at a reset; forgiven where nothing is said.
    policy: str = ""
    forgives: bool = False
    epoch: int = 1
    at_ms: int = NOW_MS
    seq: int = 0
    cycle: int = 0
    remaining: int = 0
    used: int = 0
    manual: bool = False
    credit_seq: int = 0
    balance: int = 0
    spend_seq: int = 0
    spent: int = 0
    spend_month: str = ""
    # What units cost from now on (none: what `spend` says), and how many a service had in a month.
    tiers: tuple[PriceTier, ...] = ()
    units: dict[tuple[int, str], int] = field(default_factory=dict)
    entries: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def partition(self) -> int:
        return partition_of(self.organization_id)

    def status(self) -> EventFlag:
        flags = EventFlag(0)
        if self.total is None:
            flags |= EventFlag.UNLIMITED
        if self.manual:
            flags |= EventFlag.BLOCKED | EventFlag.MANUAL_BLOCK
        elif self.total is not None and self.remaining <= 0:
            flags |= EventFlag.BLOCKED
        return flags

    def emit(self, kind: EventKind, flags: EventFlag, **facts: object) -> OutboxEntry:
        event = replace(
            BLANK, kind=int(kind), flags=int(flags | self.status()), at_ms=self.at_ms, epoch=self.epoch,
            organization_id=self.organization_id, tenant_id=self.tenant_id, seq=self.seq, cycle=self.cycle,
            remaining=self.remaining, used=self.used,
        )  # fmt: skip
        event = replace(event, **facts)  # type: ignore[arg-type]  # facts are the event's own fields
        self.entries.append((entry_id(), encode(event)))
        self.at_ms += 1
        return event

    def reset(self, source: str = "") -> OutboxEntry:
        before, metadata = 0 if self.total is None else self.remaining, b""
        self.remaining = self.total or 0
        if before < 0 and self.policy == "carry" and not self.forgives:
            self.remaining += before
        elif before < 0 and self.policy in {"block", "carry"}:
            metadata = document(forgiven=-before)
        self.forgives = False
        self.used, self.cycle, self.seq = 0, self.cycle + 1, self.seq + 1
        gained = self.remaining - before
        inward = EventFlag.IN if gained >= 0 else EventFlag(0)
        return self.emit(
            EventKind.RESET, EventFlag.TOKENS | inward, amount=abs(gained), source=source, metadata=metadata
        )

    def consume(
        self,
        tokens: int | None = 10,
        *,
        credits_: int | None = None,
        units: int | None = None,
        spend: int = 0,
        user: str = "",
        request_id: str = "",
        metadata: bytes = METADATA,
        kind: EventKind = EventKind.CONSUME,
        **facts: object,
    ) -> OutboxEntry:
        flags = EventFlag(0)
        if tokens is not None:
            flags |= EventFlag.TOKENS
            self.seq, self.used = self.seq + 1, self.used + tokens
            if self.total is not None:
                self.remaining -= tokens
        if credits_ is not None:
            flags |= EventFlag.CREDITS
            self.credit_seq, self.balance = self.credit_seq + 1, self.balance - credits_
        priced = b""
        if units is not None:
            flags |= EventFlag.USAGE
            month = _month(self.at_ms)
            if self.tiers:
                before = self.units.get((self.service_id, month), 0)
                self.units[self.service_id, month] = before + units
                spend = spend_micro(self.tiers, before, units)
                priced = PRICED.pack(before) + pack_tiers(self.tiers)
            if month != self.spend_month:
                self.spend_month, self.spent = month, 0
            self.spend_seq, self.spent = self.spend_seq + 1, self.spent + spend
        return self.emit(
            kind, flags, amount=tokens or 0,
            credit_seq=self.credit_seq if credits_ is not None else 0,
            credits=credits_ or 0, balance=self.balance if credits_ is not None else 0,
            spend_seq=self.spend_seq if units is not None else 0, units=units or 0, spend=spend,
            spent=self.spent if units is not None else 0, key_id=5, service_id=self.service_id, user=user,
            source=request_id or str(uuid.uuid4()), metadata=metadata, priced=priced, **facts,
        )  # fmt: skip

    def grant(self, kind: EventKind, amount: int, source: str = "", **facts: object) -> OutboxEntry:
        self.seq += 1
        if self.total is not None:
            self.remaining += amount
        inward = EventFlag.IN if amount >= 0 else EventFlag(0)
        source = source or str(uuid.uuid4())
        return self.emit(kind, EventFlag.TOKENS | inward, amount=abs(amount), source=source, **facts)

    def mark(self, *, blocked: bool, source: str = "") -> OutboxEntry:
        self.manual = blocked
        kind = EventKind.BLOCK if blocked else EventKind.UNBLOCK
        return self.emit(kind, EventFlag(0), source=source or str(uuid.uuid4()))

    def credit(self, amount: int, source: str = "", metadata: bytes = b"") -> OutboxEntry:
        self.credit_seq, self.balance = self.credit_seq + 1, self.balance + amount
        flags = EventFlag.CREDITS | (EventFlag.IN if amount >= 0 else EventFlag(0))
        return self.emit(
            EventKind.CREDIT, flags, tenant_id=0, seq=0, cycle=0, remaining=0, used=0,
            credit_seq=self.credit_seq,
            credits=abs(amount), balance=self.balance, source=source or str(uuid.uuid4()), metadata=metadata,
        )  # fmt: skip

    def take(self) -> list[tuple[bytes, bytes]]:
        """The entries since the last time."""
        entries, self.entries = self.entries, []
        return entries


def settle_in(url: str, *totals: int | None, together: bool = False) -> list[Account]:
    """One organization, tenant and plan for each total, as the Admin API would make them.

    Each lives in a partition of its own, or all `together` in one.
    """
    accounts: list[Account] = []
    with connected(url, autocommit=True) as connection:
        for total in totals:
            plan = one(
                connection,
                "INSERT INTO token_plan (name, total_amount) VALUES (gen_random_uuid(), %s) RETURNING id",
                total,
            )
            organization = _organization(connection, {a.partition for a in accounts}, together=together)
            tenant = one(
                connection,
                "INSERT INTO tenant (name, organization_id, plan_id) VALUES ('t', %s, %s) RETURNING id",
                organization, plan,
            )  # fmt: skip
            connection.execute(
                "INSERT INTO tenant_quota (tenant_id, plan_id) VALUES (%s, %s)", (tenant, plan)
            )
            accounts.append(Account(organization, tenant, total))
    return accounts


def _organization(
    connection: psycopg.Connection[tuple[object, ...]], taken: set[int], *, together: bool
) -> int:
    while True:
        id_ = one(connection, "INSERT INTO organization (name) VALUES (gen_random_uuid()) RETURNING id")
        if not taken or (partition_of(id_) in taken) == together:
            return id_
        connection.execute("DELETE FROM organization WHERE id = %s", (id_,))


def one(connection: psycopg.Connection[tuple[object, ...]], sql: str, *values: object) -> int:
    """The one number a statement answers."""
    row = connection.execute(sql, values).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


def busy(account: Account) -> None:
    """One of everything."""
    account.reset()
    account.consume(10, user="ada")
    account.consume(5, credits_=3, user="bob")
    account.consume(None, units=2, spend=7)
    account.grant(EventKind.RECHARGE, 50)
    account.grant(EventKind.ADJUST, -20)
    account.credit(100)
    account.mark(blocked=True)
    account.mark(blocked=False)
    account.credit(-10)
    account.consume(2000, credits_=1, units=1, spend=2)


async def broken(url: str) -> list[checkpoints.Violation]:
    """Every invariant these rows violate; to plan them all takes ten times as long, so that is done once."""
    return [checkpoints.Violation(*row) for row in rows_of(url, INVARIANTS, prepare=True)]  # type: ignore[arg-type]  # a view's columns


def stop(url: str, partition: int, organization_id: int, tenant_id: int) -> str:
    """Quarantine a tenant's account, whatever comes; answers its name."""
    account = f"tenant:{tenant_id}"
    with connected(url) as connection:
        connection.execute(
            "INSERT INTO quarantine (account, partition, organization_id, tenant_id, kind, entry_id, epoch,"
            " stored_seq, found_seq, reason) VALUES (%s, %s, %s, %s, 'gap', '', 1, 0, 2, 'a test')",
            (account, partition, organization_id, tenant_id),
        )
    return account


async def release(url: str, account: str, *, accept: bool = False) -> None:
    """Let a quarantined account go on, as the Admin API does."""
    [(number,)] = rows_of(
        url, "SELECT id FROM quarantine WHERE account = %s AND released_at IS NULL", [account]
    )
    assert isinstance(number, int)
    pool = take_engine(url)
    values = {"reason": "a test", "accept": accept}
    actor = Actor("builtin:admin", "admin")
    await Store(pool, partition_of).write(Command("quarantine", "release", actor, "", plain, number, values))
    await give_back(url, pool)


def plain(row: Row) -> Row:
    """A row as JSON has it."""
    return {name: str(value) for name, value in row.items()}


def insert_budget(connection: psycopg.Connection[Any], organization_id: int, **fields: object) -> int:
    """A budget as it is stored, a day's money if nothing else is said; its id."""
    blank = {"name": str(uuid.uuid4()), "unit": "money", "amount": 100, "interval": "day"}
    values = {"organization_id": organization_id, **blank, **fields}
    statement = sql.SQL("INSERT INTO budget ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(sql.Placeholder() * len(values))
    )
    [(made,)] = connection.execute(statement, list(values.values())).fetchall()
    return int(made)


def batch_of(*accounts: Account) -> Batch:
    """Everything these accounts did since the last time, as the flusher hands it over."""
    streams: dict[int, list[tuple[bytes, bytes]]] = {}
    for account in accounts:
        streams.setdefault(account.partition, []).extend(account.take())
    return fan_out({partition: sorted(entries) for partition, entries in streams.items()})


def entries_of(batch: Batch) -> int:
    """How many entries a batch holds."""
    return sum(map(len, batch.values()))


def document(**facts: object) -> bytes:
    """A metadata object."""
    return json.dumps(facts).encode()


def _month(at_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")
