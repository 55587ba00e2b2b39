"""Callers that were looked up, as many as there is room for, and whose turn it is to be looked up."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from gateway.core.in_use import Kept
from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.errors import Overloaded

# What is kept of a caller takes so many bytes, and so many more for each byte it was read from (measured).
KNOWN_BYTES: Final = 512
KNOWN_COPIES: Final = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one worker keeps of callers: 38,000 that may call any model, 32,000 organizations without terms of
    their own, and so many credentials nobody has. Of those that are not known so many are looked up at once,
    and so many wait for that.
    """

    known_bytes_max: int = 32 * 1024 * 1024
    terms_bytes_max: int = 48 * 1024 * 1024
    unknown_max: int = 4096
    look_ups_max: int = 256
    look_ups_waiting_max: int = 16_384


BOUNDS: Final = Bounds()


class Heard(Kept):
    """What was read as `raw`, empty where there was nothing, and asked for at `read_at`, monotonic.

    `since` is when the wire has told of no change of it (`changes.py`), `size` are the bytes that it takes.
    """

    __slots__ = ("raw", "read_at", "since", "size")

    raw: bytes
    read_at: float
    since: int
    size: int


class Known(Heard):
    """A caller who is `fresh` until then, monotonic. Its key expires at `expires_ms` (0: never)."""

    __slots__ = ("caller", "expires_ms", "fresh")

    def __init__(
        self, caller: Caller, raw: bytes, *, read_at: float, fresh: float, expires_ms: int, since: int
    ) -> None:
        self.size = known_bytes(raw)
        self.raw, self.read_at, self.since = raw, read_at, since
        self.caller, self.fresh, self.expires_ms = caller, fresh, expires_ms

    def expired(self, now_ms: float) -> bool:
        """Whether its key's time is over."""
        return 0 < self.expires_ms <= now_ms


def known_bytes(raw: bytes) -> int:
    """What a caller that was read from this takes."""
    return KNOWN_BYTES + KNOWN_COPIES * len(raw)


class Turn:
    """One who wants to look up. `granted`: it is his turn, or he never had to wait."""

    __slots__ = ("granted", "wait")

    def __init__(self) -> None:
        self.granted = False
        self.wait: Wait[None] = Wait()


class Turns:
    """So many look up at once, `under_way`, and others wait in order: a flood of guesses fills no queue of
    those who are known. Overloaded where `waiting_max` wait.
    """

    __slots__ = ("_most", "_waiting", "_waiting_max", "under_way")

    def __init__(self, most: int, waiting_max: int) -> None:
        self.under_way = 0
        self._most, self._waiting_max = most, waiting_max
        self._waiting: OrderedDict[Turn, None] = OrderedDict()

    def take(self) -> Turn:
        """Ask for a turn, whose `wait` ends with it; it is to be given back whatever happens."""
        turn = Turn()
        if self.under_way < self._most:
            self.under_way += 1
            turn.granted = True
            turn.wait.set(None)
        elif len(self._waiting) >= self._waiting_max:
            raise Overloaded("Too many unknown credentials are being looked up. Try again in a moment.")
        else:
            self._waiting[turn] = None
        return turn

    def give_back(self, turn: Turn) -> None:
        """It is over, or not wanted any more. The next one goes on in a moment, not here."""
        if not turn.granted:
            del self._waiting[turn]
        elif self._waiting:
            following, _ = self._waiting.popitem(last=False)
            following.granted = True
            asyncio.get_running_loop().call_soon(following.wait.set, None)
        else:
            self.under_way -= 1
