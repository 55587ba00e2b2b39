"""Runs: budgets that callers open, which travel with their calls."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.features.record import Feature, lazy, load

if TYPE_CHECKING:
    from gateway.http.ports import Answerer
    from gateway.run.worker_parts import WorkerParts


def _handlers() -> Mapping[str, Answerer]:
    from gateway.features.runs.gateway import run  # of gateways alone
    from gateway.http.routing.routes import RUN_PATH

    return {RUN_PATH: run}


def _ports(parts: WorkerParts) -> Mapping[str, Any]:
    from gateway.features.runs.opening import Runs

    return {"runs": Runs(parts.wires, time.monotonic, time.time, os.urandom)}


FEATURE = Feature(
    name="runs",
    tables=("run",),
    resources=lazy("gateway.features.runs.resources:RESOURCES"),
    subjects=lambda: {"runs": load("persistence.resources.journal:RUNS")},
    screens=(
        {
            "heading": "Spend", "name": "runs", "title": "Runs", "one": "run",
            "columns": (
                "id", "organization_id", "tenant_id", "parent_id", "status", "used", "max", "calls",
                "expires_at",
            ),
            "empty": "No run yet. Callers open them with their calls.", "has_page": False,
            "next_step": ("See the calls", "/calls"),
        },
    ),
    handlers=_handlers,
    ports=_ports,
)  # fmt: skip
