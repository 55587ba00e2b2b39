"""Upstreams: pooled, slow, hostile, and behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gateway.tls.certificates import load
from tests.certificates import issued
from tests.http.fakes import (
    ANSWER,
    AUTH,
    CALLER,
    CHAT,
    CHAT_STREAM,
    EVENT,
    ROUTES,
    STREAM_HEAD,
    answer,
    chunks,
    get,
    post,
)  # fmt: skip
from tests.http.stage import Close, Stage, staged
from tests.waiting import eventually

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\n\nhello",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        OK + b"content-length: -5\r\n\r\nhello",
        OK + b"content-length: 5, 5\r\n\r\nhello",
        OK + b"content-length: 99999999999999999999\r\n\r\nhello",
        OK + b"transfer-encoding: gzip\r\n\r\nhello",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n5;" + b"a" * 300 + b"\r\n",
        OK + b"a: b\x00c\r\ncontent-length: 0\r\n\r\n",
        OK + b"a: b\rc\r\ncontent-length: 0\r\n\r\n",
        OK + b"a: b\r\n folded\r\ncontent-length: 0\r\n\r\n",
        OK + b"a : b\r\ncontent-length: 0\r\n\r\n",
        OK + b"no colon\r\ncontent-length: 0\r\n\r\n",
        OK + b"a: " + b"x" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
        OK + b"a: " + b"x" * 70_000,
        b"HTTP/1.1 200 O\x01K\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK + b"content-length: 0\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_502_and_its_connection_dropped(stage: Stage, raw: bytes) -> None:
    client = await stage.client()
    stage.upstream.scripts.append([raw])
    got = await client.ask(post(CHAT))
    assert (got.status, got.reason) == (502, "upstream_unreachable")
    assert len(stage.counters.settlements) == 1
    assert [told["cause"] for told in stage.events("upstream_failed")] == ["broken"]
    assert sum(stage.tally.upstream_failures.values()) == 1
    assert (await client.ask(post(CHAT))).body == ANSWER
    assert stage.upstream.connections == 2
    await eventually(lambda: stage.upstream_connections == 1)


async def test_bytes_behind_an_answer_never_reach_the_next_client(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(b'{"a":1}') + answer(b'{"forged":1}')])
    client = await stage.client()
    assert (await client.ask(post(CHAT))).body == b'{"a":1}'
    assert (await client.ask(post(CHAT))).body == ANSWER
    assert stage.upstream.connections == 2


async def test_bytes_out_of_turn_destroy_an_idle_connection(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(), 0.05, answer(b'{"forged":1}')])
    client = await stage.client()
    await client.ask(post(CHAT))
    await eventually(lambda: stage.upstream_connections == 0)
    assert (await client.ask(post(CHAT))).body == ANSWER


async def test_an_open_connection_is_idle_once_its_answer_is_over(stage: Stage) -> None:
    assert (await stage.ask(post(CHAT))).status == 200
    told = stage.plane.snapshot()["upstream_connections_open"]
    assert isinstance(told, list)
    assert sorted(row for row in told if row[0] == "up") == [("up", "busy", 0), ("up", "idle", 1)]


async def test_interim_answers_move_nothing(stage: Stage) -> None:
    client = await stage.client()
    for early in (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3,
    ):
        stage.upstream.scripts.append([early, 0.02, answer()])
        assert (await client.ask(post(CHAT))).body == ANSWER
        stage.upstream.scripts.append([early + answer()])
        assert (await client.ask(post(CHAT))).body == ANSWER
    assert stage.upstream.connections == 1


async def test_an_answer_in_single_bytes_is_an_answer(stage: Stage) -> None:
    steps: list[bytes | float] = []
    for byte in STREAM_HEAD + chunks(EVENT, EVENT):
        steps += [bytes([byte]), 0.0]
    stage.upstream.scripts.append(list(steps))
    got = await stage.ask(post(CHAT_STREAM))
    assert (got.status, got.body, got.complete) == (200, EVENT * 2, True)


async def test_a_body_without_length_ends_with_its_connection(stage: Stage) -> None:
    stage.upstream.scripts.append([OK + b"\r\nhel", 0.02, b"lo", Close()])
    got = await stage.ask(get(b"/services/search/x"), "GET")
    assert (got.body, got.complete) == (b"hello", True)
    assert got.one(b"transfer-encoding") == b"chunked"
    stage.upstream.scripts.append([OK + b"\r\nhel", 0.05, Close(reset=True)])
    got = await stage.ask(get(b"/services/search/x"), "GET")
    assert not got.complete
    assert len(stage.counters.settlements) == 2


async def test_a_short_body_cuts_the_client(stage: Stage) -> None:
    stage.upstream.scripts.append([OK + b"content-length: 10\r\n\r\nhello", 0.05, Close()])
    got = await stage.ask(get(b"/services/search/x"), "GET")
    assert (got.body, got.complete) == (b"hello", False)


async def test_a_body_to_head_or_204_destroys_the_connection(stage: Stage) -> None:
    stage.upstream.scripts.append([OK + b"content-length: 5\r\n\r\nhello"])
    got = await stage.ask(get(b"/v1/models", method=b"HEAD"), "HEAD")
    assert (got.status, got.body) == (200, b"")
    stage.upstream.scripts.append([b"HTTP/1.1 204 No Content\r\n\r\nhello"])
    got = await stage.ask(get(b"/v1/models"), "GET")
    assert (got.status, got.body) == (204, b"")
    await stage.ask(get(b"/v1/models"), "GET")
    assert stage.upstream.connections == 3


@pytest.mark.parametrize("fields", [b"connection: close\r\n", b"Connection: foo, Close\r\n"])
async def test_an_upstream_that_closes_is_not_used_again(stage: Stage, fields: bytes) -> None:
    for _ in range(2):
        stage.upstream.scripts.append([answer(fields=fields)])
        assert (await stage.ask(post(CHAT))).body == ANSWER
    assert stage.upstream.connections == 2


async def test_an_old_upstream_is_used_again_only_if_it_says_so(stage: Stage) -> None:
    old = b"HTTP/1.0 200 OK\r\n%bcontent-length: 2\r\n\r\n{}"
    stage.upstream.scripts += [[old % b""], [old % b"connection: keep-alive\r\n"], [old % b""]]
    for _ in range(3):
        got = await stage.ask(post(CHAT))
        assert got.body == b"{}"
    assert stage.upstream.connections == 2


async def test_a_stale_pooled_connection_is_replaced_before_a_byte_is_written(stage: Stage) -> None:
    for _ in range(5):
        stage.upstream.scripts.append([answer(), Close()])
        assert (await stage.ask(post(CHAT))).body == ANSWER
        await eventually(lambda: stage.upstream_connections == 0)
    assert stage.upstream.connections == len(stage.upstream.received) == 5


async def test_a_request_that_was_written_is_never_sent_twice(stage: Stage) -> None:
    stage.upstream.scripts += [[answer()], [Close()]]
    client = await stage.client()
    assert (await client.ask(post(CHAT))).status == 200
    got = await client.ask(post(CHAT))
    assert (got.status, got.reason) == (502, "upstream_unreachable")
    assert len(stage.upstream.received) == 2
    assert stage.upstream.connections == 1


async def test_idle_upstream_connections_expire() -> None:
    async with staged(upstream_keep_alive_s=0.1) as stage:
        await stage.ask(post(CHAT))
        assert stage.upstream_connections == 1
        await eventually(lambda: stage.upstream_connections == 0)


async def test_the_pool_keeps_no_more_than_its_maximum() -> None:
    async with staged(
        upstream_idle_connections_max=2, upstream_connections_max=3, upstream_connections_share=1.0
    ) as stage:
        go = asyncio.Event()
        stage.upstream.scripts += [[go, answer()] for _ in range(3)]
        running = [asyncio.create_task(stage.ask(post(CHAT))) for _ in range(3)]
        await eventually(lambda: len(stage.upstream.received) == 3)
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (503, "overloaded")
        go.set()
        assert {(await one).status for one in running} == {200}
        await eventually(lambda: stage.upstream_connections == 2)
        assert len(stage.counters.releases) == 1


async def test_connecting_is_bounded_in_time() -> None:
    with socket.socket() as full, contextlib.ExitStack() as callers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # nobody accepts: the queue is full, further callers get no answer
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with staged(base_url=url, upstream_connect_s=0.1) as stage:
            got = await stage.ask(post(CHAT))
            assert (got.status, got.reason) == (504, "upstream_timeout")
            assert len(stage.counters.releases) == 1


async def test_a_streamed_body_passes_as_it_comes_with_its_framing() -> None:
    async with staged(collected_bytes_max=0) as stage:
        client = await stage.client()
        head = b"PUT /services/search/file HTTP/1.1\r\nhost: x\r\n" + AUTH
        await client.send(head + b"transfer-encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n")
        await eventually(lambda: stage.upstream.bytes_read)
        await client.send(b"2\r\nde\r\n0\r\ntrailer: 1\r\n\r\n")
        assert (await client.answer()).status == 200
        before = stage.upstream.bytes_read
        await client.send(head + b"content-length: 6\r\n\r\nabc")
        await eventually(lambda: stage.upstream.bytes_read > before)
        await client.send(b"def")
        assert (await client.answer()).status == 200
        first, second = stage.upstream.received
        assert (first.body, second.body) == (b"abcde", b"abcdef")
        assert first.all(b"transfer-encoding") == [b"chunked"]
        assert second.all(b"content-length") == [b"6"]


async def test_an_early_answer_to_a_streamed_body_is_an_answer(stage: Stage) -> None:

    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
        await reader.read(1 << 20)

    stage.upstream.handler = impatient
    client = await stage.client()
    await client.send(
        b"PUT /services/search/x HTTP/1.1\r\nhost: x\r\n" + AUTH + b"content-length: 9000000\r\n\r\nabc"
    )
    got = await client.answer("PUT")
    assert (got.status, got.body) == (403, b"no")
    assert got.one(b"connection") == b"close"
    assert await client.is_closed()
    await eventually(lambda: stage.upstream_connections == 0)


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_upstreams_are_verified(trusted: bool, tmp_path: object) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = f"{tmp_path}/ca.pem"
    (authority if trusted else other).cert_pem.write_to_path(ca_file)
    async with staged(upstream_tls=context, ca_file=ca_file) as stage:
        got = await stage.ask(post(CHAT))
        assert (got.status, names) == (200 if trusted else 502, ["localhost"])
        if trusted:
            assert (await stage.ask(post(CHAT))).body == ANSWER
            assert stage.upstream.connections == 1
        else:
            assert b"certificate" in got.body
            assert len(stage.counters.releases) == 1


async def test_an_upstream_that_asks_for_a_certificate_is_shown_ours(tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    theirs = issued(tmp_path / "theirs", authority, clients=clients)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = load(theirs, "").context
    for ours, status in ((issued(tmp_path / "ours", clients, "gateway@example.com"), 200), (None, 502)):
        async with staged(upstream_tls=context, ca_file=str(tmp_path / "ca.pem")) as stage:
            if ours is not None:
                plane = stage.plane
                target = replace(plane._upstreams["up"].target, cert_file=ours.certificate, key_file=ours.key)
                plane.renew(ROUTES, [target], plane.limits)
            assert (await stage.ask(post(CHAT))).status == status


async def test_a_certificate_for_another_name_is_refused(tmp_path: object) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    ca_file = f"{tmp_path}/ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    async with staged(upstream_tls=context, ca_file=ca_file) as stage:
        assert (await stage.ask(post(CHAT))).status == 502
        assert not stage.upstream.received


async def test_a_client_that_leaves_while_connecting_leaves_the_connection_to_the_next(stage: Stage) -> None:
    client = await stage.client()
    await client.send(post(CHAT, b"/v1/abort"))
    await eventually(lambda: stage.counters.holds)
    client.reset()
    await stage.settled()
    assert (await stage.ask(post(CHAT))).status == 200
    await eventually(lambda: stage.upstream_connections <= 1)


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/services/search/x", b"/free/x"])
async def test_one_organization_cannot_take_every_connection(path: bytes) -> None:
    async with staged(upstream_connections_max=8) as stage:
        go = asyncio.Event()
        stage.upstream.scripts += [[go, answer()] for _ in range(3)]
        running = [asyncio.create_task(stage.ask(post(CHAT, path))) for _ in range(2)]
        await eventually(lambda: len(stage.upstream.received) == 2)
        got = await stage.ask(post(CHAT, path))
        assert (got.status, got.reason, got.one(b"retry-after")) == (503, "overloaded", b"1")
        stage.directory.caller = replace(CALLER, organization_id=9)
        other = asyncio.create_task(stage.ask(post(CHAT, path)))
        await eventually(lambda: len(stage.upstream.received) == 3)
        go.set()
        assert {(await one).status for one in [*running, other]} == {200}
        stage.directory.caller = CALLER
        assert (await stage.ask(post(CHAT, path))).status == 200


async def test_a_share_is_given_back_however_a_call_ends() -> None:
    async with staged(upstream_connections_max=4, upstream_first_byte_s=0.1, drain_s=0.1) as stage:
        for number, script in enumerate(([Close()], [5.0], [b"not HTTP\r\n\r\n"], [answer()])):
            stage.upstream.scripts.append(script)
            await stage.ask(post(CHAT))
            await stage.settled(number + 1)
        client = await stage.client()
        stage.upstream.scripts.append([5.0])
        await client.send(post(CHAT, b"/v1/abort"))
        await eventually(lambda: len(stage.upstream.received) == 5)
        client.reset()
        await stage.settled(5)
        assert (await stage.ask(post(CHAT))).status == 200
