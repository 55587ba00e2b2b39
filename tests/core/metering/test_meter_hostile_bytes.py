"""No bytes an upstream may send make a meter fail, alter what passes, or charge a negative number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.calls.call import UsageBounds
from gateway.core.metering.meters import make_meter
from gateway.core.model import INTEGER_MAX
from tests.core.metering.recorded import JSON, RECORDED, SSE, Recorded, call
from tests.search import examples

METERS = [
    "openai_chat", "openai_completions", "openai_embeddings", "openai_responses", "anthropic_messages",
    "gemini_generate", "gemini_stream", "gemini_embed",
]  # fmt: skip
SMALL = UsageBounds(usage_tokens_max=1000, decoded_bytes_max=4096, kept_bytes_max=256, event_bytes_max=128)
PIECES = st.sampled_from(
    [
        b"data: ", b"\n\n", b"\r\n", b"\r", b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"null",
        b"1e400", b"-1", b'"usage":{', b'"prompt_tokens":', b'"completion_tokens":', b'"output_tokens":',
        b'"input_tokens":', b'"usageMetadata":{', b'"totalTokenCount":', b'"choices":[', b'"delta":',
        b'"type":', b'"response":{', b'"message_delta"', b'"content":"', b"99999999999999999999", b"\xff",
        b"\x00", b"[DONE]", b"\xef\xbb\xbf", b" ",
    ]
)  # fmt: skip


def run(meter: str, parts: list[bytes], content_type: bytes, coding: bytes, bounds: UsageBounds) -> None:
    for finished in (False, True):
        made = make_meter(call(meter, streamed=content_type == SSE), 200, content_type, coding, bounds)
        passed = []
        for part in parts:
            passed.append(made.feed(part))
            assert 0 <= made.observed() <= bounds.usage_tokens_max
        if finished:
            passed.append(made.finish())
            assert b"".join(passed) == b"".join(parts)
        assert b"".join(parts).startswith(b"".join(passed))
        usage = made.usage()
        for tokens in (usage.input, usage.output, usage.cached, usage.reasoning, usage.total):
            assert 0 <= tokens <= INTEGER_MAX
        assert usage.total <= bounds.usage_tokens_max
        assert isinstance(made.produced, bool)
        made.cut()


@settings(max_examples=examples(300))
@given(
    st.sampled_from(METERS),
    st.lists(PIECES | st.binary(max_size=6), max_size=40),
    st.sampled_from([SSE, JSON, b""]),
    st.sampled_from([b"", b"gzip", b"deflate", b"br"]),
    st.sampled_from([UsageBounds(), SMALL]),
)
def test_any_bytes(
    meter: str, parts: list[bytes], content_type: bytes, coding: bytes, bounds: UsageBounds
) -> None:
    run(meter, parts, content_type, coding, bounds)


@settings(max_examples=examples(200))
@given(st.sampled_from(RECORDED), st.data())
def test_recorded_streams_with_wounds(recorded: Recorded, data: st.DataObject) -> None:
    stream = bytearray(recorded.stream)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        end = min(len(stream), at + data.draw(st.integers(0, 9)))
        stream[at:end] = data.draw(PIECES | st.binary(max_size=3))
    run(
        recorded.call.meter,
        [bytes(stream[:40]), bytes(stream[40:])],
        recorded.content_type,
        b"",
        UsageBounds(),
    )


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_deep_nesting_and_huge_numbers(meter: str, content_type: bytes) -> None:
    for document in (
        b"[" * 20_000,
        b'{"usage":' * 20_000,
        b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}",
        b'{"usage":{"prompt_tokens":1e400}}',
        b'{"usageMetadata":{"totalTokenCount":NaN}}',
    ):
        run(
            meter,
            [b"data: " + document + b"\n\n"] if content_type == SSE else [document],
            content_type,
            b"",
            UsageBounds(),
        )


def test_an_unreadable_report_is_a_missing_one() -> None:
    made = make_meter(call("openai_embeddings", streamed=False), 200, JSON)
    made.feed(b'{"data":[],"usage":{"prompt_tokens":1e400}}')
    made.finish()
    assert made.usage().total == 100
    assert made.usage().estimated


ODD = (b'"\\ud83d"', b"NaN", b"-Infinity", b'"\t"', b"[" * 1500 + b"]" * 1500)


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_inside_a_report_is_no_count(odd: bytes) -> None:
    for usage, output in (
        (b'{"new":%s,"prompt_tokens":7,"completion_tokens":5}', 5),
        (b'{"prompt_tokens":7,"completion_tokens":%s}', 25),
    ):
        made = make_meter(call("openai_chat", streamed=False), 200, JSON)
        made.whole(b'{"choices":[{"message":{"content":"%s"}}],"usage":%s}' % (b"x" * 100, usage % odd))
        assert (made.usage().input, made.usage().output) == (7, output)
        assert made.usage().estimated == (output == 25)


def test_the_amount_of_any_api_is_found_beside_what_is_odd() -> None:
    asked = call("generic", streamed=False)
    asked.units_pointer = "/n"
    made = make_meter(asked, 200, JSON)
    made.whole(b'{"text":"\\ud83d","n":12}')
    assert made.usage().units == 12


@pytest.mark.parametrize("depth", [500, 90_000, 200_000])
def test_the_report_behind_a_deep_nesting_is_read(depth: int) -> None:
    made = make_meter(call("anthropic_messages", streamed=False), 200, JSON)
    made.whole(b'{"x":%b%b,"usage":{"input_tokens":7,"output_tokens":8}}' % (b"[" * depth, b"]" * depth))
    assert (made.usage().total, made.usage().estimated) == (15, False)
