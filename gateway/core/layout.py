"""A packed layout: its fields in their order, each with its kind. Pure.

Whatever reads or writes one goes by the names of its fields: structs of Python are made from it here,
and what the scripts need in `gateway/counters/layouts/lua.py`. Nobody counts bytes.

What is stored begins with the number of its layout. A field says with which number it came, so whatever was
stored before is read. What a newer version has stored is left where it is, and told.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple

# The number of today, and the first one. Before there were any, a state began with its flags and a marker
# with text: none of these bytes is as high as the first number.
LAYOUT = 130
FIRST = 129


class UnknownLayout(ValueError):
    """Another version has stored this, which nobody here can read."""


class Kind(NamedTuple):
    """How Python's and Lua's struct call it, and its bytes. A text has only its length's."""

    python: str
    lua: str
    size: int


KINDS = {
    "u8": Kind("B", "B", 1),
    "f64": Kind("d", "d", 8),
    "i64": Kind("q", "i8", 8),
    "s36": Kind("36s", "c36", 36),
    "s40": Kind("40s", "c40", 40),
    "text8": Kind("B", "Bc0", 1),
    "text16": Kind("H", "Hc0", 2),
}


class Field(NamedTuple):
    """One field. `default` is what stands where nobody fills it in, None where somebody must; `since` is the
    number of the layout with which it came, 0 before there were any.
    """

    name: str
    kind: Kind
    default: int | None = None
    since: int = 0

    @property
    def is_text(self) -> bool:
        """Its length is packed before it."""
        return self.kind.lua.endswith("c0")


# What everything stored begins with.
NUMBER = Field("layout", KINDS["u8"], LAYOUT, FIRST)


class Layout:
    """The fields of one layout; texts come last, and `struct` is of those before them.

    It begins with so many fields that others begin with too (`shared`).
    """

    __slots__ = ("fields", "name", "pack", "shared", "size", "struct")

    def __init__(self, name: str, described: str | tuple[Field, ...], shared: int = 0) -> None:
        """Described in groups between commas: `number`, or a kind, then names, some with `=default`.

        One that came with a number says so behind its default: `=default@number`.
        """
        self.name, self.shared = name, shared
        self.fields = tuple(_read(described)) if isinstance(described, str) else described
        self.struct = Struct("<" + "".join(one.kind.python for one in self.fields if not one.is_text))
        self.size, self.pack = self.struct.size, self.struct.pack

    def today(self, stored: bytes) -> bytes:
        """What is stored, as it is packed today; UnknownLayout where a newer version has stored it."""
        if not stored or stored[0] == LAYOUT:
            return stored
        if stored[0] > LAYOUT:
            raise UnknownLayout(f"{self.name} of layout {stored[0]}: this version knows up to {LAYOUT}")
        return b"".join(stored[one] if isinstance(one, slice) else one for one in self.by_older(stored[0]))

    def by_older(self, number: int) -> Iterator[slice | bytes]:
        """Today's bytes by those of an older layout: which of these are kept, and what stands in between."""
        begin = at = 0
        for one in self.fields:
            there = one.since <= (number if number >= FIRST else 0)
            if there and one is not NUMBER:
                at += one.kind.size
                continue
            if begin < at:
                yield slice(begin, at)
            yield Struct("<" + one.kind.python).pack(one.default)
            begin = at = at + one.kind.size * there
        yield slice(begin, None)

    def index(self, name: str) -> int:
        """Which field this is, from 0; KeyError where there is none of this name."""
        for at, one in enumerate(self.fields):
            if one.name == name:
                return at
        raise KeyError(f"{self.name} has no field {name}")

    def offset(self, name: str) -> int:
        """How many bytes are before this field."""
        return sum(one.kind.size for one in self.fields[: self.index(name)])

    def part(self, first: str, last: str) -> Struct:
        """The struct of some fields alone, from one to another."""
        fields = self.fields[self.index(first) : self.index(last) + 1]
        return Struct("<" + "".join(one.kind.python for one in fields))

    def read(self, packed: bytes) -> dict[str, Any]:
        """The fields by name: integers, and bytes; `struct.error` where it is not of this size."""
        values = self.struct.unpack(packed)
        return {
            field.name: value if isinstance(value, bytes) else int(value)
            for field, value in zip(self.fields, values, strict=False)
        }


def _read(described: str) -> Iterator[Field]:
    for group in described.split(","):
        kind, *names = group.split()
        if kind == "number":
            yield NUMBER
        for one in names:
            name, _, said = one.partition("=")
            default, _, since = said.partition("@")
            yield Field(name, KINDS[kind], int(default) if default else None, int(since or 0))
