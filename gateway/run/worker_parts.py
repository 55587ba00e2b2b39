"""The parts of a gateway worker that features may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.settlement_log.log import SettlementLog
from gateway.settings.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of a gateway worker that features may use."""

    settings: Settings
    wires: RedisConnections
    objects: ObjectOwners
    settlements: SettlementLog
    log: Callable[..., None]
