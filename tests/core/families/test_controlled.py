"""A controlled field has one spelling and one type; what is no member of it is refused by name."""

from __future__ import annotations

import json

import pytest

from gateway.errors import InvalidRequest
from tests.core.calls.test_call import read, refused


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
    assert read("gemini_generate", {}, model="claude-opus-4@20250514").model == "claude-opus-4@20250514"


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
    assert read("openai_chat", body).model == "a"


def test_the_user_of_messages_has_one_spelling_and_its_place_one_type() -> None:
    assert refused("anthropic_messages", {"model": "m", "metadata": {"User_Id": "x"}}) == "metadata.user_id"
    assert refused("anthropic_messages", {"model": "m", "metadata": "x"}) == "metadata"
