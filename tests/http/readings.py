"""How servers read what upstreams are sent: Node's and aiohttp's own, and Go's as its source has it.

All answer `/early` once the head is here, `/late` when they are released, `/never` not, and anything else
behind its whole body. They differ in what becomes of a body nobody read.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import pytest
from aiohttp import web

from tests.http.fakes import answer

HONEST = b"honest"
# Keeps the connection and throws the rest of an unread body away, however long it takes.
NODE = """
const waiting = [];
const server = require("http").createServer((request, response) => {
  if (request.url === "/release") {
    for (const one of waiting.splice(0)) one.end("late");
    response.end();
  } else if (request.url === "/early") response.end("early");
  else if (request.url === "/late") waiting.push(response);
  else if (request.url !== "/never") request.on("end", () => response.end("honest")).resume();
}).listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume();
"""
# net/http, server.go, maxPostHandlerReadBytes: so much of an unread body is read before the answer; where
# there is more of it, or it was to come on 100-continue, the answer says close.
GO_READ_BYTES_MAX = 256 << 10


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs; `release` lets it answer what is late."""

    port: int
    release: Callable[[], Awaitable[None]]


@asynccontextmanager
async def node() -> AsyncIterator[Server]:
    """Node's `http.createServer`, where there is a Node."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed")
    process = await asyncio.create_subprocess_exec(
        path, "-e", NODE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(await asyncio.wait_for(process.stdout.readline(), 60))

    async def release() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /release HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await reader.read()
        writer.close()

    try:
        yield Server(port, release)
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def aiohttp() -> AsyncIterator[Server]:
    """aiohttp, which reads the rest of an unread body for a while, then closes."""
    released = asyncio.Condition()

    async def serve(request: web.Request) -> web.Response:
        if request.path == "/late":
            async with released:
                await released.wait()
        elif request.path == "/never":
            await asyncio.Event().wait()
        elif request.path != "/early":
            await request.read()
            return web.Response(body=HONEST)
        return web.Response(body=b"unread")

    async def release() -> None:
        async with released:
            released.notify_all()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, lingering_time=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Server(int(runner.addresses[0][1]), release)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def go() -> AsyncIterator[Server]:
    """What `net/http` of Go does, in Python."""
    released = asyncio.Condition()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
            oracle = h11.Connection(h11.SERVER)
            while await _go_answers(oracle, reader, writer, released):
                behind = oracle.trailing_data[0]
                oracle = h11.Connection(h11.SERVER)
                if behind:
                    oracle.receive_data(behind)
        writer.close()

    async def release() -> None:
        async with released:
            released.notify_all()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Server(server.sockets[0].getsockname()[1], release)
    finally:
        server.close()


READINGS = {"node": node, "go": go, "aiohttp": aiohttp}


async def _go_answers(
    oracle: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    released: asyncio.Condition,
) -> bool:
    """Answer one request; whether the connection may serve another."""
    head = await _event(oracle, reader)
    if not isinstance(head, h11.Request):
        return False
    if head.target == b"/never":
        await reader.read()
        return False
    if head.target == b"/late":
        async with released:
            await released.wait()
    fields = dict(head.headers)
    unread = int(fields.get(b"content-length", b"0"))
    closes = unread >= GO_READ_BYTES_MAX or b"expect" in fields
    read = 0
    while not closes:
        event = await _event(oracle, reader)
        if isinstance(event, h11.EndOfMessage):
            break
        read += len(event.data) if isinstance(event, h11.Data) else 0
        closes = read > GO_READ_BYTES_MAX or not isinstance(event, h11.Data)
    body = b"unread" if head.target in (b"/early", b"/late") else HONEST
    writer.write(answer(body, b"connection: close\r\n" if closes else b""))
    await writer.drain()
    return not closes


async def _event(oracle: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := oracle.next_event()) is h11.NEED_DATA:
        oracle.receive_data(await reader.read(65_536))
    return event
