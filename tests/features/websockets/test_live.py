"""The Realtime API by a WebSocket: each turn is a call, whose use an event reports."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from google import genai
from google.genai import types
from openai import AsyncAzureOpenAI, AsyncOpenAI
from websockets.exceptions import InvalidStatus

from gateway.core.accounts.budgets import Budget, account_of
from gateway.core.accounts.call_facts import read_facts
from gateway.core.billing.money import NANO
from gateway.core.billing.price_book import KINDS, read_price
from gateway.core.calls.routes import ModelRule, ModelTarget, Route, UpstreamTarget
from gateway.core.families.gemini.live import GeminiLiveSession
from gateway.core.model import Admitted, Family, LimitKind, Refused, Scope, Verdict
from gateway.core.wait import Wait
from gateway.errors import CountersUnavailable
from tests.certificates import issued, trusting
from tests.core.billing.prices import price_row
from tests.features.websockets.live_upstream import LiveUpstream, Script, playing
from tests.http.fakes import CALLER, KEY, answer
from tests.http.stage import OVER, WITHIN_S, FakeUpstream, Stage, Tls, staged
from tests.waiting import eventually

OPENAI = Family("openai")
ROUTES = (
    Route(("GET",), "/v1/realtime", "up", "chat", OPENAI, "openai_realtime", queries=("model",)),
    Route(("GET",), "/openai/realtime", "up", "chat", OPENAI, "openai_realtime", queries=("deployment",)),
)
TINY = "data:image/png;base64,iVBORw0KGgo="
KEY_FIELD = {"authorization": f"Bearer {KEY}"}
CREATED = {"type": "session.created", "session": {"type": "realtime", "model": "m"}}
BEGUN = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
DELTA = {"type": "response.output_text.delta", "delta": "word"}
LIMITS = {"type": "rate_limits.updated", "rate_limits": []}
USAGE = {
    "total_tokens": 253, "input_tokens": 132, "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 99, "audio_tokens": 33, "cached_tokens": 84,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 20},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}  # fmt: skip
HEARD = "conversation.item.input_audio_transcription.completed"
CREATE = {"type": "response.create", "response": {"output_modalities": ["text"]}}
REFUSAL = Refused(Verdict.QUOTA_EXCEEDED, Scope.TENANT, LimitKind.QUOTA, 100, 100, 0, 1_000)


def done(
    status: str = "completed", usage: dict[str, Any] | None = USAGE, name: str = "resp_1"
) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": name, "status": status, "usage": usage}}


async def responding(socket: LiveUpstream) -> None:
    """Answer each request for a response, as the API does."""
    await socket.send(CREATED)
    while True:
        await socket.until("response.create")
        await socket.send(BEGUN, DELTA, done(), LIMITS)


@asynccontextmanager
async def live(
    script: Script = responding, routes: tuple[Route, ...] = ROUTES, **more: Any
) -> AsyncIterator[tuple[Stage, list[LiveUpstream]]]:
    sockets: list[LiveUpstream] = []
    async with staged(routes, **more) as stage:
        stage.upstream.handler = playing(script, sockets)
        yield stage, sockets
        await eventually(lambda: stage.plane.sockets.used == 0)
        await eventually(lambda: not stage.upstream.open)


@asynccontextmanager
async def connected(
    stage: Stage, target: str = "/v1/realtime?model=m", **more: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"http://127.0.0.1:{stage.port}{target}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=more.pop("headers", KEY_FIELD), **more) as socket,
    ):
        yield socket


async def received(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    said: dict[str, Any] = await socket.receive_json(timeout=WITHIN_S)
    return said


async def until(socket: aiohttp.ClientWebSocketResponse, kind: str) -> list[str]:
    """The types of events up to one of this type."""
    types: list[str] = []
    while not types or types[-1] != kind:
        types.append((await received(socket))["type"])
    return types


def counts(stage: Stage, number: int) -> dict[str, int]:
    facts = stage.facts(number)
    names = (
        "input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning", "audio_input",
        "audio_output",
    )  # fmt: skip
    return {name: many for name, many in zip(names, facts.counts, strict=False) if many}


async def test_each_realtime_response_is_a_call_charged_before_the_client_receives_the_done_event() -> None:
    async with live() as (stage, sockets):
        async with connected(stage, "/v1/realtime?model=m") as socket:
            assert await until(socket, "session.created") == ["session.created"]
            for number in (1, 2):
                await socket.send_json(CREATE)
                types = await until(socket, "response.done")
                assert types[-3:] == ["response.created", "response.output_text.delta", "response.done"]
                assert len(stage.counters.charges) == number
        assert [one.tokens for one in stage.counters.charges] == [253, 253]
        assert counts(stage, 0) == {
            "input": 48, "cache_read": 84, "output": 121, "audio_input": 13, "audio_output": 91
        }  # fmt: skip
        opened = sockets[0].opened
        assert opened.startswith(b"GET /v1/realtime?model=m HTTP/1.1\r\n")
        assert b"authorization: Bearer upstream-secret" in opened
        assert KEY.encode() not in opened
        assert [one["type"] for one in sockets[0].heard] == ["response.create"] * 2


async def test_openai_and_azure_client_libraries_hold_realtime_sessions_through_the_gateway() -> None:
    async with live() as (stage, sockets):
        base = f"http://127.0.0.1:{stage.port}"
        plain = AsyncOpenAI(api_key=KEY, base_url=f"{base}/v1")
        azure = AsyncAzureOpenAI(api_key=KEY, azure_endpoint=base, api_version="2025-04-01-preview")
        azure_socket = f"ws://127.0.0.1:{stage.port}/openai"
        for client in (plain, azure.with_options(websocket_base_url=azure_socket)):
            async with client, client.realtime.connect(model="m") as socket:
                await socket.session.update(session={"type": "realtime", "instructions": "Be brief."})
                await socket.response.create()
                types = [event.type async for event in until_done(socket)]
                assert types[-1] == "response.done"
        assert [one.tokens for one in stage.counters.charges] == [253, 253]
        targets = [one.opened.split(b" ")[1] for one in sockets]
        assert targets[0] == b"/v1/realtime?model=m"
        assert sorted(targets[1].partition(b"?")[2].split(b"&")) == [
            b"api-version=2025-04-01-preview", b"deployment=m",
        ]  # fmt: skip
        stage.counters.decision = REFUSAL
        with pytest.raises(InvalidStatus) as caught:
            async with plain.realtime.connect(model="m"):
                pass
        assert caught.value.response.status_code == 429


async def until_done(socket: Any) -> AsyncIterator[Any]:
    async for event in socket:
        yield event
        if event.type == "response.done":
            return


async def test_api_key_in_the_websocket_subprotocol_is_accepted_and_not_sent_to_the_upstream() -> None:
    async with live() as (stage, sockets):
        protocols = ("realtime", f"openai-insecure-api-key.{KEY}")
        async with connected(stage, headers={}, protocols=protocols) as socket:
            assert socket.protocol == "realtime"
            await socket.send_json(CREATE)
            await until(socket, "response.done")
        assert KEY.encode() not in sockets[0].opened
        assert b"sec-websocket-protocol" not in sockets[0].opened.lower()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage, headers={"authorization": "Bearer other"}, protocols=protocols):
                pass
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/realtime", 400),
        ("/v1/realtime?model=other", 403),
        ("/v1/realtime?intent=transcription", 400),
        ("/v1/realtime?model=m&call_id=rtc_1", 400),
        ("/v1/realtime?model=m&model=other", 400),
        ("/v1/realtime/translations?model=m", 426),
    ],
)
async def test_realtime_request_for_a_model_not_allowed_or_with_a_bad_query_opens_no_upstream_socket(
    target: str, status: int
) -> None:
    async with live() as (stage, sockets):
        stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage, target):
                pass
        assert caught.value.status == status
        assert not sockets
        assert not stage.counters.charges


async def test_realtime_get_without_a_websocket_upgrade_is_426_and_post_is_405() -> None:
    async with live() as (stage, sockets), aiohttp.ClientSession(headers=KEY_FIELD) as session:
        for method in ("GET", "POST"):
            url = f"http://127.0.0.1:{stage.port}/v1/realtime?model=m"
            async with session.request(method, url, json={"model": "m"}) as refused:
                assert refused.status == (426 if method == "GET" else 405)
        assert not sockets


@pytest.mark.parametrize(
    "path",
    [
        "/v1/realtime/client_secrets", "/v1/realtime/calls/x1/accept", "/v1/realtime/sessions",
        "/openai/v1/realtime/client_secrets", "/v1alpha/auth_tokens",
    ],
)  # fmt: skip
async def test_realtime_route_that_would_connect_clients_past_the_gateway_is_404_with_the_reason(
    path: str,
) -> None:
    async with live() as (stage, _), aiohttp.ClientSession(headers=KEY_FIELD) as session:
        async with session.post(f"http://127.0.0.1:{stage.port}{path}", json={"model": "m"}) as refused:
            assert (refused.status, refused.headers["x-tollkeeper-reason"]) == (404, "unknown_route")
            assert "past this gateway" in await refused.text()
        assert not stage.upstream.connections


async def test_upstream_refusal_to_open_a_socket_is_passed_to_the_client_and_not_charged() -> None:
    async with staged(ROUTES) as stage:
        stage.upstream.scripts = [
            [answer(b'{"error":{"message":"No such model."}}', status=b"404 Not Found")]
        ]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage):
                pass
        assert caught.value.status == 404
        assert not stage.counters.charges
        assert stage.plane.sockets.used == 0


async def test_turn_refused_by_a_limit_is_sent_as_an_error_event_and_the_session_goes_on() -> None:
    async with live() as (stage, sockets), connected(stage) as socket:
        await socket.send_json(CREATE)
        await until(socket, "response.done")
        admitted, stage.counters.decision = stage.counters.decision, REFUSAL
        await socket.send_json(CREATE)
        types = await until(socket, "error")
        assert types in (["error"], ["rate_limits.updated", "error"])
        assert len(stage.counters.charges) == 1
        stage.counters.decision = admitted
        await socket.send_json(CREATE)
        assert (await until(socket, "response.done"))[-1] == "response.done"
        assert [one["type"] for one in sockets[0].heard] == ["response.create"] * 2
        assert len(stage.counters.charges) == 2


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "session.update", "session": {"model": "dearer"}}, "model"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "session.type"),
        ({"type": "session.update", "session": {"Model": "dearer"}}, "session.model"),
        ({"type": "response.create", "response": {"model": "dearer"}}, "model"),
        ({"type": "response.create", "response": {"tools": [{"type": "web_search"}]}}, "response.tools"),
        ({"type": "response.create", "response": {"prompt": {"id": "pmpt_1"}}}, "response.prompt"),
        ({"type": "session.update", "session": {"prompt": {"id": "pmpt_1"}}}, "session.prompt"),
        ({"type": "response.create", "response": {"conversation": "conv_1"}}, "response.conversation"),
        (
            {"type": "response.create", "response": {"previous_response_id": "resp_1"}},
            "response.previous_response_id",
        ),
        (
            {"type": "session.update", "session": {"audio": {"input": {"transcription": {"prompt": "x"}}}}},
            "transcription.model",
        ),
        ({"type": "session.update", "session": {"input_audio_transcription": {}}}, "transcription.model"),
        ({"type": "transcription_session.update"}, "type"),
        (
            {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "dear"}}}}},
            None,
        ),
        ([], None),
    ],
)
async def test_disallowed_realtime_message_gets_an_error_event_and_the_socket_stays_open(
    message: Any, param: str | None
) -> None:
    async with live() as (stage, sockets):
        stage.directory.caller = replace(CALLER, models=frozenset({"m", "cheap"}))
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(message)
            said = await received(socket)
            assert (said["type"], said["error"].get("param")) == ("error", param)
            await socket.send_json(CREATE)
            await until(socket, "response.done")
        assert [one["type"] for one in sockets[0].heard] == ["response.create"]


async def test_transcript_in_a_realtime_session_is_a_separate_call_of_the_transcription_model() -> None:
    heard = {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    tokens = {"type": "tokens", "input_tokens": 13, "output_tokens": 9, "total_tokens": 22}
    tokens |= {"input_token_details": {"audio_tokens": 13}}

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await socket.until("session.update")
        await socket.send({"type": "session.updated", "session": heard})
        for usage in (tokens, {"type": "duration", "seconds": 2.2}):
            await socket.until("input_audio_buffer.append")
            await socket.send({"type": "input_audio_buffer.committed"}, BEGUN, DELTA)
            await socket.send({"type": HEARD, "transcript": "hi", "usage": usage}, done())
        await socket.receive()

    async with live(script) as (stage, _):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json({"type": "session.update", "session": heard})
            for _ in range(2):
                await socket.send_json({"type": "input_audio_buffer.append", "audio": "A" * 6_400})
                await until(socket, "response.done")
        facts = [read_facts(one.metadata) for one in stage.counters.charges]
        said = [(one.total, one.tools, one.response_model) for one in facts if one is not None]
        assert said == [
            (22, {}, "whisper-1"), (253, {"cache_audio": 20}, ""),
            (0, {"audio_second": 3}, "whisper-1"), (253, {"cache_audio": 20}, ""),
        ]  # fmt: skip


def transcribing(model: str) -> dict[str, Any]:
    return {"audio": {"input": {"transcription": {"model": model}}}}


@asynccontextmanager
async def owners_unknown() -> AsyncIterator[tuple[Stage, list[LiveUpstream], list[Wait[str | None]]]]:
    """A stage that looks up owners of objects for as long as a test says."""
    waits: list[Wait[str | None]] = []

    def look_up(*_: object) -> Wait[str | None]:
        waits.append(Wait())
        return waits[-1]

    async with live() as (stage, sockets):
        stage.objects.refused = look_up  # type: ignore[method-assign]  # as a Redis that is slow
        yield stage, sockets, waits


ANSWERED = {
    "type": "conversation.item.create", "previous_item_id": "item_1",
    "item": {"type": "function_call_output", "call_id": "call_1", "output": "4"},
}  # fmt: skip


async def test_live_message_with_ids_holds_later_messages_back_until_owners_are_known() -> None:
    async with owners_unknown() as (stage, sockets, waits):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(ANSWERED)
            await socket.send_json(CREATE)
            await eventually(lambda: waits)
            assert not sockets[0].heard
            waits[0].set(None)
            await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == [ANSWERED["type"], CREATE["type"]]
        assert len(waits) == 1


async def test_live_message_with_ids_of_a_client_that_left_is_not_sent() -> None:
    async with owners_unknown() as (stage, sockets, waits):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(ANSWERED)
            await eventually(lambda: waits)
            socket._writer.transport.abort()
            await eventually(lambda: not stage.connections)
        waits[0].set(None)
        assert not sockets[0].heard


async def test_live_message_with_ids_is_refused_while_owners_cannot_be_looked_up() -> None:
    async with owners_unknown() as (stage, sockets, waits):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(ANSWERED)
            await eventually(lambda: waits)
            waits[0].fail(CountersUnavailable())
            refusal = await received(socket)
            assert (refusal["type"], refusal["status"]) == ("error", 503)
            await socket.send_json(CREATE)
            await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == [CREATE["type"]]


async def test_fine_tuned_transcription_model_of_another_organization_is_refused() -> None:
    async with live(responding) as (stage, sockets), connected(stage) as socket:
        await until(socket, "session.created")
        await socket.send_json({"type": "session.update", "session": transcribing("ft:whisper:bravo:x")})
        assert (await received(socket))["type"] == "error"
        await socket.send_json(CREATE)
        await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == ["response.create"]


async def test_transcript_under_a_money_budget_is_charged_the_price_of_the_transcription_model() -> None:
    """Models that write transcripts make no sound, so they need no price of it."""
    usage = {"type": "tokens", "input_tokens": 6_000, "output_tokens": 500, "total_tokens": 6_500}
    usage |= {"input_token_details": {"audio_tokens": 6_000}}

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        for name in ("small", "large"):
            await socket.until("session.update")
            await socket.send({"type": "session.updated", "session": transcribing(name)})
            await socket.send({"type": "input_audio_buffer.committed", "item_id": name})
        for name in ("small", "large"):  # the first one ends after the change
            await socket.send({"type": HEARD, "item_id": name, "usage": usage})
        await socket.receive()

    async with live(script) as (stage, _):
        stage.directory.budgets_there = [Budget(1, "money", "money", NANO, "day")]
        row = price_row(input="4", output="16", audio_input="32", audio_output="64", image_output="1")
        stage.directory.prices["m"] = read_price(row).vector
        for model, paid in (("small", ("1.25", "5")), ("large", ("2.5", "10"))):
            row = price_row(input=paid[0], output=paid[1], audio_input=paid[0])
            stage.directory.prices[model] = read_price(row).vector
        async with connected(stage) as socket:
            await until(socket, "session.created")
            for model in ("small", "large"):
                await socket.send_json({"type": "session.update", "session": transcribing(model)})
            for _ in range(2):
                await until(socket, HEARD)
        facts = [read_facts(one.metadata) for one in stage.counters.charges]
        # 6,000 tokens of sound and 500 of text: 0.0075 + 0.0025, then 0.015 + 0.005.
        assert [(one.response_model, one.cost) for one in facts if one is not None][:2] == [
            ("small", 10_000_000), ("large", 20_000_000)
        ]  # fmt: skip


async def test_live_message_with_a_model_of_another_budget_begins_a_turn_that_holds_the_budget() -> None:
    async with live(responding) as (stage, sockets):
        stage.directory.budgets_there = [Budget(2, "writer", "tokens", 10**9, "day", model="writer")]
        account = account_of(stage.directory.caller.organization_id, stage.directory.budgets_there[0], "")
        async with connected(stage) as socket:
            await until(socket, "session.created")
            assert [hold.names for hold in stage.counters.holds] == [()]
            await socket.send_json({"type": "session.update", "session": transcribing("writer")})
            await eventually(lambda: sockets[0].heard)
            assert [hold.names for hold in stage.counters.holds] == [(), (account,)]
            await socket.send_json(CREATE)
            await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == ["session.update", "response.create"]


async def test_live_message_with_a_model_of_another_budget_is_refused_while_an_answer_is_made() -> None:
    go_on = asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await socket.until("response.create")
        await socket.send(BEGUN, DELTA)
        await go_on.wait()
        await socket.send(done())
        await socket.until("")

    async with live(script) as (stage, sockets):
        stage.directory.budgets_there = [Budget(2, "writer", "tokens", 10**9, "day", model="writer")]
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(CREATE)
            await until(socket, "response.output_text.delta")
            await socket.send_json({"type": "session.update", "session": transcribing("writer")})
            refusal = await received(socket)
            assert (refusal["status"], refusal["error"]["param"]) == (400, "model")
            go_on.set()
            await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == ["response.create"]


@pytest.mark.parametrize("asks", [True, False])
async def test_client_that_leaves_mid_response_is_charged_for_the_requested_response(asks: bool) -> None:
    go_on = asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        if asks:
            await socket.until("response.create")
            await socket.send(BEGUN, DELTA)
            await go_on.wait()
            await socket.send(done())
        await socket.until("")

    async with live(script) as (stage, _):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            if asks:
                await socket.send_json(CREATE)
                await until(socket, "response.output_text.delta")
            socket._writer.transport.abort()
        await eventually(lambda: stage.plane.sockets.used == 0)
        go_on.set()
        await stage.settled()
        assert [one.tokens for one in stage.counters.charges] == ([253] if asks else [])


@pytest.mark.parametrize("begins", [True, False])
async def test_concurrent_realtime_responses_are_each_charged_after_the_client_leaves(begins: bool) -> None:
    go_on = asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await socket.until("response.create")
        other = {"type": "response.created", "response": {"id": "resp_2"}}
        await socket.send(BEGUN, other, DELTA, done(), *([DELTA] if begins else []))
        await go_on.wait()
        await socket.send(done(name="resp_2"))
        await socket.until("")

    async with live(script) as (stage, _):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(CREATE)
            await until(socket, "response.done")
            await eventually(lambda: len(stage.counters.holds) == 2)
            socket._writer.transport.abort()
        await eventually(lambda: stage.plane.sockets.used == 0)
        go_on.set()
        await stage.settled(2)
        assert [one.tokens for one in stage.counters.charges] == [253, 253]


@pytest.mark.parametrize("refused", [True, False])
async def test_realtime_response_requested_during_another_response_waits_for_a_separate_hold(
    refused: bool,
) -> None:
    go_on = asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await socket.until("response.create")
        await socket.send(BEGUN, DELTA)
        await socket.until("input_audio_buffer.clear")
        await go_on.wait()
        await socket.send(done())
        await responding(socket)

    async with live(script) as (stage, sockets), connected(stage) as socket:
        beside = {"type": "response.create", "response": {"conversation": "none"}}
        wrong = {"type": "response.create", "response": {"model": "dear"}}
        clear = {"type": "input_audio_buffer.clear"}
        for one in (CREATE, clear, wrong, beside, clear):
            await socket.send_json(one)
        await until(socket, "response.output_text.delta")
        await eventually(lambda: len(sockets[0].heard) == 2)
        if refused:
            stage.counters.decision = REFUSAL
        go_on.set()
        await until(socket, "response.done")
        await until(socket, "error")
        if refused:
            await until(socket, "error")
        else:
            await until(socket, "response.done")
        await eventually(lambda: len(sockets[0].heard) == (2 if refused else 4))
        asked = ["response.create", "input_audio_buffer.clear"] * (1 if refused else 2)
        assert [one["type"] for one in sockets[0].heard] == asked
        assert [one.tokens for one in stage.counters.charges] == [253] * (1 if refused else 2)


@pytest.mark.parametrize(
    ("kind", "part"), [("input_text", {"text": "x" * 300}), ("input_image", {"image_url": TINY})]
)
async def test_client_that_leaves_on_a_route_set_to_abort_is_charged_the_input_at_once(
    kind: str, part: dict[str, str]
) -> None:
    async def script(socket: LiveUpstream) -> None:
        await socket.until("response.create")
        await socket.send(BEGUN)
        await socket.until("")

    async with live(script, (replace(ROUTES[0], on_disconnect="abort"),)) as (stage, _):
        async with connected(stage) as socket:
            item = {"type": "message", "role": "user", "content": [{"type": kind, **part}]}
            await socket.send_json({"type": "conversation.item.create", "item": item})
            await socket.send_json(CREATE)
            await until(socket, "response.created")
        await stage.settled()
        (charge,) = stage.counters.charges
        assert charge.tokens > 100
        facts = read_facts(charge.metadata)
        assert facts is not None
        of_pictures = facts.counts[KINDS.index("image_input")]
        # A session that sent a picture has all its input counted as pictures.
        assert (of_pictures == 0) is (kind == "input_text")
        await eventually(lambda: not stage.upstream.open)


@pytest.mark.parametrize(("asks", "code"), [(True, 1011), (False, 1000)])
async def test_upstream_closing_a_socket_closes_the_client_socket_and_charges_an_estimate(
    asks: bool, code: int
) -> None:
    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        if asks:
            await socket.until("response.create")
            await socket.send(BEGUN, DELTA)
        await socket.close(1000, "over")
        await socket.until("")

    async with live(script) as (stage, _):
        async with connected(stage) as socket:
            if asks:
                await socket.send_json(CREATE)
                await until(socket, "response.output_text.delta")
            else:
                await until(socket, "session.created")
            end = await socket.receive(WITHIN_S)
            assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, code)
        await stage.settled()
        assert [one.estimated for one in map(facts_of, stage.counters.charges)] == ([True] if asks else [])


def facts_of(charge: Any) -> Any:
    return read_facts(charge.metadata)


async def test_overlong_live_message_from_client_or_upstream_closes_the_socket() -> None:
    async def script(socket: LiveUpstream) -> None:
        await socket.until("response.create")
        await socket.send(BEGUN | {"padding": "x" * (5 << 20)})
        await socket.until("")

    async with live(script, body_bytes_max=1 << 20) as (stage, _):
        async with connected(stage, max_msg_size=0) as socket:
            await socket.send_json({"type": "input_audio_buffer.append", "audio": "A" * (2 << 20)})
            assert (await received(socket))["status"] == 413
            assert (await socket.receive(WITHIN_S)).data == 1009
        async with connected(stage, max_msg_size=0) as socket:
            await socket.send_json(CREATE)
            assert (await socket.receive(WITHIN_S)).data == 1009
        await stage.settled()
        assert [facts_of(one).estimated for one in stage.counters.charges] == [True]


async def test_idle_live_socket_is_closed_and_the_client_is_not_charged() -> None:
    async with live(socket_idle_s=0.05) as (stage, _), connected(stage) as socket:
        await until(socket, "session.created")
        assert (await socket.receive(WITHIN_S)).data == 1001
    assert not stage.counters.charges


async def test_second_of_two_concurrent_sockets_is_429_when_tokens_suffice_for_a_single_turn() -> None:
    async with live() as (stage, _):
        left, admitted, reserve = 1, stage.counters.decision, stage.counters.reserve

        async def limited(request: Any) -> Admitted | Refused:
            nonlocal left
            left -= 1
            stage.counters.decision = admitted if left >= 0 else REFUSAL
            return await reserve(request)

        stage.counters.reserve = limited  # type: ignore[method-assign]  # a fake may

        async def talk() -> int:
            try:
                async with connected(stage) as socket:
                    await socket.send_json(CREATE)
                    await until(socket, "response.done")
                    return 101
            except aiohttp.WSServerHandshakeError as refused:
                return refused.status

        assert sorted(await asyncio.gather(talk(), talk())) == [101, 429]
        assert len(stage.counters.charges) == 1


async def test_realtime_session_by_model_alias_uses_the_first_target_that_opens_a_socket() -> None:
    sockets: list[LiveUpstream] = []
    down = UpstreamTarget("down", "http://127.0.0.1:9", family="openai")
    targets = ModelTarget("down", "x"), ModelTarget("up", "deployed 1")
    rule = ModelRule("fast", False, targets)
    async with staged(ROUTES, others=(down,), models=(rule,)) as stage:
        stage.upstream.handler = playing(responding, sockets)
        async with connected(stage, "/v1/realtime?model=fast") as socket:
            for _ in range(2):
                await socket.send_json(CREATE)
                await until(socket, "response.done")
            await socket.send_json({"type": "input_audio_buffer.append", "audio": "A" * 300_000})
            await eventually(lambda: sockets[0].heard[-1]["type"] == "input_audio_buffer.append")
        assert sockets[0].opened.startswith(b"GET /v1/realtime?model=deployed%201 HTTP/1.1")
        assert [facts_of(one).model for one in stage.counters.charges] == ["fast", "fast"]
        assert len(sockets) == 1
        await eventually(lambda: stage.plane.buffers.used == 0)


async def test_realtime_session_goes_on_from_an_empty_account_before_opening() -> None:
    sockets: list[LiveUpstream] = []
    poor = FakeUpstream()
    await poor.start()
    poor.scripts.append([answer(b'{"error":{"code":"insufficient_quota"}}', status=b"429 Too Many Requests")])
    target = UpstreamTarget("poor", f"http://127.0.0.1:{poor.port}", family="openai")
    rule = ModelRule("fast", False, (ModelTarget("poor", "x"), ModelTarget("up", "y")))
    async with staged(ROUTES, others=(target,), models=(rule,)) as stage:
        stage.upstream.handler = playing(responding, sockets)
        for _ in range(2):
            async with connected(stage, "/v1/realtime?model=fast") as socket:
                await socket.send_json(CREATE)
                await until(socket, "response.done")
        assert (len(sockets), len(poor.received), len(stage.empty.entries)) == (2, 1, 1)
    await poor.stop()


GEMINI = Family("gemini")
LIVE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
VERTEX = "/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent"
GEMINI_ROUTES = tuple(
    Route(("GET",), path, "up", "chat", GEMINI, "gemini_live")
    for path in (LIVE, LIVE.replace("v1beta", "v1"), VERTEX)
)
GEMINI_USAGE = {
    "promptTokenCount": 80, "responseTokenCount": 40, "totalTokenCount": 120, "cachedContentTokenCount": 10,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 30}],
    "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 40}],
}  # fmt: skip
SPOKEN = {"serverContent": {"modelTurn": {"parts": [{"text": "hi"}]}}}
SETUP = {"setup": {"model": "models/m"}}


async def speaking(socket: LiveUpstream) -> None:
    """Answer the setup and each content, as the Live API does: the use comes with the end, or behind it."""
    await socket.receive()
    await socket.send({"setupComplete": {}})
    for number in range(9):
        await socket.receive()
        over: dict[str, Any] = {"serverContent": {"turnComplete": True}}
        if number % 2:
            await socket.send(SPOKEN, over, {"usageMetadata": GEMINI_USAGE})
        else:
            await socket.send(SPOKEN, over | {"usageMetadata": GEMINI_USAGE})


def talking() -> AbstractAsyncContextManager[tuple[Stage, list[LiveUpstream]]]:
    return live(speaking, GEMINI_ROUTES)


@pytest.fixture
def trusts(tmp_path: Path) -> Iterator[ssl.SSLContext]:
    """The gateway speaks TLS: Google's client sends a key to nobody else."""
    made = trustme.CA()
    reset = OVER.set(Tls(issued(tmp_path, made), trusting(made)))
    yield trusting(made)
    OVER.reset(reset)


async def test_google_client_library_holds_a_live_session_through_the_gateway(trusts: ssl.SSLContext) -> None:
    async with talking() as (stage, sockets):
        base = f"https://127.0.0.1:{stage.port}"
        options = types.HttpOptions(base_url=base, async_client_args={"ssl": trusts})
        client = genai.Client(api_key=KEY, http_options=options)
        async with client.aio.live.connect(
            model="m", config=types.LiveConnectConfig(response_modalities=[types.Modality.AUDIO])
        ) as session:
            for number in (1, 2, 3):
                content = types.Content(role="user", parts=[types.Part(text="hello")])
                await session.send_client_content(turns=content)
                said = [one async for one in session.receive()]
                assert [one.text for one in said if one.text] == ["hi"]
                await stage.settled(number)
        assert [one.tokens for one in stage.counters.charges] == [120] * 3
        assert counts(stage, 0) == {
            "input": 70, "cache_read": 10, "output": 40, "audio_input": 30, "audio_output": 40
        }  # fmt: skip
        assert sockets[0].opened.startswith(b"GET /ws/google.ai.generativelanguage.v1.")
        assert KEY.encode() not in sockets[0].opened
        assert sockets[0].heard[0]["setup"]["model"] == "models/m"


async def test_api_key_in_the_url_of_a_live_session_is_accepted_and_not_sent_to_the_upstream() -> None:
    async with talking() as (stage, sockets), connected(stage, f"{LIVE}?key={KEY}", headers={}) as socket:
        await socket.send_json(SETUP)
        assert await received(socket) == {"setupComplete": {}}
        assert KEY.encode() not in sockets[0].opened
        await socket.close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage, f"{LIVE}?key={KEY}", headers={"x-goog-api-key": "other"}):
                pass
        assert caught.value.status == 400
        stage.directory.known = False
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage, f"{LIVE}?key=wrong", headers={}):
                pass
        assert caught.value.status == 401


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ({"setup": {"model": "models/dear"}}, 1008, "may not use the model dear"),
        ({"setup": {}}, 1007, "setup.model must be a model"),
        ({"clientContent": {}}, 1007, "The setup is the first message"),
        (SETUP | {"clientContent": {}}, 1007, "A message must be one of"),
        ({"setup": SETUP["setup"] | {"sessionResumption": {"handle": "h"}}}, 1007, "handle is not accepted"),
        ({"setup": SETUP["setup"] | {"generationConfig": {"routing_config": {}}}}, 1007, "is not accepted"),
    ],
)
async def test_disallowed_gemini_live_setup_closes_the_client_socket_and_opens_no_upstream_socket(
    message: Any, code: int, words: str
) -> None:
    async with talking() as (stage, sockets):
        stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
        async with connected(stage, LIVE, headers={"x-goog-api-key": KEY}) as socket:
            await socket.send_json(message)
            end = await socket.receive(WITHIN_S)
            assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, code)
            assert words in str(end.extra)
        assert not sockets


async def test_vertex_receives_the_model_name_with_the_configured_project_and_region() -> None:
    place: dict[str, object] = {"project": "ours", "region": "here", "path": "/v1/models/{model}:{operation}"}
    async with live(speaking, GEMINI_ROUTES, of_target=place) as (stage, sockets):
        async with connected(stage, VERTEX) as socket:
            named = "projects/any/locations/any/publishers/google/models/m"
            await socket.send_json({"setup": {"model": named}})
            await received(socket)
        assert sockets[0].opened.startswith(f"GET {VERTEX} ".encode())
        assert (
            sockets[0].heard[0]["setup"]["model"] == "projects/ours/locations/here/publishers/google/models/m"
        )


def test_gemini_live_message_that_interrupts_an_answer_stays_open_until_the_next_answer_ends() -> None:
    session = GeminiLiveSession({})
    session.ask(SETUP, 60)
    said = {"clientContent": {"turns": [{"parts": [{"text": "hi"}]}], "turnComplete": True}}
    session.ask(said, 60)
    session.ask(said, 60)
    usage = {"promptTokenCount": 3, "responseTokenCount": 2}
    for word, pending in (("interrupted", True), ("turnComplete", False)):
        event = json.dumps({"serverContent": {"modelTurn": {}, word: True}, "usageMetadata": usage})
        assert session.hear(event.encode()) == (event.encode(), False, True, "")
        assert session.pending is pending


@pytest.mark.parametrize(
    ("message", "asks"),
    [
        ({"clientContent": {}}, False),
        ({"clientContent": {"turnComplete": False}}, False),
        ({"client_content": {"turn_complete": None}}, False),
        ({"clientContent": {"turnComplete": True}}, True),
        ({"client_content": {"turn_complete": True}}, True),
        ({"clientContent": {"turnComplete": False, "turn_complete": True}}, True),
        ({"clientContent": {"turnComplete": "true"}}, True),
        ({"realtimeInput": {"audioStreamEnd": True}}, False),
        ({"realtime_input": {"activity_end": {}}}, False),
        ({"realtimeInput": {"text": "hi"}}, True),
        ({"realtimeInput": {"audio": {"data": "AAAA"}}}, False),
        ({"realtimeInput": {"audio": {"data": "AAAA"}, "audioStreamEnd": True}}, True),
        ({"realtimeInput": {"audio": {"data": "AAAA"}, "audioStreamEnd": False}}, False),
        ({"toolResponse": {}}, True),
    ],
)
def test_gemini_live_session_waits_for_an_answer_only_after_a_message_that_requests_an_answer(
    message: dict[str, Any], asks: bool
) -> None:
    session = GeminiLiveSession({})
    session.ask(SETUP, 60)
    session.ask(message, 60)
    assert session.pending is asks


def test_end_of_live_speech_input_requests_a_single_answer() -> None:
    session = GeminiLiveSession({})
    end = {"realtimeInput": {"activityEnd": {}}}
    for message in (SETUP, {"realtimeInput": {"audio": {"data": "AAAA"}}}, end):
        session.ask(message, 60)
    assert session.pending
    usage = {"promptTokenCount": 3, "responseTokenCount": 2}
    session.hear(json.dumps({"serverContent": {"turnComplete": True}, "usageMetadata": usage}).encode())
    session.ask(end, 60)
    assert not session.pending


@pytest.mark.parametrize(
    ("message", "needs"),
    # 20 tokens of a setup of 60 bytes, and as many of each of 300 messages; for eight answers at most.
    [({"clientContent": {}}, 6_020), ({"clientContent": {"turnComplete": True}}, 8 * 6_020),
     ({"realtimeInput": {"activityEnd": {}}}, 320)],
)  # fmt: skip
def test_tokens_needed_by_a_gemini_live_session_grow_only_with_the_messages_sent(
    message: dict[str, Any], needs: int
) -> None:
    session = GeminiLiveSession({})
    session.ask(SETUP, 60)
    for _ in range(300):
        session.ask(message, 60)
    assert session.needs == needs


# What costs nothing between turns.
FREE: dict[str, object] = {
    name: {}
    for name in (
        "setupComplete", "goAway", "sessionResumptionUpdate", "toolCallCancellation", "voiceActivity",
        "voiceActivityDetectionSignal",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "is_free"),
    [(FREE, True), ({"goAway": {}}, True), ({}, False), (FREE | {"serverContent": {}}, False)],
)
def test_gemini_live_events_that_cost_no_tokens_are_recognized_as_free(
    said: dict[str, object], is_free: bool
) -> None:
    event = json.dumps(said).encode()
    assert GeminiLiveSession({}).hear(event) == (event, is_free, False, "")


@pytest.mark.parametrize("asks", [True, False])
async def test_tool_added_by_a_gemini_live_message_needs_a_price_before_sending(asks: bool) -> None:
    """In a turn that has an answer, and in one that awaits a question."""
    go_on = asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.receive()
        await socket.send({"setupComplete": {}})
        if asks:
            await socket.receive()
            await socket.send(SPOKEN)
            await go_on.wait()
            await socket.send({"serverContent": {"turnComplete": True}, "usageMetadata": GEMINI_USAGE})
        await socket.receive()

    async with live(script, GEMINI_ROUTES) as (stage, sockets):
        stage.directory.budgets_there = [Budget(1, "money", "money", NANO, "day")]
        row = price_row(input="1", output="2", audio_input="1", audio_output="1", image_output="1")
        stage.directory.prices["m"] = read_price(row).vector
        async with connected(stage, f"{LIVE}?key={KEY}", headers={}) as socket:
            await socket.send_json(SETUP)
            assert await received(socket) == {"setupComplete": {}}
            if asks:
                await socket.send_json({"clientContent": {"turns": [], "turnComplete": True}})
                assert await received(socket) == SPOKEN
            await socket.send_json({"contextUpdate": {"tools": {"tools": [{"googleSearch": {}}]}}})
            closed = await socket.receive(timeout=WITHIN_S)
            go_on.set()
            assert closed.type is aiohttp.WSMsgType.CLOSE, closed
            assert closed.extra is not None
            assert closed.extra.startswith(
                "A tool that may cost" if asks else "No USD price for the tool googleSearch"
            )
        assert not any("contextUpdate" in message for message in sockets[0].heard)


async def test_live_message_during_admission_of_a_turn_is_checked_before_sending() -> None:
    begins, ends = asyncio.Event(), asyncio.Event()

    async def script(socket: LiveUpstream) -> None:
        await socket.send(CREATED)
        await socket.until("response.create")
        await socket.send(BEGUN, DELTA, done())
        await begins.wait()  # then it speaks by itself
        await socket.send(BEGUN, DELTA)
        await ends.wait()
        await socket.send(done())
        await socket.until("")

    async with live(script) as (stage, sockets), connected(stage) as socket:
        stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
        await until(socket, "session.created")
        await socket.send_json(CREATE)
        await until(socket, "response.done")
        await stage.settled(1)
        stage.counters.slow = True
        begins.set()
        await eventually(lambda: stage.counters.admitting)
        await socket.send_json({"type": "session.update", "session": transcribing("other")})
        await eventually(lambda: stage.plane.buffers.used)
        for wait, decision in stage.counters.admitting:
            wait.set(decision)
        while (event := await received(socket))["type"] != "error":
            pass
        assert event["status"] == 403
        stage.counters.slow = False
        ends.set()
        await until(socket, "response.done")
        assert [message["type"] for message in sockets[0].heard] == ["response.create"]
