"""What an archive says it holds, a document a month: written last, so what it names was read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import Any
from uuid import UUID

from gateway.errors import ArchiveFailed
from gateway.ops.place import Place
from persistence.archive.cut import Stored
from persistence.archive.months import AUDIT, TOKENS
from persistence.schema import version as schema

FORMAT = 1
FOLDER = "manifests"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A month's files, one of each ledger, and of whose database they are."""

    database: UUID
    month: date
    files: Sequence[Stored]


def name_of(month: date, ledger: str = TOKENS.name) -> str:
    """Where the manifest is that names a month of a ledger: one for all, but for the audit log."""
    return f"{_folder(ledger)}/{month:%Y-%m}.json"


def file_of(ledger: str, month: date) -> str:
    """Where a month's rows of a ledger are: `month=` is read as a column by DuckDB and its like."""
    return f"{ledger}/month={month:%Y-%m}/{ledger}.parquet"


def write(place: Place, manifest: Manifest) -> None:
    """Say what the files of a month hold."""
    place.write_json(
        name_of(manifest.month, manifest.files[0].ledger),
        {
            "format": FORMAT,
            "program_version": version("tollkeeper"),
            "schema_version": schema.NEEDED,
            "database": str(manifest.database),
            "month": f"{manifest.month:%Y-%m}",
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": [_file(each) for each in manifest.files],
        },
    )


def read(place: Place, month: date, ledger: str = TOKENS.name) -> Manifest | None:
    """What an archive says of a month of a ledger; None where it has none of it."""
    name = name_of(month, ledger)
    found = place.read_json(name)
    if found is None:
        return None
    try:
        if found["format"] != FORMAT:
            raise ArchiveFailed(
                f"{place.url} was written by Tollkeeper {found['program_version']}: use that, or a newer one"
            )
        files = [_stored(place, month, each) for each in found["files"]]
        return Manifest(UUID(found["database"]), month, files)
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveFailed(f"{place.url}/{name} is not a manifest of Tollkeeper") from error


def months(place: Place, ledger: str = TOKENS.name) -> list[date]:
    """The months that an archive has a manifest of, in order."""
    there = place.names(_folder(ledger))
    names = [name.removesuffix(".json") for name in there if name.endswith(".json")]
    return [datetime.strptime(name, "%Y-%m").replace(tzinfo=UTC).date() for name in names]


def _folder(ledger: str) -> str:
    return f"{FOLDER}/{ledger}" if ledger == AUDIT.name else FOLDER


def _file(stored: Stored) -> dict[str, Any]:
    columns = {
        name: {"present": present, "sum": str(sum_)} for name, (present, sum_) in stored.figures.items()
    }
    return {
        "ledger": stored.ledger, "file": stored.file, "rows": stored.rows, "bytes": stored.bytes,
        "sha256": stored.sha256, "columns": columns,
    }  # fmt: skip


def _stored(place: Place, month: date, found: Any) -> Stored:
    columns = {name: (int(each["present"]), int(each["sum"])) for name, each in found["columns"].items()}
    return Stored(
        str(found["ledger"]), month, place.url, str(found["file"]), int(found["rows"]), int(found["bytes"]),
        str(found["sha256"]), columns,
    )  # fmt: skip
