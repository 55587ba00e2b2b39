"""Packed layouts: fields in order, each with a type. Pure.

All code that reads or writes a layout uses the names of its fields: Python's structs are made from it here,
and Lua's constants in `gateway/counters/layouts/lua.py`. Nobody counts bytes.

A stored value begins with the number of its layout. A field states the number with which it came, so all
older values can be read. Values of a newer version are left unchanged, and reported. While programs of the
previous version may run, values are written in its form: without the fields of the current number.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple

# The current number, and the first one. Before there were numbers, a state began with its flags and a marker
# with text: those bytes are all below the first number.
LAYOUT = 133
FIRST = 129
# The second number, which tells the forms of trees apart that no release has; "" for those of a release.
# `python -m tests.forms --write` writes it, and `make check` compares it.
FORMS = "47b5a273"
# The number of the previous version, which is written until all running programs read the current one.
# Numbers below 132 are only read.
EARLIER = max(132, LAYOUT - 1)


class UnknownLayout(ValueError):
    """Raised for a value that another version has stored in an unknown layout."""


class FieldType(NamedTuple):
    """The codes of a type in Python's and Lua's struct, and its bytes; for a text those of its length."""

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
    """One field. `default` is its value if unset, None if it is required.

    `since` is the number of the layout with which it came, 0 for before there were numbers.
    """

    name: str
    kind: FieldType
    default: int | None = None
    since: int = 0

    @property
    def is_text(self) -> bool:
        """Whether the field is a text, stored with its length before it."""
        return self.kind.lua.endswith("c0")


# The first field of every stored value.
NUMBER = LayoutField("layout", KINDS["u8"], LAYOUT, FIRST)


class Layout:
    """The fields of one layout. Texts come last, and `struct` covers the fields before them.

    Its first `shared` fields are the same as in other layouts. `before` is a number and the names of fields
    in the order that layouts before that number had.
    """

    __slots__ = ("before", "fields", "name", "pack", "shared", "size", "struct")

    def __init__(
        self,
        name: str,
        described: str | tuple[LayoutField, ...],
        shared: int = 0,
        before: tuple[int, str] = (0, ""),
    ) -> None:
        """Parse fields from groups with commas between them: `number`, or a type and names.

        A name may have a default, and the number with which its field came: `name=default@number`.
        """
        self.name, self.shared, self.before = name, shared, before
        self.fields = tuple(_read(described)) if isinstance(described, str) else described
        self.struct = Struct("<" + "".join(field.kind.python for field in self.fields if not field.is_text))
        self.size, self.pack = self.struct.size, self.struct.pack

    def today(self, stored: bytes) -> bytes:
        """Return a stored value in the current layout; `UnknownLayout` if a newer version wrote it."""
        if not stored or stored[0] == LAYOUT:
            return stored
        if stored[0] > LAYOUT:
            raise UnknownLayout(f"{self.name} of layout {stored[0]}: this version knows up to {LAYOUT}")
        return b"".join(
            stored[part] if isinstance(part, slice) else part for part in self.by_older(stored[0])
        )

    def by_older(self, number: int) -> list[slice | bytes]:
        """Return the parts that make a current value from one in the older layout `number`.

        They are slices of the older value, and new bytes.
        """
        since, names = self.before
        ordered = [self.fields[self.index(name)] for name in names.split()] if number < since else self.fields
        there, at = dict[str, slice](), 0
        for one in ordered:
            if one.since <= (number if number >= FIRST else 0):
                there[one.name] = slice(at, at + one.kind.size)
                at += one.kind.size
        parts = list[slice | bytes]()
        for field in (*self.fields, None):
            place = slice(at, None) if field is None else there.get(field.name)
            if field and (field is NUMBER or place is None):
                parts.append(Struct("<" + field.kind.python).pack(field.default))
            elif parts and isinstance(kept := parts[-1], slice) and place and kept.stop == place.start:
                parts[-1] = slice(kept.start, place.stop)
            elif place:
                parts.append(place)
        return parts

    def earlier(self, packed: bytes) -> bytes:
        """Return a current value converted to the layout of the previous version, any other unchanged."""
        if EARLIER == LAYOUT or packed[0] != LAYOUT:
            return packed
        return b"".join(packed[part] if isinstance(part, slice) else part for part in self.by_today())

    def by_today(self) -> list[slice | bytes]:
        """Return the parts that make a value of the previous layout from a current one.

        They are slices of the current value, and new bytes. The separate `version` of an outbox entry
        becomes one less if a field is left out.
        """
        fewer = any(field.since > EARLIER for field in self.fields)
        parts, at, begin = list[slice | bytes](), 0, 0
        for field in self.fields:
            number = EARLIER if field is NUMBER else None
            if field.name == "version" and fewer and field.default:
                number = field.default - 1
            if number is not None or field.since > EARLIER:
                parts += [slice(begin, at)] if at > begin else []
                parts += [] if number is None else [bytes([number])]
                begin = at + field.kind.size
            at += field.kind.size
        return [*parts, slice(begin, None)]

    def index(self, name: str) -> int:
        """Return the position of a field, from 0; KeyError for an unknown name."""
        for at, field in enumerate(self.fields):
            if field.name == name:
                return at
        raise KeyError(f"{self.name} has no field {name}")

    def offset(self, name: str) -> int:
        """Return the number of bytes before a field."""
        return sum(field.kind.size for field in self.fields[: self.index(name)])

    def end(self, name: str) -> int:
        """Return the number of bytes up to the end of a field."""
        return self.offset(name) + self.fields[self.index(name)].kind.size

    def part(self, first: str, last: str) -> Struct:
        """Return a struct (for packing) of the fields from `first` to `last`, inclusive."""
        fields = self.fields[self.index(first) : self.index(last) + 1]
        return Struct("<" + "".join(field.kind.python for field in fields))

    def read(self, packed: bytes) -> dict[str, Any]:
        """Return the fields by name, as integers or bytes; `struct.error` for a wrong size."""
        values = self.struct.unpack(packed)
        return {
            field.name: value if isinstance(value, bytes) else int(value)
            for field, value in zip(self.fields, values, strict=False)
        }


def _read(described: str) -> Iterator[LayoutField]:
    """Yield the fields of a layout from their description, such as `number tokens=0@3`."""
    for group in described.split(","):
        kind, *names = group.split()
        if kind == "number":
            yield NUMBER
        for item in names:
            name, _, value = item.partition("=")
            default, _, since = value.partition("@")
            yield LayoutField(name, KINDS[kind], int(default) if default else None, int(since or 0))
