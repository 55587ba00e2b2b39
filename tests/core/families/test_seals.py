"""What binds a call to the model that its caller named, by API: seals, and objects of one model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.calls.call import Body, CallRequest
from gateway.core.families.registry import FAMILIES
from gateway.core.families.seals import bound_by
from gateway.core.model import Family

CLAUDE_SAID = {"type": "thinking", "thinking": "so", "signature": "EqQB"}
# An API, a body, and what binds it to its model; empty if nothing does.
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("anthropic", {"messages": [{"role": "assistant", "content": [CLAUDE_SAID]}]}, "(signature)"),
    ("anthropic", {"messages": [{"content": [{"type": "redacted_thinking", "data": "EqQB"}]}]}, "(redacted_thinking)"),
    (
        "anthropic",
        {"messages": [{"content": [{"type": "web_search_tool_result", "content": [{"encrypted_content": "Eq"}]}]}]},
        "(encrypted_content)",
    ),
    ("anthropic", {"messages": [{"content": [{**CLAUDE_SAID, "signature": ""}]}]}, ""),
    ("anthropic", {"messages": [{"content": [{"type": "tool_use", "input": {"signature": "mine"}}]}]}, ""),
    ("anthropic", {"messages": [{"role": "user", "content": '{"signature":"mine"}'}]}, ""),
    ("openai", {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]}, "(encrypted_content)"),
    ("openai", {"input": [{"type": "reasoning", "summary": [], "encrypted_content": None}]}, ""),
    ("openai", {"input": [{"type": "compaction", "encrypted_content": "gAAA"}]}, "(encrypted_content)"),
    ("openai", {"previous_response_id": "resp_1"}, "(previous_response_id)"),
    ("openai", {"conversation": {"id": "conv_1"}}, "(conversation)"),
    (
        "openai",
        {"messages": [{"tool_calls": [{"extra_content": {"google": {"thought_signature": "CiQB"}}}]}]},
        "(thought_signature)",
    ),
    (
        "openai",
        {"messages": [{"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]}]},
        "(reasoning.encrypted)",
    ),
    ("openai", {"extra_body": {"google": {"cached_content": "cachedContents/1"}}}, "google.cached_content)"),
    ("gemini", {"contents": [{"parts": [{"text": "so", "thoughtSignature": "CiQB"}]}]}, "(thoughtSignature)"),
    ("gemini", {"contents": [{"parts": [{"text": "so", "thought_signature": "CiQB"}]}]}, "(thought_signature)"),
    ("gemini", {"cachedContent": "cachedContents/1"}, "(cachedContent)"),
    ("gemini", {"input": [{"type": "thought", "signature": "CiQB"}]}, "(signature)"),
    ("gemini", {"contents": [{"parts": [{"functionResponse": {"response": {"signature": "mine"}}}]}]}, ""),
    (
        "bedrock",
        {"messages": [{"content": [{"reasoningContent": {"reasoningText": {"text": "so", "signature": "EqQB"}}}]}]},
        "(signature)",
    ),
    ("bedrock", {"messages": [{"content": [{"reasoningContent": {"redactedContent": "RXFR"}}]}]}, "(redactedContent)"),
    ("bedrock", {"messages": [{"content": [{"toolUse": {"input": {"signature": "mine"}}}]}]}, ""),
    ("bedrock", {"messages": [{"content": [{"toolResult": {"content": [{"json": {"signature": "mine"}}]}}]}]}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("family", "body", "named"), BODIES)
def test_a_body_is_bound_by_a_seal_of_its_api(family: str, body: dict[str, Any], named: str) -> None:
    call = CallRequest("none", Family(family), Body(json.dumps(body).encode(), document=body))
    why = bound_by(call, FAMILIES[Family(family)].seals)
    assert why.endswith(named)
    assert bool(why) == bool(named)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family.seals], ids=lambda family: family.name
)
def test_each_member_of_a_table_of_seals_binds(family: Any) -> None:
    for name in family.seals:
        for part in ({name: "sealed"}, {"type": name, "data": "sealed"}):
            body: dict[str, Any] = {"messages": [{"content": [part]}]}
            call = CallRequest("none", family.name, Body(json.dumps(body).encode(), document=body))
            assert bound_by(call, family.seals).endswith(f"({name})")
