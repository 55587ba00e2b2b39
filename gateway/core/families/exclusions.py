"""Which dear prices a call cannot have, by fields of its request that its provider documents. Pure.

A claim starts at the dearest price. Only what a table here rules out lowers it; a family has one such table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.families.controlled import Document
from gateway.core.names import Names

Rule = Callable[[Document, Names], bool]


def never(document: Document, names: Names) -> bool:
    """No field of the API rules it out."""
    return False


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Each rule answers whether a call cannot have such prices.

    `cache` are those of writing to a cache, `media` of sound, images and files that are read, `sound` of
    sound that is made. `tier` is asked for each service tier that has a price.
    """

    cache: Rule = never
    media: Rule = never
    sound: Rule = never
    tier: Callable[[Document, str], bool] = lambda document, tier: False


# Of an API that documents nothing.
NONE: Final = Exclusions()

# Kinds of parts and items that hold text alone, and the names that may stand in one. What is in `_INSIDE`
# is looked through.
_TEXTUAL: Final = frozenset(
    {
        "text", "refusal", "input_text", "output_text", "message", "function_call", "function_call_output",
        "reasoning", "reasoning_text", "summary_text", "thinking", "redacted_thinking", "tool_use",
        "tool_result",
    }
)  # fmt: skip
_INSIDE: Final = ("content", "output", "summary")
_BESIDE: Final = frozenset(
    {
        "role", "type", "text", "name", "id", "status", "call_id", "tool_call_id", "tool_use_id", "refusal",
        "arguments", "input", "tool_calls", "function_call", "cache_control", "annotations", "logprobs",
        "encrypted_content", "reasoning_content", "reasoning", "thinking", "signature", "data", "is_error",
        "phase", *_INSIDE,
    }
)  # fmt: skip
_OF_CLIENT: Final = frozenset({"function", "custom"})


def only_text(said: object) -> bool:
    """Whether what was said is known to hold nothing but text."""
    if isinstance(said, list):
        return all(map(only_text, said))
    if not isinstance(said, dict):
        return True
    if said.get("type", "message") not in _TEXTUAL or not said.keys() <= _BESIDE:
        return False
    return all(only_text(said[name]) for name in _INSIDE if name in said)


def only_own_tools(document: Document) -> bool:
    """Whether all tools of a call are the client's own: the provider's may read images and files."""
    tools = document.get("tools")
    return tools is None or (
        isinstance(tools, list)
        and all(
            isinstance(one, dict) and (one.get("type") in _OF_CLIENT or "input_schema" in one)
            for one in tools
        )
    )
