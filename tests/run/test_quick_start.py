"""Dataclasses that are made while code is loaded are as the standard library makes them."""

from __future__ import annotations

import dataclasses
import gc
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from gateway.run.quick_start import loading_code


def made() -> list[type]:
    @dataclass(frozen=True, slots=True)
    class Hold:
        number: int
        secret: str = field(default="s", repr=False)
        note: str = field(default="n", compare=False)

    @dataclass(frozen=True)
    class Parent:
        one: Any

    @dataclass(frozen=True)
    class Call(Parent):
        two: float = 0.0

    @dataclass(slots=True)
    class Count:
        calls: Any = None

    @dataclass(frozen=True, slots=True)
    class Nothing:
        pass

    @dataclass(order=True, unsafe_hash=True)
    class Place:
        x: int
        y: int = 0

    @dataclass(frozen=True, repr=False, eq=False)
    class Plain:
        x: int = 1

    return [Hold, Parent, Call, Count, Nothing, Place, Plain]


with loading_code():
    QUICK = made()
NAN = float("nan")
ARGUMENTS: list[list[tuple[Any, ...]]] = [
    [(1,), (1, "t"), (1, "s", "other"), (2,)], [(1,), (2,)], [(1,), (1, 2.0), (1, NAN), ([],)],
    [(), (NAN,), ("%s %r",)], [()], [(1,), (1, 2), (2, 0)], [(), (2,)],
]  # fmt: skip


def said(ask: Any) -> Any:
    """What comes of it: the answer, or the error."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001  # compared
        return type(error), str(error)


def facts(kinds: list[type]) -> list[Any]:
    """All that users of the classes see."""
    found: list[Any] = []
    for kind, arguments in zip(kinds, ARGUMENTS, strict=True):
        some = [kind(*one) for one in arguments]
        found += [kind.__doc__, [one.name for one in fields(kind)], getattr(kind, "__match_args__", None)]
        found += [str(getattr(kind, "__dataclass_params__", None)), kind.__hash__ is None]
        for one in some:
            if kind.__name__ != "Plain":
                found += [repr(one), said(lambda one=one: hash(one))]
            found += [[one == other for other in some], [one != other for other in (1, None, *some)]]
            found += [said(lambda one=one, other=other: one < other) for other in some[:1]]
            found += [
                said(lambda one=one, name=name: setattr(one, name, 1)) for name in ("number", "x", "new")
            ]
            found += [said(lambda one=one: delattr(one, "one")), said(lambda one=one: asdict(one))]
            found += [replace(one) == one]
    return found


def test_they_are_as_the_standard_library_makes_them() -> None:
    assert repr(facts(QUICK)) == repr(facts(made()))


def test_one_that_is_frozen_refuses() -> None:
    call = QUICK[2](1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'one'"):
        call.one = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'two'"):
        del call.two


def test_one_within_itself_is_shown_once() -> None:
    count = QUICK[3]()
    count.calls = [count]
    assert repr(count) == "made.<locals>.Count(calls=[...])"


with loading_code():

    @dataclass(frozen=True, slots=True)
    class Stored:
        number: int


def test_it_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Stored(1))) == Stored(1)  # our own


def test_what_is_made_later_is_made_as_ever() -> None:
    before = dataclasses._repr_fn  # type: ignore[attr-defined]  # what is exchanged
    with loading_code():
        assert not gc.isenabled()
        assert dataclasses._repr_fn is not before  # type: ignore[attr-defined]  # as above
    assert gc.isenabled()
    assert dataclasses._repr_fn is before  # type: ignore[attr-defined]  # as above
