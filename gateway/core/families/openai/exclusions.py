"""Which dear prices a call of OpenAI's APIs cannot have.

Its provider writes to caches by itself, so every call may. A tier that is not said is the project's own.
"""

from __future__ import annotations

from typing import Final

from gateway.core.families.controlled import Document
from gateway.core.families.exclusions import Exclusions, only_own_tools, only_text
from gateway.core.names import Names

_PLAIN_TIERS: Final = frozenset({"default", "flex"})
_SAID: Final = ("messages", "input", "instructions", "system")
# What the upstream keeps may hold anything, and so may another source of content.
_KEPT: Final = frozenset({"previous_response_id", "conversation", "plugins", "audio"})


def _no_media(document: Document, names: Names) -> bool:
    if not _KEPT.isdisjoint(document) or isinstance(document.get("prompt"), dict):
        return False
    return only_own_tools(document) and all(only_text(document.get(name)) for name in _SAID)


def _no_sound(document: Document, names: Names) -> bool:
    """Text alone is what an answer is where nothing else is asked for."""
    asked = document.get("modalities")
    if asked is None:
        return "audio" not in document
    return isinstance(asked, list) and all(one in {"text", "image"} for one in asked)


def _no_tier(document: Document, tier: str) -> bool:
    said = document.get("service_tier")
    return isinstance(said, str) and said in _PLAIN_TIERS and "speed" not in document


EXCLUSIONS = Exclusions(media=_no_media, sound=_no_sound, tier=_no_tier)
