"""What a gateway worker gives features, and what they give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.settlement_log.log import SettlementLog
from gateway.feature import features
from gateway.settings.settings import Settings

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of a gateway worker that features may use."""

    settings: Settings
    wires: RedisConnections
    objects: ObjectOwners
    settlements: SettlementLog
    log: Callable[..., None]


def merged(part: Callable[[Any], Mapping[K, V]]) -> dict[K, V]:
    """Merge what `part` returns for each feature, by key."""
    return {key: value for feature in features() for key, value in part(feature).items()}
