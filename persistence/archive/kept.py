"""What stands in PostgreSQL for months that were archived: rows that stayed, and runs for the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from persistence.archive.closed import MOVES
from persistence.archive.cut import Stored
from persistence.archive.months import Connection, Ledger
from persistence.ledger.invariants import INVARIANTS, MORE, VIOLATIONS_MAX

FETCHED_AT_ONCE = 10_000

_ARCHIVED = "SELECT ledger, month, url, file, rows, bytes, sha256 FROM archived_month ORDER BY month, ledger"
_KEPT = """
SELECT owner, first_seq, last_seq, epoch, amount, balance FROM (
    SELECT {owner} AS owner, seq AS first_seq, seq AS last_seq, epoch, {delta} AS amount, {balance} AS balance
      FROM {partition}
    UNION ALL
    SELECT split_part(account, ':', 2)::bigint, first_seq, last_seq, epoch, amount, balance
      FROM archived_run WHERE month = %(month)s AND account LIKE %(accounts)s) AS kept
 ORDER BY owner, first_seq"""


@dataclass(frozen=True, slots=True)
class KeptRun:
    """Movements of an account that follow each other, as PostgreSQL has them: one row, or a run."""

    owner: int
    first_seq: int
    last_seq: int
    epoch: int
    amount: int
    balance: int | None


def archived(connection: Connection) -> list[Stored]:
    """What was archived, wherever it is, month by month and ledger by ledger."""
    found = connection.execute(_ARCHIVED)
    return [
        Stored(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in found
    ]


def kept(connection: Connection, ledger: Ledger, month: date) -> Iterator[KeptRun]:
    """What stands for a month of a ledger, by account and number; to be read in a transaction."""
    delta, balance = MOVES[ledger.kind]
    statement = _KEPT.format(
        owner=ledger.owner, partition=ledger.partition(month), delta=delta, balance=balance
    )
    with connection.cursor("kept") as cursor:
        cursor.itersize = FETCHED_AT_ONCE
        cursor.execute(statement.encode(), {"month": month, "accounts": f"{ledger.kind}:%"})
        for owner, first, last, epoch, amount, left in cursor:
            yield KeptRun(owner, first, last, epoch, int(amount), None if left is None else int(left))


def contradictions(connection: Connection) -> list[str]:
    """What PostgreSQL's rows and runs contradict each other in; behind `VIOLATIONS_MAX`, that more do."""
    views = " UNION ALL ".join(
        f"SELECT '{name}', account, seq, detail FROM invariant_{name}"  # noqa: S608  # our own words
        for name in INVARIANTS
    )
    found = connection.execute(f"{views} LIMIT {VIOLATIONS_MAX + 1}".encode())
    told = [f"{account} at {seq} breaks {name}: {detail}" for name, account, seq, detail in found]
    return [*told[:VIOLATIONS_MAX], MORE.detail] if len(told) > VIOLATIONS_MAX else told
