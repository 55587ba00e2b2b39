"""One transaction from outbox entries to ledger rows, balances and roll-ups.

Entries become rows only where they continue their account exactly (see `guard`), so rows are
copied straight into the ledgers: the primary key is a proof, not a filter, and a roll-up
counts what was copied. Nothing here knows where entries come from or how they are deleted.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import psycopg
from psycopg import Connection, errors

from gateway.core.ledger import Event, EventKind, MalformedEvent, decode
from gateway.core.outbox import Batch, FlushReport, control_id
from gateway.errors import LedgerUnavailable
from persistence import accounts, rows, statements
from persistence.attribution import NEW_USERS_A_DAY_MAX, Name, Users
from persistence.engine import CONNECT_TIMEOUT_S, plain_url
from persistence.guard import (
    CREDITS,
    QUARANTINED,
    TOKENS,
    USAGE,
    Fault,
    Heads,
    Placed,
    Sorted,
    sort_out,
    storable,
)
from persistence.rollup import add_up

STATEMENT_TIMEOUT_S = 60
IDLE_IN_TRANSACTION_S = 15
TRANSACTION_TIMEOUT_S = 120
RETRIES_MAX = 5
RETRY_DELAY_S = 0.05
ROWS_A_CHUNK = 500

Poison = dict[tuple[int, bytes], str]

_ACCOUNTS = {
    "token_ledger": TOKENS,
    "credit_transaction": CREDITS,
    "credit_posting": CREDITS,
    "feature_usage": USAGE,
}
_LINE = re.compile(r"COPY (\w+), line (\d+)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Unstorable(Exception):
    """An entry cannot become a row; carries where it is and why."""

    def __init__(self, place: tuple[int, bytes], reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class Writer:
    """Writes batches over one connection of its own, one at a time."""

    def __init__(self, url: str, *, new_users_a_day_max: int = NEW_USERS_A_DAY_MAX) -> None:
        self._url = plain_url(url)
        self._users = Users(new_a_day_max=new_users_a_day_max)
        self._connection: Connection[Any] | None = None
        self._copies: dict[str, list[Placed]] = {}

    async def write(self, batch: Batch) -> FlushReport:
        """Store a batch in one transaction; `LedgerUnavailable` if PostgreSQL does not answer.

        A cancelled caller does not stop the transaction: what it stores is recognised when it
        is delivered again.
        """
        return await asyncio.to_thread(self.write_now, batch)

    def write_now(self, batch: Batch) -> FlushReport:
        """Store a batch in one transaction, from a thread that may block."""
        poison: Poison = {}
        stops: dict[str, Fault] = {}
        attempt = 0
        while True:
            try:
                return self._attempt(batch, poison, stops)
            except Unstorable as error:
                poison[error.place] = error.reason
            except (errors.SerializationFailure, errors.DeadlockDetected) as error:
                attempt += 1
                if attempt > RETRIES_MAX:
                    raise LedgerUnavailable(f"the ledger stays contended: {error}") from error
                time.sleep(RETRY_DELAY_S * attempt)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                self._blame(error, batch, poison, stops)
            except psycopg.Error as error:
                self.close()
                raise LedgerUnavailable(f"PostgreSQL: {error}".strip()) from error

    def close(self) -> None:
        """Let go of the connection; the next write makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _attempt(self, batch: Batch, poison: Poison, stops: dict[str, Fault]) -> FlushReport:
        connection = self._connected()
        with connection.transaction():
            connection.execute(
                statements.BOUND,
                [
                    f"{seconds}s"
                    for seconds in (STATEMENT_TIMEOUT_S, IDLE_IN_TRANSACTION_S, TRANSACTION_TIMEOUT_S)
                ],
            )
            locked = {p for (p,) in connection.execute(statements.LOCK, (sorted(batch),))}
            mine = {partition: entries for partition, entries in batch.items() if partition in locked}
            sorted_, faults = self._sort(connection, mine, poison, stops)
            known = self._users.resolve(connection, sorted_.fresh)
            report = self._store(connection, sorted_, faults, known, poison)
        self._users.remember(known)
        report.left_over = frozenset(batch.keys() - locked)
        return report

    def _sort(
        self, connection: Connection[Any], batch: Batch, poison: Poison, stops: dict[str, Fault]
    ) -> tuple[Sorted, list[Fault]]:
        """Take the batch apart, again without the accounts that turn out to contradict what is stored."""
        faults = dict(stops)
        quarantined = accounts.stopped(connection, sorted(batch))
        while True:
            heads = accounts.stand(connection, batch)
            _stop(heads, quarantined | faults.keys())
            sorted_ = sort_out(batch, heads, poison)
            found = accounts.contradictions(connection, sorted_.repeats, [*sorted_.fresh, *sorted_.dead])
            if not found:
                return sorted_, [*faults.values(), *sorted_.faults]
            faults.update({fault.account: fault for fault in reversed(found)})

    def _store(
        self,
        connection: Connection[Any],
        sorted_: Sorted,
        faults: list[Fault],
        known: dict[Name, int],
        poison: Poison,
    ) -> FlushReport:
        report = FlushReport(
            dead_letters=len(sorted_.dead), repeated=len(sorted_.repeats), held=sorted_.held,
            quarantined=[fault.account for fault in faults],
        )  # fmt: skip
        self._copy_all(connection, sorted_.fresh, known, report)
        moves = add_up(sorted_.fresh)
        accounts.move(connection, moves)
        accounts.set_standing(connection, sorted_.standings, moves)
        stored = (sorted_.fresh, sorted_.repeats, sorted_.standings, sorted_.idle)
        for placed in stored:
            for partition, (entry_id, _, event) in placed:
                report.acknowledged.setdefault(partition, []).append(entry_id)
                if event is not None and (id_ := control_id(event)):
                    report.control_ids.setdefault(partition, []).append(id_)
        ids = [id_ for held in report.control_ids.values() for id_ in held if _UUID.fullmatch(id_)]
        accounts.finish(connection, ids, moves.resets)
        accounts.quarantine(connection, faults)
        accounts.bury(connection, [(placed, _epitaph(placed, poison)) for placed in sorted_.dead])
        for partition, (entry_id, _, _) in sorted_.dead:
            report.acknowledged.setdefault(partition, []).append(entry_id)
        return report

    def _copy_all(
        self, connection: Connection[Any], fresh: list[Placed], known: dict[Name, int], report: FlushReport
    ) -> None:
        postings = [p for p in fresh if _kind(p) == EventKind.CREDIT]
        additions: dict[str, int] = {}
        if postings:
            sources = [
                p[1][2].source for p in postings if p[1][2] is not None and _UUID.fullmatch(p[1][2].source)
            ]
            additions = dict(connection.execute(statements.ADDITIONS, (sources,)).fetchall())

        def user(event: Event) -> int | None:
            return known.get((event.organization_id, event.user)) if event.user else None

        self._copies = {
            "token_ledger": _with(fresh, TOKENS),
            "credit_transaction": [p for p in _with(fresh, CREDITS) if _kind(p) != EventKind.CREDIT],
            "feature_usage": _with(fresh, USAGE),
            "credit_posting": postings,
        }
        columns_and_rows: dict[str, tuple[str, Callable[[Event], bytes]]] = {
            "token_ledger": (rows.LEDGER_COLUMNS, lambda event: rows.token_row(event, user(event))),
            "credit_transaction": (
                rows.TRANSACTION_COLUMNS,
                lambda event: rows.transaction_row(event, user(event)),
            ),
            "feature_usage": (rows.USAGE_COLUMNS, lambda event: rows.usage_row(event, user(event))),
            "credit_posting": (
                rows.POSTING_COLUMNS,
                lambda event: rows.posting_row(event, additions.get(event.source.lower())),
            ),
        }
        for table, placed in self._copies.items():
            if placed:
                _copy(connection, table, *columns_and_rows[table], placed)
                report.rows[table] = len(placed)

    def _blame(self, error: psycopg.Error, batch: Batch, poison: Poison, stops: dict[str, Fault]) -> None:
        """Find the entry PostgreSQL refused: a clash stops its account, anything else is its own fault."""
        reason = str(error).splitlines()[0]
        at = _LINE.search(error.diag.context or "")
        if at is not None:
            table = next((name for name in self._copies if at[1].startswith(name)), "")
            line = int(at[2])
            if table and 0 < line <= len(self._copies[table]):
                placed = self._copies[table][line - 1]
                place = (placed[0], placed[1][0])
                if isinstance(error, errors.UniqueViolation):
                    fault = _clash(placed, _ACCOUNTS[table], reason)
                    stops[fault.account] = fault
                    return
                if place not in poison:
                    poison[place] = reason
                    return
        insane = {
            (partition, entry_id): reason
            for partition, entries in batch.items()
            for entry_id, _, event in entries
            if event is not None and (partition, entry_id) not in poison and not storable(event)
        }
        if not insane:
            raise LedgerUnavailable(f"PostgreSQL refuses the batch: {reason}") from error
        poison.update(insane)

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._url, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_TIMEOUT_S
            )
        return self._connection


def _copy(
    connection: Connection[Any],
    table: str,
    columns: str,
    row: Callable[[Event], bytes],
    placed: Sequence[Placed],
) -> None:
    remaining = iter(placed)
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.write(rows.COPY_HEAD)
        # PostgreSQL stores one chunk while the next is packed.
        while chunk := list(islice(remaining, ROWS_A_CHUNK)):
            packed = []
            for partition, (entry_id, _, event) in chunk:
                assert event is not None
                try:
                    packed.append(row(event))
                except (ValueError, ArithmeticError, struct.error) as error:
                    raise Unstorable((partition, entry_id), str(error)) from error
            copy.write(b"".join(packed))
        copy.write(rows.COPY_TAIL)


def _with(fresh: Sequence[Placed], part: int) -> list[Placed]:
    return [placed for placed in fresh if placed[1][2] is not None and placed[1][2].flags & part]


def _kind(placed: Placed) -> int:
    event = placed[1][2]
    return event.kind if event is not None else 0


def _stop(heads: Heads, names: set[str]) -> None:
    for of_kind in (heads.tenants, heads.credits, heads.spends):
        for head in of_kind.values():
            if head.account in names:
                head.stopped = QUARANTINED


def _clash(placed: Placed, part: int, reason: str) -> Fault:
    partition, (entry_id, _, event) = placed
    assert event is not None
    account, seq = {
        TOKENS: (f"tenant:{event.tenant_id}", event.seq),
        CREDITS: (f"credits:{event.organization_id}", event.credit_seq),
        USAGE: (f"spend:{event.organization_id}", event.spend_seq),
    }[part]
    return Fault("conflict", account, partition, entry_id, event, seq - 1, seq, reason)


def _epitaph(placed: Placed, poison: Poison) -> str:
    partition, (entry_id, packed, event) = placed
    if event is None:
        try:
            decode(packed)
        except MalformedEvent as error:
            return str(error)
    return poison.get((partition, entry_id), "its numbers are out of range")
