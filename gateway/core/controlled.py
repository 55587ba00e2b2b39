"""The controlled fields of each API's request body: all that the gateway reads and judges.

Whatever is not named here passes unread. A field belongs here when a hold, a price, a model
list or the shape of the answer depends on it.
"""

from __future__ import annotations

import msgspec

from gateway.core.strict_json import StrictReader


class Chat(msgspec.Struct):
    """POST /v1/chat/completions."""

    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class Completions(msgspec.Struct):
    """POST /v1/completions."""

    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Responses(msgspec.Struct):
    """POST /v1/responses."""

    model: str | None = None
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None


class Embeddings(msgspec.Struct):
    """POST /v1/embeddings."""

    model: str | None = None


class Messages(msgspec.Struct):
    """POST /v1/messages."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None


class GenerationConfig(msgspec.Struct):
    """Limits of a Gemini call: proto3 JSON takes every field in two spellings."""

    camel_output: int | None = msgspec.field(name="maxOutputTokens", default=None)
    snake_output: int | None = msgspec.field(name="max_output_tokens", default=None)
    camel_count: int | None = msgspec.field(name="candidateCount", default=None)
    snake_count: int | None = msgspec.field(name="candidate_count", default=None)


class Generate(msgspec.Struct):
    """`generateContent` and `streamGenerateContent`; the model is in the path."""

    camel_config: GenerationConfig | None = msgspec.field(name="generationConfig", default=None)
    snake_config: GenerationConfig | None = msgspec.field(name="generation_config", default=None)


class Embed(msgspec.Struct):
    """`embedContent`; the model is in the path."""


_USAGE = {"stream_options": ("include_usage",)}
_CONFIG = ("maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count")

CHAT = StrictReader(
    Chat, ("model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"), _USAGE
)
COMPLETIONS = StrictReader(
    Completions, ("model", "stream", "stream_options", "n", "best_of", "max_tokens", "prompt"), _USAGE
)
RESPONSES = StrictReader(Responses, ("model", "stream", "background", "max_output_tokens"))
EMBEDDINGS = StrictReader(Embeddings, ("model",))
MESSAGES = StrictReader(Messages, ("model", "stream", "max_tokens"))
GENERATE = StrictReader(
    Generate,
    ("generationConfig", "generation_config"),
    {"generationConfig": _CONFIG, "generation_config": _CONFIG},
)
EMBED = StrictReader(Embed, ("model",))
