"""Meter an answer that is a stream of events, while they pass.

An event passes once it is complete. From the event on that finishes the answer, or one of its choices,
everything waits for the end, so that no client has a complete answer before it is charged. If more content
follows, the waiting events pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import cast

import msgspec

from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.metering.meter import BEHIND_END_BYTES_MAX, CLOSED, FINISHED, OPEN, Dialect, Meter, slim
from gateway.core.metering.reading import UNREADABLE, is_object, text_of
from gateway.core.metering.report import ENVELOPE_BYTES, may_be_more
from gateway.core.model import TokenUsage

# Split a server-sent event stream into events without changing a byte.
#
# Any split of the input gives the same data, which is why a CR at the end of a chunk waits for
# the next byte. Empty lines and comments behind an event are one event without data, however many.
# Lines end in LF, CRLF or CR; an event ends at an empty line; a leading BOM is dropped from the
# data only (HTML Living Standard, 9.2).

_END = re.compile(rb"\r\n(?:\r\n|\n|\r(?=[^\n]))|\n(?:\r\n|\n|\r(?=[^\n]))|\r\r(?:\n|(?=[^\n]))")
_IDLE = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n])++")
_BOM = b"\xef\xbb\xbf"
_MARK = re.compile(rb"(?:\A|[\r\n])(?:\xef\xbb\xbf)?(?:data[ \t]*:)?[ \t\"'\x0b\x0c]*\[DONE\]")
_NAME = re.compile(
    rb"event(?:(?<=\A.{5})|(?<=[\r\n].{5})|(?<=\xef\xbb\xbf.{5}))[ \t]*:[ \t\"']*"
    rb"(message_stop|done|response\.(?:completed|incomplete|failed|cancelled))[ \t\"']*(?:[\r\n]|\Z)"
)


# An event begins.
_BEGUN = re.compile(rb"(?:\xef\xbb\xbf)?(?:event|data|id|retry)[ \t]*:")


class Splitter:
    """Split an event stream into complete events. The bytes of an incomplete event wait in `pending`."""

    __slots__ = ("_scanned", "pending")

    def __init__(self) -> None:
        self.pending = b""
        self._scanned = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that this chunk completes, each with its raw bytes."""
        if not self.pending and b"\r" not in chunk and 0 <= chunk.find(b"\n\n") == len(chunk) - 2:
            return [chunk]
        data = self.pending + chunk if self.pending else chunk
        events: list[bytes] = []
        start, scan = 0, self._scanned
        while (end := _END.search(data, scan)) is not None:
            scan = end.end()
            events.append(data[start:scan])
            start = scan
            idle = _IDLE.match(data, scan)
            if idle is not None:
                start = scan = idle.end()
                events.append(idle[0])
        self.pending = data[start:]
        self._scanned = max(0, len(self.pending) - 3)
        return events

    def take(self) -> bytes:
        """Remove and return the pending bytes, because the stream ended or the event is too long to store."""
        pending, self.pending, self._scanned = self.pending, b"", 0
        return pending


def says_end(event: bytes) -> bool:
    """Return whether an event ends the stream in any API, by its name or by the mark [DONE] in a line.

    Clients differ in what they accept as the end: a line that only begins with the mark, a quoted mark, or a
    name without data. All of these count.
    """
    return has_mark(event) or bool(_name_of_end(event))


def _name_of_end(event: bytes) -> str:
    """Return the event name with which an event ends a stream; empty if it does not."""
    match = _NAME.search(event) if b"event" in event else None
    return "" if match is None else match[1].decode()


def has_mark(event: bytes) -> bool:
    """Return whether an event has the mark [DONE], at which clients stop reading."""
    return b"[DONE]" in event and _MARK.search(event) is not None


def _breaks_off(event: bytes) -> bool:
    """Return whether an event is incomplete: it has begun data that is no whole document."""
    return _BEGUN.match(event) is not None and not (has_mark(event) or is_object(data_of(event)))


def data_of(event: bytes) -> bytes:
    """Return the data of one event, its lines joined by LF; empty if it has no data."""
    if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    if b"data" not in event:
        return b""
    lines: list[bytes] = []
    for line in event.removeprefix(_BOM).splitlines():
        if line[:5] == b"data:":
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


# The last bytes of an answer whose end its own bytes show: they wait until it is complete.
#
# A document ends where its brackets close. Of an unreadable coded answer, some bytes before the end wait.

CODED_BYTES = 1024
_WHITE = b" \t\r\n"
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_TEXT_END = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)


class Brackets:
    """Track whether all brackets of a JSON document are closed, while it comes in pieces (RFC 8259)."""

    __slots__ = ("_depth", "_escaped", "_has_opened", "_in_text")

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._escaped = self._has_opened = False

    def feed(self, piece: bytes) -> None:
        """Count the brackets of the next `piece` of a document that are not inside a text."""
        if not piece:
            return
        at = int(self._escaped)
        escapes = piece[at:]
        self._escaped = (len(escapes) - len(escapes.rstrip(b"\\"))) % 2 == 1
        if self._in_text:
            end = _TEXT_END.match(piece, at)
            if end is None:
                return
            at, self._in_text = end.end(), False
        rest, quote, _ = _TEXT.sub(b"", piece[at:]).partition(b'"')
        self._in_text = bool(quote)  # the text continues in the next piece
        self._escaped = self._escaped and self._in_text
        opened = rest.count(b"{") + rest.count(b"[")
        self._has_opened = self._has_opened or opened > 0
        self._depth += opened - rest.count(b"}") - rest.count(b"]")

    @property
    def closed(self) -> bool:
        """Whether a document began with a bracket, and all its brackets are closed."""
        return self._has_opened and self._depth <= 0 and not self._in_text


def is_open(document: bytes) -> bool:
    """Return whether a JSON document broke off before its last bracket was closed."""
    brackets = Brackets()
    brackets.feed(document)
    return not brackets.closed


class Tail:
    """Pass bytes on, except the last byte of a document, or the last `size` bytes of a coded answer."""

    __slots__ = ("_brackets", "_size", "_unfollowed", "_unfollowed_bytes", "rest", "surplus")

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self.rest = b""
        # Whether more white space follows the document than is stored.
        self.surplus = False
        self._brackets: Brackets | None = None
        # Brackets are tracked only from a size at which too much white space is possible.
        self._unfollowed: list[bytes] = []
        self._unfollowed_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Read the next bytes, and return those that may pass."""
        data = self.rest + chunk if self.rest else chunk
        if self._size:
            keep_from = max(0, len(data) - self._size)
        else:
            self._follow(chunk)
            keep_from = len(data.rstrip(_WHITE)) - 1
            if keep_from < 0:  # white space in front of a document, or within one of its texts
                return data
            if len(data) - keep_from > BEHIND_END_BYTES_MAX:
                if not self._closed:
                    self.rest = b""
                    return data
                self.surplus = True
        self.rest = data[keep_from:]
        return data[:keep_from]

    def take(self) -> bytes:
        """Remove and return the held bytes, because the answer is complete."""
        rest, self.rest = self.rest, b""
        return rest

    @property
    def _closed(self) -> bool:
        return self._brackets is not None and self._brackets.closed

    def _follow(self, chunk: bytes) -> None:
        """Follow the brackets of a part, from the beginning if the end is far."""
        if self._brackets is not None:
            self._brackets.feed(chunk)
            return
        self._unfollowed.append(chunk)
        self._unfollowed_bytes += len(chunk)
        if self._unfollowed_bytes > BEHIND_END_BYTES_MAX:
            self._brackets = Brackets()
            self._brackets.feed(b"".join(self._unfollowed))
            self._unfollowed.clear()


# An event too long to store is stored without its long texts: so the report behind them is read.
#
# A picture or a sound in an answer is one text of megabytes, and the rest is short. Texts longer than
# `TEXT_BYTES_MAX` are left out as they pass, and counted as produced text unless they are such data. An
# event too long even so is known by its two ends, where every API puts its usage.

TEXT_BYTES_MAX = 1024  # longer than any name, identifier or number
WINDOW_BYTES = 64 << 10
_NAME_BYTES = 64

# Everything up to a text that is long, or not complete yet.
_SHORT = re.compile(
    rb'(?:[^"]++|"(?:[^"\\]{0,%d}+\\.){0,15}+[^"\\]{0,%d}+")*+' % (TEXT_BYTES_MAX, TEXT_BYTES_MAX), re.DOTALL
)
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# Fields with pictures, sounds, files and data that only the provider can read, in any API.
_DATA = re.compile(
    rb'"(?:data|result|b64_json|partial_image_b64|image_url|url|file_data|encrypted_content|signature'
    rb'|thoughtSignature)"[ \t\r\n]*+:[ \t\r\n]*+\Z'
)
_USAGE = re.compile(rb'"(?:usage|usageMetadata|usage_metadata)"[ \t\r\n]*+:[ \t\r\n]*+\{')
_MODEL = re.compile(rb'"(?:model|modelVersion)"[ \t\r\n]*+:[ \t\r\n]*+"[^"\\]{0,128}+"')
_TIER = re.compile(rb'"service_tier"[ \t\r\n]*+:[ \t\r\n]*+"[^"\\]{0,128}+"')
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}]', re.DOTALL)


class TextShortener:
    """A document or an event from which long texts are removed while it comes.

    `text_bytes` counts the removed text, and `kept` the bytes in memory.
    """

    __slots__ = (
        "_bytes_max",
        "_head",
        "_kept",
        "_name",
        "_tail",
        "_text",
        "_unread",
        "_within",
        "kept",
        "text_bytes",
    )

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: list[bytes] = []
        self.kept = self.text_bytes = 0
        self._head = self._tail = self._name = self._unread = b""
        # An incomplete text: its bytes so far unless it is too long, and their number.
        self._text = b""
        self._within = -1

    def feed(self, part: bytes) -> None:
        """Add the next `part` of a document, its long texts shortened."""
        if self._unread:
            part, self._unread = self._unread + part, b""
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
            if at < size:  # the opening quote of a long or incomplete text
                self._within, at = 0, at + 1
        self._keep(b"".join(kept))

    def feed_to(self, meter: Meter, part: bytes) -> None:
        """Add the next `part` of an event, whose long texts `meter` counts while they pass."""
        before, counted = meter.text_bytes, self.text_bytes
        self.feed(part)
        meter.text_bytes += self.text_bytes - counted
        if meter.text_bytes > meter.dense_from:
            meter.see_words(part, before)

    @property
    def document(self) -> bytes:
        """The document without its long texts; empty bytes if even that is too long."""
        self._kept = [b"".join(self._kept)]
        return self._kept[0]

    def read_ends(self, meter: Meter, dialect: Dialect) -> None:
        """Read the usage report near the end of a long document, or else near its start.

        The report is read as a document of its own, with the model and service tier.
        """
        head, tail = self._head, self._tail
        model = _MODEL.search(head) or _MODEL.search(tail)
        tiers = list(_TIER.finditer(tail)) or list(_TIER.finditer(head))
        named = b"".join(tier[0] + b"," for tier in (model, *tiers[-1:]) if tier is not None)
        for window in (tail, head):
            for match in reversed(list(_USAGE.finditer(window))):
                end = _object_end(window, match.end() - 1)
                if end:
                    dialect.read_whole(meter, b"{" + named + window[match.start() : end] + b"}")
                if meter.reported and not meter.uncounted:
                    return

    def _go_on(self, part: bytes, at: int, kept: list[bytes]) -> int:
        """Continue reading a long text of the document at position `at`; return the position after it.

        The part of it to store is appended to `kept`.
        """
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
        if part[end] == 0x5C:  # the escaped character comes in the next piece
            self._unread = part[end:]
            return len(part)
        kept.append(b'""' if self._within > TEXT_BYTES_MAX else b'"' + self._text + b'"')
        self._text, self._within = b"", -1
        self._name = (self._name + kept[-1])[-_NAME_BYTES:]
        return end + 1

    def _keep(self, piece: bytes) -> None:
        """Store a piece of the shortened document, only head and tail if it is too large."""
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
    """Return the end of the object that begins at `start`, or 0 if it broke off."""
    depth = 0
    for match in _PART.finditer(window, start):
        if match[0] == b"{":
            depth += 1
        elif match[0] == b"}":
            depth -= 1
            if depth == 0:
                return match.end()
    return 0


# Most events of a stream differ from the one before in a text alone, some in a number and padding too. A
# trial puts other values into these parts of a decoded event. If the dialect reads exactly these values, the
# bytes around them are stored as known. Later events with the same bytes are counted by their text without
# decoding. Any other event is decoded, and a trial is made with it.

OPENING_BYTES_MAX = 4096
TRIALS_AT_ONCE = 4
EVENTS_A_TRIAL = 16  # after the first trials: one costs as much as three events
# Variable parts, by the names of groups of `Dialect.texts`, and the bytes of a trial in their place.
_TEXT_PART, _NUMBER_PART, _PADDING = "text", "number", "padding"
_TRIED, _TRIED_AT = 'triéd"', 77  # an undecodable event would count the escapes too
_TRIED_BYTES = len(_TRIED.encode())
_TRIED_PARTS = {_TEXT_PART: 'triéd\\"'.encode(), _NUMBER_PART: b"%d" % _TRIED_AT, _PADDING: b"x"}
_DIGITS = re.compile(rb"(?:0|[1-9][0-9]{0,14})(?![0-9.eE])")
# Beginnings of the data of an event that is read as a document, or as a mark such as [DONE].
_DOCUMENTS = (b"", b"{", b"[", b" ", b"\t")
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


# The position behind a known event in its chunk, the event's text, and its number or -1.
_Known = tuple[int, str, int]


def known_at(chunk: bytes, at: int, first: bytes, differs: list[tuple[str, bytes]]) -> _Known | None:
    """Return the event at position `at` of a chunk if only its variable parts differ from a known one.

    Else return None. `first` are the known bytes before the first variable part; `differs` has the kind
    of each variable part, and the known bytes after it.
    """
    if not chunk.startswith(first, at):
        return None
    place, text, number = at + len(first), "", -1
    for kind, behind in differs:
        end = chunk.find(behind, place)
        if end < 0:
            return None
        if kind == _NUMBER_PART:
            if _DIGITS.fullmatch(chunk, place, end) is None:
                return None
            number = int(chunk[place:end])
        else:
            try:
                said = text_of(chunk[place - 1 : end + 1])
            except UNREADABLE:
                return None
            if kind == _TEXT_PART:
                text = said
        place = end + len(behind)
    seen = len(text) if text.isascii() else len(text.encode())
    return None if may_be_more(place - at, seen) else (place, text, number)


# `known_at` as one pass in C (`_usage.c`), where that is compiled. It returns None if Python has to decide.
_event_at: Callable[[bytes, int, bytes, list[tuple[str, bytes]]], _Known | None] | None
try:
    _event_at = import_module("gateway.core.metering._usage").event_at
except ImportError:
    _event_at = None


# Members that every event of a stream has.
_OF_EVERY_EVENT = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation"})
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _members_of(data: bytes) -> dict[str, bytes]:
    """Return the raw members of an event, empty if it is no object."""
    try:
        return {name: bytes(value) for name, value in _decode_members(data).items()}
    except UNREADABLE:
        return {}


def _event_of(members: dict[str, bytes]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode({name: msgspec.Raw(raw) for name, raw in members.items()})


class StreamMeter(Meter):
    """Meter of a stream of server-sent events, each read once it is complete."""

    __slots__ = (
        "_bytes_behind_end",
        "_dialect",
        "_differs",
        "_first",
        "_frame_bytes",
        "_held",
        "_held_bytes",
        "_oversized",
        "_said_at",
        "_shortened",
        "_splitter",
        "_strip",
        "_trials",
        "_unread",
    )

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._splitter = Splitter()
        self._strip = call.strip_usage and 200 <= status < 300
        # The rest of an event that was too long to keep, and the part of it that is read: it passes but for
        # its end.
        self._oversized: Tail | None = None
        self._shortened = TextShortener(bounds.event_bytes_max)
        self._held: list[bytes] = []
        self._held_bytes = self._bytes_behind_end = self._unread = self._trials = self._frame_bytes = 0
        # Known events: their beginning, variable parts with the bytes behind each, and the key of their size.
        self._first = b""
        self._differs: list[tuple[str, bytes]] = []
        self._said_at: tuple[int, str] | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Read the events that this chunk completes, and return the bytes that may pass now."""
        splitter = self._splitter
        if self._first and not (splitter.pending or self._held_bytes) and self._oversized is None:
            known = self._see_known(chunk)
            if known:
                return chunk if known == len(chunk) else chunk[:known] + self.feed(chunk[known:])
        if self.opening is None:
            self._unread += len(chunk)
        events = splitter.feed(chunk)
        if len(events) == 1 and events[0] is chunk and not self._held_bytes and self._oversized is None:
            left_out = self._read(chunk)
            if self.phase == OPEN:
                return self._beside(chunk) if left_out else chunk
            self._hold(chunk, left_out)
            self.withheld = self._held_bytes
            return b""
        passed: list[bytes] = []
        for event in events:
            self._take(event, passed)
        if len(splitter.pending) > self.bounds.event_bytes_max or self._oversized is not None:
            self._pass_unread(splitter.take(), passed)
        self.withheld = self._held_bytes + len(splitter.pending)
        if self._oversized is not None:
            self.withheld += len(self._oversized.rest)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def finish(self) -> bytes:
        """Read the last event of the stream, which may be incomplete, and return all bytes held back."""
        self.ended = True
        if self._oversized is not None:
            self._held.append(self._oversized.take())
            self._read_shortened()
        rest, unread = self._splitter.take(), self.opening is None
        if rest:
            self._held.append(self._beside(rest) if self._read(rest) else rest)
            self.broke = unread and _breaks_off(rest)
        passed, self._held = self._held, []
        if (self.opening is None or (self.broke and not self.produced)) and not self.reported:
            # The answer had no events, or only the beginning of one.
            self.unreadable(max(self._unread - self.text_bytes, 0))
            self.failed = not (self._unread or self.unread)
        self.call.text_bytes = self.seen_bytes
        return b"".join(passed)

    def usage(self) -> TokenUsage:
        self.see_rest(self._splitter.pending)
        return Meter.usage(self)

    @property
    def is_whole(self) -> bool:
        return self.ends_by(self._dialect.ending)

    def cut(self) -> bytes:
        """Return events that end the stream in the form of its API; empty if part of an event was sent."""
        if self._oversized is not None:
            return b""
        self._splitter.take()
        return self._dialect.closing(self)

    def fail(self, body: bytes) -> bytes:
        """Return an error event in the form of its API; empty if part of an event was already sent."""
        if self._oversized is not None:
            return b""
        self._splitter.take()
        return self._dialect.failing(self, body)

    @property
    def kept(self) -> int:
        return self._shortened.kept + (
            self.withheld if self.texts is None else self.withheld + self.text_bytes
        )

    def slim(self) -> None:
        """Store no long texts from now on, and pass long events unread, because memory is short."""
        self.texts = None
        self.bounds = slim(self.bounds)

    def _take(self, event: bytes, passed: list[bytes]) -> None:
        """Read a complete event; append it to `passed` (bytes for the client), drop it or hold it back."""
        if self._oversized is not None:
            # The end of an event whose beginning has passed: it may close the stream
            assert self._oversized is not None
            self._shortened.feed_to(self, event)
            passed.append(self._oversized.feed(event))
            rest = self._oversized.take()
            self._oversized = None
            self._read_shortened()
            self.phase = max(self.phase, FINISHED)
            self._hold(rest, left_out=False)
            return
        was, content = self.phase, self.content_events
        left_out = self._read(event)
        if self.phase == OPEN or (was == FINISHED and self.content_events > content):
            self._release(passed)
        if self.phase != OPEN:
            self._hold(event, left_out)
        else:
            passed.append(self._beside(event) if left_out else event)

    def _beside(self, frame: bytes) -> bytes:
        """Return an event with fields of the removed usage `frame` that the client has not seen, or nothing.

        The usage itself is left out. If an earlier event is held back, the fields are added to that
        event instead.
        """
        members, first = _members_of(data_of(frame)), _members_of(self.opening or b"")
        before = _members_of(data_of(self._held[-1])) if self._held else {}
        more = {
            name: value
            for name, value in members.items()
            if name not in _OF_EVERY_EVENT and value not in {b"null", first.get(name), before.get(name)}
        }
        if not more:
            return b""
        if before:
            self._held[-1] = _event_of({**before, **more})
            return b""
        members.pop("usage", None)
        return _event_of(members)

    def _read(self, event: bytes) -> bool:
        """Read one event; return whether it only reports usage, and the client did not ask for that."""
        if self._first and self._see_known(event):
            return False
        if self.phase == CLOSED and self.final:  # behind the end no client reads on, and no report changes
            return False
        if says_end(event):
            self._end_by(event)
        data = data_of(event)
        if not data:
            is_keep_alive = self.opening is None and event.lstrip(b"\r\n")[:1] in {b"", b":"}
            self._unread -= len(event) if is_keep_alive else 0
            return False
        if self.opening is None:
            self.opening = data if len(data) <= OPENING_BYTES_MAX else b""
        finished, content, before = self.finished, self.content_events, self.text_bytes
        left_out = self._dialect.read_event(self, data)
        if data[:1] not in _DOCUMENTS and self.content_events == content:  # clients show it as a text
            self.text_bytes += len(data)
            self.content_events += 1
            self.texts = None
        if self.text_bytes > self.dense_from:
            self.see_words(data, before)
        if self.phase != CLOSED:
            if self.finished > finished:
                self.phase = FINISHED
            elif self.content_events > content:
                self.phase = OPEN
                if self.content_events >= (self._trials - TRIALS_AT_ONCE) * EVENTS_A_TRIAL:
                    self._try(event)
        return left_out and self._strip

    def _end_by(self, event: bytes) -> None:
        """Close the stream, because `event` ends a stream in some API.

        The answer counts as complete only if the event is the end in this API. If the stream broke
        off after the event's name, its document must be whole for that.
        """
        self.phase, ending = CLOSED, self._dialect.ending
        if _name_of_end(event) in ending.events:
            self.last_word = self.last_word or not self.ended or is_object(data_of(event))
        elif ending.mark and has_mark(event):
            self.last_word = True

    def _see_known(self, chunk: bytes) -> int:
        """Count the text of the events at the start of a chunk that have the known fixed parts.

        Return the position of the first event with other parts.
        """
        at, size, first, differs, said_at = 0, len(chunk), self._first, self._differs, self._said_at
        while self.phase == OPEN and at < size:
            place_ = None if _event_at is None else _event_at(chunk, at, first, differs)
            if place_ is None:
                place_ = known_at(chunk, at, first, differs)
            if place_ is None:
                return at
            began, before = at, self.text_bytes
            at, text, number = place_
            self.saw(text)
            beside = at - began - self._frame_bytes - self.text_bytes + before
            if beside > self.envelope:  # as where the event is decoded
                self.envelope = min(beside, ENVELOPE_BYTES)
            if self.text_bytes > self.dense_from:
                self.words += len(text.split())
            self.content_events += 1
            if number >= 0:
                self.position = number
            if said_at is not None:
                self.said[said_at] += self.text_bytes - before
        return at

    def _try(self, event: bytes) -> None:
        """Store the fixed parts of an event, so that similar events are read fast.

        They are stored only if the dialect reads a trial event with other values as expected.
        """
        self._first, texts = b"", self._dialect.texts
        if texts is None or not event.endswith(_EVENT_ENDS):
            return
        self._trials += 1
        parts: list[tuple[str, int, int]] = []
        for match in texts.finditer(event):
            kind, start = match.lastgroup or "", match.end()
            inside = (_DIGITS if kind == _NUMBER_PART else _INSIDE).match(event, start)
            if inside is None or any(kind == other for other, _, _ in parts):
                continue
            if inside[0] or kind == _PADDING:
                parts.append((kind, start, inside.end()))
        if not any(kind == _TEXT_PART for kind, _, _ in parts):
            return
        ends = [*[start for _, start, _ in parts[1:]], len(event)]
        differs = [(kind, event[end:until]) for (kind, _, end), until in zip(parts, ends, strict=True)]
        first = event[: parts[0][1]]
        tried = first + b"".join([_TRIED_PARTS[kind] + behind for kind, behind in differs])
        if self._is_read(tried, any(kind == _NUMBER_PART for kind, _, _ in parts)):
            self._first, self._differs = first, differs
            self._frame_bytes = len(event) - len(data_of(event))

    def _is_read(self, event: bytes, numbered: bool) -> bool:
        """Return whether the dialect reads the values of a trial event, and finds nothing else in it.

        `numbered` says that the event has a sequence number.
        """
        tried = Meter(self.call, self.status, self.bounds)
        # Another text of the event may be as long, so the text that was read is compared. Its type is stated,
        # since compiled code would take it for a list for good, and a text that cannot be read makes it None.
        tried.texts = cast("list[str] | None", [])
        tried.told, tried.position, tried.envelope = (
            list(self.told),
            self.position,
            -1,
        )  # all of it is looked at
        if self._dialect.read_event(tried, data_of(event)):
            return False
        detail, known, members = tried.detail, self.detail, tried.said
        self._said_at = next(iter(members), None)
        more = (
            tried.reported or tried.failed or tried.marked or tried.partial or tried.unread or tried.finished
        )
        return (
            not (more or detail.tools or detail.says_more)
            and (not members or (members == {self._said_at: _TRIED_BYTES} and self._said_at in self.said))
            and tried.texts == [_TRIED]
            and tried.text_bytes == _TRIED_BYTES
            and tried.content_events == 1
            and tried.phase == OPEN
            and tried.told == self.told
            and tried.position == (_TRIED_AT if numbered else self.position)
            and detail.model in {"", known.model}
            and detail.service_tier in {"", known.service_tier}
        )

    def _hold(self, event: bytes, left_out: bool) -> None:
        """Hold an event back until the stream's end is known; `left_out` ones are not passed whole."""
        if self._held_bytes:
            self._bytes_behind_end += len(event)
        self._held_bytes += len(event)
        kept = self._beside(event) if left_out else event
        if kept:
            self._held.append(kept)
        if self._bytes_behind_end > BEHIND_END_BYTES_MAX:
            if self.phase == CLOSED:
                self.surplus = True
                self._held = []
            else:
                self.phase = OPEN

    def _release(self, passed: list[bytes]) -> None:
        """Pass on the bytes held back, because the stream goes on after them."""
        passed += self._held
        self._held = []
        self._held_bytes = self._bytes_behind_end = 0

    def _pass_unread(self, part: bytes, passed: list[bytes]) -> None:
        """Pass part of an event that is too long to store. A shortened copy of it is read at its end."""
        if self._oversized is None:
            if self.phase == CLOSED or has_mark(part):  # no client may have it before the end
                self._end_by(part)
                self.surplus = True
                self._hold(part, left_out=False)
                return
            self._release(passed)
            self._oversized = Tail(CODED_BYTES if says_end(part) else 0)
            self._shortened = TextShortener(self.bounds.event_bytes_max)
        self._shortened.feed_to(self, part)
        passed.append(self._oversized.feed(part))

    def _read_shortened(self) -> None:
        """Read the copy without long texts of an event that was too long to store."""
        shortened = self._shortened
        event = shortened.document
        if event:
            self._read(event)
        else:
            self.unread = True  # but for its ends
            shortened.read_ends(self, self._dialect)
        self._shortened = TextShortener(self.bounds.event_bytes_max)


class OpaqueMeter(Meter):
    """Count an unreadable answer by its size."""

    __slots__ = ("_tail",)

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = Tail(CODED_BYTES)

    def feed(self, chunk: bytes) -> bytes:
        """Count the bytes, and pass them on except the last `CODED_BYTES`."""
        self.unreadable(len(chunk))
        return self._tail.feed(chunk)

    def finish(self) -> bytes:
        self.ended = True
        return self._tail.take()
