"""What calls of OpenAI's APIs ask for."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    Document,
    Names,
    choices,
    flag,
    inner,
    maximum,
    model_name,
    stated_user,
)
from gateway.errors import InvalidRequest

_CHAT = Names(
    "model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "user",
    "safety_identifier", *OF_EVERY_FAMILY,
)  # fmt: skip
_COMPLETIONS = Names(
    "model", "stream", "stream_options", "n", "best_of", "max_tokens", "prompt", "prompt_embeds", "user",
    "safety_identifier", *OF_EVERY_FAMILY,
)  # fmt: skip
_RESPONSES = Names(
    "model", "stream", "background", "max_output_tokens", "user", "safety_identifier", *OF_EVERY_FAMILY
)
_PROMPT = Names("id", "version", "variables")
_EMBEDDINGS = Names("model", "encoding_format", "user", "safety_identifier", *OF_EVERY_FAMILY)
# Of any other a JSON document may be no answer, and its use stand where nobody reads it.
_ENCODINGS = (None, "float", "base64")


def read_chat(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """A chat."""
    _read_common(call, document, _CHAT, bounds)
    older = maximum(document, "max_tokens", bounds.usage_tokens_max)
    newer = maximum(document, "max_completion_tokens", bounds.usage_tokens_max)
    call.output_max = newer if older is None else older if newer is None else max(older, newer)
    call.choices = choices(document, "n", bounds.choices_max)


def read_completions(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """A completion: each prompt makes its own choices."""
    _read_common(call, document, _COMPLETIONS, bounds)
    call.output_max = maximum(document, "max_tokens", bounds.usage_tokens_max)
    each = max(choices(document, "n", bounds.choices_max), choices(document, "best_of", bounds.choices_max))
    call.choices = each * max(1, _prompts(document.get("prompt")) + _prompts(document.get("prompt_embeds")))


def read_responses(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """A response."""
    _read_common(call, document, _RESPONSES, bounds)
    inner(document, "prompt", _PROMPT)
    if flag(document, "background"):
        raise InvalidRequest("background: its use could not be metered.", param="background")
    call.output_max = maximum(document, "max_output_tokens", bounds.usage_tokens_max)


def read_embeddings(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """Embeddings, which produce no tokens."""
    _read_common(call, document, _EMBEDDINGS, bounds)
    if document.get("encoding_format") not in _ENCODINGS:
        raise InvalidRequest('encoding_format must be "float" or "base64".', param="encoding_format")
    call.output_max, call.streamed = 0, False


def _read_common(call: Call, document: Document, names: Names, bounds: Bounds) -> None:
    """What every API of OpenAI's says alike."""
    names.check(document)
    call.model = model_name(document.get("model"))
    call.streamed = flag(document, "stream")
    call.user = stated_user(document.get("safety_identifier")) or stated_user(document.get("user"))


def _prompts(prompt: object) -> int:
    """How many prompts a field of a completion holds, as texts, tokens or vLLM's embeddings."""
    if prompt is None:
        return 0
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1
