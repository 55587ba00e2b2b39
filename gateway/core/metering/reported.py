"""A report of use, as an API writes it: of its documented shape, or as much of it as can be read.

What it says beyond that shape is kept as it came: it may be what the provider bills next.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import fields

from gateway.core.metering.detail import UNKNOWN_BYTES_MAX
from gateway.core.metering.loose import integer, loose_document
from gateway.core.metering.meter import Meter

T = TypeVar("T", bound=msgspec.Struct)


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """What a documented shape of a report is made from: every field may be missing."""


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
        said = loose_document(raw)
        if not said:
            return None
        fit = _Fit()
        report: T = fit.struct(self._shape, said)
        if fit.unknown and len(raw) <= UNKNOWN_BYTES_MAX:
            meter.detail.unknown = msgspec.json.encode(said)
        if fit.wrong:
            meter.marked = True
        return report


class _Fit:
    """Put a document into a shape; `unknown` and `wrong` say that something had no place or no right type."""

    def __init__(self) -> None:
        self.unknown = self.wrong = False

    def struct(self, shape: type[Any], said: dict[str, object]) -> Any:
        """A structure of the fields that can be read."""
        places = {field.encode_name: field.name for field in fields(shape)}
        types = get_type_hints(shape)
        self.unknown = self.unknown or not places.keys() >= said.keys()
        return shape(
            **{
                place: self._value(types[place], said[name])
                for name, place in places.items()
                if said.get(name) is not None
            }
        )

    def _value(self, kind: Any, value: object) -> Any:
        wanted = next(one for one in (*get_args(kind), kind) if one is not type(None))
        if wanted is int:
            self.wrong = self.wrong or not isinstance(value, int) or isinstance(value, bool)
            return integer(value)
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct) and isinstance(value, dict):
            return self.struct(wanted, value)
        if get_origin(wanted) is list and isinstance(value, list):
            [each] = get_args(wanted)
            return [self._value(each, one) for one in value if one is not None]
        if get_origin(wanted) is dict and isinstance(value, dict):
            return {name: integer(count) or 0 for name, count in value.items()}
        if wanted is str and isinstance(value, str):
            return value
        self.wrong = self.wrong or wanted is not str
        return None
