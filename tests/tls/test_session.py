"""TLS on a port of ours: who is let in, who is not and what they are told, and what a connection keeps."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from gateway.core.certificates import TlsFiles, not_after
from gateway.core.credentials import WORKLOAD
from gateway.tls.certificates import Certificates
from gateway.tls.session import TlsGate
from tests.certificates import issued, trusting, workload
from tests.http.stage import reset
from tests.tls_client import open_tls
from tests.waiting import eventually

AUTHORITY, CLIENTS, STRANGERS = trustme.CA(), trustme.CA(), trustme.CA()
# By then every certificate made here is over.
PAST = 1e11
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"


class ProtocolRecorder(asyncio.Protocol):
    """What a port's protocol is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.reads: list[int] = []
        self.paused: list[bool] = []
        self.ended = self.lost = False
        self.stays = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.reads.append(len(data))

    def eof_received(self) -> bool:
        self.ended = True
        return self.stays

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def pause_writing(self) -> None:
        self.paused.append(True)

    def resume_writing(self) -> None:
        self.paused.append(False)


class Answers(ProtocolRecorder):
    """One that answers whatever comes."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(ANSWER)


class Port:
    """A port that speaks TLS, with the protocols of its connections."""

    def __init__(self, files: TlsFiles, kind: type[ProtocolRecorder], **bounds: Any) -> None:
        self.gate = TlsGate("gateway", Certificates(files, "TOLLKEEPER_TLS_"), **bounds)
        self.made: list[ProtocolRecorder] = []
        self.number = 0
        self._kind = kind

    def protocol(self) -> ProtocolRecorder:
        self.made.append(self._kind())
        return self.made[-1]

    @property
    def in_use(self) -> list[ProtocolRecorder]:
        """The connections whose hands were shaken."""
        return [each for each in self.made if each.transport is not None]

    @property
    def one(self) -> ProtocolRecorder:
        """The last of them."""
        return self.in_use[-1]

    @property
    def failures(self) -> dict[str, int]:
        return dict(self.gate.failures)


@asynccontextmanager
async def listening(
    files: TlsFiles, kind: type[ProtocolRecorder] = ProtocolRecorder, **bounds: Any
) -> AsyncIterator[Port]:
    port = Port(files, kind, **bounds)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(port.gate.wrapped(port.protocol), "127.0.0.1", 0)
    port.number = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        for each in port.made:
            if each.transport is not None:
                each.transport.abort()
        server.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return issued(tmp_path_factory.mktemp("certificates"), AUTHORITY)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return issued(tmp_path_factory.mktemp("mutual"), AUTHORITY, clients=CLIENTS)


def refused(port: int, context: ssl.SSLContext) -> str:
    """What a client of the standard library is refused with, in its handshake or behind it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="localhost") as tls:
                tls.sendall(b"x")
                return f"not refused: {tls.recv(1)!r}"
        except OSError as error:
            return str(error)


async def test_an_ordinary_client_is_served_and_hears_the_end(files: TlsFiles) -> None:
    context = trusting(AUTHORITY)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with listening(files) as port:

        def ask() -> tuple[int, bytes, str | None, str | None]:
            client = http.client.HTTPSConnection("localhost", port.number, context=context, timeout=30)
            client.request("GET", "/")
            version, alpn = client.sock.version(), client.sock.selected_alpn_protocol()
            got = client.getresponse()
            return got.status, got.read(), version, alpn

        asking = asyncio.create_task(asyncio.to_thread(ask))
        await eventually(lambda: port.made and b"\r\n\r\n" in port.made[-1].received)
        port.one.transport.write(ANSWER)
        port.one.transport.close()
        assert await asking == (200, b"hello", "TLSv1.3", "http/1.1")
        assert port.one.transport.get_extra_info("peername")[0] == "127.0.0.1"
        assert port.one.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert port.failures == {}


@pytest.mark.parametrize("size", [1, 16 * 1024, 16 * 1024 + 1, 1_000_000])
async def test_bytes_arrive_as_they_were_sent_both_ways(files: TlsFiles, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with listening(files) as port:
        reader, writer = await open_tls(port.number, trusting(AUTHORITY))
        writer.write(content)
        await eventually(lambda: port.made and port.made[-1].received == content)
        port.one.transport.write(content)
        assert await reader.readexactly(size) == content
        writer.close()
        await eventually(lambda: port.in_use and port.one.ended)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_who_ends_sending_can_still_be_answered(files: TlsFiles, version: ssl.TLSVersion) -> None:
    context = trusting(AUTHORITY)
    context.maximum_version = version
    async with listening(files) as port:
        reader, writer = await open_tls(port.number, context)
        writer.write(b"all of it")
        writer.transport.say_goodbye()  # type: ignore[attr-defined] # but the socket stays open
        await eventually(lambda: port.in_use and port.one.ended)
        assert port.one.received == b"all of it"
        port.one.transport.write(b"an answer")
        assert await reader.readexactly(9) == b"an answer"
        port.one.transport.close()
        assert await reader.read() == b""
        await eventually(lambda: port.in_use and port.one.lost)


async def test_who_ends_sending_is_closed_where_that_means_leaving(files: TlsFiles) -> None:
    async with listening(files) as port:
        reader, writer = await open_tls(port.number, trusting(AUTHORITY))
        await eventually(lambda: port.in_use)
        port.one.stays = False
        writer.write_eof()
        assert await reader.read() == b""
        await eventually(lambda: port.in_use and port.one.lost)


async def test_an_end_of_sending_is_heard_and_what_comes_then_is_handed_on_to_be_counted(
    files: TlsFiles,
) -> None:
    async with listening(files) as port:
        reader, writer = await open_tls(port.number, trusting(AUTHORITY))
        await eventually(lambda: port.in_use)
        port.one.transport.write(b"refused")
        port.one.transport.write_eof()
        port.one.transport.write(b"never sent")
        assert await reader.read() == b"refused"
        writer.write(b"x" * 100_000)
        await eventually(lambda: sum(port.one.reads) >= 100_000)
        assert not port.one.lost


async def test_what_waits_to_be_sent_is_all_in_the_socket_and_stops_who_writes(files: TlsFiles) -> None:
    async with listening(files) as port:
        reader, _ = await open_tls(port.number, trusting(AUTHORITY), limit=1)
        await eventually(lambda: port.in_use)
        paused = port.one.paused
        port.one.transport.set_write_buffer_limits(4096)
        while not paused:
            port.one.transport.write(b"x" * 65_536)
            await asyncio.sleep(0)
        waits = port.one.transport.get_write_buffer_size()
        assert waits > 4096
        while not (paused and not paused[-1]):
            await reader.read(1 << 20)
        assert port.one.transport.get_write_buffer_size() <= 4096


async def test_plaintext_is_told_in_plaintext(files: TlsFiles) -> None:
    async with listening(files) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        said = await reader.read()
        assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"This port speaks TLS" in said
        writer.close()
        await eventually(lambda: port.failures == {"plaintext": 1})


async def test_who_only_looks_whether_somebody_listens_is_no_failure(files: TlsFiles) -> None:
    async with listening(files) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port.number)
        await eventually(lambda: len(port.gate._shaking) == 1)
        writer.close()
        await eventually(lambda: len(port.gate._shaking) == 0)
        assert port.failures == {}


async def test_old_versions_and_garbage_are_refused(files: TlsFiles) -> None:
    async with listening(files) as port:
        old = trusting(AUTHORITY)
        with warnings.catch_warnings(action="ignore"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        assert "not refused" not in await asyncio.to_thread(refused, port.number, old)
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"\x16" + bytes(range(200)))
        await reader.read()
        writer.close()
        await eventually(lambda: port.failures == {"protocol": 2})


async def test_a_client_that_does_not_trust_us_is_counted(files: TlsFiles) -> None:
    async with listening(files) as port:
        assert "certificate verify failed" in await asyncio.to_thread(
            refused, port.number, trusting(STRANGERS)
        )
        await eventually(lambda: port.failures == {"refused_by_client": 1})


async def test_only_a_certificate_of_the_named_authority_is_let_in(mutual: TlsFiles) -> None:
    ours, theirs = CLIENTS.issue_cert("client@example.com"), STRANGERS.issue_cert("client@example.com")
    async with listening(mutual) as port:
        await asyncio.to_thread(refused, port.number, trusting(AUTHORITY))
        await eventually(lambda: port.failures == {"no_certificate": 1})
        await asyncio.to_thread(refused, port.number, trusting(AUTHORITY, theirs))
        await eventually(lambda: port.failures == {"no_certificate": 1, "bad_certificate": 1})
        assert not port.in_use  # nobody heard of them
        _, writer = await open_tls(port.number, trusting(AUTHORITY, ours))
        writer.write(b"hello")
        await eventually(lambda: port.in_use and port.one.received == b"hello")
        (_, name), *_ = port.one.transport.get_extra_info("peercert")["subjectAltName"]
        assert name == "client@example.com"
        writer.close()


def asked(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bytes, bool, Any]:
    """What is heard of a port, if anything, whether a session was resumed, and the one to resume next."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as tls,
        ):
            tls.sendall(b"ask")
            return tls.recv(100), bool(tls.session_reused), tls.session
    except OSError:
        return b"", False, session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_handshake_outlives_a_certificate_resumed_or_not(
    mutual: TlsFiles, version: ssl.TLSVersion
) -> None:
    now = [time.time()]
    context = trusting(AUTHORITY, CLIENTS.issue_cert("client@example.com"))
    context.maximum_version = version
    async with listening(mutual, Answers, wall=lambda: now[0]) as port:

        async def ask(session: Any = None) -> tuple[bytes, bool, Any]:
            return await asyncio.to_thread(asked, port.number, context, session)

        heard, _, session = await ask()
        assert heard == ANSWER
        heard, resumed, session = await ask(session)
        # Of TLS 1.2 a session is known by its id. Tickets, by which one of 1.3 is, are given to nobody.
        assert (heard, resumed) == (ANSWER, version == ssl.TLSVersion.TLSv1_2)
        now[0] += PAST
        assert not (await ask(session))[0]
        assert not (await ask())[0]
        await eventually(lambda: port.failures == {"bad_certificate": 2})
        assert len(port.in_use) == 2  # nobody heard of them
        now[0] = time.time()
        assert (await ask(session))[:2] == (ANSWER, False)  # what was refused is resumed no more


class Busy(ProtocolRecorder):
    """One that finishes what it is at."""

    shuts = 0

    def shut(self) -> None:
        self.shuts += 1


@pytest.mark.parametrize("kind", [ProtocolRecorder, Busy])
async def test_a_connection_ends_with_the_certificate_of_its_client(
    mutual: TlsFiles, kind: type[ProtocolRecorder]
) -> None:
    """With the next byte, if no clock said so before. Its protocol may finish what is under way."""
    now = [time.time()]
    context = trusting(AUTHORITY, workload(CLIENTS, "spiffe://example.org/a"))
    async with listening(mutual, kind, wall=lambda: now[0]) as port:
        reader, writer = await open_tls(port.number, context)
        await eventually(lambda: bool(port.in_use))
        transport = port.one.transport
        assert transport.get_extra_info(WORKLOAD) == "spiffe://example.org/a"
        now[0] += PAST
        assert transport.get_extra_info(WORKLOAD) == ""
        writer.write(b"late")
        if isinstance(port.one, Busy):
            await eventually(lambda: port.one.received == b"late")
            assert port.one.shuts == 1
        else:
            assert await reader.read() == b""
            assert port.one.received == b""
        writer.close()


async def test_a_silent_connection_is_closed_at_the_end_of_its_certificate(mutual: TlsFiles) -> None:
    certificate = workload(CLIENTS, "spiffe://example.org/a")
    moments = iter([-0.05, -0.05])  # as hands are shaken; then it is over
    ends = not_after(ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode()))
    async with listening(mutual, wall=lambda: ends + next(moments, 0.0)) as port:
        reader, writer = await open_tls(port.number, trusting(AUTHORITY, certificate))
        assert await reader.read() == b""
        assert port.in_use
        writer.close()


async def test_a_handshake_has_its_time(files: TlsFiles) -> None:
    async with listening(files, handshake_s=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"\x16\x03\x01")  # the beginning of a record
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        writer.close()
        await eventually(lambda: port.failures == {"timeout": 1})
        port.gate.bound(60.0, 10)
        _, other = await open_tls(port.number, trusting(AUTHORITY))
        await eventually(lambda: port.in_use)
        assert len(port.gate._shaking) == 0  # and nothing waits for it any more
        other.close()


async def test_who_shakes_hands_the_longest_gives_way(files: TlsFiles) -> None:
    async with listening(files, handshakes_max=2) as port:
        waiting = [await asyncio.open_connection("127.0.0.1", port.number) for _ in range(2)]
        await eventually(lambda: len(port.gate._shaking) == 2)
        waiting.append(await asyncio.open_connection("127.0.0.1", port.number))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await waiting[0][0].readexactly(1)
        reader, writer = await open_tls(port.number, trusting(AUTHORITY))  # takes the place of the second
        writer.write(b"let in")
        await eventually(lambda: port.in_use and port.one.received == b"let in")
        await eventually(lambda: port.failures == {"crowded_out": 2})
        for _, each in [*waiting, (reader, writer)]:
            each.close()


async def test_many_at_once_are_all_let_in(files: TlsFiles) -> None:
    context = trusting(AUTHORITY)
    async with listening(files) as port:
        opened = await asyncio.gather(*(open_tls(port.number, context) for _ in range(40)))
        for number, (_, writer) in enumerate(opened):
            writer.write(b"%d" % number)
        await eventually(lambda: all(each.received for each in port.made))
        assert {bytes(each.received) for each in port.made} == {b"%d" % number for number in range(40)}
        assert len(port.gate._shaking) == 0
        for _, writer in opened:
            writer.close()


async def test_a_reset_is_no_end(files: TlsFiles) -> None:
    async with listening(files) as port:
        _, writer = await open_tls(port.number, trusting(AUTHORITY))
        await eventually(lambda: port.in_use)
        reset(writer)
        await eventually(lambda: port.one.lost)
        assert not port.one.ended


async def test_a_broken_record_ends_the_connection(files: TlsFiles) -> None:
    async with listening(files) as port:
        _, writer = await open_tls(port.number, trusting(AUTHORITY))
        await eventually(lambda: port.in_use)
        writer.transport.raw.write(b"\x17\x03\x03\x00\x20" + b"\0" * 32)  # type: ignore[attr-defined]
        await eventually(lambda: port.in_use and port.one.lost)
        assert not port.one.received
