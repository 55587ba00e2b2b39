"""Nobody has a complete answer before `finish`: whatever passed until then is missing its end.

The judge is written another way than the meters: it reads what passed as a careless client would,
line by line and without waiting for an event to be over.
"""

from __future__ import annotations

import gzip
import json
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.call import UsageBounds
from gateway.core.metering.meter import BEHIND_END_BYTES_MAX, CLOSED, FINISHED, OPEN, Meter
from gateway.core.metering.meters import STEP_BYTES, make_meter
from gateway.core.metering.stream import CODED_BYTES, Brackets
from tests.core.metering.recorded import (
    CHAT,
    CHAT_FRAMES,
    CHAT_USED,
    DONE,
    GEMINI_ARRAY,
    GEMINI_EVENTS,
    JSON,
    MESSAGE,
    RECORDED,
    SSE,
    Recorded,
    call,
    chat_chunk,
    delta,
    frame,
)  # fmt: skip

ENDS = {"response.completed", "response.incomplete", "response.failed", "message_stop"}
FINISHED_CHAT = frame(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
BEHIND = [b": ping\n\n", b"\n", b"data: {}\n\n", b"data: [DO", b"event: x\r\n"]
MARKS = [b"data:[DONE]\n\n", b"data: [DONE] \n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]"]
CODINGS = [b"", b"gzip", b"deflate"]


def finishes(document: object) -> bool:
    """Whether an event says that the answer is finished."""
    if not isinstance(document, dict):
        return False
    choices = document.get("choices") or document.get("candidates") or []
    reasons = [choice.get("finish_reason") or choice.get("finishReason") for choice in choices]
    stopped = document.get("delta") if document.get("type") == "message_delta" else None
    return (
        document.get("type") in ENDS
        or bool((document.get("promptFeedback") or {}).get("blockReason"))
        or (bool(reasons) and all(reasons))
        or (isinstance(stopped, dict) and stopped.get("stop_reason") is not None)
    )


def looks_complete(passed: bytes, content_type: bytes) -> bool:
    """Whether a careless client would take this for the whole answer."""
    text = passed.decode("utf-8", "ignore").lstrip("\ufeff")
    if content_type != SSE:
        try:
            json.loads(text)
        except ValueError:
            return "finishReason" in text
        return True
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if data.lstrip(" \"'").startswith("[DONE]"):
            return True
        if line.startswith("event:") and line.removeprefix("event:").strip() in ENDS:
            return True
        try:
            if finishes(json.loads(data)):
                return True
        except ValueError:
            continue
    return False


def packed(stream: bytes, coding: bytes, parts: list[bytes] | None = None) -> bytes:
    if not coding:
        return stream
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS if coding == b"deflate" else 31)
    flushed = b"".join(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts or [stream])
    return flushed + packer.flush()


def unpacked(passed: bytes, coding: bytes) -> bytes:
    """What a client has of a compressed answer that is not over."""
    if not coding:
        return passed
    return zlib.decompressobj(zlib.MAX_WBITS if coding == b"deflate" else 31).decompress(passed)


def feed_all(meter: Meter, stream: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cuts), len(stream)]
    return b"".join(meter.feed(stream[start:end]) for start, end in pairwise(places))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_what_passed_at_any_split_is_missing_its_end(recorded: Recorded, coding: bytes) -> None:
    plain = recorded.call
    stream = packed(recorded.stream, coding, recorded.frames)
    for cuts in [*([cut] for cut in range(len(stream) + 1)), list(range(len(stream)))]:
        meter = make_meter(plain, 200, recorded.content_type, coding)
        passed = feed_all(meter, stream, cuts)
        assert not looks_complete(unpacked(passed, coding), recorded.content_type)
        expected = stream if coding else recorded.passed
        assert passed + meter.finish() == expected
        assert meter.usage() == recorded.usage


@given(st.sampled_from([r for r in RECORDED if r.content_type == SSE]), st.data())
def test_what_stands_behind_the_end_waits_with_it(recorded: Recorded, data: st.DataObject) -> None:
    behind = data.draw(
        st.sampled_from([b": ping\n\n", b"\n", b"data: {}\n\n", b"data: [DO", b"event: x\r\n"])
    )
    stream = recorded.stream + behind
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    meter = make_meter(recorded.call, 200, SSE)
    assert not looks_complete(feed_all(meter, stream, cuts), SSE)
    assert meter.finish().endswith(behind)


@pytest.mark.parametrize(
    "mark", [b"data:[DONE]\n\n", b"data: [DONE] \n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]"]
)
def test_the_mark_in_other_spellings(mark: bytes) -> None:
    meter = make_meter(call("openai_chat"), 200, SSE)
    passed = meter.feed(b"".join(CHAT_FRAMES)) + meter.feed(mark)
    assert not looks_complete(passed, SSE)
    assert meter.finish().endswith(mark)


def test_content_behind_a_finish_lets_it_pass() -> None:
    meter = make_meter(call("openai_chat"), 200, SSE)
    assert meter.feed(FINISHED_CHAT) == b""
    assert meter.phase == FINISHED
    assert meter.feed(frame(delta("more"))) == FINISHED_CHAT + frame(delta("more"))
    assert meter.phase == OPEN
    assert meter.feed(FINISHED_CHAT + DONE) == b""
    assert meter.finish() == FINISHED_CHAT + DONE


def test_an_api_that_calls_every_part_finished_is_one_part_late() -> None:
    part = frame({"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]})
    meter = make_meter(call("gemini_stream"), 200, SSE)
    assert [meter.feed(part) for _ in range(3)] == [b"", part, part]
    element = part[6:].strip()
    array = make_meter(call("gemini_stream"), 200, JSON)
    assert [array.feed(b"[" + element), array.feed(b"," + element), array.feed(b"," + element)] == [
        b"[", element + b",", element + b",",
    ]  # fmt: skip
    assert array.feed(b"]") == b""
    assert array.finish() == element + b"]"


def finish_of(index: int) -> bytes:
    return frame(chat_chunk(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}]))


def test_the_finish_of_one_choice_waits_for_more_of_another() -> None:
    meter = make_meter(call("openai_chat", choices=2), 200, SSE)
    assert meter.feed(frame(delta("x"))) == frame(delta("x"))
    assert meter.feed(finish_of(0)) == b""  # an upstream may give fewer choices than it was asked for
    assert meter.feed(frame(delta("y", 1))) == finish_of(0) + frame(delta("y", 1))
    assert meter.feed(finish_of(1)) == b""
    assert meter.feed(DONE) == b""
    assert meter.finish() == finish_of(1) + DONE


# An end as some client takes it, by API: each is passed on once the charge is settled, not before.
ENDINGS = {
    "openai_chat": [
        b"data: [DONE]x\n\n",
        b'data: "[DONE]"\n\n',
        b"data: '[DONE]'\n\n",
        b"data:[DONE]{}\r\n\r\n",
        b"data: [DONE]\ndata:\n\n",
        b"data: {}\ndata: [DONE]\n\n",
        b": c\ndata: [DONE]\r\r\n",
        b"event: done\ndata: [DONE]\n\n",
        b"[DONE]\n\n",
        frame(chat_chunk(choices=[{"index": 0, "delta": {"content": 7}, "finish_reason": "stop"}])),
        b'data: {"choices":[{"finish_reason":"length"}],"x":NaN}\n\n',
    ],
    "openai_completions": [b"data: [DONE] \n\n", b'data: "[DONE]\n\n'],
    "openai_responses": [
        b"data: [DONE]\n\n",
        b"event: response.completed\n\n",
        b"event:response.failed\r\ndata: {}\r\n\r\n",
        b"data: {}\nevent: response.incomplete\n\n",
        b'event: response.completed\ndata: {"response":{"usage":null}}\n\n',
        b'data: {"response":{"status":"completed"}}\n\n',
        b'data: {"type":"response.completed","x":NaN}\n\n',
    ],
    "anthropic_messages": [
        b"event: message_stop\n\n",
        b"event: message_stop\ndata: {}\n\n",
        b"id: 1\r\nevent: message_stop \r\ndata: x\r\n\r\n",
        b'data: {"type":"message_stop","x":NaN}\n\n',
        b"data: [DONE]\n\n",
    ],
    "gemini_stream": [
        frame({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"totalTokenCount": 3}}),
        frame({"promptFeedback": {"blockReason": "SAFETY"}, "candidates": 3}),
        b"data: [DONE]\n\n",
    ],
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("meter", "end"), [(meter, end) for meter, ends in ENDINGS.items() for end in ends])
def test_whatever_a_client_may_take_for_the_end_waits(meter: str, end: bytes, coding: bytes) -> None:
    stream = packed(end, coding)
    assert len(stream) < 300
    for cuts in [*([cut] for cut in range(len(stream) + 1)), list(range(len(stream)))]:
        made = make_meter(call(meter, choices=2), 200, SSE, coding)
        sent = feed_all(made, stream, cuts)
        passed = unpacked(sent, coding)
        assert all(mark not in passed for mark in (b"[DONE]", b"message_stop", b"response.", b"SAFETY"))
        assert b"finish_reason" not in passed
        assert made.phase != OPEN
        assert sent + made.finish() == stream


def test_a_refused_prompt_in_an_array_waits() -> None:
    element = b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"totalTokenCount":3}}'
    meter = make_meter(call("gemini_stream"), 200, JSON)
    assert meter.feed(b"[" + element) == b"["
    assert meter.feed(b"]") == b""
    assert meter.finish() == element + b"]"


def test_an_end_in_front_of_more_than_is_kept_of_an_event_waits() -> None:
    meter = make_meter(call("openai_chat"), 200, SSE, b"", UsageBounds(event_bytes_max=100))
    assert feed_all(meter, b"data: [DONE]\n:" + b"x" * 200, [50, 80, 110, 180]) == b""
    assert meter.surplus


@pytest.mark.parametrize("event", [b"\n\n", b":\n\n", b"data:{}\n\n", b"data: x\n"])
def test_an_answer_that_decodes_to_too_much_is_read_no_further(event: bytes) -> None:
    most = 1 << 20
    body = gzip.compress(event * ((8 << 20) // len(event)))
    meter = make_meter(call("openai_chat"), 200, SSE, b"gzip", UsageBounds(decoded_bytes_max=most))
    steps, passed = 1, meter.feed(body)
    while meter.behind:
        steps, passed = steps + 1, passed + meter.feed(b"")
    assert 10 < steps <= most // STEP_BYTES + 2
    assert passed == body[:-CODED_BYTES]
    assert passed + meter.finish() == body


@pytest.mark.parametrize("api", ["openai_chat", "generic"])
def test_an_answer_that_packs_well_is_read_to_its_report(api: str) -> None:
    """However much smaller it came: 3 MiB of blanks are some three thousand bytes."""
    usage = b'{"x":"%b","usage":{"prompt_tokens":900,"completion_tokens":32,"total_tokens":932}}'
    asked = call(api, streamed=False)
    asked.units_pointer = "/usage/total_tokens"
    body = gzip.compress(usage % (b" " * (3 << 20)))
    meter = make_meter(asked, 200, JSON, b"gzip")
    assert meter.feed(body) + meter.finish() == body
    used = meter.usage()
    assert (used.total, used.units, used.estimated) == (
        (932, 1, False) if api != "generic" else (0, 932, False)
    )


JSONS = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"', "\\", '\\"', "}]", "[{", "\n\t", " " * 9]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSONS.map(lambda inner: [inner]), st.booleans(), st.data())
def test_a_document_ends_where_its_brackets_close(
    document: object, escaped: bool, data: st.DataObject
) -> None:
    text = json.dumps(document, ensure_ascii=escaped).encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(text) - 1), max_size=6)))
    brackets = Brackets()
    for start, end in pairwise([0, *places]):
        brackets.feed(text[start:end])
        assert not brackets.closed
    brackets.feed(text[max(places, default=0) :])
    assert brackets.closed


@pytest.mark.parametrize("api", ["openai_chat", "generic", "none"])
def test_blanks_in_a_text_are_no_end(api: str) -> None:
    """Nor is any of them kept back; behind the document they are, and too many of them are a surplus."""
    blanks = b" " * (3 * BEHIND_END_BYTES_MAX)
    body = (
        b'{"choices":[{"message":{"content":"%b"}}],"usage":{"prompt_tokens":7,"completion_tokens":5}}'
        % blanks
    )
    asked = call(api, streamed=False)
    for cuts in ([], [len(body) // 2], list(range(0, len(body), 16_384))):
        meter = make_meter(asked, 200, JSON)
        passed = feed_all(meter, body, cuts)
        assert (meter.surplus, len(passed) >= len(body) - 1) == (False, True)
        meter.feed(blanks)
        assert meter.surplus == (api != "none")
        assert (passed + meter.finish()).startswith(body)
        assert meter.usage().total == (12 if api == "openai_chat" else 0)


def test_what_was_not_decoded_yet_is_before_more_comes() -> None:
    stream = b"".join(frame(delta(str(number))) for number in range(3000)) + b"".join(CHAT)
    body = gzip.compress(stream)
    for cuts in ([], [len(body) // 2], [1000, 1001, len(body) - 1]):
        meter = make_meter(call("openai_chat"), 200, SSE, b"gzip")
        passed = feed_all(meter, body, cuts)
        assert meter.behind or len(cuts) == 3
        assert passed + meter.finish() == body
        assert meter.usage() == CHAT_USED


def test_what_only_speaks_of_an_end_passes() -> None:
    for text in ("[DONE]", "event: message_stop", "data: [DONE]", "\nevent: done\n"):
        meter = make_meter(call("openai_chat"), 200, SSE)
        assert meter.feed(frame(delta(text))) == frame(delta(text))


def test_an_endless_answer_behind_its_end_is_surplus() -> None:
    meter = make_meter(call("openai_chat"), 200, SSE)
    meter.feed(b"".join(CHAT))
    assert meter.phase == CLOSED
    for _ in range(BEHIND_END_BYTES_MAX // 1000):
        assert not meter.surplus
        assert meter.feed(b":" + b"x" * 997 + b"\n\n") == b""
    assert meter.feed(b":" + b"x" * 997 + b"\n\n") == b""
    assert meter.surplus
    assert meter.usage() == CHAT_USED


def test_an_event_too_long_to_keep_waits_with_its_last_byte() -> None:
    event = frame({"type": "response.completed", "response": {"output": "x" * 400}})
    meter = make_meter(call("openai_responses"), 200, SSE, b"", UsageBounds(event_bytes_max=100))
    passed = feed_all(meter, event, list(range(0, len(event), 30)))
    assert not looks_complete(passed, SSE)
    assert len(passed) > 300
    assert passed + meter.finish() == event


@pytest.mark.parametrize("end", [b"", b"\n", b" \r\n \n"])
def test_a_document_waits_with_its_last_byte(end: bytes) -> None:
    document = json.dumps({"id": "x", "usage": {"prompt_tokens": 2, "completion_tokens": 3}}).encode() + end
    for meter in ("openai_chat", "generic"):
        for coding in (b"", b"gzip"):
            body = gzip.compress(document) if coding else document
            for cut in range(len(body) + 1):
                made = make_meter(
                    call(meter, streamed=False), 200, b"application/json; charset=utf-8", coding
                )
                passed = feed_all(made, body, [cut])
                assert not looks_complete(unpacked(passed, coding), JSON)
                assert passed + made.finish() == body


def test_heartbeats_in_front_of_a_document_pass() -> None:
    meter = make_meter(call("openai_chat", streamed=False), 200, JSON)
    assert meter.feed(b"\n") == b"\n"
    assert meter.feed(b" {") == b" "
    assert meter.feed(b"}") == b"{"
    assert meter.finish() == b"}"


def test_what_is_no_document_passes_at_once_on_a_route_of_units() -> None:
    meter = make_meter(call("generic"), 200, b"text/event-stream")
    assert meter.feed(b"data: x\n\n") == b"data: x\n\n"


@given(st.lists(st.integers(1, 300), min_size=2, max_size=6), st.data())
def test_gzip_in_any_number_of_members(sizes: list[int], data: st.DataObject) -> None:
    stream = b"".join(CHAT)
    places = [0]
    for size in sizes:
        places.append(min(len(stream), places[-1] + size))
    members = [gzip.compress(stream[a:b]) for a, b in pairwise([*places, len(stream)])]
    body = b"".join(members)
    ends = [sum(map(len, members[: index + 1])) for index in range(len(members))]
    cuts = data.draw(st.lists(st.sampled_from(ends[:-1]) | st.integers(0, len(body)), max_size=8))
    meter = make_meter(call("openai_chat"), 200, SSE, b"gzip")
    passed = feed_all(meter, body, cuts)
    assert passed + meter.finish() == body
    assert meter.usage() == CHAT_USED


def test_padding_behind_the_last_member_is_no_text() -> None:
    meter = make_meter(call("openai_chat"), 200, SSE, b"gzip")
    body = gzip.compress(b"".join(CHAT))
    meter.feed(body)
    meter.feed(b"\0" * 5000)
    meter.finish()
    assert meter.usage() == CHAT_USED


def test_the_finish_is_recognised_in_each_family() -> None:
    for meter, frames in (
        ("openai_chat", [FINISHED_CHAT]),
        ("anthropic_messages", MESSAGE),
        ("gemini_stream", GEMINI_EVENTS),
    ):
        made = make_meter(call(meter), 200, SSE)
        for each in frames:
            made.feed(each)
        assert made.phase != OPEN, meter
    made = make_meter(call("gemini_stream"), 200, JSON)
    made.feed(b"".join(GEMINI_ARRAY))
    assert made.phase == CLOSED
