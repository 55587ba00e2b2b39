"""Answers of live sessions have a maximum where a hold binds: what a client leaves out is written."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.calls.call import UsageBounds
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.family import LiveSession
from gateway.core.families.gemini.live import GeminiLiveSession
from gateway.core.families.openai.realtime import OUTPUT_MAX, RealtimeSession
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from tests.features.websockets.test_live import connected, until
from tests.features.websockets.test_live_limits import PRICE, limited

UPDATE, CREATE = "session.update", "response.create"
SOUND = {"type": "input_audio_buffer.append", "audio": "A" * 12_800}


def opened(most: int | None = 700) -> RealtimeSession:
    session = RealtimeSession({"model": "m"})
    session.output_max = most
    return session


def sent(session: LiveSession, message: dict[str, Any]) -> list[dict[str, Any]]:
    message = deepcopy(message)
    session.ask(message, 300)
    return [json.loads(one) for one in session.limited(json.dumps(message).encode())]


def stated(session: LiveSession) -> int | None:
    """The maximum of a call for the session's next turn."""
    route = Route(("GET",), "/v1/realtime", "u", "chat", Family("openai"), "openai_realtime")
    if isinstance(session, GeminiLiveSession):
        route = Route(("GET",), "/ws", "u", "gemini", Family("gemini"), "gemini_live")
    body = json.dumps(session.document()).encode()
    return read_call(route, {}, body, UsageBounds()).output_max


@pytest.mark.parametrize(
    "response", [None, {}, {"max_output_tokens": "inf"}, {"max_response_output_tokens": None}]
)
def test_realtime_response_request_without_an_output_maximum_is_sent_with_the_held_maximum(
    response: dict[str, Any] | None,
) -> None:
    message = {"type": CREATE} if response is None else {"type": CREATE, "response": response}
    [one] = sent(opened(), message)
    assert one["response"] == {"max_output_tokens": 700}
    [one] = sent(opened(9_000), message)
    assert one["response"] == {"max_output_tokens": OUTPUT_MAX}
    [one] = sent(opened(None), dict(message))
    assert one.get("response") == response


def test_realtime_session_update_is_sent_with_the_output_maximum_that_later_turns_hold() -> None:
    session = opened()
    [one] = sent(session, {"type": UPDATE, "session": {"type": "realtime", "max_output_tokens": "inf"}})
    assert one["session"] == {"type": "realtime", "max_output_tokens": 700}
    assert stated(session) == 700
    assert [one["type"] for one in sent(session, SOUND)] == [SOUND["type"]]
    assert stated(opened()) is None


def test_audio_sent_before_any_session_update_is_preceded_by_an_update_with_the_output_maximum() -> None:
    """The API may respond to sound by itself."""
    session = opened()
    update, sound = sent(session, SOUND)
    assert (update["type"], update["session"]) == (UPDATE, {"type": "realtime", "max_output_tokens": 700})
    assert update["event_id"].startswith("tollkeeper-")
    assert sound == SOUND
    assert (sent(session, SOUND), stated(session)) == ([SOUND], 700)
    assert sent(opened(None), SOUND) == [SOUND]


@pytest.mark.parametrize("kind", [UPDATE, CREATE])
@pytest.mark.parametrize("name", ["max_output_tokens", "max_response_output_tokens"])
def test_output_maximum_stated_in_a_realtime_message_is_kept_and_held(kind: str, name: str) -> None:
    place = "session" if kind == UPDATE else "response"
    session = opened()
    [one] = sent(session, {"type": kind, place: {name: 500}})
    assert (one[place], stated(session)) == ({name: 500}, 500)
    for wrong in (701, 0, -1, True, "500", 1.5, [1]):
        with pytest.raises(
            InvalidRequest, match=rf'^{place}.{name} must be "inf" or a whole number up to 700'
        ):
            session.ask({"type": kind, place: {name: wrong}}, 300)
    assert stated(session) == 500
    free = opened(None)
    free.ask({"type": kind, place: {name: 30_000}}, 300)
    assert stated(free) == 30_000
    free.take_back()
    assert stated(free) is None


def test_output_maximum_of_a_realtime_response_is_held_until_the_response_ends() -> None:
    session = opened(None)
    session.ask({"type": CREATE, "response": {"max_output_tokens": 500}}, 300)
    assert stated(session) == 500
    session.hear(json.dumps({"type": "response.created", "response": {"id": "r"}}).encode())
    session.hear(json.dumps({"type": "response.done", "response": {"id": "r"}}).encode())
    assert stated(session) is None


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
def test_gemini_live_setup_without_an_output_maximum_is_sent_with_the_held_maximum(config: str) -> None:
    session = GeminiLiveSession({})
    session.output_max = 700
    [one] = sent(
        session, {"setup": {"model": "models/m", config: {"temperature": 1, "max_output_tokens": None}}}
    )
    assert one["setup"] == {"model": "models/m", config: {"temperature": 1, "maxOutputTokens": 700}}
    assert stated(session) == 700
    later = {"clientContent": {"turnComplete": True, "turns": [{"parts": [{"text": '"setup"'}]}]}}
    assert sent(session, later) == [later]


@pytest.mark.parametrize("name", ["maxOutputTokens", "max_output_tokens"])
def test_output_maximum_stated_in_a_gemini_live_setup_is_kept_and_held(name: str) -> None:
    session = GeminiLiveSession({})
    session.output_max = 700
    setup = {"setup": {"model": "models/m", "generation_config": {name: 500}}}
    assert (sent(session, setup), stated(session)) == ([setup], 500)


@pytest.mark.parametrize(
    "setup",
    [
        {"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 9}},
        {"generationConfig": {"temperature": 1}, "generation_config": {"maxOutputTokens": 5}},
        {"generationConfig": {"maxOutputTokens": "5"}},
    ],
)
def test_gemini_live_setup_with_two_or_malformed_output_maxima_is_refused(setup: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"setup\.generationConfig"):
        GeminiLiveSession({}).ask({"setup": {"model": "models/m", **setup}}, 60)


@pytest.mark.parametrize("kind", ["strict", "prepaid", "money"])
async def test_realtime_upstream_receives_the_output_maximum_held_under_a_budget_or_plan(
    valkey: str, tmp_path: Path, kind: str
) -> None:
    """Of 50,000 tokens a response of `gpt-realtime` holds 4,096, the most that the API takes."""
    path = "/v1/realtime?model=gpt-realtime"
    async with limited(valkey, tmp_path, kind, 50_000, 1.0) as (stage, provider, _):
        stage.directory.prices["gpt-realtime"] = PRICE
        budgets = stage.directory.budgets_there
        stage.directory.budgets_there = [replace(budget, hold="maximum") for budget in budgets]
        async with connected(stage, path) as socket:
            await until(socket, "session.created")
            await socket.send_json({"type": UPDATE, "session": {"type": "realtime"}})
            await socket.send_json({"type": CREATE, "response": {"conversation": "none"}})
            await until(socket, "response.done")
        heard = [one for conversation in provider.conversations for one in conversation.socket.heard]
        assert [one["session" if one["type"] == UPDATE else "response"] for one in heard] == [
            {"type": "realtime", "max_output_tokens": 4_096},
            {"conversation": "none", "max_output_tokens": 4_096},
        ]
