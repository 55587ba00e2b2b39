"""Capacity: calls wait for what their upstream is stated to take, which organizations share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.features.record import Feature, lazy, load

if TYPE_CHECKING:
    from gateway.run.worker_parts import WorkerParts


def _ports(parts: WorkerParts) -> Mapping[str, Any]:
    from gateway.features.capacity.accounts import CapacityAccounts  # of gateways alone
    from gateway.features.capacity.queues import CapacityQueues

    return {"limiter": partial(CapacityQueues, CapacityAccounts(parts.wires))}


FEATURE = Feature(
    name="capacity",
    tables=("share",),
    metrics=(
        ("capacity_refused_calls", "counter", "Calls refused as their upstream had no room.", ("upstream",)),
        ("capacity_waiting", "gauge", "Calls that wait for their upstream's capacity.", ("upstream",)),
        (
            "capacity_wait_seconds", "histogram", "How long calls waited that found no room at once.",
            ("upstream",),
        ),
    ),
    resources=lazy("gateway.features.capacity.resources:RESOURCES"),
    subjects=lambda: {"shares": load("persistence.capacity:SHARES")},
    screens=(
        {
            "heading": "Catalogue", "name": "shares", "title": "Shares of capacity", "one": "share",
            "columns": (
                "upstream", "model", "organization_id", "tenant_id", "weight", "guaranteed", "priority",
            ),
            "empty": "No share yet: callers share an upstream's capacity alike.",
            "newest_first": False, "is_staffs": True,
        },
    ),
    ports=_ports,
)  # fmt: skip
