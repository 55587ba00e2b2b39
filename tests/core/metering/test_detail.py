"""What an answer says beside its charge: kinds, tools, tier, model, and what nobody knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import KINDS
from gateway.core.calls.call import Body, CallRequest, UsageBounds
from gateway.core.calls.facts import aim_of
from gateway.core.calls.routes import ModelTarget
from gateway.core.metering.meter import TOOLS_MAX, Detail, Meter
from gateway.core.metering.meters import make_meter
from gateway.core.metering.report import content_bytes
from gateway.core.model import Family, TokenUsage
from tests.core.metering.recorded import JSON, SSE, call, chat_chunk, frame

MESSAGE_USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 20_000,
    "cache_read_input_tokens": 180_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 5_000, "ephemeral_1h_input_tokens": 15_000},
    "output_tokens": 500,
    "server_tool_use": {"web_search_requests": 7, "web_fetch_requests": 0},
    "service_tier": "priority",
}
# What each API says, as (answer, counts, tools, tier, model).
ANSWERS: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, int], str, str]] = {
    "anthropic_messages": (
        {"type": "message", "model": "claude-opus-5-20260701", "usage": MESSAGE_USAGE},
        (3, 180_000, 5_000, 15_000, 500, 0, 0, 0, 0, 0),
        {"web_search": 7},
        "priority",
        "claude-opus-5-20260701",
    ),
    "openai_chat": (
        {
            "model": "gpt-4o-audio-2026", "service_tier": "flex", "choices": [],
            "usage": {
                "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 30, "text_tokens": 70},
                "completion_tokens_details": {
                    "reasoning_tokens": 10, "audio_tokens": 20,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 5,
                },
            },
        },
        (60, 40, 0, 0, 50, 10, 30, 20, 0, 0),
        {},
        "flex",
        "gpt-4o-audio-2026",
    ),
    "openai_responses": (
        {
            "model": "gpt-5.1", "service_tier": "default", "status": "completed",
            "output": [{"type": "web_search_call"}, {"type": "reasoning"}, {"type": "web_search_call"},
                       {"type": "function_call"}, {"type": "code_interpreter_call"}],
            "usage": {
                "input_tokens": 36, "output_tokens": 87, "total_tokens": 123,
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens_details": {"reasoning_tokens": 64},
            },
        },
        (28, 8, 0, 0, 87, 64, 0, 0, 0, 0),
        {"web_search": 2, "code_interpreter": 1},
        "default",
        "gpt-5.1",
    ),
    "gemini_generate": (
        {
            "modelVersion": "gemini-3-pro",
            "candidates": [
                {"finishReason": "STOP", "groundingMetadata": {"webSearchQueries": ["a", "b"]}, "content": {}}
            ],
            "usageMetadata": {
                "promptTokenCount": 100, "cachedContentTokenCount": 20, "candidatesTokenCount": 30,
                "thoughtsTokenCount": 15, "totalTokenCount": 145,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 40},
                    {"modality": "IMAGE", "tokenCount": 10},
                ],
                "cacheTokensDetails": [
                    {"modality": "AUDIO", "tokenCount": 16}, {"modality": "IMAGE", "tokenCount": 4},
                ],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 25}],
                "trafficType": "ON_DEMAND",
            },
        },
        (80, 20, 0, 0, 45, 15, 24, 0, 6, 25),
        {"web_search": 2, "cache_audio": 16},
        "on_demand",
        "gemini-3-pro",
    ),
}  # fmt: skip


def whole(meter: str, answer: dict[str, Any]) -> Meter:
    made = make_meter(call(meter), 200, JSON)
    made.whole(json.dumps(answer).encode())
    return made


@pytest.mark.parametrize("meter", ANSWERS)
def test_every_api_tells_kinds_tools_tier_and_model(meter: str) -> None:
    answer, counts, tools, tier, model = ANSWERS[meter]
    made = whole(meter, answer)
    usage, detail = made.usage(), made.detail
    assert detail.counts(usage) == counts
    assert sum(counts[:5]) == usage.total
    assert (detail.tools, detail.service_tier, detail.model) == (tools, tier, model)
    assert (detail.unknown, usage.estimated) == (b"", False)


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ({"inference_geo": "us", "service_tier": "standard"}, "us"),
        ({"inference_geo": "us"}, "us"),
        ({"inference_geo": "global", "service_tier": "standard"}, "standard"),
        ({"inference_geo": "us", "service_tier": "priority"}, "priority/us"),
        ({"inference_geo": "us", "speed": "fast", "service_tier": "standard"}, "fast/us"),
    ],
)
def test_the_place_of_inference_is_a_tier_and_stands_behind_another(said: dict[str, str], tier: str) -> None:
    made = whole("anthropic_messages", {"usage": {"input_tokens": 1, "output_tokens": 1, **said}})
    assert made.detail.service_tier == tier


def test_a_stream_of_messages_tells_what_its_two_reports_do() -> None:
    made = make_meter(call("anthropic_messages", streamed=True), 200, b"text/event-stream")
    message = {"type": "message", "model": "claude-5", "usage": MESSAGE_USAGE | {"output_tokens": 1}}
    made.feed(frame({"type": "message_start", "message": message}, "message_start"))
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 500}}
    made.feed(frame(end, "message_delta"))
    made.feed(frame({"type": "message_stop"}, "message_stop"))
    made.finish()
    assert made.detail.counts(made.usage()) == ANSWERS["anthropic_messages"][1]
    assert (made.detail.model, made.detail.tools) == ("claude-5", {"web_search": 7})


@pytest.mark.parametrize(
    ("meter", "usage"),
    [
        ("openai_chat", {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.01}),
        (
            "openai_chat",
            {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"video_tokens": 1}},
        ),
        ("openai_responses", {"input_tokens": 3, "output_tokens": 4, "thinking": {"tokens": 2}}),
        ("anthropic_messages", {"input_tokens": 3, "output_tokens": 4, "fallback_credit": {"status": 1}}),
    ],
)
def test_what_nobody_knows_is_kept_as_it_came_and_changes_nothing_else(
    meter: str, usage: dict[str, Any]
) -> None:
    made = whole(meter, {"type": "message", "status": "completed", "usage": usage})
    assert json.loads(made.detail.unknown) == usage
    assert (made.usage().input, made.usage().output, made.usage().estimated) == (3, 4, False)


def test_tokens_of_an_advisor_are_added_and_told_apart() -> None:
    inside = {"type": "message", "input_tokens": 3, "output_tokens": 4}
    advisor = {"type": "advisor_message", "model": "m", "input_tokens": 20, "output_tokens": 9}
    advisor |= {"cache_creation_input_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 5}}
    usage = {"input_tokens": 3, "output_tokens": 4, "iterations": [inside, advisor]}
    made = whole("anthropic_messages", {"type": "message", "usage": usage})
    assert made.detail.beside == [("m", (20, 0, 2, 5, 9, 0, 0, 0, 0, 0))]
    assert made.detail.counts(made.usage()) == (23, 0, 2, 5, 13, 0, 0, 0, 0, 0)
    assert (made.usage().total, made.usage().estimated) == (43, False)


def test_an_advisor_beside_no_input_leaves_the_report_in_part() -> None:
    usage = {
        "output_tokens": 4,
        "iterations": [{"type": "advisor_message", "model": "m", "input_tokens": 20}],
    }
    assert whole("anthropic_messages", {"type": "message", "usage": usage}).partial


def test_numbers_of_a_wrong_type_are_read_and_mark_the_use() -> None:
    made = whole(
        "openai_chat", {"usage": {"prompt_tokens": 3.0, "completion_tokens": "4", "total_tokens": 7}}
    )
    assert (made.usage().input, made.usage().estimated) == (3, True)


@pytest.mark.parametrize(
    ("meter", "usage", "estimated"),
    [
        ("openai_chat", b'"prompt_tokens_details":5', True),
        ("openai_chat", b'"prompt_tokens_details":[1]', True),
        ("openai_chat", b'"completion_tokens_details":{"reasoning_tokens":"x"}', True),
        ("openai_chat", b'"new":1e400', False),
        ("openai_chat", b'"new":' + b"9" * 5000, False),
        ("openai_chat", b'"new":"\xff"', False),
        ("openai_chat", b'"prompt_tokens_details":{"cached_tokens":1.0,"new":1e400}', True),
        ("gemini_generate", b'"promptTokensDetails":[1]', True),
        ("gemini_generate", b'"promptTokensDetails":[[1],"x",null]', True),
        ("gemini_generate", b'"candidatesTokensDetails":{"modality":"AUDIO"}', True),
        ("gemini_generate", b'"candidatesTokensDetails":[{"modality":["AUDIO"],"tokenCount":-3}]', False),
        ("gemini_generate", b'"new":1e400', False),
        ("anthropic_messages", b'"server_tool_use":[1]', True),
        ("anthropic_messages", b'"server_tool_use":{"web_search_requests":{"a":1}}', True),
        ("anthropic_messages", b'"cache_creation":5', True),
        ("anthropic_messages", b'"inference_geo":5', False),
    ],
)
def test_what_is_of_no_documented_type_loses_no_use(meter: str, usage: bytes, estimated: bool) -> None:
    known = {
        "openai_chat": b'"prompt_tokens":3,"completion_tokens":4,',
        "gemini_generate": b'"promptTokenCount":3,"candidatesTokenCount":4,"totalTokenCount":7,',
        "anthropic_messages": b'"input_tokens":3,"output_tokens":4,',
    }[meter]
    name = b'"usageMetadata"' if meter == "gemini_generate" else b'"usage"'
    made = make_meter(call(meter, streamed=False), 200, JSON)
    made.feed(b"{" + name + b":{" + known + usage + b"}}")
    made.finish()
    assert (made.usage().input, made.usage().output, made.usage().estimated) == (3, 4, estimated)
    made.detail.unknown.decode()


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", 7, None, {"a": 1}])
def test_a_name_nobody_may_be_shown_is_none(name: object) -> None:
    detail = Detail()
    detail.answered_by(name)
    detail.served_as(name)
    assert (detail.model, detail.service_tier) == ("", "")


numbers = st.integers(-10, 2**40)


@given(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), st.lists(numbers, min_size=6, max_size=6))
def test_whatever_an_answer_says_its_kinds_add_up_to_what_is_charged(
    said: list[int], parts: list[int]
) -> None:
    detail = Detail()
    detail.cache_write, detail.cache_write_1h, detail.audio_input, detail.audio_output = parts[:4]
    detail.image_input, detail.image_output = parts[4:]
    usage = TokenUsage(*said)
    counts = detail.counts(usage)
    assert min(counts) >= 0
    assert sum(counts[:4]) == usage.input
    assert counts[4] == usage.output
    assert counts[6] + counts[8] <= counts[0]
    assert max(counts[5], counts[7] + counts[9]) <= counts[4]


_counts = st.tuples(*[st.integers(0, 9)] * 6)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), _counts)))
def test_each_part_is_the_most_of_all_reports_whose_input_or_output_is_believed(
    reports: list[tuple[bool, bool, tuple[int, ...]]],
) -> None:
    detail = Detail()
    believed: list[list[int]] = [[0] for _ in range(6)]
    for of_input, of_output, parts in reports:
        detail.cache_write, detail.cache_write_1h, detail.audio_input, detail.image_input = parts[:4]
        detail.audio_output, detail.image_output = parts[4:]
        detail.believe(of_input, of_output)
        for place, part in enumerate((parts[0] + parts[1], *parts[1:])):
            if of_input if place < 4 else of_output:
                believed[place].append(part)
    written = detail.cache_write + detail.cache_write_1h
    kept = (written, detail.cache_write_1h, detail.audio_input, detail.image_input)
    if reports:
        assert [*kept, detail.audio_output, detail.image_output] == [max(parts) for parts in believed]


def test_tools_that_are_kept_have_a_most() -> None:
    detail = Detail()
    for number in range(100):
        detail.used_tool(f"tool{number}", 1)
    assert len(detail.tools) == TOOLS_MAX
    assert detail.says_more


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 1000, "output_tokens": 4, "cache_creation_input_tokens": -900},
        {"input_tokens": -900, "output_tokens": 4, "cache_creation_input_tokens": 1000},
        {"input_tokens": 1000, "output_tokens": 4, "cache_creation": {"ephemeral_5m_input_tokens": -900}},
        {"input_tokens": 1000, "output_tokens": 4, "cache_read_input_tokens": -900},
    ],
)
def test_a_number_below_zero_takes_nothing_off_the_others(usage: dict[str, Any]) -> None:
    made = whole("anthropic_messages", {"type": "message", "usage": usage})
    assert (made.usage().input, made.usage().estimated) == (call("anthropic_messages").input_estimate, True)


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "a\0"])
def test_a_tool_nobody_may_be_shown_is_not_kept(name: str) -> None:
    detail = Detail()
    detail.used_tool(name, 1)
    detail.used_tool("good", 10**30)
    assert detail.tools == {"good": 1_000_000}


def stream(meter: str, *events: dict[str, Any]) -> Meter:
    made = make_meter(call(meter), 200, b"text/event-stream")
    for event in events:
        made.feed(frame(event) if event else frame("[DONE]"))
    made.finish()
    return made


def made(kind: str, data: str, *texts: str) -> dict[str, Any]:
    """A Gemini answer with one made medium, which splits nothing."""
    parts: list[dict[str, Any]] = [{"text": text} for text in texts]
    parts.append({"inlineData": {"mimeType": kind, "data": data}})
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 1_120, "totalTokenCount": 1_130}
    return {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "usageMetadata": usage}


@pytest.mark.parametrize(("kind", "place"), [("image/png", "image_output"), ("audio/L16", "audio_output")])
@pytest.mark.parametrize("meter", ["gemini_generate", "gemini_stream"])
def test_unsplit_output_is_of_the_medium_that_a_model_made_besides_its_text(
    meter: str, kind: str, place: str
) -> None:
    for texts, text in (((), 0), (("a" * 80,), 20)):
        answer = made(kind, "QUJD" * 5_000, *texts)
        seen = stream(meter, answer) if meter == "gemini_stream" else whole(meter, answer)
        found = dict(zip(KINDS, seen.detail.counts(seen.usage()), strict=True))
        assert (found["output"], found[place]) == (1_120, 1_120 - text)
    answer["usageMetadata"]["candidatesTokensDetails"] = [{"modality": "TEXT", "tokenCount": 1_120}]
    seen = stream(meter, answer) if meter == "gemini_stream" else whole(meter, answer)
    assert dict(zip(KINDS, seen.detail.counts(seen.usage()), strict=True))[place] == 0, "as it is told"


def searching(*queries: str) -> dict[str, Any]:
    """An answer whose candidates searched for these letters each."""
    found = [{"content": {}, "groundingMetadata": {"webSearchQueries": list(one)}} for one in queries]
    return {"candidates": found, "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}}


def test_distinct_queries_of_a_whole_answer_are_searches() -> None:
    assert whole("gemini_generate", searching("aba", "ac", " ")).detail.tools == {"web_search": 3}
    assert stream("gemini_stream", searching("a"), searching("", "ba")).detail.tools == {"web_search": 2}
    empty = {"candidates": [{"content": {}, "groundingMetadata": {"webSearchQueries": ["", 7, None]}}]}
    assert whole("gemini_generate", empty).detail.tools == {}


@pytest.mark.parametrize("usage", [{}, {"usage": {"input_tokens": 1, "output_tokens": 2}}])
def test_searches_are_counted_whatever_else_an_output_has(usage: dict[str, Any]) -> None:
    search = {"type": "web_search_call", "action": {"type": "search"}}
    output = [search, 5, None, "x", {"type": 7}, search]
    for more in ({}, {"status": 5}):
        made = whole("openai_responses", {"output": output, **usage, **more})
        assert made.detail.tools == {"web_search": 2}


def test_more_tools_than_are_kept_are_what_nobody_knows() -> None:
    tools = {f"tool_{number}_requests": 1 for number in range(TOOLS_MAX + 1)}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "server_tool_use": tools}
    detail = whole("openai_chat", {"choices": [], "usage": usage}).detail
    assert len(detail.tools) == TOOLS_MAX
    assert json.loads(detail.unknown) == usage


def test_the_parts_are_those_of_the_report_that_is_believed() -> None:
    first = {"prompt_tokens": 1000, "completion_tokens": 100}
    read = {"cache_write_tokens": 900, "audio_tokens": 900, "image_tokens": 800}
    later = {"prompt_tokens": 900, "completion_tokens": 90, "prompt_tokens_details": read}
    written = {"audio_tokens": 90, "image_tokens": 80}
    made = stream(
        "openai_chat",
        {"choices": [], "usage": first},
        {"choices": [], "usage": later | {"completion_tokens_details": written}},
    )
    assert made.usage().total == 1100
    assert made.usage().estimated
    assert made.detail.counts(made.usage()) == (1000, 0, 0, 0, 100, 0, 0, 0, 0, 0)


def test_what_is_reported_behind_the_end_changes_nothing() -> None:
    first, later = (
        {"prompt_tokens": 10, "completion_tokens": 5},
        {"prompt_tokens": 99, "completion_tokens": 9},
    )
    made = stream("openai_chat", {"choices": [], "usage": first}, {}, {"choices": [], "usage": later})
    assert made.usage().total == 15
    made = stream("openai_chat", {"choices": []}, {}, {"choices": [], "usage": later})
    assert made.usage().total == 108


def test_kinds_add_up_to_a_use_that_is_clamped() -> None:
    most = 100_000_000
    usage = whole("openai_chat", {"usage": {"prompt_tokens": most, "completion_tokens": most}}).usage()
    assert (usage.input + usage.output, usage.total, usage.estimated) == (most, most, True)


def test_a_tier_is_the_last_that_is_told() -> None:
    made = stream(
        "openai_chat",
        {"model": "m", "choices": []},
        {"model": "m", "choices": [], "service_tier": "flex"},
        {"model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
    )
    assert made.detail.service_tier == "flex"


# --- generic ----------------------------------------------------------------------------
# Any API: one unit an answer, or what the upstream says; free routes cost nothing.


def generic(
    status: int = 200, amount: bytes = b"", pointer: str = "", bounds: UsageBounds | None = None
) -> Meter:
    call = CallRequest("generic", Family("generic"), Body(), units_pointer=pointer)
    return make_meter(call, status, b"image/png", b"", bounds or UsageBounds(), usage_amount=amount)


def test_one_unit_an_answer() -> None:
    meter = generic()
    assert not meter.produced
    assert meter.usage() == TokenUsage(units=0)
    assert meter.feed(b"\x89PNG") == b"\x89PNG"
    assert meter.produced
    assert meter.usage() == TokenUsage(units=1)
    meter = generic(204)
    meter.finish()
    assert meter.usage() == TokenUsage(units=1)


@pytest.mark.parametrize("status", [304, 404, 500])
def test_an_error_is_free_unless_it_reports(status: int) -> None:
    meter = generic(status)
    meter.feed(b"x")
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)
    assert generic(status, b"3").usage() == TokenUsage(units=3, reported=True)


@pytest.mark.parametrize(
    ("amount", "units", "reported", "estimated"),
    [
        (b"0", 0, True, False),
        (b"42", 42, True, False),
        (b" 7 ", 7, True, False),
        (b"0007", 7, True, False),
        (b"-1", 1, False, True),
        (b"1.5", 1, False, True),
        (b"x", 1, False, True),
        (b"9" * 5000, 10**9, True, True),
        (b"1000000001", 10**9, True, True),
        ("٣".encode(), 1, False, True),
    ],
)
def test_the_stated_amount(amount: bytes, units: int, reported: bool, estimated: bool) -> None:
    meter = generic(amount=amount)
    meter.feed(b"x")
    meter.finish()
    assert meter.usage() == TokenUsage(units=units, reported=reported, estimated=estimated)


@pytest.mark.parametrize(
    ("body", "units", "estimated"),
    [
        (b'{"a/b":[{"~n":5}]}', 5, False),
        (b'{"a/b":[{"~n":5.0}]}', 5, False),
        (b'{"a/b":[{"~n":-5}]}', 1, True),
        (b'{"a/b":[{"~n":"5"}]}', 1, True),
        (b'{"a/b":[{"~n":true}]}', 1, True),
        (b'{"a/b":[]}', 1, True),
        (b'{"a/b":7}', 1, True),
        (b"[]", 1, True),
        (b"not json", 1, True),
        (b'{"a/b":[{"~n":' + b"9" * 30 + b"}]}", 10**9, True),
    ],
)
def test_units_by_pointer(body: bytes, units: int, estimated: bool) -> None:
    meter = generic(pointer="/a~1b/0/~0n")
    for at in range(0, len(body), 3):
        assert meter.feed(body[at : at + 3]) == body[at : at + 3]
    meter.finish()
    assert meter.usage().units == units
    assert meter.usage().estimated == estimated


def test_the_header_goes_before_the_pointer_and_memory_is_bounded() -> None:
    meter = generic(amount=b"3", pointer="/n")
    meter.feed(b'{"n":9}')
    meter.finish()
    assert meter.usage().units == 3
    meter = generic(pointer="/n", bounds=UsageBounds(kept_bytes_max=4))
    meter.feed(b'{"n":9}')
    meter.finish()
    assert meter.usage() == TokenUsage(units=9, estimated=True)


def test_the_largest_number_by_its_name_is_the_units_of_an_answer_too_large_to_read() -> None:
    body = b'{"usage":{"pages":9000},"rest":[{"pages":7,"text":"\\"pages\\":99999"},%b1]}' % (b"1," * 99)
    for size in (1, 7, len(body)):
        meter = generic(pointer="/usage/pages", bounds=UsageBounds(kept_bytes_max=100))
        for at in range(0, len(body), size):
            meter.feed(body[at : at + size])
        meter.finish()
        assert meter.usage() == TokenUsage(units=9000, estimated=True)


def test_a_free_answer_costs_nothing() -> None:
    meter = make_meter(CallRequest("none", Family("openai"), Body()), 200)
    assert meter.feed(b'{"usage":{"prompt_tokens":5}}') == b'{"usage":{"prompt_tokens":5}}'
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)
    assert meter.observed() == 0


# --- content ----------------------------------------------------------------------------
# Content that no API documents yet is charged like text, and what was once reported is not taken back.


INPUT = 100  # of 300 bytes
LONG = "word " * 200
PICTURE = "iVBORw0KGgo" + "A" * 50_000


def choice(**delta: object) -> dict[str, object]:
    return chat_chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}])


def part(**fields: object) -> dict[str, object]:
    return {"candidates": [{"content": {"role": "model", "parts": [fields]}}]}


def block(**delta: object) -> dict[str, object]:
    return {"type": "content_block_delta", "index": 0, "delta": delta}


CONTENT: list[tuple[str, dict[str, Any], int]] = [
    ("openai_chat", choice(tool_calls=[{"id": "c", "type": "custom", "custom": {"input": LONG}}]), 250),
    ("openai_chat", choice(audio={"id": "a", "transcript": LONG}), 250),
    ("openai_chat", choice(audio={"id": "a", "data": PICTURE}), 97),
    ("openai_chat", choice(images=[{"type": "image_url", "image_url": {"url": PICTURE}}]), 97),
    ("openai_chat", choice(reasoning_details=[{"type": "reasoning.text", "text": LONG}]), 250),
    ("openai_chat", choice(content="Hi", next_year={"kind_of_text": LONG}), 250),
    ("openai_chat", {"id": "c", "provider": LONG, "token": {"text": LONG}}, 250),
    ("anthropic_messages", {"type": "next_year", "piece": LONG}, 250),
    ("openai_responses", {"type": "response.next_year.delta", "piece": LONG, "item_id": "m"}, 250),
    (
        "openai_responses",
        {"type": "response.image_generation_call.partial_image", "partial_image_b64": PICTURE},
        97,
    ),
    ("anthropic_messages", block(type="next_year_delta", piece=LONG), 250),
    (
        "anthropic_messages",
        {"type": "content_block_start", "content_block": {"type": "x", "piece": LONG}},
        250,
    ),
    ("gemini_stream", part(inlineData={"mimeType": "image/png", "data": PICTURE}), 97),
    ("gemini_stream", part(executableCode={"language": "PYTHON", "code": LONG}), 250),
]
QUIET: list[tuple[str, dict[str, Any]]] = [
    ("openai_chat", choice(role="assistant", content="")),
    ("openai_chat", chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])),
    ("openai_responses", {"type": "response.output_item.done", "item": {"type": "x", "output": LONG}}),
    ("openai_responses", {"type": "response.output_item.added", "item": {"id": LONG, "name": LONG}}),
    ("openai_responses", {"type": "response.created", "response": {"id": "r", "instructions": LONG}}),
    ("openai_responses", {"type": "error", "message": LONG}),
    ("openai_chat", {"id": LONG, "object": "x", "provider": LONG, "choices": [], "later": LONG}),
    ("openai_chat", {"object": "error", "message": LONG}),
    ("anthropic_messages", {"type": "message_start", "message": {"id": LONG, "content": []}}),
    ("anthropic_messages", block(type="signature_delta", signature=LONG)),
    ("anthropic_messages", {"type": "error", "error": {"type": "overloaded_error", "message": LONG}}),
]


def read(meter: str, *events: dict[str, Any]) -> Meter:
    made = make_meter(call(meter), 200, SSE)
    for event in events:
        made.feed(frame(event))
    assert isinstance(made, Meter)
    return made


@pytest.mark.parametrize(("meter", "event", "tokens"), CONTENT)
def test_content_of_any_name_is_seen_and_charged_where_the_answer_breaks(
    meter: str, event: dict[str, Any], tokens: int
) -> None:
    made = read(meter, event, event)
    assert made.observed() >= INPUT + 2 * tokens
    assert (made.usage().input, made.usage().estimated) == (INPUT, True)
    assert 2 * tokens <= made.usage().output < 2.2 * tokens


WORDS = "word " * 60  # 300 bytes
# Ways to say the same words: each event has sixty.
WORDY: list[tuple[str, bytes, bytes]] = [
    *[(meter, SSE, frame(event).replace(LONG.encode(), WORDS.encode()))
      for meter, event, tokens in CONTENT if tokens == 250],
    ("openai_chat", SSE, frame(choice(content=WORDS))),
    ("openai_chat", SSE, frame(choice(tool_calls=[{"function": {"arguments": WORDS}}]))),
    ("openai_chat", SSE, frame(choice(content=[{"type": "thinking", "thinking": [{"text": WORDS}]}]))),
    ("openai_chat", SSE, b'data: {"choices":[{"delta":{"content":"' + WORDS.encode() + b"}\n\n"),
    ("openai_chat", SSE, b"data: " + WORDS.encode() + b"\n\n"),
    ("openai_completions", SSE, frame({"choices": [{"index": 0, "text": WORDS}]})),
    ("openai_responses", SSE, frame({"type": "response.output_text.delta", "delta": WORDS})),
    ("openai_responses", SSE, frame({"type": "response.function_call_arguments.done", "arguments": WORDS})),
    ("anthropic_messages", SSE, frame(block(type="input_json_delta", partial_json=WORDS))),
    ("gemini_stream", SSE, frame(part(text=WORDS))),
    ("gemini_stream", SSE, frame(part(functionCall={"name": "f", "args": {"a": WORDS}}))),
    ("gemini_stream", JSON, json.dumps(part(functionCall={"name": "f", "args": {"a": WORDS}})).encode() + b","),
    ("gemini_stream", JSON, json.dumps(part(next_year={"a": WORDS})).encode() + b","),
    ("ollama_chat", b"application/x-ndjson",
     json.dumps({"message": {"tool_calls": [{"function": {"arguments": {"a": WORDS}}}]}}).encode() + b"\n"),
]  # fmt: skip


@pytest.mark.parametrize(("meter", "media", "event"), WORDY)
def test_words_beyond_the_maximum_are_seen_under_each_name(meter: str, media: bytes, event: bytes) -> None:
    """A cut ends a stream by this number; what is charged without a report ends at the maximum."""
    asked = call(meter)
    asked.output_max = 600
    made = make_meter(asked, 200, media)
    made.feed(b"[" if media == JSON else b"")
    for index in range(100):
        made.feed(event.replace(b'"output_index": 0', b'"output_index": %d' % index))
    in_dense = 100 - 8 - 1  # 600 tokens are 2,400 bytes, eight events
    assert INPUT + in_dense * 60 <= made.observed() <= INPUT + 100 * 66
    assert made.usage().output == 600


def test_a_text_beside_another_text_is_counted_and_a_repeated_text_once() -> None:
    """Servers repeat thoughts as details. Any other text counts, in events that are short as well."""
    twice = choice(reasoning="Let me see. ", reasoning_details=[{"type": "x", "text": "Let me see. "}])
    beside = choice(content="Hi", next_year={"kind_of_text": WORDS})
    made = read("openai_chat", choice(role="assistant", content=""), *[twice] * 20, *[beside] * 20)
    assert made.text_bytes == 20 * 12 + 20 * (2 + 300)


def test_each_event_of_a_conversation_is_counted_however_much_came_before() -> None:
    called = {"type": "function.call.delta", "arguments": "a" * 40, "created_at": "2026-12-01T12:00:00Z"}
    said = {"type": "message.output.delta", "content": "Hi"}
    made = read("mistral_conversations", said, called, said, called)
    assert (made.text_bytes, made.content_events) == (2 * (2 + 40), 4)


@pytest.mark.parametrize(("meter", "event"), QUIET)
def test_what_only_frames_points_or_repeats_is_no_content(meter: str, event: dict[str, Any]) -> None:
    made = read(meter, event)
    assert (made.text_bytes, made.usage().total) == (0, 0)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=30), inner)))
def test_a_string_counts_its_bytes_wherever_it_stands(holder: object) -> None:
    strings: list[str] = []
    json.loads(json.dumps(holder), object_hook=lambda found: strings.extend(_texts(found)))
    flat = _texts(holder) if isinstance(holder, str | list) else []
    assert content_bytes(holder) == sum(len(text.encode("utf-8", "replace")) for text in strings + flat)


def _texts(holder: object) -> list[str]:
    """Strings in a value but those in the objects inside, which are asked themselves."""
    if isinstance(holder, str):
        return [holder]
    inner = list(holder.values()) if isinstance(holder, dict) else holder if isinstance(holder, list) else []
    return [text for one in inner if not isinstance(one, dict) for text in _texts(one)]


def test_tools_that_were_done_are_charged_where_the_answer_breaks() -> None:
    done = {"type": "response.output_item.done", "item": {"type": "web_search_call", "id": "ws_1"}}
    own = {"type": "response.output_item.done", "item": {"type": "function_call", "arguments": LONG}}
    made = read("openai_responses", done, own, done)
    assert made.detail.tools == {"web_search": 2}
    assert made.usage().input == INPUT


def item(index: int, *pieces: str, by_delta: bool, kind: str = "output_text") -> list[dict[str, Any]]:
    """One item of a response as its API says it: by deltas or not, then whole, part by part and together."""
    place = {"output_index": index, "item_id": f"m{index}"}
    events: list[dict[str, Any]] = [
        {
            "type": "response.output_item.added",
            **place,
            "item": {"type": "message", "name": "n", "content": []},
        }
    ]
    for number, piece in enumerate(pieces):
        of_part = {**place, "content_index": number}
        if by_delta:
            halves = piece[: len(piece) // 2], piece[len(piece) // 2 :]
            events += [{"type": f"response.{kind}.delta", **of_part, "delta": half} for half in halves]
        events.append({"type": f"response.{kind}.done", **of_part, "text": piece})
        part_ = {"type": kind, "text": piece, "annotations": [{"title": LONG}]}
        events.append({"type": "response.content_part.done", **of_part, "part": part_})
    content = [{"type": kind, "text": piece} for piece in pieces]
    return [*events, {"type": "response.output_item.done", **place, "item": {"content": content}}]


@given(
    st.lists(
        st.tuples(st.lists(st.text("ab", min_size=2), min_size=1, max_size=3), st.booleans()), min_size=1
    )
)
def test_what_a_whole_item_says_counts_once_by_deltas_or_without(said: list[tuple[list[str], bool]]) -> None:
    events = [
        event
        for index, (pieces, by_delta) in enumerate(said)
        for event in item(index, *pieces, by_delta=by_delta)
    ]
    made = read("openai_responses", *events)
    assert made.text_bytes == sum(len(piece) for pieces, _ in said for piece in pieces)


@pytest.mark.parametrize("kind", ["response.output_text.done", "response.custom_tool_call_input.done"])
def test_a_stream_that_says_only_whole_items_is_observed_as_it_comes(kind: str) -> None:
    events = [{"type": kind, "output_index": index, "text": LONG} for index in range(4)]
    assert read("openai_responses", *events).observed() == INPUT + 4 * 250


def test_content_behind_a_report_shows_that_it_was_not_the_last() -> None:
    early = {
        **choice(content="a"),
        "usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
    }
    made = read("openai_chat", early, *[choice(content="word ")] * 300)
    made.finish()
    assert made.usage().input == 100
    assert made.usage().output >= 300


@pytest.mark.parametrize(
    ("model", "searches"), [("gpt-4o-search-preview", 1), ("gpt-5-search-api", 1), ("m", 0)]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_of_a_model_that_searches_is_a_search(model: str, searches: int, streamed: bool) -> None:
    asked = call("openai_chat", streamed=streamed)
    asked.spec = asked.spec._replace(model=model)
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    made = make_meter(asked, 200, b"text/event-stream" if streamed else JSON)
    if streamed:
        delta = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        for event in ({"choices": [delta]}, {"choices": [], "usage": usage}, "[DONE]"):
            made.feed(frame(event))
        made.finish()
    else:
        made.whole(json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": usage}).encode())
    assert made.detail.tools == ({"web_search": 1} if searches else {})


@pytest.mark.parametrize(
    ("targets", "answered", "searches"),
    [
        (["gpt-4o-search-preview"], "mine", 1),
        (["gpt-4o", "gpt-5-search-api"], "gpt-5-search-api-2026", 1),
        (["gpt-4o", "gpt-5-search-api"], "gpt-4o-2026", 0),
        (["gpt-4o"], "mine", 0),
    ],
)
def test_a_configured_model_searches_as_its_targets_do(
    targets: list[str], answered: str, searches: int
) -> None:
    asked = call("openai_chat")
    asked.spec = asked.spec._replace(model="mine")
    asked.take_aim(aim_of(asked, targets=tuple(ModelTarget("up", model) for model in targets)))
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    made = make_meter(asked, 200, JSON)
    answer = {"model": answered, "choices": [{"message": {"content": "hi"}}], "usage": usage}
    made.whole(json.dumps(answer).encode())
    assert made.detail.tools == ({"web_search": 1} if searches else {})


# What OpenAI tells beside `usage` (openai 3.51.0, `Response.tool_usage`): 4,160 tokens of a picture from 50 of text.
DRAWN = {
    "input_tokens": 50, "input_tokens_details": {"image_tokens": 0, "text_tokens": 50},
    "output_tokens": 4_160, "output_tokens_details": {"image_tokens": 4_160, "text_tokens": 0},
    "total_tokens": 4_210,
}  # fmt: skip
SEARCHED = [{"type": "web_search_call", "action": {"type": "search", "query": word}} for word in "abc"]
PICTURE_ITEM = {"type": "image_generation_call", "result": "aGk=", "model": "gpt-image-2"}
SVG = {
    "input_tokens": 30,
    "model": "gpt-5.6",
    "output_tokens": 70,
    "reasoning_tokens": 20,
    "total_tokens": 100,
}


def response_of(output: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    usage = {"input_tokens": 2_000, "output_tokens": 100, "total_tokens": 2_100}
    return {"model": "gpt-5.6-luna", "status": "completed", "output": output, "usage": usage, **more}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("told", "items", "tools"),
    [
        ({"web_search": {"num_requests": 1}}, SEARCHED, {"web_search": 1}),
        ({"web_search": {"num_requests": 0}}, SEARCHED, {}),
        ({"web_search": {"num_requests": 2}}, [], {"web_search": 2}),
        ({"image_gen": {"input_tokens": 0, "output_tokens": 0}}, SEARCHED, {"web_search": 3}),
        ({"web_search": {"num_requests": -1}}, SEARCHED, {"web_search": 3}),
        (None, SEARCHED, {"web_search": 3}),
        # Records of some pictures may be missing, so uses count where no token is told.
        ({"image_gen": {"input_tokens": 0, "output_tokens": 0}}, [PICTURE_ITEM], {"image_generation": 1}),
        ({"image_gen": DRAWN}, [PICTURE_ITEM], {}),
    ],
)
def test_detail_has_the_uses_that_a_response_says_are_billed(
    told: dict[str, Any] | None, items: list[dict[str, Any]], tools: dict[str, int], streamed: bool
) -> None:
    response = response_of(items, tool_usage=told)
    if not streamed:
        made = whole("openai_responses", response)
    else:
        made = make_meter(call("openai_responses"), 200, SSE)
        begun = {"status": "in_progress", "output": [], "usage": None, "tool_usage": None}
        made.feed(frame({"type": "response.created", "response": begun}))
        for item in items:
            made.feed(frame({"type": "response.output_item.done", "item": item}))
        made.feed(frame({"type": "response.completed", "response": response}))
        made.finish()
    assert made.detail.tools == tools
    assert made.usage().input == (2_050 if told and told.get("image_gen") == DRAWN else 2_000)


@pytest.mark.parametrize(
    ("items", "tools", "model"),
    [
        ([PICTURE_ITEM], [], "gpt-image-2"),
        ([], [{"type": "image_generation", "model": "gpt-image-1.5"}], "gpt-image-1.5"),
        # The tool's default of openai 3.51.0.
        ([], [{"type": "image_generation"}, {"type": "web_search", "model": "x"}], "gpt-image-2.6-sunburst"),
        # Nobody says which tokens are whose: the dearest counts.
        ([PICTURE_ITEM], [{"type": "image_generation", "model": "gpt-image-1.5"}], ""),
    ],
)
def test_detail_has_tokens_of_image_tools_as_those_of_the_tools_model(
    items: list[dict[str, Any]], tools: list[dict[str, Any]], model: str
) -> None:
    made = whole("openai_responses", response_of(items, tools=tools, tool_usage={"image_gen": DRAWN}))
    assert made.detail.beside == [(model, (50, 0, 0, 0, 4_160, 0, 0, 0, 0, 4_160))]
    assert made.detail.counts(made.usage()) == (2_050, 0, 0, 0, 4_260, 0, 0, 0, 0, 4_160)
    assert (made.usage().total, made.usage().estimated, made.detail.unknown) == (6_310, False, b"")


def test_detail_takes_cached_pictures_off_the_read_ones_and_unsaid_output_for_pictures() -> None:
    told = {
        "input_tokens": 300, "input_tokens_details": {"image_tokens": 200, "text_tokens": 100},
        "cached_tokens": 90, "cached_tokens_details": {"cached_image_tokens": 60, "cached_text_tokens": 30},
        "output_tokens": 1_000, "total_tokens": 1_300,
    }  # fmt: skip
    made = whole("openai_responses", response_of([PICTURE_ITEM], tool_usage={"image_gen": told}))
    # 210 read, of these 140 of pictures; 90 cached.
    assert made.detail.beside == [("gpt-image-2", (210, 90, 0, 0, 1_000, 0, 0, 0, 140, 1_000))]


def test_detail_has_tokens_of_a_model_that_writes_an_svg_whole_and_in_pictures() -> None:
    part = ("gpt-5.6", (30, 0, 0, 0, 70, 20, 0, 0, 0, 0))
    made = whole("openai_responses", response_of([{**PICTURE_ITEM, "svg_usage": SVG}]))
    assert (made.detail.beside, made.usage().total) == ([part], 2_200)
    usage = {"input_tokens": 50, "output_tokens": 1_000, "total_tokens": 1_050}
    drawn = whole("openai_images", {"data": [{"b64_json": ""}], "usage": usage, "svg_usage": SVG})
    assert (drawn.detail.beside, drawn.usage().total) == ([part], 1_150)


def test_detail_keeps_usage_of_a_tool_that_nobody_knows() -> None:
    told = {"web_search": {"num_requests": 0}, "code_interpreter": {"num_sessions": 2}}
    made = whole("openai_responses", response_of([], tool_usage=told))
    assert json.loads(made.detail.unknown) == told


@pytest.mark.parametrize(
    ("told", "searches"),
    [
        ({"imageSearchQueries": ["a", "b"]}, 2),
        ({"imageSearchQueries": ["a", "a", " "]}, 1),
        (
            {"webSearchQueries": ["a", "b"], "imageSearchQueries": ["a"]},
            3,
        ),  # a page and a picture: two searches
    ],
)
def test_detail_counts_searches_for_pictures_as_those_for_pages(told: dict[str, Any], searches: int) -> None:
    answer = {
        "candidates": [{"finishReason": "STOP", "groundingMetadata": told}],
        "usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10},
    }
    assert whole("gemini_generate", answer).detail.tools == {"web_search": searches}
    live = make_meter(call("gemini_live"), 200, SSE)
    live.feed(frame({"serverContent": {"groundingMetadata": told}}))
    assert live.detail.tools == {"web_search": searches}


VIOLATES = "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"


@pytest.mark.parametrize("meter", ["openai_chat", "openai_responses", "anthropic_messages"])
@pytest.mark.parametrize(
    ("status", "error", "tools"),
    [
        (403, VIOLATES, {"usage_guidelines_violation": 1}),
        (400, {"message": VIOLATES}, {"usage_guidelines_violation": 1}),
        (403, f"It said: {VIOLATES}", {}),
        (500, VIOLATES, {}),
        (200, VIOLATES, {}),
    ],
)
def test_detail_has_the_fee_of_a_refused_request_by_how_its_error_begins(
    meter: str, status: int, error: object, tools: dict[str, int]
) -> None:
    made = make_meter(call(meter), status, JSON)
    made.whole(json.dumps({"code": "permission", "error": error}).encode())
    assert made.detail.tools == tools
    if tools:
        assert (made.usage().units, made.usage().total) == (1, 0)


@pytest.mark.parametrize(
    ("plugins", "tools", "is_unknown"),
    [
        ({"search": {"count": 2, "strategy": "agent"}}, {"web_search": 2}, False),
        ({"search": {"count": 0}, "code_interpreter": {"count": 1}}, {"code_interpreter": 1}, False),
        ({"search": {"count": "2"}}, {}, True),
        ({"search": 1}, {}, True),
        (["search"], {}, True),
    ],
)
def test_detail_has_uses_of_plugins_of_alibaba(
    plugins: object, tools: dict[str, int], is_unknown: bool
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "plugins": plugins}
    made = whole("openai_chat", {"model": "qwen-plus", "choices": [], "usage": usage})
    assert made.detail.tools == tools
    assert (made.usage().input, made.usage().output) == (5, 3)
    assert bool(made.detail.unknown) is is_unknown


@pytest.mark.parametrize("total", [7_196, 27_212, None])
def test_detail_has_searches_and_texts_of_sources_of_perplexity(total: int | None) -> None:
    """By Perplexity's reference of sonar-deep-research: texts of sources are read, and in no other number."""
    usage = {
        "prompt_tokens": 33, "completion_tokens": 7_163, "total_tokens": total, "citation_tokens": 20_016,
        "num_search_queries": 13, "reasoning_tokens": 92_936, "search_context_size": "low",
    }  # fmt: skip
    made = whole("openai_chat", {"model": "sonar-deep-research", "choices": [], "usage": usage})
    assert made.detail.tools == {"web_search": 13}
    # 33 + 20,016 read; 7,163 + 92,936 written.
    assert made.detail.counts(made.usage())[:6] == (20_049, 0, 0, 0, 100_099, 92_936)
