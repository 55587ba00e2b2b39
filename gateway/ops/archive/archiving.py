"""`tollkeeper archive`: closed months to Parquet, read back, noted in a manifest, and only then taken out.

Killed at any moment and run again, it goes on: a month is in its ledgers until the transaction that takes it
out, and from then on the manifest and its files are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

from gateway.errors import ArchiveFailed
from gateway.ops.archive import manifest, parquet
from gateway.ops.archive.manifest import Manifest
from gateway.ops.place import Place, told
from persistence.archive import closed, cut, months, rows
from persistence.archive.cut import Stored
from persistence.archive.months import AUDIT, LEDGERS, Connection, Ledger

# A month that changes while it is written is written again, so often.
TRIES_MAX = 3


@dataclass(slots=True)
class Archived:
    """What one run did: files of months taken out, tables dropped, and why it went no further."""

    files: list[Stored] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    month: date | None = None
    open: list[str] = field(default_factory=list)


def archive(
    url: str,
    place: Place,
    today: date,
    before: date | None,
    *,
    audit_before: date | None = None,
    drop: bool = False,
    said: Callable[[str], object] = lambda _: None,
) -> Archived:
    """Archive the closed months that ended by `before`, oldest first, up to one that is not closed.

    Of the audit log those that ended by `audit_before`; none of it where that is not said.
    """
    latest = months.latest(today)
    for option, day in (("--before", before), ("--audit-before", audit_before)):
        if day is not None and day > latest:
            raise ArchiveFailed(
                f"{option} is {latest} at the latest: rows come up to {months.GRACE_DAYS} days late"
            )
    done = Archived()
    with months.connected(url) as connection, told(place.url):
        database = months.identity(connection)
        for month in months.months_before(connection, before or latest):
            if reasons := closed.why_open(connection, month):
                done.month, done.open = month, reasons
                break
            said(f"{month:%Y-%m}")
            done.files += _month(connection, place, database, month, LEDGERS)
        for month in months.months_before(connection, audit_before, (AUDIT,)) if audit_before else ():
            said(f"{month:%Y-%m} {AUDIT.name}")
            done.files += _month(connection, place, database, month, (AUDIT,))
        if drop:
            done.dropped += _drop(connection, place)
    return done


def _month(
    connection: Connection, place: Place, database: UUID, month: date, ledgers: Sequence[Ledger]
) -> list[Stored]:
    there = [ledger for ledger in ledgers if months.is_there(connection, ledger, month)]
    found = manifest.read(place, month, there[0].name)
    if found is not None and found.database != database:
        raise ArchiveFailed(f"{place.url} has {month:%Y-%m} of another database: archive into another place")
    for _ in range(TRIES_MAX):
        if found is None or not _holds(place, found, there):
            # What a manifest says is true: it goes before its files do.
            place.remove(manifest.name_of(month, there[0].name))
            found = Manifest(database, month, [_store(connection, place, ledger, month) for ledger in there])
            manifest.write(place, found)
        if cut.cut(connection, month, found.files):
            return list(found.files)
        found = None
    raise ArchiveFailed(f"{month:%Y-%m} changes while it is written: try again")


def _store(connection: Connection, place: Place, ledger: Ledger, month: date) -> Stored:
    """Write a month of a ledger, and read it back."""
    name, columns = manifest.file_of(ledger.name, month), rows.columns_of(ledger)
    with rows.as_csv(connection, ledger, month) as pieces, place.write(name) as sink:
        parquet.write(pieces, columns, sink)
    size, digest = place.digest(name)
    with place.open(name) as source:
        count, sums = parquet.figures(source, columns)
    return Stored(ledger.name, month, place.url, name, count, size, digest, sums)


def _holds(place: Place, found: Manifest, there: list[Ledger]) -> bool:
    """Whether an archive has what its manifest says, of these ledgers."""
    if [each.ledger for each in found.files] != [ledger.name for ledger in there]:
        return False
    return all(place.digest(each.file) == (each.bytes, each.sha256) for each in found.files)


def _drop(connection: Connection, place: Place) -> list[str]:
    """Drop what is archived there, if each of its files is what it was."""
    here = [each for each in cut.droppable(connection) if each.url == place.url]
    for one in here:
        if place.digest(one.file) != (one.bytes, one.sha256):
            raise ArchiveFailed(f"{one.url}/{one.file} is not what was archived: nothing is dropped")
    for one in here:
        cut.drop(connection, one.ledger, one.month)
    return [f"{one.ledger} {one.month:%Y-%m}" for one in here]
