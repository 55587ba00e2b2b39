"""Meter an answer that is one JSON document: kept while it passes, read at its end.

A document longer than `kept_bytes_max` is kept without its long texts; a broken one is judged by the
text that came.
"""

from __future__ import annotations

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.objects_told import may_tell, told
from gateway.core.metering.long import Shortened
from gateway.core.metering.loose import is_object, loose_document, text_bytes, texts_in
from gateway.core.metering.meter import TOKENIZED_BYTES_MAX, Dialect, Meter, slim
from gateway.core.metering.readable import BRACKETS_MAX
from gateway.core.metering.tail import Tail


class WholeMeter(Meter):
    """Keep the document, pass it on, read it at the end."""

    __slots__ = ("_dialect", "_end", "_examined", "_kept", "_kept_bytes", "_shortened")

    def __init__(self, call: Call, status: int, bounds: Bounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._shortened: Shortened | None = None
        self._end = Tail()
        self._examined = 0

    def feed(self, chunk: bytes) -> bytes:
        """Keep the chunk and pass it on, but for the byte that may be the document's last."""
        self._keep(chunk)
        passed = self._end.feed(chunk)
        self.withheld = len(self._end.rest)
        self.surplus = self._end.surplus
        return passed

    def whole(self, answer: bytes) -> bytes:
        """Take a complete document, of which nothing has to wait."""
        self._keep(answer)
        self.finish()
        return answer

    def finish(self) -> bytes:
        """Read the document."""
        self.ended = True
        document = self._document()
        self._dialect.read_whole(self, document)
        if self._shortened is not None and not document:
            self._shortened.read_ends(self, self._dialect)
        elif self.call.keeps and may_tell(self.call.family, document):
            self.told += told(self.call.family, loose_document(document), self.call.named)
        if not self.reported and len(document) > BRACKETS_MAX:  # more brackets than are looked at, maybe
            ends = Shortened(0)
            ends.feed(document)
            ends.read_ends(self, self._dialect)
        self._examine()
        if not self.reported and (document or self._shortened is None):
            self._judge(document.strip())
        self._kept = []
        self._shortened = None
        return self._end.take()

    @property
    def kept(self) -> int:
        """Bytes of the document that are kept."""
        return self._kept_bytes if self._shortened is None else self._shortened.kept

    def slim(self) -> None:
        """Keep no long texts from now on; what tells of objects is read whole all the same."""
        if not self.call.keeps:
            self.bounds = slim(self.bounds)

    @property
    def produced(self) -> bool:
        """True once text was seen or use was reported."""
        self._examine()
        return self.reported or self.text_bytes > 0

    def observed(self) -> int:
        """Tokens seen so far: nothing is known of the output before the end."""
        if self.reported:
            return self.total
        if not self._kept_bytes or not 200 <= self.status < 300:
            return 0
        # Who asked for a stream has it as it comes.
        passed = self._kept_bytes if self.call.streamed else 0
        return self.call.input_estimate + int(passed // self.call.output_bytes_per_token)

    def _judge(self, document: bytes) -> None:
        """An empty answer is none; one that is no JSON object is counted by its size."""
        if document and not is_object(document):
            self.unreadable(max(len(document) - self.text_bytes, 1))
        self.failed = self.failed or not (document or self.unread)

    def _document(self) -> bytes:
        """What was kept of the document."""
        if self._shortened is not None:
            return self._shortened.document
        return self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)

    def _examine(self) -> None:
        """Count the text that came, for an answer that is broken or does not say what it used."""
        if (self.reported and not self.uncounted) or self._examined == self._kept_bytes:
            return
        self._examined = self._kept_bytes
        document = self._document()
        left_out = 0 if self._shortened is None else self._shortened.text_bytes
        self.text_bytes = max(self.text_bytes, left_out + text_bytes(document))
        if left_out:
            self.texts = None
        elif self.texts is not None and self.text_bytes <= TOKENIZED_BYTES_MAX:
            self.texts = texts_in(document)

    def _keep(self, chunk: bytes) -> None:
        self._kept_bytes += len(chunk)
        if self._shortened is not None:
            self._shortened.feed(chunk)
        elif self._kept_bytes <= self.bounds.kept_bytes_max:
            self._kept.append(chunk)
        else:
            self._shortened = Shortened(self.bounds.kept_bytes_max)
            self._shortened.feed(b"".join((*self._kept, chunk)))
            self._kept = []
