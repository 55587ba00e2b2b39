"""Whoever has much to be done waits for a turn, and a turn is a moment."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Callable
from typing import cast

from gateway.http.fair_share import AT_ONCE_BYTES_MAX, TURN_S_MAX, FairQueue
from tests.http.fakes import CHAT_STREAM, DONE_EVENT, EVENT, USAGE_EVENT, chunks, get, post
from tests.http.stage import staged
from tests.waiting import eventually


class Loop:
    """Keeps what is to be called soon."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run_once(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Scene:
    """Turns whose every user takes `took_s`; `ran` are those who had theirs, in order."""

    def __init__(self, took_s: float) -> None:
        self.loop = Loop()
        self.time = 0.0
        self.ran: list[int] = []
        self.took_s = took_s
        self.turns = FairQueue(cast("asyncio.AbstractEventLoop", self.loop), lambda: self.time)

    def wait(self, number: int, *, again: bool = False) -> None:
        def go_on() -> None:
            self.ran.append(number)
            self.time += self.took_s
            if again:
                self.wait(number, again=True)

        self.turns.wait_for(go_on)


def test_a_little_is_done_at_once() -> None:
    scene = Scene(0.0)
    assert scene.turns.take_now(AT_ONCE_BYTES_MAX)
    assert not scene.turns.take_now(1)
    assert not scene.loop.soon


def test_who_waits_goes_first() -> None:
    scene = Scene(0.0)
    scene.wait(1)
    assert not scene.turns.take_now(1)
    scene.loop.run_once()
    assert scene.ran == [1]
    assert scene.turns.take_now(1)


def test_what_was_used_up_is_there_again_behind_a_turn() -> None:
    scene = Scene(0.0)
    assert scene.turns.take_now(AT_ONCE_BYTES_MAX)
    scene.wait(1)
    scene.loop.run_once()
    assert scene.turns.take_now(AT_ONCE_BYTES_MAX)


def test_the_loop_has_its_turn_after_a_moment_and_the_rest_goes_on_in_order() -> None:
    scene = Scene(TURN_S_MAX / 2)
    for number in range(5):
        scene.wait(number)
    scene.loop.run_once()
    assert scene.ran == [0, 1]
    while scene.loop.soon:
        scene.loop.run_once()
    assert scene.ran == [0, 1, 2, 3, 4]


def test_who_always_has_more_is_behind_all_others() -> None:
    scene = Scene(0.0)
    scene.wait(1, again=True)
    scene.wait(2, again=True)
    for _ in range(3):
        scene.loop.run_once()
    assert scene.ran == [1, 2, 1, 2, 1, 2]


async def test_who_pipelines_much_lets_others_come_between() -> None:
    async with staged() as stage:
        greedy, other = await stage.client(), await stage.client()
        await greedy.send(get(b"/nope") * 500)
        assert (await other.ask(get(b"/nope"), "GET")).status == 404
        assert any(connection._side.waiting for connection in stage.plane._connections)
        for _ in range(500):
            assert (await greedy.answer("GET")).status == 404


async def test_refusals_are_not_piled_up_for_a_client_that_reads_none() -> None:
    async with staged() as stage:
        client = await stage.client()
        # Else the kernel may keep all of them, and this process much.
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reading = cast("asyncio.ReadTransport", client.writer.transport)
        reading.pause_reading()
        count = 50_000
        client.writer.write(get(b"/nope") * count)
        await eventually(lambda: any(one.blocked for one in stage.plane._connections))
        reading.resume_reading()
        answers, read = 0, b""
        while answers < count:
            piled = max(one.transport.get_write_buffer_size() for one in stage.plane._connections)
            assert piled < 1 << 20
            read = read[-7:] + await client.reader.read(1 << 20)
            answers += read.count(b"HTTP/1.1")
        client.reset()


async def test_an_answer_that_decodes_to_much_is_read_in_turns_and_passes_as_it_came() -> None:
    body = gzip.compress(EVENT * 20_000 + USAGE_EVENT + DONE_EVENT)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    asked = CHAT_STREAM.replace(b'"stream":true', b'"stream":true,"stream_options":{"include_usage":true}')
    async with staged() as stage:
        for framed in (b"content-length: %d\r\n\r\n" % len(body) + body,
                       b"transfer-encoding: chunked\r\n\r\n" + chunks(body[:100], body[100:])):  # fmt: skip
            stage.upstream.scripts.append([head + framed])
            got = await stage.ask(post(asked, fields=b"accept-encoding: gzip\r\n"))
            assert got.body == body
        await stage.settled(2)
        assert [charge.tokens for charge in stage.counters.charges] == [12, 12]
