"""Whatever a body says, reading it fails with a `Refusal` or not at all."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.objects import ObjectAccess, read_objects
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.core.text import read_json
from gateway.errors import InvalidRequest, Refusal
from tests.search import examples

METERS = [
    ("openai_chat", Family("openai")), ("openai_completions", Family("openai")),
    ("openai_embeddings", Family("openai")), ("openai_responses", Family("openai")),
    ("anthropic_messages", Family("anthropic")),
    ("gemini_generate", Family("gemini")), ("gemini_stream", Family("gemini")),
    ("gemini_embed", Family("gemini")),
]  # fmt: skip
NAMES = st.sampled_from(
    [
        "model", "models", "messages", "content", "role", "type", "text", "input", "id", "file_id",
        "container",
        "conversation", "prompt", "tools", "contents", "parts", "fileData", "fileUri", "file_uri", "fileName",
        "cachedContent", "cached_content", "fileSearchStoreNames", "fileSearch", "image_url", "url", "source",
        "vector_store_ids", "item_reference", "n", "max_tokens", "max_completion_tokens", "max_output_tokens",
        "stream", "stream_options", "include_usage", "metadata", "user", "user_id", "generationConfig",
        "maxOutputTokens", "candidateCount", "requests", "encoding_format", "best_of", "previous_response_id",
        "route", "plugins", "fallbacks", "extra_body", "safety_identifier", "inlineData", "data",
    ]
)  # fmt: skip
TEXTS = st.sampled_from(
    [
        "http://[x", "https://[::1/files/a", "https://x/v1beta/files/a%", "//", "files/../x",
        "cachedContents/x",
        "gs://b/o", "data:;base64,", "message", "item_reference", "file-1", "\ud800", "\u2100", "http://x:99999/",
        "http://\u212a/", "a" * 600, "", "\x00", "http://a\uff0fb/files/x",
    ]
) | st.text(max_size=8)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXTS, inner, max_size=5),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES | TEXTS, VALUES, max_size=6)
ANY = ObjectAccess((), lambda _: True, reads=True)


@settings(max_examples=examples(400))
@given(st.sampled_from(METERS), DOCUMENTS | VALUES, st.booleans())
def test_a_body_of_any_family(meter: tuple[str, Family], document: object, escaped: bool) -> None:
    name, family = meter
    body = json.dumps(document, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    route = Route(("POST",), "/x", "up", "chat", family, name)
    with contextlib.suppress(Refusal):
        call = read_call(route, {"model": "m"}, body)
        read_objects(ANY, call)


@settings(max_examples=examples(400))
@given(st.sampled_from(list(FAMILIES)), DOCUMENTS)
def test_the_objects_of_any_document(family: Family, document: dict[str, Any]) -> None:
    look(family, document)


def look(family: Family, document: dict[str, Any]) -> None:
    route = Route(("POST",), "/x", "up", "", family)
    with contextlib.suppress(Refusal):
        read_objects(ANY, read_call(route, {}, json.dumps(document).encode(), reads=True))


@pytest.mark.parametrize("uri", ["http://[x", "https://[::1/v1beta/files/a", "http://a\uff0fb/files/x"])
def test_an_address_that_is_none(uri: str) -> None:
    look(Family("gemini"), {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]})


# At its bound a body is read whole, with two frames of Python a level. One level more is refused, whoever reads it.
@pytest.mark.parametrize(
    ("meter", "around", "levels"),
    [
        ("generic", b'{"x_id":%b}', 1),
        ("openai_chat", b'{"model":"m","messages":[],"tools":[{"function":{"parameters":%b}}]}', 4),
        (
            "mcp",
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"x_id":%b}}}',
            3,
        ),
    ],
)
@pytest.mark.parametrize(("opened", "closed"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_depth_of_a_call_is_bounded_before_its_objects_are_read(
    meter: str, around: bytes, levels: int, opened: bytes, closed: bytes
) -> None:
    route = Route(("POST",), "/x", "up", "chat", Family("openai"), meter)
    for depth in (256, 257):
        body = around % (opened * (depth - levels) + b"1" + closed * (depth - levels))
        with (
            contextlib.nullcontext()
            if depth == 256
            else pytest.raises(InvalidRequest, match="more than 256 deep")
        ):
            read_objects(ANY, read_call(route, {}, body, reads=True))


# --- json reader ------------------------------------------------------------------------
# JSON of others is read, or refused in one line.


def test_a_document_is_read() -> None:
    assert read_json(b'{"a": [1, -2, 1.5, "x", null]}') == {"a": [1, -2, 1.5, "x", None]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nests too deep"),
        ("9" * 5_000, "more than 4300 digits"),
        ("{", "Expecting property name"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        read_json(text)
    assert "\n" not in str(refused.value)
    assert "set_int_max" not in str(refused.value)
