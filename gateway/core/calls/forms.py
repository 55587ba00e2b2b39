"""Forms (`multipart/form-data`, RFC 7578): texts and files of one call, read as their bytes come.

Parsers disagree about forms more than about JSON: which line ends a part, which of two names counts, what is
a file. So a form must have the one spelling of the SDKs and of curl, and anything else is refused. Its
boundary occurs only between its parts. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from gateway.core.families.controlled import ControlledNames, Document
from gateway.errors import InvalidRequest, RequestTooLarge

PARTS_MAX: Final = 64
PART_HEAD_BYTES_MAX: Final = 4 << 10
# All texts of a form together: a prompt, and short recordings of known voices (`data:` URLs).
TEXTS_BYTES_MAX: Final = 8 << 20
# First bytes of a file that are stored, to recognize its type.
BEGINNING_BYTES: Final = 4 << 10
_DIGITS_MAX: Final = 9

_TYPE = re.compile(
    rb'multipart/form-data[ \t]*;[ \t]*boundary=(?:"([0-9A-Za-z\'+_.=-]{1,70})"|([0-9A-Za-z\'+_.-]{1,70}))'
    rb"(?:[ \t]*;[ \t]*charset=\"?utf-8\"?)?",
    re.IGNORECASE,
)
_LINE = re.compile(rb"([A-Za-z-]{1,40}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_NAMED = re.compile(
    rb'form-data; ?name="([A-Za-z_][0-9A-Za-z_]{0,63}(?:\[[0-9A-Za-z_]{0,64}\]){0,4})"'
    rb'(; ?filename="[^"\\\x00-\x1f\x7f]*"(?:; ?filename\*=utf-8\'\'[0-9A-Za-z%._~!$&+^`|-]*)?)?',
    re.IGNORECASE,
)
_OF_TEXT = re.compile(rb'text/plain(?:; ?charset="?(?:utf-8|us-ascii|iso-8859-1)"?)?', re.IGNORECASE)
_OF_FILE = re.compile(rb"(?!multipart/|message/)[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+(?:;.*)?", re.IGNORECASE)
_CODINGS: Final = frozenset({b"7bit", b"8bit", b"binary"})
_LINES: Final = frozenset(
    {b"content-disposition", b"content-type", b"content-length", b"content-transfer-encoding"}
)
_FLAGS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class FormKind:
    """The fields that a call's form may have: `files`, and texts that can be `numbers` or `flags`."""

    names: ControlledNames  # fields that the gateway reads, each once and in one spelling
    files: frozenset[str]
    numbers: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()  # fields that an upstream would read instead of the file
    alone: bool = False  # one file and no JSON alternative, so it may be of any length


@dataclass(slots=True)
class FormFile:
    """One file of a form: the name of its field, its size, its first bytes, and its place in the form (0: unknown)."""

    name: str
    size: int = 0
    begins: bytes = b""
    at: int = 0


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary in a form's content type; `InvalidRequest` if it could be read in two ways."""
    match = _TYPE.fullmatch(content_type)
    if match is None:
        raise InvalidRequest(
            "The content-type must be multipart/form-data; boundary=…, of up to 70 letters, digits and -_+.'",
            param="content-type",
        )
    return match[1] or match[2]


_START, _HEAD, _CONTENT, _BEHIND = range(4)
_LAST_BYTES: Final = len(b"\r\n----\r\n")


@dataclass(slots=True)
class FormReader:
    """A form while it comes: its texts in `fields`, and its `files`.

    `texts_bytes` is the size of all texts, `model_at` the position of the model's name. A `closed` form
    accepts no more parts.
    """

    kind: FormKind
    mark: bytes
    fields: Document = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)
    texts_bytes: int = 0
    model_at: tuple[int, int] | None = None
    over: bool = False
    closed: bool = False
    _state: int = _START
    _unread: bytes = b""
    _read_bytes: int = 0
    _parts: int = 0
    _name: str = ""
    _text: list[bytes] = field(default_factory=list)
    _file: FormFile | None = None
    _ascii: bool = False
    _stated_size: int = -1
    _size: int = 0
    _waits: bool = False
    _content_at: int = 0

    def feed(self, data: bytes) -> None:
        """Parse the next bytes; `InvalidRequest` names a fault."""
        rest, at, self._waits = self._unread + data if self._unread else data, 0, False
        while not self._waits:
            if self._state == _CONTENT:
                at = self._read_content(rest, at)
            elif self._state == _HEAD:
                at = self._read_head(rest, at)
            elif self._state == _START:
                at = self._read_start(rest)
            elif b"\r\n".startswith(rest[at:]):
                self._waits = True
            else:
                raise InvalidRequest("The form ends, and something follows.")
        self._unread = rest[at:]
        self._read_bytes += at

    def expect_file_to_end(self, length: int, beginning: int) -> None:
        """Accept no more parts: the current one must be the file, and reach to the end of the form.

        Its size follows from `length`, the size of the form in bytes. Raise `InvalidRequest` if no
        file has begun; the message names `beginning`, the bytes within which it must.
        """
        if self._file is not None and not self.over and not self.files:
            self.closed = True
            size = length - self._content_at - len(self.mark) - _LAST_BYTES
            self.files = [FormFile(self._name, max(size, 0), self._file.begins)]
        elif not self.over:
            raise InvalidRequest(
                f"In a form of {length} bytes the texts must stand first, the file within {beginning} bytes."
            )

    def end(self) -> None:
        """Raise `InvalidRequest` unless the bytes so far are a complete form."""
        if not self.over:
            raise InvalidRequest("The form does not end by its boundary.")

    def _read_start(self, rest: bytes) -> int:
        """Read the first mark of a form; return the place behind it, or 0 to wait for more bytes."""
        begins = b"--" + self.mark + b"\r\n"
        if not rest.startswith(begins[: len(rest)]):
            raise _marked()
        if len(rest) < len(begins):
            self._waits = True
            return 0
        return self._go_on(rest, len(begins) - 2)

    def _read_head(self, rest: bytes, at: int) -> int:
        """Read a part's head from `at` on; return the place of the first unread byte."""
        end = rest.find(b"\r\n\r\n", at, at + PART_HEAD_BYTES_MAX)
        if end >= 0:
            self._begin(rest[at:end])
            self._content_at = self._read_bytes + end + 4
            return end + 4
        if len(rest) - at >= PART_HEAD_BYTES_MAX:
            raise InvalidRequest(f"The head of a part is longer than {PART_HEAD_BYTES_MAX} bytes.")
        self._waits = True
        return at

    def _read_content(self, rest: bytes, at: int) -> int:
        """Read a part's content from `at` on; return the place of the first unread byte."""
        mark = b"--" + self.mark
        place = rest.find(mark, at)
        if place < 0 or len(rest) < place + len(mark) + 2:
            # A possible mark, and the end of the line before it, wait for more.
            end = max(at, len(rest) - len(mark) - 1 if place < 0 else place - 2)
            self._take(rest, at, end)
            self._waits = True
            return end
        if place < at + 2 or rest[place - 2 : place] != b"\r\n":
            raise _marked()
        self._take(rest, at, place - 2)
        self._end(self._read_bytes + place - 2)
        return self._go_on(rest, place + len(mark))

    def _go_on(self, rest: bytes, at: int) -> int:
        """Read the two bytes behind a boundary: a part begins, or the form ends; return the next position."""
        behind = rest[at : at + 2]
        if behind == b"\r\n":
            self._state = _HEAD
            if self.closed:
                raise InvalidRequest(
                    "In a form of so many bytes nothing may follow its file: put texts first."
                )
            if self._parts >= PARTS_MAX:
                raise RequestTooLarge(f"The form has more than {PARTS_MAX} parts.")
            self._parts += 1
        elif behind == b"--" and self._parts:
            self._state, self.over = _BEHIND, True
        else:
            raise _marked()
        return at + 2

    def _begin(self, head: bytes) -> None:
        """Read the header lines of a part, and begin the part; `InvalidRequest` for unknown lines."""
        lines: dict[bytes, bytes] = {}
        for line in head.split(b"\r\n"):
            match = _LINE.fullmatch(line)
            name = b"" if match is None else match[1].lower()
            if match is None or name in lines or name not in _LINES:
                raise InvalidRequest(
                    "A part of the form may have one line each of Content-Disposition, Content-Type,"
                    " Content-Length and Content-Transfer-Encoding, and no other."
                )
            lines[name] = match[2].rstrip(b" \t")
        named = _NAMED.fullmatch(lines.get(b"content-disposition", b""))
        if named is None:
            raise InvalidRequest(
                'Each part of the form must have Content-Disposition: form-data; name="…", and a file'
                ' filename="…" behind it, without \\ and quotes in either.'
            )
        name = self._name = named[1].decode()
        base = name.partition("[")[0]
        known = self.kind.names.folded.get(base.casefold())
        if known is not None and known != name:
            raise InvalidRequest(f"The field {name} must be written {known}.", param=known)
        if base.casefold() in self.kind.refused or base == "_charset_":
            raise InvalidRequest(f"{name} is not accepted: send the file itself.", param=name)
        if not name.endswith("[]") and (name in self.fields or any(file.name == name for file in self.files)):
            raise InvalidRequest(f"The field {name} appears twice.", param=name)
        if lines.get(b"content-transfer-encoding", b"binary").lower() not in _CODINGS:
            raise InvalidRequest("A part of the form must not be encoded.", param=name)
        stated = lines.get(b"content-length", b"-1")
        if stated != b"-1" and not (stated.isdigit() and len(stated) <= 2 * _DIGITS_MAX):
            raise InvalidRequest("The Content-Length of a part must be a number.", param=name)
        kind = lines.get(b"content-type")
        is_file = name in self.kind.files
        if is_file is not (named[2] is not None):
            right = 'must be a file: it needs filename="…"' if is_file else "must be no file"
            raise InvalidRequest(f"{name} {right}.", param=name)
        if kind is not None and (_OF_FILE if is_file else _OF_TEXT).fullmatch(kind) is None:
            right = "a plain type" if is_file else "text/plain in UTF-8"
            raise InvalidRequest(f"The Content-Type of {name} must be {right}.", param=name)
        self._ascii = kind is not None and b"8859" in kind
        self._stated_size, self._size, self._text = int(stated), 0, []
        self._file = FormFile(name) if is_file else None
        self._state = _CONTENT

    def _take(self, rest: bytes, at: int, end: int) -> None:
        """Add the bytes of `rest` from `at` to `end` to the current part."""
        size, file = end - at, self._file
        self._size += size
        if file is not None:
            file.size += size
            more = BEGINNING_BYTES - len(file.begins)
            if more > 0:
                file.begins += rest[at : min(end, at + more)]
            return
        self.texts_bytes += size
        if self.texts_bytes > TEXTS_BYTES_MAX:
            raise RequestTooLarge(f"The texts of the form have more than {TEXTS_BYTES_MAX} bytes.")
        if size:
            self._text.append(rest[at:end])

    def _end(self, at: int) -> None:
        """End the current part, at byte `at` of the form, and store its file or text."""
        name, file = self._name, self._file
        if self._stated_size not in {-1, self._size}:
            raise InvalidRequest(f"The Content-Length of {name} is not its length.", param=name)
        if file is not None:
            if not self.closed:
                file.at = self._content_at
                self.files.append(file)
            self._file = None
            return
        raw = b"".join(self._text)
        self._text = []
        try:
            value = raw.decode("ascii" if self._ascii else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name} is not valid UTF-8.", param=name) from error
        if name == "model":
            self.model_at = (at - len(raw), at)
        if name.endswith("[]"):
            listed = self.fields.setdefault(name, [])
            assert isinstance(listed, list)
            listed.append(value)
        else:
            self.fields[name] = self._typed(name, value)

    def _typed(self, name: str, value: str) -> object:
        """Return the value of a field by its type: a flag, a number or a text."""
        if name in self.kind.flags:
            if value not in _FLAGS:
                raise InvalidRequest(f"{name} must be true or false.", param=name)
            return _FLAGS[value]
        if name in self.kind.numbers:
            if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX):
                raise InvalidRequest(f"{name} must be a whole number.", param=name)
            return int(value)
        return value


def _marked() -> InvalidRequest:
    return InvalidRequest(
        "The boundary of the form must stand at the beginning, between its parts and at its end, each in a"
        " line of its own that ends in CR LF, and nowhere else."
    )
