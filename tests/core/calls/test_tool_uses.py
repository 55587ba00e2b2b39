"""How often a call may use a priced tool: as it states where its provider keeps to that, else a ceiling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.billing.price_book import KINDS, read_price
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Body, CallRequest, CallSpec
from gateway.core.calls.claims import asks_of, likely_asks
from gateway.core.calls.estimate import TOOL_USES_MAX
from gateway.core.calls.facts import aim_of
from gateway.core.calls.routes import ModelTarget
from gateway.core.calls.tariff import makes, unpriced_part
from gateway.core.calls.tool_uses import TOOL_USES, find_tool, limit_uses, unpriced_tools, uses_of
from gateway.core.families.controlled import elements
from gateway.core.families.registry import OF_METER
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from tests.core.billing.prices import price_row
from tests.core.calls.test_estimate import UNREAD, transcribed

CHAT, MESSAGES, RESPONSES, GEMINI, BEDROCK = (
    "openai_chat", "anthropic_messages", "openai_responses", "gemini_generate", "bedrock_converse",
)  # fmt: skip
PRICED = ("web_search", "file_search")
PRICES = (Vector(1, "USD", (0,) * len(KINDS), tools=dict.fromkeys(PRICED, 10**9)),)
ANY = dict.fromkeys(PRICED, TOOL_USES)
WEB = {"web_search": TOOL_USES}
SEARCH: dict[str, Any] = {"type": "web_search"}


def defined(tool: object) -> dict[str, Any]:
    return {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}}


def asked(meter: str, fields: dict[str, Any], model: str = "m") -> CallRequest:
    document = {"model": model, **fields}
    call = CallRequest(meter, Family(meter.partition("_")[0]), Body(document=document), CallSpec(model))
    call.body.tools, call.body.plugins = tools_of(document), elements(document, "plugins")
    call.asks = True if call.body.tools else None
    call.tiers = OF_METER[meter].exclusions.asked_tiers(document)
    return call


def uses(call: CallRequest) -> dict[str, int]:
    assert call.body.document is not None
    return uses_of(call, call.body.document, PRICED)


@pytest.mark.parametrize(
    ("meter", "fields", "found"),
    [
        (MESSAGES, {"tools": [SEARCH | {"max_uses": 5}]}, {"web_search": 5}),
        (MESSAGES, {"tools": [SEARCH | {"max_uses": 5}, SEARCH | {"max_uses": 4}]}, {"web_search": 9}),
        (MESSAGES, {"tools": [SEARCH | {"max_uses": 10**30}]}, {"web_search": TOOL_USES_MAX}),
        (MESSAGES, {"tools": [SEARCH] * 3 + [SEARCH | {"max_uses": 10**30}]}, {"web_search": TOOL_USES_MAX}),
        *((MESSAGES, {"tools": [SEARCH | {"max_uses": odd}]}, WEB) for odd in (True, 0, -1, "5", 5.0, None)),
        (RESPONSES, {"tools": [SEARCH], "max_tool_calls": 3}, {"web_search": 3}),
        (RESPONSES, {"tools": [{"type": "file_search"}]}, {"file_search": TOOL_USES}),
        (RESPONSES, {"input": [{"type": "additional_tools", "tools": [SEARCH]}]}, WEB),
        (
            RESPONSES,
            {"input": [{"type": "tool_search_output", "tools": [SEARCH]}], "max_tool_calls": 3},
            {"web_search": 3},
        ),
        (MESSAGES, {"messages": [{"content": [defined(SEARCH | {"max_uses": 5})]}]}, {"web_search": 5}),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}, "max_tool_calls": 3}, dict.fromkeys(PRICED, 3)),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}, ANY),
        (GEMINI, {"tools": [{"googleSearch": {}}]}, WEB),
        (GEMINI, {"tools": [{"google_search": {}}]}, WEB),
        (GEMINI, {"cachedContent": "cachedContents/1"}, ANY),
        (CHAT, {"web_search_options": {}}, WEB),
        (CHAT, {"plugins": [{"id": "web"}]}, WEB),
        (CHAT, {"search_parameters": {"mode": "auto"}}, WEB),
        (CHAT, {"search_parameters": "on"}, WEB),
        (CHAT, {"search_parameters": {"max_search_results": 7}}, {"web_search": 7}),
        (CHAT, {"search_parameters": {"mode": "off"}}, {}),
        (CHAT, {}, {}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "web_search"}}]}, {}),
        (RESPONSES, {"tools": [{"type": "function", "name": "web_search"}]}, {}),
        (MESSAGES, {"tools": [{"name": "web_search", "input_schema": {}}]}, {}),
    ],
)
def test_a_body_says_how_often_a_tool_may_be_used(
    meter: str, fields: dict[str, Any], found: dict[str, int]
) -> None:
    assert uses(asked(meter, fields)) == found


@pytest.mark.parametrize(
    ("meter", "fields"),
    [
        (CHAT, {"tools": [SEARCH | {"max_uses": 1}], "max_tool_calls": 1}),
        (MESSAGES, {"tools": [SEARCH], "max_tool_calls": 1}),
        (RESPONSES, {"tools": [SEARCH | {"max_uses": 1}]}),
        (GEMINI, {"tools": [{"googleSearch": {}, "max_uses": 1}], "max_tool_calls": 1}),
    ],
)
def test_a_maximum_where_no_provider_keeps_to_it_is_none(meter: str, fields: dict[str, Any]) -> None:
    assert uses(asked(meter, fields)) == WEB


@pytest.mark.parametrize("model", ["gpt-4o-search-preview", "sonar-pro", "openai/gpt-5:ONLINE"])
def test_some_models_search_by_themselves(model: str) -> None:
    assert uses(asked(CHAT, {}, model)) == WEB
    beside = asked(CHAT, {})
    beside.models_beside = (model,)
    assert uses(beside) == WEB


def test_what_has_no_price_is_not_held() -> None:
    call = asked(MESSAGES, {"tools": [SEARCH]})
    assert uses_of(call, call.body.document or {}, ()) == {}


def test_the_ceiling_is_written_where_the_api_has_a_field_for_it() -> None:
    dated = {"type": "web_search_20250305", "name": "web_search"}
    own = {"name": "web_search", "input_schema": {}}
    call = asked(MESSAGES, {"tools": [dict(dated), dated | {"max_uses": 3}, dict(own)]})
    limit_uses(call, PRICES)
    assert call.body.changed
    assert call.body.document is not None
    assert call.body.document["tools"] == [dated | {"max_uses": TOOL_USES}, dated | {"max_uses": 3}, own]
    call = asked(RESPONSES, {"tools": [SEARCH]})
    limit_uses(call, PRICES)
    assert call.body.changed
    assert call.body.document == {"model": "m", "tools": [SEARCH], "max_tool_calls": TOOL_USES}
    call = asked(MESSAGES, {"messages": [{"content": [defined(dict(dated))]}]})
    limit_uses(call, PRICES)
    assert call.body.document == {
        "model": "m", "messages": [{"content": [defined(dated | {"max_uses": TOOL_USES})]}]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("meter", "fields"),
    [
        (RESPONSES, {"tools": [SEARCH], "max_tool_calls": 3}), (RESPONSES, {}), (CHAT, {"tools": [SEARCH]}),
        (MESSAGES, {"tools": [{"type": "bash_20250124"}]}), (GEMINI, {"tools": [{"googleSearch": {}}]}),
    ],
)  # fmt: skip
def test_else_a_call_is_sent_as_it_came(meter: str, fields: dict[str, Any]) -> None:
    call = asked(meter, fields)
    limit_uses(call, PRICES)
    assert (call.body.changed, call.body.document) == (False, {"model": "m", **fields})
    free = asked(RESPONSES, {"tools": [SEARCH]})
    limit_uses(free, ())
    assert not free.body.changed


@pytest.mark.parametrize(
    ("meter", "tools", "found"),
    [
        (RESPONSES, [{"type": "image_generation", "quality": "high"}], ["image_generation"]),
        (RESPONSES, [{"type": "code_interpreter", "container": {"type": "auto"}}], ["code_interpreter"]),
        (RESPONSES, [{"type": "computer"}, {"type": "programmatic_tool_calling"}], []),
        (RESPONSES, [{"type": "shell", "environment": {"type": "local"}}], []),
        (RESPONSES, [{"type": "shell", "environment": {"type": "container_auto"}}], ["shell"]),
        (RESPONSES, [{"type": "shell", "environment": {"type": "what comes next"}}], ["shell"]),
        (RESPONSES, [{"type": "file_search", "environment": {"type": "local"}}], []),
        (RESPONSES, [{"type": "code_interpreter", "environment": {"type": "local"}}], ["code_interpreter"]),
        (RESPONSES, [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}}],
         ["code_interpreter with a memory_limit of 64g, where only 1g has a price,"]),
        (RESPONSES, [{"type": "shell", "environment": {"type": "container_auto", "memory_limit": "4g"}}],
         ["shell with a memory_limit of 4g, where only 1g has a price,"]),
        (RESPONSES, [{"type": "image_generation", "name": "x", "web_search": 1}], ["image_generation"]),
        (RESPONSES, [{"type": "namespace", "tools": [{"type": "shell"}, {"type": "function"}]}], ["shell"]),
        (RESPONSES, [{"type": "namespace", "tools": [{"type": "namespace", "tools": [{"type": "shell"}]}]}],
         ["shell"]),
        (RESPONSES, [{"type": "what comes next"}], ["what comes next"]),
        (RESPONSES, [{"type": "web_search_20270101"}], ["web_search_20270101"]),
        (RESPONSES, [{"type": "free"}, {"type": "FUNCTION"}, {"type": "local"}], ["free", "FUNCTION", "local"]),
        (RESPONSES, [SEARCH, {"type": "web_search_preview_2025_03_11"}, {"type": "file_search"}], []),
        (RESPONSES, [{"type": own} for own in ("function", "custom", "mcp", "local_shell")], []),
        (CHAT, [{"function": {"name": "image_generation"}}], []),
        (CHAT, [{"image_generation": {}}], ["image_generation"]),
        (CHAT, [{"type": "openrouter:datetime"}, {"type": "openrouter:web_search"}], []),
        (CHAT, [{"type": "openrouter:next"}, {"type": "bash_20250124"}], ["openrouter:next", "bash_20250124"]),
        (CHAT, [{"type": 5}], ["type"]),
        (MESSAGES, [{"type": "code_execution_20250825", "name": "web_search"}], ["code_execution_20250825"]),
        (MESSAGES, [{"type": "code_execution_20250825", "input_schema": {}}], ["code_execution_20250825"]),
        (MESSAGES, [{"name": "code_execution", "input_schema": {}}, {"type": "custom"}], []),
        (MESSAGES, [{"type": own} for own in ("bash_20250124", "web_fetch_20250910", "mcp_toolset")], []),
        (GEMINI, [{"googleMaps": {}}, {"codeExecution": {}}, {"googleSearch": {}}], ["googleMaps"]),
        (MESSAGES, [{"type": own} for own in ("computer_toolset_20260801", "browser_toolset_20260801")], []),
        (MESSAGES, [{"type": "bash_20270101"}, {"type": "computer"}], ["bash_20270101", "computer"]),
        (GEMINI, [{"computer_use": {}}, {"function_declarations": []}, {"computerUse": {}}], []),
        (GEMINI, [{"mcpServers": []}, {"mcp_servers": []}, {"exaAiSearch": {}}], ["exaAiSearch"]),
        (BEDROCK, [{"toolSpec": {}}, {"systemTool": {}}, {"type": "memory_20250818"}], ["systemTool"]),
        (CHAT, None, []),
    ],
)  # fmt: skip
def test_a_providers_tool_that_no_price_names_is_unpriced(
    meter: str, tools: object, found: list[str]
) -> None:
    """By its kind: what a caller names it says nothing."""
    assert unpriced_tools(asked(meter, {"tools": tools}), PRICES) == found


def test_a_tool_that_no_table_has_needs_a_price_of_its_own_name() -> None:
    tool = {"type": "web_search_20270101"}
    call = asked(RESPONSES, {"tools": [tool]})
    own = (PRICES[0]._replace(tools={"web_search_20270101": 1}),)
    assert unpriced_tools(call, own) == []
    assert call.body.document is not None
    assert uses_of(call, call.body.document, ["web_search_20270101"]) == {"web_search_20270101": TOOL_USES}


def test_find_tool_says_where_a_body_has_it_and_which_price_it_needs() -> None:
    new = {"type": "x_20270101"}
    for meter, fields, kind, found in (
        (
            RESPONSES,
            {"tools": [SEARCH, {"type": "function"}, new]},
            "x_20270101",
            ("tools[2].type", "x_20270101"),
        ),
        (
            RESPONSES,
            {"input": [{"type": "additional_tools", "tools": [{"type": "namespace", "tools": [dict(new)]}]}]},
            "x_20270101",
            ("input[0].tools[0].tools[0].type", "x_20270101"),
        ),
        (
            MESSAGES,
            {"messages": [{"content": [defined({"type": "web_search_20260209"})]}]},
            "web_search_20260209",
            ("messages[0].content[0].tool.definition.type", "web_search"),
        ),
        (GEMINI, {"tools": [{"googleMaps": {}}]}, "googleMaps", ("tools[0].googleMaps", "google_maps")),
        (CHAT, {"web_search_options": {}}, "web_search", ("tools", "web_search")),
    ):
        assert find_tool(asked(meter, fields), kind) == found


def test_uses_of_holds_no_tool_that_the_caller_runs() -> None:
    call = asked(RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "local"}}]})
    assert call.body.document is not None
    assert uses_of(call, call.body.document, ["shell"]) == {}
    hosted = asked(RESPONSES, {"tools": [{"type": "shell"}]})
    assert hosted.body.document is not None
    assert uses_of(hosted, hosted.body.document, ["shell"]) == {"shell": TOOL_USES}


def test_a_plugin_is_a_tool() -> None:
    for plugins, found in (
        ([{"id": "web"}, {"id": "response-healing"}], []),
        ([{"id": "file-parser"}, {"id": "fusion"}], ["file-parser", "fusion"]),
    ):
        assert unpriced_tools(asked(CHAT, {"plugins": plugins}), PRICES) == found


def test_a_search_by_itself_is_a_tool_unless_the_price_of_a_call_has_it() -> None:
    bare = PRICES[0]._replace(tools={})
    for call in (
        asked(CHAT, {}, "gpt-4o-search-preview"),
        asked(CHAT, {"web_search_options": {}}),
        asked(CHAT, {"search_parameters": {}}),
        asked(CHAT, {"plugins": [{"id": "web"}]}),
    ):
        assert unpriced_tools(call, [bare]) == ["web_search"]
        assert unpriced_tools(call, [PRICES[0], bare]) == ["web_search"]  # either may answer
        assert not unpriced_tools(call, [bare._replace(request=1)])


@pytest.mark.parametrize(
    ("meter", "fields", "found"),
    [
        (CHAT, {}, None), (CHAT, {"service_tier": "auto"}, None), (CHAT, {"service_tier": "flex"}, None),
        (CHAT, {"service_tier": "priority"}, ("the service tier priority", "service_tier")),
        (MESSAGES, {"speed": "fast"}, ("the service tier fast", "service_tier")),
        (GEMINI, {"serviceTier": "SERVICE_TIER_PRIORITY"}, ("the service tier priority", "service_tier")),
        (CHAT, {"modalities": ["text", "audio"]}, ("sound that is made", "modalities")),
        (CHAT, {"modalities": ["text"]}, None), (MESSAGES, {"messages": "hello"}, None),
    ],
)  # fmt: skip
def test_a_tier_or_a_sound_that_no_price_names_is_known_before_it_is_made(
    meter: str, fields: dict[str, Any], found: tuple[str, str] | None
) -> None:
    row = price_row(input="1", output="2", service_tiers={"flex": "0.5", "batch": {"input": "1"}})
    bare = read_price(row).vector
    named = read_price(row | {"audio_input": "3", "audio_output": "9"}).vector
    call = asked(meter, fields)
    assert unpriced_part(call, [bare]) == unpriced_part(call, [named, bare]) == found
    if found is None or found[1] == "modalities":
        assert unpriced_part(call, [named]) is None


# Each reading of a part by its API: what may be sound at the dearest is, all else is not.
URL = "https://files.example/1"
CHAT_PARTS: list[tuple[dict[str, Any], bool]] = [
    ({"type": "text", "text": "an audio and a video"}, False),
    ({"type": "text", "text": json.dumps({"type": "audio_url", "mimeType": "audio/mpeg"})}, False),
    ({"type": "image_url", "image_url": {"url": URL}}, False),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, False),
    ({"type": "image_url", "image_url": {"url": "data:Audio/mp3;base64,AAAA"}}, True),
    ({"type": "image_url", "image_url": "data:;base64,AAAA"}, True),
    ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, True),
    ({"type": "audio_url", "audio_url": {"url": URL}}, True),
    ({"type": "video_url", "video_url": {"url": URL}}, True),
    ({"type": "file", "file": {"file_id": "file-1"}}, False),
    ({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}}, False),
    ({"type": "file", "file": {"file_id": "file-1", "format": "audio/mpeg"}}, True),
    ({"type": "file", "file": {"file_data": "data:application/octet-stream;base64,AAAA"}}, True),
    ({"type": "holograms", "hologram": {"url": URL}}, True),
    ({"type": "holograms", "bytes": "AAAA"}, True),
    ({"type": "tool_use", "name": "fetch", "input": {"url": URL, "mimeType": "audio/mpeg"}}, False),
    ({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}, False),
    ({"type": "tool_result", "content": [{"type": "audio", "data": "AAAA"}]}, True),
]
GEMINI_PARTS: list[tuple[dict[str, Any], bool]] = [
    ({"text": "audio/mpeg"}, False),
    ({"fileData": {"mimeType": "image/png", "fileUri": URL}}, False),
    ({"fileData": {"mimeType": "audio/mpeg", "fileUri": URL}}, True),
    ({"file_data": {"mime_type": "VIDEO/mp4", "file_uri": URL}}, True),
    ({"fileData": {"fileUri": URL}}, True),
    ({"inlineData": {"mimeType": "application/octet-stream", "data": "AAAA"}}, True),
    ({"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}, False),
    ({"hologram": {"fileUri": URL}}, True),
    ({"functionCall": {"name": "f", "args": {"url": URL, "mimeType": "audio/mpeg"}}}, False),
    ({"functionResponse": {"name": "f", "response": {"url": URL}}}, False),
    ({"functionResponse": {"name": "f", "parts": [{"inlineData": {"mimeType": "audio/wav"}}]}}, True),
]
TEXT, BYTES = [{"role": "user", "content": "hi"}], {"bytes": "AAAA"}
FILE = {"type": "input_file", "file_id": "file-1"}


@pytest.mark.parametrize(
    ("meter", "fields", "is_sound"),
    [
        *((CHAT, {"messages": [*TEXT, {"role": "user", "content": [part]}]}, heard)
          for part, heard in CHAT_PARTS),
        *((RESPONSES, {"input": [{"type": "message", "role": "user", "content": [part]}]}, heard)
          for part, heard in CHAT_PARTS),
        *((GEMINI, {"contents": [{"role": "user", "parts": [part]}]}, heard) for part, heard in GEMINI_PARTS),
        *((GEMINI, {"contents": TEXT, "systemInstruction": {"parts": [part]}}, heard)
          for part, heard in GEMINI_PARTS),
        *(("gemini_embed", {"requests": [{"content": {"parts": [part]}}]}, heard)
          for part, heard in GEMINI_PARTS),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, True),
        (CHAT, {"messages": [{"role": "assistant", "content": "a", "audio": None}]}, False),
        (CHAT, {"messages": [{"role": "assistant", "annotations": [{"type": "cited", "url": URL}]}]}, False),
        (RESPONSES, {"input": [{"type": "web_search_call", "action": {"url": URL}}]}, False),
        (RESPONSES, {"input": [{"type": "input_audio", "data": "AAAA"}]}, True),
        (RESPONSES, {"input": [{"type": "hologram", "data": "AAAA"}]}, True),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": [FILE]}]}, False),
        ("gemini_interactions", {"input": [{"type": "video", "uri": URL}]}, True),
        ("gemini_interactions", {"input": [{"type": "document", "uri": URL}]}, False),
        (BEDROCK, {"messages": [{"content": [{"audio": {"format": "mp3", "source": {}}}]}]}, True),
        (BEDROCK, {"messages": [{"content": [{"document": {"format": "pdf", "source": BYTES}}]}]}, False),
        (MESSAGES, {"messages": [{"content": [{"type": "document", "source": {"url": URL}}]}]}, False),
    ],
)  # fmt: skip
def test_what_may_be_sound_is_refused_where_no_price_names_sound(
    meter: str, fields: dict[str, Any], is_sound: bool
) -> None:
    row = price_row(input="1", output="2")
    bare, named = read_price(row).vector, read_price(row | {"audio_input": "3"}).vector
    call = asked(meter, fields)
    found = unpriced_part(call, [bare])
    assert (found is not None and found[0].startswith("sound that is read")) is is_sound
    assert unpriced_part(call, [named]) is None


def test_a_prompt_nested_without_end_may_be_sound() -> None:
    said: list[Any] = []
    for _ in range(5_000):
        said = [{"content": said}]
    call = asked(CHAT, {"messages": said})
    assert unpriced_part(call, [read_price(price_row(input="1", output="2")).vector]) is not None


@pytest.mark.parametrize(
    ("meter", "fields", "model", "is_asked"),
    [
        (CHAT, {"modalities": ["image", "text"]}, "m", True), (CHAT, {"modalities": "image"}, "m", True),
        (CHAT, {"modalities": ["text"]}, "m", False), (CHAT, {}, "gpt-5-image", True),
        (GEMINI, {"generationConfig": {"responseModalities": ["Text", "Image"]}}, "m", True),
        (GEMINI, {"generationConfig": {"responseModalities": ["TEXT"]}}, "m", False),
        (GEMINI, {}, "gemini-2.5-flash-image", True), (GEMINI, {}, "gemini-2.5-flash", False),
        (MESSAGES, {}, "claude-5", False),
    ],
)  # fmt: skip
def test_pictures_that_no_price_names_are_known_before_they_are_made(
    meter: str, fields: dict[str, Any], model: str, is_asked: bool
) -> None:
    row = price_row(input="1", output="2")
    call = asked(meter, fields, model)
    found = unpriced_part(call, [read_price(row | {"audio_output": "9"}).vector])
    assert (found == ("pictures that are made", "modalities")) is is_asked
    named = read_price(row | {"audio_output": "9", "image_output": "30"}).vector
    assert unpriced_part(call, [named]) is None
    assert ("image_output" in makes(call)) is is_asked


def test_a_search_that_is_paid_by_the_prompt_is_held_once() -> None:
    prompt = (PRICES[0]._replace(tools={"web_search_prompt": 10**9}),)
    call = asked(GEMINI, {"tools": [{"google_search": {}}]})
    assert call.body.document is not None
    assert uses_of(call, call.body.document, ["web_search_prompt"]) == {"web_search_prompt": 1}
    assert unpriced_tools(call, prompt) == []


def test_sound_that_is_paid_by_the_second_needs_no_price_of_its_tokens() -> None:
    call = asked(
        CHAT, {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]}
    )
    row = price_row(input="1", output="2")
    bare, by_second = read_price(row).vector, read_price(row | {"audio_second": "0.0001"}).vector
    assert unpriced_part(call, [by_second]) is None
    assert unpriced_part(call, [by_second, bare]) is not None  # either may answer


def test_seconds_that_nobody_knows_are_likely_by_the_bytes_and_at_most_what_the_model_takes() -> None:
    vector = read_price(price_row(audio_second="0.0001")).vector
    call, found = transcribed(UNREAD, b"whisper-1", b"json")
    most = asks_of(call, [vector], found.read)
    assert most.tools == {"audio_second": 86_400}
    assert likely_asks(call, most, found.need).tools == {"audio_second": 48}


@pytest.mark.parametrize(
    ("target", "is_made"), [("gemini-2.5-flash-image", True), ("gemini-2.5-flash", False)]
)
def test_a_configured_model_makes_pictures_as_a_target_does(target: str, *, is_made: bool) -> None:
    call = asked(GEMINI, {}, "drawer")
    call.take_aim(aim_of(call, targets=(ModelTarget("up", target),)))
    assert ("image_output" in makes(call)) is is_made


FREE: list[dict[str, Any]] = [
    {"enable_search": False}, {"enable_search": None}, {"web_search": {"enable": False}}, {"web_search": {"enabled": "off"}},
    {"enable_code_interpreter": 0}, {"stream": True},
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "tool"),
    [
        ({"enable_search": True}, "web_search"),
        ({"enable_search": 1}, "web_search"),
        ({"enable_search": "true"}, "web_search"),
        ({"search_strategy": "agent"}, "web_search"),
        ({"web_search": {"enable": True}}, "web_search"),
        ({"web_search": {}}, "web_search"),
        ({"web_search": [False]}, "web_search"),
        ({"enable_enhancement": True}, "web_search"),
        ({"enable_code_interpreter": True}, "code_interpreter"),
    ],
)
def test_an_option_that_uses_a_tool_needs_its_price_and_holds_its_uses(
    fields: dict[str, Any], tool: str
) -> None:
    bare = (Vector(1, "USD", (0,) * len(KINDS)),)
    call = asked(CHAT, fields)
    assert unpriced_tools(call, bare) == [tool]
    assert find_tool(call, tool) == (next(iter(fields)), tool)
    priced = (Vector(1, "USD", (0,) * len(KINDS), tools={tool: 10**9}),)
    assert unpriced_tools(call, priced) == []
    assert uses_of(call, fields, [tool]) == {tool: TOOL_USES}
    assert uses_of(call, fields, ["file_search"]) == {}
    assert asks_of(call, priced).tools == {tool: TOOL_USES}


@pytest.mark.parametrize("fields", FREE)
def test_an_option_that_is_off_uses_no_tool(fields: dict[str, Any]) -> None:
    call = asked(CHAT, fields)
    assert unpriced_tools(call, (Vector(1, "USD", (0,) * len(KINDS)),)) == []
    assert uses_of(call, fields, ["web_search", "code_interpreter"]) == {}


def test_a_screen_of_prompts_by_model_armor_needs_its_price() -> None:
    call = asked(GEMINI, {"modelArmorConfig": {"promptTemplateName": "t"}})
    assert unpriced_tools(call, (Vector(1, "USD", (0,) * len(KINDS)),)) == ["model_armor"]
    priced = (Vector(1, "USD", (0,) * len(KINDS), tools={"model_armor": 10**9}),)
    assert unpriced_tools(call, priced) == []


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("name", ["responseFormat", "response_format"])
@pytest.mark.parametrize(
    ("formats", "made"),
    [
        ([{"text": {}}], []),
        ([{"image": {}}], ["image_output"]),
        ([{"text": {}}, {"audio": {}}], ["audio_output"]),
        ([{"video": {}}], ["audio_output", "image_output"]),
        ({"image": {}}, ["image_output"]),
        ("image", ["audio_output", "image_output"]),
    ],
)
def test_a_format_of_an_answer_makes_what_it_names(
    config: str, name: str, formats: object, made: list[str]
) -> None:
    assert makes(asked(GEMINI, {config: {name: formats}}, "gemini-3-pro")) == made
