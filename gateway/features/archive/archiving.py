"""`tollkeeper archive`: closed months are written to Parquet, read back, noted in a manifest, then removed.

Each ledger is archived by itself. A killed run can be repeated at any point: a month is in its ledger until
the transaction that removes it, and from then on the manifest and its file exist.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from gateway import extras
from gateway.errors import ArchiveFailed
from gateway.features.archive.retention import Retention
from gateway.ops.storage import FileStore, translate_errors
from persistence.archive import months
from persistence.archive.months import (
    AUDIT,
    BY_NAME,
    FLAG,
    INTEGER,
    MOMENT,
    TEXT,
    ArchivedMonth,
    Connection,
    Figure,
    MonthlyLedger,
    PartitionedMonth,
)
from persistence.schema import standing
from persistence.schema.partitions import end_of

# The manifest of an archived month of a ledger. It is written last, after its file was read back.
#
# Older versions wrote one manifest a month for all ledgers except the audit log. It is still read.

FORMAT = 1
FOLDER = "manifests"
MONTH = "month="
OF_A_MONTH = re.compile(r"month=\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """The archived file of a ledger's month, and the id of the database."""

    database: UUID
    month: date
    file: ArchivedMonth


def name_of(month: date, ledger: str) -> str:
    """Return the file name of the manifest of a ledger's month."""
    return f"{FOLDER}/{ledger}/{month:%Y-%m}.json"


def file_of(ledger: str, month: date) -> str:
    """Return the file name of a ledger's month. DuckDB and others read `month=` as a column."""
    return f"{ledger}/{MONTH}{month:%Y-%m}/{ledger}.parquet"


def write_manifest(place: FileStore, manifest: ArchiveManifest) -> None:
    """Write the manifest of a month's file to an archive."""
    place.write_json(
        name_of(manifest.month, manifest.file.ledger),
        {
            "format": FORMAT,
            "program_version": extras.version(),
            "schema_version": standing.NEEDED,
            "database": str(manifest.database),
            "month": f"{manifest.month:%Y-%m}",
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": [_file(manifest.file)],
        },
    )


def read_manifest(place: FileStore, month: date, ledger: str) -> ArchiveManifest | None:
    """Return the manifest of a ledger's month, or None if the archive has none."""
    for name in (name_of(month, ledger), _open_month(month)):
        manifests = _read(place, name, month)
        for manifest in manifests:
            if manifest.file.ledger == ledger:
                return manifest
        if manifests and name != _open_month(month):
            raise ArchiveFailed(f"{place.address(name)} is not of {ledger}")
    return None


def divide_months(place: FileStore, month: date) -> None:
    """Replace the manifest of a month of all ledgers, as in older archives, by one for each ledger."""
    manifests = _read(place, _open_month(month), month)
    for manifest in manifests:
        if not place.has(name_of(month, manifest.file.ledger)):
            write_manifest(place, manifest)
    if manifests:
        place.remove(_open_month(month))


def months_in(place: FileStore, ledger: str) -> list[date]:
    """Return the months in the archive that may contain a ledger, in order.

    Older manifests are for all ledgers, so a month may still lack this one.
    """
    return sorted({*_months(place, f"{FOLDER}/{ledger}"), *_months(place, FOLDER)})


def unnamed_files(place: FileStore, ledger: str) -> list[date]:
    """Return the months of a ledger, in order, that the archive should have but has no manifest of.

    They lie between other months, or their file exists: a run was killed, or its manifest was lost.
    """
    named = set(months_in(place, ledger))
    found = {_month_of(name[len(MONTH) :]) for name in place.folders(ledger) if OF_A_MONTH.fullmatch(name)}
    month, last = min(named, default=date.max), max(named, default=date.min)
    while month < last:
        found.add(month)
        month = end_of(month)
    return sorted(found - named)


def databases_in(place: FileStore) -> Iterator[tuple[date, UUID]]:
    """Yield the first archived month of each ledger, with the database id in its manifest."""
    for ledger in BY_NAME:
        for month in months_in(place, ledger)[:1]:
            if (manifest := read_manifest(place, month, ledger)) is not None:
                yield month, manifest.database


def _open_month(month: date) -> str:
    return f"{FOLDER}/{month:%Y-%m}.json"


def _months(place: FileStore, folder: str) -> Iterator[date]:
    for name in place.names(folder):
        if name.endswith(".json"):
            yield _month_of(name.removesuffix(".json"))


def _month_of(text: str) -> date:
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()


def _read(place: FileStore, name: str, month: date) -> list[ArchiveManifest]:
    """Return the manifests of a month's files, [] if there is none; raise ArchiveFailed if one is invalid."""
    document = place.read_json(name)
    if document is None:
        return []
    try:
        if document["format"] != FORMAT:
            raise ArchiveFailed(
                f"{place.url} was written by Tollkeeper {document['program_version']}: use that, or a newer one"
            )
        database = UUID(str(document["database"]))
        manifests = [
            ArchiveManifest(database, month, _stored_month(place, name, month, file))
            for file in document["files"]
        ]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchiveFailed(f"{place.address(name)} is not a manifest of Tollkeeper") from error
    if not manifests:
        raise ArchiveFailed(f"{place.address(name)} names no file")
    return manifests


def _file(stored: ArchivedMonth) -> dict[str, Any]:
    columns = {
        name: {"present": present, "sum": str(sum_)} for name, (present, sum_) in stored.figures.items()
    }
    return {
        "ledger": stored.ledger, "file": stored.file, "rows": stored.rows, "bytes": stored.bytes,
        "sha256": stored.sha256, "columns": columns,
    }  # fmt: skip


def _stored_month(place: FileStore, name: str, month: date, facts: Any) -> ArchivedMonth:
    """Return the month that the manifest `facts` describes; `ArchiveFailed` if ledger or file is wrong."""
    ledger, file = str(facts["ledger"]), str(facts["file"])
    if ledger not in BY_NAME:
        raise ArchiveFailed(
            f"{place.address(name)} is of {ledger!r}, which is no ledger: {', '.join(BY_NAME)}"
        )
    if file != (due := file_of(ledger, month)):
        raise ArchiveFailed(f"{place.address(name)} names the file {file!r}: that month's is {due}")
    columns = {
        name: (int(column["present"]), int(column["sum"])) for name, column in facts["columns"].items()
    }
    return ArchivedMonth(
        ledger, month, place.url, file, int(facts["rows"]), int(facts["bytes"]), str(facts["sha256"]), columns
    )  # fmt: skip


# A month of a ledger as Parquet, compressed by zstd; and what such a file holds, read back.
#
# Texts and documents are texts, moments are microseconds of UTC, all other numbers have 64 bits.

# Rows read at once as text: a group of rows in the file.
GROUP_BYTES = 32 << 20
COMPRESSION = "zstd"
READ_BYTES = 1 << 20


def write_parquet(
    rows: Iterator[bytes],
    columns: Mapping[str, str],
    sink: Any,
    grown: Callable[[int, int], object] = lambda _rows, _bytes: None,
) -> None:
    """Write rows, given as CSV, into a Parquet file; `columns` are their names and types.

    After each group of rows `grown` is called with the rows and bytes written so far.
    """
    arrow, csv, parquet = _libraries("pyarrow", "pyarrow.csv", "pyarrow.parquet")
    types = _types(arrow)
    schema = schema_of(columns)
    fields = {name: arrow.int64() if kind == MOMENT else types[kind] for name, kind in columns.items()}
    convert = csv.ConvertOptions(
        column_types=fields, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
        true_values=["t"], false_values=["f"],
    )  # fmt: skip
    parse = csv.ParseOptions(newlines_in_values=True)
    read = csv.ReadOptions(column_names=list(columns), block_size=GROUP_BYTES, use_threads=False)
    written = 0
    with parquet.ParquetWriter(sink, schema, compression=COMPRESSION) as writer:
        first = next(rows, b"")
        if not first:
            return
        source = io.BufferedReader(_Pieces(first, rows), READ_BYTES)
        with csv.open_csv(source, read_options=read, parse_options=parse, convert_options=convert) as batches:
            for batch in batches:
                writer.write_table(arrow.Table.from_batches([batch]).cast(schema))
                written += batch.num_rows
                grown(written, sink.tell())


def schema_of(columns: Mapping[str, str]) -> Any:
    (arrow,) = _libraries("pyarrow")
    types = _types(arrow)
    return arrow.schema([(name, types[kind]) for name, kind in columns.items()])


def unlike_parquet(schema: Any, columns: Mapping[str, str], needed: Collection[str]) -> str:
    """Return the first difference between the columns of the file `schema` and `columns`, or an empty text.

    Columns that are not in `needed` may be missing.
    """
    for column in schema_of(columns):
        places = schema.get_all_field_indices(column.name)
        if not places and column.name in needed:
            return f"has no column {column.name}"
        if len(places) > 1:
            return f"has {len(places)} columns {column.name}"
        if places and schema.field(places[0]).type != column.type:
            return f"has {schema.field(places[0]).type} in {column.name}, which is {column.type}"
    return ""


def figures(source: Any, columns: Mapping[str, str]) -> tuple[int, dict[str, Figure]]:
    """Return a file's number of rows, and for each column the number of non-null cells and their sum."""
    arrow, compute, parquet = _libraries("pyarrow", "pyarrow.compute", "pyarrow.parquet")
    file = parquet.ParquetFile(source)
    rows, sums = 0, dict.fromkeys(columns, (0, 0))
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rows += table.num_rows
        for name, kind in columns.items():
            cells = table.column(name)
            count, sum_ = sums[name]
            sums[name] = (
                count + len(cells) - cells.null_count,
                sum_ + _sum_column(arrow, compute, cells, kind),
            )
    return rows, sums


def _sum_column(arrow: Any, compute: Any, cells: Any, kind: str) -> int:
    """Return the sum of a column: of its numbers, or of digests of its texts."""
    if kind == TEXT:
        # Each distinct text is digested once.
        counted = compute.value_counts(cells.drop_null())
        return sum(_digest(text["values"]) * text["counts"] for text in counted.to_pylist())
    wide = compute.cast(cells.cast(arrow.int64()), arrow.decimal128(38, 0))
    return int(compute.sum(wide).as_py() or 0)


def _digest(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:15], 16)


def _types(arrow: Any) -> dict[str, Any]:
    return {
        INTEGER: arrow.int64(),
        MOMENT: arrow.timestamp("us", tz="UTC"),
        FLAG: arrow.bool_(),
        TEXT: arrow.string(),
    }


def _libraries(*names: str) -> list[Any]:
    return [importlib.import_module(name) for name in names]


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a readable file."""

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._unread = first
        self._pieces = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unread:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._unread = piece
        size = min(len(buffer), len(self._unread))
        buffer[:size], self._unread = self._unread[:size], self._unread[size:]
        return size


# How often a month is written again if it changes meanwhile.
TRIES_MAX = 3
# The size of a file is estimated from its first thousandth, with a factor for the error.
SURE_OF, SPARE = 1_000, 1.25


@dataclass(frozen=True, slots=True)
class OpenMonth:
    """A month that is not closed for some ledgers, with the reasons."""

    month: date
    ledgers: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class ArchiveRun:
    """The results of one run: rows moved into partitions, archived files, dropped tables, and open months."""

    moved: list[PartitionedMonth] = field(default_factory=list)
    files: list[ArchivedMonth] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    open: list[OpenMonth] = field(default_factory=list)


def archive(
    url: str,
    place: FileStore,
    today: date,
    before: date | None,
    *,
    audit_before: date | None = None,
    retention: Retention | None = None,
    drop_after: int | None = None,
    report: Callable[[str], object] = lambda _: None,
) -> ArchiveRun:
    """Archive the months whose retention is over, each ledger's oldest first, up to one that is not closed.

    `before` and `audit_before` (for the audit log) replace the configured retention. Tables of months that
    were archived at least `drop_after` days ago are dropped; None drops nothing. `report` is called with each
    month.
    """
    latest = months.latest(today)
    for option, day in (("--before", before), ("--audit-before", audit_before)):
        if day is not None and day > latest:
            raise ArchiveFailed(
                f"{option} is {latest} at the latest: rows come up to {months.GRACE_DAYS} days late"
            )
    kept, done, stopped = retention or Retention(), ArchiveRun(), dict[str, OpenMonth]()
    until = {
        ledger: (audit_before if ledger is AUDIT else before) or kept.before(ledger, today)
        for ledger in BY_NAME.values()
    }
    with months.connect_as_owner(url) as connection, translate_errors(place.url):
        database = months.identity(connection)
        done.moved += months.bring_in_rows(connection)
        due = _due(connection, until)
        if due:
            _refuse_others(place, database)
        for month, ledger in due:
            if ledger.name in stopped:
                continue
            if reasons := months.why_open(connection, ledger, month):
                stopped[ledger.name] = OpenMonth(month, (ledger.name,), tuple(reasons))
                continue
            report(f"{month:%Y-%m} {ledger.name}")
            done.files.append(_archive_month(connection, place, database, month, ledger))
        if drop_after is not None:
            done.dropped += _drop(connection, place, drop_after)
    done.open = _together(stopped)
    return done


def _due(connection: Connection, until: dict[MonthlyLedger, date | None]) -> list[tuple[date, MonthlyLedger]]:
    """Return the months to archive, of all ledgers in `until`, the oldest first.

    `until` is the day by which a month must have ended; None archives nothing of a ledger.
    """
    candidates = [
        (month, ledger)
        for ledger, before in until.items()
        if before is not None
        for month in months.months_before(connection, before, ledger)
    ]
    return sorted(candidates, key=lambda candidate: candidate[0])


def _together(stopped: dict[str, OpenMonth]) -> list[OpenMonth]:
    """Return the open months, the oldest first. Ledgers with the same month and reasons become one item."""
    alike: dict[tuple[date, tuple[str, ...]], list[str]] = {}
    for ledger, one in stopped.items():
        alike.setdefault((one.month, one.reasons), []).append(ledger)
    found = [OpenMonth(month, tuple(ledgers), reasons) for (month, reasons), ledgers in alike.items()]
    return sorted(found, key=lambda month: month.month)


def _refuse_others(place: FileStore, database: UUID) -> None:
    for month, whose in databases_in(place):
        _refuse_other(place, month, whose, database)


def _refuse_other(place: FileStore, month: date, whose: UUID, database: UUID) -> None:
    if whose != database:
        raise ArchiveFailed(f"{place.url} has {month:%Y-%m} of another database: archive into another place")


def _archive_month(
    connection: Connection, place: FileStore, database: UUID, month: date, ledger: MonthlyLedger
) -> ArchivedMonth:
    """Write the file of a ledger's month, then take its rows out of PostgreSQL; return the file.

    If the month changes meanwhile, its file is written again, `TRIES_MAX` times at most.
    """
    manifest = read_manifest(place, month, ledger.name)
    if manifest is not None:  # an older archive may have later months of another database
        _refuse_other(place, month, manifest.database, database)
    months.refuse_unlocked(connection)
    divide_months(place, month)
    for _ in range(TRIES_MAX):
        if manifest is None or not _holds(place, manifest.file):
            # A manifest must always be true, so it is deleted before its file.
            months.refuse_unlocked(connection)
            place.remove(name_of(month, ledger.name))
            manifest = ArchiveManifest(database, month, _store(connection, place, ledger, month))
            months.refuse_unlocked(connection)
            write_manifest(place, manifest)
        if months.cut_month(connection, manifest.file):
            return manifest.file
        manifest = None
    raise ArchiveFailed(f"{month:%Y-%m} changes while it is written: try again")


def _store(connection: Connection, place: FileStore, ledger: MonthlyLedger, month: date) -> ArchivedMonth:
    """Write a month of a ledger to an archive, and read it back.

    The lock is checked before each change, because another run may have archived the month meanwhile.
    """
    name, columns = file_of(ledger.name, month), months.columns_of(ledger)
    expected, most = months.about(connection, ledger, month), place.file_bytes_max

    def grown(written: int, size: int) -> None:
        if most is not None and (whole := outgrown(written, size, expected, most)):
            raise ArchiveFailed(
                f"{month:%Y-%m} {ledger.name} comes to {whole / 10**9:.1f} GB, and a file in a bucket has"
                f" {most / 10**9:.1f} GB at most: archive into a directory, such as --to /archive"
            )

    try:
        with (
            place.write_whole(name, lambda: months.refuse_unlocked(connection)) as sink,
            months.as_csv(connection, ledger, month) as pieces,
        ):
            write_parquet(pieces, columns, sink, grown)
    except ArchiveFailed:
        months.refuse_unlocked(connection)
        place.remove(name)
        raise
    size, digest = place.digest(name)
    with place.open(name) as source:
        count, sums = figures(source, columns)
    return ArchivedMonth(ledger.name, month, place.url, name, count, size, digest, sums)


def outgrown(written: int, size: int, expected: int, most: int) -> int:
    """Return the expected size in bytes of a file of `expected` rows if it exceeds `most`, else 0.

    `written` rows have `size` bytes. An estimate counts only if it exceeds `most` by the factor `SPARE`.
    """
    whole = size * max(written, expected) // written
    if size > most or (size >= most // SURE_OF and whole > most * SPARE):
        return whole
    return 0


def _holds(place: FileStore, file: ArchivedMonth) -> bool:
    """Return whether a file in an archive has the size and digest in its manifest."""
    return place.has(file.file) and place.digest(file.file) == (file.bytes, file.sha256)


def _drop(connection: Connection, place: FileStore, days: int) -> list[str]:
    """Drop the tables of months that were archived to this place at least `days` days ago.

    Raise `ArchiveFailed`, with nothing dropped, if a file has changed since.
    """
    here = [month for month in months.droppable(connection, days) if month.url == place.url]
    for month in here:
        if place.digest(month.file) != (month.bytes, month.sha256):
            raise ArchiveFailed(f"{month.url}/{month.file} is not what was archived: nothing is dropped")
    for month in here:
        months.drop_month(connection, month.ledger, month.month)
    return [f"{month.ledger} {month.month:%Y-%m}" for month in here]
