"""What inference engines and servers really report is counted as they mean it, and no report lowers another.

`tests/recorded/engines.txt` has their answers, each with its server, version and date, with the call, and
with what a hand made of both: input, output and cached tokens, and whether they are an estimate.
A cut one has no end. `world.txt` is made by `make world ARGS=--record`: its numbers are the engines' own
counters, of input, output and cached tokens, and how many of the output passed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.call import CallRequest, Learned
from gateway.core.calls.facts import aim_of
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route, UpstreamFacts
from gateway.core.families.openai.reports import _Sum
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.core.model import Family
from gateway.settings.settings import load
from tests.core.metering.recorded import DONE, JSON, SSE, call, chat_chunk, delta, frame
from tests.recorded.answers import FOLDER, METERS
from tests.settings.test_providers import ENVIRON
from tests.settings.test_providers import FOLDER as SHIPPED

_HEAD = re.compile(r"^@@ (.+) \| (.+) \| (\{.+\}) \| (.+)\n", re.MULTILINE)
_COUNTED = re.compile(r"^@@ (.+) \| (.+) \| (.+) \| (\{.+\}) \| (.+)\n", re.MULTILINE)


@dataclass(frozen=True)
class EngineAnswer:
    """One answer of a server, the call that it answers, and its numbers by hand."""

    server: str
    call: CallRequest
    numbers: list[str]
    body: bytes

    def metered(self) -> Meter:
        meter = make_meter(self.call, 200, JSON if self.body.startswith(b"{") else SSE)
        meter.feed(self.body)
        if "cut" not in self.numbers:
            meter.finish()
        return meter


def engine_answers() -> list[EngineAnswer]:
    parts = _HEAD.split((FOLDER / "engines.txt").read_text())[1:]
    return [
        EngineAnswer(server, called(api, json.loads(asked)), numbers.split(), body.encode())
        for server, api, asked, numbers, body in zip(*(iter(parts),) * 5, strict=True)
    ]


def called(api: str, asked: dict[str, Any]) -> CallRequest:
    route = Route(("POST",), "/x", "up", "s", Family(METERS[api].partition("_")[0]), METERS[api])
    return read_call(route, asked, json.dumps(asked).encode())


def counted_answers() -> list[EngineAnswer]:
    """Those that engines counted themselves, of calls that have the facts of their shipped file."""
    found = []
    parts = _COUNTED.split((FOLDER / "world.txt").read_text())[1:]
    for server, file, api, asked, counts, body in zip(*(iter(parts),) * 6, strict=True):
        made = called(api, json.loads(asked))
        [upstream] = (one for one in load(ENVIRON, SHIPPED / f"{file}.yaml").upstreams if one.name == file)
        made.take_aim(aim_of(made, (upstream.facts,)))
        found.append(EngineAnswer(f"{server} | {asked[:99]}", made, counts.split(), body.encode()))
    return found


@pytest.mark.parametrize("answer", counted_answers(), ids=lambda answer: answer.server)
def test_a_count_is_the_engine_s_own_or_is_flagged_and_no_less(answer: EngineAnswer) -> None:
    usage, (read, written, cached, passed) = answer.metered().usage(), map(int, answer.numbers)
    if usage.estimated:
        assert answer.call.spec.choices > 1
        assert usage.output >= passed
    else:
        assert (usage.input, usage.output, usage.cached) == (read, written, cached)


def test_choices_that_end_by_themselves_are_as_dense_as_the_densest_known_one() -> None:
    """One is reported of three: the second reached its maximum in 10 letters, so 5 of them are 10 tokens.

    Another four may be its end and shorter words.
    """
    made = called("completions", {"model": "m", "prompt": "x", "n": 3, "max_tokens": 20})
    made.take_aim(aim_of(made, (UpstreamFacts(choices="each"),)))
    ends = [("a" * 12, "stop"), ("b" * 10, "length"), ("c" * 5, "stop")]
    said = [{"index": at, "text": text, "finish_reason": end} for at, (text, end) in enumerate(ends)]
    meter = make_meter(made, 200, JSON)
    meter.feed(json.dumps({"choices": said, "usage": {"prompt_tokens": 1, "completion_tokens": 6}}).encode())
    meter.finish()
    assert (meter.usage().output, meter.usage().estimated) == (6 + 20 + 10 + 4, True)


def test_choices_that_end_by_themselves_are_as_dense_as_the_model_s_answers_were() -> None:
    """Portkey 1.15.2 before llama.cpp, three prompts: the one that is reported has the longest words.

    Two bytes for a token are learned of the model, so 12 letters are six tokens, and three are its margin.
    """
    made = called("completions", {"model": "m", "prompt": ["x", "y"], "max_tokens": 20})
    made.take_aim(aim_of(made, (UpstreamFacts(choices="each"),)))
    made.learned = Learned(2.0)
    said = [{"index": at, "text": "a" * size, "finish_reason": "stop"} for at, size in enumerate((40, 12))]
    meter = make_meter(made, 200, JSON)
    meter.feed(json.dumps({"choices": said, "usage": {"prompt_tokens": 1, "completion_tokens": 4}}).encode())
    meter.finish()
    assert (meter.usage().output, meter.usage().estimated) == (4 + 6 + 3, True)


@pytest.mark.parametrize(("choices", "output", "estimated"), [("sum", 6, False), ("each", 24, True)])
def test_an_upstream_says_that_its_reports_are_about_each_choice(
    choices: str, output: int, estimated: bool
) -> None:
    """LiteLLM 1.109.0 before llama.cpp: nothing in its answer shows that it is of one of three choices."""
    made = called("chat", {"model": "m", "messages": [], "n": 3, "max_tokens": 9})
    made.take_aim(aim_of(made, (UpstreamFacts(choices=choices),)))
    said = [
        {"index": number, "finish_reason": "stop", "message": {"content": "one two"}} for number in range(3)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}
    meter = make_meter(made, 200, JSON)
    meter.feed(json.dumps({"choices": said, "usage": usage}).encode())
    meter.finish()
    found = meter.usage()
    assert (found.input, found.output, found.estimated) == (10, output, estimated)


@pytest.mark.parametrize("answer", engine_answers(), ids=lambda answer: answer.server)
def test_an_engine_s_answer_is_counted_as_it_means_it(answer: EngineAnswer) -> None:
    meter = answer.metered()
    usage, (read, written, cached, estimated, *more) = meter.usage(), answer.numbers
    assert (usage.input, usage.output, usage.cached) == (int(read), int(written), int(cached))
    assert usage.estimated == (estimated == "yes")
    assert meter.detail.cache_write == int(next((one[6:] for one in more if one.startswith("write=")), 0))


# As (usage, input, output, cached, whether the report is kept).
REPORTS: list[tuple[dict[str, Any], int, int, int, bool]] = [
    ({"prompt_tokens": 100, "completion_tokens": 20}, 100, 20, 0, False),
    ({"input_tokens": 100, "output_tokens": 20}, 100, 20, 0, False),
    ({"input_tokens": 0, "prompt_tokens": 100, "output_tokens": 20, "completion_tokens": 0},
     100, 20, 0, False),
    ({"completion_tokens": 20, "total_tokens": 120}, 100, 20, 0, False),
    # Parts that are more than the whole stand beside it, and so does what the total explains.
    ({"prompt_tokens": 56_322, "completion_tokens": 87, "total_tokens": 129_369,
      "prompt_tokens_details": {"cached_tokens": 72_960}}, 129_282, 87, 72_960, False),
    ({"prompt_tokens": 86, "completion_tokens": 10, "cache_read_input_tokens": 5_000,
      "cache_creation_input_tokens": 2_000}, 7_086, 10, 5_000, False),
    ({"prompt_tokens": 86, "completion_tokens": 10, "total_tokens": 146, "cached_tokens": 50},
     136, 10, 50, False),
    ({"prompt_tokens": 86, "completion_tokens": 10, "total_tokens": 96, "cached_tokens": 50},
     86, 10, 50, False),
    ({"prompt_tokens": 20, "completion_tokens": 9, "reasoning_tokens": 4}, 20, 9, 0, False),
    ({"prompt_tokens": 20, "completion_tokens": 9, "reasoning_tokens": 100}, 20, 109, 0, False),
    ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 33,
      "completion_tokens_details": {"reasoning_tokens": 4}}, 20, 13, 0, False),
    # What a total has beyond its parts is output; one that has less takes nothing off.
    ({"prompt_tokens": 20, "completion_tokens": 424, "total_tokens": 1_016}, 20, 996, 0, True),
    ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 5}, 20, 9, 0, True),
]  # fmt: skip


@pytest.mark.parametrize("api", ["openai_chat", "openai_responses"])
@pytest.mark.parametrize(("usage", "read", "written", "cached", "kept"), REPORTS)
def test_a_report_of_openai_s_shape_means_one_thing_in_both_readers(  # noqa: PLR0917  # a table's columns
    api: str, usage: dict[str, Any], read: int, written: int, cached: int, kept: bool
) -> None:
    made = make_meter(call(api, streamed=False), 200, JSON)
    made.whole(json.dumps({"usage": usage}).encode())
    said = made.usage()
    assert (said.input, said.output, said.cached, said.estimated) == (read, written, cached, False)
    assert bool(made.detail.unknown) == kept


def test_a_total_makes_no_output_beyond_what_the_call_states() -> None:
    asked = call("openai_chat", streamed=False)
    asked.output_max = 100
    made = make_meter(asked, 200, JSON)
    made.whole(b'{"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":1000}}')
    assert (made.usage().output, made.usage().estimated) == (100, True)


TEXT = "word " * 200
# An answer of each API whose report has only these two numbers, and its events up to the report.
ZEROS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "openai_chat": (
        {"choices": [{"message": {"content": TEXT}}], "usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        [delta(TEXT), chat_chunk(choices=[], usage={"prompt_tokens": 0, "completion_tokens": 0})],
    ),
    "openai_responses": (
        {"output": [{"content": [{"text": TEXT}]}], "usage": {"input_tokens": 0, "output_tokens": 0}},
        [{"type": "response.output_text.delta", "delta": TEXT},
         {"type": "response.completed", "response": {"usage": {"input_tokens": 0, "output_tokens": 0}}}],
    ),
    "anthropic_messages": (
        {"content": [{"text": TEXT}], "usage": {"input_tokens": 0, "output_tokens": 0}},
        [{"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}},
         {"type": "content_block_delta", "delta": {"text": TEXT}}],
    ),
    "gemini_stream": (
        {"candidates": [{"content": {"parts": [{"text": TEXT}]}}],
         "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}},
        [{"candidates": [{"content": {"parts": [{"text": TEXT}]}}],
          "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("api", ZEROS)
@pytest.mark.parametrize("left", [False, True])
def test_zeros_for_a_prompt_and_for_a_text_are_no_report(api: str, left: bool) -> None:
    whole, events = ZEROS[api]
    for streamed in (False, True):
        asked = call(api, streamed=streamed)
        asked.reports = not streamed  # a stream of these events is no whole answer of every API
        made = make_meter(asked, 200, SSE if streamed else JSON)
        for part in [frame(event) for event in events] if streamed else [json.dumps(whole).encode()]:
            made.feed(part)
        if not (left and streamed):
            made.finish()
        usage = made.usage()
        assert (usage.input, usage.output, usage.estimated, usage.reported) == (100, 250, True, False)
        assert made.detail.contradicted


def test_what_reads_nothing_and_says_so_is_believed() -> None:
    failed = make_meter(call("openai_responses"), 200, SSE)
    failed.feed(
        frame({"type": "response.failed", "response": {"status": "failed", "usage": {"input_tokens": 0}}})
    )
    refused = make_meter(call("openai_chat", streamed=False), 429, JSON)
    refused.feed(b'{"usage":{"prompt_tokens":0,"completion_tokens":0}}')
    for made in (failed, refused):
        made.finish()
        assert (made.usage().total, made.detail.contradicted) == (0, False)


# --- several reports ----------------------------------------------------------------------

COUNTS = st.none() | st.integers(0, 5_000)
SAID: dict[str, Any] = {
    "openai_chat": lambda read, written, cached: chat_chunk(
        choices=[], usage={"prompt_tokens": read, "completion_tokens": written, "cached_tokens": cached}
    ),
    "openai_responses": lambda read, written, cached: {
        "response": {"usage": {"input_tokens": read, "output_tokens": written, "cached_tokens": cached}}
    },
    "anthropic_messages": lambda read, written, cached: {
        "usage": {"input_tokens": read, "output_tokens": written, "cache_read_input_tokens": cached}
    },
    "gemini_stream": lambda read, written, cached: {
        "usageMetadata": {
            "promptTokenCount": read, "candidatesTokenCount": written, "cachedContentTokenCount": cached,
            "totalTokenCount": None if read is None and written is None else (read or 0) + (written or 0),
        }
    },
}  # fmt: skip


@given(st.sampled_from(sorted(SAID)), st.lists(st.tuples(COUNTS, COUNTS, COUNTS), max_size=6))
def test_no_report_lowers_a_number_of_an_earlier_one(
    api: str, reports: list[tuple[int | None, int | None, int | None]]
) -> None:
    made = make_meter(call(api), 200, SSE)
    before = (0, 0, 0)
    for read, written, cached in reports:
        made.feed(frame(SAID[api](read, written, cached)))
        after = made.input, made.output, made.total
        assert all(later >= earlier for earlier, later in zip(before, after, strict=True))
        assert made.output >= (written or 0)
        assert made.input >= (read or 0)
        before = after


@pytest.mark.parametrize("api", sorted(SAID))
def test_zeros_behind_a_text_are_about_none_of_it(api: str) -> None:
    """What was told before the text does not make them so."""
    made = make_meter(call(api), 200, SSE)
    made.feed(frame(SAID[api](9, 1, 0)))
    made.saw(TEXT)
    made.content_events += 1
    made.feed(frame(SAID[api](0, 0, 0)))
    made.finish()
    assert (made.usage().output, made.usage().estimated) == (250, True)


def test_a_prompt_that_gemini_told_early_alone_is_kept() -> None:
    made = make_meter(call("gemini_stream"), 200, SSE)
    early, late = {"promptTokenCount": 5_000, "totalTokenCount": 5_000}, {"candidatesTokenCount": 50}
    for usage in (early, late):
        made.feed(frame({"candidates": [{"content": {}}], "usageMetadata": usage}))
    made.finish()
    assert (made.usage().input, made.usage().output, made.usage().total) == (5_000, 50, 5_050)


# Where a server of several choices reports: in each event, in each choice's last one, or behind that.
EACH, LAST, BEHIND = "each", "last", "behind"


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5), st.sampled_from([1, 2]),
    st.sampled_from([EACH, LAST, BEHIND]), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_choices_of_any_order_add_up(  # noqa: PLR0917  # what a stream is made of
    lengths: list[int], prompts: int, place: str, in_all: bool, cut: bool, data: st.DataObject
) -> None:
    lengths *= prompts
    pieces = data.draw(st.permutations([index for index, size in enumerate(lengths) for _ in range(size)]))
    asked = call("openai_chat", choices=len(lengths), strip=True)
    asked.spec, each = asked.spec._replace(prompts=prompts), len(lengths) // prompts
    made, written = make_meter(asked, 200, SSE), [0] * len(lengths)
    passed = b""
    cut_at = data.draw(st.integers(1, len(pieces))) if cut else len(pieces)
    for index in pieces[:cut_at]:
        written[index] += 1
        usage = {"prompt_tokens": 10 * (1 + index // each), "completion_tokens": written[index]}
        is_last = written[index] == lengths[index]
        passed += made.feed(frame(delta("a", index) | ({"usage": usage} if place == EACH else {})))
        if is_last:
            end = chat_chunk(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}])
            passed += made.feed(frame(end | ({"usage": usage} if place == LAST else {})))
            if place == BEHIND:
                passed += made.feed(frame(chat_chunk(choices=[], usage=usage, timings={"n": index})))
    if not cut:
        if in_all and place != BEHIND:
            told = {"prompt_tokens": 10 * sum(range(prompts + 1)), "completion_tokens": sum(lengths)}
            passed += made.feed(frame(chat_chunk(choices=[], usage=told)))
        passed += made.feed(DONE) + made.finish()
    usage_ = made.usage()
    assert usage_.output == sum(written)
    if not cut:
        assert (usage_.input, usage_.estimated) == (10 * sum(range(prompts + 1)), False)
        assert [
            f'"timings":{{"n":{n}}}' in passed.decode().replace(" ", "") for n in range(len(lengths))
        ] == [place == BEHIND] * len(lengths)


def test_what_a_left_out_usage_frame_says_beside_its_use_is_passed() -> None:
    end = chat_chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    said = chat_chunk(
        choices=[], usage={"prompt_tokens": 1, "completion_tokens": 1}, system_fingerprint="fp_7"
    )
    made = make_meter(call("openai_chat", strip=True), 200, SSE)
    passed = made.feed(b"".join(map(frame, (delta("a"), end, said))) + DONE) + made.finish()
    last = json.loads(passed.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert (last["choices"], last["system_fingerprint"]) == (end["choices"], "fp_7")
    assert b"prompt_tokens" not in passed


@given(st.integers(2, 4), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_hostile_reports_of_choices_are_within_what_passed_and_what_was_stated(
    choices: int, most: int, ends: bool, drawn: Any
) -> None:
    asked = call("openai_chat", choices=choices)
    asked.output_max, passed = most, [0] * choices
    made = make_meter(asked, 200, SSE)
    for _ in range(drawn.randint(0, 20)):
        index = drawn.randrange(choices)
        written = drawn.choice([passed[index], sum(passed), 0, drawn.randint(0, most), None])
        total = drawn.choice([None, 0, 10**9])
        usage = {"usage": {"prompt_tokens": 10, "completion_tokens": written, "total_tokens": total}}
        event = chat_chunk(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}])
        kind = drawn.choice(["text", "text", "end", "report"])
        if kind == "text" and passed[index] < most:
            passed[index] += 1
            event = delta("abc ", index)
        elif kind == "report":
            event["choices"] = []
        made.feed(frame(event | drawn.choice([usage, {}])))
    if ends:
        made.finish()
    assert sum(passed) <= made.usage().output <= most * choices


def test_reports_of_choices_add_up_and_a_lower_one_of_a_choice_takes_nothing_back() -> None:
    found = _Sum()
    for index, numbers in ((0, (10, 5, 2, 3)), (1, (10, 7, 2, 0)), (0, (10, 4, 2, 1)), (1, (10, 8, 2, 4))):
        found.put(index, 0, numbers)
    assert (found.read, found.written, found.cached, found.reasoning) == (10, 13, 2, 7)
