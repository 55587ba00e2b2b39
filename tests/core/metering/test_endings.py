"""A stream is whole with its API's last word: cut at any event it costs what passed, in whatever way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import Estimator
from gateway.core.families.registry import SHAPES
from gateway.core.metering.endings import BY_CONNECTION, ENDINGS
from gateway.core.metering.eventstream import frame_of
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.meters import make_meter
from gateway.core.metering.stream import Splitter, data_of
from gateway.core.model import TokenUsage
from tests.core.metering.recorded import SSE, call, chat_chunk, delta, frame
from tests.recorded.answers import Answer, answers
from tests.search import examples

STREAMED = [answer for answer in answers() if answer.mode == "sse"]
# They end with a turn of their session, or with the answer to a message.
OF_SESSIONS = {"openai_realtime", "gemini_live", "mcp"}
MOST = 700
ZEROED = re.compile(rb'((?:[Tt]okens|[Cc]ount)"\s*:\s*)\d+')
TEXTS = {"content", "text", "thinking", "partial_json", "arguments", "delta", "reasoning_content"}


def test_every_api_that_streams_has_a_last_word_and_every_row_an_api() -> None:
    read_nothing = Dialect(lambda meter, document: None).read_event
    streams = {
        name: one.dialect for name, one in SHAPES.items() if one.dialect.read_event is not read_nothing
    }
    of_none = {name for name, dialect in streams.items() if dialect.ending is BY_CONNECTION}
    assert of_none == OF_SESSIONS
    used = [dialect.ending for dialect in streams.values()]
    assert all(ending in used for ending in ENDINGS.values())


def asked(answer: Answer, *, reports: bool) -> CallRequest:
    made = replace(answer.call, output_max=MOST, reports=reports)
    Estimator().hold(made, 1, "any")
    return made


def came(made: CallRequest, events: list[bytes], *, ended: bool, content_type: bytes = SSE) -> Meter:
    meter = make_meter(made, 200, content_type)
    for event in events:
        meter.feed(event)
    if ended:
        meter.finish()
    return meter


def says_text(value: Any) -> bool:
    """Whether an event says a piece of text, read another way than the meters do."""
    if isinstance(value, dict):
        return any((k in TEXTS and isinstance(v, str) and v) or says_text(v) for k, v in value.items())
    return isinstance(value, list) and any(says_text(each) for each in value)


def is_piece(event: bytes) -> bool:
    try:
        said = json.loads(data_of(event))
    except ValueError:
        return False
    kind = str(said.get("type", ""))
    return says_text(said) and not kind.endswith((".done", ".added", ".completed", ".incomplete", ".failed"))


@pytest.mark.parametrize("answer", STREAMED, ids=lambda answer: answer.name)
def test_a_stream_cut_at_any_event_costs_what_passed_and_never_the_ceiling(answer: Answer) -> None:
    events = Splitter().feed(answer.body)
    whole = came(asked(answer, reports=True), events, ended=True)
    assert whole.is_whole
    read = whole.usage().input
    for kept in range(len(events)):
        for reports in (False, True):
            ends = [
                came(asked(answer, reports=reports), events[:kept], ended=ended) for ended in (False, True)
            ]
            if ends[0].is_whole:
                continue  # only what a client may do without is missing
            (reset, meter), usage = ends, ends[0].usage()
            assert not meter.is_whole
            assert meter.usage() == usage  # the connection's end changes nothing
            pieces = sum(is_piece(event) for event in events[:kept])
            assert min(pieces, MOST) <= usage.output <= max(MOST, meter.output)
            assert usage.input <= max(read, reset.call.input_ceiling)
            assert usage.estimated or not usage.total
            assert usage.input > 0 or not pieces
            assert usage.cached == meter.cached


@settings(max_examples=examples(1_000))
@given(st.sampled_from(STREAMED), st.data())
def test_no_broken_stream_is_cheaper_than_what_passed_or_dearer_than_its_ceiling(
    answer: Answer, data: st.DataObject
) -> None:
    """Its events left out and said again, its numbers zeroed, cut at any byte, ended or reset."""
    is_zeroed, reports = data.draw(st.booleans()), data.draw(st.booleans())
    events = Splitter().feed(ZEROED.sub(rb"\g<1>0", answer.body) if is_zeroed else answer.body)
    picked = data.draw(st.lists(st.integers(0, len(events) - 1), max_size=60).map(sorted))
    body = b"".join([events[at] for at in picked])
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    meter = came(asked(answer, reports=reports), [body], ended=data.draw(st.booleans()))
    usage, pieces = meter.usage(), sum(is_piece(event) for event in Splitter().feed(body))
    assert usage.output <= max(MOST, meter.output)
    if not meter.is_whole or is_zeroed:
        assert usage.output >= min(pieces, MOST)
        assert usage.input > 0 or not pieces
    assert usage.estimated or meter.is_whole or not usage.total


START = frame(
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 400, "cache_read_input_tokens": 600, "output_tokens": 1}},
    }
)
NOUGHT = frame({"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}})
PONG = frame({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Pong "}})
TOLD = frame({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
STOP = frame({"type": "message_stop"})
PIECE = {"content": {"parts": [{"text": "Pong "}]}, "index": 0}
STOPPED = {**PIECE, "finishReason": "STOP"}


def of(*candidates: dict[str, Any], **said: Any) -> bytes:
    return frame({"candidates": list(candidates), **said})


def choice(index: int, reason: object) -> bytes:
    return frame(chat_chunk(choices=[{"index": index, "delta": {"content": "x"}, "finish_reason": reason}]))


def event_of(kind: str, **said: object) -> bytes:
    return frame({"type": kind, **said})


DONE = b"data: [DONE]\n\n"
WORDS: dict[str, list[tuple[list[bytes], bool]]] = {
    "anthropic_messages": [
        ([START, PONG, STOP], True), ([START, PONG, b"event: message_stop\n\n"], True),
        ([START, PONG, TOLD], False), ([START, PONG, DONE], False), ([START, b": ping\n\n"], False),
    ],
    "openai_chat": [
        ([choice(0, None), DONE], True), ([choice(0, "stop")], True), ([choice(0, None)], False),
        ([choice(0, None), choice(1, None), choice(1, "stop")], False), ([choice(0, "")], False),
        ([choice(0, "stop"), choice(1, "length"), choice(0, None)], True),
        ([frame({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})], False),
        ([choice(0, None), b"event: message_stop\ndata: {}\n\n"], False),
        ([frame(chat_chunk(choices=[{"delta": {"content": 7}, "finish_reason": "stop"}]))], True),
    ],
    "openai_responses": [
        *(([event_of(f"response.{word}")], True) for word in ("completed", "incomplete", "failed")),
        ([event_of("response.output_text.delta", delta="x"), DONE], False),
        ([event_of("response.created"), event_of("error")], False),
        ([event_of("response.done", response={"status": "completed"})], True),
    ],
    "gemini_stream": [
        ([of(PIECE)], False), ([of(PIECE), of(STOPPED)], True),
        ([of(PIECE, {**PIECE, "index": 1}), of(STOPPED)], False),
        ([of(PIECE, {**PIECE, "index": 1}), of(STOPPED), of({**STOPPED, "index": 1})], True),
        ([frame({"promptFeedback": {"blockReason": "SAFETY"}})], True),
        ([of(PIECE, usageMetadata={"promptTokenCount": 3, "totalTokenCount": 9})], False),
    ],
    "gemini_interactions": [
        ([frame({"event_type": "interaction.completed", "interaction": {}})], True),
        ([frame({"event_type": "step.delta", "delta": {"text": "x"}})], False),
    ],
    "cohere_chat": [([event_of("message-end")], True), ([event_of("content-end")], False)],
    "mistral_conversations": [
        ([event_of("conversation.response.done")], True), ([event_of("message.output.delta")], False),
    ],
    "openai_images": [
        ([event_of("image_generation.completed")], True),
        ([event_of("image_generation.partial_image")], False), ([event_of("error")], False),
    ],
    "openai_transcriptions": [
        ([event_of("transcript.text.done")], True), ([event_of("transcript.text.delta", delta="x")], False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("meter", "events", "whole"), [(meter, *row) for meter, rows in WORDS.items() for row in rows]
)
def test_the_last_word_of_an_api_decides(meter: str, events: list[bytes], whole: bool, ended: bool) -> None:
    assert came(call(meter), events, ended=ended).is_whole is whole


def test_frames_and_lines_have_a_last_word() -> None:
    def said(name: str) -> bytes:
        headers = [(b":event-type", name.encode()), (b":message-type", b"event")]
        return frame_of(headers, b'{"delta":{"text":"x"}}')

    amazon = b"application/vnd.amazon.eventstream"
    made = call("bedrock_converse_stream")
    for name, whole in (("contentBlockDelta", False), ("messageStop", True), ("metadata", True)):
        assert came(made, [said(name)], ended=True, content_type=amazon).is_whole is whole
    for line, whole in (
        (b'{"response":"x","done":false}\n', False),
        (b'{"response":"","done":true}\n', True),
    ):
        meter = came(call("ollama_generate"), [line], ended=True, content_type=b"application/x-ndjson")
        assert meter.is_whole is whole


def used(events: list[bytes], *, ended: bool = True) -> TokenUsage:
    made = call("anthropic_messages")
    made.output_max, made.reports = 32_000, True
    Estimator().hold(made, 1, "any")
    return came(made, events, ended=ended).usage()


def test_a_stream_that_ends_in_good_order_in_the_middle_keeps_what_was_reported() -> None:
    for ended in (True, False):
        assert used([START, PONG], ended=ended) == TokenUsage(1000, 2, 600, 0, 1002, 1, True, True)
    assert used([START, PONG, STOP]).output == 32_000  # whole, and its report is masked
    assert used([START, PONG, TOLD]) == TokenUsage(1000, 9, 600, 0, 1009, 1, True, True)
    assert used([START, PONG, TOLD, STOP]) == TokenUsage(1000, 9, 600, 0, 1009, 1, True, False)


@pytest.mark.parametrize("ended", [True, False])
def test_zeros_ahead_of_an_answer_that_breaks_off_are_no_report(*, ended: bool) -> None:
    assert used([NOUGHT, PONG], ended=ended) == TokenUsage(100, 2, 0, 0, 102, 1, False, True)
    assert used([NOUGHT], ended=ended) == TokenUsage(100, 0, 0, 0, 100, 1, False, True)  # it was read


def test_a_report_of_one_choice_is_no_report_of_all_that_broke_off() -> None:
    made = call("openai_chat", choices=4)
    each = [{**delta("ab", index), "usage": {"prompt_tokens": 9, "completion_tokens": n}}
            for n in range(1, 11) for index in range(4)]  # fmt: skip
    usage = came(made, [frame(one) for one in each], ended=False).usage()
    assert (usage.output, usage.estimated) == (40, True)


@pytest.mark.parametrize("meter", ["openai_chat", "anthropic_messages", "openai_responses", "gemini_stream"])
def test_what_is_counted_of_a_stream_is_bounded_while_it_runs_and_when_it_breaks_off(meter: str) -> None:
    texts = {
        "openai_chat": frame(delta(" " * 8_000)),
        "anthropic_messages": frame({"type": "content_block_delta", "delta": {"text": " " * 8_000}}),
        "openai_responses": event_of("response.output_text.delta", delta=" " * 8_000),
        "gemini_stream": of({**PIECE, "content": {"parts": [{"text": " " * 8_000}]}}),
    }
    made = call(meter, choices=2)
    made.output_max = 100
    broken = came(made, [texts[meter]], ended=False)
    assert broken.observed() == broken.so_far().total == broken.usage().total == 100 + 2 * 100


@pytest.mark.parametrize("body", [b'{"content":[{"text":"Tolls are"', b'{"content":"Tolls [', b'{"a":{}'])
def test_a_document_that_is_not_closed_broke_off(body: bytes) -> None:
    made = call("anthropic_messages", streamed=False)
    made.output_max, made.reports = 32_000, True
    meter = came(made, [body], ended=True, content_type=b"application/json")
    assert not meter.is_whole
    assert (meter.usage().output, meter.usage().estimated) == (-(-len(body) // 4), True)
