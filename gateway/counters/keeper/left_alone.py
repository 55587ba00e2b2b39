"""What nobody here can read, since another version has stored it: left where it is, counted, and told.

It is never made a dead letter, never dropped, never written over: whoever knows its layout deals with it.
This only counts, up to a bound: what may be written goes by what was read, never by what is counted here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

Kind = Literal["partition", "entry", "hold", "settlement", "account"]
KINDS: tuple[Kind, ...] = ("partition", "entry", "hold", "settlement", "account")
# Names of each kind that are remembered; more of them are not counted.
NAMES_MAX = 10_000


# What reading fails with where nobody, or another version, stored it.
UNREADABLE = (ValueError, struct.error, OverflowError, IndexError, RecursionError)


class LeftAlone:
    """By kind, what the last look at it could not read. `say` is told of the first of a kind."""

    def __init__(self, say: Callable[..., None] = lambda *_, **__: None) -> None:
        self._say = say
        self._found: dict[Kind, set[str]] = {kind: set() for kind in KINDS}

    @contextmanager
    def reading(self, kind: Kind, name: str) -> Iterator[None]:
        """What is read within may be another version's: then what follows within is left out."""
        try:
            yield
        except UNREADABLE as error:
            self.note(kind, name, str(error))
        else:
            self.forget(kind, [name])

    def note(self, kind: Kind, name: str, why: str) -> None:
        """Count it, once by its name."""
        names = self._found[kind]
        if not names:
            self._say("left alone, another version's", what=kind, name=name, why=why, level="error")
        if len(names) < NAMES_MAX:
            names.add(name)

    def forget(self, kind: Kind, names: Iterable[str]) -> None:
        """These can be read, or are gone."""
        if self._found[kind]:
            self._found[kind].difference_update(names)

    def keep(self, kind: Kind, names: Iterable[str], of: str = "") -> None:
        """Whatever begins so and is not among these can be read by now, or is gone."""
        kept = set(names)
        self._found[kind] -= {one for one in self._found[kind] if one.startswith(of) and one not in kept}

    def count(self, kind: Kind) -> int:
        """How much of a kind there is."""
        return len(self._found[kind])

    def figures(self) -> dict[str, object]:
        """How much of each kind there is, for metrics."""
        return {"left_alone": [[kind, len(names)] for kind, names in self._found.items()]}
