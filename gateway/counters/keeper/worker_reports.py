"""What workers report of themselves in Redis, each in a field of its own named by its worker number."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gateway.core.integrity.recovery import Report
from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Wire, encode

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """One worker's report. Both methods raise CountersUnavailable where Redis does not answer."""

    def __init__(self, wire: Wire, worker_slot: str, beat: int) -> None:
        self._wire, self._worker_slot, self._beat = wire, worker_slot.encode(), beat

    async def report(self, epochs: Sequence[int]) -> None:
        """Say that it lives, and before which epoch of each partition everything was sent again."""
        self._beat += 1
        packed = pack(Report(self._wire.run_id, self._beat, tuple(epochs)))
        await in_task(self._wire.send(encode(b"HSET", self._name(), self._worker_slot, packed)))

    def _name(self) -> bytes:
        return keys.workers(self._wire.part.anchor).encode()

    async def leave(self) -> None:
        """Nothing is left of this worker that anybody has to wait for."""
        await in_task(self._wire.send(encode(b"HDEL", self._name(), self._worker_slot)))


def pack(report: Report) -> bytes:
    """A report as its field holds it: run id, beat, an epoch each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> Report | None:
    """The report of a field; None where another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return Report(run_id, beat, tuple(epochs))
