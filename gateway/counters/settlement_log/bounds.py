"""What bounds a settlement log and the sending of it again: seconds (`_s`), bytes and counts."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.counters.settlement_log.segment import PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Bounds:
    """Each with the value that a worker has."""

    write_s: float = 0.05
    spool_s_max: float = 2.0
    # Behind the data plane's grace and its last calls: a worker is gone within 25 seconds.
    close_s_max: float = 1.0
    # A Redis that syncs its append-only file once a second has what is older than this.
    at_risk_s: float = 2.0
    notes_max: int = 50_000
    spools_max: int = 50_000
    retry_s: float = 0.2
    # A call in flight may have lost its hold: until it has settled, others could be let in on what it uses.
    # One that goes on for longer is not waited for.
    calls_s_max: float = 2.0
    # The keeper verifies partition after partition: those behind the first are gathered for so long.
    together_s_max: float = 1.0
    batch_s: float = 0.02
    piece_bytes: int = PIECE_BYTES


BOUNDS = Bounds()
