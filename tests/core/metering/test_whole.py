"""JSON answers: exact where use is reported, counted where not, nothing for what failed."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace

import pytest

from gateway.core.calls.call import CallRequest, Learned, StoredObjects, UsageBounds
from gateway.core.metering.meter import SLIM_BYTES_MAX
from gateway.core.metering.meters import make_meter
from gateway.core.model import TokenUsage
from tests.core.metering.recorded import (
    CHAT_USAGE,
    CHAT_USED,
    GEMINI_ITEMS,
    JSON,
    RESPONSE_USAGE,
    RESPONSE_USED,
    SSE,
    call,
)

CHAT = {
    "id": "chatcmpl-1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Tolls are paid."}, "finish_reason": "stop"}
    ],
    "usage": CHAT_USAGE,
}
MESSAGE = {
    "type": "message",
    "content": [{"type": "text", "text": "Tolls."}],
    "usage": {
        "input_tokens": 5, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 4,
    },
}  # fmt: skip
EMBEDDINGS = {
    "object": "list",
    "data": [{"embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}
ANSWERS = {
    "openai_chat": (CHAT, CHAT_USED),
    "openai_completions": ({**CHAT, "choices": [{"text": "x"}]}, CHAT_USED),
    "openai_embeddings": (EMBEDDINGS, TokenUsage(8, 0, 0, 0, 8, 1, True, False)),
    "openai_responses": (
        {"object": "response", "status": "completed", "usage": RESPONSE_USAGE},
        RESPONSE_USED,
    ),
    "anthropic_messages": (MESSAGE, TokenUsage(10, 4, 3, 0, 14, 1, True, False)),
    "gemini_generate": (GEMINI_ITEMS[2], TokenUsage(8, 25, 2, 20, 33, 1, True, False)),
}
NONE = TokenUsage(units=0)


def meter_of(
    meter: str, body: object, *, status: int = 200, pieces: int = 1, bounds: UsageBounds | None = None
) -> TokenUsage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    made = make_meter(call(meter, streamed=False), status, JSON, b"", bounds or UsageBounds())
    step = max(1, -(-len(raw) // pieces))
    assert b"".join(made.feed(raw[at : at + step]) for at in range(0, len(raw), step)) + made.finish() == raw
    return made.usage()


@pytest.mark.parametrize("meter", ANSWERS)
@pytest.mark.parametrize("pieces", [1, 2, 7, 100_000])
def test_reported_use_is_charged(meter: str, pieces: int) -> None:
    body, used = ANSWERS[meter]
    assert meter_of(meter, body, pieces=pieces) == used


@pytest.mark.parametrize("meter", ANSWERS)
@pytest.mark.parametrize("content_type", [b"", b"text/html", b"Application/JSON; charset=utf-8", b"nonsense"])
def test_a_wrong_content_type_does_not_matter(meter: str, content_type: bytes) -> None:
    body, used = ANSWERS[meter]
    made = make_meter(call(meter, streamed=False), 200, content_type)
    made.feed(json.dumps(body).encode())
    made.finish()
    assert made.usage() == used


@pytest.mark.parametrize("meter", ANSWERS)
def test_missing_use_is_counted(meter: str) -> None:
    body = {
        name: value for name, value in ANSWERS[meter][0].items() if name not in ("usage", "usageMetadata")
    }
    usage = meter_of(meter, body)
    assert usage.estimated
    assert usage.total == usage.input + usage.output
    assert usage.input == 100
    assert (usage.output > 0) == (
        meter in ("openai_chat", "openai_completions", "anthropic_messages", "gemini_generate")
    )


@pytest.mark.parametrize("usage", [None, {}, [], "x", 7, {"prompt_tokens": None}, {"prompt_tokens": "7"}])
def test_a_use_that_says_nothing_is_counted(usage: object) -> None:
    counted = meter_of("openai_chat", {**CHAT, "usage": usage})
    assert counted == TokenUsage(100, 4, 0, 0, 104, 1, False, True)


@pytest.mark.parametrize(
    ("prompt", "completion", "total"),
    [
        (10, -5, 10 + 4),
        (-10, 5, 100 + 5),
        (10**12, 5, 10**8),
        (10, 10**30, 10**8),
        (10**30, 10**30, 10**8),
        (12.0, 5.0, 17),
        (1e300, 5, 10**8),
    ],
)
def test_an_absurd_use_is_clamped_and_marked(prompt: float, completion: float, total: int) -> None:
    usage = meter_of(
        "openai_chat", {**CHAT, "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    )
    assert usage.total == total
    assert usage.estimated
    assert 0 <= usage.input <= 10**8
    assert 0 <= usage.output <= 10**8


@pytest.mark.parametrize("meter", ["openai_responses", "anthropic_messages"])
def test_an_absurd_use_is_clamped_in_every_family(meter: str) -> None:
    body = {"content": [], "usage": {"input_tokens": -1, "output_tokens": 10**18}}
    usage = meter_of(meter, body)
    assert usage.total == 10**8
    assert usage.estimated
    usage = meter_of("gemini_generate", {"usageMetadata": {"promptTokenCount": -4, "totalTokenCount": -4}})
    assert usage.total == 100
    assert usage.estimated


@pytest.mark.parametrize("meter", ANSWERS)
@pytest.mark.parametrize("status", [400, 429, 500, 503, 302])
def test_an_error_answer_charges_only_what_it_reports(meter: str, status: int) -> None:
    assert meter_of(meter, {"error": {"message": "no", "content": "text"}}, status=status) == NONE
    body, used = ANSWERS[meter]
    assert meter_of(meter, body, status=status) == used


@pytest.mark.parametrize("meter", ANSWERS)
@pytest.mark.parametrize("body", [b"", b" \n", b'{"error":{"message":"x"}}'])
def test_an_answer_without_output_is_charged_nothing(meter: str, body: bytes) -> None:
    if meter == "anthropic_messages" and body.startswith(b'{"error"'):
        body = b'{"type":"error","error":{"message":"x"}}'
    if meter == "openai_responses" and body.startswith(b'{"error"'):
        body = b'{"status":"failed","error":{"message":"x"}}'
    assert meter_of(meter, body) == NONE


@pytest.mark.parametrize("coding", ["", "gzip", "br"])
@pytest.mark.parametrize("content_type", [JSON, SSE, b"application/octet-stream"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("meter", [*ANSWERS, "gemini_stream", "gemini_embed"])
def test_a_good_answer_that_nobody_can_read_costs_its_input_and_its_size(
    meter: str, streamed: bool, content_type: bytes, coding: str
) -> None:
    lines = b"" if meter == "gemini_stream" else b'{"choices":[{"delta":{"content":"Tolls."}}]}\n' * 30
    produces = "embed" not in meter
    for body in (
        b"<html>" * 700, b"[0.5,1.5]" * 500, b"\xff\x00" * 2000, b"[" * 9_000, b'"text"', b"7",
        b'{"choices":[', b"x" + lines, b"event: ping\n\n",
    ):  # fmt: skip
        for bounds in (UsageBounds(), UsageBounds(kept_bytes_max=2000, event_bytes_max=2000)):
            asked = replace(call(meter, streamed=streamed), output_max=None if produces else 0)
            raw = gzip.compress(body) if coding == "gzip" else body
            made = make_meter(asked, 200, content_type, coding.encode(), bounds)
            passed = b"".join(made.feed(raw[at : at + 999]) for at in range(0, len(raw), 999))
            while made.behind:
                passed += made.feed(b"")
            assert passed + made.finish() == raw
            usage = made.usage()
            read = raw if coding == "br" else body
            assert usage == TokenUsage(100, usage.output, 0, 0, 100 + usage.output, 1, False, True)
            least, most = -(-len(read.strip()) // 4), -(-len(read) // 4)
            assert (least if produces else 0) <= usage.output <= most


@pytest.mark.parametrize("meter", ["openai_chat", "anthropic_messages", "gemini_generate"])
def test_a_broken_answer_is_charged_for_the_text_that_came(meter: str) -> None:
    raw = json.dumps(ANSWERS[meter][0]).encode()
    made = make_meter(call(meter, streamed=False), 200, JSON)
    made.feed(raw[:12])
    assert not made.produced
    assert made.usage() == NONE
    made.feed(raw[12 : raw.index(b"Tolls" if meter != "gemini_generate" else b'".') + 3])
    assert made.produced
    assert made.usage().estimated
    assert made.usage().input == 100
    assert made.usage().output >= 1


def test_use_is_found_in_a_document_too_long_to_keep() -> None:
    bounds = UsageBounds(kept_bytes_max=1000)
    long = {"data": ["x" * 300_000], **EMBEDDINGS}
    assert meter_of("openai_embeddings", long, pieces=50, bounds=bounds).total == 8
    first = {"usage": {**EMBEDDINGS["usage"], "note": {"usage": "}"}}, "data": ["x" * 300_000]}
    assert meter_of("openai_embeddings", first, pieces=50, bounds=bounds).total == 8
    gemini = {"candidates": [{"content": {"parts": [{"text": "x" * 300_000}]}}], **GEMINI_ITEMS[2]}
    assert meter_of("gemini_generate", gemini, pieces=50, bounds=bounds).total == 33
    nothing = meter_of("openai_chat", {"choices": ["x" * 300_000]}, pieces=50, bounds=bounds)
    assert nothing.estimated
    assert nothing.output >= 70_000


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_a_compressed_document(coding: bytes) -> None:
    raw = json.dumps(CHAT).encode()
    packed = gzip.compress(raw) if coding == b"gzip" else zlib.compress(raw)
    made = make_meter(call("openai_chat", streamed=False), 200, JSON, coding)
    passed = made.feed(packed)
    assert passed != packed
    assert passed + made.finish() == packed
    assert made.usage() == CHAT_USED
    whole = make_meter(call("openai_chat", streamed=False), 200, JSON, coding)
    assert (whole.whole(packed), whole.usage()) == (packed, CHAT_USED)


def test_deflate_without_its_header_and_gzip_in_two_members() -> None:
    raw = json.dumps(CHAT).encode()
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    for coding, packed in (
        (b"deflate", packer.compress(raw) + packer.flush()),
        (b"gzip", gzip.compress(raw[:100]) + gzip.compress(raw[100:])),
    ):
        made = make_meter(call("openai_chat", streamed=False), 200, JSON, coding)
        made.feed(packed)
        made.finish()
        assert made.usage() == CHAT_USED


def test_a_bomb_is_decoded_no_further_than_the_bound() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    made = make_meter(
        call("openai_chat", streamed=False), 200, JSON, b"gzip", UsageBounds(decoded_bytes_max=1 << 20)
    )
    passed = made.feed(bomb)
    assert passed + made.finish() == bomb
    usage = made.usage()
    assert usage.estimated
    assert usage.total < 100 + len(bomb)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, br", b"nonsense"])
def test_a_coding_nobody_can_read_is_counted_by_size(coding: bytes) -> None:
    made = make_meter(call("openai_chat", streamed=False), 200, JSON, coding)
    made.feed(b"x" * 400)
    made.finish()
    assert made.usage() == TokenUsage(100, 100, 0, 0, 200, 1, False, True)


BROKEN_GZIP = gzip.compress(b"{}" * 500, mtime=0)[:-20] + b"\xff" * 40


@pytest.mark.parametrize("broken", [b"not gzip at all", BROKEN_GZIP])
def test_broken_compression_is_counted_by_size(broken: bytes) -> None:
    made = make_meter(call("openai_chat", streamed=False), 200, JSON, b"gzip")
    passed = made.feed(broken) + made.feed(b"more")
    assert passed + made.finish() == broken + b"more"
    assert made.usage().estimated
    assert made.usage().total > 100


def test_counting_uses_what_was_learned_of_the_model() -> None:
    asked: CallRequest = call("openai_chat", streamed=False)
    asked.learned = Learned(1.5)
    made = make_meter(asked, 200, JSON)
    made.feed(b'{"choices":[{"message":{"content":"123456"}}]}')
    made.finish()
    assert made.usage().output == 4


def test_what_an_answer_tells_of_is_noted_where_its_objects_are_kept() -> None:
    answer = json.dumps({"id": "resp_1", "output": [{"id": "msg_1"}], "usage": {"input_tokens": 1}}).encode()
    for keeps, meter in ((True, "openai_responses"), (False, "openai_responses"), (True, "none")):
        asked = replace(
            call("openai_responses", streamed=False), meter=meter, objects=StoredObjects(keeps=keeps)
        )
        made = make_meter(asked, 200, JSON)
        assert made.whole(answer) == answer
        assert made.told == (["resp_1", "msg_1"] if keeps else [])


def test_a_document_is_charged_by_its_use_while_memory_is_short() -> None:
    document = json.dumps(
        {"choices": [{"message": {"content": "x" * 2 * SLIM_BYTES_MAX}}], "usage": CHAT_USAGE}
    )
    meter = make_meter(call("openai_chat", streamed=False), 200, JSON, b"", UsageBounds())
    meter.slim()
    text = document.encode()
    passed = b"".join(meter.feed(text[at : at + 16_384]) for at in range(0, len(text), 16_384))
    assert meter.kept <= SLIM_BYTES_MAX
    assert passed + meter.finish() == text
    assert meter.usage() == CHAT_USED


def test_a_document_in_place_of_a_stream_is_seen_as_it_comes() -> None:
    """Who asked for a stream has it at once, so it is cut as a stream is."""
    for streamed in (False, True):
        asked = call("openai_chat")
        asked.spec = asked.spec._replace(streamed=streamed)
        meter = make_meter(asked, 200, b"application/json")
        meter.feed(b'{"choices":[{"message":{"content":"' + b"word " * 1_000)
        assert meter.observed() >= asked.input_estimate + (1_250 if streamed else 0)
        assert (meter.observed() > asked.input_estimate) is streamed


@pytest.mark.parametrize("meter", ["openai_chat", "gemini_generate"])
def test_a_document_in_place_of_a_stream_is_seen_beyond_its_maximum(meter: str) -> None:
    asked = call(meter)
    asked.output_max = 600
    made = make_meter(asked, 200, b"application/json")
    made.feed(b'{"choices":[{"message":{"tool_calls":[{"custom":{"input":"' if "chat" in meter
              else b'{"candidates":[{"content":{"parts":[{"functionCall":{"args":{"a":"')  # fmt: skip
    for _ in range(100):
        made.feed(b"word " * 100)
        made.observed()
    assert 8_000 < made.observed() - asked.input_estimate <= 10_010
    assert made.so_far().total == made.observed()
