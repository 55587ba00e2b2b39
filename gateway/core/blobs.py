"""What of a body is text, and what stands for pictures, sound and files: those cost by other measures.

Media is known by its place in the API, by the type it states, and by how it begins. Everything else is text,
whatever it says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

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
# Those pack text: what they cost does not follow from their size.
_PACKED = frozenset({"application/pdf"})

Document = Mapping[str, object]


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
    """Where one API takes media: within the field `root`, in parts by their `type`, or by a member's name."""

    root: str = ""
    by_type: Mapping[str, MediaPart] = field(default_factory=dict)
    by_name: Mapping[str, MediaPart] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Media:
    """The media of a body: their bytes as written, what they are held at in tokens.

    `unsure` are the bytes of those whose tokens do not follow from their size.
    """

    size: int = 0
    tokens: int = 0
    unsure: int = 0


def media_in(document: Document, places: MediaPlaces) -> Media:
    """What of a document is media, at the places where its API takes it."""
    size = tokens = unsure = 0
    for kind, length in _found(document.get(places.root), places, DEPTH_MAX):
        size += length
        tokens += BLOB_TOKENS + length // BLOB_BYTES_PER_TOKEN
        unsure += length if kind in _PACKED else 0
    return Media(size, tokens, unsure)


def _found(value: object, places: MediaPlaces, depth: int) -> Iterator[tuple[str, int]]:
    """Type and length of each medium below a value."""
    if depth == 0:
        return
    if isinstance(value, list):
        for each in value:
            yield from _found(each, places, depth - 1)
    elif isinstance(value, dict):
        kind = value.get("type")
        part = places.by_type.get(kind) if isinstance(kind, str) else None
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


def _medium(holder: Document, part: MediaPart) -> tuple[str, int] | None:
    """Type and length of the medium that a part holds; None where what stands there is not one for sure."""
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
    return (kind, len(value) - at) if begins and value.startswith(begins, at) else None
