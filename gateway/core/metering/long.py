"""What is too long to keep is kept without its long texts: the report that stands behind them is read.

A picture or a sound in an answer is one text of megabytes, and the rest is short. Texts longer than
`TEXT_BYTES_MAX` are left out as they pass, and counted as produced text unless they are such data. What
is too long even so is known by its two ends, where every API puts its usage.
"""

from __future__ import annotations

import re

from gateway.core.metering.meter import Dialect, Meter

TEXT_BYTES_MAX = 1024  # longer than any name, identifier or number
WINDOW_BYTES = 64 << 10
_NAME_BYTES = 64

# As much as there is of all but texts that are long or not complete yet.
_SHORT = re.compile(
    rb'(?:[^"]++|"(?:[^"\\]{0,%d}+\\.){0,15}+[^"\\]{0,%d}+")*+' % (TEXT_BYTES_MAX, TEXT_BYTES_MAX), re.DOTALL
)
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# The fields that hold pictures, sounds, files and what only their provider can read, in any of the APIs.
_DATA = re.compile(
    rb'"(?:data|result|b64_json|partial_image_b64|image_url|url|file_data|encrypted_content|signature'
    rb'|thoughtSignature)"[ \t\r\n]*+:[ \t\r\n]*+\Z'
)
_USAGE = re.compile(rb'"(?:usage|usageMetadata|usage_metadata)"[ \t\r\n]*+:[ \t\r\n]*+\{')
_MODEL = re.compile(rb'"(?:model|modelVersion)"[ \t\r\n]*+:[ \t\r\n]*+"[^"\\]{0,128}+"')
_TIER = re.compile(rb'"service_tier"[ \t\r\n]*+:[ \t\r\n]*+"[^"\\]{0,128}+"')
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}]', re.DOTALL)


class Shortened:
    """A document or an event without its long texts, as it comes. `text_bytes` were left out of it."""

    __slots__ = (
        "_bytes_max",
        "_head",
        "_kept",
        "_name",
        "_rest",
        "_tail",
        "_text",
        "_within",
        "kept",
        "text_bytes",
    )

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: list[bytes] = []
        self.kept = self.text_bytes = 0
        self._head = self._tail = self._name = self._rest = b""
        # A text that is not complete yet: what came of it, until that is too long, and how much.
        self._text = b""
        self._within = -1

    def feed(self, part: bytes) -> None:
        """Take the next bytes."""
        if self._rest:
            part, self._rest = self._rest + part, b""
        kept: list[bytes] = []
        at, size = 0, len(part)
        while at < size:
            if self._within >= 0:
                at = self._go_on(part, at, kept)
                continue
            match = _SHORT.match(part, at)
            assert match is not None
            if match.end() > at:
                kept.append(part[at : match.end()])
                self._name = (self._name + kept[-1][-_NAME_BYTES:])[-_NAME_BYTES:]
            at = match.end()
            if at < size:  # the quote that opens such a text
                self._within, at = 0, at + 1
        self._keep(b"".join(kept))

    @property
    def document(self) -> bytes:
        """What was kept, all of it; empty where that was too long as well."""
        self._kept = [b"".join(self._kept)]
        return self._kept[0]

    def read_ends(self, meter: Meter, dialect: Dialect) -> None:
        """Find the usage near the end, else near the start, and read it as a document of its own."""
        head, tail = self._head, self._tail
        model = _MODEL.search(head) or _MODEL.search(tail)
        tiers = list(_TIER.finditer(tail)) or list(_TIER.finditer(head))
        named = b"".join(found[0] + b"," for found in (model, *tiers[-1:]) if found is not None)
        for window in (tail, head):
            for match in reversed(list(_USAGE.finditer(window))):
                end = _object_end(window, match.end() - 1)
                if end:
                    dialect.read_whole(meter, b"{" + named + window[match.start() : end] + b"}")
                if meter.reported and not meter.uncounted:
                    return

    def _go_on(self, part: bytes, at: int, kept: list[bytes]) -> int:
        """Go on in a text; the place behind what was seen of it."""
        match = _INSIDE.match(part, at)
        assert match is not None
        end, before = match.end(), self._within
        self._within += end - at
        if self._within <= TEXT_BYTES_MAX:
            self._text += part[at:end]
        elif _DATA.search(self._name) is None:
            self.text_bytes += self._within - (before if before > TEXT_BYTES_MAX else 0)
        if end == len(part):
            return end
        if part[end] == 0x5C:  # what it escapes is to come
            self._rest = part[end:]
            return len(part)
        kept.append(b'""' if self._within > TEXT_BYTES_MAX else b'"' + self._text + b'"')
        self._text, self._within = b"", -1
        self._name = (self._name + kept[-1])[-_NAME_BYTES:]
        return end + 1

    def _keep(self, piece: bytes) -> None:
        if self._tail:
            self._tail = (self._tail + piece)[-WINDOW_BYTES:]
            self.text_bytes += len(piece)
            return
        self._kept.append(piece)
        self.kept += len(piece)
        if self.kept > self._bytes_max:
            whole = b"".join(self._kept)
            self._kept, self._head, self._tail = [], whole[:WINDOW_BYTES], whole[-WINDOW_BYTES:]
            self.text_bytes += len(whole)
            self.kept = 2 * WINDOW_BYTES


def _object_end(window: bytes, start: int) -> int:
    """Return the end of the object that begins at `start`, 0 where it is broken off."""
    depth = 0
    for match in _PART.finditer(window, start):
        if match[0] == b"{":
            depth += 1
        elif match[0] == b"}":
            depth -= 1
            if depth == 0:
                return match.end()
    return 0
