"""Gemini through the official SDK: contents whole and streamed, thoughts, embeddings, its own errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.genai import errors

from tests import plain_http
from tests.journey.sdk import account, said
from tests.journey.stack import Stack
from tests.waiting import HUNG_S

CALL: Any = {"model": "demo-small", "contents": "hello there"}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_contents_with_thoughts_and_calls(stack: Stack, version: str) -> None:
    a = account(stack)
    answer = a.gemini(version, usage="10,20,4,6", thinking="1", tool="1").models.generate_content(**CALL)
    assert answer.function_calls is not None
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata.thoughts_token_count, answer.usage_metadata.total_token_count) == (6, 30)
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "input", "output", "cached", "reasoning")) == (30, 10, 20, 4, 6)
    assert said(row, "model", "streamed", "estimated") == ("demo-small", False, False)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_streams_as_events(stack: Stack, version: str) -> None:
    a = account(stack)
    pieces = list(a.gemini(version, usage="10,20,0,6", thinking="1").models.generate_content_stream(**CALL))
    assert pieces[-1].usage_metadata is not None
    assert pieces[-1].usage_metadata.total_token_count == 30
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "streamed", "output", "reasoning", "estimated")) == (
        30,
        True,
        20,
        6,
        False,
    )


def test_streams_as_one_array(stack: Stack) -> None:
    a = account(stack)
    answer = plain_http.post(
        f"{stack.gateway_url}/v1beta/models/demo-small:streamGenerateContent",
        json={"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
        headers={"x-goog-api-key": a.key, "x-demo-usage": "10,20"},
        timeout=HUNG_S,
    )
    assert [piece["modelVersion"] for piece in json.loads(answer.content)]
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "streamed", "estimated")) == (30, True, False)


def test_embeddings(stack: Stack) -> None:
    a = account(stack)
    found = a.gemini(usage="12").models.embed_content(model="demo-embedding", contents=["one", "two"])
    assert found.embeddings is not None
    assert len(found.embeddings) == 2
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "model")) == (12, "demo-embedding")


def test_counting_and_listing_are_free(stack: Stack) -> None:
    a = account(stack)
    assert a.gemini().models.count_tokens(**CALL).total_tokens == 2
    for version in ("v1", "v1beta"):
        models = a.gemini(version).models
        assert [model.name for model in models.list()] == ["models/demo-small", "models/demo-large"]
        assert models.get(model="demo-small").name == "models/demo-small"
    assert a.consumed() == []


def test_refusals_are_the_sdks_own_errors(stack: Stack) -> None:
    a = account(stack, 10, reset_interval="daily")
    a.gemini(usage="30,30").models.generate_content(**CALL)
    with pytest.raises(errors.ClientError) as limited:
        a.gemini().models.generate_content(**CALL)
    assert (limited.value.code, limited.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert "60 of 10 tokens of this tenant's cycle are used" in str(limited.value.message)
    stranger = account(stack)
    stack.act(stranger.tenant, "block")
    with pytest.raises(errors.ClientError) as blocked:
        stranger.gemini().models.generate_content(**CALL)
    assert (blocked.value.code, blocked.value.status) == (403, "PERMISSION_DENIED")
    third = account(stack)
    with pytest.raises(errors.ClientError) as bad:
        third.gemini().models.generate_content(**CALL, config={"max_output_tokens": -1})
    assert (bad.value.code, bad.value.status) == (400, "INVALID_ARGUMENT")
