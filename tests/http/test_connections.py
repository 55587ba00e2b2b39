"""Connections of clients: order, flow, limits, deadlines, and their end."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.core.model import Admitted, HoldRequest, Refused, SettleResult
from gateway.core.wait import Wait
from tests.http.fakes import ANSWER, AUTH, CHAT, CHAT_STREAM, EVENT, STREAM_HEAD, answer, chunks, get, post
from tests.http.stage import Stage, staged
from tests.waiting import eventually

CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + AUTH + b"\r\n"


async def test_keep_alive_serves_one_after_the_other_on_one_upstream_connection(stage: Stage) -> None:
    client = await stage.client()
    for _ in range(5):
        assert (await client.ask(post(CHAT))).body == ANSWER
    assert stage.upstream.connections == 1
    assert len(stage.counters.charges) == 5


async def test_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    stage.upstream.scripts += [[0.05, answer(b"1")], [answer(b"2")], [answer(b"3")]]
    client = await stage.client()
    await client.send(post(CHAT) + get(b"/v1/models") + post(CHAT))
    assert [(await client.answer()).body for _ in range(3)] == [b"1", b"2", b"3"]


async def test_pipelined_requests_behind_chunked_bodies_are_their_own(stage: Stage) -> None:
    client = await stage.client()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
    await client.send(CHUNKED + body + post(CHAT) + CHUNKED + body)
    assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
    assert [received.body for received in stage.upstream.received] == [CHAT] * 3


async def test_a_bad_request_waits_behind_the_answer_in_front_of_it(stage: Stage) -> None:
    stage.upstream.scripts.append([0.1, answer()])
    client = await stage.client()
    await client.send(post(CHAT) + b"GARBAGE\r\n\r\n")
    assert (await client.answer()).body == ANSWER
    assert (await client.answer()).status == 400
    assert await client.is_closed()
    assert len(stage.counters.charges) == 1


async def test_a_request_that_began_behind_a_running_one_is_read_to_its_end(stage: Stage) -> None:
    held = asyncio.Event()
    stage.upstream.scripts += [[held, answer(b"1")], [answer(b"2")]]
    client = await stage.client()
    await client.send(post(CHAT))
    await eventually(lambda: stage.upstream.received)
    second = post(json.dumps({"model": "m", "messages": [], "user": "a" * 900_000}).encode())
    await client.send(second[:300])
    (connection,) = stage.plane._connections
    await eventually(lambda: connection._reading.paused)
    held.set()
    assert (await client.answer()).body == b"1"
    await client.send(second[300:])
    assert (await client.answer()).body == b"2"


async def test_what_is_pipelined_behind_a_running_request_is_not_read_without_bound(stage: Stage) -> None:
    held = asyncio.Event()
    stage.upstream.scripts.append([held, answer()])
    client = await stage.client()
    await client.send(post(CHAT))
    await eventually(lambda: stage.upstream.received)
    client.writer.write(get(b"/v1/models") * 200_000)  # 18 MB
    (connection,) = stage.plane._connections
    await eventually(lambda: connection._reading.paused)
    assert len(connection._side.waiting) < 2_000_000
    held.set()
    assert (await client.answer()).status == 200
    client.reset()


async def test_an_unread_body_of_a_refused_request_never_becomes_a_request(stage: Stage) -> None:
    client = await stage.client()
    smuggled = get(b"/v1/models")
    got = await client.ask(post(smuggled, b"/nope"))
    assert got.status == 404
    assert (await client.ask(post(CHAT))).body == ANSWER
    late = await stage.client()
    await late.send(b"POST /nope HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(smuggled))
    assert (await late.answer()).status == 404
    await late.send(smuggled)
    assert (await late.ask(post(CHAT))).body == ANSWER
    assert [received.method for received in stage.upstream.received] == [b"POST", b"POST"]


async def test_an_unread_body_too_large_to_drop_closes_the_connection(stage: Stage) -> None:
    client = await stage.client()
    got = await client.ask(
        b"POST /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 1000
    )
    assert got.status == 404
    assert got.one(b"connection") == b"close"
    assert await client.is_closed()


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async with staged(body_bytes_max=1000) as stage:
        client = await stage.client()
        got = await client.ask(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + AUTH + b"content-length: 99999999\r\n\r\n"
        )
        assert (got.status, got.reason) == (413, "request_too_large")
        assert await client.is_closed()


async def test_a_client_that_reads_only_after_it_sent_everything_is_told_too(stage: Stage) -> None:
    client = await stage.client()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + AUTH
    client.writer.write(head + b"content-length: %d\r\n\r\n" % (33 * 2**20))
    for _ in range(33):
        client.writer.write(b"x" * 2**20)
        await client.writer.drain()
    got = await client.answer()
    assert (got.status, got.reason) == (413, "request_too_large")
    assert await client.is_closed()


async def test_what_a_refused_client_still_sends_is_read_to_a_limit() -> None:
    async with staged(body_bytes_max=1000, lingered_bytes_max=2**20) as stage:
        client = await stage.client()
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + AUTH)
        await client.send(b"content-length: 99999999\r\n\r\n")

        async def flood() -> None:
            for _ in range(99):
                client.writer.write(b"x" * 2**20)
                await client.writer.drain()

        with pytest.raises(ConnectionError):
            await flood()


async def test_a_chunked_body_is_counted_as_it_comes() -> None:
    async with staged(body_bytes_max=1000) as stage:
        client = await stage.client()
        await client.send(CHUNKED)
        for _ in range(11):
            client.writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
        got = await client.answer()
        assert (got.status, got.reason) == (413, "request_too_large")
        assert not stage.counters.holds


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n", b"5\r\nhello!\r\n0\r\n\r\n", b"-5\r\n", b"0x5\r\n", b"5 \r\nhello\r\n", b"5\nhello\r\n",
        b"fffffffffffffffff\r\n", b"5;" + b"a" * 300 + b"\r\n", b"0\r\nbad trailer\r\n\r\n", b"\r\n",
        b"5;a\x00\r\nhello\r\n", b"0\r\n" + b"t: " + b"x" * 250 + b"\r\n" + b"t: x\r\n" * 4000 + b"\r\n",
        b"1;" + b"e" * 200 + b"\r\nx\r\n" + (b"1;" + b"e" * 200 + b"\r\nx\r\n") * 100,
    ],
)  # fmt: skip
async def test_broken_chunks_are_refused(stage: Stage, body: bytes) -> None:
    client = await stage.client()
    await client.send(CHUNKED + body)
    got = await client.answer()
    assert (got.status, got.reason) == (400, "invalid_request")
    assert await client.is_closed()
    assert not stage.upstream.received


async def test_a_head_that_drips_is_answered_and_closed() -> None:
    async with staged(head_s=0.3) as stage:
        client = await stage.client()
        client.writer.write(b"G")
        answered = asyncio.create_task(client.answer())
        while not answered.done():
            client.writer.write(b"a")
            await asyncio.wait({answered}, timeout=0.02)
        assert (await answered).status == 408
        assert await client.is_closed()


async def test_a_head_that_never_ends_is_refused_in_the_shape_of_its_path() -> None:
    async with staged(head_s=0.5) as stage:
        client = await stage.client()
        await client.send(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n")
        got = await client.answer()
        assert (got.status, b'"type":"error"' in got.body) == (408, True)


async def test_a_body_that_drips_is_answered_and_closed() -> None:
    async with staged(body_s=0.3) as stage:
        stage.upstream.expects_cut = True
        for path in (b"/v1/chat/completions", b"/services/search/x"):
            client = await stage.client()
            await client.send(post(CHAT, path)[:-30])
            answered = asyncio.create_task(client.answer())
            while not answered.done():
                client.writer.write(b" ")
                await asyncio.wait({answered}, timeout=0.02)
            assert (await answered).status == 408
            assert await client.is_closed()
        assert len(stage.counters.releases) == 1


async def test_idle_connections_are_closed() -> None:
    async with staged(keep_alive_s=0.1, head_s=0.2) as stage:
        used, unused = await stage.client(), await stage.client()
        await used.ask(post(CHAT))
        assert await used.is_closed()
        assert await unused.is_closed()


async def test_connections_over_the_limit_are_turned_away() -> None:
    async with staged(connections_max=2) as stage:
        kept = [await stage.client() for _ in range(2)]
        for client in kept:
            await client.ask(post(CHAT))
        got = await (await stage.client()).answer()
        assert (got.status, got.reason) == (503, "overloaded")
        assert (await kept[0].ask(post(CHAT))).status == 200
        kept[1].close()
        await eventually(lambda: stage.connections == 1)
        assert (await stage.ask(post(CHAT))).status == 200


async def test_a_slow_reader_slows_the_upstream_down(stage: Stage) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
        for _ in range(2000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    stage.upstream.handler = flood
    client = await stage.client()
    await client.send(get(b"/services/search/x"))
    await eventually(lambda: sent > 0)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    assert sent < 60_000_000  # what the sockets hold, not what there is
    size = 0
    while size < 200_000_000:
        size += len(await client.reader.read(1 << 20))
    await stage.settled()


async def test_a_slow_upstream_slows_the_client_down(stage: Stage) -> None:
    go = asyncio.Event()

    async def sleepy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        left = 30_000_000
        while left:
            left -= len(await reader.read(1 << 20))
        writer.write(answer())

    stage.upstream.handler = sleepy
    client = await stage.client()
    client.writer.write(
        b"POST /services/search/x HTTP/1.1\r\nhost: x\r\n" + AUTH + b"content-length: 30000000\r\n\r\n"
    )
    client.writer.write(b"x" * 30_000_000)
    await eventually(client.writer.transport.get_write_buffer_size)
    before, unsent = -1, 0
    while before != unsent:
        before = unsent
        await asyncio.sleep(0.3)
        unsent = client.writer.transport.get_write_buffer_size()
    assert unsent > 5_000_000
    go.set()
    assert (await client.answer()).body == ANSWER


async def test_a_client_that_never_reads_is_given_up() -> None:
    async with staged(client_write_s=0.2) as stage:
        stage.upstream.scripts.append(
            [b"HTTP/1.1 200 OK\r\ncontent-length: 90000000\r\n\r\n" + b"x" * 90_000_000]
        )
        client = await stage.client()
        client.reader._limit = 1  # type: ignore[attr-defined] # the stream stops reading at twice this
        await client.send(get(b"/services/search/x"))
        await stage.settled()
        assert len(stage.counters.charges) == 1


async def test_a_client_that_hangs_up_is_drained_and_charged_in_full(stage: Stage) -> None:
    more = asyncio.Event()
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":50,"total_tokens":57}}\n\n'
    stage.upstream.scripts.append(
        [STREAM_HEAD + chunks(EVENT, end=False), more, chunks(EVENT * 9, usage, b"data: [DONE]\n\n")]
    )
    client = await stage.client()
    await client.send(post(CHAT_STREAM))
    await client.read_until(EVENT)
    client.reset()
    await eventually(lambda: stage.connections == 0)
    more.set()
    await stage.settled()
    assert stage.counters.charges[0].tokens == 57
    assert stage.tally.client_disconnects == 1


async def test_a_route_may_abort_when_its_client_hangs_up(stage: Stage) -> None:
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 30.0])
    client = await stage.client()
    await client.send(post(CHAT_STREAM, b"/v1/abort"))
    await client.read_until(EVENT)
    client.close()
    await stage.settled()
    (charge,) = stage.counters.charges
    assert 0 < charge.tokens < 57
    await eventually(lambda: stage.upstream_connections == 0)


async def test_draining_is_bounded_in_time_and_tokens() -> None:
    for bounds in ({"drain_s": 0.1}, {"drain_tokens_max": 5}):
        async with staged(**bounds) as stage:
            stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False)])
            stage.upstream.scripts[0] += [0.02, chunks(EVENT, end=False)] * 500
            client = await stage.client()
            await client.send(post(CHAT_STREAM))
            await client.read_until(EVENT)
            client.reset()
            await stage.settled()
            assert stage.counters.charges[0].tokens < 100


async def test_a_client_gone_before_the_upstream_was_asked_costs_nothing(stage: Stage) -> None:
    client = await stage.client()
    await client.send(post(CHAT)[:-5])
    await eventually(lambda: any(one._buffered for one in stage.plane._connections))
    client.reset()
    await eventually(lambda: stage.connections == 0)
    assert not stage.upstream.received
    assert not stage.counters.holds


async def test_a_client_may_close_its_sending_side(stage: Stage) -> None:
    stage.upstream.scripts.append([0.05, answer()])
    client = await stage.client()
    await client.send(post(CHAT))
    client.writer.write_eof()
    assert (await client.answer()).body == ANSWER
    assert await client.is_closed()


async def test_a_cut_answer_that_would_end_by_close_is_reset(stage: Stage) -> None:
    stage.counters.settled = None
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.05, chunks(b"x", end=True)])
    client = await stage.client()
    await client.send(post(CHAT_STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
    with pytest.raises(ConnectionError):
        await client.reader.read()


async def test_drain_finishes_what_runs_and_closes_what_is_idle(stage: Stage) -> None:
    idle, busy = await stage.client(), await stage.client()
    await idle.ask(post(CHAT))
    stage.upstream.scripts.append([0.2, answer()])
    await busy.send(post(CHAT))
    await eventually(lambda: len(stage.upstream.received) == 2)
    draining = asyncio.create_task(stage.plane.drain(5))
    assert await idle.is_closed()
    got = await busy.answer()
    assert got.body == ANSWER
    assert got.one(b"connection") == b"close"
    await draining
    with pytest.raises(ConnectionError):
        await stage.client()


async def test_a_client_that_goes_on_sending_is_told_to_leave_before_it_is_cut_off() -> None:
    """Its next answer says so; only who stays silent finds the connection closed."""
    async with staged(quiet_s=1.5) as stage:
        busy, silent, late = await stage.client(), await stage.client(), await stage.client()
        await silent.ask(post(CHAT))
        await busy.ask(post(CHAT))
        draining = asyncio.create_task(stage.plane.drain(30))
        await eventually(lambda: stage.plane.draining)
        for client in (busy, late, await stage.client()):
            got = await client.ask(post(CHAT))
            assert got.status == 200
            assert got.one(b"connection") == b"close"
            assert await client.is_closed()
        assert await silent.is_closed()
        await draining
        with pytest.raises(ConnectionError):
            await stage.client()


async def test_a_client_that_was_accepted_last_is_served_though_others_came_all_the_time() -> None:
    async with staged(quiet_s=8.0) as stage:
        last = await stage.client()
        await last.ask(post(CHAT))  # it is there, whatever it had to do for that
        draining = asyncio.create_task(stage.plane.drain(12))
        with pytest.raises(ConnectionError):  # noqa: PT012  # the last that came in is asked
            while True:
                last = await stage.client()
                await asyncio.sleep(0.05)
        assert (await last.ask(post(CHAT))).status == 200
        await draining


async def test_drain_ends_at_its_grace(stage: Stage) -> None:
    stage.upstream.scripts.append([30.0])
    client = await stage.client()
    await client.send(post(CHAT))
    await eventually(lambda: stage.upstream.received)
    await stage.plane.drain(0.1)
    got = await client.answer()
    assert (got.status, got.reason) == (503, "overloaded")
    assert got.one(b"retry-after") == b"1"
    assert await client.is_closed()


async def test_a_long_call_is_kept_from_its_deadline() -> None:
    async with staged(watch_after_s=0.05) as stage:
        stage.upstream.scripts.append(
            [STREAM_HEAD + chunks(EVENT, end=False), 0.3, chunks(EVENT, end=False), 0.1, chunks()]
        )
        await stage.ask(post(CHAT_STREAM))
        (observed,) = stage.counters.watched
        assert stage.counters.unwatched == [observed]
        assert (observed.held, observed.request_id) == (20, stage.counters.holds[0].request_id)
        assert observed.tokens > 0


async def test_a_settlement_is_never_interrupted_by_the_client(stage: Stage) -> None:
    stage.counters.silent = True
    client = await stage.client()
    await client.send(post(CHAT, b"/v1/abort"))
    await stage.settled()
    client.reset()
    await eventually(lambda: stage.connections == 0)
    stage.counters.waiting[0].set(SettleResult.DONE)
    await eventually(lambda: stage.tally.requests)
    assert len(stage.counters.settlements) == 1


async def test_what_costs_nothing_is_not_drained(stage: Stage) -> None:
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 30.0])
    client = await stage.client()
    before = stage.plane.clock.now - 1.0
    await client.send(get(b"/v1/models/m"))
    await client.read_until(EVENT)
    now = stage.plane.clock.now + 1.0
    assert (stage.plane.serves_since(before), stage.plane.serves_since(now)) == (False, True)
    client.reset()
    await eventually(lambda: stage.upstream_connections == 0)
    assert stage.plane.calls == 0
    assert not stage.plane.serves_since(now)


async def test_a_client_gone_while_its_hold_was_taken_or_its_upstream_called_is_released(
    stage: Stage,
) -> None:
    real, held = stage.counters.reserve, asyncio.Event()

    async def slow(request: HoldRequest) -> Admitted | Refused:
        decision = await real(request)
        wait: Wait[None] = Wait()
        waiter = asyncio.ensure_future(held.wait())
        waiter.add_done_callback(lambda _: wait.set(None))
        await wait
        return decision

    stage.counters.reserve = slow  # type: ignore[method-assign] # slower, else the same
    client = await stage.client()
    await client.send(post(CHAT))
    await eventually(lambda: stage.counters.holds)
    client.reset()
    await eventually(lambda: stage.connections == 0)
    held.set()
    await stage.settled()
    assert len(stage.counters.releases) == 1
    assert not stage.upstream.received
