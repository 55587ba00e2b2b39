"""What workers report of themselves in Redis, each in a field of its own named by its worker number."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from gateway.core.integrity.recovery import Report
from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """One worker's report, left with each server. CountersUnavailable is raised where none answers."""

    def __init__(self, wires: Wires, worker_slot: str, beat: int) -> None:
        self._wires, self._worker_slot, self._beat = wires, worker_slot.encode(), beat

    async def report(self, epochs: Sequence[int]) -> None:
        """Say that it lives, and before which epoch of each partition everything was sent again."""
        self._beat += 1
        await _some(
            wire.send(
                encode(b"HSET", _name(wire), self._worker_slot, self._packed(wire, epochs)), upkeep=True
            )
            for wire in self._wires.wires
        )

    async def leave(self) -> None:
        """Nothing is left of this worker that anybody has to wait for."""
        await _some(wire.send(encode(b"HDEL", _name(wire), self._worker_slot)) for wire in self._wires.wires)

    def _packed(self, wire: Wire, epochs: Sequence[int]) -> bytes:
        return pack(Report(wire.run_id, self._beat, tuple(epochs)))


def _name(wire: Wire) -> bytes:
    return keys.workers(wire.part.anchor).encode()


async def _some(waits: Iterable[Wait[Reply]]) -> None:
    """Wait for all of them, of which one at least is to be answered."""
    answered, fault = False, CountersUnavailable()
    for wait in list(waits):
        try:
            await in_task(wait)
            answered = True
        except CountersUnavailable as error:
            fault = error
    if not answered:
        raise fault


def pack(report: Report) -> bytes:
    """A report as its field holds it: run id, beat, an epoch each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> Report | None:
    """The report of a field; None where another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return Report(run_id, beat, tuple(epochs))
