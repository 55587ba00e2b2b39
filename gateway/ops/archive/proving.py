"""`tollkeeper archive --prove`: that an archive and its database are one ledger, movement by movement.

Every file is read whole. Each movement in it must be in PostgreSQL, as a row that stayed or in the one run
that stands for it. PostgreSQL's own proofs then chain these rows and runs with what came after the cut.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from gateway.errors import ArchiveFailed
from gateway.ops.archive import manifest
from gateway.ops.place import Place, told
from persistence.archive import months
from persistence.archive.cut import Stored
from persistence.archive.kept import KeptRun, archived, contradictions, kept
from persistence.archive.months import BY_NAME, Connection, Ledger

NAMED_MAX = 100
BATCH_ROWS = 65_536
# By kind of account: what a movement comes to, of which columns, and the one of where it leaves the account.
MOVED: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], int], str]] = {
    "tenant": (
        ("direction", "amount"),
        lambda row: int(row["amount"]) if row["direction"] == "IN" else -int(row["amount"]),
        "total_remaining",
    ),
    "credits": (("credits_used",), lambda row: -int(row["credits_used"]), "balance_after"),
    "spend": (("spend",), lambda row: int(row["spend"]), "spent_after"),
}


@dataclass(slots=True)
class Proof:
    """What was proved: files and rows that were read, movements compared; and all that is not so.

    `elsewhere` are places of other archived months: each is proved by itself.
    """

    files: int = 0
    rows: int = 0
    movements: int = 0
    elsewhere: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def prove(url: str, place: Place) -> Proof:
    """Prove an archive and the database of which it is."""
    proof = Proof()
    with months.connected(url) as connection, told(place.url):
        stored = archived(connection)
        proof.elsewhere = sorted({one.url for one in stored} - {place.url})
        here = [one for one in stored if one.url == place.url]
        if not here:
            raise ArchiveFailed(f"nothing of this database was archived to {place.url}")
        database = months.identity(connection)
        for one in here:
            if reason := _differs(place, one, database):
                proof.broken.append(f"{one.file} {reason}")
                continue
            proof.files += 1
            proof.rows += one.rows
            ledger = BY_NAME[one.ledger]
            if ledger.kind:
                _movements(connection, place, ledger, one, proof)
        proof.broken += contradictions(connection)
    if (more := len(proof.broken) - NAMED_MAX) > 0:
        proof.broken = [*proof.broken[:NAMED_MAX], f"and {more} more"]
    return proof


def _differs(place: Place, one: Stored, database: UUID) -> str:
    """In what a file, its manifest and the database differ; empty where they agree."""
    found = manifest.read(place, one.month, one.ledger)
    if found is None:
        return "has no manifest"
    if found.database != database:
        return "is of another database, by its manifest"
    named = found.file
    if (named.file, named.rows, named.bytes, named.sha256) != (
        one.file,
        one.rows,
        one.bytes,
        one.sha256,
    ):
        return "is another one by its manifest than by the database"
    if not place.has(one.file):
        return "is not there"
    return "" if place.digest(one.file) == (one.bytes, one.sha256) else "is not what was archived"


def _movements(connection: Connection, place: Place, ledger: Ledger, one: Stored, proof: Proof) -> None:
    """Compare each movement of a file with what stands for it, as long as not too much is wrong."""
    with connection.transaction(), place.open(one.file) as source:
        rows = _counted(_read(source, ledger), proof)
        for reason in compare(rows, kept(connection, ledger, one.month)):
            proof.broken.append(f"{ledger.kind}:{reason} ({one.file})")
            if len(proof.broken) > NAMED_MAX:
                return


def _read(source: Any, ledger: Ledger) -> Iterator[KeptRun]:
    """The movements of a file in its order, which is by account and number."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    columns, amount, balance = MOVED[ledger.kind]
    wanted = [ledger.owner, "seq", "epoch", *columns, balance]
    for batch in parquet.ParquetFile(source).iter_batches(BATCH_ROWS, columns=wanted):
        for row in batch.to_pylist():
            seq = int(row["seq"])
            yield KeptRun(int(row[ledger.owner]), seq, seq, int(row["epoch"]), amount(row), row[balance])


def _counted(rows: Iterable[KeptRun], proof: Proof) -> Iterator[KeptRun]:
    for row in rows:
        proof.movements += 1
        yield row


def compare(rows: Iterator[KeptRun], stands: Iterable[KeptRun]) -> Iterator[str]:
    """What is not so: each row is of one that stands for it, and each of these has all its rows."""
    row = next(rows, None)
    for one in stands:
        while row is not None and (row.owner, row.last_seq) < (one.owner, one.first_seq):
            yield f"{row.owner} at {row.last_seq}: nothing stands for it in PostgreSQL"
            row = next(rows, None)
        count, amount, balance, epochs = 0, 0, None, {one.epoch}
        while row is not None and row.owner == one.owner and row.last_seq <= one.last_seq:
            count, amount, balance = count + 1, amount + row.amount, row.balance
            epochs.add(row.epoch)
            row = next(rows, None)
        where = f"{one.owner} from {one.first_seq} to {one.last_seq}"
        if count != one.last_seq - one.first_seq + 1:
            yield f"{where}: {count} movements are in the archive"
        elif (amount, balance) != (one.amount, one.balance) or len(epochs) > 1:
            yield (
                f"{where}: the archive comes to {amount} and leaves {balance},"
                f" PostgreSQL to {one.amount} and {one.balance}"
            )
    while row is not None:
        yield f"{row.owner} at {row.last_seq}: nothing stands for it in PostgreSQL"
        row = next(rows, None)
