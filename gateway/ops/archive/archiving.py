"""`tollkeeper archive`: closed months to Parquet, read back, noted in a manifest, and only then taken out.

Each ledger goes by itself. Killed at any moment and run again, it goes on: a month is in its ledger until the
transaction that takes it out, and from then on the manifest and its file are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

from gateway.errors import ArchiveFailed
from gateway.ops.archive import manifest, parquet
from gateway.ops.archive.manifest import Manifest
from gateway.ops.archive.retention import Retention
from gateway.ops.place import Place, told
from persistence.archive import closed, cut, months, outside, rows
from persistence.archive.cut import Stored
from persistence.archive.months import AUDIT, BY_NAME, Connection, Ledger
from persistence.archive.outside import Moved

# A month that changes while it is written is written again, so often.
TRIES_MAX = 3
# What a file will come to is told by its first thousandth, a minute of hours, and not to the last byte.
SURE_OF, SPARE = 1_000, 1.25


@dataclass(frozen=True, slots=True)
class Open:
    """A month that is not closed for some ledgers, and why."""

    month: date
    ledgers: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class Archived:
    """What one run did: months that got a partition, files taken out, tables dropped, why it ended."""

    moved: list[Moved] = field(default_factory=list)
    files: list[Stored] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)


def archive(
    url: str,
    place: Place,
    today: date,
    before: date | None,
    *,
    audit_before: date | None = None,
    retention: Retention | None = None,
    drop_after: int | None = None,
    said: Callable[[str], object] = lambda _: None,
) -> Archived:
    """Archive what is not kept any more, each ledger oldest month first, up to one that is not closed.

    Which months these are `before` says, of the audit log `audit_before`; else how long each is kept. What
    is archived since `drop_after` days is dropped, with None nothing.
    """
    latest = months.latest(today)
    for option, day in (("--before", before), ("--audit-before", audit_before)):
        if day is not None and day > latest:
            raise ArchiveFailed(
                f"{option} is {latest} at the latest: rows come up to {months.GRACE_DAYS} days late"
            )
    kept, done, stopped = retention or Retention(), Archived(), dict[str, Open]()
    until = {
        ledger: (audit_before if ledger is AUDIT else before) or kept.before(ledger, today)
        for ledger in BY_NAME.values()
    }
    with months.connected(url) as connection, told(place.url):
        database = months.identity(connection)
        done.moved += outside.bring_in(connection)
        due = _due(connection, until)
        if due:
            _refuse_others(place, database)
        for month, ledger in due:
            if ledger.name in stopped:
                continue
            if reasons := closed.why_open(connection, ledger, month):
                stopped[ledger.name] = Open(month, (ledger.name,), tuple(reasons))
                continue
            said(f"{month:%Y-%m} {ledger.name}")
            done.files.append(_month(connection, place, database, month, ledger))
        if drop_after is not None:
            done.dropped += _drop(connection, place, drop_after)
    done.open = _together(stopped)
    return done


def _due(connection: Connection, until: dict[Ledger, date | None]) -> list[tuple[date, Ledger]]:
    """Months that may go, the oldest of all ledgers first."""
    found = [
        (month, ledger)
        for ledger, before in until.items()
        if before is not None
        for month in months.months_before(connection, before, ledger)
    ]
    return sorted(found, key=lambda one: one[0])


def _together(stopped: dict[str, Open]) -> list[Open]:
    """What keeps several ledgers for the same reasons is said once; the oldest month first."""
    alike: dict[tuple[date, tuple[str, ...]], list[str]] = {}
    for ledger, one in stopped.items():
        alike.setdefault((one.month, one.reasons), []).append(ledger)
    found = [Open(month, tuple(ledgers), reasons) for (month, reasons), ledgers in alike.items()]
    return sorted(found, key=lambda one: one.month)


def _refuse_others(place: Place, database: UUID) -> None:
    for month, whose in manifest.databases(place):
        _refuse_other(place, month, whose, database)


def _refuse_other(place: Place, month: date, whose: UUID, database: UUID) -> None:
    if whose != database:
        raise ArchiveFailed(f"{place.url} has {month:%Y-%m} of another database: archive into another place")


def _month(connection: Connection, place: Place, database: UUID, month: date, ledger: Ledger) -> Stored:
    found = manifest.read(place, month, ledger.name)
    if found is not None:  # an archive of before may have later months of another
        _refuse_other(place, month, found.database, database)
    months.refuse_unlocked(connection)
    manifest.divide(place, month)
    for _ in range(TRIES_MAX):
        if found is None or not _holds(place, found.file):
            # What a manifest says is true: it goes before its file does.
            months.refuse_unlocked(connection)
            place.remove(manifest.name_of(month, ledger.name))
            found = Manifest(database, month, _store(connection, place, ledger, month))
            months.refuse_unlocked(connection)
            manifest.write(place, found)
        if cut.cut(connection, found.file):
            return found.file
        found = None
    raise ArchiveFailed(f"{month:%Y-%m} changes while it is written: try again")


def _store(connection: Connection, place: Place, ledger: Ledger, month: date) -> Stored:
    """Write a month of a ledger, and read it back.

    A session may end at any time, and another archive that month: nothing of that is written over.
    """
    name, columns = manifest.file_of(ledger.name, month), rows.columns_of(ledger)
    expected, most = rows.about(connection, ledger, month), place.file_bytes_max

    def grown(written: int, size: int) -> None:
        if most is not None and (whole := outgrown(written, size, expected, most)):
            raise ArchiveFailed(
                f"{month:%Y-%m} {ledger.name} comes to {whole / 10**9:.1f} GB, and a file in a bucket has"
                f" {most / 10**9:.1f} GB at most: archive into a directory, such as --to /archive"
            )

    try:
        with (
            place.write_whole(name, lambda: months.refuse_unlocked(connection)) as sink,
            rows.as_csv(connection, ledger, month) as pieces,
        ):
            parquet.write(pieces, columns, sink, grown)
    except ArchiveFailed:
        months.refuse_unlocked(connection)
        place.remove(name)
        raise
    size, digest = place.digest(name)
    with place.open(name) as source:
        count, sums = parquet.figures(source, columns)
    return Stored(ledger.name, month, place.url, name, count, size, digest, sums)


def outgrown(written: int, size: int, expected: int, most: int) -> int:
    """How many bytes a file of `expected` rows will have by what was written, where that is too much; else 0.

    What is too much by less than `SPARE` goes on until it is.
    """
    whole = size * max(written, expected) // written
    if size > most or (size >= most // SURE_OF and whole > most * SPARE):
        return whole
    return 0


def _holds(place: Place, file: Stored) -> bool:
    """Whether a file is what its manifest says."""
    return place.has(file.file) and place.digest(file.file) == (file.bytes, file.sha256)


def _drop(connection: Connection, place: Place, days: int) -> list[str]:
    """Drop what is archived there since so many days, if each of its files is what it was."""
    here = [each for each in cut.droppable(connection, days) if each.url == place.url]
    for one in here:
        if place.digest(one.file) != (one.bytes, one.sha256):
            raise ArchiveFailed(f"{one.url}/{one.file} is not what was archived: nothing is dropped")
    for one in here:
        cut.drop(connection, one.ledger, one.month)
    return [f"{one.ledger} {one.month:%Y-%m}" for one in here]
