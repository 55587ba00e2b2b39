"""The admin port answers administrators and probes, whoever holds connections to it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientError, web
from aiohttp.http_exceptions import BadStatusLine
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin.application import build
from gateway.admin.http.answers import Answers
from gateway.admin.http.guard import CSV, Files, guard
from gateway.admin.http.server import IDENTIFIED, TOLD_EACH_S, ConnectionLimits, Unreadable, listen
from gateway.core.accounts.administration import Actor
from gateway.core.failures import Failures
from gateway.errors import Unprocessable
from gateway.telemetry.logs import JsonLines
from gateway.tls.certificates import Certificates
from gateway.tls.session import TlsGate
from persistence import engine as engines
from tests.admin.conftest import ADMIN, Api, MemoryCounters, ports_over
from tests.certificates import issued, trusting, workload
from tests.in_turn import in_turn
from tests.tls_client import open_tls

WHOLE = b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
FEW = 8
LONG_S = 600.0
# What a client that does not read leaves in the server beyond any socket's buffer.
LARGE_BYTES = 32_000_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A small application behind the real listener; `go` lets those waiting in `/held` and `/known` on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Semaphore(0)
        self.number = 0
        self._opened: list[asyncio.StreamWriter] = []

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1000)
        app.router.add_get("/quick", self._quick)
        app.router.add_get("/held", self._held)
        app.router.add_get("/known", self._known)
        app.router.add_get("/large", self._large)
        app.router.add_post("/body", self._body)
        return app

    async def send(self, raw: bytes) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number, limit=1024)
        self._opened.append(writer)
        writer.write(raw)
        return reader, writer

    async def ask(self, raw: bytes = WHOLE) -> bytes:
        reader, _ = await self.send(raw)
        return await asyncio.wait_for(reader.read(), 30)

    async def held(self, path: bytes, times: int) -> list[Streams]:
        """Send whole requests and wait until all are being answered."""
        sent = [await self.send(WHOLE.replace(b"/quick", path)) for _ in range(times)]
        for _ in range(times):
            await asyncio.wait_for(self.begun.acquire(), 30)
        return sent

    def leave(self) -> None:
        self.go.set()
        for writer in self._opened:
            writer.transport.abort()

    async def _quick(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _held(self, _: web.Request) -> web.Response:
        self.begun.release()
        await self.go.wait()
        return web.Response()

    async def _known(self, request: web.Request) -> web.Response:
        request[IDENTIFIED] = True
        return await self._held(request)

    async def _large(self, _: web.Request) -> web.Response:
        self.begun.release()
        return web.Response(body=b"x" * LARGE_BYTES)

    async def _body(self, request: web.Request) -> web.Response:
        self.begun.release()
        await request.read()
        return web.Response()


@asynccontextmanager
async def port(
    connections_max: int = FEW, head_s: float = LONG_S, next_s: float = LONG_S
) -> AsyncIterator[Port]:
    made = Port()
    listening = await listen(
        made.application(), "127.0.0.1", 0, ConnectionLimits(connections_max, head_s, next_s)
    )
    made.number = listening.port
    try:
        yield made
    finally:
        made.leave()
        await listening.stop()


async def test_expired_client_certificate_ends_a_connection_before_the_next_request(tmp_path: Path) -> None:
    """What is under way is answered."""
    now, clients = [time.time()], trustme.CA()
    files = issued(tmp_path, clients, clients=clients)
    context = trusting(clients, workload(clients, "spiffe://example.org/a"))
    gate = TlsGate("admin", Certificates(files, "TOLLKEEPER_ADMIN_TLS_"), wall=lambda: now[0])
    made = Port()
    listening = await listen(made.application(), "127.0.0.1", 0, wrapped=gate.wrapped)
    try:
        streams = [await open_tls(listening.port, context) for _ in range(2)]
        (idle, asks_idle), (busy, asks_busy) = streams
        quick = WHOLE.replace(b"Connection: close\r\n", b"")
        for reader, writer in streams:
            writer.write(quick)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        asks_busy.write(quick.replace(b"/quick", b"/held"))
        await asyncio.wait_for(made.begun.acquire(), 30)
        now[0] += 7_200.0
        for _, writer in streams:
            writer.write(quick)
        assert await idle.read() == b""
        made.go.set()
        assert (await busy.read()).count(b"200 OK") == 1
        asks_idle.close()
        asks_busy.close()
    finally:
        made.leave()
        await listening.stop()


async def closed(streams: Streams) -> None:
    """Wait until the other side has closed, with or without the rest of an answer."""
    try:
        while await asyncio.wait_for(streams[0].read(65_536), 30):
            pass
    except ConnectionError:
        pass


async def test_clients_with_half_sent_request_heads_do_not_block_other_requests() -> None:
    async with port() as there:
        held = [await there.send(b"GET /quick HT") for _ in range(5 * FEW)]
        assert (await there.ask()).startswith(b"HTTP/1.1 200 ")
        await closed(held[0])
        assert not held[-1][0].at_eof()


async def test_clients_with_half_sent_request_bodies_do_not_block_other_requests() -> None:
    async with port() as there:
        half = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
        held = []
        for _ in range(FEW):
            held.append(await there.send(half))
            await asyncio.wait_for(there.begun.acquire(), 30)
        for _ in range(2 * FEW):
            assert (await there.ask()).startswith(b"HTTP/1.1 200 ")
        await closed(held[0])


async def test_silent_and_idle_connections_do_not_block_other_requests() -> None:
    async with port() as there:
        for _ in range(FEW):
            await there.send(b"")
        idle = await there.send(WHOLE.replace(b"Connection: close\r\n", b""))
        assert (await asyncio.wait_for(idle[0].readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 200 ")
        for _ in range(5 * FEW):
            await there.send(b"")
            assert (await there.ask()).startswith(b"HTTP/1.1 200 ")


async def test_server_out_of_connections_closes_an_unauthenticated_connection_for_a_new_client() -> None:
    async with port() as there:
        known = await there.held(b"/known", FEW - 1)
        [unknown] = await there.held(b"/held", 1)
        assert (await there.ask()).startswith(b"HTTP/1.1 200 ")
        await closed(unknown)
        there.go.set()
        for reader, _ in known:
            assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200 ")


async def test_new_connection_is_closed_when_all_open_connections_are_authenticated() -> None:
    async with port() as there:
        known = await there.held(b"/known", FEW)
        await closed(await there.send(WHOLE))
        there.go.set()
        for reader, _ in known:
            assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200 ")
        assert (await there.ask()).startswith(b"HTTP/1.1 200 ")


async def test_connection_with_an_endless_request_head_is_closed_after_a_time_limit() -> None:
    async with port(head_s=0.05) as there:
        dripping = await there.send(b"GET /quick HTTP/1.1\r\nx-drip: ")
        gone = asyncio.create_task(closed(dripping))
        while not gone.done():
            dripping[1].write(b"x")
            await asyncio.wait({gone}, timeout=0.01)  # drips until it is closed
        await gone


async def test_idle_connection_and_connection_with_an_unread_answer_are_closed_after_a_time_limit() -> None:
    async with port(next_s=0.05) as there:
        unread = await there.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(there.begun.acquire(), 30)
        idle = await there.send(WHOLE.replace(b"Connection: close\r\n", b""))
        await closed(idle)
        received = bytearray()
        # Read only once the other one was closed: by then this one was too, with most of it unsent.
        try:
            while piece := await asyncio.wait_for(unread[0].read(65_536), 30):
                received += piece
        except ConnectionError:
            pass
        assert len(received) < LARGE_BYTES


async def test_long_running_request_is_not_closed() -> None:
    async with port(head_s=0.05, next_s=0.05) as there:
        [long] = await there.held(b"/held", 1)
        await closed(await there.send(b"GET /quick HT"))
        there.go.set()
        assert (await asyncio.wait_for(long[0].read(), 30)).startswith(b"HTTP/1.1 200 ")


async def test_chunked_request_body_beyond_the_maximum_is_413() -> None:
    async with port() as there:
        chunked = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await there.send(chunked + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        assert (await asyncio.wait_for(answer[0].readline(), 30)).startswith(b"HTTP/1.1 413 ")


async def test_connection_of_an_administrator_counts_as_authenticated(keeper_database: str) -> None:
    engine = engines.create(keeper_database)
    app = build(ports_over(engine, MemoryCounters(keeper_database)))
    listening = await listen(app, "127.0.0.1", 0, ConnectionLimits(connections_max=2))
    half = (
        "POST /admin/v1/organizations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n"
        "Content-Type: application/json\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n"
    )
    opened = []
    for token in (ADMIN, ADMIN, "wrong", ADMIN):
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        writer.write(half.format(token).encode())
        opened.append((reader, writer))
        if len(opened) <= 2:
            assert b" 100 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    await closed(opened[2])
    await closed(opened[3])
    for name, (reader, writer) in zip((b"Acme", b"Ajax"), opened, strict=False):
        writer.write(b'{"name":"%s"}' % name)
        assert b" 201 " in await asyncio.wait_for(reader.readline(), 30)
    for _, writer in opened:
        writer.transport.abort()
    await listening.stop()
    await engine.dispose()


# --- unreadable -------------------------------------------------------------------------
# A client that sends the admin port anything but HTTP fills no log, and no log has its bytes.


GARBAGE = (
    b"\x16\x03\x01 hush hush\r\n\r\n",
    b"GET /hush HTTP/1.1\r\nhush hush\r\n\r\n",
    b"GET /hush HTTP/9.hush\r\n\r\n",
    b"GET /" + b"hush" * 10_000 + b" HTTP/1.1\r\n\r\n",
)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the log says, as it is written."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(JsonLines().format(record))

    root, handler = logging.getLogger(), Keep()
    root.addHandler(handler)
    yield found
    root.removeHandler(handler)


async def sent(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_input_that_is_not_http_is_logged_once_without_the_bytes(lines: list[str]) -> None:
    port = await listen(web.Application(), "127.0.0.1", 0)
    try:
        for _ in range(3):
            for raw in GARBAGE:
                assert b" 400 " in (await sent(port.port, raw)).split(b"\r\n")[0]
    finally:
        await port.stop()
    (line,) = (json.loads(one) for one in lines if "admin" in one)
    assert line["event"] == "what came to the admin port is no HTTP"
    assert line["level"] == "warning"
    assert not any("hush" in one for one in lines)


async def test_exception_in_a_request_handler_is_logged_every_time(lines: list[str]) -> None:
    async def broken(_: web.Request) -> web.Response:
        raise RuntimeError("the handler broke")

    app = web.Application()
    app.router.add_get("/", broken)
    port = await listen(app, "127.0.0.1", 0)
    try:
        for _ in range(2):
            assert b" 500 " in await sent(
                port.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
    finally:
        await port.stop()
    assert len([one for one in lines if "the handler broke" in one]) == 2


def test_unreadable_requests_are_logged_once_per_interval_with_the_count() -> None:
    now = 100.0
    told = Unreadable(lambda: now)

    def passed() -> int | None:
        error = BadStatusLine("hush")
        record = logging.LogRecord("x", logging.ERROR, "", 0, "hush", (), (BadStatusLine, error, None))
        if not told.filter(record):
            return None
        facts = record.__dict__["facts"]
        assert "hush" not in f"{record.getMessage()} {facts}"
        return int(facts["requests"])

    assert [passed() for _ in range(4)] == [1, None, None, None]
    now += TOLD_EACH_S
    assert [passed(), passed()] == [4, None]


# --- files ------------------------------------------------------------------------------
# Files that are answered piece by piece: whole, or seen to be broken off.


async def _pieces(count: int, *, ends: str) -> AsyncGenerator[bytes, None]:
    if ends == "refused":
        raise Unprocessable("Not so.")
    for _ in range(count):
        yield b"piece\r\n"
    if ends == "broken":
        raise RuntimeError("broken off")


def _application(ends: str) -> web.Application:
    files = Files(30.0)

    async def file(request: web.Request) -> web.StreamResponse:
        return await files.answer(request, Actor("a", "admin"), "some.csv", CSV, _pieces(3, ends=ends))

    guarded = guard(request_timeout_s=30.0, failures=Failures(lambda: 0.0), answers=Answers())
    app = web.Application(middlewares=[guarded])
    app.router.add_get("/some.csv", file)
    return app


async def test_file_sent_in_several_pieces_is_received_whole() -> None:
    async with TestClient(TestServer(_application("whole"))) as client, client.get("/some.csv") as answer:
        assert (answer.status, await answer.read()) == (200, b"piece\r\n" * 3)
        assert answer.headers["Content-Type"] == CSV
        assert answer.headers["Content-Disposition"] == 'attachment; filename="some.csv"'


async def test_file_download_refused_before_the_first_piece_is_422() -> None:
    async with TestClient(TestServer(_application("refused"))) as client, client.get("/some.csv") as answer:
        assert answer.status == 422


async def test_file_download_that_breaks_off_is_an_error_at_the_client() -> None:
    async with TestClient(TestServer(_application("broken"))) as client:
        with pytest.raises(ClientError):
            async with client.get("/some.csv") as answer:
                await answer.read()


# --- nearest ----------------------------------------------------------------------------
# Where nothing is served, an answer names the path that was probably meant.


NOTHING = "There is nothing at this address."


@in_turn(
    ("path", "meant"),
    [
        ("tenant", "/admin/v1/tenants"), ("token_plans", "/admin/v1/token-plans"),
        ("tenants/", "/admin/v1/tenants"), ("tenant/12", "/admin/v1/tenants/{id}"),
        ("tenants/12/unblok", "/admin/v1/tenants/{id}/unblock"), ("nothing/like/it/at-all", ""),
        ("%25%7B", ""), ("tenants" + "x" * 200, ""),
    ],
)  # fmt: skip
async def test_unknown_path_answer_suggests_the_nearest_path(api: Api, path: str, meant: str) -> None:
    answer = await api.get(path)
    assert answer.status == 404
    assert answer.json["detail"] == (f"{NOTHING} Did you mean {meant}?" if meant else NOTHING)


async def test_answer_for_a_missing_row_suggests_no_other_path(api: Api) -> None:
    assert (await api.get("tenants/999999")).json["detail"] == NOTHING
