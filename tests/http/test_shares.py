"""What many share: nobody has more than its share, and whoever is new gets some."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from gateway.core.credentials import Peppers
from gateway.core.http_limits import HttpLimits
from gateway.core.network import DIRECT
from gateway.core.shares import FairShares
from gateway.features.agents.gateway import EACH_BYTES, TELEMETRY_BYTES_MAX, Collector, OneOrigin
from gateway.features.capacity.queues import CapacityQueues
from gateway.http.ports import Ports
from gateway.http.server.buffers import Buffers
from gateway.http.turns import AT_ONCE_BYTES_MAX, REST_S_MAX, TIME_SHARE, TURN_S_MAX, FairQueue, LargeBodies
from tests.http.fakes import (
    AUTH,
    CALLER,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    USAGE_EVENT,
    chunks,
    get,
    post,
)
from tests.http.stage import Stage, staged
from tests.waiting import eventually


def fill(shares: FairShares, organization_id: int, amount: int = 1) -> int:
    """Take until it is refused; what one has then."""
    while shares.acquire(organization_id, amount):
        pass
    return shares.used_by(organization_id)


def test_one_has_its_share_and_no_more() -> None:
    shares = FairShares(2000, 500)
    assert fill(shares, 1) == 500
    assert shares.acquire(2)
    shares.release(1)
    assert shares.acquire(1)


@pytest.mark.parametrize("organizations", [1, 2, 4, 8])
def test_where_some_have_all_they_can_a_newcomer_gets_some(organizations: int) -> None:
    shares = FairShares(2000, 500)
    for _ in range(3):
        for organization_id in range(organizations):
            fill(shares, organization_id)
    assert shares.used < 2000
    assert shares.acquire(10_000)
    assert shares.used <= 2000


def test_no_part_of_one_is_more_than_half() -> None:
    with pytest.raises(ValueError, match="more than half"):
        FairShares(3, 2)
    shares = FairShares()
    shares.bound_by_share(9, 0.75, largest=2)
    assert (shares.most, shares.each) == (9, 4)


async def default_shares() -> dict[str, tuple[FairShares, int]]:
    """Every share of a worker at the defaults, with the largest thing that one may ask of it."""
    limits = HttpLimits()
    buffers, body = Buffers(limits), limits.body_bytes_max
    capacity = CapacityQueues(cast("Any", None), cast("Ports", None), asyncio.get_running_loop(), limits)
    collector = Collector("", DIRECT, lambda *_, **__: None)
    origin = OneOrigin("", Peppers(b"pepper"), lambda *_, **__: None)
    found = {
        "buffers": (buffers._organizations, body),
        "buffers of keys": (buffers._keys, body),
        "bytes of files": (buffers.files._bytes, body),
        "files": (buffers.files._count, 1),
        "bytes that wait for capacity": (capacity.bytes, body),
        "batches that wait for capacity": (capacity.places[1], 1),
        "calls that wait for capacity": (capacity.places[0], 1),
        "clients that linger": (FairShares(limits.lingering_max, limits.lingering_each_max), 1),
        "telemetry of agents": (collector._bytes, TELEMETRY_BYTES_MAX + EACH_BYTES),
        "agents signed in": (origin._asks, 1),
    }
    for name, most, share in (
        ("sockets", limits.sockets_max, limits.sockets_share),
        ("bytes of sockets", limits.sockets_kept_bytes_max, limits.sockets_share),
        ("connections", limits.upstream_connections_max, limits.upstream_connections_share),
    ):
        shares = FairShares()
        shares.bound_by_share(most, share)
        found[name] = shares, 1
    return found


@pytest.mark.parametrize("small", [False, True])
async def test_beside_a_greedy_user_a_modest_one_gets_the_largest_thing_at_the_defaults(small: bool) -> None:
    for name, (shares, largest) in (await default_shares()).items():
        fill(shares, 1, max(1, largest // 512) if small else largest)
        assert shares.acquire(2, largest), name


def test_the_whole_may_be_ones_alone() -> None:
    shares = FairShares(3, 3, alone=True)
    assert fill(shares, 1) == 3
    assert not shares.acquire(2)


def test_a_share_is_one_at_least_and_all_of_it_may_come_at_once() -> None:
    assert FairShares(2, 0).acquire(1)
    shares = FairShares(128, 32)
    assert shares.acquire(1, 32)
    assert not shares.acquire(1)
    assert not shares.acquire(2, 33)


def test_what_is_given_back_is_there_again_to_the_last() -> None:
    draw, shares, held = random.Random(5), FairShares(1000, 250), list[tuple[int, int]]()
    for _ in range(5000):
        if held and draw.random() < 0.5:
            shares.release(*held.pop(draw.randrange(len(held))))
        else:
            wanted = (draw.randrange(20), draw.randrange(1, 90))
            if shares.acquire(*wanted):
                held.append(wanted)
        assert shares.used == sum(amount for _, amount in held) <= 1000
    while held:
        shares.release(*held.pop())
    assert shares.used == 0
    assert not shares._has


# --- turns ------------------------------------------------------------------------------
# Whoever has much to be done waits for a turn, and a turn is a moment.


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


async def test_who_pipelines_much_lets_others_come_between(stage: Stage) -> None:
    greedy, other = await stage.client(), await stage.client()
    await greedy.send(get(b"/nope") * 500)
    assert (await other.ask(get(b"/nope"), "GET")).status == 404
    assert any(connection._side.waiting for connection in stage.plane._connections)
    for _ in range(500):
        assert (await greedy.answer("GET")).status == 404


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


# --- large bodies -----------------------------------------------------------------------
# Large bodies are read one at a time, by turns of organizations; whoever left has none.


class Readers:
    """Notes who was read, in order, and how many at once; nobody is read before `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.order: list[str] = []
        self.now = self.most = 0

    def reading(self, name: str) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        self.go.wait(10)
        self.order.append(name)
        self.now -= 1
        return name.upper()

    def asked(self, bodies: LargeBodies, organization: int, name: str) -> asyncio.Task[str]:
        return asyncio.ensure_future(bodies.read(organization, lambda: self.reading(name)))


async def test_organizations_take_turns_and_one_body_is_read_at_a_time() -> None:
    bodies = LargeBodies(asyncio.get_running_loop(), lambda: 0.0)
    readers = Readers()
    greedy = [readers.asked(bodies, 1, f"a{number}") for number in range(5)]
    others = [readers.asked(bodies, 2, "b0"), readers.asked(bodies, 3, "c0"), readers.asked(bodies, 2, "b1")]
    await asyncio.sleep(0)
    readers.go.set()
    assert await asyncio.gather(*greedy, *others) == ["A0", "A1", "A2", "A3", "A4", "B0", "C0", "B1"]
    assert readers.order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]
    assert (readers.most, bodies.turns) == (1, 8)


async def test_items_are_made_in_turns_of_a_millisecond_between_those_of_others() -> None:
    ticks, order = iter(range(99)), list[str]()
    bodies = LargeBodies(asyncio.get_running_loop(), lambda: next(ticks) * 2 * TURN_S_MAX)

    def made(name: str) -> Iterator[str]:
        for number in range(3):
            order.append(f"{name}{number}")
            yield name

    found = await asyncio.gather(bodies.gather(1, made("a")), bodies.gather(2, made("b")))
    assert (found, bodies.turns) == ([["a"] * 3, ["b"] * 3], 8)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    with pytest.raises(ZeroDivisionError):
        await bodies.gather(1, (1 // number for number in (1, 0)))


async def test_who_left_is_not_read_and_what_fails_is_told() -> None:
    bodies = LargeBodies(asyncio.get_running_loop(), lambda: 0.0)
    readers = Readers()
    first, leaver, last = (readers.asked(bodies, 1, name) for name in "abc")
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    readers.go.set()
    assert [await first, await last] == ["A", "C"]
    with pytest.raises(ZeroDivisionError):
        await bodies.read(1, lambda: str(1 // 0))
    assert readers.order == ["a", "c"]


async def test_reading_takes_no_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, clock, rests = asyncio.get_running_loop(), iter([0.0, 0.02, 1.0, 9.0]), list[float]()
    bodies = LargeBodies(loop, lambda: next(clock))
    later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda s, *what: rests.append(s) or later(0, *what))
    for _ in range(2):
        await bodies.read(1, str)
        await eventually(lambda: not bodies._is_taken)
    assert rests[0] == pytest.approx(0.02 * (1 / TIME_SHARE - 1))
    assert REST_S_MAX in rests


# --- overload ---------------------------------------------------------------------------
# What a gateway keeps for slow ends is bounded: new is shed, what has begun goes on.


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
