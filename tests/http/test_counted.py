"""Free calls that name a model: its lists hold for them, and they go where it goes, under its name there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.calls.routes import Route
from gateway.core.model import Family
from tests.http.fakes import CALLER, ROUTES
from tests.http.test_models import paired, rule

OPENAI, ANTHROPIC, GEMINI = Family("openai"), Family("anthropic"), Family("gemini")
COUNTING = tuple(
    Route(("POST",), path, "up", "", family, objects=objects)
    for path, family, objects in (
        ("/v1/messages/count_tokens", ANTHROPIC, "owned"), ("/v1/responses/input_tokens", OPENAI, "owned"),
        ("/tokenize", OPENAI, "owned"), ("/shared/detokenize", OPENAI, "shared"),
        ("/v1beta/models/{model}:countTokens", GEMINI, "owned"),
    )
)  # fmt: skip
ROUTED = (*ROUTES, *COUNTING)
SAID: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
WHOLE = {"generateContentRequest": {"model": "models/own", "contents": []}}
ASKED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "messages": (b"/v1/messages/count_tokens", {"model": "own", "messages": SAID}),
    "responses": (b"/v1/responses/input_tokens", {"model": "own", "input": "hi"}),
    "vLLM": (b"/tokenize", {"model": "own", "prompt": "hi"}),
    "vLLM with shared objects": (b"/shared/detokenize", {"model": "own", "tokens": [1]}),
    "Gemini": (b"/v1beta/models/own:countTokens", {"contents": []}),
    "Gemini, a whole call": (b"/v1beta/models/own:countTokens", WHOLE),
}


@pytest.mark.parametrize("kind", ASKED)
async def test_a_free_call_goes_where_its_model_goes_under_the_name_there(kind: str) -> None:
    path, body = ASKED[kind]
    async with paired(rule("own", ("other", "theirs")), routes=ROUTED) as pair:
        assert (await pair.ask(json.dumps(body).encode(), path)).status == 200
        assert pair.asked == (0, 1)
        (received,) = pair.other.received
        assert b"own" not in received.body + received.target
        assert b"theirs" in received.body + received.target
        assert received.all(b"authorization") == [b"Bearer theirs"]
        assert not pair.stage.counters.charges


@pytest.mark.parametrize("kind", ASKED)
async def test_the_list_of_a_key_holds_for_a_free_call(kind: str) -> None:
    path, body = ASKED[kind]
    async with paired(routes=ROUTED) as pair:
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"another"}))
        assert (await pair.ask(json.dumps(body).encode(), path)).reason == "model_not_allowed"
        assert pair.asked == (0, 0)
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"own"}))
        assert (await pair.ask(json.dumps(body).encode(), path)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"model": "own", "models": ["another"]},
        {"model": "own", "tools": [{"type": "x", "model": "another"}]},
        {"generateContentRequest": {"tools": [{"model": "another"}]}},
        {"model": "own", "input": [{"type": "additional_tools", "tools": [{"model": "another"}]}]},
        {"model": "own", "messages": [{"content": [{"tool": {"definition": {"model": "another"}}}]}]},
    ],
)  # fmt: skip
async def test_a_model_beside_is_judged_as_well(body: dict[str, Any]) -> None:
    async with paired(routes=ROUTED) as pair:
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"own"}))
        assert (await pair.ask(json.dumps(body).encode(), b"/tokenize")).reason == "model_not_allowed"


async def test_a_free_call_without_a_price_or_a_model_passes() -> None:
    async with paired(routes=ROUTED, refuses_unpriced=True) as pair:
        for body in ({"model": "own", "prompt": "hi"}, {"prompt": "hi"}):
            assert (await pair.ask(json.dumps(body).encode(), b"/tokenize")).status == 200
        assert pair.asked == (2, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/tokenize", {"Model": "own"}), (b"/tokenize", {"model": ["own"]}),
        (b"/v1beta/models/own:countTokens", {"generateContentRequest": {"model": "models/another"}}),
    ],
)  # fmt: skip
async def test_a_model_that_could_be_read_in_two_ways_is_refused(path: bytes, body: dict[str, Any]) -> None:
    async with paired(routes=ROUTED) as pair:
        assert (await pair.ask(json.dumps(body).encode(), path)).status == 400
        assert pair.asked == (0, 0)
