"""Backups in a store that speaks S3: only what is whole is one, and it comes back as it was."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BackupFailed, PlaceFailed
from gateway.features.backup import storage as manifests
from gateway.features.backup import taking
from gateway.features.backup.command import backup as command
from gateway.features.backup.command import restore as restore_command
from gateway.features.backup.storage import FORMAT, BackupManifest, Bucket, PiecesBackup, named
from gateway.features.backup.taking import back_up, restore
from gateway.ops.storage import FileStore
from persistence import backup as backups
from persistence.schema import migrate
from persistence.schema import standing as schema
from tests.connections import connected
from tests.features.backup.test_taking import NOW
from tests.persistence.scenario import rows_of
from tests.search import examples
from tests.tree import ROOT
from tests.waiting import wait_until

# So small that a backup of an empty ledger has several.
PIECE_BYTES = 50_000
_TABLES = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
# What a backup is that is killed: the same, by pieces so small that it takes its time.
_SLOW = """
import sys
from datetime import datetime
from gateway.features.backup.storage import Bucket
from gateway.features.backup.taking import back_up
back_up(sys.argv[1], Bucket(sys.argv[2], piece_bytes=200), datetime.fromisoformat(sys.argv[3]))
"""


@pytest.fixture
def filled(database: str) -> str:
    migrate.upgrade(database)
    with connected(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (name) VALUES ('kept')")
    return database


def all_of(store: str) -> set[str]:
    """Folders and files of a bucket's folder."""
    place = FileStore(store)
    return {*place.names(""), *place.folders("")}


def held(content: bytes, digest: str, to: Bucket) -> PiecesBackup:
    """A backup with this dump."""
    with to.growing(NOW) as growing:
        growing.write(content)
        return growing.finish(
            BackupManifest(FORMAT, "0", schema.NEEDED, "18.0", NOW.isoformat(), {}, len(content), digest)
        )


def test_backup_split_into_pieces_in_an_s3_bucket_is_restored_completely(
    filled: str, empty: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Bucket(store, piece_bytes=PIECE_BYTES)
    taken, manifest = back_up(filled, there, NOW)
    assert there.names() == [taken.name]
    assert len(manifest.pieces) > 2
    assert {piece.bytes for piece in manifest.pieces[:-1]} == {PIECE_BYTES}
    assert sum(FileStore(store).sizes(taken.name).values()) == manifest.bytes
    restore_command(source=taken.address, database_url=empty, ids_ahead=0)
    assert "agree with each other" in capsys.readouterr().out
    assert rows_of(empty, "SELECT name FROM organization") == [("kept",)]


def test_backup_command_to_an_s3_bucket_deletes_old_backups_only_after_a_proof(
    filled: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = Bucket(store)
    old, proven = (back_up(filled, there, NOW - timedelta(days=days))[0] for days in (9, 8))
    there.note_proof(proven.name)
    with backups.database_beside(filled), pytest.raises(BackupFailed, match="is being proven"):
        command(to=store, database_url=filled, prove=True, keep=1)
    assert old.name not in there.names()
    assert proven.name in there.names()  # the new one is not sure yet
    assert len(there.names()) == 2
    command(to=store, database_url=filled, keep=1)
    assert proven.name in there.names()
    command(to=store, database_url=filled, prove=True, keep=1)
    [last] = there.names()
    assert there.proven() == [last]
    assert all_of(store) == {f"{last}.json", f"{last}.proven", last}
    assert list(tmp_path.iterdir()) == []  # nothing goes by a disk


def test_killed_backup_to_a_bucket_is_not_listed_and_is_removed_by_a_later_backup(
    filled: str, store: str
) -> None:
    there = Bucket(store)
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, filled, store, NOW.isoformat()], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: FileStore(store).folders("") or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    [left] = FileStore(store).folders("")
    assert there.names() == []
    with pytest.raises(BackupFailed, match="is not there"):
        named(there.address(left)).manifest()

    soon, _ = back_up(filled, there, NOW + timedelta(days=1))
    assert FileStore(store).folders("") == [left, soon.name]  # it might still be written
    late, _ = back_up(filled, there, NOW + timedelta(days=3))
    assert FileStore(store).folders("") == [soon.name, late.name]
    assert there.names() == [soon.name, late.name]


def test_failed_backup_to_a_bucket_leaves_no_file_behind(filled: str, store: str) -> None:
    there = Bucket(store, piece_bytes=10)
    with pytest.raises(ZeroDivisionError), there.growing(NOW) as growing:  # noqa: PT012  # it fails in the midst
        growing.write(bytes(25))
        assert len(FileStore(store).folders("")) == 1
        growing.write(bytes(1 // 0))
    assert all_of(store) == set()
    with connected(filled, autocommit=True) as connection:
        connection.execute("DROP TABLE alembic_version")
    with pytest.raises(BackupFailed, match="no schema"):
        back_up(filled, there, NOW)
    assert all_of(store) == set()


def test_damaged_or_incomplete_bucket_backup_is_refused_and_restores_no_table(
    filled: str, empty: str, store: str
) -> None:
    there = Bucket(store, piece_bytes=PIECE_BYTES)
    taken, manifest = back_up(filled, there, NOW)
    place, file = FileStore(store), f"{taken.name}/000002.dump"
    whole = place.read(file, PIECE_BYTES)
    place.write_bytes(file, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackupFailed, match=r"000002\.dump\S* is damaged"):
        restore(empty, named(taken.address), ids_ahead=0)
    place.remove(file)
    lacks = rf"1 of its {len(manifest.pieces)} files are not there as they were written, such as 000002\.dump"
    with pytest.raises(BackupFailed, match=lacks):
        restore(empty, named(taken.address), ids_ahead=0)
    place.write_json(f"{taken.name}.json", {**manifests.as_document(manifest), "pieces": []})
    with pytest.raises(BackupFailed, match="is not a backup"):
        named(taken.address).manifest()
    assert rows_of(empty, _TABLES) == [(0,)]


def test_restore_from_an_address_without_a_backup_fails_and_lists_the_existing_backups(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackupFailed, match="has none; name one as s3://bucket/folder/tollkeeper-"):
        named(store)
    there = Bucket(store)
    first, second = (held(b"x", "", there).name for _ in range(2))
    there.note_proof(first)
    for asked in (store, there.address("latest"), there.address(first[:-8] + "00000000")):
        with pytest.raises(BackupFailed) as refused:
            named(asked).manifest()
        said = refused.value.message
        assert f"{there.address(first)} (proven)" in said
        assert f"{there.address(second)} (proven)" not in said
        assert there.address(second) in said
    restore_command(source=store, list_=True, as_json=True)
    told = {each["file"]: each["proven"] for each in json.loads(capsys.readouterr().out)["backups"]}
    assert told == {there.address(first): True, there.address(second): False}


def test_backup_to_a_missing_bucket_fails_with_advice_and_records_no_backup(filled: str, store: str) -> None:
    other = store.replace("s3://ledgers", "s3://none")
    with pytest.raises(PlaceFailed, match=r"s3://none.*make the bucket, or name another one"):
        command(to=other, database_url=filled)
    assert rows_of(filled, "SELECT count(*) FROM backup_run") == [(0,)]


@settings(max_examples=examples(30))
@given(chunks=st.lists(st.binary(max_size=40), max_size=12), piece_bytes=st.integers(1, 17))
def test_backup_pieces_in_a_bucket_join_to_exactly_the_original_dump(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], piece_bytes: int
) -> None:
    whole = b"x" + b"".join(chunks)
    there = Bucket(str(tmp_path_factory.mktemp("pieces")), piece_bytes=piece_bytes)
    with there.growing(NOW) as growing:
        for chunk in (b"x", *chunks):
            growing.write(chunk)
        digest = hashlib.sha256(whole).hexdigest()
        taken = growing.finish(
            BackupManifest(FORMAT, "0", schema.NEEDED, "18.0", NOW.isoformat(), {}, len(whole), digest)
        )
    manifest = taken.manifest()
    assert len(manifest.pieces) == -(-len(whole) // piece_bytes)
    assert b"".join(taken.dump(manifest)) == whole


def test_pruning_of_bucket_backups_keeps_the_protected_backup_and_unrelated_files(store: str) -> None:
    there, place = Bucket(store), FileStore(store)
    names = []
    for day in range(3):
        with there.growing(NOW + timedelta(hours=day)) as growing:
            growing.write(b"x")
            names.append(
                growing.finish(
                    BackupManifest(FORMAT, "0", schema.NEEDED, "18.0", NOW.isoformat(), {}, 1, "")
                ).name
            )
    place.write_bytes("notes.json", b"{}")
    place.write_bytes("others/of.dump", b"x")
    assert taking.drop_older(there, 1, (names[0],)) == [there.address(name) for name in names[1:]]
    assert all_of(store) == {"notes.json", "others", f"{names[0]}.json", names[0]}
