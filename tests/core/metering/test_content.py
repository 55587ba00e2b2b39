"""What an answer says is counted by any name, in pieces or as a whole, and a document as a stream is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response

from gateway.core.calls.aim import Aim
from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import Estimator
from gateway.core.metering.content import UNCOUNTED, LooseContent, content_bytes, generated, is_generated
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from tests.core.metering.recorded import JSON, SSE, call, chat_chunk, delta, frame

TEXT = "word " * 400
TOKENS = 500


def asked(meter: str, *, streamed: bool, choices: int = 1, most: int | None = 4_000) -> CallRequest:
    made = call(meter, streamed=streamed, choices=choices)
    made.output_max = most
    Estimator().hold(made, 1, "any")
    return made


def fed(made: CallRequest, *parts: bytes, ended: bool = True, content_type: bytes = SSE) -> Meter:
    meter = make_meter(made, 200, content_type)
    for part in parts:
        meter.feed(part)
    if ended:
        meter.finish()
    return meter


def output(meter: str, *parts: bytes, ended: bool = True) -> int:
    usage = fed(asked(meter, streamed=True), *parts, ended=ended).usage()
    assert usage.estimated
    assert usage.input == 100
    return usage.output


def of_document(meter: str, document: object) -> int:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    usage = fed(asked(meter, streamed=False), raw, content_type=JSON).usage()
    assert usage.estimated
    return usage.output


def response(text: str, **fields: object) -> dict[str, object]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    return {"id": "resp_1", "instructions": "x" * 9_000, "tools": [{"name": "y" * 9_000}],
            "text": {"format": {"type": "z" * 900}}, "output": [item] if text else [], **fields}  # fmt: skip


PONG = frame({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}})
STOP = frame({"type": "message_stop"})


def begun(*content: object) -> bytes:
    return frame({"type": "message_start", "message": {"id": "msg_1", "content": content}})


TOLD_AS_A_WHOLE: list[tuple[str, list[bytes]]] = [
    *(
        ("openai_responses", [frame({"type": f"response.{kind}", "response": response(TEXT, status="x")})])
        for kind in ("completed", "incomplete", "failed", "created", "done")
    ),
    (
        "openai_responses",
        [
            frame({"type": "response.created", "response": response("")}),
            frame({"type": "response.output_text.delta", "output_index": 0, "delta": TEXT}),
            frame({"type": "response.completed", "response": response(TEXT, status="completed")}),
        ],
    ),
    ("anthropic_messages", [begun({"type": "text", "text": TEXT}), STOP]),
    ("anthropic_messages", [begun({"type": "text", "text": TEXT}), PONG, STOP]),
    ("anthropic_messages", [begun(), frame({"type": "message_stop", "message": {"content": TEXT}})]),
    ("cohere_chat", [frame({"type": "message-end", "delta": {"message": {"content": [{"text": TEXT}]}}})]),
    ("cohere_chat", [frame({"event_type": "stream-end", "response": {"text": TEXT, "generation_id": "x"}})]),
    ("mistral_conversations", [frame({"type": "conversation.response.done", "outputs": [{"x": TEXT}]})]),
    (
        "gemini_interactions",
        [frame({"event_type": "interaction.completed", "interaction": {"outputs": [{"text": TEXT}]}})],
    ),
]  # fmt: skip


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("meter", "events"), TOLD_AS_A_WHOLE)
def test_text_of_a_first_or_last_event_counts_once(meter: str, events: list[bytes], ended: bool) -> None:
    assert TOKENS <= output(meter, *events, ended=ended) <= TOKENS + 8


def test_a_report_beside_a_whole_text_decides() -> None:
    usage = {"input_tokens": 7, "output_tokens": 9}
    end = frame({"type": "response.completed", "response": response(TEXT, status="completed", usage=usage)})
    used = fed(asked("openai_responses", streamed=True), end).usage()
    assert (used.input, used.output, used.estimated) == (7, 9, False)


ARGUMENTS = {"id": TEXT, "rows": [1, 2, 3], "type": "x"}
WRITTEN = len(json.dumps(ARGUMENTS)) // 4
MESSAGE: dict[str, Any] = {"id": "msg_1" * 40, "type": "message", "role": "assistant", "model": "m" * 200}
# Whole answers, and the tokens that their models wrote.
DOCUMENTS: list[tuple[str, dict[str, Any], int]] = [
    ("anthropic_messages", {**MESSAGE, "content": [{"type": "tool_use", "id": "t", "name": "f",
                                                    "input": ARGUMENTS}]}, WRITTEN),
    ("anthropic_messages", {**MESSAGE, "content": [{"type": "thinking", "thinking": TEXT,
                                                    "signature": "s" * 9_000}]}, TOKENS),
    *(
        ("openai_chat", {"id": "x" * 400, "choices": [{"index": 0, "message": message}]}, TOKENS)
        for message in (
            {"content": TEXT}, {"content": None, "reasoning_details": [{"type": "x", "text": TEXT}]},
            {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": TEXT}}]},
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": TEXT}}]},
            {"next_years_kind": {"deep": [[TEXT]]}},
        )
    ),
    *(
        ("openai_responses", response("", output=[item]), TOKENS)
        for item in (
            {"type": "custom_tool_call", "name": "f", "call_id": "c", "input": TEXT},
            {"type": "function_call", "name": "f", "arguments": TEXT},
            {"type": "code_interpreter_call", "code": TEXT, "outputs": [{"logs": "l" * 9_000}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": TEXT}]},
        )
    ),
    ("openai_responses", response(TEXT), TOKENS),
    ("openai_responses", response(""), 0),
    ("ollama_chat", {"created_at": "x" * 400, "message": {"role": "a", "content": TEXT}}, TOKENS),
    ("openai_chat", {"id": "x", "generated": TEXT}, TOKENS),
    ("openai_chat", {"object": "error", "message": TEXT, "choices": []}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("meter", "document", "tokens"), DOCUMENTS)
def test_a_whole_answer_without_a_report_counts_all_that_was_written(
    meter: str, document: dict[str, Any], tokens: int
) -> None:
    assert tokens <= of_document(meter, document) <= tokens + 8


@pytest.mark.parametrize(("meter", "document", "tokens"), DOCUMENTS)
def test_a_document_counts_alike_whether_it_is_decoded_or_not(
    meter: str, document: dict[str, Any], tokens: int
) -> None:
    raw = json.dumps(document, separators=(",", ":")).encode()
    for left_out in (UNCOUNTED, UNCOUNTED | {"name", "outputs"}):
        loose = LooseContent(raw, left_out, whole=True).size
        assert loose == content_bytes(generated(document), left_out)
        assert loose - 3 <= LooseContent(raw[:-3], left_out, whole=True).size <= loose
    assert tokens == 0 or not LooseContent(raw[:20], whole=True).size


def test_pictures_and_sound_in_a_document_count_as_in_a_stream() -> None:
    part = {"inlineData": {"mimeType": "image/png", "data": "A" * 51_200}}
    document = {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}
    assert of_document("gemini_generate", document) == 100
    events = fed(asked("gemini_stream", streamed=True), frame(document), frame(document)).usage()
    assert events.output == 200


def test_of_a_response_the_output_alone_is_its_models() -> None:
    places = {name for name in Response.model_fields if is_generated(name, is_object=False, is_text=False)}
    assert places == {"output", "text"}
    assert not is_generated("text", is_object=True, is_text=False)


ODD: list[tuple[str, dict[str, Any]]] = [
    ("anthropic_messages", {"type": "content_block_delta", "index": "0", "delta": {"text": TEXT}}),
    ("anthropic_messages", {"type": "content_block_delta", "index": 0.5, "delta": {"new": TEXT}}),
    ("anthropic_messages", {"type": "content_block_start", "index": "0",
                            "content_block": {"type": "tool_use", "input": {"a": TEXT}}}),
    ("openai_chat", {"choices": [{"index": 0, "delta": {"content": [{"type": "thinking", "x": TEXT}]}}]}),
    ("openai_chat", {"choices": [{"delta": {"tool_calls": [{"custom": {"input": TEXT}, "function": 7}]}}]}),
    ("openai_responses", {"type": "response.output_text.delta", "sequence_number": "1", "delta": TEXT}),
    ("openai_responses", {"type": "response.new.delta", "sequence_number": 1.5, "delta": {"x": TEXT}}),
    ("gemini_stream", {"candidates": [{"content": {"parts": [{"text": 7, "thought": TEXT}]}}]}),
]  # fmt: skip


@pytest.mark.parametrize(("meter", "event"), ODD)
def test_an_event_of_other_types_than_documented_keeps_its_content(meter: str, event: dict[str, Any]) -> None:
    assert TOKENS <= output(meter, frame(event), ended=False) <= TOKENS + 6


CUT = {
    "openai_chat": frame(delta(TEXT)),
    "openai_responses": frame({"type": "response.output_text.delta", "delta": TEXT}),
    "anthropic_messages": PONG,
    "gemini_stream": frame({"candidates": [{"content": {"parts": [{"text": TEXT}]}}]}),
    "cohere_chat": frame({"type": "content-delta", "delta": {"message": {"content": {"text": TEXT}}}}),
    "mistral_conversations": frame({"type": "message.output.delta", "content": TEXT}),
    "ollama_chat": b'{"message":{"role":"assistant","content":"%b"}}\n' % TEXT.encode(),
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("meter", CUT)
def test_text_of_an_event_that_was_cut_counts(meter: str, ended: bool) -> None:
    kind = b"application/x-ndjson" if meter == "ollama_chat" else SSE
    for parts in ([CUT[meter][:-8]], [CUT[meter], CUT[meter][:-8]]):
        made = fed(asked(meter, streamed=True), *parts, ended=ended, content_type=kind)
        usage = made.usage()
        assert not made.is_whole
        assert usage.estimated
        assert usage.input == 100
        assert TOKENS * len(parts) - 4 <= usage.output <= TOKENS * len(parts) + 40
        assert made.usage() == usage


BROKEN_IN_THE_FIRST: list[tuple[str, bytes, bytes]] = [
    *(("anthropic_messages", first, SSE) for first in (
        b"event: message_start\n", b'event: message_start\ndata: {"type":"mess', b'data: {"type":', b"data:",
    )),
    ("gemini_stream", b'data: {"candi', SSE),
    *(("gemini_stream", first, JSON) for first in (b"[", b"[{", b'[{"candidates": [{"content"', b"[\n {")),
]  # fmt: skip


@pytest.mark.parametrize(("meter", "first", "content_type"), BROKEN_IN_THE_FIRST)
def test_a_stream_that_ends_in_its_first_event_broke_off(
    meter: str, first: bytes, content_type: bytes
) -> None:
    asking = asked(meter, streamed=True)
    asking.reports = True
    made = fed(asking, first, content_type=content_type)
    usage = made.usage()
    assert not made.is_whole
    assert (usage.input, usage.estimated) == (100, True)
    assert usage.output <= len(first)


LAST_WORDS: list[tuple[str, bytes, bool]] = [
    ("anthropic_messages", b'event: message_stop\ndata: {"type":"mess', False),
    ("anthropic_messages", b"event: message_stop\ndata", False),
    ("anthropic_messages", b"event: message_stop\n", False),
    ("anthropic_messages", b"event: message_stop\n\n", True),
    ("anthropic_messages", b'event: message_stop\ndata: {"type":"message_stop"}', True),
    ("openai_responses", b'event: response.completed\ndata: {"type":"response.completed","resp', False),
    ("openai_responses", b'event: response.completed\ndata: {"type":"response.completed"}\n', True),
    ("openai_chat", b"data: [DONE]", True),
    ("openai_chat", b"data: [DO", False),
]


@pytest.mark.parametrize(("meter", "last", "whole"), LAST_WORDS)
def test_a_last_word_is_one_once_all_of_it_came(meter: str, last: bytes, whole: bool) -> None:
    assert fed(asked(meter, streamed=True), CUT[meter], last).is_whole is whole


@pytest.mark.parametrize("reason", ["", "FINISH_REASON_UNSPECIFIED", None])
def test_an_unspecified_reason_is_no_end(reason: str | None) -> None:
    piece = {"candidates": [{"content": {"parts": [{"text": TEXT}]}, "finishReason": reason}]}
    asking = asked("gemini_stream", streamed=True)
    asking.reports = True
    for event in (piece, {**piece, "promptFeedback": {"blockReason": reason}}):
        made = fed(asking, frame(event))
        assert not made.is_whole
        assert made.usage().output == TOKENS
        odd = fed(asking, frame({"candidates": [{**piece["candidates"][0], "content": {"parts": 7}}]}))
        assert not odd.is_whole


HUGE = 50_000_000
USED = {"promptTokenCount": 100, "candidatesTokenCount": 9, "totalTokenCount": 109}


@pytest.mark.parametrize(
    ("said", "output_", "read"),
    [
        ({**USED, "totalTokenCount": HUGE}, 8_000, 100),
        ({**USED, "thoughtsTokenCount": HUGE, "totalTokenCount": HUGE + 109}, 8_000, 100),
        ({**USED, "thoughtsTokenCount": HUGE}, 8_000, 100),
        ({"promptTokenCount": 100, "candidatesTokenCount": "x", "totalTokenCount": HUGE}, 8_000, 100),
        ({**USED, "toolUsePromptTokenCount": HUGE, "totalTokenCount": HUGE + 109}, 8_000, 2_097_252),
    ],
)
def test_what_a_total_of_geminis_says_beyond_its_parts_is_within_the_maximum(
    said: dict[str, Any], output_: int, read: int
) -> None:
    document = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}
    for meter, content_type in (("gemini_generate", JSON), ("gemini_stream", SSE)):
        raw = json.dumps({**document, "usageMetadata": said}).encode()
        asking = asked(meter, streamed=content_type == SSE, choices=2)
        parts = b"data: %b\n\n" % raw if content_type == SSE else raw
        usage = fed(asking, parts, content_type=content_type).usage()
        assert (usage.input, usage.output) == (read, output_)
        assert usage.total <= read + output_
        assert usage.estimated


def test_a_whole_stream_is_so_though_its_connection_is_reset() -> None:
    usage = frame(chat_chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 9}))
    end = frame(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    made = fed(asked("openai_chat", streamed=True), CUT["openai_chat"], end, usage, ended=False)
    assert made.is_whole
    assert made.final
    assert (made.usage().total, made.usage().estimated) == (12, False)


@pytest.mark.parametrize("place", [0, 1])
def test_choices_beside_the_one_that_reports_are_counted(place: int) -> None:
    choices: list[dict[str, Any]] = [{"index": n, "message": {"content": TEXT}} for n in range(3)]
    choices[place]["usage"] = {"prompt_tokens": 100, "completion_tokens": 450}
    made = fed(asked("openai_chat", streamed=False, choices=3), json.dumps({"choices": choices}).encode(),
               content_type=JSON)  # fmt: skip
    usage = made.usage()
    assert (usage.input, usage.output, usage.estimated) == (100, 450 + 2 * TOKENS, True)


@pytest.mark.parametrize(
    ("prompts", "read", "written", "doubtful"),
    [(1, 20, 144, False), (1, 20, 288, False), (4, 40, 288, False), (4, 40, 2 * 66, True)],
)
def test_a_report_of_a_whole_answer_is_of_all_its_choices(
    prompts: int, read: int, written: int, doubtful: bool
) -> None:
    """Two or four texts of 669 letters. Formal English has nine for a token; twenty are doubtful."""
    count = max(2, prompts)
    choices = [{"index": n, "text": "x" * 669, "finish_reason": "stop"} for n in range(count)]
    asking = asked("openai_completions", streamed=False, choices=count)
    asking.spec = asking.spec._replace(prompts=prompts, first_part=1 / prompts)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    made = fed(asking, json.dumps({"choices": choices, "usage": usage}).encode(), content_type=JSON)
    found = made.usage()
    assert (found.input, found.output, found.total, found.estimated) == (read, written, read + written, False)
    assert made.detail.contradicted is doubtful


@pytest.mark.parametrize(
    ("told", "reasons", "written", "estimated"),
    [
        # 80 tokens are more than the 50 of one choice: an upstream's own limit ended each at 40.
        (80, ["length", "length"], 80, False),
        (51, ["length", "length"], 51, False),
        (100, ["length", "length"], 100, False),
        # 50 are the first choice's, and the second reached its 50 too.
        (50, ["length", "length"], 100, True),
        (30, ["stop", "length"], 80, True),
        # One choice that reached 50, and one that wrote nothing.
        (50, ["length", "stop"], 50, False),
    ],
)
def test_a_report_of_more_than_the_maximum_of_a_choice_is_of_all_choices(
    told: int, reasons: list[str], written: int, estimated: bool
) -> None:
    choices = [
        {"index": n, "message": {"content": TEXT}, "finish_reason": end} for n, end in enumerate(reasons)
    ]
    asking = asked("openai_chat", streamed=False, choices=2)
    asking.output_max = 50
    usage = {"prompt_tokens": 9, "completion_tokens": told, "total_tokens": 9 + told}
    made = fed(asking, json.dumps({"choices": choices, "usage": usage}).encode(), content_type=JSON)
    found = made.usage()
    assert (found.input, found.output, found.estimated) == (9, written, estimated)


@pytest.mark.parametrize(("reporting", "estimated"), [(2, True), (3, False)])
def test_reports_of_fewer_than_the_choices_are_flagged_however_long_the_texts(
    reporting: int, estimated: bool
) -> None:
    """Stream three choices of one piece each; each report says 90 tokens."""
    parts = []
    for index in range(3):
        end = chat_chunk(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}])
        parts += [frame(delta("word", index)), frame(end)]
        if index < reporting:
            usage = {"prompt_tokens": 9, "completion_tokens": 90}
            parts.append(frame(chat_chunk(choices=[], usage=usage)))
    usage = fed(asked("openai_chat", streamed=True, choices=3), *parts, frame("[DONE]")).usage()
    assert (usage.input, usage.output, usage.estimated) == (9, reporting * 90, estimated)


def test_a_report_of_each_choice_is_that_of_one_in_a_stream_as_well() -> None:
    def stream(*, each: bool) -> Meter:
        asking = asked("openai_chat", streamed=True, choices=2)
        asking.aim = Aim(asking.said, reports_each=each)
        events = [frame(delta(TEXT, index)) for index in (0, 1)]
        ends = [frame(chat_chunk(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}]))
                for index in (0, 1)]  # fmt: skip
        said = frame(chat_chunk(choices=[], usage={"prompt_tokens": 100, "completion_tokens": 480}))
        return fed(asking, *events, *ends, said, frame("[DONE]"))

    assert stream(each=False).usage().output == 480
    assert (stream(each=True).usage().output, stream(each=True).usage().estimated) == (2 * TOKENS, True)


@pytest.mark.parametrize("meter", ["openai_chat", "openai_responses", "anthropic_messages"])
def test_events_that_are_no_documents_are_counted_as_they_stand(meter: str) -> None:
    for data in (TEXT.encode(), json.dumps(TEXT).encode()):
        assert output(meter, b"data: " + data + b"\n\n", b"data: [DONE]\n\n") >= TOKENS
