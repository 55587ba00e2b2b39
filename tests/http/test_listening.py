"""Clients who wait at the socket of a worker that accepts nobody are taken by another one."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from gateway.http.server.server import listen

WAITING = 100


class Greets(asyncio.Protocol):
    """Says hello and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        there = cast("asyncio.Transport", transport)
        there.write(b"hello")
        there.close()


def listening() -> socket.socket:
    made = socket.create_server(("127.0.0.1", 0), backlog=WAITING * 2)
    made.setblocking(False)
    return made


async def greeted(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_who_waits_at_a_dead_workers_socket_is_taken_again_and_again_until_it_is_closed() -> None:
    own, dead = listening(), listening()
    kept = dead.dup()  # as a supervisor holds it
    kept.setblocking(True)
    port = dead.getsockname()[1]
    here = await listen(Greets, [own], [dead])
    try:
        for _ in range(2):
            answers = await asyncio.gather(*(greeted(port) for _ in range(WAITING)))
            assert answers == [b"hello"] * WAITING
        assert await greeted(own.getsockname()[1]) == b"hello"
    finally:
        here.close()
    with socket.create_connection(("127.0.0.1", port)), kept.accept()[0], kept:
        pass  # whoever waits now is somebody else's


async def test_a_socket_that_nobody_listens_at_yet_troubles_nobody() -> None:
    own, later = listening(), socket.socket()
    later.setblocking(False)
    later.bind(("127.0.0.1", 0))
    held = later.dup()
    here = await listen(Greets, [own], [later])
    try:
        assert await greeted(own.getsockname()[1]) == b"hello"
        held.listen()
        assert await greeted(held.getsockname()[1]) == b"hello"
    finally:
        here.close()
        held.close()
