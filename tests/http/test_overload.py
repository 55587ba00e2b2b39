"""What a gateway keeps for slow ends is bounded: new is shed, what has begun goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.http.fakes import AUTH, CALLER, CHAT, post
from tests.http.stage import staged
from tests.waiting import eventually

LARGE = CHAT[:-1] + b" " * 80_000 + b"}"
SMALL = {"body_bytes_max": 100_000, "buffered_bytes_max": 400_000}
CHUNKED = post(b"").replace(b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n")


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_past_their_share_are_shed_and_those_before_go_on(chunked: bool) -> None:
    async with staged(**SMALL) as stage:
        first = await stage.client()
        await first.send(post(LARGE)[:-1])
        await eventually(lambda: stage.plane.buffers.used > 80_000)
        second = await stage.client()
        await second.send(CHUNKED + b"13880\r\n" + b" " * 80_000 if chunked else post(LARGE)[:-1])
        got = await second.answer()
        assert (got.status, got.reason, got.one(b"retry-after")) == (503, "overloaded", b"1")
        assert stage.plane.buffers.used < 90_000
        assert (await first.ask(post(LARGE)[-1:])).status == 200
        await eventually(lambda: stage.plane.buffers.used == 0)
        assert stage.plane.buffers.shed > 0


async def test_another_organization_is_served_while_one_has_used_its_share_up() -> None:
    async with staged(**SMALL) as stage:
        first = await stage.client()
        await first.send(post(LARGE)[:-1])
        await eventually(lambda: stage.plane.buffers.used > 80_000)
        stage.directory.caller = replace(CALLER, organization_id=9, key_id=9)
        other = await stage.client()
        await other.send(post(LARGE)[:-1])
        await eventually(lambda: stage.plane.buffers.used > 160_000)
        assert (await other.ask(post(LARGE)[-1:])).status == 200
        first.reset()
        await eventually(lambda: stage.plane.buffers.used == 0)


async def test_a_new_call_is_shed_while_too_much_is_kept_already() -> None:
    async with staged(**SMALL) as stage:
        stage.plane.buffers.add(CALLER, 500_000)
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason, got.one(b"retry-after")) == (503, "overloaded", b"1")
        assert not stage.counters.holds
        stage.plane.buffers.release(CALLER, 500_000)
        assert (await stage.ask(post(CHAT))).status == 200


async def test_heads_that_are_not_complete_are_bounded_and_an_honest_one_goes_on() -> None:
    async with staged(heads_bytes_max=2000, head_free_bytes=0) as stage:
        honest = await stage.client()
        request = post(CHAT, fields=b"x-long: %b\r\n" % (b"x" * 1500))
        await honest.send(request[:1600])
        await eventually(lambda: stage.plane.buffers.heads == 1600)
        for _ in range(5):
            client = await stage.client()
            await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + AUTH + b"x: " + b"x" * 900
            )
            got = await client.answer()
            assert (got.status, got.reason) == (503, "overloaded")
        assert (await honest.ask(request[1600:])).status == 200
        leaving = await stage.client()
        await leaving.send(request[:1600])
        await eventually(lambda: stage.plane.buffers.heads == 1600)
        leaving.reset()
        await eventually(lambda: stage.plane.buffers.heads == 0)


async def test_a_usual_head_in_two_parts_is_served_while_larger_ones_have_used_everything_up() -> None:
    async with staged(heads_bytes_max=2000) as stage:
        greedy = await stage.client()
        await greedy.send(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 6000)
        await eventually(lambda: stage.plane.buffers.heads)
        turned_away = await stage.client()
        await turned_away.send(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 6000)
        assert (await turned_away.answer()).status == 503
        usual = await stage.client()
        request = post(CHAT)
        await usual.send(request[:60])
        await eventually(lambda: any(one._side.waiting == request[:60] for one in stage.plane._connections))
        assert (await usual.ask(request[60:])).status == 200
