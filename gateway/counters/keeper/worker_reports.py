"""What workers report of themselves in Redis, each in a field of its own named by its worker number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from gateway.core.integrity.recovery import Report
from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

# Between two reports that say the same: a keeper waits longer before it takes a worker for gone.
SAY_AGAIN_S = 5.0

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """One worker's report, left with each server. CountersUnavailable is raised where none answers."""

    def __init__(self, wires: Wires, worker_slot: str, beat: int, clock: Callable[[], float]) -> None:
        self._wires, self._worker_slot, self._beat, self._clock = wires, worker_slot.encode(), beat, clock
        # Of each server: the epochs that were said last, of which history, since when it tells; and when.
        self._said: dict[Wire, tuple[Sequence[int], bytes, int, float]] = {}

    async def report(self, epochs: Sequence[int]) -> None:
        """Say that it lives, and before which epoch of each partition everything was sent again.

        Who tells what changes would tell that its data is another: to say the same again has time there.
        """
        self._beat += 1
        epochs, now = tuple(epochs), self._clock()
        wires = self._wires.wires
        waits = {
            wire: wire.send(
                encode(b"HSET", _name(wire), self._worker_slot, self._packed(wire, epochs)), upkeep=True
            )
            for wire in wires
            if not self._has_heard(wire, epochs, now)
        }
        saying = {wire: (epochs, wire.run_id, wire.hearing.since, now) for wire in waits}
        answered = {wire: self._said[wire] for wire in wires if wire not in waits}
        for wire in await _answered(waits, one_at_least=not answered):
            answered[wire] = saying[wire]
        self._said = answered

    async def leave(self) -> None:
        """Nothing is left of this worker that anybody has to wait for."""
        self._said = {}
        left = {
            wire: wire.send(encode(b"HDEL", _name(wire), self._worker_slot)) for wire in self._wires.wires
        }
        await _answered(left)

    def _has_heard(self, wire: Wire, epochs: Sequence[int], now: float) -> bool:
        """Whether this very data has this report, as of a moment ago."""
        if wire not in self._said or not wire.hearing.since:
            return False
        *said, at = self._said[wire]
        return said == [epochs, wire.run_id, wire.hearing.since] and now - at < SAY_AGAIN_S

    def _packed(self, wire: Wire, epochs: Sequence[int]) -> bytes:
        return pack(Report(wire.run_id, self._beat, tuple(epochs)))


def _name(wire: Wire) -> bytes:
    return keys.workers(wire.part.anchor).encode()


async def _answered(waits: Mapping[Wire, Wait[Reply]], *, one_at_least: bool = True) -> list[Wire]:
    """Wait for all of them; who answered, CountersUnavailable where that is nobody and must not be."""
    answered, fault = [], CountersUnavailable()
    for wire, wait in waits.items():
        try:
            await in_task(wait)
            answered.append(wire)
        except CountersUnavailable as error:
            fault = error
    if one_at_least and not answered:
        raise fault
    return answered


def pack(report: Report) -> bytes:
    """A report as its field holds it: run id, beat, an epoch each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> Report | None:
    """The report of a field; None where another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return Report(run_id, beat, tuple(epochs))
