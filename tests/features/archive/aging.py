"""Databases whose months become old, and organizations that live through them."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from copy import copy, deepcopy
from datetime import UTC, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.core.accounts.administration import Actor, Command, CommittedWrite
from gateway.counters.redis.keys import partition_of
from gateway.features.archive import archiving
from gateway.features.archive.archiving import ArchiveRun, archive
from gateway.features.archive.retention import Retention
from gateway.ops.storage import FileStore
from gateway.run.timed_loops import charge
from persistence import engine as engines
from persistence.billing.credit_balances import Allocations
from persistence.ledger.writer import LedgerWriter
from persistence.store import Store
from tests.connections import connected
from tests.databases import own_database
from tests.letterhead import LETTERHEAD
from tests.persistence.ledger.test_checkpoints import BEGINS, Past
from tests.persistence.scenario import rows_of

ACTOR = Actor("builtin:admin", "admin")
LEDGERS = {
    "token_ledger": "tenant_id",
    "credit_transaction": "organization_id",
    "feature_usage": "organization_id",
}

Clones = Callable[[], AbstractContextManager[str]]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def clones(postgres: str, template: str) -> Clones:
    """Databases of their own: archiving changes the schema."""
    numbers = itertools.count(1)

    return lambda: own_database(postgres, f"aging{os.getpid()}_{next(numbers)}", template)


def months_made(url: str, first: str, months: int, *, by: str = "month") -> None:
    """Partitions as a keeper would have made them ahead: the first two months so, the others whole."""
    while rows_of(url, "SELECT ensure_partitions(%s::timestamptz, 0, %s)", [first, by]):
        pass
    rows_of(url, "SELECT ensure_partitions(%s::timestamptz, %s)", [first, months])


def held(url: str, place: FileStore) -> Counter[tuple[str, object, object]]:
    """Every movement by ledger, owner and seq: those in files of archived months, and others here."""
    found = Counter[tuple[str, object, object]]()
    gone = {(ledger, month) for ledger, month in rows_of(url, "SELECT ledger, month FROM archived_month")}
    for ledger, owner in LEDGERS.items():
        for month in archiving.months_in(place, ledger):
            said = archiving.read_manifest(place, month, ledger)
            assert said is not None
            one = said.file
            table = pq.read_table(place.open(one.file))
            assert table.num_rows == one.rows
            assert (one.bytes, one.sha256) == place.digest(one.file)
            if (ledger, month) in gone:
                owners, seqs = table[owner].to_pylist(), table["seq"].to_pylist()
                found.update((ledger, *key) for key in zip(owners, seqs, strict=True))
    for ledger, owner in LEDGERS.items():
        at = "created_at" if ledger == "token_ledger" else '"timestamp"'
        here = rows_of(url, f"SELECT {owner}, seq, date_trunc('month', {at}, 'UTC')::date FROM {ledger}")
        found.update((ledger, who, seq) for who, seq, month in here if (ledger, month) not in gone)
    return found


class Aging(Past):
    """An organization through the months, whose old ones go to an archive."""

    def __init__(self, url: str, movements_max: int, root: Path) -> None:
        super().__init__(url, movements_max)
        self.root, self.allocations, self.billed_until = root, Allocations(self.pool), BEGINS.date()

    def copied(self, url: str, root: Path) -> Aging:
        """Return the same organization in a copy of its database."""
        past = copy(self)
        past.account, past.tokens, past.credits, past.spends = deepcopy(
            (self.account, self.tokens, self.credits, self.spends)
        )
        past.url, past.root, past.writer, past.pool = url, root, LedgerWriter(url), engines.create(url)
        past.allocations = Allocations(past.pool)
        return past

    async def settle(self) -> None:
        """What keepers do before a month is closed."""
        await self.close()
        for organization_id in await self.allocations.behind(10):
            while not await self.allocations.allocate(organization_id):
                pass
        await self.bill()

    async def bill(self) -> None:
        """Have an invoice of all months that are over."""
        until, organization = self.today.replace(day=1), self.account.organization_id
        noon = datetime.combine(self.today, time(12), UTC)
        store = Store(self.pool, partition_of, lambda: noon, letterhead=LETTERHEAD)
        await charge(store, noon.date, [organization])
        if self.billed_until >= until:
            return
        period = {"period_start": self.billed_until, "period_end": until}
        made = await _do(store, "create", None, organization_id=organization, **period)
        await _do(store, "finalize" if made["lines"] else "delete", made["id"])
        self.billed_until = until

    async def archive(
        self, place: FileStore | None = None, *, drop: bool = True, retention: Retention | None = None
    ) -> ArchiveRun:
        await self.settle()
        to = place or FileStore(str(self.root))
        return await asyncio.to_thread(
            archive, self.url, to, self.today, None, drop_after=0 if drop else None, retention=retention
        )

    def all_of_it(self) -> Counter[tuple[str, object, object]]:
        """Every movement that there ever was."""
        account = self.account
        counted = {
            "token_ledger": (account.tenant_id, account.seq),
            "credit_transaction": (account.organization_id, account.credit_seq),
            "feature_usage": (account.organization_id, account.spend_seq),
        }
        bought = {seq for (seq,) in rows_of(self.url, "SELECT seq FROM credit_posting")}
        return Counter(
            (ledger, owner, seq)
            for ledger, (owner, last) in counted.items()
            for seq in range(1, last + 1)
            if ledger != "credit_transaction" or seq not in bought
        )


async def _do(store: Store, verb: str, row_id: int | None, **values: object) -> dict[str, Any]:
    done = await store.write(Command("invoices", verb, ACTOR, "test", lambda _: {}, row_id, values))
    assert isinstance(done, CommittedWrite)
    return dict(done.row)


async def lived(url: str, root: Path) -> Aging:
    """Movements of four months, of which two can be archived."""
    past = Aging(url, 1_000_000, root)
    months_made(url, "2026-02-01Z", 6)
    past.begin()
    past.credit(5_000)
    for month in range(4):
        for count in range(12):
            past.use(count)
        past.grant(7)
        past.use(month)
        past.on(31)
    await past.settle()
    return past


@cache
def _lived(postgres: str, template: str) -> Aging:
    """An organization that lived so once a process, in a database that is copied for each test."""
    name = f"lived_{os.getpid()}"
    with connected(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}")

    async def made() -> Aging:
        past = await lived(f"{postgres.rpartition('/')[0]}/{name}", Path())
        await past.end()
        return past

    return asyncio.run(made())


@pytest.fixture
async def old(postgres: str, template: str, tmp_path: Path) -> AsyncIterator[Aging]:
    """An organization that lived so."""
    before = await asyncio.to_thread(_lived, postgres, template)
    with own_database(postgres, f"old{os.getpid()}_{next(_numbers)}", before.url.rpartition("/")[2]) as url:
        past = before.copied(url, tmp_path)
        yield past
        await past.end()
