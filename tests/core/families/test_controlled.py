"""A controlled field has one spelling and one type; what is no member of it is refused by name."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import pytest
from anthropic.types import message_create_params
from google.genai import types as gemini
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gateway.core.calls.call import CallRequest, input_tokens
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.output_limits import HARMLESS, TEXTS, check_numbers
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import (
    MODEL_NAMES_MAX,
    PROMPT_BYTES_MAX,
    TOP_CHARACTERS_MAX,
    TOP_NAMES_MAX,
    TOPS_REMEMBERED_MAX,
    _models,
    _tops,
    model_name,
    models_beside,
    prompt_tokens,
    top_names,
)
from gateway.core.families.gemini.answers import retry_delay
from gateway.core.families.registry import SHAPES
from gateway.core.metering.meters import make_meter
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from tests.core.calls.test_parsing import read, refused
from tests.core.metering.recorded import DONE, SSE, call, delta, frame


def test_bodies_of_the_same_names_are_read_each_for_itself_and_remembered_within_bounds() -> None:
    for other in ("b", "c"):
        body: dict[str, object] = {"model": "a", "fallbacks": [other], "advisor": {"model": other * 2}}
        assert (models_beside(body), top_names(body).elsewhere) == ((other, other * 2), True)
    for number in range(TOPS_REMEMBERED_MAX + 10):
        found = top_names({"model": "a", f"made_up_{number}_timeout": 1})
        assert (found.times_out, found.asks, found.elsewhere) == (True, False, False)
    top_names({str(number): 1 for number in range(TOP_NAMES_MAX + 1)})
    top_names({"x" * (TOP_CHARACTERS_MAX + 1): 1})
    assert len(_tops) <= TOPS_REMEMBERED_MAX
    assert max(map(len, _tops)) <= TOP_NAMES_MAX
    assert max(len("".join(names)) for names in _tops) <= TOP_CHARACTERS_MAX
    for number in range(MODEL_NAMES_MAX + 10):
        model_name(f"model-{number}")
    assert len(_models) <= MODEL_NAMES_MAX


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"a","Model":"b"}', "model"),
        (b'{"MODEL":"b"}', "model"),
        (b'{"\\u004dodel":"b"}', "model"),
        (b'{"model":"a","Max_Tokens" : 1}', "max_tokens"),
        (b'{"model":"a","max_token\xc5\xbf":1}', "max_tokens"),
        (b'{"model":"a","max_token\\u017f":1}', "max_tokens"),
        (b'{"model":"a","max_to\xe2\x84\xaaens":1}', "max_tokens"),
        (b'{"model":"a","max_to\\u212Aens":1}', "max_tokens"),
        (b'{"model":"a","Models":[]}', "models"),
        (b'{"model":"a","FallBacks":[]}', "fallbacks"),
        (b'{"model":"a","USER":"x"}', "user"),
        (b'{"model":"a","Messages":[]}', "messages"),
        (b'{"model":"a","messages":[],"me\xc5\xbfsages":[]}', "messages"),
        (b'{"model":"a","systeminstruction":[]}', "systemInstruction"),
        (b'{"model":"a","Service_Tier":"flex"}', "service_tier"),
        (b'{"model":"a","max_tokens\\u0000":1}', "max_tokens"),
        (b'{"model":"a","MODEL\\u0000x":1}', "model"),
        (b'{"model":"a","messages":[{"content\\u0000":1}]}', "content"),
        (b'{"model":"a","API_BASE":"http://x"}', "api_base"),
        (b'{"model":"a","provideroptions":{}}', "providerOptions"),
        (
            b'{"model":"a","stream":true,"stream_options":{"Include_Usage":true}}',
            "stream_options.include_usage",
        ),
        (b'{"model":"a","max_tokens":true}', "max_tokens"),
        (b'{"model":1}', "model"),
        (b'{"model":"a","stream":"true"}', "stream"),
        (b'{"model":"a","stream":1}', "stream"),
    ],
)  # fmt: skip
def test_a_field_in_another_spelling_or_type_is_named(body: bytes, param: str) -> None:
    assert refused("openai_chat", body) == param


MORE_THAN_A_MODEL = ("gpt-4o-mini,claude-opus-4-8", "gpt-4o-mini@preset/opus", "@Preset/opus", "a,")


@pytest.mark.parametrize("name", MORE_THAN_A_MODEL)
@pytest.mark.parametrize(
    ("meter", "body", "param"),
    [
        ("openai_chat", {"model": ...}, "model"),
        ("openai_completions", {"model": ...}, "model"),
        ("openai_responses", {"model": ...}, "model"),
        ("openai_embeddings", {"model": ...}, "model"),
        ("anthropic_messages", {"model": ...}, "model"),
        ("openai_chat", {"model": "m", "models": [...]}, "models"),
        ("openai_chat", {"model": "m", "fallbacks": [{"m": [...]}]}, "fallbacks"),
        ("anthropic_messages", {"model": "m", "tools": [{"model": ...}]}, "tools.model"),
    ],
)
def test_the_name_of_a_model_is_that_of_one(meter: str, body: object, param: str, name: str) -> None:
    """LiteLLM calls each of the names between commas, OpenRouter takes the model of a preset."""
    assert refused(meter, json.loads(json.dumps(body, default=lambda _: name))) == param


def test_the_model_of_a_path_is_one() -> None:
    for name in MORE_THAN_A_MODEL:
        with pytest.raises(InvalidRequest):
            read("gemini_generate", {}, model=name)
    assert read("gemini_generate", {}, model="claude-opus-4@20250514").spec.model == "claude-opus-4@20250514"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x":{"Model":1,"MAX_TOKENS":2}}',
        b'{"model":"a","metadata":{"Include_Usage":2}}',
        '{"model":"a","x":"ſtream and \u212aelvin"}'.encode(),
        b'{"model":"a","stream_option":1,"modelled":2}',
    ],
)
def test_what_is_not_controlled_passes_unread(body: bytes) -> None:
    assert read("openai_chat", body).spec.model == "a"


@pytest.mark.parametrize(
    ("more", "beside"),
    [
        ({"moderation": {"model": "omni-moderation-latest"}}, ()),
        ({"moderation": {"model": "a", "other": {"model": "b"}}}, ("b",)),
        ({"moderation": {"MODEL": "a"}}, ("a",)),
        ({"guardrails": [{"moderation_llm_v1": {"model_name": "mistral-moderation-latest"}}]}, ()),
        ({"tools": [{"moderation": {"model": "a"}}]}, ("a",)),
    ],
)
def test_a_model_that_judges_and_answers_nothing_is_known_by_its_place(
    more: dict[str, Any], beside: tuple[str, ...]
) -> None:
    assert read("openai_chat", json.dumps({"model": "m", **more}).encode()).models_beside == beside


def test_the_user_of_messages_has_one_spelling_and_its_place_one_type() -> None:
    assert refused("anthropic_messages", {"model": "m", "metadata": {"User_Id": "x"}}) == "metadata.user_id"
    assert refused("anthropic_messages", {"model": "m", "metadata": "x"}) == "metadata"


# --- numbers ----------------------------------------------------------------------------
# Where a hold binds a call, no number passes that may overrule its maximum.


MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "openai_chat": {"model": "m", "max_tokens": 1, "messages": MESSAGES},
    "openai_completions": {"model": "m", "prompt": "42"},
    "openai_responses": {"model": "m", "input": "42", "prompt_cache_key": "7"},
    "anthropic_messages": {"model": "m", "max_tokens": 1, "messages": MESSAGES},
    "gemini_generate": {"contents": [], "generationConfig": {"maxOutputTokens": 1, "temperature": 0.5}},
}
# Of the clients' own parameters these count answers or tokens where another API's shape does not read them.
SDK_PARAMS: dict[str, object] = {
    "openai_chat": chat_create_params.CompletionCreateParamsBase,
    "openai_completions": completion_create_params.CompletionCreateParamsBase,
    "openai_responses": response_create_params.ResponseCreateParamsBase,
    "anthropic_messages": message_create_params.MessageCreateParamsBase,
}


ROUTE = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat")


def checked(meter: str, more: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    body = json.dumps({**BODIES[meter], **more}).encode()
    route = Route(("POST",), "/x", "u", "s", Family(meter.partition("_")[0]), meter)
    path = {"model": "m:generateContent"} if meter.startswith("gemini") else {}
    check_numbers(read_call(route, path, body), allowed)


@pytest.mark.parametrize("meter", BODIES)
@pytest.mark.parametrize(
    "value",
    [20_000, 1e4, -1, "20000", " 2e4 ", "0" * 70 + "20000", " " * 9_000 + "2e4", [20_000], [["20000"]]],
)
def test_a_number_nobody_knows_is_refused_by_its_name_unless_it_is_allowed(meter: str, value: object) -> None:
    checked(meter, {})
    for name in ("n_predict", "max_new_tokens", "num_predict", "n_cmpl", "num_retries"):
        with pytest.raises(InvalidRequest, match=f"^{name}:"):
            checked(meter, {name: value})
        checked(meter, {name: value}, frozenset({name}))


def test_agents_that_nothing_bounds_are_refused_where_a_hold_binds() -> None:
    for more in ({"enabled": True}, {"enabled": 1}, "x", [1]):
        with pytest.raises(InvalidRequest, match=r"^multi_agent:"):
            checked("openai_responses", {"multi_agent": more})
    checked("openai_responses", {"multi_agent": {"enabled": True}}, frozenset({"multi_agent"}))
    for less in ({"enabled": False}, {}, None):
        checked("openai_responses", {"multi_agent": less})


@pytest.mark.parametrize("name", ["min_tokens", "min_new_tokens"])
@pytest.mark.parametrize("value", [101, 20_000, "20000", 99.5, True, [20_000]])
def test_a_minimum_above_the_held_maximum_is_refused_by_its_name(name: str, value: object) -> None:
    """Servers that obey the larger number would write 20,000 tokens where 100 are held."""
    stated = {"model": "m", "max_tokens": 100, "messages": MESSAGES}
    for body, bound in ((stated, 9), ({"model": "m", "messages": MESSAGES}, 100)):
        for more in ({name: value}, {"sampling": {name: value}}):
            call = read_call(ROUTE, {}, json.dumps({**body, **more}).encode())
            with pytest.raises(InvalidRequest, match=rf"{name} must be a whole number up to 100,"):
                check_numbers(call, frozenset(), bound)
            check_numbers(call, frozenset({name}), bound)
        for right in (100, 0, None):
            call = read_call(ROUTE, {}, json.dumps({**body, name: right}).encode())
            check_numbers(call, frozenset(), bound)


def test_where_a_maximum_stands_deeper_numbers_are_known_there_too() -> None:
    with pytest.raises(InvalidRequest, match=r"^maxNewTokens:"):
        checked("gemini_generate", {"generationConfig": {"maxNewTokens": 9}})


@pytest.mark.parametrize("meter", BODIES)
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"options": {"num_predict": 9}}, "options.num_predict"),
        ({"extra": [{"deeper": {"n": "20000"}}]}, "extra.deeper.n"),
        ({"options": {"max_tokens": 9}}, "options.max_tokens"),
        ({"thinking": {"max_new_tokens": 9}}, "thinking.max_new_tokens"),
        ({"extra": {"messages": {"n_predict": 9}}}, "extra.messages.n_predict"),
    ],
)
def test_a_number_that_nobody_knows_is_refused_at_any_depth(
    meter: str, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        checked(meter, more)
    assert refused.value.param == param
    checked(meter, more, frozenset({param.rpartition(".")[2]}))


@pytest.mark.parametrize(
    ("meter", "more"),
    [
        ("openai_chat", {"stream_interval": 4, "routed_experts_prompt_start": 2}),
        ("openai_chat", {"reasoning": {"max_tokens": 9}, "provider": {"max_price": {"prompt": 1}}}),
        ("openai_chat", {"logit_bias": {"50256": -100}, "web_search_options": {"user_location": {"x": 1}}}),
        ("openai_responses", {"text": {"format": {"schema": {"maxItems": 3}}}, "prompt": {"version": "2"}}),
        ("openai_responses", {"context_management": [{"type": "compaction", "compact_threshold": 9}]}),
        ("anthropic_messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("anthropic_messages", {"output_config": {"task_budget": {"total": 9, "remaining": 3},
                                                  "format": {"schema": {"maxItems": 3}}}}),
        ("anthropic_messages", {"context_management": {"edits": [{"trigger": {"value": 9}}]}}),
        ("gemini_generate", {"generationConfig": {"thinkingConfig": {"thinkingBudget": 9}}}),
        ("gemini_generate", {"generationConfig": {"responseSchema": {"maxItems": 3}}}),
        ("gemini_generate", {"toolConfig": {"retrievalConfig": {"latLng": {"latitude": 1.5}}}}),
    ],
)  # fmt: skip
def test_numbers_of_documented_objects_pass(meter: str, more: dict[str, Any]) -> None:
    checked(meter, more)


@pytest.mark.parametrize("messages", [[MESSAGES, MESSAGES], MESSAGES[0], "hi"])
def test_a_bound_call_is_one_chat(messages: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages "):
        checked("openai_chat", {"messages": messages})


def test_what_is_no_number_passes() -> None:
    checked(
        "openai_chat",
        {"new_field": {"max": "much"}, "another": "text", "third": True, "list": [9, 9], "none": None},
    )


@pytest.mark.parametrize("name", ["deferred", "async", "background"])
def test_a_call_that_asks_for_an_answer_later_and_is_no_job_is_refused_by_that_field(name: str) -> None:
    for value in (True, 1, {"on": True}, "true"):
        assert refused("openai_chat", {"model": "m", name: value}) == name
    assert refused("openai_chat", {"model": "m", name.title(): False}) == name
    for unasked in (None, False):
        assert read("openai_chat", {"model": "m", name: unasked}).spec.model == "m"


def test_a_response_in_the_background_is_a_job_and_a_picture_has_a_background_of_its_own() -> None:
    assert read("openai_responses", {"model": "m", "background": True}).spec.background
    assert not read("openai_images", {"model": "m", "prompt": "p", "background": "opaque"}).spec.background
    assert refused("openai_images", {"model": "m", "prompt": "p", "background": True}) == "background"
    assert refused("openai_responses", {"model": "m", "background": True, "deferred": True}) == "deferred"


@pytest.mark.parametrize("meter", SDK_PARAMS)
def test_each_number_of_the_official_clients_is_judged(meter: str) -> None:
    known = SHAPES[meter].numbers | HARMLESS
    hints = typing.get_type_hints(SDK_PARAMS[meter])
    numbers = {name for name, hint in hints.items() if {int, float} & set(_parts(hint))}
    assert numbers
    assert numbers - known == set()
    texts = {name for name, hint in hints.items() if str in _parts(hint) and name not in BODIES[meter]}
    assert texts - TEXTS == set()


def test_each_number_of_geminis_configuration_is_judged() -> None:
    fields = gemini.GenerationConfig.model_fields.values()
    numbers = {one.alias or "" for one in fields if {int, float} & set(_parts(one.annotation))}
    assert numbers - SHAPES["gemini_generate"].numbers - HARMLESS == set()


def _parts(hint: object) -> list[object]:
    """The types that a value of it may have, but for those inside of lists and objects."""
    origin = typing.get_origin(hint)
    if origin not in {typing.Union, types.UnionType, typing.Required}:
        return [hint] if origin is None else []
    return [part for inner in typing.get_args(hint) for part in _parts(inner)]


# --- prompt -----------------------------------------------------------------------------
# What nobody reports is counted by the model's own tokenizer, where there is one.


def words(text: str) -> int:
    return len(text.split())


def of_model(model: str) -> Any:
    return words if model.startswith("gpt") else None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "one two three"}]}, 3 + 4 + 3),
        (
            {
                "messages": [
                    {"content": [{"type": "text", "text": "one two"}, {"image_url": {"url": "a b c"}}]}
                ]
            },
            2 + 4 + 3,
        ),
        ({"input": "one two"}, 2),
        ({"input": ["one two", "three"]}, 3),
        ({"input": [1, 2, 3]}, 3),
        ({"prompt": [[1, 2], [3]], "n": 7, "max_tokens": 99}, 3),
        (
            {
                "instructions": "one",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}],
            },
            2,
        ),
        ({"tools": [{"function": {"name": "look_up", "description": "find it"}}], "stream": True}, 3),
        ({}, 0),
    ],
)
def test_what_a_request_says_is_counted(body: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(json.dumps(body).encode(), words) == tokens


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"' + b"x" * PROMPT_BYTES_MAX + b'"'])
def test_what_cannot_be_counted_so_is_not(body: bytes) -> None:
    assert prompt_tokens(body, words) is None


def asked(model: str, **fields: Any) -> CallRequest:
    made = call("openai_chat", **fields)
    made.spec = made.spec._replace(model=model)
    made.body.content = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    ).encode()
    made.input_bytes = len(made.body.content)
    Estimator(tokenizer=of_model).hold(made, 1, "chat")
    return made


def test_a_stream_without_use_is_charged_by_the_tokenizer() -> None:
    meter = make_meter(asked("gpt-x", streamed=True), 200, SSE)
    for piece in ("ti", "cket", " of", " a toll"):
        meter.feed(frame(delta(piece)))
    meter.feed(DONE)
    meter.finish()
    usage = meter.usage()
    assert (usage.input, usage.output, usage.estimated) == (10, 4, True)


def test_a_model_nobody_can_tokenize_is_charged_by_what_was_learned() -> None:
    made = asked("claude-x")
    assert made.learned.tokens_of is None
    assert input_tokens(made) == made.input_estimate


def test_a_document_without_use_is_charged_by_the_tokenizer() -> None:
    meter = make_meter(asked("gpt-x", streamed=False), 200, b"application/json")
    meter.feed(json.dumps({"choices": [{"message": {"content": 'one "two" thr\u00e9e'}}]}).encode())
    meter.finish()
    assert (meter.usage().input, meter.usage().output) == (10, 3)


def test_pieces_of_several_choices_are_not_one_text() -> None:
    made = asked("gpt-x", choices=2)
    assert make_meter(made, 200, SSE).texts is None  # type: ignore[attr-defined] # a meter of ours


# --- gemini limits ----------------------------------------------------------------------
# When Gemini says to try again: its own words, and bodies that say nothing.


RETRY = b'{"error":{"code":429,"details":[{"@type":"x","violations":[]},{"@type":"y","retryDelay":"%b"}]}}'


@pytest.mark.parametrize(("delay", "seconds"), [(b"34s", 34), (b"34.074824224s", 34.074824224), (b"0s", 0)])
def test_a_duration_is_in_seconds(delay: bytes, seconds: float) -> None:
    assert retry_delay(RETRY % delay) == seconds
    assert retry_delay(b"[" + RETRY % delay + b"]") == seconds  # of a stream


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{}", b"[]", b"null", b"nonsense", b"\xff", b"[" * 100_000, b'{"error":null}', b'{"error":{}}',
        b'{"error":{"details":null}}', b'{"error":{"details":{}}}', b'{"error":{"details":[1]}}',
        b'{"error":{"details":[{"retryDelay":34}]}}', b'{"error":{"details":[{"retryDelay":{}}]}}',
        RETRY % b"-34s", RETRY % b"34", RETRY % b"34m", RETRY % b"1e9s",
        RETRY % b"9999999999s", RETRY % b"NaNs",
    ],
)  # fmt: skip
def test_what_is_no_duration_says_nothing(document: bytes) -> None:
    assert retry_delay(document) == 0


def test_a_store_of_the_upstreams_account_is_no_callers() -> None:
    with pytest.raises(InvalidRequest, match="retrieval"):
        checked("gemini_generate", {"tools": [{"retrieval": {"vertexAiSearch": {"datastore": "d"}}}]})
