"""A packed layout: its fields in their order, each with its kind. Pure.

Whatever reads or writes one goes by the names of its fields: structs of Python are made from it here,
and what the scripts need in `gateway/counters/layouts/lua.py`. Nobody counts bytes.

A stored value begins with the number of its layout. A field says with which number it came, so whatever was
stored before is read. What a newer version has stored is left where it is, and told. While programs of the
version before may run, what is written is as they read it: without the fields that came with today's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple

# The number of today, and the first one. Before there were any, a state began with its flags and a marker
# with text: none of these bytes is as high as the first number.
LAYOUT = 132
FIRST = 129
# The number of the version before, which is written until every program that runs reads today's. Numbers
# before 132 are read, and written by nobody.
EARLIER = max(132, LAYOUT - 1)


class UnknownLayout(ValueError):
    """Another version has stored this, which nobody here can read."""


class FieldType(NamedTuple):
    """How Python's and Lua's struct call it, and its bytes. A text has only its length's."""

    python: str
    lua: str
    size: int


KINDS = {
    "u8": FieldType("B", "B", 1),
    "f64": FieldType("d", "d", 8),
    "i64": FieldType("q", "i8", 8),
    "s24": FieldType("24s", "c24", 24),
    "s36": FieldType("36s", "c36", 36),
    "s40": FieldType("40s", "c40", 40),
    "text8": FieldType("B", "Bc0", 1),
    "text16": FieldType("H", "Hc0", 2),
}


class LayoutField(NamedTuple):
    """One field. `default` is what stands where nobody fills it in, None where somebody must; `since` is the
    number of the layout with which it came, 0 before there were any.
    """

    name: str
    kind: FieldType
    default: int | None = None
    since: int = 0

    @property
    def is_text(self) -> bool:
        """Its length is packed before it."""
        return self.kind.lua.endswith("c0")


# What everything stored begins with.
NUMBER = LayoutField("layout", KINDS["u8"], LAYOUT, FIRST)


class Layout:
    """The fields of one layout; texts come last, and `struct` is of those before them.

    It begins with so many fields that others begin with too (`shared`). Before a number its fields had
    another order (`before`: that number, and their names).
    """

    __slots__ = ("before", "fields", "name", "pack", "shared", "size", "struct")

    def __init__(
        self,
        name: str,
        described: str | tuple[LayoutField, ...],
        shared: int = 0,
        before: tuple[int, str] = (0, ""),
    ) -> None:
        """Read the fields from groups between commas: `number`, or a kind, then names, some with `=default`.

        One that came with a number says so behind its default: `=default@number`.
        """
        self.name, self.shared, self.before = name, shared, before
        self.fields = tuple(_read(described)) if isinstance(described, str) else described
        self.struct = Struct("<" + "".join(one.kind.python for one in self.fields if not one.is_text))
        self.size, self.pack = self.struct.size, self.struct.pack

    def today(self, stored: bytes) -> bytes:
        """Return a stored value, as it is packed today; UnknownLayout where a newer version has stored it."""
        if not stored or stored[0] == LAYOUT:
            return stored
        if stored[0] > LAYOUT:
            raise UnknownLayout(f"{self.name} of layout {stored[0]}: this version knows up to {LAYOUT}")
        return b"".join(stored[one] if isinstance(one, slice) else one for one in self.by_older(stored[0]))

    def by_older(self, number: int) -> list[slice | bytes]:
        """Return the parts that make today's bytes from an older layout's: slices to copy, bytes between."""
        since, names = self.before
        ordered = [self.fields[self.index(name)] for name in names.split()] if number < since else self.fields
        there, at = dict[str, slice](), 0
        for one in ordered:
            if one.since <= (number if number >= FIRST else 0):
                there[one.name] = slice(at, at + one.kind.size)
                at += one.kind.size
        parts = list[slice | bytes]()
        for field in (*self.fields, None):
            found = slice(at, None) if field is None else there.get(field.name)
            if field and (field is NUMBER or found is None):
                parts.append(Struct("<" + field.kind.python).pack(field.default))
            elif parts and isinstance(kept := parts[-1], slice) and found and kept.stop == found.start:
                parts[-1] = slice(kept.start, found.stop)
            elif found:
                parts.append(found)
        return parts

    def earlier(self, packed: bytes) -> bytes:
        """Return a value packed as today, as the version before reads it; anything else as it is."""
        if EARLIER == LAYOUT or packed[0] != LAYOUT:
            return packed
        return b"".join(packed[one] if isinstance(one, slice) else one for one in self.by_today())

    def by_today(self) -> list[slice | bytes]:
        """Return the version before's bytes by today's: which of these are kept, and its number.

        An entry of the outbox has a `version` of its own, which is one less where a field is left out.
        """
        fewer = any(one.since > EARLIER for one in self.fields)
        parts, at, begin = list[slice | bytes](), 0, 0
        for one in self.fields:
            number = EARLIER if one is NUMBER else None
            if one.name == "version" and fewer and one.default:
                number = one.default - 1
            if number is not None or one.since > EARLIER:
                parts += [slice(begin, at)] if at > begin else []
                parts += [] if number is None else [bytes([number])]
                begin = at + one.kind.size
            at += one.kind.size
        return [*parts, slice(begin, None)]

    def index(self, name: str) -> int:
        """Return which field this is, from 0; KeyError where there is none of this name."""
        for at, one in enumerate(self.fields):
            if one.name == name:
                return at
        raise KeyError(f"{self.name} has no field {name}")

    def offset(self, name: str) -> int:
        """Return the number of bytes before this field."""
        return sum(one.kind.size for one in self.fields[: self.index(name)])

    def end(self, name: str) -> int:
        """Return the number of bytes up to the end of this field."""
        return self.offset(name) + self.fields[self.index(name)].kind.size

    def part(self, first: str, last: str) -> Struct:
        """Return the struct of some fields alone, from one to another."""
        fields = self.fields[self.index(first) : self.index(last) + 1]
        return Struct("<" + "".join(one.kind.python for one in fields))

    def read(self, packed: bytes) -> dict[str, Any]:
        """Return the fields by name: integers, and bytes; `struct.error` where it is not of this size."""
        values = self.struct.unpack(packed)
        return {
            field.name: value if isinstance(value, bytes) else int(value)
            for field, value in zip(self.fields, values, strict=False)
        }


def _read(described: str) -> Iterator[LayoutField]:
    for group in described.split(","):
        kind, *names = group.split()
        if kind == "number":
            yield NUMBER
        for one in names:
            name, _, said = one.partition("=")
            default, _, since = said.partition("@")
            yield LayoutField(name, KINDS[kind], int(default) if default else None, int(since or 0))
