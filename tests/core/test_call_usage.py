"""A stream is made to report its use, and nothing else of the body changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.calls.test_parsing import read, refused


def chat(**fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "stream_options: {"}], **fields}


@pytest.mark.parametrize("meter", ["openai_chat", "openai_completions"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])
@pytest.mark.parametrize(
    "options",
    [..., None, {}, {"include_usage": False}, {"include_usage": None}, {"include_obfuscation": False}],
)
def test_usage_is_asked_for_and_nothing_else_changes(
    meter: str, separators: tuple[str, str], options: object
) -> None:
    asked = chat(stream=True, seed=7) if options is ... else chat(stream=True, stream_options=options, seed=7)
    raw = b" \n" + json.dumps(asked, separators=separators).encode()
    call = read(meter, raw)
    assert call.strip_usage
    kept = options if isinstance(options, dict) else {}
    assert json.loads(call.body.content) == {**asked, "stream_options": {**kept, "include_usage": True}}


def test_nothing_is_added_to_a_client_that_asks_itself() -> None:
    raw = json.dumps(chat(stream=True, stream_options={"include_usage": True})).encode()
    call = read("openai_chat", raw)
    assert json.loads(call.body.content) == json.loads(raw)
    assert not call.strip_usage


@pytest.mark.parametrize("stream", [False, None, ...])
def test_without_a_stream_nothing_is_asked_for(stream: object) -> None:
    asked = chat() if stream is ... else chat(stream=stream)
    raw = json.dumps({**asked, "stream_options": None}).encode()
    call = read("openai_chat", raw)
    assert json.loads(call.body.content) == json.loads(raw)
    assert not call.strip_usage


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ([], "stream_options"),
        ("x", "stream_options"),
        (7, "stream_options"),
        ({"include_usage": "true"}, "stream_options.include_usage"),
        ({"include_usage": 1}, "stream_options.include_usage"),
        ({"Include_usage": True}, "stream_options.include_usage"),
    ],
)
def test_wrong_stream_options_are_named(options: object, param: str) -> None:
    assert refused("openai_chat", chat(stream=True, stream_options=options)) == param


def test_stream_options_spelled_with_escapes_are_still_found() -> None:
    raw = b'{"model":"m","x":{"stream_options":1},"stream\\u005foptions" : {"a":[1, 2]} ,"stream":true}'
    call = read("openai_chat", raw)
    assert call.strip_usage
    assert json.loads(call.body.content)["stream_options"] == {"a": [1, 2], "include_usage": True}
    assert json.loads(call.body.content)["x"] == {"stream_options": 1}


_KEYS = st.sampled_from(["a", "stream_option", "messages", "ünïcode", 'quo"te', "back\\slash"])
_LEAVES = st.sampled_from(
    [1, None, "{", '"}', "stream_options", '\\"stream_options\\":', [], {}, {"stream": 1}]
)


@given(
    st.dictionaries(_KEYS, _LEAVES),
    st.booleans(),
    st.sampled_from([..., None, {}, {"x": "}"}]),
    st.booleans(),
)
def test_asking_for_usage_keeps_every_other_member(
    more: dict[str, object], ascii_only: bool, options: object, last: bool
) -> None:
    ours = {"model": "m", "stream": True} | ({} if options is ... else {"stream_options": options})
    asked = {**more, **ours} if last else {**ours, **more}
    call = read("openai_chat", json.dumps(asked, ensure_ascii=ascii_only).encode())
    kept = options if isinstance(options, dict) else {}
    assert json.loads(call.body.content) == {**asked, "stream_options": {**kept, "include_usage": True}}
    again = read("openai_chat", call.body.content)
    assert again.body.content == call.body.content
    assert not again.strip_usage
