"""What the loops of a keeper tell its process for people, a line each second down that one's standard input.

Part of the composition root. No disk is between the two: one that is full is among what is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.errors import LoopsSilent
from gateway.run.parent_pipe import ParentPipe

TOLD_EACH_S = 1.0
# Loops that tell nothing for longer hang, or are stopped: nothing that is known of them holds any more.
SILENT_S_MAX = 10.0
# What begins a line of facts. Lines of settings are JSON.
_MARK = b"facts "


class Facts(msgspec.Struct, frozen=True):
    """What metrics say of the loops, and whether what they look after is well, or why not, by name."""

    snapshot: Mapping[str, Any]
    well: Mapping[str, bool | str]


def written(facts: Facts) -> bytes:
    """One line."""
    return _MARK + msgspec.json.encode(facts)


class HeardFacts:
    """The end of who is told. Lines are kept as they come, and read by whoever asks.

    `first` is called with the first ones, and `others` with lines that are no facts, from another thread.
    """

    def __init__(
        self, pipe: ParentPipe, first: Callable[[], object], others: Callable[[bytes], object],
        *, clock: Callable[[], float] = time.monotonic, silent_s_max: float = SILENT_S_MAX,
    ) -> None:  # fmt: skip
        self._first, self._others, self._clock, self._silent_s_max = first, others, clock, silent_s_max
        self._line, self._heard_at = b"", clock()
        pipe.listen(self._hear)

    def last(self) -> Facts:
        """The last ones; `LoopsSilent` where they are too old, or there are none."""
        if not self._line or self._clock() - self._heard_at > self._silent_s_max:
            raise LoopsSilent
        return msgspec.json.decode(self._line[len(_MARK) :], type=Facts)

    def _hear(self, line: bytes) -> None:
        if not line.startswith(_MARK):
            self._others(line)
            return
        is_first = not self._line
        self._line, self._heard_at = line, self._clock()
        if is_first:
            self._first()
