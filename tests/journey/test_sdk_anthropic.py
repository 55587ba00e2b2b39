"""Anthropic's messages through the official SDK: use split over events, caches, thoughts, errors."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from tests.journey.sdk import HELLO, account, said
from tests.journey.stack import Stack

CALL: Any = {"model": "demo-small", "messages": HELLO, "max_tokens": 64}
TOOLS: Any = [{"name": "look_up", "input_schema": {"type": "object", "properties": {}}}]


def test_messages_with_caches_thoughts_and_tools(stack: Stack) -> None:
    a = account(stack)
    answer = a.anthropic(usage="10,20,30,0,40", thinking="1", tool="1").messages.create(**CALL, tools=TOOLS)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.usage.cache_creation_input_tokens == 40
    assert answer._request_id is not None
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "input", "output", "cached")) == (100, 80, 20, 30)
    assert row["request_id"] == answer._request_id


def test_streams_with_pings_thoughts_and_tools(stack: Stack) -> None:
    a = account(stack)
    with a.anthropic(usage="10,20,30,0,40", thinking="1", tool="1").messages.stream(
        **CALL, tools=TOOLS
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"message_start", "content_block_delta", "message_stop"} <= kinds
    assert final.usage.output_tokens == 20
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "streamed", "input", "cached", "estimated")) == (
        100,
        True,
        80,
        30,
        False,
    )


def test_an_error_in_mid_stream_is_raised_and_charged_by_what_came(stack: Stack) -> None:
    a = account(stack)
    with (
        pytest.raises(anthropic.APIStatusError),
        a.anthropic(usage="10,20", end="error").messages.stream(**CALL) as stream,
    ):
        list(stream)
    (row,) = a.charges(1)
    assert said(row, "input", "estimated") == (10, True)
    assert 10 + 5 <= row["amount"] <= 10 + 20


def test_tokens_are_counted_for_nothing(stack: Stack) -> None:
    a = account(stack)
    assert a.anthropic().messages.count_tokens(model="demo-small", messages=HELLO).input_tokens == 2
    assert [model.id for model in a.anthropic().models.list()] == ["demo-small", "demo-large"]
    assert a.consumed() == []


def test_refusals_are_the_sdks_own_errors(stack: Stack) -> None:
    a = account(stack, 10, reset_interval="daily")
    a.anthropic(usage="30,30").messages.create(**CALL)
    with pytest.raises(anthropic.RateLimitError) as limited:
        a.anthropic().with_options(max_retries=3).messages.create(**CALL)
    assert "60 of 10 tokens of this tenant's cycle are used" in limited.value.message
    assert limited.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index] # it is a JSON object
    assert limited.value.request_id == limited.value.response.headers["x-request-id"]
    with pytest.raises(anthropic.AuthenticationError):
        a.anthropic().with_options(api_key="nobody").messages.create(**CALL)
    with pytest.raises(anthropic.BadRequestError) as bad:
        a.anthropic().messages.create(**CALL | {"max_tokens": -1})
    assert "max_tokens" in bad.value.message
    stack.act(a.tenant, "block")
    with pytest.raises(anthropic.PermissionDeniedError):
        a.anthropic().messages.create(**CALL)
