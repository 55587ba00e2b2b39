"""Fields of OpenAI's answers that report usage, and for chats all fields that count."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.metering.reading import Reports
from gateway.core.metering.report import UsageShape


class CacheWriteDetails(UsageShape):
    """Tokens written to a cache, by lifetime."""

    ttl_30m_tokens: int | None = None
    ttl_12h_tokens: int | None = None


class InputDetails(UsageShape):
    """The input tokens by kind."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    created_cache_tokens: int | None = None  # as vLLM calls them
    cache_write_tokens_details: CacheWriteDetails | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None


class OutputDetails(UsageShape):
    """The output tokens by kind, and the tokens of a predicted output."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class ReportedUsage(UsageShape):
    """The usage that a document or an event reports, by the names of chats and of responses.

    Further fields are additions of some servers: tokens of caches, reasoning (Perplexity, SGLang), uses of
    tools (OpenRouter, xAI), searches and the texts of their sources (Perplexity), and times (Groq).
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    prompt_cache_miss_tokens: int | None = None
    cached_tokens: int | None = None
    num_cached_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    server_tool_use: dict[str, int] | None = None
    server_side_tool_usage_details: dict[str, int] | None = None
    num_search_queries: int | None = None
    plugins: Any = None
    citation_tokens: int | None = None
    search_context_size: Any = None
    num_sources_used: Any = None
    num_server_side_tools_used: Any = None
    context_details: Any = None
    queue_time: Any = None
    prompt_time: Any = None
    completion_time: Any = None
    total_time: Any = None


USAGE = Reports(ReportedUsage)


class CompletionDocument(msgspec.Struct):
    """A whole answer, not streamed."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: Any = None
    service_tier: Any = None


class Function(msgspec.Struct):
    """A function call, or a piece of one."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """One tool call of a message."""

    function: Function | None = None


class Delta(msgspec.Struct):
    """A piece of a message in a stream."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: Function | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """A piece of one choice in a stream."""

    index: Any = None
    delta: Delta | None = None
    text: str | None = None
    finish_reason: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # as Moonshot has it
    stop_details: Any = None  # as Claude has it


class Groq(msgspec.Struct):
    """The member `x_groq` that Groq adds to its events."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class CompletionChunk(msgspec.Struct):
    """One event of a streamed chat or completion."""

    choices: list[Choice] | None = None
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    x_groq: Groq | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: Any = None
    service_tier: Any = None


read_whole = msgspec.json.Decoder(CompletionDocument).decode
read_event = msgspec.json.Decoder(CompletionChunk).decode
