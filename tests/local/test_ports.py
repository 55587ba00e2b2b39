"""A port that is reserved is its workers' alone, from the moment it is chosen."""

from __future__ import annotations

import errno
import socket

import pytest

from gateway.errors import StartError
from gateway.local import ports
from tests.conftest import free_port

HERE = "127.0.0.1"


def listener(port: int, **said: bool) -> socket.socket:
    return socket.create_server((HERE, port), **said)


def test_nobody_else_is_given_a_free_port_that_was_chosen() -> None:
    with ports.reserved(HERE, 0, "test") as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use") as refused:  # as servers ask for ports, with SO_REUSEADDR
            listener(port)
        assert refused.value.errno == errno.EADDRINUSE
        with listener(port, reuse_port=True), listener(port, reuse_port=True):
            pass


def test_a_named_port_is_reserved_again_although_connections_end_there() -> None:
    port = free_port()
    for _ in range(2):
        with (
            ports.reserved(HERE, port, "test"),
            listener(port, reuse_port=True) as server,
            socket.create_connection((HERE, port)),
        ):
            server.accept()[0].close()  # who closes first keeps the port for a while


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with listener(0) as server, pytest.raises(StartError, match="is in use; choose another for the test"):
        ports.reserved(HERE, server.getsockname()[1], "test")
