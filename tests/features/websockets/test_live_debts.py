"""What a live session has begun is charged, in each order of messages, errors, ends and departures.

The upstream counts what it does, so the ledger's sum is checked by a second calculation.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from wsproto.events import TextMessage

from gateway.core.families.openai.realtime import RealtimeSession
from gateway.core.model import HoldExtension, HoldRequest, Settlement, SettleResult
from gateway.errors import InvalidRequest
from tests import search
from tests.features.websockets.live_upstream import LiveUpstream
from tests.features.websockets.test_live import (
    BEGUN,
    CREATED,
    GEMINI_ROUTES,
    HEARD,
    LIVE,
    REFUSAL,
    ROUTES,
    SETUP,
    SPOKEN,
    connected,
    facts_of,
    live,
    received,
    until,
)
from tests.http.fakes import KEY
from tests.http.stage import Stage
from tests.waiting import eventually

ASIDE = {"type": "response.create", "response": {"conversation": "none"}}
NOT_THERE = {"type": "conversation.item.delete", "item_id": "nowhere"}
TRANSCRIBED = {"audio": {"input": {"transcription": {"model": "m"}}}}
SOUND = {"type": "input_audio_buffer.append", "audio": "A" * 12_800}
COMMIT = {"type": "input_audio_buffer.commit"}
OUTPUT = 50
OF_PICTURE = 1_105  # tokens that it reads
# A piece of more than 4,096 bytes may have a token a byte, which this API reads.
RUN = "q" * 4_100


def said(text: str) -> dict[str, Any]:
    part = {"type": "input_text", "text": text}
    item = {"type": "message", "role": "user", "content": [part]}
    return {"type": "conversation.item.create", "item": item}


class Provider:
    """A Realtime API that has several responses and transcripts under way, and counts their tokens.

    What it began it ends, whether anybody listens: `draw` says in which order and when, `release` at once.
    """

    def __init__(self, draw: random.Random | None) -> None:
        self.draw = draw
        self.release = asyncio.Event()
        self.conversations: list[Conversation] = []

    async def __call__(self, socket: LiveUpstream) -> None:
        conversation = Conversation(socket, self.draw)
        self.conversations.append(conversation)
        await conversation.go_on(self.release)

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.conversations)

    @property
    def made(self) -> int:
        return sum(one.made for one in self.conversations)

    @property
    def began(self) -> int:
        return sum(one.began for one in self.conversations)

    @property
    def said(self) -> int:
        return sum(one.said for one in self.conversations)


class Conversation:
    """That of one socket."""

    def __init__(self, socket: LiveUpstream, draw: random.Random | None) -> None:
        self.socket, self.draw = socket, draw
        self.tokens = self.made = self.began = self.said = self.sound = 0
        self.left, self._leave = False, asyncio.Event()
        self._under_way: list[tuple[str, int]] = []

    async def begin_alone(self) -> None:
        """Begin a response that nobody asked for."""
        await self._begin("response", self.said + 1)

    async def go_on(self, release: asyncio.Event) -> None:
        """Answer messages up to the last one, and end what was begun."""
        await self.socket.send(CREATED)
        ending = asyncio.ensure_future(self._end_each(release))
        try:
            while True:
                await self._answer(await self.socket.receive())
        except ConnectionError:
            self.left = True
            self._leave.set()
        finally:
            await ending

    async def _answer(self, message: dict[str, Any]) -> None:
        text = json.dumps(message)
        plain, runs = text.replace(RUN, ""), text.count(RUN)
        kind, read = message["type"], len(plain) // 4 + OF_PICTURE * text.count("input_image")
        read += len(RUN) * runs
        if kind == "session.update":
            await self.socket.send({"type": "session.updated", "session": TRANSCRIBED})
        elif kind == "conversation.item.create":
            self.said += read
        elif kind == "input_audio_buffer.append":
            self.sound += len(message["audio"]) // 6_400
        elif kind == "response.create" and message["response"].get("instructions") == "wrong":
            await self._refuse(message)
        elif kind == "response.create":
            whole = message["response"].get("conversation") != "none"
            await self._begin("response", (self.said if whole else 0) + read)
        elif kind == "input_audio_buffer.commit" and self.sound:
            sound, self.sound = self.sound, 0
            self.said += sound
            await self._begin("transcript", sound)
        else:
            await self._refuse(message)

    async def _refuse(self, message: dict[str, Any]) -> None:
        error = {"type": "invalid_request_error", "event_id": message.get("event_id")}
        await self.socket.send({"type": "error", "error": error})

    async def _begin(self, kind: str, read: int) -> None:
        self.began += 1
        name = f"{kind}-{self.began}"
        self._under_way.append((name, read))
        if kind == "response":
            await self.socket.send({"type": "response.created", "response": {"id": name}})
        else:
            await self.socket.send({"type": "input_audio_buffer.committed", "item_id": name})

    async def _end_each(self, release: asyncio.Event) -> None:
        released = asyncio.ensure_future(self._leave.wait())
        while self._under_way or not self.left:
            await asyncio.wait({released}, timeout=0.002)
            soon = self.left or release.is_set() or (self.draw is not None and self.draw.random() < 0.2)
            if not self._under_way or not soon:
                continue
            name, read = self._under_way.pop(self.draw.randrange(len(self._under_way)) if self.draw else 0)
            made = OUTPUT if name.startswith("response") else 1
            self.tokens += read + made
            self.made += 1
            usage = {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}
            if self.left:
                continue
            if name.startswith("response"):
                response = {"id": name, "status": "completed", "usage": usage}
                await self.socket.send({"type": "response.done", "response": response})
            else:
                await self.socket.send({"type": HEARD, "item_id": name, "usage": usage | {"type": "tokens"}})


class Strict:
    """Give each call a part of a quota, never more than is left; the sum is this class's own."""

    def __init__(self, stage: Stage, quota: int) -> None:
        self.quota, self.used, self.held = quota, 0, dict[str, int]()
        self.counters, self.admitted = stage.counters, stage.counters.decision
        self._reserve, self._settle = stage.counters.reserve, stage.counters.settle
        for name in ("reserve", "settle", "request_extension"):
            setattr(stage.counters, name, getattr(self, name))

    @property
    def left(self) -> int:
        return self.quota - self.used - sum(self.held.values())

    async def reserve(self, request: HoldRequest) -> Any:
        assert self.admitted is not None
        fits = request.need <= self.left or not request.service.id
        if fits and request.service.id:
            self.held[request.request_id] = request.need
        self.counters.decision = replace(self.admitted, held_tokens=request.need) if fits else REFUSAL
        return await self._reserve(request)

    async def settle(self, settlement: Settlement) -> SettleResult:
        self.held.pop(settlement.request_id, None)
        self.used += settlement.tokens if settlement.charge else 0
        assert self.used <= self.quota
        return await self._settle(settlement)

    def request_extension(self, extension: HoldExtension) -> None:
        wanted = max(0, extension.wanted(0) - extension.held)
        refused = wanted > self.left and extension.answered is not None
        more = 0 if refused else min(wanted, self.left)
        self.held[extension.request_id] += more
        extension.held += more
        extension.exhausted = more < wanted and not refused
        extension.end_request()


async def charged(stage: Stage, provider: Provider) -> None:
    """Wait until all that the provider began is charged, and nothing is held: to the token."""
    provider.release.set()
    await eventually(lambda: provider.made == provider.began)
    await eventually(lambda: len(stage.counters.charges) == provider.began)
    await eventually(lambda: not stage.connections)
    assert sum(one.tokens for one in stage.counters.charges) == provider.tokens
    assert len(stage.counters.settlements) == len(stage.counters.holds)


@asynccontextmanager
async def played(seed: float | None = None, **more: Any) -> AsyncIterator[tuple[Stage, Provider]]:
    provider = Provider(None if seed is None else random.Random(seed))
    async with live(provider, **more) as (stage, _):
        yield stage, provider


async def leave(socket: aiohttp.ClientWebSocketResponse, politely: bool) -> None:
    if politely:
        await socket.close()
    else:
        socket._writer.transport.abort()


def drawn(draw: random.Random) -> dict[str, Any]:
    """A message of those that begin something, fail, say something or are free."""
    return dict(
        draw.choice(
            (
                ASIDE, ASIDE, {"type": "response.create", "response": {}}, SOUND, COMMIT, COMMIT, NOT_THERE,
                NOT_THERE | {"event_id": "mine"}, said("word " * draw.randrange(1, 200)),
                {"type": "response.create", "event_id": "mine", "response": {"instructions": "wrong"}},
            )
        )
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(search.histories(6)))
async def test_client_that_leaves_a_live_session_at_any_time_is_charged_for_all_work_started(
    seed: int,
) -> None:
    draw = random.Random(search.another(seed))
    async with played(draw.random()) as (stage, provider):
        strict = Strict(stage, draw.choice((6_000, 40_000)))
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json({"type": "session.update", "session": TRANSCRIBED})
            for _ in range(draw.randrange(1, 25)):
                await socket.send_json(drawn(draw))
                for _ in range(draw.randrange(20)):
                    await asyncio.sleep(0)
            await leave(socket, draw.random() < 0.5)
        await charged(stage, provider)
        assert strict.used == provider.tokens
        assert not strict.held


@pytest.mark.parametrize("named", [True, False])
async def test_upstream_error_event_ends_only_the_request_named_in_the_event(named: bool) -> None:
    async with played() as (stage, provider):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(ASIDE)
            for number in range(9):
                await socket.send_json(NOT_THERE | ({"event_id": f"mine{number}"} if named else {}))
                assert await until(socket, "error")
            for _ in range(9):
                await socket.send_json(ASIDE)
            wrong = {"type": "response.create", "event_id": "mine", "response": {"instructions": "wrong"}}
            for _ in range(100):
                await asyncio.sleep(0)
            assert provider.began == 1
            provider.release.set()
            for _ in range(10):
                await until(socket, "response.done")
            await socket.send_json(wrong)
            assert (await received(socket))["error"]["event_id"] == "mine"
            await socket.send_json(ASIDE)
            await until(socket, "response.done")
        await charged(stage, provider)
        assert provider.began == 11


async def test_client_that_leaves_ten_concurrent_responses_is_charged_for_all_ten() -> None:
    """The upstream begins those that nobody asked for, as by the voice that it hears."""
    async with played() as (stage, provider):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(ASIDE)
            await until(socket, "response.created")
            for _ in range(9):
                await provider.conversations[0].begin_alone()
                await until(socket, "response.created")
            await leave(socket, politely=False)
        await charged(stage, provider)
        assert provider.began == 10


@pytest.mark.parametrize("politely", [True, False])
async def test_client_that_leaves_after_ten_audio_commits_is_charged_for_ten_transcripts(
    politely: bool,
) -> None:
    async with played() as (stage, provider):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json({"type": "session.update", "session": TRANSCRIBED})
            for _ in range(10):
                await socket.send_json(SOUND)
                await socket.send_json(COMMIT)
            await eventually(lambda: provider.began == 10)
            await leave(socket, politely)
        await charged(stage, provider)


@pytest.mark.parametrize("kind", ["item", "sound", "update", "output"])
async def test_each_later_live_message_is_held_against_the_quota_before_reaching_the_upstream(
    kind: str,
) -> None:
    """Sockets whose openings fit say as much as they can at once: more than all have is not used."""
    output = {"type": "function_call_output", "call_id": "c", "output": "word " * 9_000}
    message = {
        "item": said("word " * 9_000),
        "sound": SOUND | {"audio": "A" * 1_280_000},
        "update": {"type": "session.update", "session": {"instructions": "word " * 9_000}},
        "output": {"type": "conversation.item.create", "item": output},
    }[kind]
    async with played(1) as (stage, _):
        at_once, quota = (1, 2_500) if kind == "sound" else (4, 100_000)
        strict = Strict(stage, quota)

        async def talk() -> str:
            async with connected(stage, max_msg_size=0) as socket:
                await until(socket, "session.created")
                for _ in range(9):
                    await socket.send_json(message)
                await socket.send_json({"type": "response.create", "response": {}})
                while (event := await received(socket))["type"] not in {"response.done", "error"}:
                    pass
                return str(event.get("error", {}).get("headers", {}).get("x-tollkeeper-reason", "done"))

        ends = await asyncio.gather(*(talk() for _ in range(at_once)))
        assert set(ends) <= {"done", "quota_exceeded", "quota_held"}
        assert "quota_exceeded" in ends
        assert strict.used <= strict.quota


async def test_live_message_beyond_the_quota_is_answered_with_an_error_event_and_the_session_goes_on() -> (
    None
):
    async with played(1) as (stage, provider):
        Strict(stage, 10_000)
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(said("a few"))
            await socket.send_json(said("word " * 9_000))
            error = await received(socket)
            assert (error["type"], error["status"]) == ("error", 429)
            assert error["error"]["headers"]["x-tollkeeper-reason"] == "quota_exceeded"
            await socket.send_json({"type": "response.create", "response": {}})
            await until(socket, "response.done")
            assert provider.said < 100
        await charged(stage, provider)


@pytest.mark.parametrize(("lacks", "passes"), [(0, True), (1, False)])
async def test_live_message_that_exactly_fits_the_remaining_quota_passes(lacks: int, passes: bool) -> None:
    async with played(1) as (stage, provider):
        strict = Strict(stage, 100_000)
        async with connected(stage) as socket:
            await until(socket, "session.created")
            message = json.dumps(said("word " * 2_000))
            # What was held before has nothing of the message. A token of it is three bytes.
            strict.quota = sum(strict.held.values()) + len(message) // 3 - lacks
            await socket.send_str(message)
            await socket.send_json(NOT_THERE)
            assert (await received(socket)).get("status") == (None if passes else 429)
            assert (provider.said > 0) is passes


async def test_streamed_live_audio_grows_the_hold_in_a_few_steps_rather_than_with_each_frame() -> None:
    async with played(1) as (stage, _), connected(stage) as socket:
        await until(socket, "session.created")
        for _ in range(500):  # ten seconds by frames of 20 ms: a hundred tokens
            await socket.send_json(SOUND | {"audio": "A" * 1_280})
        await socket.send_json({"type": "response.create", "response": {}})
        await until(socket, "response.done")
        assert len(stage.counters.outgrowths) <= 3


async def test_idle_live_session_releases_the_hold_and_takes_a_new_hold_on_the_next_request() -> None:
    async with played(1, socket_unasked_s=0.05) as (stage, _):
        strict = Strict(stage, 20_000)
        async with connected(stage) as one, connected(stage) as other:
            for socket in (one, other):
                await until(socket, "session.created")
            await eventually(lambda: not strict.held)
            assert len(stage.counters.releases) == 2
            await one.send_json(said("hello"))  # nothing is asked by it
            await eventually(lambda: len(stage.counters.holds) == 3 and not strict.held)
            await one.send_json(ASIDE)
            await until(one, "response.done")
        assert strict.used == sum(one.tokens for one in stage.counters.charges) > 0


def test_realtime_response_outside_the_conversation_keeps_the_known_size_of_the_conversation() -> None:
    for response in ({"conversation": "none", "input": []}, {"input": []}):
        session = RealtimeSession({"model": "m"})
        session.ask(said("word " * 3_000), 15_000)
        known = session.needs
        session.ask({"type": "response.create", "response": response}, 60)
        done = {"id": "r", "status": "completed", "usage": {"total_tokens": 12}}
        session.hear(json.dumps({"type": "response.created", "response": {"id": "r"}}).encode())
        session.hear(json.dumps({"type": "response.done", "response": done}).encode())
        assert session.needs >= known
        assert not session.pending


def test_client_may_not_reuse_an_event_id_that_the_gateway_assigned() -> None:
    session = RealtimeSession({"model": "m"})
    asked: dict[str, Any] = {"type": "response.create"}
    assert session.ask(asked, 30)
    with pytest.raises(InvalidRequest):
        session.ask(dict(NOT_THERE, event_id=asked["event_id"]), 60)
    assert session.pending


async def test_live_work_still_unfinished_at_the_drain_time_limit_is_charged_an_estimate() -> None:
    async with played(None, drain_s=0.1) as (stage, provider):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json({"type": "session.update", "session": TRANSCRIBED})
            for one in (said("word " * 300), SOUND, COMMIT, {"type": "response.create", "response": {}}):
                await socket.send_json(one)
            await eventually(lambda: provider.began == 2)
            await leave(socket, politely=False)
        await stage.settled()
        (charge,) = stage.counters.charges
        assert charge.tokens >= provider.said + 2
        assert facts_of(charge).estimated
        provider.release.set()


async def test_three_gemini_live_requests_are_charged_after_the_client_leaves() -> None:
    released, sockets_left = asyncio.Event(), 0
    usage = {"promptTokenCount": 80, "responseTokenCount": 40, "totalTokenCount": 120}

    async def script(socket: LiveUpstream) -> None:
        nonlocal sockets_left
        await socket.receive()
        await socket.send({"setupComplete": {}})
        for _ in range(3):
            await socket.receive()
        await released.wait()
        for word in ("interrupted", "turnComplete", "turnComplete"):
            await socket.send(SPOKEN, {"serverContent": {word: True}, "usageMetadata": usage})
        sockets_left += 1
        with pytest.raises(ConnectionError):
            await socket.receive()

    content = {"clientContent": {"turns": [{"parts": [{"text": "hi"}]}], "turnComplete": True}}
    async with live(script, GEMINI_ROUTES) as (stage, sockets):
        async with connected(stage, LIVE) as socket:
            await socket.send_json(SETUP)
            await received(socket)
            for _ in range(3):
                await socket.send_json(content)
            await eventually(lambda: len(sockets[0].heard) == 4)
            await leave(socket, politely=False)
        released.set()
        await stage.settled(3)
        assert [one.tokens for one in stage.counters.charges] == [120] * 3


@pytest.mark.parametrize("politely", [True, False])
async def test_client_that_leaves_before_the_upstream_socket_opens_is_not_charged(politely: bool) -> None:
    asked = asyncio.Event()

    async def opens_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with live() as (stage, _):
        stage.upstream.handler = opens_nothing
        client = await stage.client()
        await client.send(
            b"GET /v1/realtime?model=m HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
            b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % KEY.encode()
        )
        await asked.wait()
        (client.close if politely else client.reset)()
        await stage.settled()
        assert not stage.counters.charges


@pytest.mark.parametrize("owed", [True, False])
async def test_upstream_socket_is_closed_although_the_client_left_while_a_turn_was_being_admitted(
    owed: bool,
) -> None:
    """What the upstream began before that is charged. Behind a client that owes nothing nothing is read."""
    begins, read = asyncio.Event(), asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await begins.wait()
        begun = socket._frames.send(TextMessage(data=json.dumps(BEGUN)))
        socket.writer.write(b"\x89\x00" + begun)  # a ping, which is answered
        await socket.reader.read(1)
        read.set()
        await socket.reader.read()

    routes = (replace(ROUTES[0], on_disconnect="abort"),)
    async with live(script, routes, socket_unasked_s=0.05) as (stage, _):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await eventually(lambda: stage.counters.releases)
            stage.counters.slow = True
            if owed:
                begins.set()
            else:
                await socket.send_json(said("word " * 300))
            await eventually(lambda: stage.counters.admitting)
            [connection] = stage.plane._connections
            connection.transport.abort()  # as where a client takes nothing for too long
        await eventually(lambda: stage.plane.sockets.used == 0)
        begins.set()
        await read.wait()
        wait, decision = stage.counters.admitting[0]
        wait.set(decision)
        await eventually(lambda: not stage.upstream.open)
        assert len(stage.counters.charges) == owed
