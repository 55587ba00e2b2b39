"""Clients that leave at every byte of what they send, before servers that read as Node, Go and aiohttp do.

What the gateway sends passes through a relay that keeps it; h11 reads it, connection by connection.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.http.fakes import AUTH, post
from tests.http.leaving import BODIES, NEVER_RELEASED, SENT, is_told, leave, requests_of
from tests.http.readings import HONEST, READINGS, Server
from tests.http.stage import staged
from tests.search import steps

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

    def heads(self) -> int:
        """How many requests have begun here that their client leaves."""
        return sum(wire.count(start) for wire in self.wires for start in STARTS)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await reader.read(65_536):
            kept += data
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()


@pytest.mark.parametrize("answers", ["early", "late", "never"])
@pytest.mark.parametrize("reading", READINGS)
async def test_what_a_client_leaves_is_never_continued_by_another(reading: str, answers: str) -> None:
    async with READINGS[reading]() as server:
        for kind in BODIES:
            await check_never_continued(server, kind, answers)


async def check_never_continued(server: Server, kind: str, answers: str) -> None:
    framing, body = BODIES[kind]
    left = b"POST /services/search/%b HTTP/1.1\r\nhost: x\r\n" % answers.encode() + AUTH
    async with staged(collected_bytes_max=0, drain_s=NEVER_RELEASED) as stage:
        relay, cuts = Relay(server), steps(range(len(body)))
        stage.upstream.handler = relay.serve
        for number, cut in enumerate(cuts):
            told, sent = is_told(kind, body[:cut]), left + framing + body[:cut]
            await leave(stage, sent, relay.heads, server.release, told=told, abrupt=number % 2 == 0)
            charged = len(stage.counters.charges)
            got = await stage.ask(post(b"%d" % cut, b"/services/search/next"))
            assert (got.status, got.body) == (200, HONEST)
            assert len(stage.counters.charges) == charged + 1
            assert len(stage.counters.settlements) == len(stage.counters.holds)
        arrived = requests_of(relay.wires)
        assert sorted(int(part) for target, part, _ in arrived if target == b"/next") == [*cuts]
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
        assert [whole for _, _, whole in requests_of(relay.wires)] == [True] * 10
