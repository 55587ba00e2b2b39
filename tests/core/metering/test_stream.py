"""Every recorded stream, split everywhere, passes byte for byte and is charged the same."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.call import Learned, StoredObjects, UsageBounds
from gateway.core.metering.meter import SLIM_BYTES_MAX, TEXTS_MAX, Meter
from gateway.core.metering.meters import make_meter
from gateway.core.metering.stream import StreamMeter
from gateway.core.model import TokenUsage
from tests.core.metering.recorded import (
    CHAT,
    CHAT_FRAMES,
    CHAT_USED,
    DONE,
    MESSAGE_END,
    MESSAGE_START,
    MESSAGE_TEXT,
    RECORDED,
    SSE,
    Recorded,
    call,
    chat_chunk,
    delta,
    frame,
    message,
)  # fmt: skip


def run(recorded: Recorded, stream: bytes, cuts: list[int], coding: bytes = b"") -> tuple[bytes, TokenUsage]:
    meter = make_meter(recorded.call, 200, recorded.content_type, coding)
    places = [0, *sorted(cuts), len(stream)]
    passed = [meter.feed(stream[start:end]) for start, end in pairwise(places)]
    passed.append(meter.finish())
    return b"".join(passed), meter.usage()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_any_split_in_two_and_byte_by_byte(recorded: Recorded) -> None:
    stream = recorded.stream
    expected = (recorded.passed, recorded.usage)
    for cut in range(len(stream) + 1):
        assert run(recorded, stream, [cut]) == expected
    assert run(recorded, stream, list(range(len(stream)))) == expected


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("recorded", [r for r in RECORDED if r.content_type == SSE], ids=lambda r: r.name)
def test_other_line_ends_and_a_bom(recorded: Recorded, end: bytes) -> None:
    def changed(stream: bytes) -> bytes:
        return b"\xef\xbb\xbf" + stream.replace(b"\r\n", b"\n").replace(b"\n", end)

    stream = changed(recorded.stream)
    expected = (changed(recorded.passed), recorded.usage)
    for cut in range(0, len(stream) + 1, 7):
        assert run(recorded, stream, [cut]) == expected
    assert run(recorded, stream, list(range(len(stream)))) == expected


@given(st.sampled_from(RECORDED), st.data())
def test_any_split(recorded: Recorded, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(recorded.stream)), max_size=20))
    assert run(recorded, recorded.stream, cuts) == (recorded.passed, recorded.usage)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"x-gzip", b"GZIP "])
@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_compressed_stream_passes_unaltered(recorded: Recorded, coding: bytes) -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS if coding == b"deflate" else 31)
    packed = b"".join(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in recorded.frames)
    packed += packer.flush()
    assert run(recorded, packed, [], coding) == (packed, recorded.usage)
    assert run(recorded, packed, list(range(len(packed))), coding) == (packed, recorded.usage)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_stream_that_dies_is_charged_what_came(recorded: Recorded) -> None:
    for frames in range(len(recorded.frames)):
        meter = make_meter(recorded.call, 200, recorded.content_type)
        for part in recorded.frames[:frames]:
            meter.feed(part)
        usage = meter.usage()
        assert usage.total <= max(recorded.usage.total, recorded.call.input_estimate + recorded.usage.total)
        if not meter.produced:
            assert usage == TokenUsage(units=0)
            assert meter.observed() == 0
        elif usage != recorded.usage:
            assert usage.estimated
            assert usage.total >= usage.input + usage.output > 0
            assert meter.observed() >= usage.total
        assert meter.so_far().total == meter.observed()


def chat(strip: bool = True, bounds: UsageBounds | None = None) -> Meter:
    return make_meter(call("openai_chat", strip=strip), 200, SSE, b"", bounds or UsageBounds())


def test_nothing_is_held_back_longer_than_its_event() -> None:
    meter = chat()
    assert meter.feed(CHAT_FRAMES[0] + CHAT_FRAMES[1][:5]) == CHAT_FRAMES[0]
    assert meter.feed(CHAT_FRAMES[1][5:]) == CHAT_FRAMES[1]


def test_an_event_passes_with_its_last_byte() -> None:
    meter = chat(strip=False)
    for event in CHAT_FRAMES[:3]:
        assert b"".join(meter.feed(bytes([byte])) for byte in event[:-1]) == b""
        assert meter.feed(event[-1:]) == event


def test_a_last_event_without_its_empty_line_is_read() -> None:
    end = frame(chat_chunk(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})).rstrip()
    meter = chat()
    assert meter.feed(frame(delta("x")) + end) == frame(delta("x"))
    assert meter.finish() == b""
    assert meter.usage().total == 3
    meter = chat()
    assert meter.feed(frame(delta("x")).rstrip()) + meter.finish() == frame(delta("x")).rstrip()


def test_usage_in_a_frame_with_choices_passes() -> None:
    last = frame(
        chat_chunk(choices=[{"index": 0, "delta": {}}], usage={"prompt_tokens": 1, "completion_tokens": 2})
    )
    meter = chat()
    assert meter.feed(last) == last
    assert meter.usage().total == 3


def test_an_event_longer_than_the_bound_passes_and_counts_as_text() -> None:
    meter = chat(bounds=UsageBounds(event_bytes_max=1000))
    long = frame(delta("x" * 5000))
    passed = b"".join(meter.feed(long[at : at + 100]) for at in range(0, len(long), 100))
    passed += meter.feed(DONE) + meter.finish()
    assert passed == long + DONE
    assert meter.usage().estimated
    assert meter.usage().output >= 1000


def test_a_long_event_passes_unread_while_memory_is_short_and_counts_as_text() -> None:
    meter = chat()
    long = frame(delta("x" * 2 * SLIM_BYTES_MAX))
    assert meter.feed(long[: SLIM_BYTES_MAX + 10]) == b""
    assert meter.kept > SLIM_BYTES_MAX
    meter.slim()
    passed = meter.feed(long[SLIM_BYTES_MAX + 10 :])
    assert meter.kept < 100
    assert passed + meter.feed(DONE) + meter.finish() == long + DONE
    assert meter.usage().output >= SLIM_BYTES_MAX // 4


def test_pieces_of_text_are_kept_as_one_before_long() -> None:
    asked = call("openai_chat")
    asked.learned = Learned(tokens_of=len)
    meter = make_meter(asked, 200, SSE, b"", UsageBounds())
    assert isinstance(meter, StreamMeter)
    for _ in range(3 * TEXTS_MAX):
        meter.feed(frame(delta("ab")))
    assert meter.texts is not None
    assert len(meter.texts) <= TEXTS_MAX
    assert "".join(meter.texts) == "ab" * 3 * TEXTS_MAX


def test_usage_repeated_in_every_frame_is_taken_once() -> None:
    meter = chat(strip=False)
    for count in range(1, 6):
        meter.feed(frame({**delta("x"), "usage": {"prompt_tokens": 10, "completion_tokens": count}}))
    for _ in range(2):
        meter.feed(frame(chat_chunk(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 5})))
    meter.feed(DONE)
    meter.finish()
    assert meter.usage() == TokenUsage(10, 5, 0, 0, 15, 1, True, False)


def test_a_smaller_report_after_a_larger_one_is_not_believed() -> None:
    meter = chat(strip=False)
    meter.feed(frame(chat_chunk(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 5})))
    meter.feed(frame(chat_chunk(choices=[], usage={"prompt_tokens": 0, "completion_tokens": 0})))
    assert meter.usage() == TokenUsage(10, 5, 0, 0, 15, 1, True, True)


def test_missing_usage_is_counted_not_zero() -> None:
    meter = chat()
    for part in [*CHAT_FRAMES, DONE]:
        meter.feed(part)
    meter.finish()
    usage = meter.usage()
    assert usage.estimated
    assert not usage.reported
    assert usage.input == 100
    assert usage.output >= 2
    assert usage.total == usage.input + usage.output


@pytest.mark.parametrize("stream", [b"", b": ping\n\n", b"\n\n\n\n"])
def test_a_stream_without_an_event_is_charged_nothing(stream: bytes) -> None:
    meter = chat()
    meter.feed(stream)
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)


@pytest.mark.parametrize(
    "junk",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: null\n\n",
        b'data: {"choices":7}\n\n',
        b'data: {"choices":[7]}\n\n',
        b"data: " + b"[" * 5000 + b"\n\n",
        b'data: {"usage":[]}\n\n',
        b'data: {"usage":"x"}\n\n',
        b"data: \xff\xfe\n\n",
        b'data: {"id":"\\ud800","choices":[]}\n\n',
        b"\x00\x00\n\n",
    ],
)
@pytest.mark.parametrize(
    "meter", ["openai_chat", "openai_completions", "openai_responses", "anthropic_messages", "gemini_stream"]
)
def test_a_hostile_event_is_passed_and_never_a_crash(meter: str, junk: bytes) -> None:
    made = make_meter(call(meter), 200, SSE)
    assert made.feed(junk) == junk
    made.finish()
    assert made.usage().total >= 0


def test_an_error_in_the_stream_charges_what_was_produced() -> None:
    error = frame({"error": {"message": "overloaded", "type": "server_error"}})
    meter = chat()
    meter.feed(error)
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)
    meter = chat()
    meter.feed(frame(delta("Tolls are old")) + error)
    meter.finish()
    assert meter.usage().estimated
    assert meter.usage().output == 4


def test_the_stripped_usage_still_counts() -> None:
    meter = chat()
    for part in CHAT:
        meter.feed(part)
    assert meter.usage() == CHAT_USED


def test_numbers_a_later_report_leaves_out_keep_their_value() -> None:
    meter = make_meter(call("anthropic_messages"), 200, SSE)
    last = message("message_delta", delta={}, usage={"input_tokens": 30, "output_tokens": 15})
    meter.feed(b"".join([MESSAGE_START, *MESSAGE_TEXT, last, MESSAGE_END[-1]]))
    meter.finish()
    assert meter.usage() == TokenUsage(170, 15, 40, 0, 185, 1, True, False)


def test_what_a_stream_tells_of_is_noted_as_it_comes() -> None:
    made = make_meter(replace(call("openai_responses"), objects=StoredObjects(keeps=True)), 200, SSE)
    started = {"type": "response.created", "response": {"id": "resp_1", "output": []}}
    made.feed(frame(started))
    assert made.told == ["resp_1"]
    item = {"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_1"}
    done = {"type": "response.completed", "response": {"id": "resp_1", "output": [item]}}
    made.feed(frame(done))
    assert set(made.told) == {"resp_1", "ci_1", "cntr_1"}
    chat = make_meter(replace(call("openai_chat"), objects=StoredObjects(keeps=True)), 200, SSE)
    chat.feed(frame({"id": "chatcmpl-1", "choices": []}) * 2)
    assert chat.told == ["chatcmpl-1"]
    message = make_meter(replace(call("anthropic_messages"), objects=StoredObjects(keeps=True)), 200, SSE)
    output = {"content": [{"file_id": "file_1"}]}
    block = {"type": "bash_code_execution_tool_result", "content": output}
    message.feed(frame({"type": "content_block_start", "content_block": block}))
    message.feed(frame({"type": "message_delta", "delta": {"container": {"id": "container_1"}}}))
    assert message.told == ["file_1", "container_1"]
