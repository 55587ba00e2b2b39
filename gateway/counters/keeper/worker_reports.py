"""Reports of workers, as keepers read them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from gateway.core.integrity.roster import WorkerReport
from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable

# The interval of unchanged reports: a keeper waits longer before a worker counts as gone.
SAY_AGAIN_S = 5.0

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """Writes one worker's report to each server. CountersUnavailable is raised if no server answers."""

    def __init__(
        self, wires: RedisConnections, worker_slot: str, beat: int, clock: Callable[[], float]
    ) -> None:
        self._wires, self._worker_slot, self._beat, self._clock = wires, worker_slot.encode(), beat, clock
        # By server, the last report: epochs, history, number of its invalidation connection, and time.
        self._said: dict[RedisConnection, tuple[Sequence[int], bytes, int, float]] = {}

    async def report(self, epochs: Sequence[int]) -> None:
        """Report that this worker lives, and the epoch of each partition for which it sent all records again.

        An unchanged report is rarely repeated to a server that reports changes, because the server would
        report that it was lost. CountersUnavailable if no server answers.
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
        """Delete this worker's report from every server, because keepers need not wait for its records."""
        self._said = {}
        left = {
            wire: wire.send(encode(b"HDEL", _name(wire), self._worker_slot)) for wire in self._wires.wires
        }
        await _answered(left)

    def _has_heard(self, wire: RedisConnection, epochs: Sequence[int], now: float) -> bool:
        """Return whether a server got a report of `epochs` a moment ago, under its present history."""
        if wire not in self._said or not wire.hearing.since:
            return False
        *report, at = self._said[wire]
        return report == [epochs, wire.run_id, wire.hearing.since] and now - at < SAY_AGAIN_S

    def _packed(self, wire: RedisConnection, epochs: Sequence[int]) -> bytes:
        return pack(WorkerReport(wire.run_id, self._beat, tuple(epochs)))


def _name(wire: RedisConnection) -> bytes:
    return keys.workers(wire.part.anchor).encode()


async def _answered(
    waits: Mapping[RedisConnection, Wait[Reply]], *, one_at_least: bool = True
) -> list[RedisConnection]:
    """Wait for all replies; return the connections that answered.

    If none did and `one_at_least` is set, raise CountersUnavailable.
    """
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


def pack(report: WorkerReport) -> bytes:
    """Return a worker's packed report: run id, number of the report, and the epoch of each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> WorkerReport | None:
    """Return a worker's unpacked report; None if another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return WorkerReport(run_id, beat, tuple(epochs))
