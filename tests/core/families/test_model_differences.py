"""What a model refuses that another one of its API takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.accounts.budgets import is_of
from gateway.core.calls.call import Body, CallRequest, names_in
from gateway.core.families.model_differences import refused_part
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family

ASSISTANT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{"}]
# An API, the model asked for, its substitute, a body, and the part that the substitute refuses.
REFUSED: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("openai", "gpt-5.4", "gpt-4.1-mini", {"reasoning_effort": "low"}, "reasoning_effort"),
    ("openai", "gpt-5.5", "gpt-5-mini", {"reasoning": {"effort": "xhigh"}}, "the effort xhigh"),
    ("openai", "gpt-5.5", "gpt-5.4-mini", {"reasoning": {"effort": "xhigh"}}, ""),
    ("openai", "gpt-5.6", "gpt-5.4", {"reasoning_effort": "max"}, "the effort max"),
    ("openai", "gpt-5.2", "gpt-5.1-chat-latest", {"reasoning_effort": "high"}, "the effort high"),
    ("openai", "gpt-5.2", "o4-mini", {"reasoning_effort": "none"}, "the effort none"),
    ("openai", "gpt-4o", "gpt-5.4-nano", {"max_tokens": 9}, "max_tokens"),
    ("openai", "gpt-4o", "gpt-5-chat-latest", {"max_tokens": 9, "temperature": 0.2, "stop": "x"}, ""),
    ("openai", "gpt-4o", "gpt-5-nano", {"temperature": 0.2}, "temperature"),
    ("openai", "gpt-4o", "gpt-5-nano", {"temperature": 1.0, "top_p": 1, "presence_penalty": 0}, ""),
    ("openai", "gpt-4o", "gpt-5.4-nano", {"temperature": 0.2, "top_p": 0.5}, ""),
    ("openai", "gpt-4o", "gpt-5.4-nano", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("openai", "gpt-4o", "o4-mini", {"stop": ["x"]}, "stop"),
    ("openai", "gpt-5.4", "gpt-4o", {"text": {"verbosity": "low"}}, "verbosity"),
    ("openai", "gpt-5.4", "gpt-4o", {"verbosity": "medium"}, ""),
    (
        "openai", "gpt-4o", "gpt-4-turbo",
        {"response_format": {"type": "json_schema"}}, "the format json_schema",
    ),
    ("openai", "whisper-1", "gpt-4o-mini-transcribe", {"response_format": "verbose_json"}, "the format verbose_json"),
    ("openai", "gpt-4o", "unheard-of", {"reasoning_effort": "xhigh", "temperature": 0, "max_tokens": 1}, ""),
    ("anthropic", "claude-opus-4-6", "claude-haiku-4-5", {"thinking": {"type": "adaptive"}}, "thinking of type adaptive"),
    ("anthropic", "claude-opus-4-5", "claude-sonnet-5", {"thinking": {"type": "enabled"}}, "thinking of type enabled"),
    ("anthropic", "claude-opus-4-5", "claude-sonnet-4-6", {"thinking": {"type": "enabled"}}, ""),
    ("anthropic", "claude-sonnet-5", "claude-opus-4-7", {"thinking": {"type": "disabled"}}, "thinking of type disabled"),
    ("anthropic", "claude-opus-4-7", "claude-sonnet-4-6", {"output_config": {"effort": "xhigh"}}, "the effort xhigh"),
    ("anthropic", "claude-opus-4-7", "claude-haiku-4-5", {"output_config": {"effort": "low"}}, "output_config.effort"),
    ("anthropic", "claude-opus-4-6", "claude-sonnet-5", {"temperature": 0}, "temperature"),
    ("anthropic", "claude-opus-4-6", "claude-sonnet-5", {"temperature": 1}, ""),
    ("anthropic", "claude-opus-4-6", "claude-sonnet-4-6", {"speed": "fast"}, "speed fast"),
    ("anthropic", "claude-opus-4-5", "claude-sonnet-5", {"messages": ASSISTANT}, "the beginning of its answer"),
    ("anthropic", "claude-opus-4-5", "claude-sonnet-5", {"messages": ASSISTANT[:1]}, ""),
    (
        "bedrock", "us.anthropic.claude-opus-4-5-20251101-v1:0", "global.anthropic.claude-sonnet-5",
        {"additionalModelRequestFields": {"thinking": {"type": "enabled"}}}, "thinking of type enabled",
    ),
    (
        "bedrock", "anthropic.claude-opus-4-5", "anthropic.claude-sonnet-5",
        {"inferenceConfig": {"topP": 0.5}}, "topP",
    ),
    ("gemini", "gemini-3-pro-preview", "gemini-2.5-flash", {"generationConfig": {"thinkingConfig": {"thinkingLevel": "low"}}}, "thinkingLevel"),
    ("gemini", "gemini-2.5-pro", "gemini-2.0-flash", {"generation_config": {"thinking_config": {"thinking_budget": 9}}}, "thinking_config"),
    ("gemini", "gemini-2.5-pro", "gemini-2.5-flash", {"generationConfig": {"thinkingConfig": {"thinkingBudget": 9}}}, ""),
    ("openai", "gpt-4.1", "gpt-6-luna", {"max_tokens": 50}, "max_tokens"),
    ("openai", "gpt-5.2", "gpt-6-astra", {"reasoning": {"effort": "none"}}, "the effort none"),
    ("openai", "gpt-5.5", "gpt-6.1-sol", {"reasoning_effort": "none"}, "the effort none"),
    ("openai", "gpt-5.5", "gpt-6.1-sol", {"reasoning_effort": "max"}, ""),
    ("openai", "gpt-5.2", "gpt-6-astra", {"temperature": 0.2}, "temperature"),
    ("openai", "gpt-5.2", "gpt-5.6-luna", {"reasoning_effort": "low", "tools": [{"type": "function"}]}, "functions beside reasoning_effort"),
    ("openai", "gpt-5.2", "gpt-5.6-luna", {"tools": [{"type": "function"}]}, ""),
    ("openai", "gpt-5.2", "gpt-4o-mini", {"prompt_cache_retention": "24h"}, "prompt_cache_retention 24h"),
    ("openai", "gpt-5.2", "gpt-4o-mini", {"prompt_cache_retention": "in_memory"}, ""),
    ("openai", "gpt-5.2", "gpt-4.1-mini", {"include": ["reasoning.encrypted_content"]}, "a member of include reasoning.encrypted_content"),
    ("openai", "gpt-5.2", "gpt-4.1-mini", {"include": ["message.output_text.logprobs"]}, ""),
    ("anthropic", "claude-opus-4-6", "claude-haiku-5-5", {"top_k": 5}, "top_k"),
    ("anthropic", "claude-opus-4-6", "claude-haiku-5-5", {"temperature": 0.5}, "temperature"),
    ("anthropic", "claude-opus-4-6", "claude-haiku-5-5", {"thinking": {"type": "enabled"}}, "thinking of type enabled"),
    ("anthropic", "claude-opus-4-6", "claude-haiku-5-5", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}}, ""),
    ("anthropic", "claude-opus-4-5", "claude-haiku-5-5", {"messages": ASSISTANT}, "the beginning of its answer"),
    (
        "anthropic", "claude-opus-4-6", "claude-haiku-4-5",
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}, {"type": "compact_20260112"}]}},
        "the edit of its context compact_20260112",
    ),
    ("anthropic", "claude-opus-4-6", "claude-haiku-4-5", {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, ""),
    ("bedrock", "anthropic.claude-opus-4-6-v1", "anthropic.claude-haiku-4-5-20251001-v1:0", {"anthropic_beta": ["context-1m-2025-08-07"]}, "the beta context-1m-2025-08-07"),
    (
        "bedrock", "anthropic.claude-opus-4-6-v1", "anthropic.claude-haiku-4-5-20251001-v1:0",
        {"additionalModelRequestFields": {"anthropic_beta": ["a", "context-1m-2025-08-07"]}}, "the beta context-1m-2025-08-07",
    ),
    ("gemini", "gemini-2.5-pro", "gemini-2.5-flash", {"generationConfig": {"thinkingConfig": {"thinkingBudget": 32_768}}}, "the thinkingBudget"),
    ("gemini", "gemini-2.5-pro", "gemini-2.5-flash", {"generationConfig": {"thinkingConfig": {"thinkingBudget": 24_576}}}, ""),
    ("gemini", "gemini-2.5-pro", "gemini-2.5-flash-lite", {"generation_config": {"thinking_config": {"thinking_budget": 128}}}, "the thinkingBudget"),
    ("gemini", "gemini-2.5-pro", "gemini-2.5-flash-lite", {"generationConfig": {"thinkingConfig": {"thinkingBudget": -1}}}, ""),
    ("gemini", "gemini-3-pro-preview", "gemini-2.5-flash", {"tools": [{"googleSearch": {}}, {"functionDeclarations": []}]}, "search or a schema beside functions"),
    ("gemini", "gemini-3-pro-preview", "gemini-2.5-flash", {"tools": [{"functionDeclarations": []}], "generationConfig": {"responseSchema": {"type": "OBJECT"}}}, "search or a schema beside functions"),
    ("gemini", "gemini-3-pro-preview", "gemini-2.5-flash", {"tools": [{"googleSearch": {}}]}, ""),
    ("gemini", "gemini-2.5-pro", "gemma-3-27b-it", {"systemInstruction": {"parts": []}}, "systemInstruction"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "asked", "substitute", "body", "part"), REFUSED)
def test_a_part_is_refused_where_the_table_of_its_api_says_so(
    family: str, asked: str, substitute: str, body: dict[str, Any], part: str
) -> None:
    content = json.dumps(body).encode()
    call = CallRequest("none", Family(family), Body(content, document=body, names=names_in(body)))
    rows = FAMILIES[Family(family)].differences
    assert refused_part(rows, call, asked, (substitute,)) == part
    assert not refused_part(rows, call, substitute, (substitute,))


@pytest.mark.parametrize(
    ("substitute", "lines", "part"),
    [
        (
            "claude-haiku-4-5",
            b"Anthropic-Beta: claude-code-20250219, context-1m-2025-08-07\r\n",
            "the beta context-1m-2025-08-07",
        ),
        (
            "claude-haiku-4-5",
            b"anthropic-beta: a\r\nanthropic-beta: compact-2026-01-12\r\n",
            "the beta compact-2026-01-12",
        ),
        (
            "claude-haiku-4-5",
            b"anthropic-beta: interleaved-thinking-2025-05-14\r\nuser-agent: context-1m-2025-08-07\r\n",
            "",
        ),
        ("claude-sonnet-4-5", b"anthropic-beta: context-1m-2025-08-07\r\n", ""),
    ],
)
def test_words_of_a_header_are_refused_where_the_table_says_so(
    substitute: str, lines: bytes, part: str
) -> None:
    call = CallRequest("none", Family("anthropic"), Body(b"{}", document={}, names=names_in({})))
    rows = FAMILIES[Family("anthropic")].differences
    assert refused_part(rows, call, "claude-opus-4-6", (substitute,), lines) == part


@pytest.mark.parametrize(
    ("asked", "substitute", "part"),
    [
        ("gpt-image-2", "gpt-image-1-mini", ""),
        ("gpt-image-2", "dall-e-3", "pictures as they are asked for"),
        ("dall-e-3", "gpt-image-1-mini", "pictures as they are asked for"),
        ("flux", "flux-mini", ""),
    ],
)
def test_pictures_are_refused_between_makers(asked: str, substitute: str, part: str) -> None:
    call = CallRequest("openai_images", Family("openai"), Body(b"{}", document={}, names=names_in({})))
    assert refused_part(FAMILIES[Family("openai")].differences, call, asked, (substitute,)) == part


def test_each_pattern_is_of_a_model_with_a_published_price() -> None:
    prices = json.loads(Path("gateway/run/bundled_prices.json").read_text())
    known = {row["model"].rpartition("/")[2] for row in prices["rows"]}
    rows = [row for family in FAMILIES.values() for row in family.differences]
    patterns = {pattern for row in rows for pattern in row.models}
    assert len(patterns) > 50
    unknown = [pattern for pattern in patterns if not any(is_of(name, pattern) for name in known)]
    assert unknown == ["dall-e*"]  # which others serve since OpenAI does not
