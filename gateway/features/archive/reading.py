"""Rows of archived months in the form of their ledgers' lists, with the same filters and fields.

For one account, its movements are sorted by seq, as in a ledger, so rows of all months are merged. Otherwise
months follow each other, with the accounts of each month sorted by seq. Calls are sorted by time. A file is
read only if its SHA-256 is that in its manifest and it has rows of its ledger, because either may be foreign.
"""

from __future__ import annotations

import heapq
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import chain, islice
from typing import Any
from uuid import UUID

from gateway.core.accounts.administration import Row
from gateway.core.accounts.call_facts import SEPARATOR
from gateway.core.billing.money import ONE_NANO
from gateway.core.billing.price_book import KINDS
from gateway.core.text import read_json
from gateway.errors import ArchiveFailed
from gateway.features.archive import archiving
from gateway.ops.storage import FileStore, translate_errors
from persistence.archive import months
from persistence.archive.months import (
    AUDIT,
    BY_NAME,
    CALLS,
    CREDITS,
    SPENDS,
    TOKENS,
    ArchivedMonth,
    Connection,
    MonthlyLedger,
    MovementRun,
    archived,
    columns_of,
    contradictions,
    read_kept_runs,
)
from persistence.schema.partitions import end_of

# The ledger of each list of the Admin API.
LEDGERS: Mapping[str, MonthlyLedger] = {
    "token-ledger": TOKENS, "credit-transactions": CREDITS, "feature-usage": SPENDS, "calls": CALLS,
    "audit-log": AUDIT,
}  # fmt: skip
# A row, and its file.
_Found = tuple[dict[str, Any], ArchivedMonth]
SAID_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A selection of rows: required values by column, and times from `since` up to before `until`."""

    filters: Mapping[str, str | int | bool] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    newest: bool = False
    limit: int = 100


def rows(
    place: FileStore,
    name: str,
    asked: RowFilter,
    said: Callable[[str], object] = lambda _: None,
    render: Callable[[Row], Row] = dict,
) -> list[Row]:
    """Return the rows of a list from the archived months, up to the limit.

    `said` is called with a message about missing months. `render` converts each row; a row for which it
    raises `ValueError` is reported as damage.
    """
    ledger = LEDGERS[name]
    unknown = sorted(asked.filters.keys() - ledger.table.columns.keys())
    if unknown:
        raise ArchiveFailed(f"an archive has no {unknown[0]} of {name}: ask by another")
    shown = []
    for row, file in islice(_selected_rows(place, ledger, asked, said), asked.limit):
        with translate_errors(place.url), _translate_reading(place, file):
            shown.append(render(_render_row(row, ledger)))
    return shown


def _selected_rows(
    place: FileStore, ledger: MonthlyLedger, asked: RowFilter, report: Callable[[str], object]
) -> Iterator[_Found]:
    """Yield the selected rows of all months in order, each with its file."""
    with translate_errors(place.url):
        if lacking := [
            month for month in archiving.unnamed_files(place, ledger.name) if _touches(month, asked)
        ]:
            report(_without_manifest(place, ledger, lacking))
        there = archiving.months_in(place, ledger.name)
        if not there and next(archiving.databases_in(place), None) is None:
            raise ArchiveFailed(f"{place.url} is no archive: there is no manifest of any ledger")
        months = [month for month in there if _touches(month, asked)]
        files = [_file(place, ledger, month) for month in (reversed(months) if asked.newest else months)]
        parts = [_rows_of_month(place, file, ledger, asked) for file in files if file is not None]
        in_order: Iterable[_Found] = chain.from_iterable(parts)
        if ledger.kind and ledger.owner in asked.filters:
            in_order = heapq.merge(*parts, key=lambda one: int(one[0]["seq"]), reverse=asked.newest)
        yield from in_order


def archived_calls(
    url: str, report: Callable[[str], object]
) -> Callable[[int, datetime, datetime], Iterator[Mapping[str, Any]]]:
    """Return a function that yields an organization's archived calls between two times, in their order."""
    place = FileStore(url)

    def read(organization_id: int, since: datetime, until: datetime) -> Iterator[Mapping[str, Any]]:
        asked = RowFilter({"organization_id": organization_id}, since, until)
        for row, _ in _selected_rows(place, CALLS, asked, report):
            for name in ("tools", "tags", "groups"):
                if row.get(name) is not None:
                    row[name] = read_json(row[name])
            yield row

    return read


def _touches(month: date, asked: RowFilter) -> bool:
    begins, ends = (datetime.combine(day, time(), UTC) for day in (month, end_of(month)))
    return (asked.since is None or asked.since < ends) and (asked.until is None or begins < asked.until)


def _without_manifest(place: FileStore, ledger: MonthlyLedger, months: list[date]) -> str:
    first = place.address(archiving.name_of(months[0], ledger.name))
    more = f", and {len(months) - 1} more like it" if months[1:] else ""
    return f"{months[0]:%Y-%m} is left out, for {first} is not there{more}: see `tollkeeper archive --prove`"


def _file(place: FileStore, ledger: MonthlyLedger, month: date) -> ArchivedMonth | None:
    """Return the file of a ledger's month by its manifest, or None without a manifest."""
    manifest = archiving.read_manifest(place, month, ledger.name)
    return None if manifest is None else manifest.file


@contextmanager
def _translate_reading(place: FileStore, file: ArchivedMonth) -> Iterator[None]:
    """Turn errors of reading an archived file, within this context, into a one-line `ArchiveFailed`."""
    try:
        yield
    except (ArithmeticError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:SAID_CHARS_MAX]
        raise ArchiveFailed(f"{place.address(file.file)} is not of {file.ledger}: {said}") from error


def _rows_of_month(
    place: FileStore, file: ArchivedMonth, ledger: MonthlyLedger, asked: RowFilter
) -> Iterator[_Found]:
    """Yield the selected rows of a month in order, one row group of the file at a time."""
    dataset: Any = importlib.import_module("pyarrow.dataset")
    wanted, order = _condition(dataset, ledger, asked), -1 if asked.newest else 1
    with translate_errors(place.url):
        if place.digest(file.file) != (file.bytes, file.sha256):
            raise ArchiveFailed(
                f"{place.address(file.file)} is not what was archived: its manifest says otherwise"
            )
        columns, needed = (
            columns_of(ledger),
            [column.name for column in ledger.table.columns if not column.nullable],
        )
        schema = archiving.schema_of(columns)
        with _translate_reading(place, file):
            fragment = place.fragment(file.file, dataset.ParquetFileFormat())
            if reason := archiving.unlike_parquet(fragment.physical_schema, columns, needed):
                raise ValueError(f"it {reason}")
            if fragment.metadata.num_rows != file.rows:
                raise ValueError(f"it has {fragment.metadata.num_rows} rows, by its manifest {file.rows}")
            groups = fragment.split_by_row_group(wanted, schema=schema)[::order]
        for group in groups:
            with _translate_reading(place, file):
                table = group.to_table(schema=schema, filter=wanted, use_threads=False)
                if lacking := [name for name in needed if table.column(name).null_count]:
                    raise ValueError(f"a row of it has no {lacking[0]}")
                rows = table.to_pylist()[::order]
            yield from ((row, file) for row in rows)


def _condition(dataset: Any, ledger: MonthlyLedger, asked: RowFilter) -> Any:
    """Return the filter of rows for PyArrow, None if all rows are wanted."""
    at = dataset.field(ledger.at.strip('"'))
    tests = [dataset.field(name) == value for name, value in asked.filters.items()]
    tests += [at >= asked.since] if asked.since is not None else []
    tests += [at < asked.until] if asked.until is not None else []
    whole = None
    for test in tests:
        whole = test if whole is None else whole & test
    return whole


def _render_row(row: dict[str, Any], ledger: MonthlyLedger) -> Row:
    """Return a row of an archived file in the form that the ledger's list in the Admin API has."""
    for name in ("metadata", "tools", "tags", "groups", "substituted_by", "before", "after"):
        if row.get(name) is not None:
            row[name] = read_json(row[name])
    if ledger is CREDITS:
        row["credits_exact"] = row["credits_used"] - row["carried"] * ONE_NANO
    elif ledger is SPENDS:
        row["cost"] = row["usage_amount"] * ONE_NANO if row["in_money"] else None
    elif ledger is AUDIT:
        row["token"] = None
    elif ledger is CALLS:
        unknown = row["unknown_usage"]
        told_of = {} if unknown is None else {"unknown": unknown}
        row["usage"] = {kind: row[kind] for kind in KINDS} | {"tools": row["tools"] or {}} | told_of
        row["tags"], row["groups"] = row.get("tags") or {}, row.get("groups") or []
        row["cost"] = None if row["cost"] is None else row["cost"] * ONE_NANO
        saved = row.get("saved")
        row["saved"] = None if saved is None else saved * ONE_NANO
        row |= {name: row.get(name) for name in ("model_asked", "substituted_by")}
        row["api_key_id"] = row["api_key_id"] or None
        row["unpriced"] = row["unpriced"].split(SEPARATOR) if row["unpriced"] else []
        # A file has ids. Their names are in the database.
        row["run"], kind, refuser = None, row.get("refused_kind"), row.get("refused_by")
        row["refused_by"] = None if kind is None else {"kind": kind, "id": refuser, "name": ""}
    return row


# `tollkeeper archive --prove`: that an archive and its database are one ledger, movement by movement.
#
# Every file is read whole. Each movement in it must be in PostgreSQL, as a row that stayed or in the one run
# that stands for it. PostgreSQL's own proofs then chain these rows and runs with what came after the cut.

NAMED_MAX = 100
BATCH_ROWS = 65_536
# By kind of account: the columns of a movement's amount, a function for it, and the column of the balance.
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
class ArchiveProof:
    """The result of a proof: files and rows read, movements compared, and contradictions (`broken`).

    `elsewhere` are the URLs of other archives of this database, which need their own proof.
    """

    files: int = 0
    rows: int = 0
    movements: int = 0
    elsewhere: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def prove(url: str, place: FileStore) -> ArchiveProof:
    """Compare the archived files with their manifests and with the rows still in the database."""
    proof = ArchiveProof()
    with months.connect_as_owner(url) as connection, translate_errors(place.url):
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


def _differs(place: FileStore, month: ArchivedMonth, database: UUID) -> str:
    """Return how an archived file, its manifest and the database `database` differ, or an empty text."""
    manifest = archiving.read_manifest(place, month.month, month.ledger)
    if manifest is None:
        return "has no manifest"
    if manifest.database != database:
        return "is of another database, by its manifest"
    named = manifest.file
    if (named.file, named.rows, named.bytes, named.sha256) != (
        month.file,
        month.rows,
        month.bytes,
        month.sha256,
    ):
        return "is another one by its manifest than by the database"
    if not place.has(month.file):
        return "is not there"
    return "" if place.digest(month.file) == (month.bytes, month.sha256) else "is not what was archived"


def _movements(
    connection: Connection, place: FileStore, ledger: MonthlyLedger, month: ArchivedMonth, proof: ArchiveProof
) -> None:
    """Compare each movement in a file with PostgreSQL; note up to `NAMED_MAX` contradictions in `proof`."""
    with connection.transaction(), place.open(month.file) as source:
        rows = _counted(_read(source, ledger), proof)
        for reason in compare(rows, read_kept_runs(connection, ledger, month.month)):
            proof.broken.append(f"{ledger.kind}:{reason} ({month.file})")
            if len(proof.broken) > NAMED_MAX:
                return


def _read(source: Any, ledger: MonthlyLedger) -> Iterator[MovementRun]:
    """Yield the movements of a file in file order: by account, then seq."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    columns, amount, balance = MOVED[ledger.kind]
    wanted = [ledger.owner, "seq", "epoch", *columns, balance]
    for batch in parquet.ParquetFile(source).iter_batches(BATCH_ROWS, columns=wanted):
        for row in batch.to_pylist():
            seq = int(row["seq"])
            yield MovementRun(int(row[ledger.owner]), seq, seq, int(row["epoch"]), amount(row), row[balance])


def _counted(rows: Iterable[MovementRun], proof: ArchiveProof) -> Iterator[MovementRun]:
    for row in rows:
        proof.movements += 1
        yield row


def compare(rows: Iterator[MovementRun], stands: Iterable[MovementRun]) -> Iterator[str]:
    """Yield contradictions between the archived movements `rows` and their sums (runs) in PostgreSQL.

    Each row must belong to one run, and each run must have all its rows.
    """
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
