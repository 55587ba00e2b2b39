"""Cached callers, and the bounds in bytes of their cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.lru import LruEntry
from gateway.core.model import Caller

# Measured bytes of a caller's cache entry: a fixed part, and this many for each byte of its stored value.
KNOWN_BYTES: Final = 512
KNOWN_COPIES: Final = 8


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The bounds of one worker's cache of callers, and of its memory of unknown credentials.

    `look_ups_max` unknown credentials are looked up at once, and `look_ups_waiting_max` wait for that.
    """

    known_bytes_max: int = 32 * 1024 * 1024
    terms_bytes_max: int = 48 * 1024 * 1024
    unknown_max: int = 4096
    look_ups_max: int = 256
    look_ups_waiting_max: int = 16_384


BOUNDS: Final = CacheLimits()


class CachedValue(LruEntry):
    """A value read as `raw`, empty if the key did not exist, by a query sent at `read_at` (monotonic
    seconds).

    `since` numbers the time from which Redis reported all changes of it, see `InvalidationListener`. `size`
    is its size in the cache, in bytes.
    """

    __slots__ = ("raw", "read_at", "since", "size")

    raw: bytes
    read_at: float
    since: int
    size: int


class CachedCaller(CachedValue):
    """A caller, valid until `fresh` (monotonic seconds). Its key expires at `expires_ms` (0: never)."""

    __slots__ = ("caller", "expires_ms", "fresh")

    def __init__(
        self, caller: Caller, raw: bytes, *, read_at: float, fresh: float, expires_ms: int, since: int
    ) -> None:
        self.size = known_bytes(raw)
        self.raw, self.read_at, self.since = raw, read_at, since
        self.caller, self.fresh, self.expires_ms = caller, fresh, expires_ms

    def expired(self, now_ms: float) -> bool:
        """Return whether the caller's key has expired."""
        return 0 < self.expires_ms <= now_ms


def known_bytes(raw: bytes) -> int:
    """Return the size in bytes of a cached caller whose stored value is `raw`."""
    return KNOWN_BYTES + KNOWN_COPIES * len(raw)
