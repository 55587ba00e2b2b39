"""Whether a prompt may contain sound, by the field and the type of each part. Pure.

The tables have the parts that the APIs document. A file of unknown type, or a part of unknown type with data
or an address, may be sound, which is the most expensive input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gateway.core.families.controlled import Document

# Fields of a call that its model reads.
_PLACES: Final = (
    "messages", "input", "instructions", "system", "contents", "content", "systemInstruction",
    "system_instruction", "requests", "inputs", "prompt", "chat_history", "message",
)  # fmt: skip
# Where messages, items and parts hold parts.
_INSIDE: Final = frozenset(
    {
        "content", "contents", "parts", "output", "summary", "tool_result", "toolResult", "functionResponse",
        "function_response",
    }
)  # fmt: skip
# Members and types of parts that are sound, or videos, which have some.
_HEARD: Final = frozenset(
    {"audio", "audio_url", "input_audio", "output_audio", "audio_embeds", "video", "video_url", "input_video"}
)
# Those that are pictures or documents, unless they state another type.
_SEEN: Final = frozenset(
    {
        "image", "image_url", "input_image", "output_image", "image_embeds", "computer_screenshot",
        "document", "document_url", "file", "input_file",
    }
)  # fmt: skip
# Those with a stated type; without it they may be anything.
_UNSURE: Final = frozenset({"inlineData", "inline_data", "fileData", "file_data", "blob"})
# Those that are text, and calls of tools with all that these say.
_SILENT: Final = frozenset(
    {
        "text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning",
        "reasoning_text", "summary_text", "tool_use", "function_call", "functionCall", "toolUse",
        "executableCode", "executable_code", "codeExecutionResult", "code_execution_result", "reference",
        "search_result", "reasoningContent", "guardContent", "cachePoint", "citationsContent", "response",
        "args", "arguments", "json", "metadata", "videoMetadata", "video_metadata", "partMetadata",
        "cache_control",
    }
)  # fmt: skip
_STATES: Final = frozenset({"mimeType", "mime_type", "media_type", "format"})
# Ends of the names of members with data or an address.
_HOLDS: Final = ("data", "bytes", "url", "uri", "Uri", "file_id", "s3Location")
_BYTES: Final = ("data", "bytes", "file_data", "mime_type", "mimeType", "media_type")
# A part that is nested deeper counts as sound.
_DEPTH_MAX: Final = 32
# Types of pictures, texts and documents.
_SEEN_TYPE: Final = re.compile(
    r"(?:image|text)/|application/(?:pdf|json|xml|rtf|msword|csv|yaml|(?:x-)?(?:javascript|python|ndjson))"
    r"|application/vnd\.(?:openxmlformats-officedocument|oasis\.opendocument|ms-excel|ms-powerpoint|ms-word)",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"\s*data:([^;,]*)", re.IGNORECASE)


def may_hear(document: Document) -> bool:
    """Return whether a call may give its model sound to read. A part of unknown kind counts as sound."""
    for name in _PLACES:
        said = document.get(name)
        if isinstance(said, dict | list) and _in_said(said, _DEPTH_MAX):
            return True
    return False


def _in_said(said: Document | list[object], depth: int) -> bool:
    """Return whether messages, items or contents may contain sound."""
    if isinstance(said, list):
        for each in said:
            if not isinstance(each, dict | list) or _is_plain(each):
                continue
            if depth == 0 or _in_said(each, depth - 1):
                return True
        return False
    kind = said.get("type")
    if isinstance(kind, str):
        if kind in _HEARD or kind in _SEEN:
            return _is_heard(kind, said)
        if kind not in _SILENT and any(isinstance(said.get(name), str) for name in _BYTES):
            return True
    for name, each in said.items():
        if isinstance(each, dict | list) and _is_member_heard(name, each, depth):
            return True
    return False


def _is_plain(message: object) -> bool:
    """Return whether a message has a role and a text alone, as nearly all have."""
    return (
        isinstance(message, dict)
        and len(message) == 2
        and "role" in message
        and isinstance(message.get("content"), str)
    )


def _is_member_heard(name: str, held: Document | list[object], depth: int) -> bool:
    if name in _INSIDE:
        return depth == 0 or _in_parts(held, depth - 1)
    known = name in _HEARD or name in _UNSURE or name in _SEEN
    return known and len(held) > 0 and _is_heard(name, held)


def _in_parts(parts: object, depth: int) -> bool:
    """Return whether parts may contain sound. A part of an unknown type may, if it has data or an address."""
    if isinstance(parts, list):
        for each in parts:
            if isinstance(each, dict | list) and (depth == 0 or _in_parts(each, depth - 1)):
                return True
        return False
    if not isinstance(parts, dict):
        return False
    if _in_said(parts, depth):
        return True
    kind = parts.get("type")
    if isinstance(kind, str):
        return kind not in _SILENT and kind not in _SEEN and _holds(parts, depth)
    for name, each in parts.items():
        known = name in _SILENT or name in _SEEN or name in _UNSURE or name in _INSIDE
        if not known and isinstance(each, dict) and _holds(each, depth):
            return True
    return False


def _is_heard(kind: str, held: object) -> bool:
    """Return whether a part is sound, by its `kind` (its type or name) or by its stated media type."""
    if kind in _HEARD:
        return True
    stated = list(_stated(held, _DEPTH_MAX))
    return not all(map(_SEEN_TYPE.match, stated)) or (kind in _UNSURE and not stated)


def _stated(held: object, depth: int) -> Iterator[str]:
    """Yield the media types that a part states, in a field or at the beginning of a `data:` URL."""
    if isinstance(held, str):
        url = _URL.match(held)
        if url is not None:
            yield url[1]
    elif isinstance(held, list):
        for each in held if depth else ():
            yield from _stated(each, depth - 1)
    elif isinstance(held, dict):
        for name, each in held.items() if depth else ():
            if name in _STATES and isinstance(each, str):
                if "/" in each:
                    yield each
            else:
                yield from _stated(each, depth - 1)


def _holds(part: Document, depth: int) -> bool:
    """Return whether a part of an unknown type contains data or an address, at any depth."""
    for name, each in part.items():
        if isinstance(each, str):
            if name.endswith(_HOLDS) or name in _STATES:
                return True
        elif isinstance(each, dict) and name not in _INSIDE:
            deeper = depth > 0 and not name.endswith(_HOLDS)
            if not deeper or _holds(each, depth - 1):
                return True
    return False
