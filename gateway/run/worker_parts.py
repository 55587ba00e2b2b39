"""What a gateway worker gives features, and what they give it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.settlement_log.log import SettlementLog
from gateway.feature import features
from gateway.http.ports import Answerer, Ports, refuse_later
from gateway.http.server.server import DataPlane
from gateway.settings.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of a gateway worker that features may use."""

    settings: Settings
    wires: RedisConnections
    objects: ObjectOwners
    settlements: SettlementLog
    log: Callable[..., None]


def handlers() -> dict[str, Answerer]:
    """Return the features' handlers of gateway paths, by path."""
    return {path: answer for feature in features() for path, answer in feature.handlers().items()}


def log_handlers(ports: Ports) -> dict[int, Callable[[bytes], Awaitable[None]]]:
    """Return the features' handlers of records in the settlement log, by kind of record."""
    return {kind: resend for feature in features() for kind, resend in feature.log_handlers(ports).items()}


def worker_loops(plane: DataPlane, ports: Ports) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return the features' loops of a gateway worker, by name."""
    return {name: run for feature in features() for name, run in feature.worker_loops(plane, ports).items()}


def run_later() -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
    """Return the function that starts calls that their upstream completes later; it may only refuse."""
    starts = [feature.run_later for feature in features() if feature.run_later is not None]
    return starts[0] if starts else refuse_later


def socket_opener() -> Answerer | None:
    """Return the function that serves WebSocket clients, if a feature has one."""
    return next((feature.open_socket for feature in features() if feature.open_socket is not None), None)
