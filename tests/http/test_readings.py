"""Clients that leave at every byte of what they send, before servers that read as Node, Go and aiohttp do.

What the gateway sends passes through a relay that keeps it; h11 reads it, connection by connection.
"""

from __future__ import annotations

import asyncio

import h11
import pytest

from tests.http.fakes import AUTH, post
from tests.http.readings import HONEST, READINGS, Server
from tests.http.stage import Stage, eventually, staged

SENT = b"0123456789"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
BODIES = {
    "length": (b"content-length: 10\r\n\r\n", SENT),
    "large": (b"content-length: 300000\r\n\r\n", SENT),
    "chunks": (CHUNKED, b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"),
    "trailers": (CHUNKED, b"a;e=1\r\n0123456789\r\n0\r\ntrailer: x\r\n\r\n"),
    "continue": (b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n", SENT),
}
NEVER_RELEASED = 60.0
STARTS = (b"POST /early ", b"POST /late ", b"POST /never ")


class Relay:
    """Passes each connection on to a server and keeps what it was sent."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.wires: list[bytearray] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = bytearray()
        self.wires.append(wire)
        answers, onward = await asyncio.open_connection("127.0.0.1", self._server.port)
        back = asyncio.ensure_future(_pass(answers, writer, bytearray()))
        await _pass(reader, onward, wire)
        await back

    @property
    def heads(self) -> int:
        """How many requests have begun here that their client leaves."""
        return sum(wire.count(start) for wire in self.wires for start in STARTS)

    def requests(self) -> list[tuple[bytes, bytes, bool]]:
        """Target and body of each request that arrived, and whether it is whole."""
        return [request for wire in self.wires for request in _requests(bytes(wire))]


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await reader.read(65_536):
            kept += data
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()


def _requests(wire: bytes) -> list[tuple[bytes, bytes, bool]]:
    found: list[tuple[bytes, bytes, bool]] = []
    while wire:
        oracle = h11.Connection(h11.SERVER)
        oracle.receive_data(wire)
        target, body, whole = b"", b"", False
        while not whole and (event := oracle.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                target = event.target
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                whole = True
        found.append((target, body, whole))
        wire = oracle.trailing_data[0] if whole else b""
    return found


async def leave(stage: Stage, relay: Relay, server: Server, sent: bytes, *, told: bool, abrupt: bool) -> None:
    """Send the beginning of a request and go; `told` where an upstream hears of it."""
    heads, before = relay.heads, stage.plane.connections
    client = await stage.client()
    await client.send(sent)
    await eventually(lambda: relay.heads > heads if told else stage.plane.calls)
    client.reset() if abrupt else client.close()
    await eventually(lambda: stage.plane.connections == before)
    await server.release()
    await eventually(lambda: stage.plane.calls == 0)


@pytest.mark.parametrize("answers", ["early", "late", "never"])
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("reading", READINGS)
async def test_what_a_client_leaves_is_never_continued_by_another(
    reading: str, kind: str, answers: str
) -> None:
    framing, body = BODIES[kind]
    left = b"POST /services/search/%b HTTP/1.1\r\nhost: x\r\n" % answers.encode() + AUTH
    async with (
        READINGS[reading]() as server,
        staged(collected_bytes_max=0, drain_s=NEVER_RELEASED) as stage,
    ):
        relay = Relay(server)
        stage.upstream.handler = relay.serve
        for cut in range(len(body)):
            # A chunked body of nothing is not over the bound of nothing: no upstream hears of it yet.
            told = kind not in ("chunks", "trailers") or b"\n0" in body[:cut]
            sent = left + framing + body[:cut]
            await leave(stage, relay, server, sent, told=told, abrupt=cut % 2 == 0)
            charged = len(stage.counters.charges)
            got = await stage.ask(post(b"%d" % cut, b"/services/search/next"))
            assert (got.status, got.body) == (200, HONEST)
            assert len(stage.counters.charges) == charged + 1
            assert len(stage.counters.settlements) == len(stage.counters.holds)
        arrived = relay.requests()
        assert sorted(int(part) for target, part, _ in arrived if target == b"/next") == [*range(len(body))]
        for target, part, whole in arrived:
            assert target in (b"/next", b"/" + answers.encode())
            assert whole == (target == b"/next")
            assert whole or SENT.startswith(part)


@pytest.mark.parametrize("reading", READINGS)
async def test_a_connection_whose_body_was_answered_early_and_sent_whole_serves_on(reading: str) -> None:
    """The oracle is no stranger to reuse: where nobody leaves, one connection carries them all."""
    async with READINGS[reading]() as server, staged(collected_bytes_max=0) as stage:
        relay = Relay(server)
        stage.upstream.handler = relay.serve
        for number in range(5):
            assert (await stage.ask(post(SENT, b"/services/search/early"))).status == 200
            assert (await stage.ask(post(b"%d" % number, b"/services/search/next"))).body == HONEST
        assert len(relay.wires) == 1
        assert [whole for _, _, whole in relay.requests()] == [True] * 10
