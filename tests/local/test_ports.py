"""A port that is held is its workers' alone, from the moment it is chosen, and none of them is missed."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import StartError
from gateway.local import ports
from tests.conftest import free_port
from tests.tree import ROOT

HERE = "127.0.0.1"


def listener(port: int, **said: bool) -> socket.socket:
    return socket.create_server((HERE, port), **said)


def test_nobody_else_is_given_a_free_port_that_was_chosen() -> None:
    with ports.held_port(HERE, 0, "test", 2) as held:
        with pytest.raises(OSError, match="in use") as refused:  # as servers ask for ports, with SO_REUSEADDR
            listener(held.number)
        assert refused.value.errno == errno.EADDRINUSE


def test_nobody_is_let_wait_before_the_first_worker_listens_nor_refused_after_it_died() -> None:
    with ports.held_port(HERE, 0, "test", 2) as held:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HERE, held.number))
        with socket.socket(fileno=os.dup(held.sockets[0].fileno())) as worker:
            worker.listen()
        with socket.create_connection((HERE, held.number)):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, held.number))


def test_a_named_port_is_held_again_although_connections_end_there() -> None:
    port = free_port()
    for _ in range(2):
        with ports.held_port(HERE, port, "test") as held:
            server = held.sockets[0]
            server.listen()
            server.setblocking(True)
            with socket.create_connection((HERE, port)):
                server.accept()[0].close()  # who closes first keeps the port for a while


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_somebody_listens_on_is_refused(shares: bool) -> None:
    with (
        listener(0, reuse_port=shares) as server,
        pytest.raises(StartError, match="is in use; choose another for the test"),
    ):
        ports.held_port(HERE, server.getsockname()[1], "test")


def test_an_address_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0 for the test"):
        ports.held_port("192.0.2.1", 0, "test")


@pytest.mark.parametrize(
    ("sockets", "workers", "own"),
    [(3, 3, [[0], [1], [2]]), (1, 3, [[0], [0], [0]]), (3, 2, [[0, 2], [1]]), (2, 3, [[0], [1], [0]])],
)
def test_each_socket_is_a_workers_own_and_the_others_are_known_to_it(
    sockets: int, workers: int, own: list[list[int]]
) -> None:
    """Also where a service manager listens with more sockets than there are workers, or fewer."""
    with ports.held_port(HERE, 0, "test", sockets) as held:
        every = [one.fileno() for one in held.sockets]
        for worker in range(workers):
            given, told = held.given(worker, workers)
            mine, _, others = told[ports.VARIABLE].partition("/")
            assert list(given) == every
            assert [int(one) for one in mine.split(",")] == [every[at] for at in own[worker]]
            assert {int(one) for one in filter(None, others.split(","))} == {*every} - {
                every[at] for at in own[worker]
            }


# As systemd starts a program: descriptor 3 listens.
HANDED_OVER = """
import os, sys
os.dup2(int(sys.argv.pop(1)), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
from gateway.errors import StartError
from gateway.local import ports
here, *served = map(int, sys.argv[1:])
try:
    ports.refuse_unknown(served)
except StartError as error:
    sys.exit(error.message)
with ports.held_port("127.0.0.1", here, "test", 2) as held:
    print(held.number, len(held.sockets), os.get_inheritable(3))
"""


def started_with(server: socket.socket, folder: Path, *words: int) -> subprocess.CompletedProcess[str]:
    script = folder / "handed_over.py"
    script.write_text(HANDED_OVER)
    there = server.fileno()
    return subprocess.run(
        [sys.executable, str(script), *map(str, (there, *words))], pass_fds=[there],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_socket_that_a_service_manager_listens_with_is_taken(tmp_path: Path) -> None:
    with listener(0) as server:
        port = server.getsockname()[1]
        done = started_with(server, tmp_path, port, port, 9090)
        assert (done.stdout.split(), done.stderr) == ([str(port), "1", "False"], "")


def test_a_socket_of_a_port_that_nobody_serves_is_named(tmp_path: Path) -> None:
    with listener(0) as server:
        port = server.getsockname()[1]
        done = started_with(server, tmp_path, 1, 1, 9090)
        assert done.returncode == 1
        assert done.stderr.strip() == (
            f"the service manager handed over a socket of port {port}, and this process serves 1 and 9090: "
            "its .socket unit must name these"
        )
