"""Caches that evict the values used longest ago; their size is bounded.

To record each use would cost more than a look-up. A used value is moved to the end of the queue only once new
and growing values have taken a large part of the room. So made-up keys evict no value that is used regularly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# A value is moved to the end once newcomers have taken one part in so many of the room.
RENEWED_AFTER: Final = 4


def the_one(kept: dict[K, T], key: K, value: T, most: int) -> T:
    """Return the value stored under a key; if there is none, store `value` and return it.

    Equal values are thus one object in memory. If `most` values are stored, all are dropped first.
    """
    if key not in kept and len(kept) >= most:
        kept.clear()
    return kept.setdefault(key, value)


class LruEntry:
    """A value of an `LruCache`. `kept_at` is the volume of newcomers when it was last moved to the end."""

    __slots__ = ("kept_at",)

    kept_at: int


class LruValue(LruEntry, Generic[T]):
    """A wrapper for any value: a class that is not compiled cannot be an `LruEntry` itself."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


V = TypeVar("V", bound=LruEntry)

# Most bytes of all caches of one worker.
POOL_BYTES_MAX: Final = 32 * 1024 * 1024


class CachePool:
    """Bytes shared by the caches of one worker.

    Each cache has a share of `most` in proportion to its maximum, and more while others need less. Beyond
    `most` the cache furthest above its share evicts, one entry at a time.
    """

    __slots__ = ("_caches", "held", "most")

    def __init__(self, most: int = POOL_BYTES_MAX) -> None:
        self.most = most
        self.held = 0
        self._caches: dict[str, LruCache[Any, Any]] = {}

    def join(self, name: str, cache: LruCache[Any, Any]) -> None:
        """Add a cache to the pool under a name. A cache that had this name before leaves the pool."""
        before = self._caches.get(name)
        if before is not None:
            before.pool = None
            self.held -= before.held
        self._caches[name] = cache
        cache.pool = self
        self.held += cache.held
        whole = sum([cache.most for cache in self._caches.values()])
        for one in self._caches.values():
            one.share = min(one.most, self.most * one.most // whole)

    def make_room(self) -> None:
        """Evict entries of the caches that exceed their share most, until all fit into the pool.

        The newest entry of each cache stays.
        """
        while self.held > self.most:
            largest, above = None, 0
            for cache in self._caches.values():
                excess = cache.held - cache.share
                if excess > above and len(cache.known) > 1:
                    largest, above = cache, excess
            if largest is None:
                return
            largest.evict()

    def sizes(self) -> list[tuple[str, int]]:
        """Return (name, bytes held) of each cache."""
        return [(name, cache.held) for name, cache in self._caches.items()]


class LruCache(Generic[K, V]):
    """A cache with values of at most `most` in sum, less if its `pool` is full; `share` is its part of that.

    `known` is for direct reading; then the reader must call `renew` for a value with `kept_at` below `due`.
    `held` is the size of all values.
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
        """Return the value of a key and count that as a use; None if it is missing."""
        value, due = self.known.get(key), self.due
        if due > 0 and value is not None and value.kept_at < due:
            self.renew(key, value)
        return value

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Store a value as the last used one, and evict those used longest ago if there is no room."""
        known, by_use = self.known, self._by_use
        before, pool = by_use.pop(key, 0), self.pool
        self.held += size - before
        if pool is not None:
            pool.held += size - before
        while self.held > self.most and by_use:
            self.evict()
        if size > before:  # growth takes room like a newcomer
            self._newcomers += size - before
            self.due = self._newcomers - self.share // RENEWED_AFTER
        by_use[key], known[key] = size, value
        value.kept_at = self._newcomers
        if pool is not None and pool.held > pool.most:
            pool.make_room()

    def evict(self) -> None:
        """Drop the value used longest ago."""
        self.drop(next(iter(self._by_use)))

    def drop(self, key: K) -> None:
        """Remove an entry, if it exists."""
        if self.known.pop(key, None) is not None:
            size = self._by_use.pop(key)
            self.held -= size
            if self.pool is not None:
                self.pool.held -= size

    def renew(self, key: K, value: V) -> None:
        """Mark the stored `value` of a key as used just now, so that it is evicted last."""
        self._by_use.move_to_end(key)
        value.kept_at = self._newcomers
