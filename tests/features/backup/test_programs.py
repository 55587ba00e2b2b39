"""PostgreSQL's own programs are of the server's major version, or nothing is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.errors import BackupFailed
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import PLACES, back_up, major_of, program, restore
from gateway.local.embedded import postgres
from persistence.schema import migrate
from tests.conftest import postgres_of
from tests.connections import connected
from tests.features.backup.test_taking import NOW
from tests.features.backup.test_versions import VERSIONS
from tests.persistence.scenario import rows_of
from tests.tree import ROOT

OLDEST = 15


def says(place: Path, version: str) -> str:
    """A program that says it is of this version, where many versions are kept."""
    folder = place / "{}" / "bin"
    there = Path(str(folder).format(version))
    there.mkdir(parents=True, exist_ok=True)
    (there / "pg_dump").write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}.3 (Debian)'\n")
    (there / "pg_dump").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("said", "major"), [("15.18 (Debian 15.18-1.pgdg120+1)", 15), ("18.0", 18), ("19beta1", 19), ("", 0)]
)
def test_postgres_major_version_is_parsed_from_the_server_version_text(said: str, major: int) -> None:
    assert major_of(said) == major


def test_pg_dump_of_the_server_version_is_found_in_known_folders_path_or_embedded_binaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [says(tmp_path, "97"), str(tmp_path / "none")]
    assert program("pg_dump", 97, places) == str(tmp_path / "97" / "bin" / "pg_dump")
    says(tmp_path, "98")
    monkeypatch.setenv("PATH", str(tmp_path / "98" / "bin") + ":/usr/bin:/bin")
    assert program("pg_dump", 98, [str(tmp_path / "none")]) == str(tmp_path / "98" / "bin" / "pg_dump")
    embedded = postgres.binaries() / "pg_dump"
    assert program("pg_dump", 18, []) in {str(embedded), str(tmp_path / "98" / "bin" / "pg_dump")}


def test_pg_dump_of_another_version_is_refused_naming_the_needed_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(tmp_path, "98")
    monkeypatch.setenv("PATH", str(tmp_path / "98" / "bin") + ":/usr/bin:/bin")
    with pytest.raises(
        BackupFailed, match=r"pg_dump 99 is needed, as the server is, and not 18, 98: install"
    ):
        program("pg_dump", 99, [])


def test_oldest_supported_postgres_is_backed_up_and_restored_by_programs_of_that_version(
    tmp_path: Path,
) -> None:
    tools = Path(PLACES[0].format(OLDEST))
    if not (tools / "initdb").exists():
        pytest.skip(f"PostgreSQL {OLDEST} is not installed")
    with postgres_of(tools) as server:
        with connected(server, autocommit=True) as connection:
            for name in ("old", "new"):
                connection.execute(f"CREATE DATABASE {name}".encode())
        old, new = (server.rpartition("/")[0] + f"/{name}" for name in ("old", "new"))
        migrate.upgrade(old)
        with connected(old, autocommit=True) as connection:
            connection.execute("INSERT INTO organization (name) VALUES ('kept')")
        file, manifest = back_up(old, Folder(tmp_path), NOW)
        assert manifest.server_version.startswith(f"{OLDEST}.")
        assert restore(new, file, ids_ahead=0) == (manifest, [])
        assert rows_of(new, "SELECT name FROM organization") == [("kept",)]


def test_backup_image_installs_the_client_programs_of_every_supported_version() -> None:
    text = (ROOT / "deploy" / "Dockerfile.backup").read_text()
    found = re.search(r'^ARG MAJORS="([\d ]+)"$', text, re.MULTILINE)
    assert found is not None
    assert tuple(int(major) for major in found[1].split()) == VERSIONS
    assert "postgresql-client-$major" in text  # Debian's packages: their programs are at PLACES[0]
