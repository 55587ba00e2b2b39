"""What an archive holds, a document a month of a ledger: written last, so what it names was read back.

Programs of before wrote one a month for all ledgers but the audit log. It is read as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import Any
from uuid import UUID

from gateway.errors import ArchiveFailed
from gateway.ops.place import Place
from persistence.archive.cut import Stored
from persistence.archive.months import BY_NAME, end_of
from persistence.schema import version as schema

FORMAT = 1
FOLDER = "manifests"
MONTH = "month="
OF_A_MONTH = re.compile(r"month=\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The file of a month of a ledger, and of whose database it is."""

    database: UUID
    month: date
    file: Stored


def name_of(month: date, ledger: str) -> str:
    """Where the manifest of a month of a ledger is."""
    return f"{FOLDER}/{ledger}/{month:%Y-%m}.json"


def file_of(ledger: str, month: date) -> str:
    """Where a month's rows of a ledger are: `month=` is read as a column by DuckDB and its like."""
    return f"{ledger}/{MONTH}{month:%Y-%m}/{ledger}.parquet"


def write(place: Place, manifest: Manifest) -> None:
    """Say what the file of a month holds."""
    place.write_json(
        name_of(manifest.month, manifest.file.ledger),
        {
            "format": FORMAT,
            "program_version": version("tollkeeper"),
            "schema_version": schema.NEEDED,
            "database": str(manifest.database),
            "month": f"{manifest.month:%Y-%m}",
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": [_file(manifest.file)],
        },
    )


def read(place: Place, month: date, ledger: str) -> Manifest | None:
    """What an archive says of a month of a ledger; None where it has none of it."""
    for name in (name_of(month, ledger), _of_all(month)):
        found = _read(place, name, month)
        for each in found:
            if each.file.ledger == ledger:
                return each
        if found and name != _of_all(month):
            raise ArchiveFailed(f"{place.address(name)} is not of {ledger}")
    return None


def divide(place: Place, month: date) -> None:
    """Have a manifest of each ledger in place of one of all of them, if there is such."""
    found = _read(place, _of_all(month), month)
    for each in found:
        if not place.has(name_of(month, each.file.ledger)):
            write(place, each)
    if found:
        place.remove(_of_all(month))


def months(place: Place, ledger: str) -> list[date]:
    """The months that an archive may have a ledger of, in order: a manifest for all may leave one out."""
    return sorted({*_months(place, f"{FOLDER}/{ledger}"), *_months(place, FOLDER)})


def unnamed(place: Place, ledger: str) -> list[date]:
    """Months that an archive should have of a ledger, and has no manifest of, in order.

    They are between others; or their file is there, of a run that was killed or whose manifest was lost.
    """
    named = set(months(place, ledger))
    found = {_month(name[len(MONTH) :]) for name in place.folders(ledger) if OF_A_MONTH.fullmatch(name)}
    month, last = min(named, default=date.max), max(named, default=date.min)
    while month < last:
        found.add(month)
        month = end_of(month)
    return sorted(found - named)


def databases(place: Place) -> Iterator[tuple[date, UUID]]:
    """Whose months an archive has: the first one of each ledger says it."""
    for ledger in BY_NAME:
        for month in months(place, ledger)[:1]:
            if (found := read(place, month, ledger)) is not None:
                yield month, found.database


def _of_all(month: date) -> str:
    return f"{FOLDER}/{month:%Y-%m}.json"


def _months(place: Place, folder: str) -> Iterator[date]:
    for name in place.names(folder):
        if name.endswith(".json"):
            yield _month(name.removesuffix(".json"))


def _month(text: str) -> date:
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()


def _read(place: Place, name: str, month: date) -> list[Manifest]:
    found = place.read_json(name)
    if found is None:
        return []
    try:
        if found["format"] != FORMAT:
            raise ArchiveFailed(
                f"{place.url} was written by Tollkeeper {found['program_version']}: use that, or a newer one"
            )
        database = UUID(str(found["database"]))
        manifests = [Manifest(database, month, _stored(place, name, month, each)) for each in found["files"]]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchiveFailed(f"{place.address(name)} is not a manifest of Tollkeeper") from error
    if not manifests:
        raise ArchiveFailed(f"{place.address(name)} names no file")
    return manifests


def _file(stored: Stored) -> dict[str, Any]:
    columns = {
        name: {"present": present, "sum": str(sum_)} for name, (present, sum_) in stored.figures.items()
    }
    return {
        "ledger": stored.ledger, "file": stored.file, "rows": stored.rows, "bytes": stored.bytes,
        "sha256": stored.sha256, "columns": columns,
    }  # fmt: skip


def _stored(place: Place, name: str, month: date, found: Any) -> Stored:
    """What a manifest says of a file. It names one of ours: no other is read, nor written."""
    ledger, file = str(found["ledger"]), str(found["file"])
    if ledger not in BY_NAME:
        raise ArchiveFailed(
            f"{place.address(name)} is of {ledger!r}, which is no ledger: {', '.join(BY_NAME)}"
        )
    if file != (due := file_of(ledger, month)):
        raise ArchiveFailed(f"{place.address(name)} names the file {file!r}: that month's is {due}")
    columns = {name: (int(each["present"]), int(each["sum"])) for name, each in found["columns"].items()}
    return Stored(
        ledger, month, place.url, file, int(found["rows"]), int(found["bytes"]), str(found["sha256"]), columns
    )  # fmt: skip
