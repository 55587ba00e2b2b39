"""A report of use, as an API writes it: of its documented shape, or as much of it as can be read.

What it says beyond that shape is kept as it came: it may be what the provider bills next.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import fields

from gateway.core.metering.loose import integer
from gateway.core.metering.meter import Meter

T = TypeVar("T", bound=msgspec.Struct)
NO_COUNT: Final = -1  # what stands where a number should: whoever takes it counts by himself
_SAYS_NOTHING = frozenset({b"null", b"0", b"0.0", b"false", b'""', b"{}", b"[]"})


class Reports(Generic[T]):
    """Read reports of one documented shape."""

    def __init__(self, shape: type[T]) -> None:
        self._shape = shape
        self._decode = msgspec.json.Decoder(shape).decode

    def read(self, meter: Meter, raw: bytes) -> T | None:
        """The report; None where there is none. What is not of the documented types marks the use."""
        try:
            return self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        said = _read(_parts, raw)
        if not said:
            return None
        fit = _Fit()
        report: T = fit.struct(self._shape, said)
        if fit.unknown:
            meter.detail.keep(raw)
        if fit.wrong:
            meter.marked = True
        return report


# A value stays as it came until it is known what it is to be: one nobody reads cannot be wrong.
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


class _Fit:
    """Put a document into a shape.

    `unknown` and `wrong` say that something had no place or no right type.
    """

    def __init__(self) -> None:
        self.unknown = self.wrong = False

    def struct(self, shape: type[Any], said: dict[str, msgspec.Raw]) -> Any:
        """A structure of the fields that can be read."""
        places = _places(shape)  # type: ignore[arg-type]  # a class can be a key
        self.unknown = self.unknown or any(
            bytes(said[name]) not in _SAYS_NOTHING for name in said.keys() - places.keys()
        )
        read = {place: self._value(kind, said.get(name)) for name, (place, kind) in places.items()}
        return shape(**read)

    def _value(self, kind: Any, raw: msgspec.Raw | None) -> Any:
        """A value of its documented type; None where it is null or cannot be one."""
        if raw is None or bytes(raw) == b"null" or kind is Any:
            return None
        value = self._of_kind(kind, bytes(raw))
        self.wrong = self.wrong or (value is None and kind is not str)
        return value

    def _of_kind(self, kind: Any, raw: bytes) -> Any:
        if kind is int:
            number = _read(msgspec.json.decode, raw)
            count = integer(number)
            self.wrong = self.wrong or count is None or not isinstance(number, int)
            return NO_COUNT if count is None else count
        if kind is str:
            return _read(_text, raw)
        if get_origin(kind) is list:
            elements = _read(_elements, raw)
            return elements and self._each(get_args(kind)[0], elements)
        parts = _read(_parts, raw)
        if get_origin(kind) is dict:
            return parts and {name: self._value(int, count) or 0 for name, count in parts.items()}
        return None if parts is None else self.struct(kind, parts)

    def _each(self, kind: Any, elements: list[msgspec.Raw]) -> list[Any]:
        read = [self._value(kind, element) for element in elements]
        return [one for one in read if one is not None]


def summed(*counts: int | None) -> int:
    """All of what is there; `NO_COUNT` where one of it is none."""
    there = [count for count in counts if count is not None]
    return NO_COUNT if there and min(there) < 0 else sum(there)


@cache
def _places(shape: type[Any]) -> dict[str, tuple[str, Any]]:
    """The fields of a shape by the names they travel under: each with its name and its type but for None."""
    types = get_type_hints(shape)
    return {
        field.encode_name: (
            field.name,
            next(one for one in (*get_args(types[field.name]), types[field.name]) if one is not type(None)),
        )
        for field in fields(shape)
    }


def _read(decode: Any, raw: bytes) -> Any:
    """What it is; None where it is not of the decoder's type."""
    try:
        return decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
