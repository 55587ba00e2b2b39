"""A hold is what the call states, else what was learned, and memory is bounded."""

from __future__ import annotations

import base64
import json
import random
from typing import Any, Final
from uuid import UUID

import pytest

from gateway.core.calls.call import BLOB_TOKENS, Body, CallRequest, CallSpec, Media, names_in
from gateway.core.calls.estimate import (
    CEILING,
    LEARNED_BYTES,
    MODEL_USES,
    OUTPUT_TOKENS_FIRST,
    Estimate,
    Estimator,
    limit_models,
)
from gateway.core.calls.facts import aim_of
from gateway.core.calls.parsing import measure_media, read_call
from gateway.core.calls.routes import ModelTarget, Route
from gateway.core.families.controlled import elements, models_beside
from gateway.core.families.registry import OF_METER
from gateway.core.model import INTEGER_MAX, Family, TokenUsage
from gateway.errors import InvalidRequest
from tests.core.calls.test_forms import FILE, form
from tests.core.calls.test_recordings import flac, wav


def call(
    model: str = "m", output_max: int | None = None, choices: int = 1, input_bytes: int = 300
) -> CallRequest:
    return CallRequest(
        "openai_chat", Family("openai"), Body(), CallSpec(model, choices=choices), output_max, input_bytes
    )


def used(tokens_in: int, tokens_out: int) -> TokenUsage:
    return TokenUsage(tokens_in, tokens_out, 0, 0, tokens_in + tokens_out, 1, True)


def test_a_stated_maximum_is_the_hold() -> None:
    """Its most is that and the input at two bytes a token, and it may not be cut."""
    assert Estimator().hold(call(output_max=50), 1, "chat") == Estimate(150, 200, 0, 150, 1)
    assert Estimator().hold(call(output_max=50, choices=4), 1, "chat") == Estimate(300, 350, 0, 150, 4)
    assert Estimator().hold(call(output_max=0), 1, "embeddings") == Estimate(100, 150, 0, 150, 1)


def test_what_is_likely_is_less_than_a_large_maximum_and_is_learned_with_the_first_answers() -> None:
    """The most stays what the call states; calls that are streamed teach nothing of those that are not."""
    estimator, agent = Estimator(), call(output_max=64_000)
    found = estimator.hold(agent, 1, "chat")
    assert (found.need, found.ceiling, found.least) == (100 + OUTPUT_TOKENS_FIRST, 150 + 64_000, 0)
    needs = []
    for _ in range(70):
        estimator.learn(agent, 1, "chat", used(100, 9_000))
        needs.append(estimator.hold(agent, 1, "chat").need - 100)
    assert needs[0] > 5_000
    assert needs == sorted(needs)
    assert needs[-1] == 9_000
    assert estimator.hold(call(output_max=2_000), 1, "chat").need == 100 + 2_000
    streamed = call(output_max=64_000)
    streamed.spec = streamed.spec._replace(streamed=True)
    assert estimator.hold(streamed, 1, "chat") == found


@pytest.mark.parametrize(("quantile", "level"), [(0.5, 2_000), (0.95, 5_000), (0.99, 9_000)])
def test_the_quantile_is_that_of_the_last_64_answers(quantile: float, level: int) -> None:
    estimator = Estimator(quantile=quantile)
    for outputs in ([40_000] * 64, [2_000] * 58 + [5_000] * 4 + [9_000] * 2):
        for output in outputs:
            estimator.learn(call(), 1, "chat", used(100, output))
    assert estimator.hold(call(), 1, "chat").need == 100 + level


def test_what_input_costs_is_learned_within_bounds() -> None:
    """Caches make it cheaper, but nobody teaches that it costs next to nothing."""
    estimator = Estimator()
    for taught, level in ((0.5, 0.5), (0.01, 0.125), (1.25, 1.25), (90.0, 4.0)):
        for _ in range(64):
            estimator.learn(call(), 1, "chat", used(100, 1), taught)
        assert estimator.hold(call(), 1, "chat").input_share == level
    assert estimator.hold(call(), 2, "chat").input_share == 1


def test_a_key_whose_prompts_lie_in_caches_learns_so_beside_one_whose_do_not() -> None:
    """A key without calls of its own begins with what those of its organization cost."""
    estimator = Estimator()
    for _ in range(64):
        for key_id, share in ((1, 0.2), (2, 1.0)):
            estimator.learn(call(), 1, "chat", used(100, 1), share, key_id=key_id)
    shares = [estimator.hold(call(), 1, "chat", key_id).input_share for key_id in (1, 2, 3)]
    assert shares == [0.2, 1.0, 1.0]
    assert estimator.hold(call("other"), 1, "chat", 1).input_share == 1.0


def test_a_worker_that_knows_nothing_begins_with_the_lessons_of_another() -> None:
    teacher, pupil, told = Estimator(), Estimator(), list[int]()
    teacher.learned = lambda: told.append(len(told))
    for _ in range(64):
        teacher.learn(call(), 1, "chat", used(200, 3_000), 0.2, key_id=7)
    lessons = teacher.take_lessons()
    assert len(lessons) == 1
    assert 1 < len(told) < 20
    pupil.learn(call("known"), 1, "chat", used(100, 9_000), 1.0, key_id=7)
    before = pupil.hold(call("known"), 1, "chat", 7)
    for lesson in lessons:
        pupil.take_over(lesson)
        pupil.take_over((1, 7, "chat", "known", False, 2_000.0, 0.5, 0.3, 0.3))
    assert pupil.hold(call(), 1, "chat", 7).need == teacher.hold(call(), 1, "chat", 7).need == 200 + 3_000
    assert pupil.hold(call(), 1, "chat", 7).input_share == pytest.approx(0.2)
    assert pupil.hold(call("known"), 1, "chat", 7) == before
    assert not teacher.take_lessons()


def test_a_lesson_goes_no_further_than_what_is_learned() -> None:
    pupil = Estimator({"m": 5_000})
    pupil.take_over((1, 7, "chat", "m", False, 1e9, 50.0, 0.0, 90.0))
    pupil.take_over((1, 8, "chat", "m", False, 0.0, 0.0, 0.0, 0.0))
    assert pupil.hold(call(), 1, "chat", 7).need == 300 + 5_000
    shares = [pupil.hold(call(), 1, "chat", key_id).input_share for key_id in (7, 8, 9)]
    assert shares == [4.0, 0.125, 0.125]


def test_without_one_the_ceiling_of_the_model_is_the_most() -> None:
    assert Estimator().hold(call(), 1, "chat") == Estimate(
        100 + OUTPUT_TOKENS_FIRST,
        150 + CEILING,
        151,
        150,
        1,
    )
    assert Estimator().hold(call("gpt-4o-mini-2024"), 1, "chat").ceiling == 150 + 16_384
    assert Estimator().hold(call("gpt-4-0613", choices=2), 1, "chat").ceiling == 150 + 2 * 8_192
    assert Estimator({"m": 10}).hold(call(), 1, "chat") == Estimate(110, 160, 151, 150, 1)


ADVISOR: dict[str, Any] = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}
OPUS = 128_000  # the most that one answer of it has


def asked(meter: str = "anthropic_messages", **fields: Any) -> CallRequest:
    """A call of 300 bytes, whatever its body says."""
    document = {"model": "claude-haiku-4-5", **fields}
    made = CallRequest(
        meter, Family(meter.partition("_")[0]), Body(document=document), CallSpec("claude-haiku-4-5")
    )
    made.body.tools, made.body.plugins = elements(document, "tools"), elements(document, "plugins")
    made.models_beside, made.output_max = models_beside(document), fields.get("max_tokens")
    made.input_bytes = 300
    return made


@pytest.mark.parametrize(
    ("fields", "readings", "answers", "beside"),
    [
        ({}, 1, 1, 0),
        ({"tools": [{"type": "custom", "name": "advisor", "input_schema": {"model": "x"}}]}, 1, 1, 0),
        ({"tools": [ADVISOR | {"max_uses": 3}]}, 4, 1, 3 * OPUS),
        ({"tools": [ADVISOR | {"max_uses": 3, "max_tokens": 2_048}]}, 4, 1, 3 * 2_048),
        ({"tools": [ADVISOR | {"max_uses": 3}, ADVISOR | {"max_uses": 2}]}, 6, 1, 5 * OPUS),
        ({"tools": [ADVISOR]}, 1 + MODEL_USES, 1, MODEL_USES * OPUS),
        *(
            (
                {"tools": [ADVISOR | {"max_uses": odd, "max_tokens": odd}]},
                1 + MODEL_USES,
                1,
                MODEL_USES * OPUS,
            )
            for odd in (0, -1, True, "1", None)
        ),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, 2, 2, 0),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, 1, 1, 0),
        ({"context_management": None}, 1, 1, 0),
        ({"tools": [{"type": "image_generation", "model": "gpt-image-1"}]}, 1, 1, 0),
        ({"plugins": [{"id": "fusion", "models": ["claude-opus-4-8"]}]}, 2, 1, OPUS),
    ],
)
@pytest.mark.parametrize("stated", [100, None])
def test_what_answers_within_a_call_is_in_its_most(
    fields: dict[str, Any], readings: int, answers: int, beside: int, stated: int | None
) -> None:
    """Each reads the input again. An advisor writes up to its own maximum, a compaction up to the call's.

    Tools have 589 tokens of a prompt of this model, 804 of the others, and each that has no documented number 7,600.
    """
    tools = [tool["type"] for tool in fields.get("tools", [])]
    of_others = [kind for kind in tools if kind != "custom"]
    size = 150 + (804 if of_others else 589 if tools else 0) + 7_600 * len(of_others)
    one = asked(**fields, **({} if stated is None else {"max_tokens": stated}))
    found = Estimator().hold(one, 1, "messages")
    assert (found.read, found.beside) == (size * readings, beside)
    each = 64_000 if stated is None else stated
    assert found.ceiling == size * readings + beside + each * answers
    assert found.bound(found.ceiling, one) == each
    assert stated is not None or found.bound(found.least, one) == 1
    assert one.input_ceiling == size


def test_other_apis_have_no_field_for_the_uses_of_a_model() -> None:
    one = asked("openai_chat", tools=[{"type": "advisor_x", "model": "claude-opus-4-8", "max_uses": 1}])
    assert Estimator().hold(one, 1, "chat").beside == MODEL_USES * OPUS
    limit_models(one)
    assert not one.body.changed
    compact = asked("openai_responses", context_management=[{"type": "compaction", "compact_threshold": 9}])
    assert Estimator().hold(compact, 1, "responses").read == 300


@pytest.mark.parametrize("wrong", [{"edits": {"type": "compact_20260112"}}, [["x"]], "compact"])
def test_edits_of_a_context_are_a_list(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^context_management"):
        Estimator().hold(asked(context_management=wrong), 1, "messages")


@pytest.mark.parametrize(
    ("stated", "sent"), [({}, MODEL_USES), ({"max_uses": 0}, MODEL_USES), ({"max_uses": 9}, 9)]
)
def test_a_bound_call_says_how_often_its_advisor_may_answer(stated: dict[str, int], sent: int) -> None:
    one = asked(tools=[ADVISOR | stated, {"name": "f", "input_schema": {}}])
    limit_models(one)
    assert one.body.document is not None
    assert one.body.document["tools"] == [ADVISOR | {"max_uses": sent}, {"name": "f", "input_schema": {}}]


def test_a_call_without_tokens_needs_none() -> None:
    assert Estimator().hold(CallRequest("generic", Family("generic"), Body()), 1, "x") == Estimate(0, 0, 0, 0)


def test_absurd_maxima_stay_exact_in_lua() -> None:
    found = Estimator().hold(call(output_max=2**53, choices=128), 1, "chat")
    assert (found.need, found.ceiling) == (100 + 128 * OUTPUT_TOKENS_FIRST, INTEGER_MAX)


def test_the_output_hold_settles_at_a_high_quantile() -> None:
    estimator = Estimator()
    samples = random.Random(7)
    outputs = [int(samples.gammavariate(2, 2_000)) + 1 for _ in range(5000)]
    covered = 0
    for output in outputs:
        need = estimator.hold(call(), 1, "chat").need
        covered += need >= 100 + output
        estimator.learn(call(), 1, "chat", used(100, output))
    assert 0.85 < covered / len(outputs) < 0.999
    assert estimator.hold(call(), 1, "chat").need < 100 + 15_000


def test_input_tokens_per_byte_are_learned() -> None:
    estimator = Estimator()
    for _ in range(300):
        estimator.learn(call(), 1, "chat", used(200, 5))
    need = estimator.hold(call(output_max=0), 1, "chat").need
    assert 200 <= need <= 210
    for _ in range(4):  # of 64 more than one in twenty
        estimator.learn(call(), 1, "chat", used(300, 5))
    assert estimator.hold(call(output_max=0), 1, "chat").need > 240


@pytest.mark.parametrize("tokens", [(1, 1), (30, 10), (3, 5_000)])
def test_what_was_learned_makes_nothing_cheaper_than_first_values(tokens: tuple[int, int]) -> None:
    """Who makes calls of blanks, 16 bytes a token, or of one word, neither pays nor holds less afterwards."""
    estimator, first = Estimator({"small": 100}), call(output_max=0)
    before = estimator.hold(first, 1, "chat")
    unstated, small = estimator.hold(call(), 1, "chat").need, estimator.hold(call("small"), 1, "chat").need
    for _ in range(300):
        answered = call()
        answered.text_bytes = 16 * tokens[1]
        estimator.learn(answered, 1, "chat", used(*tokens))
    after = call(output_max=0)
    assert estimator.hold(after, 1, "chat") == before
    assert after.input_estimate == first.input_estimate
    assert after.learned._replace(entry=None) == first.learned._replace(entry=None)
    assert estimator.hold(call(), 1, "chat").need >= unstated == 100 + OUTPUT_TOKENS_FIRST
    for _ in range(300):
        estimator.learn(call("small"), 1, "chat", used(1, 1))
    assert estimator.hold(call("small"), 1, "chat").need == small == 200


def test_the_most_of_the_input_has_a_token_for_each_rare_byte() -> None:
    asked = call(output_max=0)
    asked.body.rare_bytes = 90
    assert Estimator().hold(asked, 1, "chat").ceiling == (300 + 90) // 2


def test_text_per_token_is_learned_for_counting() -> None:
    estimator = Estimator()
    for _ in range(200):
        answered = call()
        answered.text_bytes = 200
        estimator.learn(answered, 1, "chat", used(100, 100))
    asked = call()
    estimator.hold(asked, 1, "chat")
    assert asked.learned.output_bytes_per_token == pytest.approx(2.0, abs=0.1)


def test_input_that_nobody_reports_is_counted_by_the_mean_of_what_was() -> None:
    estimator = Estimator()
    for tokens in (110, 130, 120):
        estimator.learn(call(), 1, "chat", used(tokens, 5))
    asked = call()
    assert estimator.hold(asked, 1, "chat").need > asked.input_estimate == 120


@pytest.mark.parametrize(
    "usage", [TokenUsage(5, 5000, total=5005, estimated=True, reported=True), TokenUsage(5, 5000)]
)
def test_what_was_counted_or_not_reported_teaches_nothing(usage: TokenUsage) -> None:
    estimator = Estimator()
    before = estimator.hold(call(), 1, "chat")
    for _ in range(50):
        estimator.learn(call(), 1, "chat", usage)
    assert estimator.hold(call(), 1, "chat") == before


def taught(estimator: Estimator, model: str, organization_id: int = 1) -> None:
    for _ in range(10):
        estimator.learn(call(model), organization_id, "chat", used(100, 5_000))


def test_services_and_models_are_learned_apart_and_forgotten_in_order() -> None:
    estimator = Estimator(share=2)
    first = estimator.hold(call("a"), 1, "chat")
    taught(estimator, "a")
    learned = estimator.hold(call("a"), 1, "chat")
    assert learned.need > first.need
    assert estimator.hold(call("a"), 1, "other") == first
    taught(estimator, "b")
    assert estimator.hold(call("a"), 1, "chat") == learned
    taught(estimator, "c")
    taught(estimator, "d")
    assert estimator.hold(call("a"), 1, "chat") == first


@pytest.mark.parametrize("answered", [None, TokenUsage(0, 0, reported=True), used(100, 1)])
def test_a_flood_of_names_displaces_nobody_elses(answered: TokenUsage | None) -> None:
    """Nor their own organization's, as long as no answer taught anything."""
    estimator = Estimator(bytes_max=100 * LEARNED_BYTES, share=20)
    for organization_id in (1, 2):
        taught(estimator, "a", organization_id)
    known = estimator.hold(call("a"), 1, "chat").need
    for number in range(1_000):
        asked = call(f"made-up-{number}")
        estimator.hold(asked, 2, "chat")
        if answered is not None:
            estimator.learn(asked, 2, "chat", answered)
    assert estimator.hold(call("a"), 1, "chat").need == known
    own = estimator.hold(call("a"), 2, "chat").need
    assert (own == known) == (answered is None or not answered.total)


def test_of_all_organizations_no_more_is_kept_than_the_bound() -> None:
    estimator = Estimator(bytes_max=100 * LEARNED_BYTES, share=20)
    for organization_id in range(50):
        for number in range(30):
            estimator.learn(call(f"{number}"), organization_id, "chat", used(100, 1))
        assert estimator.known.held <= 100 * LEARNED_BYTES
    assert len(estimator.known) == 5


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("gpt-4o", 1_600), ("gpt-4o-mini-2024", 48_169), ("gpt-4.1-nano", 3_779),
        ("ft:gpt-4o-mini:me", 48_169),
        ("claude-3-opus", 1_600), ("claude-opus-4-6", 1_600), ("claude-opus-4-7", 4_784), ("claude-x", 4_784),
        ("us.anthropic.claude-opus-4-8-v1:0", 4_784), ("google/gemini-3-pro-preview", 2_304),
    ],
)  # fmt: skip
def test_the_most_of_an_image_is_what_its_model_takes_at_most(model: str, most: int) -> None:
    asked = call(model, output_max=0)
    plain = Estimator().hold(asked, 1, "chat")
    asked.media = Media(tokens=BLOB_TOKENS, count=1)
    asked.body.names = names_in({"image_url": {"url": "https://x.example/a.png"}})
    found = Estimator().hold(asked, 1, "chat")
    assert found.ceiling - plain.ceiling >= 2 * most
    assert found.need - plain.need == BLOB_TOKENS


_PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/ab12cd34ef56"


@pytest.mark.parametrize(
    ("family", "model", "most"),
    [
        # Known: what their makers document.
        *[("openai", model, 1_600) for model in (
            "gpt-3.5-turbo", "gpt-4-0613", "gpt-4o", "gpt-4o-2024-11-20", "gpt-4.1", "gpt-5", "gpt-5-2025-08-07",
            "gpt-5-pro", "gpt-5.1", "gpt-5.2-codex", "gpt-5.3", "o1", "o3-2025-04-16", "o4", "chatgpt-4o-latest",
            "gpt-realtime", "meta-llama/Llama-4-Scout",
            "google/gemma-3-27b-it",
        )],
        ("openai", "gpt-5.4-mini", 10_000), ("openai", "gpt-6", 12_000),
        ("anthropic", "claude-opus-4-20250514", 1_600), ("bedrock", "us.amazon.nova-pro-v1:0", 1_600),
        # Of a generation to come: the newest known one's.
        ("openai", "gpt-5.7", 12_000), ("openai", "gpt-5.10", 12_000), ("openai", "gpt-9", 12_000),
        ("openai", "gpt-54", 12_000),
        # Unknown: the dearest of the API's.
        ("openai", "azure-gpt-54", 48_169), ("openai", "my-deployment", 48_169),
        ("anthropic", "opus-latest", 4_784), ("anthropic", "claude-opus-4-10", 4_784),
        ("openai", "Qwen/Qwen2.5-VL-7B", 16_384), ("openai", "mistral-medium", 4_160), ("openai", "grok-4", 1_792),
        ("gemini", "tunedModels/mine", 2_304), ("bedrock", _PROFILE, 4_784),
        ("cohere", "c5", 1_600), ("ollama", "mine", 1_600),
    ],
)  # fmt: skip
def test_a_picture_of_an_unknown_model_holds_the_dearest_of_its_api_at_most(
    family: str, model: str, most: int
) -> None:
    asked = CallRequest("openai_chat", Family(family), Body(), CallSpec(model), 0, input_bytes=300)
    plain = Estimator().hold(asked, 1, "chat")
    asked.media = Media(tokens=25 * 1_600, count=25)
    found = Estimator().hold(asked, 1, "chat")
    assert found.ceiling - plain.ceiling == 25 * most
    assert found.need - plain.need == 25 * 1_600, "a likely hold stays"


def test_a_picture_of_a_name_that_targets_replace_holds_what_they_take() -> None:
    asked = call("fast", output_max=0)
    targets = (ModelTarget("up", "gpt-5.1"), ModelTarget("up", "claude-opus-4-7"))
    asked.take_aim(aim_of(asked, targets=targets))
    plain = Estimator().hold(asked, 1, "chat")
    asked.media = Media(tokens=1_600, count=1)
    assert Estimator().hold(asked, 1, "chat").ceiling - plain.ceiling == 4_784


@pytest.mark.parametrize(
    ("model", "most"), [("gpt-4o", 1_600), ("gpt-4o-mini", 48_169), ("gemini-2.5-pro", 2_304)]
)
def test_a_picture_in_a_body_is_held_once_and_its_size_is_not_multiplied(model: str, most: int) -> None:
    route = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")

    def held(*parts: dict[str, Any]) -> int:
        said = [{"role": "user", "content": [{"type": "text", "text": "what?"}, *parts]}]
        body = json.dumps({"model": model, "max_tokens": 1, "messages": said}).encode()
        return Estimator().hold(read_call(route, {}, body), 1, "chat").ceiling

    inline = "data:image/png;base64,iVBORw0KGgo" + "A" * 5_900
    picture, address = (
        {"type": "image_url", "image_url": {"url": url}} for url in (inline, "https://x/a.png")
    )
    beside = 100  # JSON around it, and a token for each KiB
    assert most <= held(picture) - held() <= most + beside
    assert most <= held(address) - held() <= most + beside
    assert 2 * most <= held(picture, picture) - held() <= 2 * most + 2 * beside


def transcribed(file: bytes, model: bytes, written: bytes) -> tuple[CallRequest, Estimate]:
    route = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_transcriptions")
    parts = [(FILE, file), (b"model", model), (b"response_format", written)]
    call = read_call(route, {}, form(*parts), form=b"multipart/form-data; boundary=b")
    measure_media(call)
    return call, Estimator().hold(call, 1, "s")


UNREAD: Final = b"#!AMR" + bytes(35_995)  # 48 seconds at 6 kbit/s


@pytest.mark.parametrize(
    ("file", "model", "written", "likely", "most"),
    [
        # Silence of 183 blocks of 65,535 samples at 8 kHz: 1,500 seconds in 2,238 bytes.
        (flac(183), b"gpt-4o-transcribe", b"text", 1_500, 1_500),
        (flac(183), b"whisper-1", b"json", 1_500, 1_500),
        (wav(3), b"whisper-1", b"text", 3, 3),
        # What cannot be read: likely by its bytes, at most as long as the model takes; all of it where nobody reports.
        (UNREAD, b"gpt-4o-transcribe", b"json", 48, 1_500),
        (UNREAD, b"gpt-4o-transcribe", b"text", 1_500, 1_500),
        (UNREAD, b"whisper-1", b"verbose_json", 48, 86_400),
        (wav(3, bits=16), b"gpt-4o-transcribe", b"json", 65, 1_500),  # 48,044 bytes, which may be an MP3
        (wav(3, bits=16), b"gpt-4o-transcribe", b"text", 65, 1_500),
    ],
)
def test_a_recording_holds_its_seconds_or_the_longest_of_its_model(
    file: bytes, model: bytes, written: bytes, likely: int, most: int
) -> None:
    """A second is 10 tokens."""
    call, found = transcribed(file, model, written)
    assert call.media.tokens == likely * 10
    assert most * 10 <= found.read <= most * 10 + 200
    assert found.need <= likely * 10 + 2_200
    seconds = {**(call.spec.units.likely or {}), **(call.spec.units.most or {})}.get("audio_second")
    assert seconds == most or (seconds is None and written == b"text")


def test_blobs_are_held_but_do_not_teach_the_ratio() -> None:
    estimator = Estimator()
    asked = call(output_max=0)
    asked.media = Media(tokens=1600)
    found = estimator.hold(asked, 1, "chat")
    assert (found.need, found.ceiling) == (1700, 1750)
    for _ in range(300):
        estimator.learn(asked, 1, "chat", used(1000, 1))
    found = estimator.hold(call(output_max=0), 1, "chat")
    assert (found.need, found.ceiling) == (100, 150)


def test_what_one_organization_teaches_is_never_anothers() -> None:
    estimator = Estimator()
    before = estimator.hold(call(), 2, "chat")
    taught(estimator, "m")
    assert estimator.hold(call(), 1, "chat").need > before.need
    assert estimator.hold(call(), 2, "chat") == before


def test_the_most_goes_by_size_whatever_was_learned() -> None:
    """A prompt unlike those before, or an image named by its address, is held in full."""
    estimator = Estimator()
    for _ in range(300):
        estimator.learn(call(), 1, "chat", used(3, 1))
    assert estimator.hold(call(output_max=10), 1, "chat").ceiling == 160
    asked = call(output_max=10)
    files = {"image_url": {"url": "https://a"}, "file_data": {"fileUri": "gs://b"}, "file_id": "c"}
    asked.body.names = names_in(files)
    assert estimator.hold(asked, 1, "chat").ceiling == 160 + 3 * 48_169
    for _ in range(300):
        estimator.learn(call(), 1, "chat", used(290, 1))
    found = estimator.hold(call(output_max=10), 1, "chat")
    need, ceiling = found.need, found.ceiling
    assert 150 + 10 < need == ceiling


# Texts, and how many tokens o200k_base has of a thousand of their bytes, as bpe-openai 0.1.4 counts.
_DENSEST = {
    "base64": (base64.b64encode(random.Random(1).randbytes(3_000)).decode(), 681),
    "base32": (base64.b32encode(random.Random(1).randbytes(3_000)).decode(), 642),
    "hex": (random.Random(1).randbytes(3_000).hex(), 564),
    "uuid": ("\n".join(str(UUID(int=random.Random(each).getrandbits(128))) for each in range(200)), 637),
    "csv": ("\n".join("4711.08,15.4,9031.27,812.95,67.3" for _ in range(200)), 667),
    "english": ("The toll is paid at the gate, by travellers who come first and ask. " * 90, 236),
}


@pytest.mark.parametrize("kind", _DENSEST)
def test_what_texts_have_at_most_covers_ids_and_numbers_and_words_stay_at_two_bytes(kind: str) -> None:
    text, a_thousand = _DENSEST[kind]
    said = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    route = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")
    asked = read_call(route, {}, json.dumps(said).encode())
    read = Estimator().hold(asked, 1, "chat", binds=False).read
    assert read * 1_000 >= len(text) * a_thousand
    assert (read == -(-asked.input_bytes // 2)) == (kind == "english")


FUNCTION = {"name": "f", "input_schema": {"type": "object"}}


# Of Anthropic's page on pricing, 2026-11-30: 804 for any tool of Opus 4.7, and 589 of Sonnet 4.6; 325 of the shell, 700
# of the editor, 735 and 499 of a computer. The dearest, of a browser, is held at 7,600.
@pytest.mark.parametrize(
    ("meter", "model", "tools", "added"),
    [
        ("anthropic_messages", "claude-opus-4-7", [FUNCTION], 804),
        ("anthropic_messages", "claude-sonnet-4-6", [FUNCTION, FUNCTION], 589),
        (
            "anthropic_messages", "claude-opus-4-7",
            [{"type": "bash_20250124"}, {"type": "text_editor_20250728"}, {"type": "computer_20251124"}],
            804 + 325 + 700 + 735 + 499,
        ),
        ("anthropic_messages", "claude-opus-4-7", [{"type": "browser_toolset_20260801"}], 804 + 7_600),
        ("anthropic_messages", "claude-opus-4-7", [{"type": "kitchen_20270101"}], 804 + 7_600),
        ("anthropic_messages", "my-deployment", [{"type": "custom", **FUNCTION}], 804),
        ("openai_chat", "anthropic/claude-opus-4.7", [{"type": "function", "function": FUNCTION}], 804),
        ("openai_chat", "gpt-5.5", [{"type": "function", "function": FUNCTION}], 0),
        ("gemini_interactions", "gemini-3-flash", [{"type": "computer_use"}], 4_600),
    ],
)  # fmt: skip
def test_tools_hold_what_their_provider_adds_to_the_prompt(
    meter: str, model: str, tools: list[dict[str, object]], added: int
) -> None:
    said = (
        {"input": "hi"}
        if meter == "gemini_interactions"
        else {"messages": [{"role": "user", "content": "hi"}]}
    )
    asked = {"model": model, "max_tokens": 1, **said}
    call, bare = (
        read_call(
            Route(("POST",), "/x", "u", "s", OF_METER[meter].name, meter), {}, json.dumps(body).encode()
        )
        for body in ({**asked, "tools": tools}, {**asked, "padding": tools})
    )
    # `padding` has three bytes more than `tools`, which are a token or two.
    estimate, without = Estimator().hold(call, 1, "s"), Estimator().hold(bare, 1, "s")
    assert added - 3 <= estimate.read - without.read <= added
    assert estimate.need - without.need >= added - 3
