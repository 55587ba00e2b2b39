"""A socket that sends very many messages takes its turn like others, and waits where it sends too many."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import TextMessage

from gateway.core.families.openai.realtime import OPEN_MAX, RealtimeSession
from gateway.features.websockets.sockets import MessageBucket
from tests.features.websockets.live_upstream import LiveUpstream
from tests.features.websockets.test_live import CREATED, connected, live, received, responding, until
from tests.features.websockets.test_live_debts import COMMIT, Strict, leave, played
from tests.waiting import eventually

CLEAR = {"type": "input_audio_buffer.clear"}
COMMITTED = {"type": "input_audio_buffer.committed", "item_id": "i"}


def frames(message: dict[str, Any], number: int) -> bytes:
    """A client's frames of this message, so many times."""
    client = Connection(ConnectionType.CLIENT)
    return b"".join([client.send(TextMessage(data=json.dumps(message))) for _ in range(number)])


async def silent(socket: LiveUpstream) -> None:
    """Answer nothing."""
    await socket.send(CREATED)
    while True:
        await socket.receive()


async def committing(socket: LiveUpstream) -> None:
    """Answer commits once so many are open."""
    await socket.send(CREATED)
    for number in range(1, OPEN_MAX + 7):
        await socket.until("input_audio_buffer.commit")
        if number >= OPEN_MAX:
            await socket.send(COMMITTED)
    await silent(socket)


def test_message_rate_limit_lets_a_burst_of_five_seconds_of_messages_through_at_once() -> None:
    bucket = MessageBucket(2, now=100.0)
    assert [bucket.take(100.0) for _ in range(10)] == [0.0] * 9 + [0.5]
    assert bucket.take(100.5) == 0.5
    assert bucket.take(103.0) == 0.0  # five came back for the one that was lacking and this one
    assert [bucket.take(10_000.0) for _ in range(10)] == [0.0] * 9 + [0.5]


def test_long_text_counts_as_another_live_message_for_each_four_kib() -> None:
    bucket = MessageBucket(2, now=100.0)
    bucket.spend(4_095)
    assert bucket.take(100.0) == 0.0  # nine are left
    bucket.spend(10 * 4_096)
    assert bucket.take(100.0) == 1.5  # two lack, and the next one


def test_cost_of_computing_the_tokens_a_session_needs_does_not_grow_with_open_messages() -> None:
    def steps(act: Callable[[], object]) -> int:
        count = 0

        def step(*_: object) -> None:
            nonlocal count
            count += 1

        before = sys.getprofile()
        sys.setprofile(step)
        try:
            act()
        finally:
            sys.setprofile(before)
        return count

    def opened(number: int) -> RealtimeSession:
        session = RealtimeSession({"model": "m"})
        session.ask({"type": "session.update", "session": {"type": "realtime"}}, 300)
        for _ in range(number):
            session.ask(dict(COMMIT), 38)
            session.hear(json.dumps(COMMITTED | {"item_id": str(number)}).encode())
            session.ask(dict(COMMIT), 38)
        return session

    few, many = opened(1), opened(500)
    for act in (lambda one: one.needs, lambda one: one.pending, lambda one: one.ask(dict(COMMIT), 38)):
        assert steps(lambda: act(few)) == steps(lambda: act(many))  # noqa: B023  # called at once


async def test_session_with_too_many_unanswered_messages_is_read_later_and_loses_no_message() -> None:
    async with live(committing) as (stage, sockets), connected(stage) as socket:
        await until(socket, "session.created")
        for _ in range(OPEN_MAX + 6):
            await socket.send_json(COMMIT)
        assert [(await received(socket))["type"] for _ in range(7)] == [COMMITTED["type"]] * 7
        assert len(sockets[0].heard) == OPEN_MAX + 6


async def test_socket_handles_a_single_message_in_each_turn_of_the_event_loop() -> None:
    async with live(silent) as (stage, _), connected(stage) as socket:
        await until(socket, "session.created")
        [connection] = stage.plane._connections
        there: Any = connection.transport
        there.data_received(frames(COMMIT, 50))
        counts = [len(there._session._open_requests)]
        while counts[-1] < 50:
            await asyncio.sleep(0)
            counts.append(len(there._session._open_requests))
        assert max(after - before for before, after in pairwise(counts)) == 1
        assert counts[0] == 1


async def test_client_flooding_a_socket_with_messages_does_not_block_other_sockets() -> None:
    async def script(socket: LiveUpstream) -> None:
        await (responding if len(sockets) > 1 else silent)(socket)

    async with live(script, live_messages_s=1) as (stage, sockets):
        async with connected(stage) as greedy:
            await until(greedy, "session.created")
            greedy._writer.transport.write(frames(CLEAR, 3_000))
            await eventually(lambda: len(sockets[0].heard) >= 5)  # what may come at once
            async with connected(stage) as socket:
                await until(socket, "session.created")
                await socket.send_json({"type": "response.create", "response": {}})
                await until(socket, "response.done")
            await leave(greedy, politely=False)
        await eventually(lambda: stage.plane.sockets.used == 0)
        assert 5 <= len(sockets[0].heard) < 3_000


async def test_disconnect_of_a_client_is_noticed_behind_thousands_of_unread_messages() -> None:
    async with live(silent, live_messages_s=1_000) as (stage, sockets):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            socket._writer.transport.write(frames(COMMIT, 50_000))
            await eventually(lambda: len(sockets[0].heard) == OPEN_MAX)
            await leave(socket, politely=False)
        await eventually(lambda: stage.plane.sockets.used == 0)
        assert len(sockets[0].heard) == OPEN_MAX


async def test_live_messages_that_cost_no_tokens_leave_no_hold_and_start_no_call() -> None:
    async with played(1, socket_unasked_s=0.05) as (stage, _):
        strict = Strict(stage, 20_000)
        async with connected(stage) as socket:
            await until(socket, "session.created")

            async def free() -> bool:
                await socket.send_json(CLEAR)
                await until(socket, "error")
                return not strict.held

            await eventually(free)
            for _ in range(5):
                await free()
        assert len(stage.counters.holds) == 1
        assert not strict.used


async def test_events_the_upstream_sent_before_disconnecting_all_reach_the_client() -> None:
    async def script(socket: LiveUpstream) -> None:
        await socket.send(*[CREATED] * 200)
        socket.writer.close()

    async with live(script) as (stage, _), connected(stage) as socket:
        assert [(await received(socket))["type"] for _ in range(200)] == ["session.created"] * 200
