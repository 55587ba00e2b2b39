"""No count an upstream may write lowers what a call is charged, or breaks a meter.

What stands in place of input or output and is no number of tokens is replaced by what was counted; what
stands in place of a part of them makes no call cheaper than its honest number would.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.price_book import cost_nano, read_price
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.core.model import INTEGER_MAX
from tests.core.billing.prices import price_row
from tests.core.metering.recorded import JSON, SSE, call, frame
from tests.search import examples

TEXT = "some words that were produced, about twelve tokens of them"
COUNTED = -(-len(TEXT) // 4)
ASKED = 100  # what `call` says its request is worth
# Output is dearer than input, what a cache had is cheaper, sound and pictures cost most.
PRICE = read_price(price_row(
    input="1", cache_read="0.1", cache_write="1.25", cache_write_1h="2", output="5", reasoning="5",
    audio_input="10", audio_output="20", image_input="10", image_output="20",
)).vector  # fmt: skip
ABSURD: tuple[Any, ...] = (
    -1, -5, -(10**30), 10**30, 0.5, 3.7, -0.2, 1e300, True, False, "7", "x", "", [], [5], {}, {"a": 5},
    {"tokens": {"count": 3}},
)  # fmt: skip
absurd = (
    st.sampled_from(ABSURD) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
)
FIELDS = {
    "openai_chat": ("prompt_tokens", "completion_tokens"),
    "openai_responses": ("input_tokens", "output_tokens"),
    "anthropic_messages": ("input_tokens", "output_tokens"),
    "gemini_generate": ("promptTokenCount", "candidatesTokenCount"),
}
PARTS = {
    "openai_chat": [
        "total_tokens", "prompt_tokens_details.cached_tokens", "prompt_tokens_details.cache_write_tokens",
        "prompt_tokens_details.audio_tokens", "completion_tokens_details.reasoning_tokens",
        "completion_tokens_details.audio_tokens", "prompt_cache_hit_tokens", "cached_tokens",
        "num_cached_tokens", "server_tool_use.web_search_requests", "prompt_tokens_details", "new.field",
    ],
    "openai_responses": [
        "total_tokens", "input_tokens_details.cached_tokens", "input_tokens_details.cache_write_tokens",
        "input_tokens_details.cache_write_tokens_details.ttl_12h_tokens",
        "output_tokens_details.reasoning_tokens", "server_side_tool_usage_details.web_search_calls",
    ],
    "anthropic_messages": [
        "cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens", "output_tokens_details.thinking_tokens",
        "server_tool_use.web_search_requests", "service_tier", "speed", "cache_creation",
        "iterations",
    ],
    "gemini_generate": [
        "toolUsePromptTokenCount", "thoughtsTokenCount", "cachedContentTokenCount", "totalTokenCount",
        "promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails", "trafficType",
    ],
}  # fmt: skip


def document(meter: str, usage: Any) -> dict[str, Any]:
    """A whole answer with this text and this use."""
    if meter == "gemini_generate":
        candidate = {"content": {"parts": [{"text": TEXT}]}, "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": usage}
    if meter == "anthropic_messages":
        return {"type": "message", "content": [{"type": "text", "text": TEXT}], "usage": usage}
    if meter == "openai_responses":
        text = [{"type": "output_text", "text": TEXT}]
        return {"status": "completed", "output": [{"type": "message", "content": text}], "usage": usage}
    return {"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}], "usage": usage}


def stream(meter: str, usage: Any) -> list[bytes]:
    """The same as events."""
    if meter == "gemini_generate":
        return [framed(document(meter, usage))]
    if meter == "anthropic_messages":
        begun = {**usage, "output_tokens": 1} if isinstance(usage, dict) else usage
        return [
            framed({"type": "message_start", "message": {"type": "message", "usage": begun}}),
            framed({"type": "content_block_delta", "index": 0, "delta": {"text": TEXT}}),
            framed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}),
            framed({"type": "message_stop"}),
        ]
    if meter == "openai_responses":
        end = document(meter, usage)
        return [
            framed({"type": "response.output_text.delta", "delta": TEXT}),
            framed({"type": "response.completed", "response": end}),
        ]
    return [
        framed({"choices": [{"index": 0, "delta": {"content": TEXT}}]}),
        framed({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        framed({"choices": [], "usage": usage}), frame("[DONE]"),
    ]  # fmt: skip


def framed(event: Any) -> bytes:
    return frame(json.dumps(event))


def fed(meter: str, usage: Any, *, streamed: bool) -> Meter:
    made = make_meter(call(meter, streamed=streamed), 200, SSE if streamed else JSON)
    for part in stream(meter, usage) if streamed else [dumped(document(meter, usage))]:
        made.feed(part)
    made.finish()
    return made


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def cost(made: Meter) -> int:
    return cost_nano(PRICE, made.detail.counts(made.usage()))


def reports(meter: str, place: str, value: Any) -> dict[str, Any]:
    """An honest use of 1,000 and 400, with a value in one more place."""
    read, written = FIELDS[meter]
    usage: dict[str, Any] = {read: 1000, written: 400}
    if meter == "gemini_generate":
        usage["totalTokenCount"] = 1400
    inside, at = usage, place.split(".")
    for step in at[:-1]:
        inside = inside.setdefault(step, {})
    inside[at[-1]] = value
    return usage


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("meter", FIELDS)
@pytest.mark.parametrize("value", ABSURD, ids=repr)
def test_what_is_no_count_is_replaced_by_what_was_counted(meter: str, value: Any, streamed: bool) -> None:
    read, written = FIELDS[meter]
    total = {"totalTokenCount": 1400} if meter == "gemini_generate" else {}
    of_output = fed(meter, {read: 1000, written: value, **total}, streamed=streamed).usage()
    of_input = fed(meter, {read: value, written: 400, **total}, streamed=streamed).usage()
    assert of_output.estimated
    assert of_input.estimated
    assert of_output.input == 1000
    assert of_output.output >= (1 if is_number(value) else COUNTED)
    assert of_input.output >= 400
    assert of_input.input >= (1 if is_number(value) else ASKED)


def is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("meter", "place"), [(meter, place) for meter in PARTS for place in PARTS[meter]])
@settings(max_examples=examples(25))
@given(value=absurd)
def test_no_part_lowers_a_charge(meter: str, place: str, streamed: bool, value: Any) -> None:
    made = fed(meter, reports(meter, place, value), streamed=streamed)
    usage, counts = made.usage(), made.detail.counts(made.usage())
    assert min(counts) >= 0
    assert max(*counts, usage.total) <= INTEGER_MAX
    assert usage.input >= min(1000, ASKED)
    if "cache" in place and is_number(value):
        return  # so much may have been cached, which costs less
    assert usage.input >= 1000 or usage.estimated
    assert usage.output >= 400 or usage.estimated
    if usage.input >= 1000 and usage.output >= 400:
        assert cost(made) >= 1000 * 1000 + 400 * 5000
    if "otal" not in place:
        assert usage.total >= 1400 or usage.estimated


@settings(max_examples=examples(200))
@given(
    st.sampled_from(sorted(FIELDS)),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
            st.sampled_from([*PARTS["gemini_generate"], *PARTS["openai_chat"], "input_tokens", "x"]),
            inner, max_size=5,
        ),
        max_leaves=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_any_report_is_charged_within_bounds(meter: str, usage: Any, streamed: bool) -> None:
    made = fed(meter, usage, streamed=streamed)
    counts = made.detail.counts(made.usage())
    assert min(counts) >= 0
    assert max(counts) <= INTEGER_MAX
    assert made.usage().total > 0 or made.usage().reported
    assert cost(made) >= 0


def test_the_total_of_gemini_is_charged_and_priced() -> None:
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 115}
    made = fed("gemini_generate", usage, streamed=False)
    assert made.detail.counts(made.usage())[:5] == (10, 0, 0, 0, 105)
    assert (made.usage().total, made.usage().estimated) == (115, False)
    assert json.loads(made.detail.unknown) == usage


def test_a_total_on_the_way_may_lack_what_comes() -> None:
    made = make_meter(call("gemini_stream", streamed=True), 200, SSE)
    for usage, end in (
        ({"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 40}, {}),
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 50, "totalTokenCount": 60},
            {"finishReason": "STOP"},
        ),
    ):
        candidate = {"content": {"parts": [{"text": "word"}]}, **end}
        made.feed(framed({"candidates": [candidate], "usageMetadata": usage}))
    made.finish()
    assert made.detail.counts(made.usage())[:5] == (10, 0, 0, 0, 50)
    assert not made.detail.says_more


@pytest.mark.parametrize(
    ("last", "counts"),
    [
        # As a chain of gateways sends it: the prompt early, and the rest alone at the end.
        ({"candidatesTokenCount": 892, "totalTokenCount": 892}, (2_758, 892, 0)),
        ({"candidatesTokenCount": 892, "totalTokenCount": 3_650}, (2_758, 892, 0)),
        ({"candidatesTokenCount": 892, "thoughtsTokenCount": 100, "totalTokenCount": 992}, (2_758, 992, 100)),
        # These candidates have the thoughts in them.
        ({"candidatesTokenCount": 892, "thoughtsTokenCount": 100, "totalTokenCount": 892}, (2_758, 892, 100)),
    ],
)
def test_a_prompt_that_is_told_early_alone_is_in_the_total(
    last: dict[str, int], counts: tuple[int, int, int]
) -> None:
    made = make_meter(call("gemini_stream", streamed=True), 200, SSE)
    early = {"promptTokenCount": 2_758, "totalTokenCount": 2_758}
    for usage, end in ((early, {}), (last, {"finishReason": "STOP"})):
        candidate = {"content": {"parts": [{"text": "word"}]}, **end}
        made.feed(framed({"candidates": [candidate], "usageMetadata": usage}))
    made.finish()
    kinds = made.detail.counts(made.usage())
    assert (kinds[0], kinds[4], kinds[5]) == counts
    assert (made.usage().total, made.usage().estimated) == (counts[0] + counts[1], False)


def test_the_total_of_gemini_is_charged_whatever_its_candidates_are() -> None:
    usage = {
        "promptTokenCount": 10, "candidatesTokenCount": -32, "thoughtsTokenCount": 41, "totalTokenCount": 19,
    }  # fmt: skip
    made = fed("gemini_generate", usage, streamed=False)
    assert made.detail.counts(made.usage())[:6] == (10, 0, 0, 0, 9, 9)
    assert (made.usage().total, made.usage().estimated) == (19, True)


def test_thoughts_inside_the_candidates_are_output_once() -> None:
    usage = {
        "promptTokenCount": 10, "candidatesTokenCount": 50, "thoughtsTokenCount": 40, "totalTokenCount": 60,
    }  # fmt: skip
    made = fed("gemini_generate", usage, streamed=False)
    assert made.detail.counts(made.usage())[4:6] == (50, 40)
    assert made.detail.unknown == b""
