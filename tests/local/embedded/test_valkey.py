"""Where the embedded Valkey can be reached by this machine's own programs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.counters.redis.address import parse_url
from gateway.local.embedded import valkey
from tests.deploy.programs import unpacked


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: those of the test runner are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="tk-", dir="/tmp") as folder:
        yield Path(folder)


def test_the_url_of_the_socket_names_it_and_the_password() -> None:
    address = parse_url(valkey.socket_url(Path("/run/tk-1/valkey.sock"), "p/w:@?"))
    assert (address.path, address.password, address.database) == ("/run/tk-1/valkey.sock", "p/w:@?", 0)


def test_a_socket_is_where_one_can_be(short: Path) -> None:
    assert valkey.socket_of(short) == short / "valkey.sock"
    assert not (short / "valkey.sock").exists()


def test_what_a_killed_server_left_is_no_hindrance(short: Path) -> None:
    (short / "valkey.sock").write_text("")
    assert valkey.socket_of(short) == short / "valkey.sock"


def test_there_is_none_where_none_can_be(short: Path) -> None:
    """No such folder, a path too long for an address, one a URL would have to escape."""
    assert valkey.socket_of(short / "nowhere") is None
    for name in ("x" * valkey.SOCKET_PATH_BYTES_MAX, "50%", "a b", "what?"):
        (short / name).mkdir()
        assert valkey.socket_of(short / name) is None


def test_the_allocator_of_the_machine_serves_where_there_is_one(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert "LD_PRELOAD" not in valkey.environment(short)
    there = unpacked("libjemalloc2")
    environment = valkey.environment(there) | {"LD_DEBUG": "files"}
    assert environment["LD_PRELOAD"].startswith(str(there))
    asked = [str(valkey.binary()), "--version"]
    said = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert f"calling init: {environment['LD_PRELOAD']}" in said.stderr
    monkeypatch.setenv("LD_PRELOAD", "")
    assert "LD_PRELOAD" not in valkey.environment(there)
