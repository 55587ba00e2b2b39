"""A backup is restored beside the database and checked; what was taken and proven is noted and told."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.errors import BackupFailed
from gateway.ops import backup, proving
from persistence import engine as engines
from persistence.keeper import watch
from persistence.schema import migrate
from tests.ops.test_backup import NOW
from tests.persistence.scenario import rows_of
from tests.tree import ROOT

_NOTES = "SELECT file, proved_at IS NOT NULL FROM backup_run ORDER BY id"
_PROOFS = "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'tollkeeper_proof_')"


@pytest.fixture
def filled(database: str) -> str:
    migrate.upgrade(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (name) VALUES ('kept')")
    return database


async def test_ages_are_told_once_there_is_something_to_tell(filled: str, tmp_path: Path) -> None:
    engine = engines.create(filled)
    try:
        assert await watch.backed_up(engine) == {}
        file, manifest = backup.back_up(filled, tmp_path, NOW)
        number = proving.note(filled, file, manifest)
        assert await watch.backed_up(engine) == {"backup_timestamp_seconds": NOW.timestamp()}
        await asyncio.to_thread(proving.prove, filled, file, number)
        told = await watch.backed_up(engine)
        assert told.keys() == {"backup_timestamp_seconds", "backup_proof_timestamp_seconds"}
    finally:
        await engine.dispose()
    assert rows_of(filled, _NOTES) == [(file.name, True)]
    assert rows_of(filled, _PROOFS) == [(0,)]


def test_a_backup_that_cannot_be_restored_proves_nothing_and_leaves_nothing(
    filled: str, tmp_path: Path
) -> None:
    file, manifest = backup.back_up(filled, tmp_path, NOW)
    number = proving.note(filled, file, manifest)
    whole = file.read_bytes()
    file.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(BackupFailed, match="is damaged"):
        proving.prove(filled, file, number)
    assert rows_of(filled, _NOTES) == [(file.name, False)]
    assert rows_of(filled, _PROOFS) == [(0,)]


def test_an_owner_who_may_make_no_database_is_told_what_to_grant(filled: str, tmp_path: Path) -> None:
    role = f"owner_{os.getpid()}"
    file, manifest = backup.back_up(filled, tmp_path, NOW)
    number = proving.note(filled, file, manifest)
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute(f"GRANT UPDATE, SELECT ON backup_run TO {role}".encode())
        try:
            with pytest.raises(BackupFailed, match="CREATEDB"):
                proving.prove(filled.replace("postgres@", f"{role}@"), file, number)
        finally:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())


def test_the_oldest_go_and_nothing_that_is_no_backup(tmp_path: Path) -> None:
    names = [f"tollkeeper-{NOW + timedelta(days=day):%Y%m%dT%H%M%SZ}.tar" for day in range(4)]
    for name in (*names, "tollkeeper-mine.tar", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in proving.drop_older(tmp_path, 2)] == names[:2]
    assert {path.name for path in tmp_path.iterdir()} == {*names[2:], "tollkeeper-mine.tar", "notes.txt"}
    assert proving.drop_older(tmp_path, 2) == []


def test_the_command_takes_proves_and_keeps(filled: str, tmp_path: Path) -> None:
    old = tmp_path / "tollkeeper-20200101T000000Z.tar"
    old.touch()
    words = ("backup", "--to", str(tmp_path), "--database-url", filled, "--prove", "--keep", "1", "--json")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["proved"], told["dropped"]) == (True, [str(old)])
    assert [path.name for path in tmp_path.glob("*.tar")] == [Path(told["file"]).name]
    assert rows_of(filled, _NOTES) == [(Path(told["file"]).name, True)]
