"""What a gateway worker gives features, and what they give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.settlement_log.log import SettlementLog
from gateway.feature import features
from gateway.settings.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of a gateway worker that features may use."""

    settings: Settings
    wires: RedisConnections
    objects: ObjectOwners
    settlements: SettlementLog
    log: Callable[..., None]


def merged(part: str, *given: object) -> dict[Any, Any]:
    """Return what all features give as `part` of their records: `handlers`, `ports` and others, by key."""
    return {key: value for feature in features() for key, value in getattr(feature, part)(*given).items()}
