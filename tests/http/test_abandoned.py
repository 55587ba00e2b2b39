"""Clients that leave at every byte of what they send, before upstreams that answer at any time.

h11 reads every byte the upstream got, in order, connection by connection: what one client left of
its request is never continued by another's.
"""

from __future__ import annotations

import asyncio

import h11
import pytest

from gateway.core.model import Settlement
from tests.http.fakes import AUTH, CHAT, CHAT_STREAM, answer, post, told
from tests.http.leaving import BODIES, CHUNKED, NEVER_RELEASED, SENT, is_told, leave, requests_of
from tests.http.stage import Client, Close, Stage, staged
from tests.waiting import HUNG_S, eventually

HONEST = b"honest"
LEFT = b"POST /services/search/left HTTP/1.1\r\nhost: x\r\n" + AUTH
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
SMALL = [kind for kind in BODIES if kind != "large"]


class Upstream:
    """Reads request by request, as servers do that keep what they got. `answers` what is left, when it says.

    `early` behind the head, `late` once the client is gone, `never`; `interim` is early with a 103 in
    front, `close` early and with the connection's end, `cut` the beginning of an answer and no more.
    """

    def __init__(self, answers: str) -> None:
        self.answers = answers
        self.gone = asyncio.Event()
        self.wires: list[bytes] = []
        self.heads = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = len(self.wires)
        self.wires.append(b"")
        oracle, target = h11.Connection(h11.SERVER), b""
        while True:
            event = oracle.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data:
                    return
                self.wires[wire] += data
                oracle.receive_data(data)
            elif isinstance(event, h11.Request):
                target = event.target
                if target == b"/left":
                    self.heads += 1
                    self._begin(writer)
            elif isinstance(event, h11.EndOfMessage):
                if target != b"/left":
                    writer.write(answer(HONEST))
                behind = oracle.trailing_data[0]
                oracle = h11.Connection(h11.SERVER)
                if behind:
                    oracle.receive_data(behind)

    def _begin(self, writer: asyncio.StreamWriter) -> None:
        if self.answers == "late":
            task = asyncio.ensure_future(self.gone.wait())
            task.add_done_callback(lambda _: writer.write(answer(b"late")))
        elif self.answers in ("early", "interim"):
            writer.write((EARLY_HINTS if self.answers == "interim" else b"") + answer(b"early"))
        elif self.answers == "close":
            writer.write(answer(b"early", b"connection: close\r\n"))
            writer.close()
        elif self.answers == "cut":
            writer.write(answer(b"early")[:-1])

    async def release(self) -> None:
        """The client is gone."""
        self.gone.set()
        self.gone = asyncio.Event()


async def left(stage: Stage, upstream: Upstream, sent: bytes, *, told: bool, abrupt: bool) -> None:
    """Send the beginning of a request and go; `told` where an upstream hears of it."""
    await leave(stage, sent, lambda: upstream.heads, upstream.release, told=told, abrupt=abrupt)


# Where all is collected first no upstream hears of what is left, whatever it would answer.
@pytest.mark.parametrize(
    ("answers", "collected"),
    [*((one, 0) for one in ("early", "late", "never", "interim", "close", "cut")), ("early", 256 * 1024)],
)
@pytest.mark.parametrize("kind", SMALL)
async def test_what_a_client_leaves_is_never_continued_by_another(
    kind: str, answers: str, collected: int
) -> None:
    framing, body = BODIES[kind]
    async with staged(collected_bytes_max=collected, drain_s=NEVER_RELEASED) as stage:
        upstream = Upstream(answers)
        stage.upstream.handler = upstream.serve
        for cut in range(len(body)):
            sent = LEFT + framing + body[:cut]
            told = not collected and is_told(kind, body[:cut])
            await left(stage, upstream, sent, told=told, abrupt=cut % 2 == 0)
            charged = len(stage.counters.charges)
            got = await stage.ask(post(b"%d" % cut, b"/services/search/next"))
            assert (got.status, got.body) == (200, HONEST)
            assert len(stage.counters.charges) == charged + 1
            assert len(stage.counters.settlements) == len(stage.counters.holds)
        arrived = requests_of(upstream.wires)
        assert sorted(int(body) for target, body, _ in arrived if target == b"/next") == [*range(len(body))]
        for target, part, whole in arrived:
            assert target in (b"/left", b"/next")
            assert whole == (target == b"/next")
            assert target == b"/next" or SENT.startswith(part)
        if collected:
            assert not upstream.heads


@pytest.mark.parametrize("answers", ["early", "late", "never"])
async def test_an_upstream_that_heard_of_a_request_is_charged_whoever_leaves(answers: str) -> None:
    """A last byte that is missing is no free ride."""
    async with staged(collected_bytes_max=0) as stage:
        upstream = Upstream(answers)
        stage.upstream.handler = upstream.serve
        sent = LEFT + BODIES["length"][0] + SENT[:9]
        for _ in range(20):
            await left(stage, upstream, sent, told=True, abrupt=False)
        assert [one.units for one in stage.counters.charges] == [1] * 20
        assert upstream.heads == 20


async def test_a_client_that_leaves_pays_the_units_it_stated_and_its_row_tells() -> None:
    async with staged(collected_bytes_max=0) as stage:
        upstream = Upstream("never")
        stage.upstream.handler = _everything_is_left(upstream)
        head = b"POST /trusted HTTP/1.1\r\nhost: x\r\nx-tollkeeper-units: 7\r\n" + AUTH
        await left(stage, upstream, head + BODIES["length"][0] + SENT[:9], told=True, abrupt=True)
        charge = _only(stage)
        assert (charge.units, charge.credits) == (7, 21)
        assert told(charge.metadata)["status"] == 0


def _everything_is_left(upstream: Upstream):  # type: ignore[no-untyped-def]  # a handler of streams
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        upstream.heads += 1
        await reader.read(-1)

    return serve


def _only(stage: Stage) -> Settlement:
    (charge,) = stage.counters.charges
    return charge


@pytest.mark.parametrize("end", [b"zz\r\n", b"\n", b"stall"])
async def test_a_body_broken_off_on_purpose_pays_as_one_that_was_left(end: bytes) -> None:
    async with staged(collected_bytes_max=0, body_s=0.3 if end == b"stall" else HUNG_S) as stage:
        upstream = Upstream("never")
        stage.upstream.handler = upstream.serve
        client = await stage.client()
        await client.send(LEFT + CHUNKED + b"9\r\n012345678\r\n")
        await eventually(lambda: upstream.heads)
        if end != b"stall":
            await client.send(end)
        assert (await client.answer()).status == (408 if end == b"stall" else 400)
        assert _only(stage).units == 1
        await eventually(lambda: stage.upstream_connections == 0)


async def test_an_upstream_that_breaks_off_costs_a_client_that_stayed_nothing() -> None:
    async with staged(collected_bytes_max=0) as stage:
        stage.upstream.handler = _closes_behind_the_head
        client = await stage.client()
        await client.send(LEFT + BODIES["length"][0] + SENT[:9])
        assert (await client.answer()).status == 502
        assert not stage.counters.charges
        assert len(stage.counters.releases) == 1


async def _closes_behind_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("request_", [post(CHAT, b"/v1/abort"), post(CHAT_STREAM, b"/v1/abort")])
async def test_a_route_that_aborts_charges_at_least_its_units_and_its_input(
    stage: Stage, request_: bytes
) -> None:
    upstream = Upstream("never")
    stage.upstream.handler = _everything_is_left(upstream)
    await left(stage, upstream, request_, told=True, abrupt=True)
    charge = _only(stage)
    assert (charge.units, charge.tokens > 0) == (1, True)


PING_THEN_ERROR = b': ping\n\ndata: {"error":{"message":"timed out","code":408}}\n\n'
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + PING_THEN_ERROR
ERROR = b'{"error":{"message":"timed out"}}'


@pytest.mark.parametrize("field", [b"", b',"timeout":1', b',"request_timeout":"1"', b',"Stream_Timeout":1'])
@pytest.mark.parametrize(
    ("came", "ends_the_call"),
    [
        *((answer(ERROR, status=status), True) for status in (b"408 x", b"504 x", b"524 x", b"200 OK")),
        (answer(b""), True),
        (EVENTS, True),
        *((answer(ERROR, status=status), False) for status in (b"400 x", b"429 x", b"500 x", b"503 x")),
    ],
)
async def test_what_the_timeout_of_a_call_ends_costs_its_input(
    field: bytes, came: bytes, ends_the_call: bool
) -> None:
    body = (CHAT_STREAM if came is EVENTS else CHAT)[:-1] + field + b"}"
    async with staged() as stage:
        stage.upstream.scripts = [[came, Close()]]
        await stage.ask(post(body))
        await stage.settled(1)
        if not (field and ends_the_call):
            assert not stage.counters.charges
            return
        charge = _only(stage)
        assert (charge.units, charge.tokens) == (1, -(-len(stage.upstream.received[0].body) // 3))
        assert told(charge.metadata)["estimated"]


async def test_abandoned_uploads_free_everything_at_once() -> None:
    """Hold, slot and upstream connection: whoever comes next finds them free, whatever an upstream does."""
    async with staged(
        collected_bytes_max=0, upstream_connections_max=20, upstream_connections_share=1.0
    ) as stage:
        upstream = Upstream("never")
        stage.upstream.handler = upstream.serve
        sent = LEFT + b"content-length: 1000\r\n\r\n" + SENT
        for _ in range(3):
            clients: list[Client] = []
            for number in range(20):
                client = await stage.client()
                await client.send(sent)
                clients.append(client)
                await eventually(lambda heads=number: stage.upstream_connections > heads)
            for client in clients:
                client.close()
            await eventually(lambda: stage.plane.calls == 0)
            await eventually(lambda: stage.upstream_connections == 0)
            assert len(stage.counters.settlements) == len(stage.counters.holds)
        assert (await stage.ask(post(b"1", b"/services/search/next"))).status == 200


async def test_a_head_that_would_fill_the_gap_of_another_is_read_as_itself() -> None:
    """The request that is left is owed exactly as many bytes as the next one's head is long."""
    async with staged(collected_bytes_max=0) as stage:
        upstream = Upstream("early")
        stage.upstream.handler = upstream.serve
        smuggled = b"GET /admin/secret HTTP/1.1\r\nhost: x\r\n\r\n"
        for gap in range(1, 400, 7):
            sent = LEFT + b"content-length: %d\r\n\r\n" % (5 + gap) + b"xxxxx"
            await left(stage, upstream, sent, told=True, abrupt=False)
            assert (await stage.ask(post(smuggled, b"/services/search/public"))).body == HONEST
        arrived = requests_of(upstream.wires)
        assert {target for target, _, _ in arrived} == {b"/left", b"/public"}
        assert {body for target, body, _ in arrived if target == b"/public"} == {smuggled}
