"""The pages of a PDF, as the reader that finds most could count them. Pure, and bounded in bytes and parts.

A reader begins at a catalog, and follows `/Kids` from the tree of pages that it names. A file may have
several catalogs, versions of an object, and objects packed in streams, and readers choose differently among
them. So all objects are read, and all trees count. Where a file is not plain, nothing is known of its pages.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

BASE64_BYTES_MAX: Final = 64 << 20  # a longer document is not read
OBJECTS_MAX: Final = 50_000  # of the documents of one body
OBJECT_BYTES_MAX: Final = 256 << 10  # of one object without its stream
PAGES_MAX: Final = 1 << 20  # that a document may claim
# Bytes of objects and unpacked streams that are read of all documents of one body: their bounds, and how many for
# each byte of the documents.
READ_BYTES_MIN: Final = 1 << 20
READ_PER_BYTE: Final = 4
READ_BYTES_MAX: Final = 128 << 20
_AT_ONCE: Final = 1 << 20  # characters, a multiple of four: other threads run between
_HEAD_BYTES: Final = 48  # before the word `obj`
_TRAILER_BYTES: Final = 4_096  # after the word `trailer`
_WORD_BYTES: Final = 24  # that are counted for each word `obj`, which may end a head

_BLANK: Final = b"\0\t\n\f\r "
_B: Final = rb"[\0\t\n\f\r ]"
_END: Final = rb"(?![^\0\t\n\f\r /<>\[\]()%])"  # of a name or a number
_HEAD = re.compile(rb"([0-9]{1,10})%b+[0-9]{1,5}%b*\Z" % (_B, _B))
_PART = re.compile(rb"[^()<>%%\[\]]+|<<|>>|<[0-9A-Fa-f%b]*>|[\[\](]|%%[^\r\n]*" % _B[1:-1])
_OF_STRING = re.compile(rb"[^()\\]+|\\.|[()]", re.DOTALL)
_STREAM = re.compile(rb"(?:%b|%%[^\r\n]*[\r\n])*stream(\r?\n)?" % _B)
_ESCAPE = re.compile(rb"#([0-9A-Fa-f]{2})")
_REFERENCE: Final = rb"([0-9]{1,10})%b+[0-9]{1,5}%b+R%b" % (_B, _B, _END)
_REFERRED = re.compile(_REFERENCE)
_LIST = re.compile(rb"\[((?:%b*%b)*)%b*\]" % (_B, _REFERENCE, _B))
_NUMBER = re.compile(rb"\+?([0-9]{1,10})%b(?!%b+[0-9]+%b+R)" % (_END, _B, _B))
_PAIR = re.compile(rb"%b*([0-9]{1,10})%b+([0-9]{1,10})(?=%b)" % (_B, _B, _B))
_FLATE = re.compile(rb"(?:/FlateDecode|\[%b*/FlateDecode%b*\])%b" % (_B, _B, _END))
_CLOSED_BY: Final = {b"<<": b">>", b"[": b"]"}
# Names by which pages are found, with or without escapes.
_LEADING = re.compile(
    b"/(?:%b)%b"
    % (
        b"|".join(
            [
                b"".join([b"(?:%c|#%x|#%X)" % (letter, letter, letter) for letter in name])
                for name in (b"Kids", b"Pages", b"First")
            ]
        ),
        _END,
    )
)
_LEADING_BYTES_MAX: Final = 32
_ENCRYPTED: Final = b"/Encrypt"


class UnplainDocument(Exception):
    """A document is not plain, so its pages cannot be known."""


def _named(name: bytes) -> re.Pattern[bytes]:
    return re.compile(b"/%b%b%b*" % (name, _END, _B))


_KIDS, _PAGES, _COUNT, _N, _FIRST, _FILTER = map(
    _named, (b"Kids", b"Pages", b"Count", b"N", b"First", b"Filter")
)
# Members by which a stream is more than deflated.
_MORE = re.compile(rb"/(?:F|FFilter|FDecodeParms|DecodeParms|DP|Crypt)" + _END)


def pages_of(texts: Sequence[str]) -> Iterator[int | None]:
    """Yield the most pages of each of these documents in base64; None if they cannot be known."""
    budget = _Budget(sum(map(len, texts)))
    for text in texts:
        try:
            yield _Pages(_decode_text(text), budget).count()
        except (UnplainDocument, ValueError, zlib.error):
            yield None


class _Budget:
    """The bytes and objects that may still be read of the documents of one body."""

    def __init__(self, size: int) -> None:
        self.left = min(max(READ_PER_BYTE * size, READ_BYTES_MIN), READ_BYTES_MAX)
        self.objects = OBJECTS_MAX

    def take(self, size: int, objects: int = 0) -> None:
        """Count bytes and objects that are read; raise `UnplainDocument` if they are too many."""
        self.left, self.objects = self.left - size, self.objects - objects
        if self.left < 0 or self.objects < 0:
            raise UnplainDocument


def _decode_text(text: str) -> bytes:
    """Return the bytes of a PDF in base64; raise UnplainDocument if it is no plain one."""
    if len(text) > BASE64_BYTES_MAX:
        raise UnplainDocument
    parts = [text[at : at + _AT_ONCE] for at in range(0, len(text), _AT_ONCE)]
    data = b"".join([binascii.a2b_base64(part, strict_mode=True) for part in parts])
    # Each part may end with a padding, but the text has one at its end alone.
    if "=" in text[: (len(parts) - 1) * _AT_ONCE] or b"%PDF-" not in data[:1_024]:
        raise UnplainDocument
    return data


class _Pages:
    """The trees of pages in one file, by the numbers of their objects."""

    def __init__(self, data: bytes, budget: _Budget) -> None:
        self._data, self._budget = data, budget
        self._roots: set[int] = set()
        self._kids: dict[int, set[int]] = {}
        self._claims: dict[int, int] = {}  # what `/Count` says
        self._odd: set[int] = set()  # objects whose list is not plain
        self._leading: set[int] = set()  # places of such names in objects

    def count(self) -> int:
        """Return the most pages that a reader could count; raise `UnplainDocument` in doubt."""
        data = self._data
        at = data.find(b"trailer")
        while at >= 0:
            self._budget.take(_TRAILER_BYTES)
            if _ENCRYPTED in _plain(data[at : at + _TRAILER_BYTES]):
                raise UnplainDocument
            at = data.find(b"trailer", at + 1)
        at = data.find(b"obj")
        while at >= 0:
            self._budget.take(_WORD_BYTES)
            number = _number(data[max(0, at - _HEAD_BYTES) : at])
            if number is not None:
                self._read(number, at + 3)
            at = data.find(b"obj", at + 3)
        for at in range(0, len(data), _AT_ONCE):
            for leading in _LEADING.finditer(data, at, at + _AT_ONCE + _LEADING_BYTES_MAX):
                if leading.start() < at + _AT_ONCE and leading.start() not in self._leading:
                    raise UnplainDocument  # a reader may find an object there all the same
        seen, waiting, pages, claimed = set[int](), list(self._roots), 0, 1
        while waiting:
            number = waiting.pop()
            if number in seen or number in self._odd:
                raise UnplainDocument  # what stands at two places is two pages
            seen.add(number)
            kids = self._kids.get(number)
            waiting += kids or ()
            pages += not kids
            claimed = max(claimed, self._claims.get(number, 0))
        if not self._roots:
            raise UnplainDocument
        return min(max(pages, claimed), PAGES_MAX)

    def _read(self, number: int, begins: int) -> None:
        """Read the object at `begins`, and those in its stream."""
        data = self._data
        ends = _end(data, begins)
        self._budget.take(ends - begins, 1)
        text = _plain(data[begins:ends])
        self._note(number, text)
        self._leading.update([leading.start() for leading in _LEADING.finditer(data, begins, ends)])
        stream = _STREAM.match(data, ends)
        if stream is None or _N.search(text) is None:
            return
        if stream[1] is None:
            raise UnplainDocument
        inside = self._unpack_stream(text, stream.end())
        if inside[:1] not in b"0123456789+-%":  # a list of numbers and offsets comes first
            return
        many, first = _only(_N, text), _only(_FIRST, text)
        at = 0
        for _ in range(many):
            pair = _PAIR.match(inside, at)
            if pair is None:
                raise UnplainDocument
            at, begins = pair.end(), first + int(pair[2])
            self._budget.take(0, 1)
            head = inside[begins : begins + 1_024].lstrip(_BLANK)[:1]
            if head not in b"<[(/+-.0123456789tfn" or not head:
                raise UnplainDocument
            if head == b"<":
                ends = _end(inside, begins)
                self._budget.take(ends - begins)
                self._note(int(pair[1]), _plain(inside[begins:ends]))

    def _unpack_stream(self, text: bytes, begins: int) -> bytes:
        """Return the bytes of a stream with the dictionary `text`, from the first that is no blank."""
        data = self._data
        ends = data.find(b"endstream", begins)
        filters = [match.end() for match in _FILTER.finditer(text)]
        if _MORE.search(text) is not None or len(filters) > 1 or ends < 0:
            raise UnplainDocument
        inflate = None
        if not filters:
            inside = data[begins:ends]
        elif _FLATE.match(text, filters[0]) is None:
            raise UnplainDocument
        else:
            inflate = zlib.decompressobj()
            inside = inflate.decompress(data[begins:ends], self._budget.left + 1)
        self._budget.take(len(inside))
        if inflate is not None and not inflate.eof:
            raise UnplainDocument
        return inside.lstrip(_BLANK)

    def _note(self, number: int, text: bytes) -> None:
        """Note the pages that the text of an object names."""
        if _ENCRYPTED in text:
            raise UnplainDocument
        for match in _PAGES.finditer(text):
            root = _REFERRED.match(text, match.end())
            if root is not None:
                self._roots.add(int(root[1]))
            elif text[match.end() : match.end() + 1] not in {b"/", b">"}:  # not the value of another name
                raise UnplainDocument
        for match in _KIDS.finditer(text):
            listed = _LIST.match(text, match.end())
            kids = [] if listed is None else [int(digits) for digits in _REFERRED.findall(listed[1])]
            if listed is None or len(set(kids)) < len(kids):
                self._odd.add(number)
            self._kids.setdefault(number, set()).update(kids)
        if number in self._kids:
            for match in _COUNT.finditer(text):
                claim = _NUMBER.match(text, match.end())
                if claim is None:
                    self._odd.add(number)
                else:
                    self._claims[number] = max(self._claims.get(number, 0), int(claim[1]))


def _number(head: bytes) -> int | None:
    """Return the number of the object whose `head` ends in front of `obj`; None if this is no head."""
    match = _HEAD.search(head)
    if match is not None:
        return int(match[1])
    bare = head.rstrip(_BLANK)
    if not bare or bare[-1:].isdigit() or not {10, 13}.isdisjoint(head[len(bare) :]):
        raise UnplainDocument  # it may be one behind a comment
    return None


def _plain(text: bytes) -> bytes:
    """Return a text without escapes in names."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text) if b"#" in text else text


def _only(name: re.Pattern[bytes], text: bytes) -> int:
    """Return the one number that the member `name` of a dictionary has."""
    numbers = [_NUMBER.match(text, member.end()) for member in name.finditer(text)]
    if len(numbers) != 1 or numbers[0] is None:
        raise UnplainDocument
    return int(numbers[0][1])


def _end(text: bytes, at: int) -> int:
    """Return the end of the object that begins at `at`."""
    closing = list[bytes]()
    for match in _parts(text, at):
        part = match[0]
        if part in _CLOSED_BY:
            closing.append(_CLOSED_BY[part])
        elif part in {b">>", b"]"}:
            if not closing or closing.pop() != part:
                raise UnplainDocument
            if not closing:
                return match.end()
        elif not closing and b"endobj" in part:
            return match.end()
    raise UnplainDocument


def _parts(text: bytes, at: int) -> Iterator[re.Match[bytes]]:
    """Yield the marks of objects, and the text between marks. Strings are left out."""
    stop = at + OBJECT_BYTES_MAX
    while (match := _PART.match(text, at, stop)) is not None:
        at = match.end()
        if match[0] != b"(":
            yield match
            continue
        depth = 1
        while depth:
            of_string = _OF_STRING.match(text, at, stop)
            if of_string is None:
                raise UnplainDocument
            at = of_string.end()
            depth += (of_string[0] == b"(") - (of_string[0] == b")")
