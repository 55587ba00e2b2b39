"""Compose a gateway worker: create its doors, pass them to each other, start and stop them in order.

Nothing is decided here. A gateway worker uses http and counters. The loops of a keeper, composed in
`run/keeper.py`, use counters, background and persistence. Its process for people, composed in
`run/administration.py`, uses counters, persistence and admin.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from gateway import extras
from gateway.background.loops import FailureTeller
from gateway.core.accounts.refusals import Refusals
from gateway.core.calls.call import UsageBounds
from gateway.core.calls.estimate import Estimator
from gateway.core.credentials import peppers_of
from gateway.core.failures import Failures
from gateway.core.histograms import Histogram
from gateway.counters.admission.caller_holds import CallerHolds
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.lessons import SharedLessons
from gateway.counters.admission.model_sessions import ModelSessions
from gateway.counters.admission.refused_calls import RefusedCalls
from gateway.counters.admission.usage import Usages
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.activity import Activity
from gateway.counters.keeper.moves import has_current_history
from gateway.counters.keeper.program_registry import ProgramRegistry
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import RedisConnections, wires_to
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.script_errors import SCRIPT_ERRORS
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.counters.settlement_log.log import SettlementLog
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.errors import StartError
from gateway.http.ports import Ports
from gateway.http.server.server import DataPlane
from gateway.http.tally import Tally
from gateway.local.heartbeat import keep_reporting
from gateway.local.parent_pipe import ParentPipe
from gateway.outbound.cloud import first_tried, keep_renewed
from gateway.run import gateway_worker, memory
from gateway.run.gateway_worker import Door, GatewayPort, make_door
from gateway.run.health import RedisState, tell_of_redis
from gateway.run.lifecycle import all_within, cancel, forever, stop_signal, this_program
from gateway.run.memory import give_back_memory
from gateway.run.model_lists import keep_listed
from gateway.run.process_vitals import limits_here
from gateway.run.reaching import redis_reached
from gateway.run.worker_parts import WorkerParts, merged
from gateway.settings.origins import origins_of
from gateway.settings.settings import Settings
from gateway.telemetry import logs, metrics

if TYPE_CHECKING:
    from gateway.telemetry.traces import Exporter

# A thread that reads a large body gives way to the event loop after so many seconds.
SWITCH_S = 0.0005
# A request creates no reference cycles, so the garbage collector can run seldom.
YOUNG_OBJECTS_MAX = 50_000
FIRST_CATALOGUE_S_MAX = FIRST_CREDENTIALS_S_MAX = 5.0
# Errors of a Redis that runs and will not accept this worker until it is configured differently.
REFUSED_BY_REDIS = ("WRONGPASS", "NOAUTH", "NOPERM", "maxmemory-policy")
SCRIPTS = ("reserve", "settle", "extend", "lease")
# After the last settlement a worker reports what only it knows and returns its leases within this time.
LEAVING_S_MAX = 1.5

Log = Callable[..., None]


async def run_gateway(settings: Settings, parent_pipe: ParentPipe | None = None) -> None:
    """Run one gateway worker until SIGTERM or SIGINT, then finish the calls in flight."""
    memory.give_back_large_blocks()
    await serve_calls(settings, stop_signal(), parent_pipe, loaded=_collect_seldom)


async def serve_calls(
    settings: Settings, stop: asyncio.Event, parent_pipe: ParentPipe | None = None,
    *, loaded: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Run a gateway worker until `stop` is set; call `loaded` before the first client is accepted."""
    log = logs.logger("tollkeeper.gateway")
    fences = HistoryGuards(str(uuid4()), time.monotonic, log)
    wires = _wires(settings, fences)
    programs = ProgramRegistry(wires, this_program("gateway"))
    fences.admit = programs.admit
    wires.start()
    if not await _wait_for_redis(wires, programs, settings, stop, log):
        await wires.close()
        return
    settlements, scripts = _settlement_log(settings, log), {verb: Histogram() for verb in SCRIPTS}
    door = make_door(settings, wires, settlements, scripts, log)
    directory, counters, leaser = door.directory, door.counters, door.leaser
    tally, failures, refusals = Tally(), Failures(time.monotonic), Refusals(time.time)
    ports = _ports(settings, door, wires, settlements, (tally, failures, refusals), log)
    refused_calls, activity = RefusedCalls(wires, refusals, str(uuid4())), Activity(wires, time.time)
    plane, exporter = _plane(settings, ports)
    lessons = SharedLessons(wires, ports.estimator)
    port = GatewayPort(settings, plane, door.tokens, log, door.directory.sell)
    resubmitter = Resubmitter(
        wires, settlements, time.monotonic, log,
        report=door.worker_reports.report, announce=fences.announce,
        restore=partial(_restore, ports, door.holds), recall=door.holds.recall,
        others=merged(lambda feature: feature.log_handlers(ports)),
        in_flight=lambda moment: plane.serves_since(moment) or not leaser.is_current,
    )  # fmt: skip
    redis_state = RedisState(wires, log, adjust=directory.adjust)
    # What the parent process is told besides, without a disk between the two.
    state: list[Callable[[], metrics.Snapshot]] = [
        lambda: _partitions(wires, directory, resubmitter.newer), redis_state.snapshot, port.state,
    ]  # fmt: skip
    snapshots: list[Callable[[], metrics.Snapshot]] = [
        lambda: _snapshot(tally, scripts, plane.certificate_ends),
        lambda: _log_snapshot(settlements, resubmitter),
        lambda: {"counters_exchanged": fences.noticed},
        lambda: {"holds_restored": door.holds.restored, "holds_forgotten": door.holds.forgotten},
        lambda: {"auth_failures": failures.rows("gateway"), "budgets_shared": counters.crowded.calls},
        refusals.snapshot,
        port.snapshot,
        *state,
        door.allowances.snapshot,
        lambda: {"cache_bytes": door.caches.sizes()},
        *([exporter.snapshot] if exporter is not None else []),
    ]
    background = [
        asyncio.create_task(forever("fence", fences.keep_looking, log)),
        asyncio.create_task(forever("catalogue", directory.keep_fresh, log)),
        asyncio.create_task(forever("cooling", door.circuit_breaker.keep_sharing, log)),
        asyncio.create_task(forever("empty accounts", door.empty.keep_sharing, log)),
        asyncio.create_task(forever("lessons", lessons.keep_sharing, log)),
        asyncio.create_task(forever("redis", partial(tell_of_redis, wires, log), log)),
        asyncio.create_task(forever("redis state", redis_state.keep_asking, log)),
        asyncio.create_task(forever("lag", port.keep_looking, log)),
        asyncio.create_task(forever("extend", counters.keep_extending, log)),
        asyncio.create_task(forever("lease", leaser.keep, log)),
        asyncio.create_task(forever("activity", lambda: activity.keep_publishing(tally.take_busy), log)),
        asyncio.create_task(forever("refused", refused_calls.keep_sending, log)),
        asyncio.create_task(forever("programs", programs.keep_saying, log)),
        asyncio.create_task(forever("failures", FailureTeller("gateway", failures, log).loop().run, log)),
        asyncio.create_task(forever("holds", door.holds.keep_noting, log)),
        asyncio.create_task(forever("resubmission", resubmitter.run, log)),
        asyncio.create_task(forever("port", port.keep, log)),
        asyncio.create_task(forever("reports", lambda: keep_reporting(lambda: _report(state)), log)),
        *(
            asyncio.create_task(forever(name, loop, log))
            for name, loop in merged(lambda feature: feature.worker_loops(plane, ports)).items()
        ),
        asyncio.create_task(forever("credentials", lambda: keep_renewed(plane.signers, log), log)),
        asyncio.create_task(forever("model lists", lambda: keep_listed(plane.listed, log), log)),
        asyncio.create_task(metrics.publish(settings.metrics_dir, lambda: _merged(snapshots))),
    ]
    await _know_services(directory, wires, log)
    await first_tried(plane.signers, FIRST_CREDENTIALS_S_MAX)
    loaded()
    await port.open(parent_pipe)
    await stop.wait()
    until = time.monotonic() + settings.shutdown_grace_s
    await plane.drain(settings.shutdown_grace_s)
    await settlements.sent(until)  # a disk may end with its pod
    await cancel(background)
    spans = [asyncio.to_thread(exporter.stop, LEAVING_S_MAX)] if exporter is not None else []
    leaving = [refused_calls.leave(), programs.leave(), door.leaser.give_back(), *spans]
    await all_within(LEAVING_S_MAX, leaving, log)
    await _end(door, settlements, wires, log)


def _wires(settings: Settings, fences: HistoryGuards) -> RedisConnections:
    """Return connections, not opened yet, to Redis or to each primary of a cluster.

    With `fences`, a connection to a server with another history of data is refused.
    """
    address, call_s = parse_url(settings.url_file("redis_url"), settings.redis_files), settings.redis_wait_s
    return wires_to(
        address, lambda where: RedisConnection(where, time.monotonic, call_s=call_s, hears=HEARD,
        refuses_eviction=True),
        begun=fences.guard, has_current_history=has_current_history, call_s=call_s,
    )  # fmt: skip


async def _wait_for_redis(
    wires: RedisConnections, programs: ProgramRegistry, settings: Settings, stop: asyncio.Event, log: Log
) -> bool:
    """Wait for Redis for at most `start_wait_s`, then start without it, so that a roll-out goes on.

    A worker that waits for `programs` starts at once, to say so.

    Return False if `stop` was set meanwhile. Raise StartError if Redis refuses this worker or would evict
    counters: then a roll-out with a wrong password stops at its first gateway.
    """
    try:
        return await redis_reached(wires, settings.start_wait_s, stop, log, lambda: programs.waits_for)
    except StartError as error:
        if any(code in error.message for code in REFUSED_BY_REDIS):
            raise
        log("serving without Redis", why=error.message, answers=503, level="error")
        return True


async def _know_services(directory: Directory, wires: RedisConnections, log: Log) -> None:
    """Wait a few seconds for the catalogue of services. Without it, log a warning and serve all the same."""
    if not await directory.first_catalogue(FIRST_CATALOGUE_S_MAX):
        unverified = not directory.verified and "no keeper has verified them yet"
        why = wires.trouble or unverified or "the catalogue of services is not there: a keeper writes it"
        log("serving without counters", redis_connected=wires.connected, why=why, level="warning")


def _collect_seldom() -> None:
    sys.setswitchinterval(SWITCH_S)
    give_back_memory()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)


async def _end(door: Door, settlements: SettlementLog, wires: RedisConnections, log: Log) -> None:
    """Store pending settlements and close connections. A disk or Redis that hangs does not delay the end."""
    door.holds.note_again()  # for the next worker
    waiting = settlements.waiting
    closed = await settlements.close()
    if closed and not settlements.left_behind:
        # All is settled, so a rebuild after a loss of Redis need not wait for this worker.
        await all_within(LEAVING_S_MAX, [door.worker_reports.leave()], log)
    await wires.close()
    log("gateway stopped", settlements_waiting=waiting)
    if not closed:
        os._exit(0)  # the thread that waits for the disk would be joined


async def _restore(ports: Ports, holds: CallerHolds, partitions: Collection[int]) -> None:
    """Store the runs, holds and jobs that this worker knows again in partitions whose data Redis has lost."""
    await ports.runs.restore(partitions)
    await holds.restore(partitions)
    if ports.jobs is not None:
        await ports.jobs.restore(partitions)


def _ports(  # noqa: PLR0917  # what they are made of
    settings: Settings,
    door: Door,
    wires: RedisConnections,
    settlements: SettlementLog,
    counts: tuple[Tally, Failures, Refusals],
    log: Log,
) -> Ports:
    """Return the ports (interfaces) of the data plane, made of `door` and the tallies in `counts`."""
    tally, failures, refusals = counts
    parts = WorkerParts(
        settings=settings, wires=wires, objects=door.objects, settlements=settlements, log=log
    )
    estimator = Estimator(tokenizer=gateway_worker.load_tokenizer(), quantile=settings.hold_quantile)
    door.caches.join("estimates", estimator.known)
    return Ports(
        directory=door.directory,
        tokens=door.tokens,
        counters=door.counters,
        objects=door.objects,
        sessions=ModelSessions(wires, time.time),
        holds=door.holds,
        estimator=estimator,
        tally=tally,
        usage=Usages(wires, time.monotonic, door.directory.budgets_of).usage_of,
        log=log,
        failures=failures,
        refusals=refusals,
        circuit_breaker=door.circuit_breaker.table,
        empty=door.empty.table,
        seconds=time.monotonic,
        access_log=settings.access_log or settings.log_level == "debug",
        refuse_unpriced=settings.unpriced_models == "refuse",
        earlier_peppers=peppers_of(settings).earlier,
        answers=merged(lambda feature: feature.answers(settings, log)),
        handlers=merged(lambda feature: feature.handlers()),
        caches=door.caches,
        **merged(lambda feature: feature.ports(parts)),
    )


def _settlement_log(settings: Settings, log: Log) -> SettlementLog:
    """Open and return the worker's settlement log. A worker that cannot write it does not start."""
    return SettlementLog(
        settings.settlements_dir,
        keep_s=settings.settlement_log_s,
        bytes_max=settings.settlement_log_bytes_max,
        clock=time.monotonic,
        wall=time.time,
        say=log,
    )


def _plane(settings: Settings, ports: Ports) -> tuple[DataPlane, Exporter | None]:
    """Return the data plane. If the settings ask for traces, start and return an exporter too."""
    plane_of, exporter = DataPlane, None
    if settings.tracing is not None:
        from gateway.http.server.traced import TracedPlane  # noqa: PLC0415  # a worker without traces loads none of it
        from gateway.telemetry.traces import (  # noqa: PLC0415  # loaded where it is needed
            Exporter,
            Recorder,
        )

        plane_of, exporter = TracedPlane, Exporter(settings.tracing, extras.version(), ports.log)
        exporter.start()
        tracer = Recorder(settings.tracing, exporter.offer, ports.seconds, time.time, os.urandom)
        ports = replace(ports, tracer=tracer)
    bounds, pepper = UsageBounds(usage_tokens_max=settings.usage_tokens_max), settings.key_pepper.encode()
    plane = plane_of(
        ports, settings.routes, settings.upstreams, limits_here(settings), pepper, settings.services,
        bounds=bounds, origins=origins_of(settings.cors_origins), workloads=settings.workloads,
        models=settings.models,
    )  # fmt: skip
    return plane, exporter


def _snapshot(
    tally: Tally,
    scripts: dict[str, Histogram],
    certificate_ends: list[tuple[str, float]],
) -> metrics.Snapshot:
    return {
        **tally.snapshot(),
        "script_errors": SCRIPT_ERRORS.snapshot(),
        "settlements_unmatched": SETTLE_RESULTS.snapshot(),
        "script_seconds": {verb: histogram.snapshot() for verb, histogram in scripts.items()},
        "certificate_expiry_timestamp_seconds": certificate_ends,
    }


def _partitions(wires: RedisConnections, directory: Directory, newer: frozenset[int]) -> metrics.Snapshot:
    return {
        "counters_breaker_open": int(wires.away > 0),
        "counters_unverified": int(not directory.verified),
        "partitions_away": wires.away,
        "partitions_unverified": len(directory.unverified | newer),
        "left_alone": [*directory.unread, ("account", SCRIPT_ERRORS.unreadable_accounts())],
    }


def _merged(snapshots: Iterable[Callable[[], metrics.Snapshot]]) -> metrics.Snapshot:
    return {name: value for snapshot in snapshots for name, value in snapshot().items()}


def _report(state: Iterable[Callable[[], metrics.Snapshot]]) -> bytes:
    return msgspec.json.encode(_merged(state))


def _log_snapshot(settlements: SettlementLog, resubmitter: Resubmitter) -> metrics.Snapshot:
    counts = settlements.counts
    return {
        "spool_entries": settlements.waiting,
        "settlement_log_bytes": settlements.size,
        "settlements_spooled": counts.spooled,
        "settlements_refused": counts.refused,
        "settlements_unlogged": counts.unlogged,
        "settlements_dropped_early": counts.dropped_early,
        "settlements_set_aside": resubmitter.set_aside,
        "settlements_resubmitted": resubmitter.resubmitted,
        "settlements_recovered": resubmitter.recovered,
    }
