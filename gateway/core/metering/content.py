"""The text in an answer that its model wrote: any text under any name, except the names in this table.

Pure. An API's new kind of content is therefore charged from the beginning. The same names apply to whole
answers, to events, and to documents that cannot be decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

# A picture or a sound counts about one token for 512 bytes of base64, so 128 of these are a byte of text.
DATA_BYTES_MIN: Final = 1024
DATA_BYTES_EACH: Final = 128
# Fields with names, references and states. A signature is not produced text.
UNCOUNTED = frozenset(
    {
        "id", "type", "role", "object", "model", "status", "phase", "finish_reason", "native_finish_reason",
        "stop_reason", "stop_sequence", "finishReason", "finishMessage", "logprobs", "logprobsResult",
        "call_id", "item_id", "tool_use_id", "response_id", "signature", "thoughtSignature",
        "thought_signature",
        "encrypted_content", "obfuscation", "format", "mimeType", "mime_type", "mime", "media_type",
        "citation", "citations", "annotation", "safetyRatings", "usage", "usageMetadata", "error",
        "content_filter_results", "content_filter_result", "created_at", "completed_at",
    }
)  # fmt: skip
# Fields that frame an event besides. Their bytes may count, but they are no words of the model.
_FRAMING = UNCOUNTED | {
    "provider", "system_fingerprint", "service_tier", "modelVersion", "responseId", "createTime", "event_type",
    "event_id", "p",
}  # fmt: skip
# Fields with text of the model. All other fields at the top describe the answer, or repeat the request.
GENERATED = frozenset(
    {
        "choices", "content", "output", "outputs", "output_text", "candidates", "text", "thinking",
        "response", "interaction", "message", "content_block", "steps", "tool_calls", "tool_plan",
    }
)  # fmt: skip
# Fields that contain an answer, with the same fields at its top.
_ENVELOPES = frozenset({"response", "interaction", "message"})
# Arguments of a tool count as text as a whole, with their names and numbers.
_ARGUMENTS = frozenset({"input", "args", "arguments", "parameters"})
_DATA = frozenset(
    {"data", "b64_json", "partial_image_b64", "url", "image_url", "result", "audio", "video", "file_data"}
)


def generated(answer: dict[str, object]) -> list[object]:
    """Return the parts of an answer that its model may have written."""
    parts: list[object] = []
    for name, value in answer.items():
        if not is_generated(name, is_object=isinstance(value, dict), is_text=isinstance(value, str)):
            continue
        if name in _ENVELOPES and isinstance(value, dict):
            parts += generated(value)
        else:
            parts.append(value)
    return parts


def is_generated(name: str, *, is_object: bool, is_text: bool) -> bool:
    """Return whether a top field of an answer holds text that its model wrote, no setting and no error.

    `is_object` and `is_text` are the type of the field's value.
    """
    if name not in GENERATED:
        return False
    return not (is_object and name == "text") and not (is_text and name == "message")


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def content_bytes(
    holder: object,
    left_out: frozenset[str] = UNCOUNTED,
    size_of: Callable[[str], int] = _bytes_of,
    *,
    once: bool = False,
) -> int:
    """Return the size of all content in a value, in bytes of text, without the fields `left_out`.

    With `once`, a text that stands under two names counts once.
    """
    size, waiting, texts = 0, [("", holder)], set[str]()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            if once and value in texts:
                continue
            texts.add(value)
            size += data_bytes(len(value)) if is_data(name, len(value)) else size_of(value)
        elif isinstance(value, dict):
            if name in _ARGUMENTS:
                size += len(msgspec.json.encode(value)) if value else 0
            else:
                waiting += [(key, inner) for key, inner in value.items() if key not in left_out]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
    return size


def is_data(name: str, size: int) -> bool:
    """Return whether a text with this field name and size is a picture, a sound or a file."""
    return size >= DATA_BYTES_MIN and name in _DATA


def data_bytes(size: int) -> int:
    """Return the size at which base64 data of `size` bytes is counted, as bytes of text."""
    return -(-size // DATA_BYTES_EACH)


def words_in(event: bytes, *, whole: bool = False) -> int:
    """Return the words in an event or a part of one, readable or not; of a `whole` answer those of its model."""
    if event.lstrip()[:1] not in {b"{", b"["}:
        return len(event.split())
    texts = LooseContent(event, _FRAMING, whole=whole).texts
    return sum(len(text.replace(b"\\n", b" ").split()) for text in texts)


_QUOTE: Final = 0x22
_OPENING: Final = b"{["
_EMPTY: Final = frozenset({b"", b"{}"})
# A document that cannot be decoded (it broke off, or is odd) is scanned for marks: texts, names in front
# of a colon, and brackets.
_MARK = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?([ \t\r\n]*+:)?|[\[\]{}]', re.DOTALL)


def _may_be_name(document: bytes, mark: re.Match[bytes]) -> bool:
    """Return whether a document ends within or right after a text that may be a field name.

    `mark` is the match of that text.
    """
    return mark.end() == len(document) and document[: mark.start()].rstrip()[-1:] in {b"{", b",", b""}


class LooseContent:
    """The text in an undecodable document that its model may have written.

    Of a `whole` answer, only fields of `GENERATED` count, and `found` says that one exists; of an event, all
    fields count. `size` is in bytes, `texts` are the raw pieces, and `data` says that some content was no
    text.
    """

    __slots__ = ("_left_out", "_whole", "data", "found", "size", "texts")

    def __init__(self, document: bytes, left_out: frozenset[str] = UNCOUNTED, *, whole: bool = False) -> None:
        self._left_out, self._whole = left_out, whole
        self.size = 0
        self.texts: list[bytes] = []
        self.data = self.found = False
        self._read(document)

    def _read(self, document: bytes) -> None:
        """Add the texts and counted values of a document that need not be valid JSON."""
        name, names = "", list[str]()
        inside = begins = 0  # the depth of a value that counts as a whole
        for mark in _MARK.finditer(document):
            first, depth = document[mark.start()], len(names)
            if first == _QUOTE and mark[2] is not None:
                name = mark[1].decode("utf-8", "replace")
                self.found = self.found or (depth == 1 and name in GENERATED)
            elif first == _QUOTE:
                if not (inside or self._is_left_out(name, names, first) or _may_be_name(document, mark)):
                    self._add(name, mark[1])
            elif first in _OPENING:
                if depth and not inside:
                    begins = self._counted_from(name, names, first, mark.start())
                    inside = depth if begins else 0
                names.append(name)
                name = name if first == _OPENING[0] else ""
            elif depth:
                name = names.pop()
                if inside and inside == depth - 1:
                    self._add("", document[begins : mark.end()] if begins > 0 else b"")
                    inside = 0
        if inside and begins > 0:
            self._add("", document[begins:])

    def _counted_from(self, name: str, names: list[str], first: int, place: int) -> int:
        """Return the position from which a value counts with all its names: `place`, for arguments of tools.

        Return -1 if the value does not count, 0 if only its texts do. `names` are the names around
        it, `first` is its first byte.
        """
        if self._is_left_out(name, names, first):
            return -1
        return place if first == _OPENING[0] and name in _ARGUMENTS else 0

    def _is_left_out(self, name: str, names: list[str], first: int) -> bool:
        """Return whether a value is left out of the count.

        Its name, its first byte (`first`) and the names of the objects around it (`names`) decide.
        """
        depth = len(names)
        if (depth == 1 and self._whole) or (depth == 2 and names[1] in _ENVELOPES):
            return not is_generated(name, is_object=first == _OPENING[0], is_text=first == _QUOTE)
        return name in self._left_out

    def _add(self, name: str, text: bytes) -> None:
        """Count a text; it is data if its name and length say so."""
        if text in _EMPTY:
            return
        if is_data(name, len(text)):
            self.data = True
            self.size += data_bytes(len(text))
        else:
            self.size += len(text)
            self.texts.append(text)
