"""A backup is restored beside the database and checked; what was taken and proven is noted and told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from gateway.errors import BackupFailed
from gateway.features.backup import taking
from gateway.features.backup.command import backup as command
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import back_up
from persistence import backup
from persistence import backup as backups
from persistence import engine as engines
from persistence.schema import migrate
from persistence.schema import standing as schema
from tests.connections import connected
from tests.features.backup.test_taking import NOW
from tests.persistence.scenario import rows_of
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

_NOTES = "SELECT file, proved_at IS NOT NULL FROM backup_run ORDER BY id"
_PROOFS = "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'tollkeeper_proof_')"

# Whoever brings it back into a database to prove it waits until it is told to end.
_SLOW = """
CREATE FUNCTION taken(of integer) RETURNS boolean LANGUAGE sql AS $$
SELECT CASE WHEN starts_with(current_database(), 'tollkeeper_proof_')
            THEN pg_sleep(600) IS NULL ELSE true END $$;
CREATE TABLE slow (of integer CHECK (public.taken(of)));
INSERT INTO slow VALUES (1)"""
_SLEEPING = """
SELECT count(*) FROM pg_stat_activity
 WHERE starts_with(datname, 'tollkeeper_proof_') AND wait_event = 'PgSleep'"""


@pytest.fixture
def filled(database: str) -> str:
    migrate.upgrade(database)
    with connected(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (name) VALUES ('kept')")
    return database


async def test_backup_age_metrics_appear_after_the_first_backup_and_the_first_proof(
    filled: str, tmp_path: Path
) -> None:
    engine = engines.create(filled)
    try:
        missing = await backup.backed_up(engine)
        assert missing.keys() == {"backup_missing_seconds"}
        assert missing["backup_missing_seconds"]
        file, manifest = back_up(filled, Folder(tmp_path), NOW)
        number = taking.note(filled, file, manifest)
        taken = {"backup_missing_seconds": 0.0, "backup_timestamp_seconds": NOW.timestamp()}
        assert await backup.backed_up(engine) == taken
        await asyncio.to_thread(taking.prove, filled, Folder(tmp_path), file, number)
        told = await backup.backed_up(engine)
        assert told.keys() == taken.keys() | {"backup_proof_timestamp_seconds"}
    finally:
        await engine.dispose()
    assert rows_of(filled, _NOTES) == [(file.name, True)]
    assert rows_of(filled, _PROOFS) == [(0,)]


def test_backup_proof_of_a_damaged_file_fails_and_removes_the_temporary_database(
    filled: str, tmp_path: Path
) -> None:
    file, manifest = back_up(filled, Folder(tmp_path), NOW)
    number = taking.note(filled, file, manifest)
    path = Path(file.address)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(BackupFailed, match="is damaged"):
        taking.prove(filled, Folder(tmp_path), file, number)
    assert rows_of(filled, _NOTES) == [(file.name, False)]
    assert rows_of(filled, _PROOFS) == [(0,)]


def test_backup_proof_by_a_database_owner_without_createdb_is_refused_naming_createdb(
    filled: str, tmp_path: Path
) -> None:
    role = f"owner_{os.getpid()}"
    file, manifest = back_up(filled, Folder(tmp_path), NOW)
    number = taking.note(filled, file, manifest)
    with connected(filled, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute(f"GRANT UPDATE, SELECT ON backup_run TO {role}".encode())
        try:
            url = filled.replace("postgres@", f"{role}@")
            with pytest.raises(BackupFailed, match="CREATEDB"):
                taking.prove(url, Folder(tmp_path), file, number)
            connection.execute(f"GRANT SELECT ON alembic_version TO {role}".encode())
            with pytest.raises(BackupFailed, match="CREATEDB"):
                taking.refuse_unless_provable(url)
        finally:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())


def test_backup_with_proof_on_an_old_schema_is_refused_before_any_file_is_written(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with connected(filled, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (schema.KNOWN[-2],))
    with pytest.raises(
        BackupFailed, match=f"{schema.KNOWN[-2]}, {schema.NEEDED} is needed: run tollkeeper mig"
    ):
        command(to=str(tmp_path), database_url=filled, prove=True)
    assert list(tmp_path.glob("*.tar")) == []
    command(to=str(tmp_path), database_url=filled)
    assert len(list(tmp_path.glob("*.tar"))) == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_failed_backup_proof_keeps_the_last_proven_and_the_new_backup_and_deletes_the_rest(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    monkeypatch.chdir(tmp_path)
    proven, *later = [f"tollkeeper-202001{day:02}T000000Z.tar" for day in range(1, 5)]
    for name in (proven, *later):
        (tmp_path / name).touch()
    noted = "INSERT INTO backup_run (file, taken_at, bytes, sha256, proved_at) VALUES (%s, %s, 1, %s, now())"
    with connected(filled, autocommit=True) as connection:
        connection.execute(noted, (proven, NOW, "0" * 64))
        # So no proof can begin.
        with backups.database_beside(filled), pytest.raises(BackupFailed, match="is being proven"):
            command(to=str(tmp_path), database_url=filled, prove=True, keep=keep)
    stay = {path.name for path in tmp_path.glob("*.tar")}
    assert proven in stay
    assert len(stay - {proven, *later}) == 1
    assert len(stay) == 2  # the new one is not sure yet, and nothing else is there where one alone is kept
    command(to=str(tmp_path / "own.tar"), database_url=filled, prove=True)  # the next one can


def test_backup_proof_drops_an_abandoned_proof_database_but_no_database_in_use_or_foreign(
    filled: str,
) -> None:
    ((oid,),) = rows_of(filled, "SELECT oid FROM pg_database WHERE datname = current_database()")
    left, used, foreign = (
        f"tollkeeper_proof_{which}" for which in (f"{oid}_left", f"{oid}_used", "1_foreign")
    )
    there = f"SELECT datname FROM pg_database WHERE datname IN ('{left}', '{used}', '{foreign}')"
    with connected(filled, autocommit=True) as connection:
        for name in (left, used, foreign):
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            with (
                psycopg.connect(filled, dbname=used),
                backups.database_beside(filled),
            ):  # a copy that is in use
                assert {*rows_of(filled, there)} == {(foreign,), (used,)}
        finally:
            for name in (left, used, foreign):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.mark.parametrize(
    "shape",
    [
        "postgresql:///{dbname}?host={host}&port={port}&user={user}",
        "postgresql://{user}@/?host={host}&port={port}&dbname={dbname}",
        "postgresql://{user}@{host}:{port}/postgres?dbname={dbname}",
    ],
)
def test_backup_proof_creates_a_temporary_database_for_every_form_of_database_url(
    filled: str, shape: str
) -> None:
    url = shape.format(**conninfo_to_dict(filled))
    with backups.database_beside(url) as beside:
        ((name,),) = rows_of(beside, "SELECT current_database()")
        assert str(name).startswith("tollkeeper_proof_")
    assert rows_of(filled, _PROOFS) == [(0,)]


def test_terminated_backup_proof_keeps_the_backup_and_removes_the_temporary_database(
    filled: str, tmp_path: Path
) -> None:
    with connected(filled, autocommit=True) as connection:
        connection.execute(_SLOW.encode())
    words = ("backup", "--to", str(tmp_path), "--database-url", filled, "--prove")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=tmp_path, env=environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        wait_until(lambda: rows_of(filled, _SLEEPING) != [(0,)])
        process.terminate()
        assert process.wait(HUNG_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert rows_of(filled, _PROOFS) == [(0,)]
    assert len(list(tmp_path.iterdir())) == 1  # the backup


def test_pruning_deletes_the_oldest_backups_and_no_other_file(tmp_path: Path) -> None:
    names = [f"tollkeeper-{NOW + timedelta(days=day):%Y%m%dT%H%M%SZ}.tar" for day in range(4)]
    for name in (*names, "tollkeeper-mine.tar", "notes.txt"):
        (tmp_path / name).touch()
    gone = [str(tmp_path / name) for name in names[:2]]
    assert taking.drop_older(Folder(tmp_path), 2) == gone
    assert {path.name for path in tmp_path.iterdir()} == {*names[2:], "tollkeeper-mine.tar", "notes.txt"}
    assert taking.drop_older(Folder(tmp_path), 2) == []


def test_backup_command_takes_and_proves_a_backup_and_deletes_older_backups(
    filled: str, tmp_path: Path
) -> None:
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
