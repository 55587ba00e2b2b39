"""What calls of Gemini's models ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    Document,
    Names,
    choices,
    inner,
    maximum,
    model_in_path,
)
from gateway.errors import InvalidRequest

T = TypeVar("T")

_GENERATE = Names("model", "generationConfig", "generation_config", *OF_EVERY_FAMILY)
_EMBED = Names("model", "requests", *OF_EVERY_FAMILY)
# By these an upstream chooses among models by itself, or takes another than that of the path (Vertex AI).
_CHOOSING = (
    "routingConfig", "routing_config", "modelConfig", "model_config", "modelSelectionConfig",
    "model_selection_config",
)  # fmt: skip
_GENERATION_CONFIG = Names(
    "maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count", *_CHOOSING
)


def read_generate(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """Contents to generate, streamed or not by the path."""
    _GENERATE.check(document)
    call.model = model_in_path(document, path_params.get("model"))
    call.streamed = call.meter == "gemini_stream"
    camel = inner(document, "generationConfig", _GENERATION_CONFIG)
    snake = inner(document, "generation_config", _GENERATION_CONFIG)
    config = _one(camel, snake, "generationConfig")
    if config is not None:
        inside = "generationConfig."
        for name in _CHOOSING:
            if config.get(name) is not None:
                param = inside + name
                raise InvalidRequest(f"The field {param} is not accepted: name the model.", param=param)
        call.output_max = _one(
            maximum(config, "maxOutputTokens", bounds.usage_tokens_max, inside),
            maximum(config, "max_output_tokens", bounds.usage_tokens_max, inside),
            "generationConfig.maxOutputTokens",
        )
        call.choices = max(
            choices(config, "candidateCount", bounds.choices_max, inside),
            choices(config, "candidate_count", bounds.choices_max, inside),
        )
        _one(config.get("candidateCount"), config.get("candidate_count"), "generationConfig.candidateCount")


def read_embed(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """Embeddings, which produce no tokens."""
    _EMBED.check(document)
    call.model = model_in_path(document, path_params.get("model"))
    call.output_max = 0


def config_of(document: Document) -> Document:
    """Gemini's configuration in the spelling the call has it, made where it has none."""
    for name in ("generation_config", "generationConfig"):
        config = document.get(name)
        if isinstance(config, dict):
            return config
    made: Document = {}
    document["generationConfig"] = made
    return made


def _one(camel: T | None, snake: T | None, param: str) -> T | None:
    """Both spellings of proto3 JSON are one field: refuse it given in both."""
    if camel is not None and snake is not None:
        raise InvalidRequest(f"The field {param} appears twice.", param=param)
    return snake if camel is None else camel
