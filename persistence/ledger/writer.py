"""One transaction from outbox entries to ledger rows, balances and roll-ups.

Entries become rows only if they continue their account exactly (see `guard`), so rows are copied straight
into the ledgers: the primary key is a proof, not a filter, and roll-ups count only copied rows. Entries read
before the latest verification of their partition are skipped: they may belong to a history that Redis has
lost. Deleting entries is the caller's task.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, errors

from gateway.core.accounts.flush_batch import Batch, FlushReport, History, Judged, control_id
from gateway.core.accounts.outbox import MalformedEvent, decode, moved
from gateway.core.model import PARTITIONS
from gateway.errors import LedgerUnavailable
from gateway.files import UrlFile
from persistence.address import CONNECT, plain_url
from persistence.engine import url_file
from persistence.error_mapping import complaint
from persistence.ledger import (
    acceptance,
    account_heads,
    accounts,
    dead_letters,
    quarantine,
    rows,
    statements,
    stored_movements,
)
from persistence.ledger.copying import NEW_USERS_A_DAY_MAX, Copies, Name, Place, Unstorable, Users
from persistence.ledger.guard import (
    QUARANTINED,
    Placed,
    QuarantineReason,
    SortedBatch,
    event_of,
    sort_out,
    storable,
)
from persistence.ledger.rollup import add_up

# Handles entries that PostgreSQL refuses, so that the rest of their batch can be stored.
#
# A row that exists already stops its account. Unreadable metadata is set aside and the charge is stored:
# nobody escapes a bill by the contents of a header. Any other entry becomes a dead letter with its raw bytes,
# and a listed gap of its account.

SET_ASIDE = b'{"unreadable":true}'


@dataclass(slots=True)
class BatchFailures:
    """The failures found by the attempts to store one batch: reasons by place, and accounts to stop.

    `aside` are poison entries that contradict stored rows, which a person accepted.
    """

    poison: dict[Place, str] = field(default_factory=dict)
    aside: set[Place] = field(default_factory=set)
    unreadable: dict[Place, str] = field(default_factory=dict)
    stops: dict[str, QuarantineReason] = field(default_factory=dict)

    def learn(self, error: psycopg.Error, batch: Batch, copies: Copies) -> bool:
        """Note the entry that caused an error of PostgreSQL; the next try treats it differently.

        Return False if the error names no entry.
        """
        before = self._size()
        reason = complaint(error)
        named = copies.refused(error)
        if named is not None and isinstance(error, errors.UniqueViolation):
            (partition, (entry_id, _, _)), event = named[0], event_of(named[0])
            one = moved(event)[named[1]]
            self.stops[one.account] = QuarantineReason(
                "conflict", one.account, partition, entry_id, event, one.seq - 1, one.seq, reason
            )
        elif named is not None and "column metadata" in (error.diag.context or ""):
            self._set_aside(batch, named[0], reason)
        else:
            self._condemn(batch, named[0] if named else None, reason)
        return self._size() > before

    def _set_aside(self, batch: Batch, named: Placed, reason: str) -> None:
        """Replace the metadata of the entry `named`, which PostgreSQL cannot read.

        Do the same for other entries of the batch with unreadable metadata.
        """
        place = _place(named)
        for partition, entries in batch.items():
            for entry_id, _, event in entries:
                here = (partition, entry_id)
                if event is None or not event.metadata or here in self.unreadable:
                    continue
                if here == place or not _readable(event.metadata):
                    event.metadata = SET_ASIDE
                    self.unreadable[here] = reason

    def _condemn(self, batch: Batch, named: Placed | None, reason: str) -> None:
        if named is not None:
            self.poison.setdefault(_place(named), reason)
        for partition, entries in batch.items():
            for entry_id, _, event in entries:
                if event is not None and not storable(event):
                    self.poison.setdefault((partition, entry_id), reason)

    def _size(self) -> int:
        return len(self.poison) + len(self.unreadable) + len(self.stops)


def _place(placed: Placed) -> Place:
    return placed[0], placed[1][0]


def _readable(metadata: bytes) -> bool:
    """Return whether PostgreSQL will most likely accept the metadata as JSON."""
    try:
        json.dumps(json.loads(metadata), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return b"\\u0000" not in metadata


STATEMENT_TIMEOUT_S = 60
IDLE_IN_TRANSACTION_S = 15
TRANSACTION_TIMEOUT_S = 120
RETRIES_MAX = 5
RETRY_DELAY_S = 0.05

T = TypeVar("T")


class LedgerWriter:
    """Writes batches one at a time, over a connection of its own."""

    def __init__(self, url: str | UrlFile, *, new_users_a_day_max: int = NEW_USERS_A_DAY_MAX) -> None:
        self._url = url_file(url)
        self._users = Users(new_a_day_max=new_users_a_day_max)
        self._connection: Connection[Any] | None = None
        self._copies = Copies(())
        # A cancelled `write` continues in its thread; the next one waits for it.
        self._turn = threading.Lock()

    async def write(self, batch: Batch, history: History | None = None) -> FlushReport:
        """Store a batch in one transaction; raise `LedgerUnavailable` if PostgreSQL does not answer.

        A canceled caller does not stop the transaction: its rows are recognized when the same entries come
        again. Partitions that were verified since `history` are not stored, and reported as `outdated`.
        """
        return await asyncio.to_thread(self.write_now, batch, history)

    async def epochs(self) -> dict[int, int]:
        """Return the epoch of each partition ever verified; an epoch ends when Redis loses data."""
        every = (list(range(PARTITIONS)),)
        found = await asyncio.to_thread(
            self._ask, lambda connection: connection.execute(statements.HISTORIES, every).fetchall()
        )
        return {partition: epoch for partition, _, epoch in found}

    async def judged(self, partitions: Iterable[int]) -> dict[int, Judged]:
        """Return, by partition, the stored state by which its entries would be checked now."""
        return await asyncio.to_thread(self._ask, lambda connection: _judged(connection, partitions))

    async def locked(self, partitions: Iterable[int]) -> frozenset[int]:
        wanted = (sorted(partitions),)
        found = await asyncio.to_thread(
            self._ask, lambda connection: connection.execute(statements.LOCKED, wanted).fetchall()
        )
        return frozenset(partition for (partition,) in found)

    def _ask(self, ask: Callable[[Connection[Any]], T]) -> T:
        with self._turn:
            try:
                return ask(self._connected())
            except psycopg.Error as error:
                self.close()
                raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    def write_now(self, batch: Batch, history: History | None = None) -> FlushReport:
        """Store a batch in one transaction; blocks, so call it from a thread."""
        refused = BatchFailures()
        attempt = 0
        with self._turn:
            while True:
                try:
                    return self._attempt(batch, history, refused)
                except Unstorable as error:
                    refused.poison[error.place] = error.reason
                except (errors.SerializationFailure, errors.DeadlockDetected) as error:
                    attempt += 1
                    if attempt > RETRIES_MAX:
                        raise LedgerUnavailable(f"the ledger stays contended: {complaint(error)}") from error
                    time.sleep(RETRY_DELAY_S * attempt)
                except (psycopg.DataError, psycopg.IntegrityError) as error:
                    if not refused.learn(error, batch, self._copies):
                        raise LedgerUnavailable(
                            f"PostgreSQL refuses the batch: {complaint(error)}"
                        ) from error
                except psycopg.Error as error:
                    self.close()
                    raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    def close(self) -> None:
        """Close the connection; the next write opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _attempt(self, batch: Batch, history: History | None, refused: BatchFailures) -> FlushReport:
        """Store a batch in one transaction; report the stored entries, the others, and the reasons."""
        connection = self._connected()
        with connection.transaction():
            timeouts = (STATEMENT_TIMEOUT_S, IDLE_IN_TRANSACTION_S, TRANSACTION_TIMEOUT_S)
            connection.execute(statements.BOUND, [f"{seconds}s" for seconds in timeouts])
            locked = {p for (p,) in connection.execute(statements.LOCK, (sorted(batch),))}
            outdated = _outdated(connection, sorted(locked), history)
            left = outdated | _partitions_to_judge(connection, locked, history)
            mine = {p: entries for p, entries in batch.items() if p in locked and p not in left}
            sorted_, faults = self._sort(connection, mine, refused)
            users = self._users.resolve(connection, [*sorted_.fresh, *sorted_.noted])
            self._copies = Copies(sorted_.fresh, sorted_.noted)
            report = self._store(connection, sorted_, faults, users, refused)
            if sorted_.waiting:
                report.judged = _judged(connection, {p for p, _, _ in sorted_.waiting})
        self._users.remember(users)
        report.outdated = outdated
        report.locked = frozenset(batch.keys() - locked)
        report.left_over = left | report.locked
        return report

    def _sort(
        self, connection: Connection[Any], batch: Batch, refused: BatchFailures
    ) -> tuple[SortedBatch, list[QuarantineReason]]:
        """Sort the entries of a batch, again and again, until none contradicts a stored row.

        An entry that does stops its account (quarantine), or is set aside if a person has accepted the
        contradiction.
        """
        faults = dict(refused.stops)
        quarantined = quarantine.stopped_accounts(connection, sorted(batch))
        accepted = acceptance.accepted_accounts(connection, sorted(batch))
        while True:
            heads = account_heads.read_heads(connection, batch)
            names = quarantined | faults.keys()
            for of_kind in (heads.tenants, heads.credits, heads.spends):
                for head in of_kind.values():
                    if head.account in names:
                        head.stopped = QUARANTINED
            sorted_ = sort_out(batch, heads, refused.poison, refused.aside)
            contradictions = stored_movements.contradictions(
                connection, sorted_.repeats, [*sorted_.fresh, *sorted_.dead]
            )
            aside = acceptance.set_aside_account([*contradictions, *sorted_.faults], accepted)
            if aside:
                refused.poison.update(aside)
                refused.aside.update(aside)
                continue
            if not contradictions:
                acceptance.file_breaks(connection, sorted_.fresh, accepted)
                return sorted_, [*faults.values(), *sorted_.faults]
            faults.update({fault.account: fault for fault in reversed(contradictions)})

    def _store(
        self,
        connection: Connection[Any],
        sorted_: SortedBatch,
        faults: list[QuarantineReason],
        users: dict[Name, int],
        refused: BatchFailures,
    ) -> FlushReport:
        """Store the rows of a sorted batch, then sums, then finished control writes; return the report."""
        report = _report(sorted_, faults)
        report.rows = self._copies.write(connection, users)
        moves = add_up(sorted_.fresh)
        accounts.move(connection, moves)
        accounts.set_status(connection, sorted_.status_changes, moves)
        ids = [id_ for of_partition in report.control_ids.values() for id_ in of_partition]
        accounts.finish(connection, [id_ for id_ in ids if rows.is_uuid(id_)], moves.resets)
        accounts.charge(connection, moves)
        accounts.top_up(connection, moves)
        quarantine.quarantine(connection, faults)
        dead = [(placed, _dead_letter_reason(placed, refused)) for placed in sorted_.dead]
        dead_letters.bury(connection, dead, refused.aside)
        report.dead_letters += dead_letters.set_aside(connection, sorted_.fresh, refused.unreadable)
        quarantine.mark_stopped(connection, report)
        return report

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(plain_url(self._url.url()), autocommit=True, **CONNECT)
        return self._connection


def _report(sorted_: SortedBatch, faults: list[QuarantineReason]) -> FlushReport:
    """Return, by partition, the entries to delete and the control writes to forget after the commit."""
    report = FlushReport(
        dead_letters=len(sorted_.dead), repeated=len(sorted_.repeats), held=sorted_.held,
        waiting=sorted_.waiting, parked=sorted_.parked, quarantined=[fault.account for fault in faults],
    )  # fmt: skip
    acknowledged = report.acknowledged
    for placed in (sorted_.fresh, sorted_.repeats, sorted_.status_changes, sorted_.noted, sorted_.idle):
        for partition, (entry_id, _, event) in placed:
            acknowledged.setdefault(partition, []).append(entry_id)
            if event is not None and (id_ := control_id(event)):
                report.control_ids.setdefault(partition, []).append(id_)
    # A dead letter finishes no control write: its id stays known, so that it is not applied again.
    for partition, (entry_id, _, _) in sorted_.dead:
        acknowledged.setdefault(partition, []).append(entry_id)
    return report


def _outdated(connection: Connection[Any], locked: list[int], history: History | None) -> frozenset[int]:
    """Return the locked partitions that were verified again after the batch was read.

    Their Redis run or epoch then differs from the one in `history`.
    """
    if history is None:
        return frozenset()
    here, epochs = history.run_id.decode(), history.epochs
    found = connection.execute(statements.HISTORIES, (locked,))
    return frozenset(p for p, run_id, epoch in found if run_id != here or epoch != epochs.get(p))


def _partitions_to_judge(
    connection: Connection[Any], locked: set[int], history: History | None
) -> frozenset[int]:
    """Return the partitions whose waiting entries must be checked before this batch is stored.

    Something by which entries are checked has changed since `history`.
    """
    behind = {p: judged for p, judged in history.judged.items() if p in locked} if history else {}
    now = _judged(connection, behind) if behind else {}
    return frozenset(p for p, judged in behind.items() if now.get(p) != judged)


def _judged(connection: Connection[Any], partitions: Iterable[int]) -> dict[int, Judged]:
    rows = connection.execute(statements.JUDGED, (sorted(partitions),))
    return {partition: (epoch, stopped, released) for partition, epoch, stopped, released in rows}


def _dead_letter_reason(placed: Placed, refused: BatchFailures) -> str:
    """Return why an entry cannot be stored."""
    partition, (entry_id, packed, event) = placed
    if event is None:
        try:
            decode(packed)
        except MalformedEvent as error:
            return str(error)
    return refused.poison.get((partition, entry_id), "its numbers are out of range")
