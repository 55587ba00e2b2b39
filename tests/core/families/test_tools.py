"""The tools of a call are found at each place where the types of an SDK have some, however spelled."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import pytest
import typing_extensions

from deploy.costs import classes_of, members_of, type_names
from gateway.core.calls.call import Body, CallRequest, names_in
from gateway.core.calls.models import is_repeatable
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.objects import ObjectAccess, read_objects
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from gateway.errors import InvalidRequest

ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "other"}
OWN = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"tools": {}}}}


def defined(tool: object) -> dict[str, Any]:
    return {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}}


def planted(
    hint: Any, plants: Mapping[Any, Sequence[object]], outside: tuple[Any, ...] = ()
) -> Iterator[Any]:
    """Yield values of a type that have, at each place of one of the types in `plants`, each value for that."""
    hint = getattr(hint, "__value__", hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        yield from ({"key": one} for one in planted(inner[1], plants, outside))
    elif origin in {list, tuple} or getattr(origin, "__name__", "") in {"Iterable", "Sequence"}:
        yield from ([one] for one in planted(inner[0], plants, outside))
    elif origin not in {typing.Literal, typing_extensions.Literal}:
        for each in inner:
            yield from planted(each, plants, outside)
    yield from plants.get(hint, ())
    if hint in outside:
        return
    kinds = type_names(hint)
    for name, of in members_of(hint).items():
        for one in planted(of, plants, (*outside, hint)):
            yield {**({"type": kinds[0]} if kinds else {}), name: one}


def converse(tool: object) -> Iterator[Any]:
    service = import_module("botocore.session").get_session().get_service_model("bedrock-runtime")

    def within(shape: Any, outside: tuple[str, ...]) -> Iterator[Any]:
        if shape.name == "Tool":
            yield tool
        elif shape.type_name == "list":
            yield from ([one] for one in within(shape.member, outside))
        elif shape.type_name == "structure" and shape.name not in outside:
            for name, of in shape.members.items():
                yield from ({name: one} for one in within(of, (*outside, shape.name)))

    return within(service.shape_for("ConverseRequest"), ())


# Types of requests, types of the tools in them, and how many places these have at least.
OPENAI, ANTHROPIC, GEMINI = "openai.types.", "anthropic.types.", "google.genai._gaos.types.interactions"
OF_RESPONSES = (f"{OPENAI}responses.tool_param", "ToolParam")
OF_BETA = (f"{ANTHROPIC}beta.beta_tool_union_param", "BetaToolUnionParam")
SDKS = {
    "responses": (f"{OPENAI}responses.response_create_params", "ResponseCreateParamsBase", OF_RESPONSES, 6),
    "events": (f"{OPENAI}responses.responses_client_event_param", "ResponsesClientEventParam", OF_RESPONSES,
               6),
    "counting": (f"{OPENAI}responses.input_token_count_params", "InputTokenCountParams", OF_RESPONSES, 6),
    "items": (f"{OPENAI}conversations.conversation_create_params", "ConversationCreateParams", OF_RESPONSES,
              4),
    "chat": (f"{OPENAI}chat.completion_create_params", "CompletionCreateParamsBase",
             (f"{OPENAI}chat.chat_completion_tool_union_param", "ChatCompletionToolUnionParam"), 1),
    "messages": (f"{ANTHROPIC}message_create_params", "MessageCreateParamsBase",
                 (f"{ANTHROPIC}tool_union_param", "ToolUnionParam"), 1),
    "beta": (f"{ANTHROPIC}beta.message_create_params", "MessageCreateParamsBase", OF_BETA, 3),
    "beta counting": (f"{ANTHROPIC}beta.message_count_tokens_params", "MessageCountTokensParams", OF_BETA, 3),
    "interactions": (GEMINI, "CreateModelInteractionParam", (GEMINI, "ToolParam"), 1),
}  # fmt: skip


@pytest.mark.parametrize("sdk", [*SDKS, "converse"])
def test_tools_of_finds_a_tool_at_each_place_that_a_type_of_an_sdk_has(sdk: str) -> None:
    if sdk == "converse":
        values, least = converse(ADVISOR), 1
    else:
        module, name, (tools, union), least = SDKS[sdk]
        types = classes_of(getattr(import_module(tools), union))
        values = planted(getattr(import_module(module), name), dict.fromkeys(types, (ADVISOR,)))
    bodies = list({json.dumps(one): one for one in values}.values())
    assert len(bodies) >= least
    assert [one for one in bodies if tools_of(one) != [ADVISOR]] == []


def asked(meter: str, body: bytes) -> CallRequest:
    family = Family(meter.partition("_")[0])
    return read_call(Route(("POST",), "/x", "u", "s", family, meter), {"model": "m"}, body)


def messages(content: object, **fields: object) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize(
    "document",
    [
        messages([defined(ADVISOR)]),
        messages([{"type": "tool_result", "tool_use_id": "t", "content": [defined(ADVISOR)]}]),
        messages([{"type": "text", "text": "hi", "content": [[defined(ADVISOR)]]}]),
        messages([{"type": "tool_addition", "tool": ADVISOR}]),
        messages([{"type": "tool_definition", "definition": ADVISOR}]),
        messages([{"type": "TOOL_ADDITION", "tool": [ADVISOR]}]),
        messages([{"type": ["tool_addition"], "tool": {"type": "TOOL_DEFINITION", "definition": ADVISOR}}]),
        messages([{"type": "compaction", "content": "c", "tool_changes": [defined(ADVISOR)]}]),
        messages("hi", system=[defined(ADVISOR)]),
        messages("hi", tools=[{"type": "namespace", "tools": [{"type": "namespace", "tools": [ADVISOR]}]}]),
        messages([{"type": "comes next", "tools": ADVISOR}]),
    ],
)
def test_read_call_finds_a_tool_that_is_defined_inside(document: dict[str, Any]) -> None:
    for escaped in (False, True):
        body = json.dumps(document).encode()
        if escaped:
            body = body.replace(b"tool", b"t\\u006Fol").replace(b"definition", b"definit\\u0069on")
        call = asked("anthropic_messages", body)
        assert ADVISOR in call.body.tools
        assert call.models_beside == ("other",)
        assert call.asks
        assert not is_repeatable(call)


@pytest.mark.parametrize("name", ["Tool", "TOOLS", "tool\u017f", "Definition"])
def test_read_call_refuses_a_member_of_tools_in_another_case(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(
            "anthropic_messages", json.dumps(messages([{"type": "tool_addition", name: [ADVISOR]}])).encode()
        )
    assert refused.value.param == name
    group = {"type": "namespace", "name": "n", name: [ADVISOR]}
    with pytest.raises(InvalidRequest):
        asked("openai_responses", json.dumps({"model": "m", "input": "hi", "tools": [group]}).encode())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_use", "id": "t", "name": "f", "input": {"tools": [ADVISOR], "tool": ADVISOR}},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "advisor"}},
        {"type": "tool_removal", "tool": {"type": "mcp_toolset_reference", "server_name": "s"}},
        {"type": "tool_file", "tool": "code_interpreter", "file_id": "f"},
        {"functionResponse": {"name": "f", "response": {"tools": [ADVISOR]}}},
        {"toolAddition": {"tool": {"type": "tool", "name": "advisor"}}},
        {"toolUse": {"toolUseId": "t", "name": "f", "input": {"tools": [ADVISOR]}}},
    ],
)
def test_tools_of_takes_data_and_references_for_no_tools(part: dict[str, Any]) -> None:
    document = messages([part], tools=[OWN], tool_choice={"type": "allowed_tools", "tools": [ADVISOR]})
    assert tools_of(document) == [OWN]


def test_a_call_whose_functions_have_a_member_called_tools_has_these_functions_alone() -> None:
    call = asked("openai_responses", json.dumps({"model": "m", "input": "hi", "tools": [OWN]}).encode())
    assert (list(call.body.tools), call.models_beside, is_repeatable(call)) == ([OWN], (), True)


def test_a_converse_call_with_functions_is_repeatable_and_one_with_another_tool_is_not() -> None:
    for tool, repeats in (({"toolSpec": {"name": "f"}}, True), ({"nextTool": {"name": "f"}}, False)):
        body = {"messages": [], "toolConfig": {"tools": [tool, {"cachePoint": {"type": "default"}}]}}
        assert is_repeatable(asked("bedrock_converse", json.dumps(body).encode())) is repeats


PROVIDERS = (
    {"type": "web_search"},
    {"type": "web_search", "input_schema": {}},
    {"type": [], "input_schema": {}},
)


def test_a_call_is_repeatable_with_tools_that_a_table_says_only_read() -> None:
    for kind, repeats in (
        ("web_search", True), ("web_search_20270101", False), ("bash_20250124", False), ("shell", False),
        ("apply_patch", True), ("mcp", False), ("tool_search", False),
    ):  # fmt: skip
        call = asked(
            "openai_responses", json.dumps({"model": "m", "input": "hi", "tools": [{"type": kind}]}).encode()
        )
        assert is_repeatable(call) is repeats


@pytest.mark.parametrize("tool", [OWN, {"name": "f", "input_schema": {}}, ADVISOR, *PROVIDERS])
def test_a_conversation_stores_tools_of_the_client_alone(tool: dict[str, Any]) -> None:
    """Later calls would use another one without a word of it."""
    document: dict[str, Any] = {"items": [{"type": "additional_tools", "role": "developer", "tools": [tool]}]}
    call = CallRequest("none", Family("openai"), Body(document=document, names=names_in(document)))
    access = ObjectAccess((), None, reads=True, closed=True, takes=frozenset({"items"}))
    if tool in (ADVISOR, *PROVIDERS):
        with pytest.raises(InvalidRequest):
            read_objects(access, call)
    else:
        read_objects(access, call)
