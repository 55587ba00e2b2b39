"""The recorded answers: each can be filled for any call, and a stream knows how much of it was said."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from gateway.local.demo import upstream
from gateway.local.demo.upstream import DemoExchange, DemoRequest, read_turn

VALUES: dict[str, Any] = {"name": "demo", "count": 3, "thinks": False, "absent": None}


def turn(body: dict[str, Any], **headers: str) -> DemoExchange:
    sent = {"x-demo-" + name: value for name, value in headers.items()}
    return read_turn(DemoRequest("POST", "/", sent, [], json.dumps(body).encode()), "demo", speaks=True)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("$count", 3),
        ("$absent", None),
        ("a-$name-$count", "a-demo-3"),
        ({"n": "$count", "m": [1, None, "x"]}, {"n": 3, "m": [1, None, "x"]}),
        ({"kind": {"$name": {"demo": "yes", "*": "no"}}}, {"kind": "yes"}),
        ({"kind": {"$count": {"4": "yes", "*": {"n": "$count"}}}}, {"kind": {"n": 3}}),
        ({"kind": {"$thinks": {"true": 1}}, "other": {"$thinks": {"false": None}}}, {"other": None}),
        ([{"$thinks": {"true": 1}}, 2], [2]),
        ([{"$each": "at", "index": "$at"}, 7], [{"index": 0}, {"index": 1}, 7]),
    ],
)
def test_holes_are_filled(template: Any, filled: Any) -> None:
    assert upstream.fill_answer(template, VALUES, {"at": range(2)}) == filled


def test_what_a_caller_says_is_no_template() -> None:
    said = turn({"messages": [{"role": "user", "content": "$model"}]})
    assert (
        json.loads(upstream.whole_answer("chat", said))["choices"][0]["message"]["content"]
        == "You said: $model"
    )


@pytest.mark.parametrize("name", sorted(upstream.WHOLE.keys() | upstream.STREAMS.keys()))
def test_every_answer_can_be_filled_whatever_is_dictated(name: str) -> None:
    for usage, end, *flags in itertools.product(
        ("1,2,3,4,5", "none"), ("", "incomplete", "failed", "error"), (True, False), (True, False)
    ):
        wanted = {flag: "1" for flag, on in zip(("thinking", "tool"), flags, strict=True) if on}
        asked = turn(
            {"input": ["a", "b"], "stream_options": {"include_usage": True}}, usage=usage, end=end, **wanted
        )
        asked.lists["model"] = ("demo",)
        texts = [data for _, data in upstream.stream_answer(name, asked)] if name in upstream.STREAMS else []
        texts += [upstream.whole_answer(name, asked).decode()] if name in upstream.WHOLE else []
        assert all(json.loads(text) for text in texts if text != "[DONE]")
        assert "$" not in "".join(texts)


@pytest.mark.parametrize("name", sorted(upstream.STREAMS))
def test_a_stream_knows_what_was_said_so_far(name: str) -> None:
    asked = turn({"input": "a b"}, usage="4,500")
    said = [asked.spoken for _ in upstream.stream_answer(name, asked)]
    assert said == sorted(said)
    assert said[-1] == 500
    assert set(said) >= {1, 2, 3}
    broken = turn({"input": "a b"}, usage="4,500", end="error")
    assert list(upstream.stream_answer(name, broken))
    assert broken.spoken == 5  # "You", " said", ":", " a", " b"
