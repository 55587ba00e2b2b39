"""An archive and its database prove each other: whatever is changed on either side is named."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.cli.main import run
from gateway.errors import ArchiveFailed
from gateway.features.archive.reading import ArchiveProof, compare, prove
from gateway.ops.storage import FileStore
from persistence.archive.months import MovementRun
from tests.connections import connected
from tests.features.archive.aging import LEDGERS, Aging, clones, old
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "old", "template"]


def moved(owner: int, seq: int, amount: int, balance: int | None) -> MovementRun:
    return MovementRun(owner, seq, seq, 1, amount, balance)


FILE = (moved(1, 1, 9, 9), moved(1, 2, -2, 7), moved(1, 3, -3, 4), moved(2, 5, 1, 1))
STANDS = (moved(1, 1, 9, 9), MovementRun(1, 2, 3, 1, -5, 4), moved(2, 5, 1, 1))


def test_archive_proof_finds_no_difference_if_archived_rows_match_the_database() -> None:
    assert list(compare(iter(FILE), STANDS)) == []


@pytest.mark.parametrize(
    ("rows", "stands", "said"),
    [
        (FILE[:1] + FILE[2:], STANDS, "1 from 2 to 3: 1 movements are in the archive"),
        (FILE, STANDS[1:], "1 at 1: nothing stands for it in PostgreSQL"),
        (FILE, STANDS[:2], "2 at 5: nothing stands for it in PostgreSQL"),
        (FILE[:3], STANDS, "2 from 5 to 5: 0 movements are in the archive"),
        (
            FILE,
            (STANDS[0], replace(STANDS[1], amount=-4), STANDS[2]),
            "1 from 2 to 3: the archive comes to -5",
        ),
        (
            FILE,
            (STANDS[0], replace(STANDS[1], balance=5), STANDS[2]),
            "1 from 2 to 3: the archive comes to -5",
        ),
        (FILE, (*STANDS[:2], replace(STANDS[2], epoch=2)), "2 from 5 to 5: the archive comes to 1"),
    ],
)
def test_archive_proof_describes_the_difference_of_an_archived_row_from_the_database(
    rows: tuple[MovementRun, ...], stands: tuple[MovementRun, ...], said: str
) -> None:
    (found,) = compare(iter(rows), stands)
    assert found.startswith(said)


async def proved(old: Aging) -> ArchiveProof:
    return await asyncio.to_thread(prove, old.url, FileStore(str(old.root)))


@contextmanager
def changed(url: str, change: str, back: str) -> Iterator[None]:
    """Have rows be otherwise, as nobody of ours could."""
    with connected(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        assert connection.execute(change.encode()).rowcount > 0
        try:
            yield
        finally:
            connection.execute(back.encode())


# What is changed in PostgreSQL, how it is undone, and what is said of it.
CHANGES = (
    (
        "UPDATE archived_run SET amount = amount + 1",
        "UPDATE archived_run SET amount = amount - 1",
        "comes to",
    ),
    (
        "UPDATE token_ledger SET seq = seq + 100000 WHERE created_at < '2026-02-01'",
        "UPDATE token_ledger SET seq = seq - 100000 WHERE seq > 100000",
        "nothing stands for it",
    ),
    (
        "UPDATE archived_month SET rows = rows + 1 WHERE ledger = 'call'",
        "UPDATE archived_month SET rows = rows - 1 WHERE ledger = 'call'",
        "another one by its manifest",
    ),
    (
        "UPDATE token_ledger SET total_remaining = total_remaining + 1 WHERE created_at > '2026-04-01'",
        "UPDATE token_ledger SET total_remaining = total_remaining - 1 WHERE created_at > '2026-04-01'",
        "breaks",
    ),
)


async def test_archive_proof_reports_any_later_change_in_the_database_or_the_archive(old: Aging) -> None:
    with pytest.raises(ArchiveFailed, match="nothing of this database was archived"):
        await proved(old)
    done = await old.archive()
    proof = await proved(old)
    movements = sum(one.rows for one in done.files if one.ledger in LEDGERS)
    assert (proof.broken, proof.elsewhere) == ([], [])
    assert (proof.files, proof.movements) == (len(done.files), movements)
    assert movements > 0
    for change, back, said in CHANGES:
        with changed(old.url, change, back):
            assert any(said in one for one in (await proved(old)).broken), (change, said)
    assert (await proved(old)).broken == []
    tokens = next(one for one in done.files if one.ledger == "token_ledger")
    file, manifest = old.root / tokens.file, old.root / f"manifests/token_ledger/{tokens.month:%Y-%m}.json"
    whole, says = file.read_bytes(), manifest.read_text()
    file.write_bytes(whole[:-1] + b"x")
    assert (await proved(old)).broken == [f"{tokens.file} is not what was archived"]
    file.unlink()
    assert (await proved(old)).broken == [f"{tokens.file} is not there"]
    file.write_bytes(whole)
    manifest.unlink()
    assert f"{tokens.file} has no manifest" in (await proved(old)).broken
    manifest.write_text(says)
    _write_otherwise(old, file, manifest, tokens.file)
    assert any("the archive comes to" in one for one in (await proved(old)).broken)


def _write_otherwise(old: Aging, file: Path, manifest: Path, name: str) -> None:
    """Have a file with another amount, and everybody say that it was always so."""
    table = pq.read_table(file)
    amounts = table["amount"].to_pylist()
    amounts[0] += 1
    at = table.column_names.index("amount")
    pq.write_table(table.set_column(at, "amount", pa.array(amounts, pa.int64())), file)
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    said = json.loads(manifest.read_text())
    for one in said["files"]:
        if one["file"] == name:
            one["bytes"], one["sha256"] = size, digest
    manifest.write_text(json.dumps(said))
    with connected(old.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE archived_month SET bytes = %s, sha256 = %s WHERE file = %s", (size, digest, name)
        )


async def test_archive_prove_command_reports_whether_archive_and_database_match(
    old: Aging, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = str(old.root / "other")
    await old.archive()
    rows_of(old.url, "UPDATE archived_month SET url = %s WHERE ledger = 'call' RETURNING 1", [elsewhere])
    arguments = ["archive", "--to", str(old.root), "--database-url", old.url, "--prove"]
    assert await _status(arguments) == 0
    said = capsys.readouterr().out
    assert "the archive and the database agree" in said
    assert f"other months are in {elsewhere}" in said
    assert await _status([*arguments, "--drop"]) == 2
    with changed(old.url, *CHANGES[0][:2]):
        assert await _status([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["broken"]


async def _status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(run, arguments)
    return int(ended.value.code or 0)
