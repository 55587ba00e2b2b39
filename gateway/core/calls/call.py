"""One metered call as the gateway understands it: what is asked for, and the document to send."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final

import msgspec

from gateway.core.calls.forms import FormFile
from gateway.core.calls.routes import ModelTarget, UpstreamFacts
from gateway.core.families.controlled import (
    INNER_CALLS,
    PROMPT_BYTES_MAX,
    CountTokens,
    Document,
    prompt_tokens,
)
from gateway.core.lru import LruEntry
from gateway.core.model import Family
from gateway.errors import InvalidRequest, RequestTooLarge

# The JSON document of a metered call: read once, decided on, and written again for its upstream.
#
# Parsers disagree about names that come twice, numbers no double holds and bytes that are not
# UTF-8: those are refused. All else is sent as it was understood here, so that nobody behind can
# understand it otherwise.

OBJECTS_MAX = 50_000  # objects and lists of one document: each costs up to 0.5 µs to read
STRINGS_MAX = 100_000  # names included: 0.1 µs
NUMBERS_MAX = 320_000  # all other values: 0.1 µs. Embeddings are asked for with 300,000 tokens as numbers
BACKSLASHES_MAX = 500_000  # of escapes in strings: 0.03 µs
OUTSIDE_BYTES_MAX = 8 << 20  # of numbers, marks and blanks outside strings
DIGITS_MAX = 4_300  # of one integer: what Python reads in a bounded time
LONG_DIGITS_MAX = 309  # of one integer in a large body: the longest a double holds
UNCOUNTED_BYTES_MAX = 32 << 10  # a body no longer than this cannot hold too much
# A body no longer than this takes a millisecond, if it has no more than so many marks.
LIGHT_BYTES_MAX = 256 << 10
LIGHT_MARKS_MAX = 10_000
NAMED_PARTS_MAX = 4_000  # strings, numbers and brackets looked through to name the field that is wrong
PARAM_CHARACTERS_MAX = 256

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_KIND = re.compile(r"^(Number|Integer value) out of range")
_PART = re.compile(
    rb'("(?:[^"\\]++|\\.)*+")([ \t\r\n]*+:)?|[-+0-9][-+.0-9a-zA-Z]*+|NaN|Infinity|[{}\[\],]', re.DOTALL
)
_ALIKE = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
# A longer run of digits has eight of the bytes that are so far apart.
_STRIDE = LONG_DIGITS_MAX // 8
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b',[{\\"')


_CUT, _CUT_OBJECT = b"\\u0001", b'role":"\\u0002"'

# One pass in C over a body, where that is compiled. The code without it is the definition.
_Scanned = tuple[int, int, int, int, bytes | None, bytes | None, int, bytes | None]
_scan: Callable[[bytes], _Scanned | None] | None
_dense: Callable[[bytes], int] | None
try:
    _compiled = import_module("gateway.core.calls._scan")
    _scan, _dense = _compiled.scan, _compiled.dense
except ImportError:
    _scan = _dense = None
_DIGITS_AND_CAPITALS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def dense_bytes(body: bytes) -> int:
    """Return the number of bytes that are digits or capitals: ids, numbers and base64 are made of these."""
    if _dense is not None:
        return _dense(body)
    return len(body) - len(body.translate(None, _DIGITS_AND_CAPITALS))


class CutParts:
    """Parts of a body that are not decoded, for nothing is decided by them: longer texts of messages and
    tools, messages that hold nothing but texts and calls of functions, and what a tool says of its function,
    with the tools behind it that are functions by the same members.

    `rest` is the body with U+0001 for each of these texts, and a role U+0002 for each of these objects, or
    for those in a row. It has these two nowhere else, and so many `marks`.
    """

    __slots__ = ("_body", "_ids", "_places", "marks", "rest")

    def __init__(self, body: bytes, rest: bytes, places: bytes, ids: bytes, marks: int) -> None:
        self._body, self.rest, self._places, self._ids, self.marks = body, rest, places, ids, marks

    def put_back(self, written: bytes) -> bytes:
        """Return the whole of a body whose rest is `written` again, with each part still in its turn."""
        left, cut = written.replace(_CUT_OBJECT, _CUT).split(_CUT), self._at(self._places)
        return b"".join([each for pair in zip(left, [*cut, b""], strict=True) for each in pair])

    @property
    def ids(self) -> list[str]:
        """The ids of objects that stand whole in messages which were cut: these name nothing else."""
        return [_decode(b'"%b"' % one) for one in self._at(self._ids)]

    def _at(self, places: bytes) -> list[bytes]:
        body = self._body
        return [body[start:end] for start, end in struct.iter_unpack("=II", places)]


class BodyLook:
    """Facts of a body before it is decoded.

    A `light` one is read in about a millisecond, whatever is in it. A `plain` one is as it is written here,
    with each name once in its object and not too much of anything: its `names` and `rare_bytes` are known,
    and its `cut` parts, where it has any.
    """

    __slots__ = ("cut", "light", "names", "plain", "rare_bytes")

    def __init__(self, body: bytes) -> None:
        size, found = len(body), None if _scan is None else _scan(body)
        self.plain, self.light = found is not None, size <= UNCOUNTED_BYTES_MAX
        self.names, self.rare_bytes = NO_NAMES, 0
        self.cut: CutParts | None = None
        if found is not None:
            said, files, self.rare_bytes, marks, rest, places, left, ids = found
            if rest is not None and places is not None and ids is not None:
                self.cut = CutParts(body, rest, places, ids, left)
            names = self.names = FieldNames(said & 1 > 0, files, said & 2 > 0)
            names.long_caches, names.media = said & 4 > 0, said & 8 > 0
            self.light = self.light or (size <= LIGHT_BYTES_MAX and marks <= LIGHT_MARKS_MAX)


def look_out_of_turn(body: bytes, skips_texts: bool = False) -> BodyLook | None:
    """Look at a body that may be light; None where it is too long for that.

    One whose call `skips_texts` is as heavy as what is left of it.
    """
    if len(body) > LIGHT_BYTES_MAX:
        return None
    look = BodyLook(body)
    if skips_texts and look.cut is not None and not look.names.media:
        look.light = look.light or look.cut.marks <= LIGHT_MARKS_MAX
    elif not look.light and not look.plain:
        marks = body.translate(None, _NO_MARKS)
        look.light = len(marks) - marks.count(b'"') <= LIGHT_MARKS_MAX
    return look


def read_document(body: bytes, look: BodyLook | None = None) -> dict[str, object]:
    """Read one JSON object; `InvalidRequest` or `RequestTooLarge` names what is wrong.

    Nobody has to count the parts of one, or of its rest, that a `look` knows to be light or plain.
    """
    known, light = (False, False) if look is None else (look.plain, look.light)
    if not known and len(body) > UNCOUNTED_BYTES_MAX and _may_hold_too_much(body, light):
        check_size(body)
    try:
        document = _decode(body)
    except msgspec.MsgspecError as error:
        raise _unreadable(body, str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return document


def write_document(document: dict[str, object]) -> bytes:
    """Write a document in UTF-8, without blanks; every colon of it stands as itself."""
    try:
        return _encode(document)
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error


def written_of(document: dict[str, object], body: bytes, look: BodyLook) -> bytes:
    """Return the body of an unchanged document as it is written here, each name once."""
    if look.plain:
        return body
    written = write_document(document)
    check_names(body, written, 0)
    return written


def check_names(body: bytes, written: bytes, added: int) -> None:
    """Refuse a body in which a name comes twice in one object, at any depth, however it is spelled.

    `written` is its document with `added` more members. Of two equal names a document keeps
    one, so one colon less is written than was read; inside strings, each colon read is one written.
    """
    if written.startswith(body[:-1]):
        return  # it came as it is written, but for what was added after it
    read = body.count(b":")
    if b"\\" in body and b"\\u003" in body:
        plain = body.replace(b"\\\\", b"")  # what is left before `u003a` is an escape
        read += plain.count(b"\\u003a") + plain.count(b"\\u003A")
    if read + added != written.count(b":"):
        param = _find(body, twice=True)
        raise InvalidRequest(f"The field {param or 'name'} appears twice.", param=param)


def _may_hold_too_much(body: bytes, light: bool) -> bool:
    """Return whether the parts of a body have to be told from what stands in its strings."""
    if len(body) > OUTSIDE_BYTES_MAX or b"0" * 8 in body[::_STRIDE].translate(_ALIKE):
        return True
    if light:
        return False
    marks = body.translate(None, _NO_MARKS)
    return (
        marks.count(b"\\") > BACKSLASHES_MAX
        or marks.count(b'"') > 2 * STRINGS_MAX
        or marks.count(b"[") + marks.count(b"{") > OBJECTS_MAX
        or marks.count(b",") > STRINGS_MAX + OBJECTS_MAX + NUMBERS_MAX
    )


def check_size(body: bytes) -> None:
    """Refuse what would hold up every other call: counted in C, without making anything of it."""
    marks = body
    backslashes = body.count(b"\\")
    if backslashes > BACKSLASHES_MAX:
        raise RequestTooLarge(f"The body has more than {BACKSLASHES_MAX} backslashes.")
    if backslashes:
        marks = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if marks.count(b'"') > 2 * STRINGS_MAX:
        raise RequestTooLarge(f"The body has more than {STRINGS_MAX} strings and names.")
    outside = b"".join(marks.split(b'"')[::2])
    if len(outside) > OUTSIDE_BYTES_MAX:
        raise RequestTooLarge(f"The body has more than {OUTSIDE_BYTES_MAX} bytes outside its strings.")
    if outside.count(b"[") + outside.count(b"{") > OBJECTS_MAX:
        raise RequestTooLarge(f"The body has more than {OBJECTS_MAX} objects and lists.")
    if outside.count(b",") > STRINGS_MAX + OBJECTS_MAX + NUMBERS_MAX:
        raise RequestTooLarge(f"The body has more than {NUMBERS_MAX} numbers.")
    if b"0" * (LONG_DIGITS_MAX + 1) in outside.translate(_ALIKE):
        raise InvalidRequest(f"A number of the body has more than {LONG_DIGITS_MAX} digits.")


def _unreadable(body: bytes, message: str) -> InvalidRequest:
    """Return the error for a body that is no document, with the field that is to blame, if any."""
    if not body.strip():
        return InvalidRequest("The body is empty, and a JSON object is needed.")
    kind = _KIND.match(message)
    param = _find(body, twice=False)
    if kind is not None:
        return InvalidRequest(f"{kind[0]} in {param or 'the body'}.", param=param)
    return InvalidRequest(f"{message}.", param=param)


def _find(body: bytes, *, twice: bool) -> str | None:
    """Return the path of the first name that comes twice, or of the first number that is none.

    The first `NAMED_PARTS_MAX` parts are looked through; None where it is not among them.
    """
    path: list[str | int] = []
    names: list[set[str]] = []
    for count, match in enumerate(_PART.finditer(body)):
        part = match[0]
        if count > NAMED_PARTS_MAX or (not path and part not in b"{["):
            return None
        if match[2] is not None:
            path[-1] = name = _text(match[1])
            if twice and name in names[-1]:
                return _joined(path)
            names[-1].add(name)
        elif part in b"{[":
            path.append("" if part == b"{" else 0)
            names.append(set())
        elif part in b"}]":
            path.pop()
            names.pop()
        elif part == b",":
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else last
        elif not twice and part[:1] != b'"' and not _is_number(part):
            return _joined(path)
    return None


def _is_number(part: bytes) -> bool:
    if len(part) > DIGITS_MAX:
        return False
    try:
        return math.isfinite(float(part)) if not part.lstrip(b"-").isdigit() else True
    except ValueError:
        return False


def _text(raw: bytes) -> str:
    try:
        return str(json.loads(raw))
    except ValueError:
        return ""


def _joined(path: list[str | int]) -> str | None:
    return ".".join(map(str, path))[:PARAM_CHARACTERS_MAX] or None


# Text of a body, and stand-ins for pictures, sound and files: those cost by other measures.
#
# Media is known by its place in the API, by the type it states, and by how it begins. Everything else is
# text, whatever it says of itself.

MEDIA_BYTES_MIN = 2_048  # base64 shorter than this counts as text
BLOB_TOKENS = 1_600  # what one image costs at most, near enough, at every provider
BLOB_BYTES_PER_TOKEN = 1_024  # and what a long recording or document adds
DEPTH_MAX = 16  # lists and objects around a medium

_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)(?:;[a-z0-9=._+-]+){0,8};base64,", re.IGNORECASE)
# How files of these types begin, in base64, by the part of a type in front of its slash, or the whole type.
_BEGINNINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR"),  # PNG, JPEG, GIF, WebP
    "audio": ("UklGR", "SUQz", "//s", "//M", "//I", "ZkxhQ", "T2dnU"),  # WAV, MP3, FLAC, Ogg
    "video": ("GkXfo", "AAAAG", "AAAAH", "AAAAI", "AAAAF"),  # WebM, MP4
    "application/pdf": ("JVBERi0",),
}
_ALL_BEGINNINGS: Final = tuple(one for each in _BEGINNINGS.values() for one in each)
# Those pack text: what they cost does not follow from their size.
_PACKED = frozenset({"application/pdf"})


@dataclass(frozen=True, slots=True)
class MediaPart:
    """Where a part of a message holds a medium: the path to base64 or to a `data:` URL.

    `kind` is the beginning of the medium's type where nothing beside it states one, `states` are the names
    that state one, `only` a value that the object around it has in `type`.
    """

    path: tuple[str, ...]
    kind: str = ""
    states: tuple[str, ...] = ()
    only: str = ""


@dataclass(frozen=True, slots=True)
class MediaPlaces:
    """Where one API takes media: within the field `root`, in parts by their `type`, or by a member's name.

    Parts without a type are `untyped` ones.
    """

    root: str = ""
    by_type: Mapping[str, MediaPart] = field(default_factory=dict)
    by_name: Mapping[str, MediaPart] = field(default_factory=dict)
    untyped: MediaPart | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """The media of a body: their bytes as written, what they are held at in tokens.

    `unsure` are the bytes of those whose tokens do not follow from their size. They are so many in `count`,
    of these `named` stand where an address may stand as well. `heard` are the tokens of those that are, or
    have, sound. Digits and capitals are `dense`.
    """

    size: int = 0
    tokens: int = 0
    unsure: int = 0
    count: int = 0
    named: int = 0
    heard: int = 0
    dense: int = 0


def media_in(document: Mapping[str, object], places: MediaPlaces) -> Media:
    """Measure the media in a document, at the places where its API takes them."""
    size = tokens = unsure = count = named = heard = dense = 0
    for kind, data, by_name in _found(document.get(places.root), places, DEPTH_MAX):
        length = len(data)
        size += length
        dense += dense_bytes(data.encode())
        costs = BLOB_TOKENS + length // BLOB_BYTES_PER_TOKEN
        tokens += costs
        unsure += length if kind in _PACKED else 0
        count += 1
        named += by_name
        heard += costs if kind.startswith(("audio", "video")) else 0
    return Media(size, tokens, unsure, count, named, heard, dense)


def _found(value: object, places: MediaPlaces, depth: int) -> Iterator[tuple[str, str, bool]]:
    """Yield type and data of each medium below a value, and whether an address may stand in its place."""
    if depth == 0:
        return
    if isinstance(value, list):
        for each in value:
            yield from _found(each, places, depth - 1)
    elif isinstance(value, dict):
        kind = value.get("type")
        part = places.by_type.get(kind) if isinstance(kind, str) else places.untyped
        if part is not None:
            medium = _medium(value, part)
            if medium is not None:
                yield medium
                return
        for name, each in value.items():
            named = places.by_name.get(name)
            medium = _medium(each, named) if named is not None and isinstance(each, dict) else None
            if medium is not None:
                yield medium
            elif isinstance(each, list | dict):
                yield from _found(each, places, depth - 1)


def _medium(holder: Mapping[str, object], part: MediaPart) -> tuple[str, str, bool] | None:
    """Return the medium in a part as `_found` yields it; None where it is not one for sure."""
    value: object = holder
    for name in part.path:
        if not isinstance(value, dict):
            return None
        holder, value = value, value.get(name)
    if not isinstance(value, str) or len(value) < MEDIA_BYTES_MIN or not value.isascii():
        return None
    if part.only and holder.get("type") != part.only:
        return None
    url = _DATA_URL.match(value)
    stated = next((holder[name] for name in part.states if isinstance(holder.get(name), str)), part.kind)
    kind = str(stated if url is None else url[1]).lower()
    begins = _BEGINNINGS.get(kind) or _BEGINNINGS.get(kind.partition("/")[0], ())
    at = 0 if url is None else url.end()
    if not begins or not value.startswith(begins, at):
        return None
    return kind, value[at:], part.path[-1].endswith(_FILES)


# What the names in a body end like: each is looked at once, for all who ask.
#
# By them it is known whether an id may stand in a body, how many images and files it names and does not hold,
# and whether it asks for a cache.

NAMES_REMEMBERED_MAX: Final = 4_096
NAME_CHARACTERS_MAX: Final = 64  # of one that is remembered
_ID, _FILE, _CACHE, _LIFETIME = 1, 2, 4, 8
# An image or a file is named by its address, or by the id it was stored under.
_FILES: Final = ("url", "ri", "file_id")
_CACHES: Final = "cach"  # `cache_control`, `caching`
_LONG: Final = {"ttl": "1h"}  # asks for the longer of two lifetimes


class FieldNames:
    """`ids` says that a name ends like an id's, in any case: `…_id`, `…_ids` or `id`; `files` counts texts
    that name an image or a file; `caches` says that a name begins with `cach`, in any case, and `long_caches`
    that a lifetime of an hour is asked for. `media` says that a value is long and begins like a medium.
    """

    __slots__ = ("caches", "files", "ids", "long_caches", "media")

    def __init__(self, ids: bool = False, files: int = 0, caches: bool = False) -> None:
        self.ids, self.files, self.caches, self.long_caches, self.media = ids, files, caches, False, False


NO_NAMES: Final = FieldNames()


def names_in(document: Document) -> FieldNames:
    """Return the kinds of names in a document, by endings; `InvalidRequest` where it nests too deeply."""
    names = FieldNames()
    try:
        _look(document, names)
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    return names


def _look(value: Document, names: FieldNames) -> None:
    for name, inside in value.items():
        kind = _known.get(name)
        if kind is None:
            kind = _kind(name)
        if kind:
            names.ids = names.ids or kind & _ID > 0
            names.caches = names.caches or kind & _CACHE > 0
            if kind & _FILE and isinstance(inside, str):
                names.files += 1
            elif kind & _LIFETIME and inside == _LONG[name]:
                names.long_caches = True
        if isinstance(inside, dict):
            _look(inside, names)
        elif isinstance(inside, list):
            _look_at_each(inside, names)
        elif isinstance(inside, str) and len(inside) >= MEDIA_BYTES_MIN:
            names.media = names.media or inside.startswith(_ALL_BEGINNINGS) or inside[:5].lower() == "data:"


def _look_at_each(values: list[object], names: FieldNames) -> None:
    for each in values:
        if isinstance(each, dict):
            _look(each, names)
        elif isinstance(each, list):
            _look_at_each(each, names)


def _kind(name: str) -> int:
    """Classify a name by its ending, and cache the result, within bounds.

    With NUL in it, it is another name to a parser that ends there.
    """
    if "\0" in name:
        param = name.partition("\0")[0]
        raise InvalidRequest(f"The field {param} has NUL in its name.", param=param)
    folded = name.lower()
    kind = _ID if folded == "id" or folded.endswith(("_id", "_ids")) else 0
    kind |= _FILE if name.endswith(_FILES) else 0
    kind |= _CACHE if folded.startswith(_CACHES) else 0
    kind |= _LIFETIME if name in _LONG else 0
    if len(name) <= NAME_CHARACTERS_MAX:
        if len(_known) >= NAMES_REMEMBERED_MAX:
            _known.clear()
        _known[name] = kind
    return kind


_known: Final[dict[str, int]] = {}


BYTES_PER_TOKEN = 3  # on the careful side: English is nearer 4, so a hold covers its input


# What a number has more of beyond a whole one counts; of less than a third of it nothing is left by rounding.
_INEXACT = 1e-6


@dataclass(frozen=True, slots=True)
class UsageBounds:
    """The largest numbers a request may state and a meter will believe or keep."""

    usage_tokens_max: int = 100_000_000
    choices_max: int = 128
    decoded_bytes_max: int = 64 << 20
    kept_bytes_max: int = 8 << 20
    event_bytes_max: int = 4 << 20


DEFAULT_BOUNDS = UsageBounds()


# By these statuses an upstream says that it gave up; the last one is Cloudflare's.
TIMED_OUT: Final = frozenset({408, 504, 524})


class NameCheck:
    """Names of models in a list that begin so, as its reader `asked` for them; `own` are the caller's."""

    __slots__ = ("asked", "begins", "own")

    def __init__(self, begins: tuple[str, ...]) -> None:
        self.begins = begins
        self.asked: list[str] = []
        self.own: frozenset[str] = frozenset()


@dataclass(slots=True)
class CallRequest:
    """What one request asks of its upstream.

    `document` is what was read of a metered body, with its lists `tools` and `plugins`, and `body` how it is
    written, all until `take_body`. `output_max` is the stated maximum of one choice in tokens, None where
    none is stated. `input_bytes` is text, and `rare_bytes` of them are no ASCII; `blob_tokens` stands for
    images, sound and files, of whose bytes `unsure_bytes` may cost more than that, and `dense_media`
    are digits and capitals. `models_beside` may answer instead of `model`; where that is configured, its
    `targets` do, in order, one after the other failed by a
    cause of `fallback`, and a call that `repeats` may be sent twice. `written_as` is the model's name in the
    document, `listing` an answer that is known here; `user` is the body's user, and `named` are the stored
    objects that path and body name, `brought` ids of objects in the body itself, and that its answer told
    already, `names` the ends of its names. With `strip_usage` the answer must not be compressed: send
    `accept-encoding: identity`. The estimator sets `output_bytes_per_token` and `input_tokens_per_byte` to
    what it learned of the model, `tokens_of` to its tokenizer, where there is one, `input_ceiling` and
    `output_ceiling` to what the call and one choice of it could use at most, in tokens; `reports` says that a
    complete answer always tells its use. `narrow` makes of a whole list of models what of it the caller may
    see, in turns: it gives nothing before the last one. One that `gives_up` states a timeout of its own, by
    which its upstream may end it. A meter sets `text_bytes` to the text it saw produced. `measured` are the
    units beside tokens that the request asks for, by their names in prices: they are charged where an answer
    does not say others. One in the `background` is answered at once, and has its result later. A message to a
    `server` of tools may call a `tool`, or is `free`; it is told of by its id, `reply_to`. A form has
    `files`, and the name of its model stands in its body `model_at`: but for that, it is sent as it came.
    The document has not the parts that are `cut`. One that `asks` may ask for tools or a search by the names
    in its document; None where nobody has looked. What the estimator has `learned` of calls like it is kept
    until it is over. Its choices are of so many `prompts`, the first one is `first_part` of all of them.
    `facts` are those of its upstream, or of its targets in their order, where anybody states any: an answer
    has `output_default` tokens at most where the call states no maximum (0: nobody says so), and a maximum is
    `output_least` at least; with `reports_each` a report is about one choice. The gateway has `put_in` these
    fields, and has `renamed` the maximum that was `stated` as this. Its body holds so many `pictures`, sound
    and files; of the tokens that stand for these so many are `heard`. Without targets its `upstream` answers,
    empty where nobody knows which one. It asks for these service `tiers`.
    """

    meter: str
    family: Family
    body: bytes
    model: str = ""
    streamed: bool = False
    output_max: int | None = None
    choices: int = 1
    input_bytes: int = 0
    blob_tokens: int = 0
    strip_usage: bool = False
    output_bytes_per_token: float = 4.0
    input_tokens_per_byte: float = 1 / BYTES_PER_TOKEN
    tokens_of: CountTokens | None = None
    units_pointer: str = ""
    text_bytes: int = 0
    document: Document | None = None
    tools: Sequence[Document] = ()
    plugins: Sequence[Document] = ()
    models_beside: tuple[str, ...] = ()
    user: str = ""
    changed: bool = False
    input_ceiling: int = 0
    output_ceiling: int = 0
    reports: bool = False
    keeps: int = 0
    gives_up: bool = False
    named: tuple[str, ...] = ()
    brought: frozenset[str] = frozenset()
    names: FieldNames = NO_NAMES
    narrow: Callable[[bytes], Iterator[bytes]] | None = None
    checks: NameCheck | None = None
    rare_bytes: int = 0
    unsure_bytes: int = 0
    dense_media: int = 0
    measured: dict[str, int] | None = None
    targets: tuple[ModelTarget, ...] = ()
    fallback: frozenset[str] = frozenset()
    repeats: bool = False
    written_as: str = ""
    listing: bytes = b""
    tool: str = ""
    server: str = ""
    free: bool = False
    background: bool = False
    reply_to: str | int | None = None
    files: Sequence[FormFile] = ()
    model_at: tuple[int, int] | None = None
    cut: CutParts | None = None
    asks: bool | None = None
    learned: LruEntry | None = None
    prompts: int = 1
    first_part: float = 1.0
    facts: tuple[UpstreamFacts, ...] = ()
    output_default: int = 0
    output_least: int = 1
    reports_each: bool = False
    put_in: tuple[str, ...] = ()
    stated: dict[str, int] | None = None
    renamed: str = ""
    pictures: int = 0
    heard: int = 0
    upstream: str = ""
    tiers: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models that may answer: as the call says, and as its targets do."""
        models = (self.model, *self.models_beside)
        return (*models, *[target.model for target in self.targets]) if self.targets else models

    @property
    def has_input(self) -> bool:
        """Whether it is paid by tokens at all: something of its body was read."""
        return self.input_bytes > 0 or self.blob_tokens > 0

    @property
    def input_estimate(self) -> int:
        """Input tokens by size: by the mean that was learned, on the careful side before that."""
        return _whole(self.input_bytes * self.input_tokens_per_byte) + self.blob_tokens

    @property
    def most(self) -> int:
        """The most tokens the call can use, if its upstream keeps to its maximum; 0: nobody estimated."""
        output = self.output_ceiling if self.output_max is None else self.output_max
        return self.input_ceiling + output * self.choices if self.input_ceiling else 0

    def take_body(self) -> bytes:
        """Return the body to send, written for the last time; the document is let go."""
        body = self.body
        if self.document is not None and self.changed and self.model_at is None:
            body = self.written(self.document)
        self.let_go(body)
        return body

    def write_for(self, model: str) -> bytes:
        """Return the body to send to an upstream that calls the model so; the document stays."""
        if self.model_at is not None:
            start, end = self.model_at
            return b"".join((self.body[:start], (model or self.model).encode(), self.body[end:]))
        document = self.document
        if document is None:
            return self.body
        before = self.written_as or self.model
        if model != before:
            requests, inner = document.get("requests"), [document.get(name) for name in INNER_CALLS]
            for place in (document, *inner, *(requests if isinstance(requests, list) else ())):
                if isinstance(place, dict) and place.get("model") is not None:
                    in_path = place["model"] == f"models/{before}"
                    place["model"], self.changed = f"models/{model}" if in_path else model, True
            self.written_as = model
        return self.written(document) if self.changed else self.body

    def written(self, document: Document) -> bytes:
        """Return its document as a body, with all of its texts."""
        written = write_document(document)
        return written if self.cut is None else self.cut.put_back(written)

    def let_go(self, body: bytes) -> None:
        """Release the body, which was sent for the last time."""
        if self.document is not None:
            # A prompt may have to be counted at the end of the answer.
            self.body = body if self.tokens_of is not None and len(body) <= PROMPT_BYTES_MAX else b""
        self.document, self.tools, self.plugins, self.cut = None, (), (), None


def _whole(tokens: float) -> int:
    """Return the next whole number above, but for what is no more than an inexact product."""
    whole = int(tokens)
    beyond = tokens - whole
    if beyond > _INEXACT:
        return whole + 1
    return math.ceil(round(tokens, 6)) if beyond > _INEXACT / 3 else whole


def input_tokens(call: CallRequest) -> int:
    """Count input tokens by the model's own tokenizer where it is known, else by size."""
    counted = prompt_tokens(call.body, call.tokens_of) if call.tokens_of is not None else None
    return call.input_estimate if counted is None else counted + call.blob_tokens
