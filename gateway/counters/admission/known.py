"""Callers that were looked up, as many as there is room for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

from gateway.core.model import Caller

K = TypeVar("K", bound="str | int")
V = TypeVar("V")


class Known:
    """A caller who was looked up: `fresh` until then, monotonic; its key expires at `expires_ms` (0: never).

    `since` is when the wire has told of no change, in its numbers.
    """

    __slots__ = ("caller", "expires_ms", "fresh", "since")

    def __init__(self, caller: Caller, fresh: float, expires_ms: int, since: int) -> None:
        self.caller, self.fresh, self.expires_ms, self.since = caller, fresh, expires_ms, since

    def expired(self, now_ms: float) -> bool:
        """Whether its key's time is over."""
        return 0 < self.expires_ms <= now_ms


def keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Keep this as the latest; where that is one too many, the one kept longest ago goes."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
