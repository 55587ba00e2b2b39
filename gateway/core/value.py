"""The base class of the values of a call: frozen, and made and read in a fraction of a named tuple's time."""

from __future__ import annotations

from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace


class Value(Struct, frozen=True):
    """A value of named fields that nothing changes.

    A subclass states `frozen=True` for type checkers alone: without that, or compiled, it is frozen all the same.
    """

    def _replace(self, **fields: Any) -> Self:
        """Return a copy with other values of these fields, as named tuples do."""
        return replace(self, **fields)
