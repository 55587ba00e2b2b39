"""A backup is one moment of PostgreSQL, taken under load; what is restored proves itself before its use."""

from __future__ import annotations

import asyncio
import fcntl
import re
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.errors import BackupFailed
from gateway.features.backup.storage import Folder, TarBackup
from gateway.features.backup.taking import back_up, restore
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from persistence.schema import standing as schema
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, broken, busy, one, rows_of, settle_in

NOW = datetime(2026, 4, 16, 12, tzinfo=UTC)


@pytest.fixture
def filled(database: str) -> Iterator[tuple[str, Account, LedgerWriter]]:
    """A migrated database with an account that has done one of everything."""
    migrate.upgrade(database)
    [account] = settle_in(database, 100_000)
    busy(account)
    writer = LedgerWriter(database)
    writer.write_now(batch_of(account))
    yield database, account, writer
    writer.close()


def test_backup_taken_under_load_restores_a_consistent_database_that_accepts_new_rows(
    filled: tuple[str, Account, LedgerWriter], empty: str, tmp_path: Path
) -> None:
    database, account, writer = filled
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            account.consume(1, credits_=1, units=1, spend=1)
            writer.write_now(batch_of(account))

    loading = threading.Thread(target=load)
    loading.start()
    try:
        target, manifest = back_up(database, Folder(tmp_path), NOW)
    finally:
        stop.set()
        loading.join()
    assert target == TarBackup(tmp_path / "tollkeeper-20260416T120000Z.tar")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.manifest() == manifest
    assert manifest.schema_version == schema.NEEDED

    restored, wrong = restore(empty, target, ids_ahead=1_000)
    assert (restored, wrong) == (manifest, [])
    assert rows_of(empty, "SELECT count(*) FROM token_ledger") == [(manifest.rows["token_ledger"],)]
    # Whoever goes on from it gives out no id again, and its ledgers take the next row.
    last = rows_of(empty, "SELECT max(id) FROM organization")[0][0]
    with connected(empty) as connection:
        assert (
            one(connection, "INSERT INTO organization (name) VALUES ('new') RETURNING id")
            > int(str(last)) + 1_000
        )
    [(seq, remaining)] = rows_of(empty, "SELECT last_seq, tokens_remaining FROM tenant_quota")
    assert migrate.upgrade(empty) == schema.NEEDED
    assert isinstance(seq, int)
    assert isinstance(remaining, int)
    again = Account(
        account.organization_id, account.tenant_id, 100_000, seq=seq, remaining=remaining, cycle=1
    )
    again.used = account.used - (account.seq - seq)
    again.consume(5)
    follower = LedgerWriter(empty)
    assert follower.write_now(batch_of(again)).rows == {"token_ledger": 1, "call": 1}
    follower.close()


async def test_restored_database_passes_all_invariants_and_keeps_the_ledger_append_only(
    filled: tuple[str, Account, LedgerWriter], empty: str, tmp_path: Path
) -> None:
    database, _, _ = filled
    target, _ = back_up(database, Folder(tmp_path / "a.tar"), NOW)
    await asyncio.to_thread(restore, empty, target, ids_ahead=0)
    assert await broken(empty) == []
    shape = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 2"
    assert rows_of(empty, shape) == rows_of(database, shape)
    with connected(empty) as connection, pytest.raises(psycopg.Error, match=r"append-only|refused"):
        connection.execute("DELETE FROM token_ledger")


def test_migrate_command_grants_role_privileges_in_a_restored_database(
    filled: tuple[str, Account, LedgerWriter], empty: str, tmp_path: Path
) -> None:
    database, _, _ = filled
    file, _ = back_up(database, Folder(tmp_path), NOW)
    restore(empty, file, ids_ahead=0)
    rights = (
        "SELECT has_table_privilege(current_database() || '_writer', 'token_ledger', 'INSERT'),"
        " has_table_privilege(current_database() || '_writer', 'token_ledger', 'UPDATE'),"
        " has_function_privilege('public', 'ensure_partitions(timestamptz, integer)', 'EXECUTE')"
    )
    migrate.upgrade(empty)
    assert rows_of(empty, rights) == [(True, False, False)]


def test_backup_path_without_tar_suffix_is_used_as_a_directory_with_a_file_per_backup(
    filled: tuple[str, Account, LedgerWriter], tmp_path: Path
) -> None:
    database, there = filled[0], Folder(tmp_path / "nightly" / "backups")
    with pytest.raises(BackupFailed, match="no directory of backups"):
        there.names()
    written = [back_up(database, there, night)[0].path for night in (NOW, NOW + timedelta(days=1))]
    assert [path.name for path in written] == there.names()
    with pytest.raises(BackupFailed, match=r"is a file: name a directory, or a file that ends in \.tar"):
        back_up(database, Folder(written[0].rename(tmp_path / "one")), NOW)


def test_backup_refuses_an_existing_file_and_restore_refuses_a_filled_database(
    filled: tuple[str, Account, LedgerWriter], tmp_path: Path
) -> None:
    database, _, _ = filled
    target, _ = back_up(database, Folder(tmp_path / "a.tar"), NOW)
    with pytest.raises(BackupFailed, match="is there already"):
        back_up(database, Folder(tmp_path / "a.tar"), NOW)
    before = rows_of(database, "SELECT count(*) FROM token_ledger")
    with pytest.raises(BackupFailed, match="not empty"):
        restore(database, target, ids_ahead=0)
    assert rows_of(database, "SELECT count(*) FROM token_ledger") == before


def test_restore_refuses_a_damaged_or_foreign_file_before_writing(
    filled: tuple[str, Account, LedgerWriter], empty: str, tmp_path: Path
) -> None:
    database, _, _ = filled
    _, manifest = back_up(database, Folder(tmp_path / "a.tar"), NOW)
    whole = (tmp_path / "a.tar").read_bytes()
    damaged = tmp_path / "b.tar"
    damaged.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(BackupFailed, match="is damaged"):
        restore(empty, TarBackup(damaged), ids_ahead=0)
    for content in (whole[: len(whole) // 2], b"", b"not a backup"):
        damaged.write_bytes(content)
        with pytest.raises(BackupFailed, match="not a backup"):
            restore(empty, TarBackup(damaged), ids_ahead=0)
    damaged.write_bytes(re.sub(rb'("schema_version": )"\d{4}"', rb'\1"9999"', whole))
    with pytest.raises(BackupFailed, match="schema version 9999"):
        restore(empty, TarBackup(damaged), ids_ahead=0)
    with pytest.raises(BackupFailed, match="cannot be read"):
        restore(empty, TarBackup(tmp_path / "none.tar"), ids_ahead=0)
    assert rows_of(empty, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [
        (0,)
    ]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["tollkeeper.dump", "manifest.json"]
    assert manifest.rows["token_ledger"] == 6


def test_backup_removes_files_of_a_killed_backup_but_not_a_file_still_being_written(
    filled: tuple[str, Account, LedgerWriter], tmp_path: Path
) -> None:
    database, _, _ = filled
    left, growing = (tmp_path / f".tollkeeper-20200101T000000Z.tar.{end}" for end in ("abcd_123", "0growing"))
    others = {".tollkeeper-mine.tar.abcd_123", "tollkeeper-20200101T000000Z.tar"}
    for path in (left, growing, *(tmp_path / name for name in others)):
        path.touch()
    with growing.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        target, _ = back_up(database, Folder(tmp_path), NOW)
    assert {path.name for path in tmp_path.iterdir()} == {growing.name, target.name, *others}


def test_failed_backup_leaves_no_file_behind(database: str, tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="no schema"):
        back_up(database, Folder(tmp_path / "a.tar"), NOW)
    with pytest.raises(BackupFailed, match="PostgreSQL: "):
        back_up("postgresql://u@127.0.0.1:1/d", Folder(tmp_path / "a.tar"), NOW)
    with pytest.raises(BackupFailed, match="cannot be written to"):
        back_up(database, Folder(tmp_path / "none" / "a.tar"), NOW)
    assert list(tmp_path.iterdir()) == []
