"""How a process of ours loads its code in less time: a third of that is to make its dataclasses.

The standard library compiles up to six methods a class from text. Here `__init__` alone is compiled; the
other methods are the same for all classes, over the names of the fields. What they answer is the same.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from reprlib import recursive_repr
from typing import Any

# The makers of methods that are exchanged, as this version of the standard library has them.
KNOWN_VERSIONS = frozenset({(3, 11), (3, 12)})
Method = Callable[..., Any]


@contextmanager
def loading_code() -> Iterator[None]:
    """While code is loaded: no garbage is looked for, and dataclasses are made quickly."""
    library: Any = dataclasses
    makers = MAKERS if sys.version_info[:2] in KNOWN_VERSIONS else {}
    before = {name: getattr(library, name) for name in makers}
    gc.disable()
    try:
        for name, maker in makers.items():
            setattr(library, name, maker)
        yield
    finally:
        for name, maker in before.items():
            setattr(library, name, maker)
        gc.freeze()  # what is loaded stays
        gc.enable()


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads these attributes of an object, as a tuple."""
    if len(names) > 1:
        every: Callable[[Any], tuple[Any, ...]] = attrgetter(*names)
        return every
    return lambda one: tuple(getattr(one, name) for name in names)


def _repr(fields: list[Any], _globals: object) -> Method:
    shown = "(" + ", ".join(f"{field.name}=%r" for field in fields) + ")"
    values = _values([field.name for field in fields])

    def __repr__(self: Any) -> str:  # noqa: N807  # a method of a class that is being made
        return str(self.__class__.__qualname__) + shown % values(self)

    return recursive_repr("...")(__repr__)


def _hash(fields: list[Any], _globals: object) -> Method:
    values = _values([field.name for field in fields])

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(values(self))

    return __hash__


_compared_as_text: Method = dataclasses._cmp_fn  # type: ignore[attr-defined]  # noqa: SLF001  # what is exchanged


def _compared(name: str, operator: str, ours: str, theirs: str, **names: Any) -> Method:
    if operator != "==":
        as_text: Method = _compared_as_text(name, operator, ours, theirs, **names)
        return as_text
    values = _values([part.removeprefix("self.") for part in ours[1:-1].split(",") if part])

    def __eq__(self: Any, other: Any) -> Any:  # noqa: N807
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _frozen(cls: Any, fields: list[Any], _globals: object) -> tuple[Method, Method]:
    names = frozenset(field.name for field in fields)

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:  # noqa: N807
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return __setattr__, __delattr__


MAKERS: dict[str, Method] = {
    "_repr_fn": _repr,
    "_hash_fn": _hash,
    "_cmp_fn": _compared,
    "_frozen_get_del_attr": _frozen,
}
