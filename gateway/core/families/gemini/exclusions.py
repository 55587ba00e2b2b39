"""Which dear prices a call of Gemini's models cannot have.

Its provider writes to caches by itself, so every call may. Enumerations of its JSON may be numbers, and both
spellings of a name count: a value that is not known rules nothing out.
"""

from __future__ import annotations

from typing import Final

from gateway.core.families.controlled import Document
from gateway.core.families.exclusions import Exclusions
from gateway.core.names import Names

_PLAIN_TIERS: Final = frozenset({"standard", "flex", "SERVICE_TIER_STANDARD", "SERVICE_TIER_FLEX"})
_TEXTUAL: Final = frozenset(
    {
        "text", "thought", "thoughtSignature", "thought_signature", "functionCall", "function_call",
        "functionResponse", "function_response",
    }
)  # fmt: skip
_FUNCTIONS: Final = frozenset({"functionDeclarations", "function_declarations"})
_KEPT: Final = frozenset({"cachedContent", "cached_content"})


def _no_media(document: Document, names: Names) -> bool:
    if not _KEPT.isdisjoint(document):
        return False
    tools = document.get("tools")
    own = tools is None or (
        isinstance(tools, list) and all(isinstance(one, dict) and one.keys() <= _FUNCTIONS for one in tools)
    )
    said = (document.get(name) for name in ("contents", "systemInstruction", "system_instruction"))
    return own and all(map(_is_text, said))


def _is_text(said: object) -> bool:
    """Whether a content, or a list of them, is known to have parts of text alone."""
    if isinstance(said, list):
        return all(map(_is_text, said))
    if not isinstance(said, dict):
        return True
    parts = said.get("parts")
    if not said.keys() <= {"role", "parts"}:
        return False
    return parts is None or (isinstance(parts, list | dict) and all(map(_is_text_part, _listed(parts))))


def _is_text_part(part: object) -> bool:
    if not isinstance(part, dict):
        return True
    for name in ("functionResponse", "function_response"):
        answered = part.get(name)
        if isinstance(answered, dict) and "parts" in answered:
            return False
    return part.keys() <= _TEXTUAL


def _listed(value: list[object] | Document) -> list[object]:
    return value if isinstance(value, list) else [value]


def _no_sound(document: Document, names: Names) -> bool:
    """Text alone is what an answer is where nothing else is asked for."""
    for name in ("generationConfig", "generation_config"):
        config = document.get(name)
        if not isinstance(config, dict):
            continue
        for field in ("responseModalities", "response_modalities"):
            asked = config.get(field)
            if asked is not None and not (isinstance(asked, list) and all(map(_is_silent, asked))):
                return False
    return True


def _is_silent(modality: object) -> bool:
    return isinstance(modality, str) and modality.upper() in {"TEXT", "IMAGE"}


def _no_tier(document: Document, tier: str) -> bool:
    said = [document[name] for name in ("serviceTier", "service_tier") if name in document]
    return all(one is None or (isinstance(one, str) and one in _PLAIN_TIERS) for one in said)


EXCLUSIONS = Exclusions(media=_no_media, sound=_no_sound, tier=_no_tier)
