"""What one worker asks Redis through, put together: who calls, the limits, the leases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID, uuid4

from gateway.counters.admission.directory import Directory
from gateway.counters.admission.quota import Counters
from gateway.counters.fence import Fence
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import Leaser
from gateway.counters.redis.address import Address
from gateway.counters.redis.wire import Wire
from gateway.counters.settlement_log.log import SettlementLog

SCRIPTS = ("reserve", "settle", "extend", "lease")


@dataclass(frozen=True, slots=True)
class Door:
    """The parts that share one wire."""

    directory: Directory
    counters: Counters
    allowances: Allowances
    leaser: Leaser
    worker_reports: WorkerReports


def start_wire(address: Address, call_s: float, log: Callable[..., None]) -> tuple[Wire, Fence]:
    """The wire of a worker, connecting in the background, and the fence that guards it."""
    wire = Wire(address, time.monotonic, call_s=call_s)
    fence = Fence(wire, str(uuid4()), time.time, log)
    wire.start()
    return wire, fence


def open_door(
    wire: Wire,
    log: SettlementLog,
    worker_slot: UUID,
    took: Mapping[str, Callable[[float], None]],
    *,
    hold_ttl_s: float,
    lease_fraction: float,
    lease_s: float,
) -> Door:
    """The parts by these settings; `took` is told the seconds of each of `SCRIPTS`."""
    clock = time.monotonic
    allowances = Allowances(clock, worker_slot)
    directory = Directory(wire, clock, allowances=allowances, stale_s=lease_s)
    counters = Counters(wire, directory, int(hold_ttl_s * 1000), clock, took, log=log, allowances=allowances)
    leaser = Leaser(
        wire, allowances, clock,
        fraction=lease_fraction, lease_s=lease_s, took=took["lease"], pending=lambda: log.waiting,
    )  # fmt: skip
    return Door(
        directory, counters, allowances, leaser, WorkerReports(wire, str(worker_slot), time.time_ns())
    )
