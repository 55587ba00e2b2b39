"""A call that a step sent as a model which refuses it is sent once more, as asked, with the scripts of a real Valkey."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.budgets import MAXIMUM
from gateway.core.accounts.call_facts import read_facts
from gateway.core.accounts.steps import REFUSED_KEY_MS, RefusedPart, RefusedSubstitutes, Step, Substitution
from tests.builders import World
from tests.calls.test_steps import BUDGET, PRICES, STEP, WHOLE, Gate, MemorySessions, gate, sealed_by
from tests.http.fakes import STREAM_HEAD, USAGE_EVENT, answer, chunks, post
from tests.http.stage import Step as UpstreamStep
from tests.http.stage import reset
from tests.http.test_models import rule
from tests.waiting import eventually

# An error of OpenAI's, as openai 3.51.0 reads it, and one of Anthropic's, which names no parameter.
TAKES_NO_TOP_P = json.dumps(
    {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "unsupported_value",
        }
    }
).encode()
NAMELESS = b'{"type":"error","error":{"type":"invalid_request_error","message":"top_p: not taken"}}'
REFUSES: list[UpstreamStep] = [answer(NAMELESS, status=b"400 Bad Request")]
MESSAGES = b"/v1/messages"


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    made.plan(None)
    yield made
    made.client.close()


def reach(there: Gate) -> None:
    """Use as much of the budget as its step needs."""
    there.use(90_000_000)


def statuses(there: Gate) -> list[tuple[str, int]]:
    """Return the model and the status of each call that has a row."""
    facts = [read_facts(settlement.metadata) for settlement in there.counters.settlements]
    return [(fact.model, fact.status) for fact in facts if fact is not None]


@pytest.mark.parametrize("stream", [False, True])
async def test_call_refused_by_its_substitute_is_charged_as_its_own_model(world: World, stream: bool) -> None:
    async with gate(world) as there:
        reach(there)
        streamed: list[UpstreamStep] = [STREAM_HEAD + chunks(USAGE_EVENT, b"data: [DONE]\n\n")]
        there.stage.upstream.scripts = [REFUSES, *([streamed] if stream else [])]
        answered = await there.ask(stream=stream or None)
        assert (answered.status, there.sent) == (200, ["cheap", "dear"])
        assert answered.all(b"x-tollkeeper-model") == answered.all(b"x-tollkeeper-substituted-by") == []
        assert statuses(there) == [("cheap", 400), ("dear", 200)]
        refused, charged = there.counters.settlements
        assert (refused.charge, charged.charge, charged.money) == (False, True, 12 * 10_000)
        assert there.held() == [(90_000_000 + 120_000, 0)]
        ids = [one.all(b"x-request-id")[0].decode() for one in there.stage.upstream.received]
        assert ids == [refused.request_id, charged.request_id]
        assert answered.one(b"x-request-id").decode() == charged.request_id
        bodies = [json.loads(one.body) | {"model": ""} for one in there.stage.upstream.received]
        assert bodies[0] == bodies[1]
        tally = there.stage.tally
        assert (tally.substituted_calls, tally.steps_refused) == ({"cheap": 1}, {"cheap": 1})


async def test_calls_of_a_key_skip_a_substitute_for_five_minutes_after_its_refusal(world: World) -> None:
    async with gate(world) as there:
        reach(there)
        there.stage.upstream.scripts = [REFUSES]
        await there.ask()
        await there.ask()
        there.stage.refusals._unix_seconds = lambda: time.time() + REFUSED_KEY_MS / 1_000
        await there.ask()
        assert there.sent == ["cheap", "dear", "dear", "cheap"]


async def test_calls_without_the_refused_parameter_go_as_the_substitute(world: World) -> None:
    async with gate(world) as there:
        reach(there)
        there.stage.upstream.scripts = [[answer(TAKES_NO_TOP_P, status=b"400 Bad Request")]]
        await there.ask(top_p=0.5)
        await there.ask(top_p=0.5)
        await there.ask()
        assert there.sent == ["cheap", "dear", "dear", "cheap"]


async def test_session_leaves_a_substitute_after_its_refusal(world: World) -> None:
    """Its next call carries what the model as asked sealed, which the substitute could not read."""
    async with gate(world, sessions=MemorySessions()) as there:
        reach(there)
        there.stage.upstream.scripts = [REFUSES]
        await there.ask(path=MESSAGES, session="one")
        await there.ask(path=MESSAGES, session="one", messages=sealed_by("dear"))
        await there.ask(path=MESSAGES, session="other")
        assert there.sent == ["cheap", "dear", "dear", "cheap"]


async def test_session_leaves_the_substitute_of_a_step_that_switches(world: World) -> None:
    budget = replace(BUDGET, steps=(STEP._replace(switches=True),))
    async with gate(world, budget, sessions=MemorySessions()) as there:
        reach(there)
        there.stage.upstream.scripts = [REFUSES]
        for session in ("one", "one", "other"):
            await there.ask(session=session)
        assert there.sent == ["cheap", "dear", "dear", "cheap"]


async def test_call_refused_by_both_models_is_not_remembered(world: World) -> None:
    async with gate(world) as there:
        reach(there)
        there.stage.upstream.scripts = [REFUSES, REFUSES]
        refused = await there.ask()
        assert (refused.status, refused.body) == (400, NAMELESS)
        await there.ask()
        assert there.sent == ["cheap", "dear", "cheap"]
        assert statuses(there) == [("cheap", 400), ("dear", 400), ("cheap", 200)]


async def test_refusal_is_handed_on_without_room_for_the_dearer_model(world: World) -> None:
    budget = replace(BUDGET, hold=MAXIMUM)
    async with gate(world, budget) as there:
        there.use(WHOLE - 900_000)  # 100 tokens of the dear model cost a million
        there.stage.upstream.scripts = [REFUSES]
        refused = await there.ask(max_tokens=100)
        assert (refused.status, refused.body, there.sent) == (400, NAMELESS, ["cheap"])
        assert refused.one(b"x-request-id").decode() == there.counters.settlements[0].request_id
        assert statuses(there) == [("cheap", 400)]
        assert there.held() == [(WHOLE - 900_000, 0)]


async def sealed(there: Gate) -> dict[str, Any]:
    """Begin a session with the substitute, which then seals a part of it."""
    await there.ask(path=MESSAGES, session="one")
    there.stage.upstream.received.clear()
    return {"path": MESSAGES, "session": "one", "messages": sealed_by("cheap")}


async def test_call_without_its_client_is_sent_once_and_free(world: World) -> None:
    async with gate(world) as there:
        reach(there)
        refused = asyncio.Event()
        there.stage.upstream.scripts = [[refused, *REFUSES]]
        client = await there.stage.client()
        body = json.dumps(
            {"model": "dear", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
        ).encode()
        await client.send(post(body))
        await eventually(lambda: there.sent == ["cheap"])
        reset(client.writer)
        await eventually(lambda: all(connection.gone for connection in there.stage.plane._connections))
        refused.set()
        await eventually(lambda: len(there.counters.settlements) == 1)
        assert there.sent == ["cheap"]
        assert there.held() == [(90_000_000, 0)]


@pytest.mark.parametrize(
    "error",
    [b"[" * 5_000 + b"]" * 5_000, b"{", b'{"error": 1}', b'{"error": {"code": "\\u001b[31m", "param": 7}}'],
)
async def test_call_is_sent_again_whatever_the_refusal_says(world: World, error: bytes) -> None:
    async with gate(world) as there:
        reach(there)
        there.stage.upstream.scripts = [[answer(error, status=b"400 Bad Request")]]
        assert (await there.ask()).status == 200
        assert there.stage.events("substitute_refused")[0]["code"] == ""


async def usual(_: Gate) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(("status", "begins"), [(400, sealed), (422, usual), (404, usual), (500, usual)])
async def test_sealed_calls_and_other_failures_are_sent_once(world: World, status: int, begins: Any) -> None:
    async with gate(world, sessions=MemorySessions()) as there:
        reach(there)
        asks = await begins(there)
        there.stage.upstream.scripts = [[answer(NAMELESS, status=b"%d Error" % status)]]
        answered = await there.ask(**asks)
        assert (answered.status, there.sent) == (status, ["cheap"])


async def test_second_sending_has_the_targets_of_its_model(world: World) -> None:
    async with gate(world) as there:
        there.stage.directory.models_there = (
            rule("dear", ("up", "dear"), ("up", "dear-2")),
            rule("cheap", ("up", "cheap")),
        )
        there.stage.directory.prices["dear-2"] = PRICES["dear"]
        reach(there)
        there.stage.upstream.scripts = [REFUSES, [answer(b"{}", status=b"500 Error")]]
        assert (await there.ask()).status == 200
        assert there.sent == ["cheap", "dear", "dear-2"]
        assert there.held()[0][1] == 0


async def test_admission_keeps_a_call_with_a_beta_of_larger_models(world: World) -> None:
    names = ("claude-opus-4-6", "claude-haiku-4-5")
    async with gate(world, replace(BUDGET, steps=(Step(0.8, (names,)),))) as there:
        there.stage.directory.prices |= {names[0]: PRICES["dear"], names[1]: PRICES["cheap"]}
        reach(there)
        body = json.dumps(
            {"model": names[0], "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
        ).encode()
        for beta in (b"anthropic-beta: context-1m-2025-08-07\r\n", b""):
            assert (await there.stage.ask(post(body, MESSAGES, beta))).status == 200
        assert there.sent == [*names]


def test_memory_forgets_the_oldest_of_too_many() -> None:
    memory, by = RefusedSubstitutes(most=3), Substitution("dear", 1, "b")
    for key_id in (1, 2, 3, 1, 4):
        memory.note((1, "", key_id), by, "cheap", RefusedPart(), 0)
    assert [memory.find((1, "", key_id), 1, "cheap", 1) is not None for key_id in (1, 2, 3, 4)] == [
        True,
        False,
        True,
        True,
    ]
