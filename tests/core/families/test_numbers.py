"""Where a hold binds a call, no number passes that may overrule its maximum."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import pytest
from anthropic.types import message_create_params
from google.genai import types as gemini
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gateway.core.calls.claims import HARMLESS, TEXTS, check_numbers, read_call
from gateway.core.calls.routes import Route
from gateway.core.families.registry import SHAPES
from gateway.core.model import Family
from gateway.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "openai_chat": {"model": "m", "max_tokens": 1, "messages": MESSAGES},
    "openai_completions": {"model": "m", "prompt": "42"},
    "openai_responses": {"model": "m", "input": "42", "prompt_cache_key": "7"},
    "anthropic_messages": {"model": "m", "max_tokens": 1, "messages": MESSAGES},
    "gemini_generate": {"contents": [], "generationConfig": {"maxOutputTokens": 1, "temperature": 0.5}},
}
# Of the clients' own parameters these count answers or tokens where another API's shape does not read them.
SDK_PARAMS: dict[str, object] = {
    "openai_chat": chat_create_params.CompletionCreateParamsBase,
    "openai_completions": completion_create_params.CompletionCreateParamsBase,
    "openai_responses": response_create_params.ResponseCreateParamsBase,
    "anthropic_messages": message_create_params.MessageCreateParamsBase,
}


def checked(meter: str, more: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    body = json.dumps({**BODIES[meter], **more}).encode()
    route = Route(("POST",), "/x", "u", "s", Family(meter.partition("_")[0]), meter)
    check_numbers(read_call(route, {"model": "m:generateContent"}, body), allowed)


@pytest.mark.parametrize("meter", BODIES)
@pytest.mark.parametrize(
    "value",
    [20_000, 1e4, -1, "20000", " 2e4 ", "0" * 70 + "20000", " " * 9_000 + "2e4", [20_000], [["20000"]]],
)
def test_a_number_nobody_knows_is_refused_by_its_name_unless_it_is_allowed(meter: str, value: object) -> None:
    checked(meter, {})
    for name in ("n_predict", "max_new_tokens", "num_predict", "n_cmpl", "num_retries"):
        with pytest.raises(InvalidRequest, match=f"^{name}:"):
            checked(meter, {name: value})
        checked(meter, {name: value}, frozenset({name}))


def test_where_a_maximum_stands_deeper_numbers_are_known_there_too() -> None:
    with pytest.raises(InvalidRequest, match=r"^maxNewTokens:"):
        checked("gemini_generate", {"generationConfig": {"maxNewTokens": 9}})


@pytest.mark.parametrize("messages", [[MESSAGES, MESSAGES], MESSAGES[0], "hi"])
def test_a_bound_call_is_one_chat(messages: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages "):
        checked("openai_chat", {"messages": messages})


def test_what_is_no_number_passes() -> None:
    checked(
        "openai_chat",
        {"new_field": {"max": 5}, "another": "text", "third": True, "list": [9, 9], "none": None},
    )


@pytest.mark.parametrize("meter", SDK_PARAMS)
def test_each_number_of_the_official_clients_is_judged(meter: str) -> None:
    known = SHAPES[meter].numbers | HARMLESS
    hints = typing.get_type_hints(SDK_PARAMS[meter])
    numbers = {name for name, hint in hints.items() if {int, float} & set(_parts(hint))}
    assert numbers
    assert numbers - known == set()
    texts = {name for name, hint in hints.items() if str in _parts(hint) and name not in BODIES[meter]}
    assert texts - TEXTS == set()


def test_each_number_of_geminis_configuration_is_judged() -> None:
    fields = gemini.GenerationConfig.model_fields.values()
    numbers = {one.alias or "" for one in fields if {int, float} & set(_parts(one.annotation))}
    assert numbers - SHAPES["gemini_generate"].numbers - HARMLESS == set()


def _parts(hint: object) -> list[object]:
    """The types that a value of it may have, but for those inside of lists and objects."""
    origin = typing.get_origin(hint)
    if origin not in {typing.Union, types.UnionType, typing.Required}:
        return [hint] if origin is None else []
    return [part for inner in typing.get_args(hint) for part in _parts(inner)]
