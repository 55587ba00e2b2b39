"""What was worked out once and is looked up again: bounded in bytes, the oldest goes first.

What is remembered here is often a stranger's choice. So an entry has a size, a newcomer makes
only the room it takes, and an entry that is renewed makes nobody go. What is kept by its use goes
by when it was used last: strangers cannot make those go who come all the time.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from gateway.core.in_use import InUse, Kept

K = TypeVar("K", bound="bytes | str")
V = TypeVar("V")
U = TypeVar("U", bound=Kept)


class Remembered(Generic[K, V]):
    """Values by the text they were read from; `known` is for reading, `keep` alone writes to it.

    A key longer than `key_bytes_max` is not kept. An entry counts `copies` times its key, for the
    value has parts of it, and `entry_bytes` for what each has around it.
    """

    __slots__ = ("_bytes_max", "_copies", "_entry_bytes", "_key_bytes_max", "_order", "held_bytes", "known")

    def __init__(self, bytes_max: int, key_bytes_max: int, copies: int, entry_bytes: int) -> None:
        self.known: dict[K, V] = {}
        self.held_bytes = 0
        self._order: deque[K] = deque()
        self._bytes_max = bytes_max
        self._key_bytes_max = key_bytes_max
        self._copies = copies
        self._entry_bytes = entry_bytes

    def keep(self, key: K, value: V) -> None:
        """Remember a value, in place of the oldest ones where there is no room."""
        size = self._size(key)
        if len(key) > self._key_bytes_max or size > self._bytes_max:
            return
        known = self.known
        if key not in known:
            self.held_bytes += size
            while self.held_bytes > self._bytes_max:
                oldest = self._order.popleft()
                self.held_bytes -= self._size(oldest)
                del known[oldest]
            self._order.append(key)
        known[key] = value

    def _size(self, key: K) -> int:
        return len(key) * self._copies + self._entry_bytes


class KeptInUse(InUse[K, U]):
    """The same, in which the oldest is the one that was used longest ago."""

    __slots__ = ("_copies", "_entry_bytes", "_key_bytes_max")

    def __init__(self, bytes_max: int, key_bytes_max: int, copies: int, entry_bytes: int) -> None:
        super().__init__(bytes_max)
        self._key_bytes_max = key_bytes_max
        self._copies = copies
        self._entry_bytes = entry_bytes

    def keep(self, key: K, value: U) -> None:
        """Remember a value, in place of those used longest ago where there is no room."""
        size = len(key) * self._copies + self._entry_bytes
        if len(key) <= self._key_bytes_max and size <= self._most:
            self.put(key, value, size)
