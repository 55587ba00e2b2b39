"""An event that differs from one before by its text alone is counted as if it were decoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.calls.call import DEFAULT_BOUNDS, Body, CallRequest, CallSpec, Learned, StoredObjects
from gateway.core.families.anthropic import messages
from gateway.core.families.openai import chat, responses
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.stream import StreamMeter
from gateway.core.model import Family
from tests.core.metering.recorded import RECORDED, SSE, chat_chunk, delta, frame
from tests.recorded.answers import METERS, answers
from tests.search import examples

DIALECTS = {
    "openai_chat": chat.DIALECT,
    "openai_completions": chat.DIALECT,
    "openai_responses": responses.DIALECT,
    "anthropic_messages": messages.DIALECT,
}


SEEN = (
    "behind", "cached", "content_events", "ended", "failed", "final", "finished", "input", "kept", "marked",
    "opening", "output", "partial", "phase", "position", "reasoning", "reported", "said", "surplus",
    "text_bytes", "told", "total", "uncounted", "unread", "withheld",
)  # fmt: skip
TOLD = ("model", "service_tier", "tools", "says_more", "unknown", "beside", "cache_write", "audio_output")


def counted(call: CallRequest, dialect: Dialect) -> tuple[StreamMeter, list[bytes]]:
    """A meter, and the events that it decodes."""
    decoded: list[bytes] = []

    def read(meter: Meter, data: bytes) -> bool:
        if meter is one:  # else it is tried out
            decoded.append(data)
        return dialect.read_event(meter, data)

    one = StreamMeter(call, 200, DEFAULT_BOUNDS, replace(dialect, read_event=read))
    return one, decoded


def call_of(meter: str, *, tokens: bool, strip: bool, keeps: bool = False) -> CallRequest:
    call = CallRequest(
        meter, Family(meter.partition("_")[0]), Body(b"{}"), CallSpec("m", True), None, 300, strip
    )
    call.learned, call.objects = Learned(tokens_of=len if tokens else None), StoredObjects(keeps=keeps)
    return call


def state(meter: Meter) -> dict[str, Any]:
    """All that a meter has read."""
    found = {name: getattr(meter, name) for name in SEEN}
    found |= {name: getattr(meter.detail, name) for name in TOLD}
    return {**found, "texts": None if meter.texts is None else "".join(meter.texts)}


def judge(meter: str, chunks: list[bytes], **said: bool) -> int:
    """Hold what a meter reads of chunks against one that decodes each event; how many it did not decode."""
    dialect = DIALECTS[meter]
    one, decoded = counted(call_of(meter, **said), dialect)
    other, all_of_it = counted(call_of(meter, **said), replace(dialect, texts=None))
    for chunk in chunks:
        assert one.feed(chunk) == other.feed(chunk)
        assert state(one) == state(other)
        assert (one.observed(), one.so_far()) == (other.observed(), other.so_far())
    assert one.finish() == other.finish()
    assert state(one) == state(other)
    assert one.usage() == other.usage()
    return len(all_of_it) - len(decoded)


def test_recorded_streams_are_counted_alike() -> None:
    streams = [(one.call.meter, one.frames) for one in RECORDED if one.content_type == SSE]
    streams += [
        (one.call.meter, one.body.splitlines(keepends=True))
        for one in answers()
        if one.mode == "sse" and one.api in METERS
    ]
    skipped = 0
    for meter, chunks in streams:
        if meter in DIALECTS:
            for said in ({"tokens": True, "strip": False}, {"tokens": False, "strip": True, "keeps": True}):
                skipped += judge(meter, chunks, **said)
                judge(meter, [b"".join(chunks)], **said)
    assert skipped > 100


def test_all_but_the_first_of_events_that_differ_by_their_text_are_not_decoded() -> None:
    words = ["Tolls", " are öld", ' \n\t"quoted"\\ \x01', "\U0001f6e3", "[DONE]", "data: [DONE]"] * 20
    events = [frame(delta(word)) for word in words]
    assert judge("openai_chat", events, tokens=True, strip=True) == len(words) - 1
    assert judge("openai_chat", [b"".join(events)], tokens=True, strip=True) == len(words) - 1


def test_events_may_differ_by_their_number_and_by_padding_as_well() -> None:
    words = ["Tolls", " are öld", ' "quoted"'] * 9
    chats = [frame({**delta(word), "obfuscation": "x" * (at % 5)}) for at, word in enumerate(words)]
    said = [response(at, word, "x" * (at % 5)) for at, word in enumerate(words)]
    assert judge("openai_chat", chats, tokens=True, strip=False) == len(words) - 1
    assert judge("openai_responses", said, tokens=True, strip=False) == len(words) - 1
    assert judge("openai_responses", [b"".join(said)], tokens=True, strip=False) == len(words) - 1


def response(number: int, text: str, padding: str, index: int = 0, kind: str = "output_text.delta") -> bytes:
    return frame(
        {"type": f"response.{kind}", "sequence_number": number, "item_id": "msg_1", "output_index": index,
         "content_index": 0, "delta": text, "logprobs": [], "obfuscation": padding},
        f"response.{kind}",
    )  # fmt: skip


def block(index: int, **fields: object) -> bytes:
    return frame({"type": "content_block_delta", "index": index, "delta": fields}, "content_block_delta")


USAGE = {"prompt_tokens": 3, "completion_tokens": 500, "total_tokens": 503}
ODD = [
    b'"us\\u0061ge":{"prompt_tokens":3,"completion_tokens":500}', b'"usage":{"completion_tokens":9}',
    b'"error":{}', b'"id":"resp_2"', b'"finish_reason":"stop"',
    b'"model":"other"', b'"cont\\u0065nt":"much more"', b'"content":"twice"', b'"service_tier":"priority"',
    b'"text":"x"', b'"x":"\\ud800"', b'"x":NaN', b'"type":"message_stop"',
]  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=12),
    st.text("\x01\n", min_size=40, max_size=200),
    st.sampled_from(
        ["", "stop", "message_stop", 'x","usage":{"completion_tokens":9},"y":"', "\\", "x" * 900]
    ),
)


def odd(event: bytes, more: bytes, place: int) -> bytes:
    """An event with one more member, in front of the place of another."""
    places = [at for at in range(len(event)) if event[at : at + 1] == b"{"]
    at = places[place % len(places)] + 1 if places else 0
    return event[:at] + more + b"," + event[at:]


@pytest.mark.parametrize(
    ("meter", "event"),
    [
        ("openai_chat", odd(frame(delta("7 bytes")), b'"content":"twice"', 2)),
        ("openai_chat", odd(frame(chat_chunk(choices=[{"text": "7 bytes"}])), b'"text":"x"', 1)),
        ("anthropic_messages", odd(block(0, type="text_delta", text="7 bytes"), b'"text":"x"', 0)),
    ],
)
def test_of_two_texts_in_an_event_the_one_that_is_read_counts(meter: str, event: bytes) -> None:
    assert judge(meter, [event] * 3, tokens=False, strip=False) == 0


CHATS = st.one_of(
    st.builds(lambda text: frame(delta(text)), TEXT),
    st.builds(lambda text, index: frame(delta(text, index)), TEXT, st.integers(0, 1)),
    st.builds(
        lambda text, more: frame(chat_chunk(choices=[{"index": 0, "delta": {"content": text, **more}}])),
        TEXT,
        st.sampled_from(
            [
                {}, {"custom": "kept"}, {"reasoning": "a"}, {"audio": {}},
                {"tool_calls": [{"function": {"arguments": "{}"}}]},
            ]
        ),
    ),
    st.builds(lambda text: frame(chat_chunk(choices=[{"index": 0, "text": text}])), TEXT),
    st.builds(lambda text: frame({"content": text, "x": "y"}), TEXT),
    st.sampled_from(
        [
            frame(chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])),
            frame(chat_chunk(choices=[], usage=USAGE)), frame("[DONE]"), b": ping\n\n",
            frame(chat_chunk(choices=[{"delta": {"content": "x" * 600}}])),
        ]
    ),
)  # fmt: skip
MESSAGES = st.one_of(
    st.builds(lambda index, text: block(index, type="text_delta", text=text), st.integers(0, 1), TEXT),
    st.builds(lambda text: block(0, type="input_json_delta", partial_json=text), TEXT),
    st.builds(lambda text: block(0, type="thinking_delta", thinking=text, container={"id": "c"}), TEXT),
    st.builds(lambda text: block(0, type="new_delta", new=text), TEXT),
    st.sampled_from(
        [
            frame({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            frame({"type": "content_block_stop", "index": 1}),
            frame({"type": "message_stop"}, "message_stop"),
            frame({"type": "message_delta", "delta": {"stop_reason": "x"}, "usage": {"output_tokens": 7}}),
        ]
    ),
)  # fmt: skip


RESPONSES = st.one_of(
    st.builds(
        response,
        st.integers(-1, 99),
        TEXT,
        st.text(max_size=3),
        st.integers(0, 1),
        st.sampled_from(["output_text.delta", "function_call_arguments.delta", "new.delta", "new.done"]),
    ),
    st.sampled_from(
        [
            frame({"type": "response.completed", "response": {"usage": {"output_tokens": 7}}}),
            frame({"type": "response.output_text.done", "output_index": 0, "text": "a" * 99}),
            frame({"type": "response.output_item.done", "item": {"type": "web_search_call"}}),
        ]
    ),
)
APIS = {"openai_chat": CHATS, "anthropic_messages": MESSAGES, "openai_responses": RESPONSES}


@settings(max_examples=examples(300))
@given(st.sampled_from(sorted(APIS)), st.data())
def test_any_stream_is_counted_alike(meter: str, data: st.DataObject) -> None:
    kinds = APIS[meter]
    events: list[bytes] = []
    for event in data.draw(st.lists(kinds, max_size=8)):
        kind, sent = data.draw(st.integers(0, 3)), event
        if kind == 1:
            sent = odd(event, data.draw(st.sampled_from(ODD)), data.draw(st.integers(0, 3)))
        elif kind == 2:
            at = data.draw(st.integers(0, len(event)))
            sent = event[:at] + data.draw(st.binary(max_size=2)) + event[at + data.draw(st.integers(0, 1)) :]
        events += [sent] * data.draw(st.integers(1, 3))
    said = {
        "tokens": data.draw(st.booleans()),
        "strip": data.draw(st.booleans()),
        "keeps": data.draw(st.booleans()),
    }
    judge(meter, events, **said)
    stream, size = b"".join(events), data.draw(st.integers(1, 300))
    judge(meter, [stream[at : at + size] for at in range(0, len(stream), size)], **said)
