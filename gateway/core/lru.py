"""Values that are looked up by a key; those used longest ago go: bounded by their size.

To note each use would cost more than to look up: one that is used is put last again at the latest when
newcomers, and those that grow, took a large part of the room. So made-up keys displace nobody who comes all
the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# What part of the room newcomers took since a value was put last, which is put last again.
RENEWED_AFTER: Final = 4


def the_one(kept: dict[K, T], key: K, value: T, most: int) -> T:
    """Return the cached value of a key, so that all who have it alike have one; this value where nothing was.

    Where there are `most` already, all of them go first.
    """
    if key not in kept and len(kept) >= most:
        kept.clear()
    return kept.setdefault(key, value)


class LruEntry:
    """A value that says when it was put last: after how much of newcomers."""

    __slots__ = ("kept_at",)

    kept_at: int


class LruValue(LruEntry, Generic[T]):
    """Any value: a class that is not compiled cannot be an entry itself."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


V = TypeVar("V", bound=LruEntry)

# Bytes that the caches of one worker hold together.
POOL_BYTES_MAX: Final = 32 * 1024 * 1024


class CachePool:
    """Bytes that the caches of one worker share: each has a share of `most` by its own maximum, and more
    while others need less. Beyond that the cache furthest above its share evicts, one entry at a time.
    """

    __slots__ = ("_caches", "held", "most")

    def __init__(self, most: int = POOL_BYTES_MAX) -> None:
        self.most = most
        self.held = 0
        self._caches: dict[str, LruCache[Any, Any]] = {}

    def join(self, name: str, cache: LruCache[Any, Any]) -> None:
        """Count a cache, in place of an earlier one of this name."""
        before = self._caches.get(name)
        if before is not None:
            before.pool = None
            self.held -= before.held
        self._caches[name] = cache
        cache.pool = self
        self.held += cache.held
        whole = sum([one.most for one in self._caches.values()])
        for one in self._caches.values():
            one.share = min(one.most, self.most * one.most // whole)

    def make_room(self) -> None:
        """Evict until all fit; the newest entry of a cache stays."""
        while self.held > self.most:
            largest, above = None, 0
            for one in self._caches.values():
                excess = one.held - one.share
                if excess > above and len(one.known) > 1:
                    largest, above = one, excess
            if largest is None:
                return
            largest.evict()

    def sizes(self) -> list[tuple[str, int]]:
        """Return the bytes that each cache holds, by its name."""
        return [(name, one.held) for name, one in self._caches.items()]


class LruCache(Generic[K, V]):
    """Values of together `most`, less where its `pool` has no room: of that its `share` is its own.

    `known` is for reading; who reads it by itself renews what was kept before `due`. `held` is the size of
    all.
    """

    __slots__ = ("_by_use", "_newcomers", "due", "held", "known", "most", "pool", "share")

    def __init__(self, most: int) -> None:
        self.known: dict[K, V] = {}
        self.held = self.due = 0
        self.most = self.share = most
        self.pool: CachePool | None = None
        self._newcomers = 0
        self._by_use: OrderedDict[K, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.known)

    def find(self, key: K) -> V | None:
        """Return the value of a key, which is used by that; None for none."""
        value = self.known.get(key)
        if value is not None and value.kept_at < self.due:
            self.renew(key, value)
        return value

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Store a value as the one used last; evict those used longest ago where there is no room."""
        known, by_use = self.known, self._by_use
        before, pool = by_use.pop(key, 0), self.pool
        self.held += size - before
        if pool is not None:
            pool.held += size - before
        while self.held > self.most and by_use:
            self.evict()
        if size > before:  # what grows takes room as a newcomer does
            self._newcomers += size - before
            self.due = self._newcomers - self.share // RENEWED_AFTER
        by_use[key], known[key] = size, value
        value.kept_at = self._newcomers
        if pool is not None and pool.held > pool.most:
            pool.make_room()

    def evict(self) -> None:
        """Drop the value that was used longest ago."""
        self.drop(next(iter(self._by_use)))

    def drop(self, key: K) -> None:
        """Remove an entry, if there is one."""
        if self.known.pop(key, None) is not None:
            size = self._by_use.pop(key)
            self.held -= size
            if self.pool is not None:
                self.pool.held -= size

    def renew(self, key: K, value: V) -> None:
        """Mark a value as used last, so that it is the last to go."""
        self._by_use.move_to_end(key)
        value.kept_at = self._newcomers
