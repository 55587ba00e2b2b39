"""What nobody reports is counted by the model's own tokenizer, where there is one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.calls.call import CallRequest, input_tokens
from gateway.core.calls.estimate import Estimator
from gateway.core.families.controlled import PROMPT_BYTES_MAX, prompt_tokens
from gateway.core.metering.meters import make_meter
from tests.core.meter.recorded import DONE, SSE, call, delta, frame


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
    made.model = model
    made.body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    ).encode()
    made.input_bytes = len(made.body)
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
    assert made.tokens_of is None
    assert input_tokens(made) == made.input_estimate


def test_a_document_without_use_is_charged_by_the_tokenizer() -> None:
    meter = make_meter(asked("gpt-x", streamed=False), 200, b"application/json")
    meter.feed(json.dumps({"choices": [{"message": {"content": 'one "two" thr\u00e9e'}}]}).encode())
    meter.finish()
    assert (meter.usage().input, meter.usage().output) == (10, 3)


def test_pieces_of_several_choices_are_not_one_text() -> None:
    made = asked("gpt-x", choices=2)
    assert make_meter(made, 200, SSE).texts is None  # type: ignore[attr-defined] # a meter of ours
