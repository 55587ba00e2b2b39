"""Values that are looked up by a key; those used longest ago go: bounded by their size.

To note each use would cost more than to look up: one that is used is put last again at the latest when
newcomers, and those that grow, took a large part of the room. So made-up keys displace nobody who comes all
the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# What part of the room newcomers took since a value was put last, which is put last again.
RENEWED_AFTER: Final = 4


def the_one(kept: dict[K, T], key: K, value: T, most: int) -> T:
    """The cached value of a key, so that all who have it alike have one; this value where nothing was.

    Where there are `most` already, all of them go first.
    """
    if key not in kept and len(kept) >= most:
        kept.clear()
    return kept.setdefault(key, value)


class LruEntry:
    """A value that says when it was put last: after how much of newcomers."""

    __slots__ = ("kept_at",)

    kept_at: int


V = TypeVar("V", bound=LruEntry)


class LruCache(Generic[K, V]):
    """Values of together `most`. `known` is for reading; who reads it by itself renews what was kept before
    `due`. `held` is the size of all.
    """

    __slots__ = ("_by_use", "_most", "_newcomers", "due", "held", "known")

    def __init__(self, most: int) -> None:
        self.known: dict[K, V] = {}
        self.held = self.due = 0
        self._most = most
        self._newcomers = 0
        self._by_use: OrderedDict[K, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.known)

    def find(self, key: K) -> V | None:
        """The value of a key, which is used by that; None for none."""
        value = self.known.get(key)
        if value is not None and value.kept_at < self.due:
            self.renew(key, value)
        return value

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Keep a value as the one used last, in place of those used longest ago where there is no room."""
        known, by_use = self.known, self._by_use
        before = by_use.pop(key, 0)
        self.held += size - before
        while self.held > self._most and by_use:
            oldest, gone = by_use.popitem(last=False)
            self.held -= gone
            del known[oldest]
        if size > before:  # what grows takes room as a newcomer does
            self._newcomers += size - before
            self.due = self._newcomers - self._most // RENEWED_AFTER
        by_use[key], known[key] = size, value
        value.kept_at = self._newcomers

    def drop(self, key: K) -> None:
        """Keep it no longer, if it is there."""
        if self.known.pop(key, None) is not None:
            self.held -= self._by_use.pop(key)

    def renew(self, key: K, value: V) -> None:
        """A value is used: it is the last to go."""
        self._by_use.move_to_end(key)
        value.kept_at = self._newcomers
