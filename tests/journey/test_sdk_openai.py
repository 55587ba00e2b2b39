"""Every OpenAI API through the official SDK: its answers, the tokens reported, its own errors."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseFailedEvent, ResponseIncompleteEvent

from tests.journey.sdk import HELLO, account, said
from tests.journey.stack import Stack

PIXEL = base64.b64encode(b"\x89PNG" + bytes(3000)).decode()
TOOLS: Any = [
    {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
]


def test_chat_with_choices_tools_parts_and_both_maxima(stack: Stack) -> None:
    a = account(stack)
    chat = a.openai(usage="40,30,8,4").chat.completions
    one = chat.create(model="demo-small", messages=HELLO, n=3, max_tokens=20)
    assert len(one.choices) == 3
    called = a.openai(usage="9,5", tool="1").chat.completions.create(
        model="demo-small", messages=HELLO, tools=TOOLS, max_completion_tokens=20
    )
    assert called.choices[0].message.tool_calls is not None
    content: Any = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
    ]
    chat.create(model="demo-small", messages=[{"role": "user", "content": content}])
    rows = a.charges(3)
    assert [row["amount"] for row in rows] == [70, 14, 70]
    assert said(rows[0], "model", "streamed", "status", "estimated") == ("demo-small", False, 200, False)
    assert said(rows[0], "input", "output", "cached", "reasoning") == (40, 30, 8, 4)


def test_chat_streams_of_text_choices_and_tools(stack: Stack) -> None:
    a = account(stack)
    with a.openai(usage="11,70").chat.completions.stream(model="demo-small", messages=HELLO, n=2) as stream:
        final = stream.get_final_completion()
    assert len(final.choices) == 2
    assert final.usage is None
    asked = a.openai(usage="5,6,1,2", tool="1").chat.completions.create(
        model="demo-small", messages=HELLO, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    )
    frames = list(asked)
    assert frames[-1].usage is not None
    assert frames[-1].usage.total_tokens == 11
    rows = a.charges(2)
    assert [row["amount"] for row in rows] == [81, 11]
    assert said(rows[1], "streamed", "cached", "reasoning", "estimated") == (True, 1, 2, False)


def test_a_model_is_asked_for_by_a_name_with_slashes(stack: Stack) -> None:
    found: Any = account(stack).openai().models.retrieve("meta-llama/Llama-3.1-8B")
    assert found.target == "/v1/models/meta-llama%2FLlama-3.1-8B"  # as the SDK sends it


def test_legacy_completions(stack: Stack) -> None:
    a = account(stack)
    completions = a.openai(usage="30,60").completions
    completions.create(model="demo-small", prompt=["one", "two"], n=2, best_of=3, max_tokens=5)
    text = "".join(
        frame.choices[0].text
        for frame in completions.create(model="demo-small", prompt="one", stream=True)
        if frame.choices
    )
    assert text
    assert a.amounts(2) == [90, 90]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("end", "event"),
    [("", ResponseCompletedEvent), ("incomplete", ResponseIncompleteEvent), ("failed", ResponseFailedEvent)],
)
def test_responses_however_they_end(stack: Stack, end: str, event: type, streamed: bool) -> None:
    a = account(stack)
    responses = a.openai(usage="13,9,2,3", thinking="1", **({"end": end} if end else {})).responses
    if streamed:
        events = list(responses.create(model="demo-small", input="hello", stream=True))
        assert isinstance(events[-1], event)
        assert [e.sequence_number for e in events] == list(range(len(events)))  # type: ignore[union-attr] # every event has one
    else:
        assert responses.create(model="demo-small", input="hello").status == (end or "completed")
    (row,) = a.charges(1)
    assert said(row, "input", "output", "cached", "reasoning") == (13, 9, 2, 3)
    assert row["amount"] == 22


def test_responses_in_the_background_are_not_streamed(stack: Stack) -> None:
    a = account(stack)
    with pytest.raises(openai.BadRequestError) as refused:
        a.openai().responses.create(model="demo-small", input="hello", background=True, stream=True)
    assert refused.value.param == "background"
    assert a.consumed() == []


@pytest.mark.parametrize("given", ["one text", ["two", "texts"], [1, 2, 3], [[1, 2], [3]]])
def test_embeddings_of_texts_and_tokens(stack: Stack, given: Any) -> None:
    a = account(stack)
    found = a.openai(usage="21").embeddings.create(model="text-embedding-demo", input=given)
    assert found.data[0].embedding == [0.125, -0.5, 0.25]
    (row,) = a.charges(1)
    assert (row["amount"], *said(row, "input", "output")) == (21, 21, 0)


def test_refusals_are_the_sdks_own_errors(stack: Stack) -> None:
    a = account(stack, 10, reset_interval="daily")

    def call(**options: Any) -> Any:
        client = a.openai(usage="30,30").with_options(**options)
        return client.chat.completions.create(model="demo-small", messages=HELLO, max_tokens=5)

    call()
    with pytest.raises(openai.RateLimitError) as limited:
        call(max_retries=3)  # told that waiting under a minute cannot help, the SDK does not try again
    assert (limited.value.code, limited.value.type) == ("insufficient_quota", "insufficient_quota")
    assert "60 of 10 tokens of this tenant's cycle are used" in limited.value.message
    assert limited.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.AuthenticationError):
        call(api_key="tk_" + "0" * 40)
    key = stack.make("api-keys", tenant_id=a.tenant, models=["other"])["key"]
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        call(api_key=key)
    assert forbidden.value.code == "model_not_allowed"
    stack.act(a.tenant, "block")
    with pytest.raises(openai.PermissionDeniedError) as blocked:
        call()
    assert blocked.value.code == "tenant_blocked"
    assert a.amounts(1) == [60]
