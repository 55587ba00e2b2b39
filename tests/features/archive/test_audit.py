"""Old months of the audit log go to an archive by themselves, when a person says so, and are read there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.errors import ArchiveFailed
from gateway.features.archive import archiving
from gateway.features.archive.archiving import ArchiveRun, archive
from gateway.features.archive.reading import RowFilter, prove, rows
from gateway.ops.storage import FileStore
from tests.connections import connected
from tests.features.archive.aging import Clones, clones, months_made
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "template"]

TODAY = date(2026, 6, 20)
# Before any month that the ledgers have.
NONE = date(2025, 1, 1)
ENTRY = """
INSERT INTO audit_log
    (actor, action, resource, resource_id, before, after, person, organization_id, created_at)
VALUES ('builtin:admin', 'change', 'plans', %s, '{"name": "a, \\"b\\"", "deep": [1, null]}', %s, %s, %s, %s)
RETURNING id"""
ALL = "SELECT id, resource_id, person, created_at FROM audit_log ORDER BY id"


@pytest.fixture
def old(clones: Clones) -> Iterator[str]:
    """A database with entries of four months, a second before and at the turn of each."""
    with clones() as url:
        months_made(url, "2026-04-01Z", 5)
        for number, month in enumerate((3, 4, 5, 6)):
            for day, second in ((1, 0), (28, 59)):
                at = datetime(2026, month, day, 0, 0, second, tzinfo=UTC)
                said = [str(number), '{"ends": null}' if day == 1 else None, "Ada" if number else None]
                rows_of(url, ENTRY, [*said, 7 if day == 1 else None, at])
        yield url


def archived(url: str, to: Path, before: date | None, *, drop: bool = False) -> ArchiveRun:
    return archive(url, FileStore(str(to)), TODAY, NONE, audit_before=before, drop_after=0 if drop else None)


def test_audit_log_is_archived_only_on_request_and_only_before_the_given_date(
    old: str, tmp_path: Path
) -> None:
    before = rows_of(old, ALL)
    assert archived(old, tmp_path, None).files == []
    assert rows_of(old, ALL) == before
    done = archived(old, tmp_path, date(2026, 5, 1))
    assert [(one.ledger, one.month, one.rows) for one in done.files] == [
        ("audit_log", date(2026, 3, 1), 2), ("audit_log", date(2026, 4, 1), 2),
    ]  # fmt: skip
    assert rows_of(old, ALL) == before[4:]
    assert archived(old, tmp_path, date(2026, 5, 1)).files == []
    assert archiving.months_in(FileStore(str(tmp_path)), "token_ledger") == []  # no month of the ledgers
    # What comes later has its place, and an id that nobody had.
    ((number,),) = rows_of(old, ENTRY, ["9", None, None, None, datetime.now(UTC)])
    assert number not in {row[0] for row in before}


def test_archived_audit_log_rows_equal_the_original_rows(old: str, tmp_path: Path) -> None:
    names = "id, actor, action, resource, resource_id, person, organization_id, created_at, before, after"
    with connected(old) as connection:
        found = connection.execute(f"SELECT {names} FROM audit_log ORDER BY id LIMIT 4".encode()).fetchall()
    archived(old, tmp_path, date(2026, 5, 1))
    asked: list[dict[str, Any]] = [
        dict(row) for row in rows(FileStore(str(tmp_path)), "audit-log", RowFilter())
    ]
    assert [tuple(row[name] for name in names.split(", ")) for row in asked] == found
    ours = rows(
        FileStore(str(tmp_path)), "audit-log", RowFilter({"organization_id": 7}, newest=True, limit=1)
    )
    assert [row["resource_id"] for row in ours] == ["1"]
    file = tmp_path / "audit_log" / "month=2026-03" / "audit_log.parquet"
    assert pq.read_table(file)["resource_id"].to_pylist() == ["0", "0"]


def test_changed_audit_log_archive_file_is_reported_and_no_audit_rows_are_dropped(
    old: str, tmp_path: Path
) -> None:
    archived(old, tmp_path, date(2026, 5, 1))
    proof = prove(old, FileStore(str(tmp_path)))
    assert (proof.files, proof.rows, proof.broken) == (2, 4, [])
    file = tmp_path / "audit_log" / "month=2026-04" / "audit_log.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    [broken] = prove(old, FileStore(str(tmp_path))).broken
    assert broken.endswith("is not what was archived")
    with pytest.raises(ArchiveFailed, match="nothing is dropped"):
        archived(old, tmp_path, None, drop=True)
    file.write_bytes(whole)
    done = archived(old, tmp_path, None, drop=True)
    assert done.dropped == ["audit_log 2026-03", "audit_log 2026-04"]
    assert rows_of(old, "SELECT to_regclass('audit_log_y2026m03_archived')") == [(None,)]


def test_audit_log_archiving_refuses_a_month_too_recent_to_be_complete(old: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveFailed, match="--audit-before is 2026-05-01 at the latest"):
        archived(old, tmp_path, date(2026, 6, 1))
