"""Sockets nobody reads: uploads whose upstream stands still, and clients that leave meanwhile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.http.server.connection import SLOW_UPSTREAM, SUCCESSOR, UNWANTED, ReadPause
from tests.http.fakes import answer, chunks, post
from tests.http.stage import Client, Stage, staged
from tests.waiting import eventually

PIECE = b"x" * 64 * 1024
PATH = b"/services/search/upload"
LAST = b"\r\n0\r\n\r\n"
LONG_S = 600.0


class Transport:
    """Notes whether it is read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def pause_reading(self) -> None:
        self.said.append("pause")

    def resume_reading(self) -> None:
        self.said.append("resume")


def test_a_socket_is_read_while_there_is_no_reason_not_to() -> None:
    transport = Transport()
    reading = ReadPause(transport)
    reading.resume(UNWANTED)
    reading.pause(UNWANTED)
    reading.pause(SLOW_UPSTREAM)
    reading.resume(UNWANTED | SUCCESSOR)
    assert transport.said == ["pause"]
    reading.resume(SLOW_UPSTREAM)
    assert transport.said == ["pause", "resume"]
    reading.pause(SUCCESSOR)
    reading.close()
    reading.resume(SUCCESSOR)
    assert transport.said == ["pause", "resume", "pause"]


def test_what_the_kernel_knows_of_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    reading = ReadPause(FromSocket(ours))
    with ours:
        with theirs:
            assert (reading.is_left(), reading.is_ended(), reading.unread()) == (False, False, 0)
            theirs.sendall(b"12345")
            theirs.shutdown(socket.SHUT_WR)
            assert (reading.is_left(), reading.is_ended(), reading.unread()) == (False, True, 5)
        assert reading.is_left()


class FromSocket:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def get_extra_info(self, _name: str) -> socket.socket:
        return self._sock


@asynccontextmanager
async def backed_up() -> AsyncIterator[tuple[Stage, Client, asyncio.Event]]:
    """A client in the middle of an upload that is read no further, until the upstream is told to go on."""
    go_on = asyncio.Event()

    async def stand_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport: Any = writer.transport  # a stream's reads too
        transport.pause_reading()
        await go_on.wait()
        transport.resume_reading()
        received = b""
        while not received.endswith(LAST):
            piece = await reader.read(1 << 20)
            if not piece:  # nobody sends the rest
                return
            received = received[-len(LAST) :] + piece
        writer.write(answer())

    limits = {"look_s": 0.01, "body_s": LONG_S, "upstream_first_byte_s": LONG_S, "drain_s": LONG_S}
    async with staged(**limits) as stage:
        stage.upstream.handler = stand_still
        client = await stage.client()
        await client.send(post(b"", PATH).replace(b"content-length: 0", b"transfer-encoding: chunked"))
        await client.send(chunks(b"x" * 300 * 1024, end=False))
        await eventually(lambda: stage.upstream_connections)
        (connection,) = stage.plane._connections
        reading, body = connection._reading, connection.body
        while not reading.paused & SLOW_UPSTREAM:
            before = body.size
            await client.send(chunks(PIECE, end=False))
            await eventually(lambda seen=before: body.size > seen or reading.paused & SLOW_UPSTREAM)
        yield stage, client, go_on


@pytest.mark.parametrize("how", ["resets", "ends"])
async def test_a_client_that_leaves_an_upload_nobody_reads_is_noticed(how: str) -> None:
    async with backed_up() as (stage, client, go_on):
        client.reset() if how == "resets" else client.close()
        await eventually(lambda: not stage.connections)
        await eventually(lambda: not stage.plane.calls)
        assert stage.upstream_connections == 0
        assert len(stage.counters.settlements) == len(stage.counters.holds) == 1
        go_on.set()


async def test_a_client_that_has_sent_all_and_ends_its_side_has_its_answer() -> None:
    async with backed_up() as (stage, client, go_on):
        (connection,) = stage.plane._connections
        kept = stage.plane.buffers.used
        await client.send(LAST[2:])
        client.writer.write_eof()
        await eventually(lambda: connection.body_complete)
        assert stage.plane.buffers.used > kept
        go_on.set()
        assert (await client.answer()).status == 200
        await eventually(lambda: not stage.plane.calls)


async def test_a_client_that_stays_is_read_when_its_upstream_goes_on() -> None:
    async with backed_up() as (stage, client, go_on):
        (connection,) = stage.plane._connections
        before = connection.deadline
        await eventually(lambda: connection.deadline > before)
        go_on.set()
        assert (await client.ask(chunks(b"end"))).status == 200
        assert stage.plane.buffers.used == 0
