"""The documented shape of a report of use, whichever API's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.core.metering.meter import Meter


class UsageShape(msgspec.Struct, forbid_unknown_fields=True):
    """What a documented shape of a report is made from: every field may be missing.

    A field of any type is documented, and nothing is counted by it.
    """


# What an event says beside the fields that its API documents: its strings are text, by any name.
#
# An API's next kind of content is charged before anybody here knows it. Only known other values stay out.

# What an event may be longer than four times its text, before somebody looks for more in it.
ENVELOPE_BYTES: Final = 512
# A picture or a sound is some token for 512 bytes of base64, as it is counted: 128 bytes for one of text.
DATA_BYTES_MIN: Final = 1024
DATA_BYTES_EACH: Final = 128
# They name, point and finish; a signature is not produced text."""
UNCOUNTED = frozenset(
    {
        "id", "type", "role", "object", "model", "status", "phase", "finish_reason", "native_finish_reason",
        "stop_reason", "stop_sequence", "finishReason", "finishMessage", "logprobs", "logprobsResult",
        "call_id", "item_id", "tool_use_id", "response_id", "signature", "thoughtSignature",
        "thought_signature",
        "encrypted_content", "obfuscation", "format", "mimeType", "mime_type", "mime", "media_type",
        "citation", "citations", "annotation", "safetyRatings", "usage", "usageMetadata",
    }
)  # fmt: skip
_DATA = frozenset(
    {"data", "b64_json", "partial_image_b64", "url", "image_url", "result", "audio", "video", "file_data"}
)


def may_hold_more(data: bytes, seen: int) -> bool:
    """Whether an event with so many bytes of text seen may hold more than these."""
    return may_be_more(len(data), seen)


def may_be_more(size: int, seen: int) -> bool:
    """The same of an event of so many bytes."""
    return not seen or size > ENVELOPE_BYTES + 4 * seen


def see_content(meter: Meter, holder: object, seen: int) -> None:
    """Count the strings in the part of an event that holds content; `seen` bytes of it are counted."""
    size = content_bytes(holder)
    if size > seen:
        meter.text_bytes += size - seen
        meter.texts = None  # its model's tokenizer does not know this
        if not seen:
            meter.content_events += 1


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def content_bytes(
    holder: object, left_out: frozenset[str] = UNCOUNTED, size_of: Callable[[str], int] = _bytes_of
) -> int:
    """Bytes of content in a value, as text is counted, without the fields that are left out."""
    size, waiting = 0, [("", holder)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            long = name in _DATA and len(value) >= DATA_BYTES_MIN
            size += -(-len(value) // DATA_BYTES_EACH) if long else size_of(value)
        elif isinstance(value, dict):
            waiting += [(key, inner) for key, inner in value.items() if key not in left_out]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
    return size
