"""The meters of answers, by API family: `make_meter` chooses one."""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterator

import msgspec

from gateway.core.calls.call import DEFAULT_BOUNDS, CallRequest, UsageBounds
from gateway.core.families.family import CallKind
from gateway.core.families.objects import may_tell, read_created_ids
from gateway.core.families.registry import SHAPES
from gateway.core.metering.content import UNCOUNTED, LooseContent, words_in
from gateway.core.metering.meter import TOKENIZED_BYTES_MAX, Dialect, Meter, slim
from gateway.core.metering.reading import (
    BRACKETS_MAX,
    UNREADABLE,
    as_it_reads,
    decoded,
    integer,
    is_object,
    loose_document,
)
from gateway.core.metering.refusals import note_fee
from gateway.core.metering.stream import (
    CODED_BYTES,
    OpaqueMeter,
    StreamMeter,
    Tail,
    TextShortener,
    is_open,
)
from gateway.core.model import TokenUsage
from gateway.errors import UpstreamUnreachable

# Bytes of a list of models, which is stored whole: its caller sees a part of it.

LISTED_BYTES_MAX = 2 << 20


class NarrowedMeter(Meter):
    """Meter of a free list of models: store it whole, then pass the entries that the caller may see.

    Raise `UpstreamUnreachable` if it is too long, compressed, or no list. A long list is filtered in steps,
    each by a call of `feed` while `behind` is set.
    """

    __slots__ = ("_coded", "_kept", "_kept_bytes", "_turns")

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, content_encoding: bytes) -> None:
        Meter.__init__(self, call, status, bounds)
        self._coded = content_encoding.strip().lower() not in {b"", b"identity"}
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._turns: Iterator[bytes] | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Store a chunk and return nothing; once the whole list has come, return filtered parts."""
        if self._turns is not None:
            return self._go_on(self._turns)
        self._kept_bytes += len(chunk)
        if self._coded or self._kept_bytes > LISTED_BYTES_MAX:
            why = "is compressed unasked" if self._coded else f"has more than {LISTED_BYTES_MAX} bytes"
            raise UpstreamUnreachable(f"The upstream's list of models {why}.")
        self._kept.append(chunk)
        return b""

    def finish(self) -> bytes:
        """Begin to filter the whole list, and return the bytes to pass, empty if more steps follow."""
        self.ended = True
        document, self._kept = b"".join(self._kept), []
        narrow = self.call.answer_filter.narrow
        assert narrow is not None
        self._turns = narrow(document)
        return self._go_on(self._turns)

    def _go_on(self, turns: Iterator[bytes]) -> bytes:
        passed = next(turns, None)
        self.behind = passed == b""
        return passed or b""

    @property
    def kept(self) -> int:
        return self._kept_bytes

    @property
    def known(self) -> bool:
        return True

    def usage(self) -> TokenUsage:
        return TokenUsage(units=0)


# Any HTTP API: units instead of tokens.
#
# An answer is one unit, or the amount that its upstream states in `x-usage-amount`, or the number that a JSON
# pointer of the configuration finds in the answer. Bodies pass unread unless a pointer asks: an answer that
# is then no document is `unread`, and its client is not given the end of it.

UNITS_MAX = 1_000_000_000
_NO_DOCUMENT = object()


_CARRIED_BYTES = 128  # enough for a name and its number, which may come in two chunks


class _Largest:
    """The largest number in a document under the last name of a JSON pointer, at any depth."""

    __slots__ = ("_name", "_unread", "found")

    def __init__(self, pointer: str) -> None:
        name = pointer.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        self._name = re.compile(rb'"%b"[ \t\r\n]*+:[ \t\r\n]*+([0-9]{1,19})' % re.escape(name.encode()))
        self._unread = b""
        self.found = 0

    def feed(self, chunk: bytes) -> None:
        text = self._unread + chunk
        for match in self._name.finditer(text):
            self.found = max(self.found, int(match[1]))
        self._unread = text[-_CARRIED_BYTES:]


class GenericMeter(Meter):
    """Count units. The body passes unread, through `tail` if the document itself shows its end.

    For a document too long to read, the largest number under the configured name is charged.
    """

    __slots__ = ("_document", "_has_body", "_largest", "_pointer", "_tail", "_units")

    def __init__(
        self, call: CallRequest, status: int, bounds: UsageBounds, stated: bytes, tail: Tail | None
    ) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = tail
        self._has_body = False
        self._units = 1 if 200 <= status < 300 else 0
        self._pointer = ""
        if stated:
            self._take(stated)
        elif call.units_pointer and self._units:
            self._pointer = call.units_pointer
            self._document, self._largest = TextShortener(bounds.kept_bytes_max), _Largest(self._pointer)

    def feed(self, chunk: bytes) -> bytes:
        self._has_body = True
        if self._pointer:
            self._document.feed(chunk)
            self._largest.feed(chunk)
        if self._tail is None:
            return chunk
        passed = self._tail.feed(chunk)
        self.withheld, self.surplus = len(self._tail.rest), self._tail.surplus
        return passed

    def whole(self, answer: bytes) -> bytes:
        self._tail = None
        passed = self.feed(answer)
        self.finish()
        return passed

    def finish(self) -> bytes:
        """Read the units from the document, if a JSON pointer is configured."""
        self.ended = True
        if self._pointer:
            value = _read(self._document.document)
            self.unread = value is _NO_DOCUMENT and self._has_body
            found = integer(_value_at(value, self._pointer))
            if found is None or found < 0:
                self.marked = True
                if self.unread:
                    self._units = min(max(self._largest.found, 1), UNITS_MAX)
            else:
                self.reported, self.marked = True, found > UNITS_MAX
                self._units = min(found, UNITS_MAX)
        return b"" if self._tail is None else self._tail.take()

    @property
    def kept(self) -> int:
        return self._document.kept if self._pointer else 0

    @property
    def produced(self) -> bool:
        """Whether any of a successful answer was passed on, or the upstream stated an amount."""
        return self.reported or (200 <= self.status < 300 and (self._has_body or self.ended))

    @property
    def known(self) -> bool:
        """Whether the charge is certain: some of the answer passed, and no units are read from it."""
        return self.produced and not self._pointer

    def usage(self) -> TokenUsage:
        units = self._units if self.produced else 0
        return TokenUsage(units=units, reported=self.reported, estimated=self.marked)

    def _take(self, stated: bytes) -> None:
        """Set the units from the header value `stated`: at most `UNITS_MAX`, and 1 if it is no number."""
        text = stated.strip()
        if not text.isdigit():
            self.marked = True
            return
        digits = text.lstrip(b"0") or b"0"
        self.marked = len(digits) > len(str(UNITS_MAX)) or int(digits) > UNITS_MAX
        self._units = UNITS_MAX if self.marked else int(digits)
        self.reported = True


class FreeMeter(Meter):
    """Pass an answer that costs nothing. Its end waits if ids of stored objects are to be read from it."""

    __slots__ = ("_kept", "_kept_bytes", "_tail")

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, tail: Tail | None) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = tail if call.objects.keeps and 200 <= status < 300 else None
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        if self._tail is None:
            return chunk
        self._kept_bytes += len(chunk)
        if self._kept_bytes <= self.bounds.kept_bytes_max:
            self._kept.append(chunk)
        passed = self._tail.feed(chunk)
        self.surplus = self._tail.surplus
        return passed

    def finish(self) -> bytes:
        self.ended = True
        if self._tail is None:
            return b""
        self.told += read_created_ids(self.call.family, loose_document(b"".join(self._kept)))
        self._kept = []
        return self._tail.take()

    @property
    def kept(self) -> int:
        return min(self._kept_bytes, self.bounds.kept_bytes_max)

    @property
    def known(self) -> bool:
        return True

    def usage(self) -> TokenUsage:
        return TokenUsage(units=0)


def _read(document: bytes) -> object:
    try:
        return decoded(msgspec.json.decode, document)
    except UNREADABLE:
        return _NO_DOCUMENT


def _value_at(value: object, pointer: str) -> object:
    """Return the value at a JSON pointer (RFC 6901), or None if there is none."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


class WholeMeter(Meter):
    """Meter of an answer that is one JSON document, stored while it passes and read at its end.

    A document longer than `kept_bytes_max` is stored without its long texts; a broken one is judged by the
    text that came.
    """

    __slots__ = ("_dialect", "_end", "_examined", "_kept", "_kept_bytes", "_open", "_shortened", "_worded")

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._shortened: TextShortener | None = None
        self._end: Tail | None = None
        self._examined = self._worded = 0
        self._open = False

    def feed(self, chunk: bytes) -> bytes:
        """Store a chunk and pass it on, except the byte that may be the document's last."""
        self._keep(chunk)
        end = self._end
        if end is None:
            end = self._end = Tail()
        passed = end.feed(chunk)
        self.withheld, self.surplus = len(end.rest), end.surplus
        return passed

    def whole(self, answer: bytes) -> bytes:
        self._keep(answer)
        self.finish()
        return answer

    def finish(self) -> bytes:
        """Read usage and content of the whole answer; return the bytes that were kept back for its end."""
        self.ended = True
        document = self._document()
        self._dialect.read_whole(self, document)
        if 400 <= self.status < 500:
            note_fee(self, document)
        if self._shortened is not None and not document:
            self._shortened.read_ends(self, self._dialect)
        elif self.call.objects.keeps and may_tell(self.call.family, document, self.call.objects.keeps):
            self.told += read_created_ids(
                self.call.family, loose_document(document), self.call.objects.named, self.call.objects.keeps
            )
        if not self.reported and len(document) > BRACKETS_MAX:  # possibly more brackets than are checked
            ends = TextShortener(0)
            ends.feed(document)
            ends.read_ends(self, self._dialect)
        self._examine()
        if not self.reported and (document or self._shortened is None):
            self._judge(document.strip())
        self._kept = []
        self._shortened = None
        return b"" if self._end is None else self._end.take()

    @property
    def kept(self) -> int:
        return self._kept_bytes if self._shortened is None else self._shortened.kept

    def slim(self) -> None:
        """Stop storing long texts, unless ids of stored objects are read from the answer."""
        if not self.call.objects.keeps:
            self.bounds = slim(self.bounds)

    @property
    def is_whole(self) -> bool:
        return self.ended and not self._open

    @property
    def produced(self) -> bool:
        """Whether any text or report of usage has come."""
        self._examine()
        return self.reported or self.text_bytes > 0

    def observed(self) -> int:
        """Return the tokens used so far. The output counts only if the client asked for a stream."""
        if self.reported:
            return self.total
        if self.call.spec.mcp.server or not self._kept_bytes or not 200 <= self.status < 300:
            return 0
        # A client that asked for a stream reads the answer while it comes.
        passed = self._kept_bytes if self.call.spec.streamed else 0
        produced = int(passed // self.call.learned.output_bytes_per_token)
        if produced > self.output_most and 4 * passed >= 5 * self._worded:  # each time all of it is read
            self._worded, self.words = passed, max(self.words, words_in(self._document(), whole=True))
        return self.call.input_estimate + max(min(produced, self.output_most), self.words)

    def _judge(self, document: bytes) -> None:
        """Mark the answer as failed if `document` is empty; if it is no JSON object, count it by its size."""
        if document and not is_object(document):
            self._open = document.startswith(b"{") and is_open(document)
            self.unreadable(max(len(document) - self.text_bytes, 1))
        self.failed = self.failed or not (document or self.unread)

    def _document(self) -> bytes:
        if self._shortened is not None:
            return self._shortened.document
        return self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)

    def _examine(self) -> None:
        """Count the text of the stored document, if it is incomplete or has no full report of usage."""
        told = self.reported and self.final and not self.uncounted and (self.output > 0 or self.by_units)
        if told or self._examined == self._kept_bytes or self.call.output_max == 0:
            return
        self._examined = self._kept_bytes
        document, left_out = self._document(), UNCOUNTED | self._dialect.brought
        content = LooseContent(document, left_out, whole=True)
        if not (content.found or self.reported):  # it has an unknown shape
            content = LooseContent(document, left_out)
        long_texts = 0 if self._shortened is None else self._shortened.text_bytes
        self.text_bytes = max(self.text_bytes, long_texts + content.size)
        if long_texts or content.data:
            self.texts = None
        elif self.texts is not None and self.text_bytes <= TOKENIZED_BYTES_MAX:
            self.texts = [as_it_reads(text) for text in content.texts]

    def _keep(self, chunk: bytes) -> None:
        """Store a part of the answer, shortened if the answer is too large."""
        self._kept_bytes += len(chunk)
        if self._shortened is not None:
            self._shortened.feed(chunk)
        elif self._kept_bytes <= self.bounds.kept_bytes_max:
            self._kept.append(chunk)
        else:
            self._shortened = TextShortener(self.bounds.kept_bytes_max)
            self._shortened.feed(b"".join((*self._kept, chunk)))
            self._kept = []


# Meter an answer that is compressed: decode a copy to read it, pass on what came.
#
# Bytes pass once all that they decode to may: an end that waits in the decoded copy waits in the
# compressed bytes as well. Decoding stops at `decoded_bytes_max` in all: what is longer, broken or in a
# coding the standard library cannot read is counted by its size. One `feed` decodes a step; `behind` says
# that there is more to decode.

STEP_BYTES = 16 << 10  # decoded at a time, as much as one read of a plain answer
DECODER_BYTES = 40 << 10  # a window and its tables
_MEMBER_BYTES = 1 << 10  # the cost of beginning a member, in decoded bytes
_GZIP = 16 + zlib.MAX_WBITS


class EncodedMeter(Meter):
    """Decode gzip (any number of members, RFC 1952, 2.2) or deflate, and feed the copy to the meter inside.

    The compressed bytes pass unchanged, so no usage frame can be removed and no error inserted.
    """

    __slots__ = (
        "_chunk", "_decoded_bytes", "_decoder", "_gzip", "_inner", "_members", "_started",
        "_tail", "_undecoded", "_waiting",
    )  # fmt: skip

    def __init__(self, inner: Meter, gzip: bool) -> None:
        Meter.__init__(self, inner.call, inner.status, inner.bounds)
        self._inner = inner
        self.detail, self.told = inner.detail, inner.told
        self._gzip = gzip
        self._decoder: zlib._Decompress | None = zlib.decompressobj(_GZIP if gzip else zlib.MAX_WBITS)
        self._decoded_bytes = self._members = 0
        # The rest of the last chunk to decode, if `behind` is set.
        self._chunk = self._undecoded = b""
        self._started = False
        # Chunks that have not passed, each with the position where its decoded bytes end.
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._tail: Tail | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Decode one step of the answer, and return the compressed bytes that may pass.

        Without new bytes, decode the next step of the last chunk.
        """
        if chunk:
            self._catch_up()
            self._chunk = self._undecoded = chunk
        if chunk or self.behind:
            self._step()
        self._follow()
        if self._tail is not None:
            return self._tail.feed(self._take())
        safe = self._decoded_bytes - self._inner.withheld
        passed: list[bytes] = []
        while self._waiting and self._waiting[0][1] <= safe:
            passed.append(self._waiting.popleft()[0])
        return b"".join(passed)

    def finish(self) -> bytes:
        self._catch_up()
        self._inner.finish()
        self._follow()
        return (b"" if self._tail is None else self._tail.take()) + self._take()

    def whole(self, answer: bytes) -> bytes:
        self.feed(answer)
        self.finish()
        return answer

    @property
    def kept(self) -> int:
        """The bytes in memory, of the compressed answer and of the decoded copy."""
        return self._inner.kept + sum(len(chunk) for chunk, _ in self._waiting) + DECODER_BYTES

    def slim(self) -> None:
        self._inner.slim()

    @property
    def produced(self) -> bool:
        return self._inner.produced

    @property
    def known(self) -> bool:
        return self._inner.known

    def observed(self) -> int:
        return self._inner.observed()

    @property
    def is_whole(self) -> bool:
        return self._inner.is_whole

    def so_far(self) -> TokenUsage:
        return self._inner.so_far()

    def usage(self) -> TokenUsage:
        return self._inner.usage()

    def _follow(self) -> None:
        """Copy the state of the inner meter."""
        inner = self._inner
        self.phase, self.surplus, self.unread = inner.phase, inner.surplus, inner.unread
        self.continues = inner.continues

    def _catch_up(self) -> None:
        """Decode the rest of the last chunk."""
        while self.behind:
            self._step()

    def _step(self) -> None:
        """Decode the next part of the answer and meter it; meter it as it is if it is invalid."""
        self.behind = False
        if self._decoder is None:
            self._unread(self._chunk)
        else:
            try:
                self._decode()
            except zlib.error:
                self._retry_raw(self._chunk)
        if not self.behind:
            self._waiting.append((self._chunk, self._decoded_bytes))

    def _decode(self) -> None:
        """Decode stored bytes, until `STEP_BYTES` are decoded or nothing is left."""
        data, left = self._undecoded, STEP_BYTES
        while (decoder := self._decoder) is not None:
            decoded = decoder.decompress(data, left)
            self._started = True
            if decoded:
                left -= len(decoded)
                self._decoded_bytes += len(decoded)
                if self._decoded_bytes > self._inner.bounds.decoded_bytes_max:
                    self._unread(self._chunk)
                    return
                self._inner.feed(decoded)
            data = decoder.unconsumed_tail
            if decoder.eof:
                data = decoder.unused_data
                self._members += 1
                left -= _MEMBER_BYTES
                self._decoder = zlib.decompressobj(_GZIP) if self._gzip else None
                if not data or self._decoder is None:
                    return
            elif not data and left > 0:
                return
            if left <= 0:
                self._undecoded, self.behind = data, True
                return

    def _retry_raw(self, chunk: bytes) -> None:
        """Decode `deflate` data without header, as some servers send it; else count bytes undecoded."""
        if self._members:  # padding behind the last member belongs to no answer
            self._decoder = zlib.decompressobj(_GZIP)
            return
        if self._gzip or self._started:
            self._unread(chunk)
            return
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        self._started = True
        self._undecoded = chunk
        try:
            self._decode()
        except zlib.error:
            self._unread(chunk)

    def _unread(self, chunk: bytes) -> None:
        """Count a chunk that cannot be decoded by its size, and hold back the last bytes from now on."""
        if self._members and not self._gzip:
            return  # bytes after a deflate stream do not belong to it
        self._decoder = None
        self._inner.unreadable(len(chunk))
        if self._tail is None:
            self._tail = Tail(CODED_BYTES)

    def _take(self) -> bytes:
        waiting = b"".join(chunk for chunk, _ in self._waiting)
        self._waiting.clear()
        return waiting


_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})


def make_meter(
    call: CallRequest,
    status: int,
    content_type: bytes = b"",
    content_encoding: bytes = b"",
    bounds: UsageBounds = DEFAULT_BOUNDS,
    *,
    usage_amount: bytes = b"",
) -> Meter:
    """Return the meter for one answer, by its call and its headers.

    `content_type`, `content_encoding` and `usage_amount` (the value of `x-usage-amount`) are raw header
    values, empty if absent. Feed it the body without transfer coding, and call `finish` only if the answer
    ended properly.
    """
    shape = SHAPES.get(call.meter)
    if shape is None:
        if call.answer_filter.narrow is not None and 200 <= status < 300:
            return NarrowedMeter(call, status, bounds, content_encoding)
        if call.meter == "generic":
            coding = content_encoding.strip().lower()
            if call.units_pointer and coding in _CODINGS:
                decoded = GenericMeter(call, status, bounds, usage_amount, _tail(content_type, b""))
                return EncodedMeter(decoded, coding != b"deflate")
            return GenericMeter(call, status, bounds, usage_amount, _tail(content_type, content_encoding))
        return FreeMeter(
            call, status, bounds, _tail(content_type, content_encoding) if call.objects.keeps else None
        )
    coding = content_encoding.strip().lower() if content_encoding else b""
    if not coding or coding == b"identity":
        return _plain(call, status, content_type, bounds, shape)
    if coding in _CODINGS:
        return EncodedMeter(_plain(call, status, content_type, bounds, shape), coding != b"deflate")
    return OpaqueMeter(call, status, bounds)


def _tail(content_type: bytes, content_encoding: bytes) -> Tail | None:
    """Return the `Tail` that holds back the last bytes of a document; None if it is not JSON."""
    media = content_type.partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        return None
    return Tail(CODED_BYTES if content_encoding.strip().lower() not in {b"", b"identity"} else 0)


def _plain(
    call: CallRequest, status: int, content_type: bytes, bounds: UsageBounds, shape: CallKind
) -> Meter:
    """Return the meter of an uncompressed answer, whole or streamed by its content type."""
    meter = _choose_meter(call, status, content_type, bounds, shape)
    detail, spec = meter.detail, call.spec
    if shape.main_input or call.media.heard:  # what may be sound costs as much where nobody splits it
        detail.main_input, detail.text_input = shape.main_input or "audio_input", spec.prompt_tokens
    if shape.main_output or spec.makes:
        detail.main_output = shape.main_output or spec.makes
    return meter


def _choose_meter(
    call: CallRequest, status: int, content_type: bytes, bounds: UsageBounds, shape: CallKind
) -> Meter:
    dialect = shape.dialect
    if content_type == b"application/json" and not call.spec.streamed:
        return WholeMeter(call, status, bounds, dialect)
    media = content_type.partition(b";")[0].strip().lower()
    if media == b"text/event-stream":
        return StreamMeter(call, status, bounds, dialect)
    if shape.unframed is not None and 200 <= status < 300:
        return shape.unframed(call, status, bounds)
    if call.spec.streamed and 200 <= status < 300 and media != b"application/json":
        return StreamMeter(call, status, bounds, dialect)
    return WholeMeter(call, status, bounds, dialect)
