"""Whether a prompt may contain sound, by the field and the type of each part. Pure.

Parts that the APIs document are in the table of costs. Other parts may be sound, which is the most
expensive input: a part of unknown type that holds more than text, a part without a type that has an unknown
member, and a file whose stated type is not that of a picture, a text or a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gateway.core.families.controlled import Document
from gateway.core.families.costs import (
    PAGES,
    PARTS,
    PICTURE,
    SOUND,
    STATED,
    TEXT,
    VIDEO,
    names_of,
)

# Fields of a call that its model reads: messages or items, parts, and objects with parts beside settings.
_MESSAGES: Final = ("messages", "input", "contents", "inputs", "chat_history", "message")
_PARTS: Final = ("instructions", "system", "content", "systemInstruction", "system_instruction")
_SETTINGS: Final = ("requests", "prompt")
# Where messages, items and parts hold parts.
_INSIDE: Final = frozenset(
    {
        "content", "contents", "parts", "output", "summary", "tool_result", "toolResult", "functionResponse",
        "function_response",
    }
)  # fmt: skip
# Those of them that are an answer of a tool, whatever type it states.
_ANSWERS: Final = frozenset({"tool_result", "toolResult", "functionResponse", "function_response"})
# Members and types of parts that are sound, or videos, which have some.
_HEARD: Final = names_of("parts", SOUND, VIDEO) | names_of("fields", SOUND, VIDEO)
# Those that are pictures or documents, unless they state another type.
_SEEN: Final = names_of("parts", PICTURE, PAGES) | names_of("fields", PICTURE, PAGES)
# Those with a stated type; without it they may be anything.
_UNSURE: Final = names_of("fields", STATED)
# Types of parts and items that hold parts, and are text but for these.
_HOLDING: Final = names_of("parts", PARTS)
# Types that are text, and calls of tools with all that these say. Another API may have parts of that type.
_TEXTS: Final = names_of("parts", TEXT) - _HEARD - _SEEN - _HOLDING
_PLAIN: Final = ("text", "input_text", "output_text")
# Members of parts without a type that are text, settings or calls of tools.
_SILENT: Final = names_of("fields", TEXT) | {
    "type",
    "role",
    "id",
    "name",
    "status",
    "response",
    "scheduling",
    "toolUseId",
}
# Members that are text in a part of any type.
_OF_TEXT: Final = frozenset({"type", "role", "text"})
_RESULT: Final = "result"  # an object is what a function of the caller's gave, and a list has parts
_STATES: Final = frozenset({"mimeType", "mime_type", "media_type", "format"})
# Captions of a picture or a document.
_CAPTIONS: Final = frozenset({"title", "context", "text"})
# A part that is nested deeper counts as sound.
_DEPTH_MAX: Final = 32
_MESSAGE_DEPTH: Final = _DEPTH_MAX - 1  # of a message, in the list at its place
_PART_DEPTH: Final = _MESSAGE_DEPTH - 1
_DEPTHS: Final = dict.fromkeys(_MESSAGES, _DEPTH_MAX) | dict.fromkeys(_PARTS, _PART_DEPTH)
# Types of pictures, texts and documents.
_SEEN_TYPE: Final = re.compile(
    r"(?:image|text)/|application/(?:pdf|json|xml|rtf|msword|csv|epub\+zip|[\w.-]+\+(?:json|xml|yaml))"
    r"|application/(?:x-)?(?:ecmascript|graphql|javascript|jsonl|latex|ndjson|python|sh|sql|tex|toml|typescript|yaml)\b"
    r"|application/vnd\.(?:openxmlformats-officedocument|oasis\.opendocument|ms-excel|ms-powerpoint|ms-word)",
    re.IGNORECASE,
)
_TEXT_TYPE: Final = re.compile("text/", re.IGNORECASE)
_URL: Final = re.compile(r"\s*data:([^;,]*)", re.IGNORECASE)


def may_hear(document: Document) -> bool:
    """Return whether a call may contain sound for its model. A part of unknown kind counts as sound."""
    for name, parts in document.items():
        depth = _DEPTHS.get(name)
        if depth is not None and _may_parts_sound(parts, depth):
            return True
        if name in _SETTINGS:
            for entry in parts if isinstance(parts, list) else (parts,):
                if isinstance(entry, dict) and _may_settings_sound(entry):
                    return True
    return False


def _may_settings_sound(settings: Document) -> bool:
    """Return whether one call of a list, or a stored prompt with variables, may contain sound."""
    variables = settings.get("variables")
    if isinstance(variables, dict) and _may_parts_sound(list(variables.values()), _PART_DEPTH):
        return True
    return any(_may_parts_sound(settings.get(name), _PART_DEPTH) for name in _INSIDE)


def _may_parts_sound(parts: object, depth: int) -> bool:
    """Return whether messages, items or parts may contain sound.

    A value nested more than `depth` deep is not searched, and counts as sound.
    """
    if isinstance(parts, list):
        for entry in parts:
            if isinstance(entry, dict) and len(entry) == 2 and _is_plain(entry):
                continue
            if _is_inside_heard(entry, depth):
                return True
        return False
    if not isinstance(parts, dict):
        return False
    kind = parts.get("type")
    if not isinstance(kind, str):
        return _is_untyped_heard(parts, depth)
    return _is_typed_heard(kind, parts, depth) or _is_member_heard(parts, depth)


def _is_inside_heard(held: object, depth: int) -> bool:
    """Return whether a value is a list or an object that may contain sound, at most `depth` levels deep.

    A deeper value is not searched, and counts as sound.
    """
    return isinstance(held, dict | list) and (depth == 0 or _may_parts_sound(held, depth - 1))


def _is_plain(part: Document) -> bool:
    """Return whether an object of two fields is a message with a text (role and content) or a text part."""
    content = part.get("content")
    if content is None:
        return part.get("type") in _PLAIN and isinstance(part.get("text"), str)
    return "role" in part and isinstance(content, str)


def _is_typed_heard(kind: str, part: Document, depth: int) -> bool:
    """Return whether a part or an item of the type `kind` may be sound.

    If no table has the type, the fields of the part decide. `depth` is the number of levels to search.
    """
    if kind in _TEXTS:
        return False
    if kind in _HEARD:
        return True
    if kind in _SEEN:
        source = part.get("source")
        inside = source.get("content") if isinstance(source, dict) else None
        return _is_heard(kind, part) or _is_inside_heard(inside, depth)
    holds_parts = kind in _HOLDING
    for name, held in part.items():
        if name in _INSIDE and isinstance(held, dict | list):
            heard = _is_inside_heard(held, depth)
        elif not holds_parts:
            heard = _holds(held) and not (name in _OF_TEXT and isinstance(held, str))
        else:
            heard = name == _RESULT and isinstance(held, list) and _is_inside_heard(held, depth)
        if heard:
            return True
    return False


def _is_member_heard(part: Document, depth: int) -> bool:
    """Return whether a part may be sound to a server that reads its fields by name and ignores its type.

    `depth` is the number of levels to search.
    """
    for name, held in part.items():
        if not isinstance(held, dict | list):
            continue
        if name in _ANSWERS or (name in _INSIDE and "role" in part):
            heard = _is_inside_heard(held, depth)
        else:
            heard = len(held) > 0 and (name in _HEARD or name in _UNSURE) and _is_heard(name, held)
        if heard:
            return True
    return False


def _is_untyped_heard(part: Document, depth: int) -> bool:
    """Return whether a message, or a part without a type, may contain sound, by the names of its fields.

    `depth` is the number of levels to search.
    """
    is_message = depth >= _MESSAGE_DEPTH and isinstance(part.get("role"), str)
    for name, held in part.items():
        if name in _ANSWERS and isinstance(held, dict):
            heard = depth == 0 or _is_untyped_heard(held, depth - 1)
        elif name in _INSIDE:
            heard = _is_inside_heard(held, depth)
        elif name in _HEARD or name in _SEEN or name in _UNSURE:
            heard = _holds(held) and _is_heard(name, held)
        else:
            heard = not is_message and name not in _SILENT and _holds(held)
        if heard:
            return True
    return False


def _holds(held: object) -> bool:
    """Return whether a value may be data or an address: a text, list or object that is not empty."""
    return isinstance(held, str | dict | list) and len(held) > 0


def _is_heard(kind: str, held: object) -> bool:
    """Return whether a part is sound, by its type or field name (`kind`), or by its stated media type."""
    if kind in _HEARD:
        return True
    stated = list(_stated_types(held, _DEPTH_MAX))
    return not all(map(_SEEN_TYPE.match, stated)) or (kind in _UNSURE and not stated)


def _stated_types(held: object, depth: int) -> Iterator[str]:
    """Yield the media types that a value states, in a field or at the beginning of a `data:` URL.

    At most `depth` levels are searched.
    """
    if isinstance(held, str):
        url = _URL.match(held)
        if url is not None:
            yield url[1]
    elif isinstance(held, list):
        for inner in held if depth else ():
            yield from _stated_types(inner, depth - 1)
    elif isinstance(held, dict):
        types = [kind for name in _STATES if isinstance(kind := held.get(name), str) and "/" in kind]
        yield from types
        if depth and not (types and all(map(_TEXT_TYPE.match, types))):
            for name, inner in held.items():
                if name not in _STATES and name not in _CAPTIONS:
                    yield from _stated_types(inner, depth - 1)
