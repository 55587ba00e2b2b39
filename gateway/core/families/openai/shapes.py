"""What is read of OpenAI's chat completions, completions and embeddings: use, and what counts as text."""

from __future__ import annotations

import msgspec


class Details(msgspec.Struct):
    """What a number of tokens is made of."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """The use a document or a last frame reports."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None


class Whole(msgspec.Struct):
    """A whole document."""

    usage: Usage | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Function(msgspec.Struct):
    """A function that is called, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool that is called."""

    function: Function | None = None


class Delta(msgspec.Struct):
    """A piece of a message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: Function | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """A piece of one choice."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Event(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


read_whole = msgspec.json.Decoder(Whole).decode
read_event = msgspec.json.Decoder(Event).decode
