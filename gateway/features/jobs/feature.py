"""Jobs: batches, videos and background responses, which an upstream completes later, are charged then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from gateway.features.record import Feature, lazy, load

if TYPE_CHECKING:
    from gateway.features.jobs.polling import Jobs
    from gateway.http.ports import Answerer, Ports
    from gateway.http.server.server import DataPlane
    from gateway.run.keeper_parts import KeeperParts, Work
    from gateway.run.worker_parts import WorkerParts


def _handlers() -> Mapping[str, Answerer]:
    from gateway.core.families.registry import (  # of gateways alone
        BATCH_COLLECTIONS,
        BATCH_MAKERS,
        OF_JOBS,
        REMAKERS,
    )
    from gateway.features.jobs import gateway

    return {
        **dict.fromkeys(OF_JOBS, gateway.tell_job),
        **dict.fromkeys(BATCH_COLLECTIONS, gateway.create_batch),
        **dict.fromkeys(BATCH_MAKERS, gateway.create_batch),
        **dict.fromkeys(REMAKERS, gateway.remake),
    }


def _ports(parts: WorkerParts) -> Mapping[str, Any]:
    from gateway.features.jobs.gateway import run_later
    from gateway.features.jobs.polling import Jobs
    from gateway.features.jobs.stored import StoredJobs

    stored = StoredJobs(parts.wires, parts.objects, parts.settlements)
    return {"jobs": Jobs(stored, parts.settings, parts.log), "run_later": run_later}


def _worker_loops(plane: DataPlane, ports: Ports) -> Mapping[str, Callable[[], Awaitable[None]]]:
    jobs = cast("Jobs", ports.jobs)
    jobs.serve(plane, ports)
    return {"jobs": jobs.keep_looking}


def _log_handlers(ports: Ports) -> Mapping[int, Callable[[bytes], Awaitable[None]]]:
    from gateway.counters.settlement_log.log import JOB

    return {JOB: cast("Jobs", ports.jobs).resend}


def _work(parts: KeeperParts) -> Work:
    from gateway.features.jobs.rows import JobsDrain, ListedJobs  # of keepers alone
    from gateway.run.keeper_parts import Work
    from persistence.jobs import JobRows, count_open_jobs

    drain = JobsDrain(ListedJobs(parts.counters), JobRows(parts.engine), parts.isolation)
    return Work(loops=(drain.loop(),), gauges=(partial(count_open_jobs, parts.engine),))


FEATURE = Feature(
    name="jobs",
    tables=("job",),
    metrics=(
        ("jobs_open", "gauge", "Jobs of upstreams that are not settled yet.", ()),
        ("jobs_oldest_seconds", "gauge", "Age of the oldest job that is not settled.", ()),
    ),
    resources=lazy("gateway.features.jobs.resources:RESOURCES"),
    subjects=lambda: {"jobs": load("persistence.jobs:JOBS")},
    screens=(
        {
            "heading": "Spend", "name": "jobs", "title": "Jobs", "one": "job",
            "columns": (
                "id", "organization_id", "kind", "model", "status", "lines", "held", "cost", "created_at",
            ),
            "empty": "No job yet. Callers make batches.", "has_page": False,
            "next_step": ("See the calls", "/calls"),
        },
    ),
    handlers=_handlers,
    ports=_ports,
    worker_loops=_worker_loops,
    log_handlers=_log_handlers,
    work=_work,
)  # fmt: skip
