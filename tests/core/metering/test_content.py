"""Content that no API documents yet is charged like text, and what was once reported is not taken back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.core.metering.report import content_bytes
from tests.core.meter.recorded import SSE, call, chat_chunk, frame

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


def used(tokens: int, output: int) -> dict[str, int]:
    return {"input_tokens": tokens, "output_tokens": output}


def test_a_report_that_is_not_the_last_lowers_no_earlier_one() -> None:
    begun = {"type": "message_start", "message": {"usage": used(5_000, 1)}}
    again = {"type": "message_start", "message": {"usage": used(50, 1)}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": used(0, 50)}
    for events in ([begun, last], [begun, again, last], [again, begun, last]):
        usage = read("anthropic_messages", *events, {"type": "message_stop"}).usage()
        assert (usage.input, usage.output, usage.total) == (5_000, 50, 5_050)


def test_content_behind_a_report_shows_that_it_was_not_the_last() -> None:
    early = {
        **choice(content="a"),
        "usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
    }
    made = read("openai_chat", early, *[choice(content="word ")] * 300)
    made.finish()
    assert made.usage().input == 100
    assert made.usage().output >= 300
