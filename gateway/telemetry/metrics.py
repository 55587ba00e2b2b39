"""All metrics: their names in a snapshot (with a prefix in a scrape), kinds, help texts and labels."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import add, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.core.histograms import COSTS_MAX, OTHER_MODELS
from gateway.feature import features


class Fact(NamedTuple):
    """One metric: a counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


# By kind: the name followed by its labels, and the help text.
_FACTS: Mapping[str, Mapping[str, str]] = {
    "counter": {
        "requests route status reason": "Requests answered, refusals included.",
        "tokens service kind": "Tokens of settled calls.",
        "units service": "Units of settled calls.",
        "credits service": "Credits of settled calls.",
        "cost service model currency": "What settled calls cost by the price book, in units of the currency.",
        "unpriced_calls service": "Settled calls with tokens or a tool that have no price of their own.",
        "budget_refusals reason unit interval": "Calls that budgets refused.",
        "budgets_exceeding": "Calls refused since they would take from too many budgets.",
        "budgets_shared": "Calls that share an account: no place was left for one of their own.",
        "unknown_usage family":
            "Settled calls whose report of use says something that is not documented here.",
        "untrue_reports upstream":
            "Settled calls whose report of use is contradicted by what passed, such as zeros.",
        "costs_apart upstream":
            "Settled calls whose reported cost and that by the price book are more than a tenth apart.",
        "fields_withheld upstream": "Header fields of calls that their upstream did not get.",
        "settlements_estimated": "Calls settled by the gateway's own count.",
        "settlements_failed": "Settlements that the counters did not acknowledge at once.",
        "upstream_failures upstream cause": "Upstream connections or answers that failed.",
        "upstream_answers upstream status": "Answers of upstreams, by what they say of the call.",
        "upstream_lookup_failures": "Look-ups of an upstream's name that failed.",
        "upstream_cooling_seconds upstream":
            "Seconds for which an upstream that had enough is left alone, added for each model.",
        "upstream_cooled_calls upstream": "Calls refused while their upstream is left alone.",
        "upstream_fallbacks upstream cause":
            "Calls of a model for which another upstream was asked, since this one failed.",
        "substituted_calls model": "Calls that a step of a budget sent as this model, which their callers had not asked for.",
        "steps_refused model": "Calls that a step of a budget sent as a model that refused them, sent again as asked.",
        "upstream_connections": "Connections made to upstreams.",
        "worker_restarts why": "Gateway workers started again by their supervisor.",
        "client_disconnects": "Clients that hung up before their answer was complete.",
        "connections_refused": "Client connections refused at the gateway's own limit.",
        "shed": "Calls and bodies refused because too much is kept already.",
        "refused_calls_untold": "Refused calls that are counted and have no row of the journal.",
        "refused_calls_uncounted": "Refused calls that no report counts: too many differ.",
        "auth_failures port reason": "Wrong credentials.",
        "spans outcome": "Spans of traces, sent to the collector or dropped.",
        "counters_exchanged": "Times Redis was found with older data under the same process.",
        "leases_left_out": "Calls of tenants without a lease, as their worker has as many as it keeps.",
        "admitted_locally": "Calls admitted on a lease while Redis was away.",
        "settlements_spooled": "Settlements the local log keeps for the counters.",
        "settlements_resubmitted": "Spooled settlements that the counters have by now.",
        "settlements_recovered": "Acknowledged settlements sent again after a loss.",
        "holds_restored": "Holds by the API that workers stored again since Redis had lost them.",
        "holds_forgotten": "Requests for holds by the API that Redis lost and nobody remembers.",
        "settlements_refused": "Settlements kept nowhere: their answers were cut.",
        "settlements_set_aside": "Settlements that a script refused: they stay in the local log.",
        "settlements_unmatched result":
            "Settlements that met no hold to settle, or accounts that held less than was given back.",
        "script_errors script": "Errors that scripts answered, outages left out.",
        "settlements_unlogged": "Acknowledged settlements the local log had no room for.",
        "settlements_dropped_early": "Acknowledged settlements a full local log kept too short.",
        "lost_events": "Movements Redis acknowledged, forgot, and nobody brought back.",
        "flush_rows table": "Rows written by the flusher.",
        "reclaimed_holds of": "Holds ended by their deadline.",
        "loop_failures loop of": "Passes of keepers' loops that failed, and items left.",
        "tls_handshake_failures port reason": "Connections whose TLS did not begin.",
        "admin_requests part status": "Answers of the admin port.",
        "postgresql_failures cause": "What failed at PostgreSQL.",
        "webhook_attempts outcome": "Attempts to deliver to webhooks, mails too.",
    },
    "gauge": {
        "requests_in_flight": "Requests that are being answered now.",
        "client_connections": "Connections of clients that are open.",
        "upstream_connections_open upstream state": "Connections to upstreams.",
        "upstream_credentials_missing upstream": "Workers without valid credentials for an upstream.",
        "cache_bytes cache": "Bytes that the caches of gateway workers hold, added for each worker.",
        "buffered_bytes": "Bytes of requests and answers kept for slow ends.",
        "upstream_accounts_empty upstream": "Accounts of an upstream that have no money left.",
        "issuers_unread issuer": "Workers that could not read the keys of an issuer.",
        "counters_unverified": "Workers whose Redis no keeper has verified since its last start.",
        "counters_breaker_open": "Workers that ask Redis nothing: it is away or stalls.",
        "redis_away server": "Whether a server of Redis is away, or does not answer.",
        "partitions_away": "Partitions that a worker cannot ask for, added for each worker.",
        "partitions_refusing reason": "Partitions whose Redis refuses calls.",
        "partitions_taking": "Partitions whose Redis takes calls, added for each worker.",
        "redis_slots_moving slot": "Commands that met a slot of a cluster while it is moved key by key.",
        "partitions_unverified": "Partitions that nobody verified, added for each worker.",
        "leases": "Tenants that have a lease for while Redis is away.",
        "spool_entries": "Settlements waiting in the local log for the counters.",
        "settlement_log_bytes": "Bytes of the workers' settlement logs.",
        "holds": "Holds of calls in flight.",
        "outbox_entries": "Movements not yet in PostgreSQL.",
        "outbox_oldest_seconds": "Age of the oldest movement not yet in PostgreSQL.",
        "waiting_entries": "Movements of accounts in quarantine, which wait outside the outbox.",
        "outbox_streams_broken": "Partitions whose outbox cannot be read; the others go on.",
        "partitions_flushed": "Partitions of the outbox that this keeper flushes.",
        "lost_events_pending": "Movements that Redis forgot and nobody has brought back yet.",
        "drift_tokens": "Sum of absolute differences in tokens at the last reconciliation.",
        "drift_credits": "Sum of absolute differences in credits at the last reconciliation.",
        "reconciliation_items kind": "What the last comparison of all accounts found.",
        "quarantined_accounts": "Accounts in quarantine until a person releases them.",
        "dead_letters": "Entries of the outbox that could not be read or stored.",
        "programs role version": "Gateway workers and keepers that run.",
        "programs_refused": "Programs that are too old for what is stored: they are not ready.",
        "time_zones_info edition": "Editions of the time zones that programs of this machine read, each 1.",
        "left_alone what": "What a newer version has stored and this one cannot read.",
        "webhook_messages_waiting": "Messages to webhooks, mails too, that are not delivered yet.",
        "webhook_messages_oldest_seconds": "Age of the oldest message to a webhook that waits.",
        "invoices_overdue": "Invoices that were to be paid before today and are not.",
        "invoices_left reason": "Organizations whose scheduled invoice was left.",
        "replica_lag_seconds": "By how much the replica that reads go to is behind.",
        "redis_memory_used_bytes": "Memory Redis uses.",
        "redis_memory_max_bytes": "Memory Redis may use; 0 is no limit.",
        "redis_files_failing file": "Servers of Redis that could not write a file of theirs.",
        "redis_replicas": "Replicas that follow Redis; of several servers the least.",
        "redis_replica_lag_seconds": "For how long a replica of Redis has said nothing.",
        "clock_offset_seconds of": "How far our clock is ahead of another's.",
        "certificate_expiry_timestamp_seconds peer": "Until when a certificate is valid.",
        "configuration_stale": "Processes that use an older configuration: the file is wrong.",
        "tls_certificate_stale port": "Processes whose certificate files cannot be used.",
        "open_files process": "Files and sockets a process has open; of workers the most.",
        "open_files_max process": "How many files and sockets a process may have open.",
        "workers": "Gateway workers that run on this machine.",
        "worker_report_age_seconds": "Age of the oldest report of a worker that runs.",
        "disk_free_bytes place": "Room on the disk of a directory.",
        "disk_size_bytes place": "Size of the disk of a directory.",
        "reconciliation_timestamp_seconds": "When counters and ledger were last compared.",
        "postgresql_connections state": "Connections of a keeper to PostgreSQL.",
        "postgresql_connections_max": "Connections a keeper may have to PostgreSQL.",
        "postgresql_waiting": "Who waits in a keeper for a connection to PostgreSQL.",
        "credential_expiry_timestamp_seconds kind": "When the next credential ends.",
    },
    "histogram": {
        "request_seconds": "Time from the request's first byte to the answer's last.",
        "overhead_seconds": "Time the gateway itself added to a request.",
        "upstream_seconds upstream": "Time from sending a request upstream to the answer's end.",
        "first_token_seconds": "Time from a request's first byte to the first of a stream.",
        "script_seconds script": "Time from sending a script to its answer.",
        "flush_seconds": "Time of one flush, from read to acknowledge.",
        "admin_request_seconds part": "Time of an answer of the admin port.",
        "loop_lag_seconds process": "How late a process' event loop turned.",
    },
}  # fmt: skip
LAST = "last_timestamp_seconds"
FACTS = (
    *(
        Fact(name.split()[0], kind, said, tuple(name.split()[1:]))
        for kind, some in _FACTS.items()
        for name, said in some.items()
    ),
    *(Fact(*metric) for feature in features() for metric in feature.metrics),
    Fact(LAST, "gauge", "When a counter that must wake somebody last grew.", ("event",)),
)
PREFIX = "tollkeeper_"
# Names of withheld header fields by upstream: they are in a snapshot for `doctor`, and no metric.
WITHHELD_NAMES = "withheld_names"
# Why Redis refuses calls, for `/readyz`: rows (server, cause, 1). They are no metric either.
REDIS_REASONS = "redis_reasons"
# Values of the current state: they end with their worker.
GAUGES = frozenset(
    {WITHHELD_NAMES, REDIS_REASONS, *(fact.name for fact in FACTS if fact.kind == "gauge")}
) - {LAST}

# Counters with an alert as soon as they grow. Prometheus does not see the growth of a counter whose first
# sample is above zero, so the alert uses the time of the last growth.
WAKING = (
    "worker_restarts", "counters_exchanged", "budgets_shared", "settlements_failed", "settlements_refused",
    "settlements_dropped_early", "settlements_unlogged", "connections_refused", "script_errors",
    "holds_forgotten",
)  # fmt: skip


# The metrics of all workers on this machine: stored in files, and merged so that they never decrease.
#
# Each worker replaces one small file; a scrape adds them up. The counts of an ended worker are added to
# `retired.json`, so that none is lost. A worker is identified by process id and start time, since ids are
# reused.

PUBLISH_INTERVAL_S = 1.0
RETIRED = "retired.json"
BESIDE = "-beside"
FILES_MAX = 1_000
# How to combine values that are not added: the earliest, the latest, the worst.
TOGETHER: dict[str, Callable[[Any, Any], Any]] = {
    "certificate_expiry_timestamp_seconds": min, LAST: max, "open_files": max, "open_files_max": min,
    "clock_offset_seconds": partial(max, key=abs), "redis_away": max, "partitions_refusing": max,
    "time_zones_info": max,
}  # fmt: skip

Snapshot = Mapping[str, Any]


class LastGrowth:
    """The times (Unix time) at which counters of `WAKING` last grew in this process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._before: dict[str, float] = {}
        self._at: dict[str, float] = dict.fromkeys(WAKING, 0.0)

    def added(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the Unix time at which each counter of `WAKING` last grew.

        A counter that never grew has the time 0.
        """
        for name in WAKING:
            value = snapshot.get(name, 0)
            total = sum(number for *_, number in value) if isinstance(value, list | tuple) else value
            if total > self._before.get(name, 0):
                self._at[name] = self._clock()
            self._before[name] = total
        return {**snapshot, LAST: [[name, at] for name, at in self._at.items()]}


async def publish(directory: Path, snapshot: Callable[[], Snapshot], *, beside: bool = False) -> None:
    """Write this process's snapshot to a file in `directory` every second, and once more when cancelled.

    With `beside`, the process is not counted as a gateway worker.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{os.getpid()}-{_start_time(os.getpid())}{BESIDE if beside else ''}.json"
    growth = LastGrowth()
    try:
        while True:
            with contextlib.suppress(OSError):  # a full disk must not stop the gateway
                _replace(path, msgspec.json.encode(growth.added(snapshot())))
            await asyncio.sleep(PUBLISH_INTERVAL_S)
    finally:
        with contextlib.suppress(OSError):
            _replace(path, msgspec.json.encode(growth.added(snapshot())))


def collect(directory: Path) -> dict[str, Any]:
    """Return the sum of the snapshots of all workers that ever wrote to a directory; empty if none did.

    Snapshots of ended workers are added to `retired.json`.
    """
    try:
        with _locked(directory):
            return _collect_workers(directory)
    except FileNotFoundError:
        return {}


def merge(left: Snapshot, right: Snapshot) -> dict[str, Any]:
    """Add two snapshots: numbers, rows by their labels, histograms by bucket.

    Histograms with different bounds (two versions at once) cannot be added: then only those of `right` are
    returned.
    """
    if left.get("bounds", right.get("bounds")) != right.get("bounds", left.get("bounds")):
        left = {name: value for name, value in left.items() if not isinstance(value, dict)}
    return {
        name: _merge_values(name, left[name], right[name])
        if name in left and name in right
        else left.get(name, right.get(name))
        for name in {**left, **right}
    }


def _merge_values(name: str, left: Any, right: Any) -> Any:
    """Return the merged value of one metric: sums, rows by label, or the newer value."""
    if name == "bounds":
        return right
    if isinstance(left, dict) and isinstance(right, dict):
        return merge(left, right)
    if isinstance(left, list) and isinstance(right, list):
        if all(isinstance(item, int | float) for item in (*left, *right)):
            return [sum(pair) for pair in zip(left, right, strict=True)] if len(left) == len(right) else right
        together = TOGETHER.get(name, add)
        rows: dict[tuple[Any, ...], Any] = {}
        for *labels, number in (*left, *right):
            before = rows.get(tuple(labels))
            rows[tuple(labels)] = number if before is None else together(before, number)
        return [[*labels, number] for labels, number in rows.items()]
    if isinstance(left, list | dict) or isinstance(right, list | dict):
        return right  # another version has other labels for it
    return left + right


def _collect_workers(directory: Path) -> dict[str, Any]:
    """Return the metrics of all workers together; fold those of ended workers into one file."""
    total: dict[str, Any] = {}
    retired = _read(directory / RETIRED) or {}
    folded: list[Path] = []
    oldest, workers = time.time(), 0
    for path in sorted(directory.glob("*-*.json"))[:FILES_MAX]:
        pid, _, started = path.stem.removesuffix(BESIDE).partition("-")
        alive = pid.isdigit() and _start_time(int(pid)) == started
        found = _read(path)
        if found is None:
            continue
        if alive:
            total = merge(total, found)
            if path.stem.endswith(BESIDE):
                continue
            workers += 1
            with contextlib.suppress(OSError):
                oldest = min(oldest, path.stat().st_mtime)
        else:
            counts = {name: value for name, value in found.items() if name not in GAUGES}
            retired = merge(retired, counts)
            folded.append(path)
    if folded:
        retired = _fold_models(retired)
        with contextlib.suppress(OSError):  # a full disk hides no numbers: they are added again next time
            _replace(directory / RETIRED, msgspec.json.encode(retired))
            for path in folded:
                path.unlink(missing_ok=True)
    if workers:
        # A worker with a hanging loop, or a full disk, writes no new file.
        total |= {"workers": workers, "worker_report_age_seconds": max(0.0, time.time() - oldest)}
    return merge(retired, total)


def _fold_models(retired: Snapshot) -> dict[str, Any]:
    """Return the sums of ended workers, with the costs of at most `COSTS_MAX` models by name.

    The costs of the cheapest models are added up as `OTHER_MODELS`.
    """
    rows = retired.get("cost")
    if not isinstance(rows, list):
        return {**retired}
    named = sorted([row for row in rows if row[1] != OTHER_MODELS], key=itemgetter(-1), reverse=True)
    beside = [row for row in rows if row[1] == OTHER_MODELS]
    beside += [[service, OTHER_MODELS, *more] for service, _, *more in named[COSTS_MAX:]]
    return {**retired, "cost": _merge_values("cost", named[:COSTS_MAX], beside)}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically. Each file has one writer at a time."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _start_time(pid: int) -> str:
    """Return the start time of a process as an opaque text; empty if it does not exist."""
    try:
        # Field 22 of /proc/PID/stat; the program's name before it may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except (OSError, IndexError):
        if Path("/proc/self").exists():
            return ""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "0"
    except OSError:
        return ""
    return "0"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
