"""What calls of Anthropic's messages ask for."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    Document,
    Names,
    flag,
    inner,
    maximum,
    model_name,
    stated_user,
)

_MESSAGES = Names("model", "stream", "max_tokens", "metadata", *OF_EVERY_FAMILY)
_METADATA = Names("user_id")


def read_messages(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    """Messages."""
    _MESSAGES.check(document)
    call.model = model_name(document.get("model"))
    call.streamed = flag(document, "stream")
    call.output_max = maximum(document, "max_tokens", bounds.usage_tokens_max)
    metadata = inner(document, "metadata", _METADATA)
    if metadata is not None:
        call.user = stated_user(metadata.get("user_id"))
