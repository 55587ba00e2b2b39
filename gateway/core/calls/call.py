"""One metered call as the gateway understands it: what it asks for, and the document to send."""

from __future__ import annotations

import binascii
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec

from gateway.core.accounts.steps import Substitution
from gateway.core.billing.vector import CACHE_HOUR
from gateway.core.calls.aim import UNAIMED, Aim, SaidBounds
from gateway.core.calls.forms import FormFile
from gateway.core.calls.pictures import size_of
from gateway.core.calls.recordings import is_recording
from gateway.core.calls.storage import StorageTime
from gateway.core.families.controlled import (
    ID_ENDS,
    INNER_CALLS,
    PROMPT_BYTES_MAX,
    CountTokens,
    Document,
    ModelAttempt,
    prompt_tokens,
)
from gateway.core.families.costs import PAGES, PICTURE, SOUND, UNKNOWN, VIDEO, medium_of
from gateway.core.families.tools import is_member
from gateway.core.lru import LruEntry
from gateway.core.model import Family
from gateway.core.value import Value
from gateway.errors import InvalidRequest, RequestTooLarge

# The JSON document of a metered call: read once, decided on, and written again for its upstream.
#
# Parsers disagree about names that come twice, numbers no double holds and bytes that are not
# UTF-8: those are refused. All else is sent as it was understood here, so that nobody behind can
# understand it otherwise.

OBJECTS_MAX = 50_000  # objects and lists of one document: each costs up to 0.5 µs to read
STRINGS_MAX = 100_000  # names included: 0.1 µs
NUMBERS_MAX = 320_000  # all other values: 0.1 µs. A call for embeddings may have 300,000 tokens as numbers
BACKSLASHES_MAX = 500_000  # escapes in strings: 0.03 µs
OUTSIDE_BYTES_MAX = 8 << 20  # numbers, marks and blanks outside strings
# Objects and lists inside each other. Decoders stop at the end of the stack, which each Python has elsewhere.
NESTED_MAX: Final = 256
DIGITS_MAX = 4_300  # digits of one integer that Python reads in a bounded time
LONG_DIGITS_MAX = 309  # digits of one integer in a large body: the longest that a double holds
UNCOUNTED_BYTES_MAX = 32 << 10  # a body no longer than this cannot exceed a bound
# A body up to this size, with up to so many structural characters, is decoded in a millisecond.
LIGHT_BYTES_MAX = 256 << 10
LIGHT_MARKS_MAX = 10_000
NAMED_PARTS_MAX = 4_000  # strings, numbers and brackets searched for the wrong field
PARAM_CHARACTERS_MAX = 256

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_KIND = re.compile(r"^(Number|Integer value) out of range")
_PART = re.compile(
    rb'("(?:[^"\\]++|\\.)*+")([ \t\r\n]*+:)?|[-+0-9][-+.0-9a-zA-Z]*+|NaN|Infinity|[{}\[\],]', re.DOTALL
)
_ALIKE = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
# A longer run of digits contains eight bytes at this distance from each other.
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
    """Return the number of bytes that are digits or capitals, as in ids, numbers and base64."""
    if _dense is not None:
        return _dense(body)
    return len(body) - len(body.translate(None, _DIGITS_AND_CAPITALS))


class CutParts:
    """The parts of a body that are not decoded, because nothing depends on them.

    These are long texts of messages and tools, messages with nothing but texts and function calls, and
    definitions of functions. `rest` is the body with U+0001 for each text, and an object with the role U+0002
    for each object or row of objects. It has `marks` structural characters.
    """

    __slots__ = ("_body", "_ids", "_places", "marks", "rest")

    def __init__(self, body: bytes, rest: bytes, places: bytes, ids: bytes, marks: int) -> None:
        self._body, self.rest, self._places, self._ids, self.marks = body, rest, places, ids, marks

    def put_back(self, written: bytes) -> bytes:
        """Return the whole body from the encoded `rest`, with each part that was cut out at its position."""
        left, cut = written.replace(_CUT_OBJECT, _CUT).split(_CUT), self._at(self._places)
        return b"".join([each for pair in zip(left, [*cut, b""], strict=True) for each in pair])

    @property
    def ids(self) -> list[str]:
        """The ids of objects such as function calls in the cut parts; they name nothing that is stored."""
        return [_decode(b'"%b"' % one) for one in self._at(self._ids)]

    def _at(self, places: bytes) -> list[bytes]:
        body = self._body
        return [body[start:end] for start, end in struct.iter_unpack("=II", places)]


class BodyLook:
    """Facts about a body before it is decoded.

    `light`: it is decoded in about a millisecond at most. `plain`: it is encoded as `write_document` would
    encode it, without duplicate names, and within all bounds. Then `names`, `rare_bytes` and `cut` are known.
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
            names.long_caches, names.media, names.tools = said & 4 > 0, said & 8 > 0, said & 16 > 0
            self.light = self.light or (size <= LIGHT_BYTES_MAX and marks <= LIGHT_MARKS_MAX)


def look_out_of_turn(body: bytes, skips_texts: bool = False) -> BodyLook | None:
    """Return facts about a body, found without decoding it; None if it is too long to be light.

    A light body has so little structure that decoding cannot block the event loop. With `skips_texts`
    only the part without long texts counts for that.
    """
    if len(body) > LIGHT_BYTES_MAX:
        return None
    look = BodyLook(body)
    if skips_texts and look.cut is not None:
        look.light = look.light or look.cut.marks <= LIGHT_MARKS_MAX
    elif not look.light and not look.plain:
        marks = body.translate(None, _NO_MARKS)
        look.light = len(marks) - marks.count(b'"') <= LIGHT_MARKS_MAX
    return look


def read_document(body: bytes, look: BodyLook | None = None) -> dict[str, object]:
    """Decode the JSON object in a body; raise `InvalidRequest` or `RequestTooLarge` with the reason.

    `look` are facts about the body: if it is light or plain (it has little structure), fewer checks of
    its size are needed.
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
        raise _too_deep() from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return document


def write_document(document: dict[str, object]) -> bytes:
    """Encode a document as UTF-8 JSON without blanks."""
    try:
        return _encode(document)
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested more than {NESTED_MAX} deep.")


def written_of(document: dict[str, object], body: bytes, look: BodyLook) -> bytes:
    """Return a decoded body as JSON; raise `InvalidRequest` if a name occurs twice in an object of `body`."""
    if look.plain:
        return body
    written = write_document(document)
    check_names(body, written, 0)
    return written


def check_names(body: bytes, written: bytes, added: int) -> None:
    """Raise `InvalidRequest` if a name occurs twice in one object of the body, in any spelling.

    `written` is the decoded document, encoded again with `added` more fields. Decoding keeps only one of
    two equal names, so `written` then has fewer colons than the body. Colons inside strings are equal in
    both.
    """
    if written.startswith(body[:-1]):
        return  # it came as it is written, except for members added at its end
    read = body.count(b":")
    if b"\\" in body and b"\\u003" in body:
        plain = body.replace(b"\\\\", b"")  # a backslash that is left before `u003a` is an escape
        read += plain.count(b"\\u003a") + plain.count(b"\\u003A")
    if read + added != written.count(b":"):
        param = _find(body, twice=True)
        raise InvalidRequest(f"The field {param or 'name'} appears twice.", param=param)


def _may_hold_too_much(body: bytes, light: bool) -> bool:
    """Return whether a body may have too many parts to decode, so that they must be counted exactly.

    `light` says that it is known to have few structural characters.
    """
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
    """Raise `RequestTooLarge` or `InvalidRequest` for a body that takes too long to decode.

    The parts are counted in C, without creating objects.
    """
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
    """Return the error for an unreadable body, with the field that causes it, if any."""
    if not body.strip():
        return InvalidRequest("The body is empty, and a JSON object is needed.")
    kind = _KIND.match(message)
    param = _find(body, twice=False)
    if kind is not None:
        return InvalidRequest(f"{kind[0]} in {param or 'the body'}.", param=param)
    return InvalidRequest(f"{message}.", param=param)


def _find(body: bytes, *, twice: bool) -> str | None:
    """Return the path of the first duplicate name (`twice`), or of the first invalid number.

    None if there is none among the first `NAMED_PARTS_MAX` parts.
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


# The media in a body: pictures, sound and files, whose tokens do not follow from their bytes as text.
#
# A medium is known by its place in the API. If it does not begin as its type does, it is text as well.

BLOB_TOKENS = 1_600  # of one image at most, roughly, at every provider
BLOB_BYTES_PER_TOKEN = 1_024  # for long recordings and documents
DEPTH_MAX = 16  # lists and objects around a medium

_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)(?:;[a-z0-9=._+-]+){0,8};base64,", re.IGNORECASE)
# Beginnings of files in base64, by the first part of a media type or by the whole type.
_BEGINNINGS: Final[Mapping[str, tuple[str, ...]]] = {
    # PNG, JPEG, GIF, WebP, and HEIC or AVIF with the sizes that a first box has
    "image": (
        "iVBORw0KGgo",
        "/9j/",
        "R0lGOD",
        "UklGR",
        "AAAAFGZ0eX",
        "AAAAGGZ0eX",
        "AAAAHGZ0eX",
        "AAAAIGZ0eX",
        "AAAAJGZ0eX",
        "AAAAKGZ0eX",
        "AAAALGZ0eX",
    ),
    "audio": (),  # see `is_recording`
    "video": (),
}
# Beginnings of files whose text is packed, whatever their type says: PDF, ZIP as of newer offices, OLE as of older ones.
_PACKED: Final = ("JVBERi0", "UEsDB", "0M8R4KGx")
_SOUND: Final = ("audio", "video")
# Types of files that a model is given as their text, as media types or as Converse names them.
_TEXT = re.compile(
    r"text/|(?:application/(?:json|xml|rtf|(?:x-)?(?:javascript|typescript|python|yaml|sh))|csv|html|txt|md)\Z"
)


@dataclass(frozen=True, slots=True)
class MediaPart:
    """The place of a medium in a message: the `path` to its base64 or `data:` URL, or to a list of these.

    Some APIs take the text in place of an object on that path. `states` are fields with the media type, and
    `kind` is the default. `only` is the required `type` of the surrounding object. `named` are the paths of
    an address or an id that may stand instead.
    """

    path: tuple[str, ...]
    kind: str = ""
    states: tuple[str, ...] = ()
    only: str = ""
    named: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class MediaPlaces:
    """The places of media in one API, within the field `root` (empty: at the top), by the `type` of a part or
    by a field's name.

    Parts stand in lists, and in the members `inside` of objects: anything else is text, whatever it says of
    itself. A part whose type is not among these, or without their places, has its media by the table of costs.
    `untyped` is the place in parts without a type, and `page` are the usual tokens of a page. `folds` says that
    the API takes names in any case. `second` are the usual tokens of a second of sound, `frame` those of a second
    of video beside them (0: unknown). A member in `paces` asks for other frames of a part's video, unless it has
    the members `spans` alone. `beside` finds lists of parts outside `root`.
    """

    root: str = ""
    by_type: Mapping[str, MediaPart] = field(default_factory=dict)
    by_name: Mapping[str, MediaPart] = field(default_factory=dict)
    untyped: MediaPart | None = None
    inside: frozenset[str] = frozenset({"content"})
    page: int = BLOB_TOKENS
    folds: bool = False
    beside: Callable[[Mapping[str, object]], object] | None = None
    second: int = 32
    frame: int = 0
    paces: frozenset[str] = frozenset()
    spans: frozenset[str] = frozenset()


class Recording(NamedTuple):
    """Sound or a video in a body, in base64 or bytes, whose seconds are not counted yet.

    Of an `endless` one the tokens of a second are unknown.
    """

    data: str | memoryview
    kind: str = "audio"
    is_video: bool = False
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Media:
    """The media of a call: their number, size and tokens. It is a value, which nothing changes."""

    size: int = 0  # bytes of base64 that are no text
    tokens: int = 0  # tokens to hold
    unsure: int = 0  # bytes of media whose tokens do not follow from their size
    count: int = 0  # number of pictures
    named: int = 0  # media in fields that could have an address instead
    heard: int = 0  # tokens of media with sound
    dense: int = 0  # bytes that are digits or capitals
    documents: tuple[str, ...] = ()  # base64 of documents, whose pages are not counted yet
    document_tokens: int = 0  # their part of `tokens`
    endless: int = 0  # documents, sound and videos of unknown length, as those that an address or an id names
    recordings: tuple[Recording, ...] = ()  # sound and videos, whose seconds are not counted yet
    recording_tokens: int = 0  # their part of `tokens`
    sizes: tuple[tuple[int, int], ...] = ()  # width and height of pictures, where they are known
    pages: int = 0  # of documents in the body
    seconds: int = 0  # of recordings in the body
    video_seconds: int = 0  # of those that are videos
    sound_beyond: int = 0  # tokens that a recording of a form may have beyond `heard`
    text_beyond: int = 0  # tokens that texts in `tokens` may have beyond it: of a live session
    mute: bool = False  # all of `tokens` is text: of a live session without sound and pictures


NO_MEDIA: Final = Media()


def media_in(document: Mapping[str, object], places: MediaPlaces) -> Media:
    """Return the sizes and token estimates of the media in a document, where its API accepts media.

    Whatever stands there is a medium, however short. If it does not begin as its type does, it is text too.
    """
    size = tokens = unsure = count = named = dense = far = of_documents = of_recordings = heard = 0
    documents, recordings, sizes = list[str](), list[Recording](), list[tuple[int, int]]()
    roots = [document.get(places.root) if places.root else document]
    if places.beside is not None:
        roots.append(places.beside(document))
    for kind, data, by_name, is_paced in _find_media(roots, places, DEPTH_MAX + 1):
        named += by_name
        if not data:
            seen = kind.startswith("image")
            far, count, tokens = far + (not seen), count + seen, tokens + seen * BLOB_TOKENS
            continue
        costs, is_document = BLOB_TOKENS, _is_document(kind, data)
        plays = not is_document and _is_recording(data)
        begins = _BEGINNINGS.get(kind.partition("/")[0], ())
        if (is_document or plays or data.startswith(begins)) and data.isascii():
            length = len(data)
            size += length
            costs += length // BLOB_BYTES_PER_TOKEN
            dense += dense_bytes(data.encode())
            unsure += length if is_document else 0
        if is_document:
            documents.append(data)
            of_documents += costs
        elif plays or kind.startswith(_SOUND):
            is_video = not kind.startswith("audio")
            endless = is_video and (is_paced or not places.frame)
            recordings.append(Recording(data, kind, is_video, endless))
            of_recordings += costs
            heard += costs
        else:
            count += 1
            picture = size_of(data)
            sizes += [] if picture is None else [picture]
        tokens += costs
    return Media(
        size, tokens, unsure, count, named, heard, dense, tuple(documents), of_documents, far,
        tuple(recordings), of_recordings, tuple(sizes),
    )  # fmt: skip


def _is_recording(data: str) -> bool:
    """Return whether a medium begins as sound or a video, whatever its type says."""
    try:
        return is_recording(binascii.a2b_base64(data[:16]))
    except ValueError:
        return False


def _is_document(kind: str, data: str) -> bool:
    """Return whether a medium may have pages, so that its tokens do not follow from its size."""
    if data.startswith(_PACKED):
        return True
    return bool(kind) and kind.partition("/")[0] not in _BEGINNINGS and _TEXT.match(kind) is None


def _find_media(value: object, places: MediaPlaces, depth: int) -> Iterator[tuple[str, str, bool, bool]]:
    """Yield (type, data, whether an address could stand in its place, whether its part asks for other frames).

    The data is empty for a medium that is only named, or stands where the API has no place for it. At most
    `depth` levels are searched.
    """
    if depth == 0:
        return
    if isinstance(value, list):
        for item in value:
            yield from _find_media(item, places, depth - 1)
    elif isinstance(value, dict):
        kind = value.get("type")
        part = places.by_type.get(kind) if isinstance(kind, str) else places.untyped
        if part is not None:
            for medium in _media(value, part):
                yield *medium, _is_paced(value, places)
        yield from _undocumented(value, part, places, depth)
        for name, member in value.items():
            named = places.by_name.get(name.lower() if places.folds else name)
            if named is not None:
                for medium in _media(member, named):
                    yield *medium, _is_paced(value, places)
            elif name in places.inside and isinstance(member, list | dict):
                yield from _find_media(member, places, depth - 1)


def _undocumented(
    value: Mapping[str, object], part: MediaPart | None, places: MediaPlaces, depth: int
) -> Iterator[tuple[str, str, bool, bool]]:
    """Yield the media in an object for which its API has no place, by the table of costs, as `_find_media` does."""
    kind = value.get("type")
    if isinstance(kind, str):
        if part is None or part.path[0] not in value:
            yield from _elsewhere(value, medium_of(kind, UNKNOWN), depth)
    elif kind is None and part is None:
        for name, member in value.items():
            if isinstance(member, str | list) and name not in places.by_name:
                yield from _elsewhere({name: member}, medium_of(name), depth)


def _elsewhere(value: object, cost: str, depth: int, name: str = "") -> Iterator[tuple[str, str, bool, bool]]:
    """Yield media of this `cost` at places that their API does not document, as `_find_media` does, without data.

    Such a medium is an address, or a text under a medium's name. `FieldNames.files` counts pictures already.
    """
    if not cost or depth == 0:
        return
    if isinstance(value, dict):
        for inner, member in value.items():
            if isinstance(member, str) and member and inner.endswith(_FILES):
                if cost != PICTURE:
                    yield _MEDIUM_TYPES[cost], "", True, False
            elif inner not in _CAPTIONS:
                yield from _elsewhere(member, cost, depth - 1, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _elsewhere(item, cost, depth - 1, name)
    elif (
        isinstance(value, str)
        and value
        and (name.lower() in MEDIA_NAMES or name.endswith(_FILES) or _is_address(value))
    ):
        yield _MEDIUM_TYPES[cost], "", False, False


def _is_paced(part: Mapping[str, object], places: MediaPlaces) -> bool:
    """Return whether a part asks for other frames of its video than usual."""
    for name in places.paces:
        settings = part.get(name)
        if settings is not None and not (isinstance(settings, dict) and settings.keys() <= places.spans):
            return True
    return False


def _rank(kind: str) -> int:
    """Return the rank of a media type by its cost: 1 of video, 0 of sound, else -1."""
    top = kind.partition("/")[0]
    return _SOUND.index(top) if top in _SOUND else -1


def _media(value: object, part: MediaPart) -> Iterator[tuple[str, str, bool]]:
    """Yield the media at the place `part` of a value, as `_find_media` does, without the last member."""
    whole, holders = value, list[dict[str, object]]()
    for name in part.path:
        if isinstance(value, dict):
            holders.append(value)
            value = value.get(name)
    if part.only and (not holders or holders[-1].get("type") != part.only):
        value = None
    stated = [holder[name] for holder in holders for name in part.states if isinstance(holder.get(name), str)]
    kind = max([*[str(name).lower() for name in reversed(stated)], part.kind], key=_rank)
    # An address may stand for much, whatever its part states of it.
    far = next((name for name in (kind, part.kind) if name and not name.startswith("image")), "")
    # `FieldNames.files` counts it, unless it is one of a list.
    counted = bool(part.path) and part.path[-1].endswith(_FILES) and not isinstance(value, list)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and text:
            url = _DATA_URL.match(text)
            if url is not None:
                yield max(url[1].lower(), kind, key=_rank), text[url.end() :], counted
            elif not counted and not (far and text.startswith(_ADDRESSES)):
                yield kind, text, False
            elif far:
                yield far, "", False
    if far and any(_text_at(whole, path) for path in part.named):
        yield far, "", False


def _text_at(value: object, path: Sequence[str]) -> str:
    """Return the text at a path of members in a value; empty if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


# Facts about a body by the ends of its field names. Each name is classified once.
#
# They show whether a body may contain an id, how many images and files it names without containing them,
# and whether it asks for a cache.

NAMES_REMEMBERED_MAX: Final = 4_096
NAME_CHARACTERS_MAX: Final = 64  # of a cached name
_ID, _FILE, _CACHE, _LIFETIME, _TOOLS, _MEDIUM, _CAPTION = 1, 2, 4, 8, 16, 32, 64
_NAMED: Final = _ID | _CACHE | _TOOLS  # whose names say all
_LOOKED: Final = _FILE | _LIFETIME | _MEDIUM | _CAPTION  # whose texts are looked at by their name
# Ends of fields that name an image or a file, by its address or by the id of its stored object.
_FILES: Final = ("url", "ri", "file_id")
_CACHES: Final = "cach"  # `cache_control`, `caching`
_LONG: Final = {"ttl": "1h"}  # asks for the longer of two lifetimes
# Names, in any case, of texts and lists of texts that may be media. Other media have names that end like `_FILES`.
MEDIA_NAMES: Final = frozenset(
    {
        "data", "bytes", "result", "images", "file_data", "input_audio", "image", "audio", "video", "file", "pdf",
        "document",
    }
)  # fmt: skip
_ADDRESSES: Final = ("https://", "http://", "gs://")
# Beginnings of addresses and of media in a text, in the five letters that are compared.
_SCHEMES: Final = ("http", "data:", "gs://", "s3://", "file:", "oss:/")
# Names of texts that no API takes for a medium, whatever they begin with. Names of schemas begin with a dollar.
_CAPTIONS: Final = frozenset(
    {
        "text", "output", "content", "thinking", "arguments", "signature", "description", "reasoning_content",
        "encrypted_content",
    }
)  # fmt: skip
# The media type that stands for each cost of a part.
_MEDIUM_TYPES: Final = {
    PICTURE: "image", PAGES: "application/pdf", SOUND: "audio", VIDEO: "video", UNKNOWN: "application/octet-stream",
}  # fmt: skip


class FieldNames:
    """Facts about a body by the ends of all its field names.

    `ids`: one has one of `ID_ENDS`, or is `id`. `files`: the number of texts with the address or id of an
    image or file. `caches`: one begins with `cach`. `long_caches`: a cache lifetime of an hour is requested.
    `media`: a medium may stand in the body itself. `tools`: a member of an inner object may have tools.
    """

    __slots__ = ("caches", "files", "ids", "long_caches", "media", "tools")

    def __init__(self, ids: bool = False, files: int = 0, caches: bool = False) -> None:
        self.ids, self.files, self.caches = ids, files, caches
        self.long_caches = self.media = self.tools = False


NO_NAMES: Final = FieldNames()


def names_in(document: Document) -> FieldNames:
    """Return the facts that the field names in a document show, such as whether it may contain media.

    Raise `InvalidRequest` if the document is nested more than `NESTED_MAX` deep.
    """
    names = FieldNames()
    _look(document, names, 1)
    return names


def _deeper(depth: int) -> int:
    """Return the depth of an object or list in one of `depth`."""
    if depth == NESTED_MAX:
        raise _too_deep()
    return depth + 1


def _look(value: Document, names: FieldNames, depth: int) -> None:
    """Add the facts of an object's names to `names`; `depth` objects and lists are inside each other here."""
    for name, inside in value.items():
        kind = _known.get(name)
        if kind is None:
            kind = _kind(name)
        if kind:
            if kind & _NAMED:
                names.ids = names.ids or kind & _ID > 0
                names.caches = names.caches or kind & _CACHE > 0
                names.tools = names.tools or (depth > 1 and kind & _TOOLS > 0)
            if kind & _FILE and isinstance(inside, str):
                names.files += 1
                names.media = names.media or inside[:5].lower() == "data:"
            elif kind & (_MEDIUM | _FILE) and isinstance(inside, str | list) and inside:
                names.media = True
            elif kind & _LIFETIME and inside == _LONG[name]:
                names.long_caches = True
            elif not kind & _LOOKED and isinstance(inside, str) and _is_address(inside):
                names.media = True
        elif isinstance(inside, str) and _is_address(inside):
            names.media = True
        if isinstance(inside, dict):
            _look(inside, names, _deeper(depth))
        elif isinstance(inside, list):
            _look_at_each(inside, names, _deeper(depth))


def _look_at_each(values: list[object], names: FieldNames, depth: int) -> None:
    for each in values:
        if isinstance(each, dict):
            _look(each, names, _deeper(depth))
        elif isinstance(each, list):
            _look_at_each(each, names, _deeper(depth))
        elif isinstance(each, str) and _is_address(each):
            names.media = True


def _is_address(text: str) -> bool:
    """Return whether a text under a name that nobody knows begins as an address or as a medium does."""
    return text[:5].lower().startswith(_SCHEMES)


def _kind(name: str) -> int:
    """Return bit flags for what a field name suggests: id, file, cache, long lifetime, tools, medium.

    Up to `NAMES_REMEMBERED_MAX` results are cached. Raise `InvalidRequest` for a name with NUL: some
    parsers end the name there.
    """
    if "\0" in name:
        param = name.partition("\0")[0]
        raise InvalidRequest(f"The field {param} has NUL in its name.", param=param)
    folded = name.lower()
    kind = _ID if folded == "id" or folded.endswith(ID_ENDS) else 0
    kind |= _FILE if name.endswith(_FILES) else 0
    kind |= _CACHE if folded.startswith(_CACHES) else 0
    kind |= _LIFETIME if name in _LONG else 0
    kind |= _TOOLS if is_member(name) else 0
    kind |= _MEDIUM if folded in MEDIA_NAMES else 0
    kind |= _CAPTION if name in _CAPTIONS or name.startswith("$") else 0
    if len(name) <= NAME_CHARACTERS_MAX:
        if len(_known) >= NAMES_REMEMBERED_MAX:
            _known.clear()
        _known[name] = kind
    return kind


_known: Final[dict[str, int]] = {}


NOT_ASCII: Final = bytes(range(128, 256))
BYTES_PER_TOKEN = 3  # a careful value: English has nearly 4, so a hold covers its input


# A larger rest beyond a whole number counts. A rest below a third of this comes from rounding.
_INEXACT = 1e-6


@dataclass(frozen=True, slots=True)
class UsageBounds:
    """The largest numbers that a request may state, and that a meter accepts or stores."""

    usage_tokens_max: int = 100_000_000
    choices_max: int = 128
    decoded_bytes_max: int = 64 << 20
    kept_bytes_max: int = 8 << 20
    event_bytes_max: int = 4 << 20


DEFAULT_BOUNDS = UsageBounds()


# Statuses of an upstream's timeout; the last one is Cloudflare's.
TIMED_OUT: Final = frozenset({408, 504, 524})


class NameCheck:
    """The models of a list whose owner must be looked up: names in `asked` begin with one of `begins`.

    `own` are those that belong to the caller.
    """

    __slots__ = ("asked", "begins", "own")

    def __init__(self, begins: tuple[str, ...]) -> None:
        self.begins = begins
        self.asked: list[str] = []
        self.own: frozenset[str] = frozenset()


class AnswerFilter(Value, frozen=True):
    """What a caller is shown of an answer that has no usage, such as a list of models."""

    listing: bytes = b""  # an answer that the gateway itself has
    # Filters a list of models for the caller: yields empty steps, then the list.
    narrow: Callable[[bytes], Iterator[bytes]] | None = None
    checks: NameCheck | None = None  # models in that list whose owner is to be looked up


NO_FILTER: Final = AnswerFilter()


class McpMessage(Value, frozen=True):
    """One message to an MCP server."""

    server: str = ""
    tool: str = ""  # tool of the server
    free: bool = False  # it costs nothing
    reply_to: str | int | None = None  # its id in JSON-RPC


NO_MESSAGE: Final = McpMessage()


class Learned(Value, frozen=True):
    """The densities of text that the estimator learned of similar calls; `entry` is what it keeps of them."""

    output_bytes_per_token: float = 4.0
    input_tokens_per_byte: float = 1 / BYTES_PER_TOKEN
    tokens_of: CountTokens | None = None  # the model's tokenizer, if known
    entry: LruEntry | None = None


UNLEARNED: Final = Learned()


_ASKS_FOR_USAGE = b',"stream_options":{"include_usage":true}}'  # the last member of a document


@dataclass(slots=True)
class Body:
    """The body of a call: as it is sent, as it was decoded, and what the gateway changed in it."""

    content: bytes = b""  # the encoded request, until it is sent for the last time
    document: Document | None = None  # the decoded `content`
    cut: CutParts | None = None  # parts that `document` lacks
    files: Sequence[FormFile] = ()  # files of a form
    names: FieldNames = NO_NAMES  # facts about all field names
    rare_bytes: int = 0  # bytes of text beyond ASCII
    tools: Sequence[Document] = ()  # list in `document`
    plugins: Sequence[Document] = ()  # list in `document`
    model_at: tuple[int, int] | None = None  # position of the model's name in a form
    changed: bool = False  # `document` differs from `content`
    written_as: str = ""  # the model's name in `document`
    put_in: tuple[str, ...] = ()  # fields that the gateway added
    stated: dict[str, int] | None = None  # the client's maxima, by field
    renamed: str = ""  # the maximum's field name at the upstream

    def encode(self, document: Document, sent: bytes, look: BodyLook, added: int | None = None) -> None:
        """Set the content and the facts of a body that was `sent` with `look`, and decoded as `document`.

        `added` is the number of members that were added to request the usage of a stream, None if it is as it was.
        """
        if look.plain:
            self.names, self.rare_bytes, self.content = look.names, look.rare_bytes, sent
            if added is not None:
                self.content = sent[:-1] + _ASKS_FOR_USAGE if added == 2 else self.written(document)
            return
        self.content = write_document(document)
        check_names(sent, self.content, added or 0)
        self.names = names_in(document)
        if not self.content.isascii():
            self.rare_bytes = len(self.content) - len(self.content.translate(None, NOT_ASCII))

    def put(self, name: str) -> None:
        """Record that the gateway added the field `name` to the document."""
        self.put_in += (name,)
        self.changed = True

    def last(self) -> bytes:
        """Return the body as it is sent for the last time."""
        if self.document is not None and self.changed and self.model_at is None:
            return self.written(self.document)
        return self.content

    def write_for(self, model: str, named: str) -> bytes:
        """Return the body with the name `model` instead of the name that the client `named`."""
        if self.model_at is not None:
            start, end = self.model_at
            return b"".join((self.content[:start], (model or named).encode(), self.content[end:]))
        document = self.document
        if document is None:
            return self.content
        before = self.written_as or named
        if model != before:
            for place in _places_of_models(document):
                in_path = place["model"] == f"models/{before}"
                place["model"], self.changed = f"models/{model}" if in_path else model, True
            self.written_as = model
        return self.written(document) if self.changed else self.content

    def has_place_of(self, named: str) -> bool:
        """Return whether the name of the model, as the client `named` it, stands where `write_for` replaces it."""
        places = () if self.document is None else _places_of_models(self.document)
        return self.model_at is not None or any(
            place["model"] in {named, f"models/{named}"} for place in places
        )

    def written(self, document: Document) -> bytes:
        """Return the document as JSON, with the long texts that were cut out before it was decoded."""
        written = write_document(document)
        return written if self.cut is None else self.cut.put_back(written)

    def let_go(self, content: bytes) -> None:
        """Release the document and other decoded parts, and keep only `content`."""
        if self.document is not None:
            self.content = content
        self.document, self.tools, self.plugins, self.cut = None, (), (), None


def _places_of_models(document: dict[str, object]) -> list[dict[str, object]]:
    """Return the objects of a body whose member `model` names the model of the call."""
    requests, inner = document.get("requests"), [document.get(name) for name in INNER_CALLS]
    return [
        place
        for place in (document, *inner, *(requests if isinstance(requests, list) else ()))
        if isinstance(place, dict) and place.get("model") is not None
    ]


class RequestedUnits(Value, frozen=True):
    """The units that a call asks for besides tokens, by name: they are charged unless its answer reports others.

    `most` are those of them that may be more. `storage` is that of contents that the upstream bills by time.
    """

    likely: dict[str, int] | None = None
    most: dict[str, int] | None = None
    storage: StorageTime | None = None


TOKENS_ALONE: Final = RequestedUnits()


class CallSpec(Value, frozen=True):
    """What a call asks of its upstream, as the reader of its API understands its body. It is a value."""

    model: str = ""
    streamed: bool = False
    output_max: int | None = None  # stated maximum of one choice in tokens
    choices: int = 1
    user: str = ""  # the user that the body names
    units: RequestedUnits = TOKENS_ALONE
    background: bool = False  # answered at once, and completed later
    attempts: tuple[ModelAttempt, ...] = ()  # models that follow one that gave way
    prompts: int = 1  # prompts that share the choices
    first_part: float = 1.0  # share of the first prompt in all of them
    reports: bool = False  # each complete answer reports its usage, also where not all of its API do
    makes: str = ""  # the kind of tokens of the media that it asks for, if its API names that
    prompt_tokens: int = 0  # of the text in a prompt for pictures, if the reader counts them
    media: Media = NO_MEDIA  # of a form or a live session: others are found by their places
    mcp: McpMessage = NO_MESSAGE
    continues: str = ""  # the token of an answer that it goes on with, whose text its upstream keeps


UNREAD: Final = CallSpec()


NO_SIZES: Final[Mapping[str, tuple[int, int]]] = {}


class StoredObjects(Value, frozen=True):
    """The objects stored at its upstream that a call is about.

    `named` are ids in its path and body, `unsure` texts of the body that may be ids, and `brought` ids of objects
    inside the body itself. `keeps` is the `KEPT_…` constant for how long ids in its answer are valid. `kept` are the
    tokens of the text that the upstream keeps and the call only names, `UNSEEN` if nobody here knows; of a free call
    those of the text that the object it makes begins with. `sizes` are those of each object when the call came: until
    when it is known, and its tokens.
    """

    named: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    brought: frozenset[str] = frozenset()
    keeps: int = 0
    kept: int = 0
    sizes: Mapping[str, tuple[int, int]] = NO_SIZES


NO_OBJECTS: Final = StoredObjects()
UNSEEN: Final = -1


@dataclass(slots=True)
class CallRequest:
    """One call as it is sent to its upstream: what it asks for, and the estimates for its hold."""

    meter: str  # key of `SHAPES`, or generic or none
    family: Family
    body: Body
    spec: CallSpec = UNREAD  # written while the body is read, and never after that, as the ids of `objects`
    output_max: int | None = None  # maximum of one choice in tokens, stated or set
    input_bytes: int = 0  # bytes of text
    strip_usage: bool = False  # the client did not ask for a usage frame; send `accept-encoding: identity`
    units_pointer: str = ""
    text_bytes: int = 0  # produced text, set by the meter
    models_beside: tuple[str, ...] = ()  # other models that may answer
    input_ceiling: int = 0  # tokens of the prompt at most
    output_ceiling: int = 0  # tokens of one choice at most
    reports: bool = False  # each complete answer reports its usage
    objects: StoredObjects = NO_OBJECTS
    gives_up: bool = False  # it states a timeout, by which its upstream may end it
    asks: bool | None = None  # it may ask for tools or a search; None if unknown
    output_default: int = 0  # the upstream's maximum of a choice if none is stated, 0 if unknown
    bound: bool = False  # its hold is the most that it may use
    tiers: tuple[str, ...] = ()  # service tiers that it asks for
    storage: StorageTime | None = None  # the part of that in `spec` which no other call has paid yet
    media: Media = NO_MEDIA
    answer_filter: AnswerFilter = NO_FILTER
    aim: Aim = UNAIMED  # where it goes
    learned: Learned = UNLEARNED  # by the estimator

    @property
    def alters_answer(self) -> bool:
        """Whether its client gets less than its upstream answers, so that the answer must be readable."""
        return self.strip_usage or self.answer_filter.narrow is not None

    @property
    def said(self) -> SaidBounds:
        """What the body says of its answer, wherever the call goes."""
        if self.aim is not UNAIMED:
            return self.aim.said
        return SaidBounds(self.output_max, self.output_default, self.reports)

    def take_aim(self, aim: Aim) -> None:
        """Set where the call goes, in place of an earlier aim; its body is not bound yet."""
        self.aim = aim
        self.output_max, self.output_default, self.reports = (
            aim.output_max, aim.output_default, aim.said.reports,
        )  # fmt: skip

    def note_substitution(self, by: Substitution) -> None:
        """Set by which step of a budget the call goes where it is aimed."""
        self.aim = self.aim._replace(substitution=by)

    def note_kept(self, tokens: int, sizes: Mapping[str, tuple[int, int]] = NO_SIZES) -> None:
        """Set how many tokens of text its upstream keeps, which it only names, and their `sizes` by object."""
        self.objects = self.objects._replace(kept=tokens, sizes=sizes)

    @property
    def substitution(self) -> Substitution | None:
        """By which step of a budget it is sent as `model`; None if its caller named that."""
        return self.aim.substitution

    @property
    def asked_as(self) -> str:
        """The model that its caller named."""
        by = self.aim.substitution
        return self.spec.model if by is None else by.model_asked

    @property
    def models(self) -> tuple[str, ...]:
        """All models that may answer: those that the call names, and those of its targets."""
        models = (self.spec.model, *self.models_beside)
        targets = self.aim.targets
        return (*models, *[target.model for target in targets]) if targets else models

    @property
    def unmeasured(self) -> bool:
        """Whether the call has documents or recordings whose pages or seconds are not counted yet."""
        return bool(self.media.documents or self.media.recordings)

    def tiers_of(self, answered: str) -> tuple[str, ...]:
        """Return the service tiers that the call asks of the model that `answered`."""
        tiers = [attempt.tier for attempt in self.spec.attempts if answered.startswith(attempt.model)]
        return (*self.tiers, *filter(None, tiers)) if tiers else self.tiers

    def chosen_by(self, model: str) -> str:
        """Return why a `model` that the call does not name may answer, in words; empty if it names the model."""
        by = next((attempt.chosen for attempt in self.spec.attempts if attempt.model == model), "")
        return f", which {by} may choose: name the fallbacks instead" if by else ""

    def units(self, read: int) -> dict[str, int]:
        """Return the units that the call asks for; those of storage follow from the `read` tokens."""
        if self.storage is not None:
            return {CACHE_HOUR: self.storage.token_hours(read)}
        return {} if self.spec.units.storage is not None else self.spec.units.likely or {}

    @property
    def has_input(self) -> bool:
        """Whether tokens are charged for the call's input: its body has text or media."""
        return self.input_bytes > 0 or self.media.tokens > 0

    @property
    def input_estimate(self) -> int:
        """The likely input tokens: by size, with the mean tokens a byte that were learned, by media, and of kept text."""
        tokens = _whole(self.input_bytes * self.learned.input_tokens_per_byte) + self.media.tokens
        return tokens + self.objects.kept if self.objects.kept > 0 else tokens

    @property
    def most(self) -> int:
        """The most tokens that the call can use if its upstream keeps to the maximum; 0 if unknown."""
        output = self.output_ceiling if self.output_max is None else self.output_max
        return self.input_ceiling + output * self.spec.choices if self.input_ceiling else 0

    def as_model(self, model: str) -> CallRequest:
        """Return the call as if its caller had named a `model`, aimed as it is."""
        call = CallRequest(*_values_of(self))
        call.spec = self.spec._replace(model=model)
        return call

    def take_body(self) -> bytes:
        """Return the body for the last time that it is sent, and release the decoded document."""
        content = self.body.last()
        self.drop_body(content)
        return content

    def write_for(self, model: str) -> bytes:
        """Return the body to send to an upstream that calls the model `model`; it may be sent again later."""
        return self.body.write_for(model, self.asked_as)

    def drop_body(self, content: bytes) -> None:
        """Release the document and other decoded parts, after `content` was sent for the last time."""
        # A prompt may have to be counted at the end of the answer.
        keeps = self.learned.tokens_of is not None and len(content) <= PROMPT_BYTES_MAX
        self.body.let_go(content if keeps else b"")


_values_of: Final = attrgetter(*[field.name for field in fields(CallRequest)])  # in order


def _whole(tokens: float) -> int:
    """Round a number of tokens up, but ignore floating-point errors."""
    whole = int(tokens)
    beyond = tokens - whole
    if beyond > _INEXACT:
        return whole + 1
    return math.ceil(round(tokens, 6)) if beyond > _INEXACT / 3 else whole


def input_tokens(call: CallRequest) -> int:
    """Return the input tokens by the model's own tokenizer if it is known, else by size."""
    tokens_of = call.learned.tokens_of
    counted = prompt_tokens(call.body.content, tokens_of) if tokens_of is not None else None
    return call.input_estimate if counted is None else counted + call.media.tokens + max(call.objects.kept, 0)
