"""Holds by the API that a worker took, extended or ended, remembered in case Redis loses them.

They are in the worker's memory, and in its settlement log for a worker that adopts it. The log drops its
records by their age, so open holds are written to it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from gateway.core.accounts.caller_holds import CallerHold, HoldEnd
from gateway.counters.admission.stored import UNREADABLE

# Bytes of open holds, and of ended ones, that a worker remembers: some 1 KiB each, 16 KiB at most.
BYTES_MAX: Final = 8 << 20


class RememberedHold(msgspec.Struct):
    """A hold with its end, None while it is open. Redis would store it until `until_ms`."""

    hold: CallerHold
    until_ms: int
    end: HoldEnd | None = None


_decode = msgspec.json.Decoder(RememberedHold).decode


class RememberedHolds:
    """Remembered holds by id, the oldest first; beyond `bytes_max` the oldest is dropped.

    `note` writes a record to the settlement log.
    """

    def __init__(self, note: Callable[[bytes], None], bytes_max: int = BYTES_MAX) -> None:
        self._note, self._open, self._ended = note, _Records(bytes_max), _Records(bytes_max)

    def remember(self, record: RememberedHold) -> None:
        """Remember a hold as it is now, and note it in the settlement log."""
        id_, raw = record.hold.id, msgspec.json.encode(record)
        self._open.drop(id_)
        (self._open if record.end is None else self._ended).put(id_, record.until_ms, raw)
        self._note(raw)

    def recall(self, raw: bytes) -> None:
        """Remember a hold from the settlement log of a dead worker, unless this worker knows that it ended."""
        try:
            record = _decode(raw)
        except UNREADABLE:  # a newer version's
            return
        if record.hold.id not in self._ended.raw:
            self.remember(record)

    def forget(self, now_ms: int) -> None:
        """Forget the holds that Redis would not store any more."""
        for records in (self._open, self._ended):
            for id_ in [id_ for id_, (until_ms, _) in records.raw.items() if until_ms <= now_ms]:
                records.drop(id_)

    def note_again(self) -> None:
        """Write the open holds to the settlement log again, since it drops older records."""
        for _, raw in self._open.raw.values():
            self._note(raw)

    def __iter__(self) -> Iterator[RememberedHold]:
        """Yield all remembered holds, the ended ones first."""
        yield from self._ended
        yield from self._open


class _Records:
    """Encoded records by id, each with the time until which it counts; of `bytes_max` bytes at most."""

    def __init__(self, bytes_max: int) -> None:
        self.raw: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._size, self._bytes_max = 0, bytes_max

    def put(self, id_: str, until_ms: int, raw: bytes) -> None:
        self.drop(id_)
        self.raw[id_] = until_ms, raw
        self._size += len(raw)
        while self._size > self._bytes_max:
            self.drop(next(iter(self.raw)))

    def drop(self, id_: str) -> None:
        self._size -= len(self.raw.pop(id_, (0, b""))[1])

    def __iter__(self) -> Iterator[RememberedHold]:
        for _, raw in list(self.raw.values()):
            yield _decode(raw)
