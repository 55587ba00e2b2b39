"""What a gateway worker asks Redis through, composed: over one wire, or over those to a cluster's primaries.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.core.histogram import Histogram
from gateway.counters.admission.cooling import SharedCooling
from gateway.counters.admission.crowded import Crowded
from gateway.counters.admission.directory import Directory
from gateway.counters.admission.live import LiveHolds
from gateway.counters.admission.objects import Objects
from gateway.counters.admission.quota import Counters
from gateway.counters.admission.sharded import ShardedCounters
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import Leaser
from gateway.counters.redis.shards import Shards
from gateway.counters.redis.wire import Wire
from gateway.counters.redis.wires import Wires
from gateway.counters.settlement_log.log import SettlementLog
from gateway.issuers.callers import TokenCallers
from gateway.run.token_callers import token_callers
from gateway.run.worker_slot import take_worker_slot
from gateway.settings.settings import Settings

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Door:
    """The parts that ask Redis, over one wire or those to the primaries of a cluster."""

    directory: Directory
    counters: Counters | ShardedCounters
    objects: Objects
    allowances: Allowances
    leaser: Leaser
    worker_reports: WorkerReports
    cooling: SharedCooling
    tokens: TokenCallers


def make_door(
    settings: Settings, wires: Wires, settlements: SettlementLog, scripts: Mapping[str, Histogram], log: Log
) -> Door:
    """What the worker asks Redis through; `scripts` takes the seconds of each."""
    clock, took = time.monotonic, {verb: histogram.observe for verb, histogram in scripts.items()}
    worker_slot = take_worker_slot(Path(settings.data_dir) / "worker_slots")
    allowances = Allowances(clock, worker_slot)
    directory = Directory(wires, clock, allowances=allowances, stale_s=settings.lease_s_max, log=log)
    directory.stand_ins = settings.stand_ins
    ttl_ms = int(settings.hold_ttl_s * 1000)
    leaser = Leaser(
        wires, allowances, clock, fraction=settings.lease_fraction, lease_s=settings.lease_s_max,
        took=took["lease"], pending=lambda: settlements.waiting,
    )  # fmt: skip

    def counters_of(wire: Wire) -> Counters:
        return Counters(wire, directory, ttl_ms, clock, took, log=settlements, allowances=allowances, say=log)

    counters: Counters | ShardedCounters
    if isinstance(wires, Shards):
        live = LiveHolds(wires, allowances, ttl_ms, clock, took["extend"])
        counters = ShardedCounters(
            wires, counters_of, live, Crowded(clock, log), hold_ttl_s=settings.hold_ttl_s, clock=clock
        )
    else:
        (wire,) = wires.wires
        counters = counters_of(wire)
    objects = Objects(wires, time.time, settings.object_ttl_s, settings.objects_max, log=log)
    reports = WorkerReports(wires, str(worker_slot), time.time_ns(), clock)
    cooling, tokens = SharedCooling(wires, clock), token_callers(settings, directory, log)
    return Door(directory, counters, objects, allowances, leaser, reports, cooling, tokens)
