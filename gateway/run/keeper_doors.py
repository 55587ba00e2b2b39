"""Shared by both processes of a keeper: access to Redis, the store, changing settings, the list of programs.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from gateway.background.loops import Agenda, Isolation, Loop
from gateway.background.timed.invoicing import AccountCloser
from gateway.background.verifying.reconciler import Reconciler
from gateway.core.accounts.administration import Row
from gateway.core.billing.document import Letterhead
from gateway.core.capabilities import wait_reason
from gateway.core.layout import FIRST, LAYOUT
from gateway.core.network import Proxies
from gateway.core.processes import ProgramReport, StoredVersions, TakeUp, counted
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.client import Client, UnsupportedVersions
from gateway.counters.keeper.status import PROGRAMS_MAX, SILENT_S_MAX, ProgramRegistry
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import RedisConnections, wires_to
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from gateway.feature import features
from gateway.local.parent_pipe import ParentPipe
from gateway.run.lifecycle import forever, this_program
from gateway.run.reload import (
    KEEPERS_RENEWABLE,
    KEPT_BY_KEEPERS,
    LOOK_S,
    Renewal,
    SettingsListener,
    SettingsUpdates,
    keep_renewing,
    watch_credentials,
)
from gateway.settings.settings import Settings
from gateway.telemetry import logs
from persistence.engine import READS_ONLY, Engine, Replica, reads_only
from persistence.entity import WriteRules
from persistence.error_mapping import code_of, is_away
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import ReconciliationResults
from persistence.schema.database import outgrown, status
from persistence.schema.standing import NEEDED
from persistence.store import FontCoverage, Store, unlisted

if TYPE_CHECKING:
    from gateway.admin.ports import Checkout, Mount, MountFiles

REDIS_CALL_S = 10.0
# The longest time that a keeper runs on after a migration that it does not fit.
SCHEMA_LOOK_S = 5.0
LAYOUT_LOOK_S = 1.0


class KeeperDoors:
    """A keeper process' access to Redis; `left_alone` counts values of other versions."""

    def __init__(self, settings: Settings, log: Callable[..., None], left_alone: UnsupportedVersions) -> None:
        self.fences = HistoryGuards(str(uuid4()), time.monotonic, log, vouches=True)
        self.wires = wires_to(
            parse_url(settings.url_file("redis_url"), settings.redis_files),
            lambda where: RedisConnection(
                where, time.monotonic, call_s=REDIS_CALL_S, stall_s=REDIS_CALL_S, refuses_eviction=True
            ),
            begun=self.fences.guard, call_s=REDIS_CALL_S,
        )  # fmt: skip
        self.isolation = Isolation(log, is_away, code=code_of)
        self.counters = KeeperCounters(self.wires, left_alone=left_alone)

    def comparers(
        self, accounts: Accounts, results: ReconciliationResults
    ) -> tuple[Reconciler, AccountCloser]:
        """Return the reconciler of counters with the ledger, and the closer of accounts."""
        now = partial(datetime.now, UTC)
        reconciler = Reconciler(self.counters, accounts, results, now, partition_of=partition_of)
        return reconciler, AccountCloser(self.counters, accounts, reconciler)


def store_over(
    settings: Settings, letterhead: Letterhead, counters: KeeperCounters, engine: Engine, *,
    organizations: Engine | None = None, replica: Replica | None = None, programs: ProgramList | None = None,
) -> Store:  # fmt: skip
    """Return the store of the Admin API and background loops over PostgreSQL.

    `letterhead` is the sender on invoices, `organizations` an engine for reads within one organization, and
    `replica` the read replica, if any. Without `programs`, no write may use a capability.
    """
    missing = next((find for feature in features() if (find := feature.missing_glyphs()) is not None), None)
    rules = WriteRules(
        private_addresses=settings.webhook_private_addresses, mail_allowed=bool(settings.smtp_url),
        mail_asks=bool(settings.links_url),
    )  # fmt: skip
    return Store(
        engine, partition_of, rules=rules, letterhead=letterhead,
        replica=replica, glyphs=None if missing is None else FontCoverage(missing),
        organizations=organizations, newest_write=counters.newest_write,
        wait_reason=unlisted if programs is None else programs.wait_reason,
    )  # fmt: skip


# Settings of a keeper that may change while it runs: its supervisor sends them, or it reads them itself.
#
# Both of its processes have them: the loops' process sends them to the one for people.


# The source of later settings, if any.
Source = ParentPipe | Callable[[], Settings] | None


class KeeperSettings:
    """The settings of a keeper that may change while it runs: sign-in, proxies, secrets, log level.

    `renew` applies new settings elsewhere first; if it raises, nothing is changed.
    """

    def __init__(
        self, settings: Settings, source: Source, log: Callable[..., None],
        renew: Callable[[Settings], None], *, look_s: float = LOOK_S,
    ) -> None:  # fmt: skip
        self._renew_others = renew
        self._running, self._look_s = settings, look_s
        self._source, self._log = source, log
        read = source if callable(source) else lambda: settings
        self._now = Renewal(settings, read, KEEPERS_RENEWABLE, KEPT_BY_KEEPERS)
        self._sent = SettingsUpdates(self._renew, log)

    def hear(self, line: bytes) -> None:
        """Apply the settings in a line from the parent process."""
        self._sent.hear(line)

    async def keep(self) -> None:
        """Apply new settings until cancelled: from the parent process, or without one from a changed file.

        SIGHUP makes a keeper without a parent read the file at once.
        """
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        if isinstance(self._source, ParentPipe):
            self._source.listen(lambda line: loop.call_soon_threadsafe(self.hear, line))
        if not callable(self._source):
            await asked.wait()
            return
        if not sys.stdin.isatty():  # in a terminal SIGHUP means that it was closed
            loop.add_signal_handler(signal.SIGHUP, asked.set)
        told = SettingsListener(self._taken, self._log, partial(self._log, level="warning"))
        async with asyncio.TaskGroup() as both:
            both.create_task(keep_renewing(self._now, asked, told))
            both.create_task(watch_credentials(self._now, told, look_s=self._look_s))

    def proxies(self) -> Proxies:
        return self._running.proxies

    def saying(self, name: str) -> Callable[[], str]:
        """Return a function that returns the present value of the secret setting `name`."""
        return lambda: str(getattr(self._running, name))

    def snapshot(self) -> Mapping[str, Any]:
        return {"configuration_stale": int(bool(self._now.wrong) or self._sent.is_stale)}

    async def _taken(self) -> None:
        self._sent.take(self._now.running)
        self._now.running = self._running  # the former ones, if the new ones were refused

    def _renew(self, settings: Settings) -> None:
        self._renew_others(settings)
        self._running = settings
        logs.configure(settings.log_level)


# Starts a keeper's loops: each runs again after a failure, and its failures are counted.


Run = Callable[[], Awaitable[None]]


def keep_going(
    loops: Mapping[str, Run], log: Callable[..., None], isolation: Isolation, rows: Iterable[Loop] = ()
) -> list[asyncio.Task[None]]:
    """Start `loops` and `rows` as tasks, whose failures `isolation` counts; return the tasks."""
    loops = {**{row.name: partial(row.run, isolation) for row in rows}, **loops}
    isolation.watch(loops)
    failed = isolation.pass_failed
    return [asyncio.create_task(forever(name, run, log, failed=failed)) for name, run in loops.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperParts:
    """The parts of a keeper that features may use. `later` has the settings that may change."""

    settings: Settings
    later: KeeperSettings
    engine: Engine
    store: Store
    counters: Client
    isolation: Isolation
    log: Callable[..., None]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A feature's loops and tasks, which run until cancelled, and its gauges for metrics."""

    loops: Sequence[Loop] = ()
    tasks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    # Runs with the housekeeping, once an hour.
    hourly: Sequence[Callable[[], Awaitable[object]]] = ()
    gauges: Sequence[Callable[[], Awaitable[Mapping[str, object]]]] = ()
    aclose: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """The parts of a keeper's process for people that features may use."""

    settings: Settings
    later: KeeperSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """A feature's routes of the admin port, its files for the console, and its checkout for customers.

    `aclose` is called when the process stops.
    """

    mount: Mount | None = None
    files: MountFiles | None = None
    checkout: Checkout | None = None
    aclose: Callable[[], Awaitable[None]] = _nothing


# The interval of checks whether PostgreSQL accepts writes.
READS_ONLY_LOOK_S = 5.0


async def tell_of_postgresql(
    engine: Engine, log: Callable[..., None], look_s: float = READS_ONLY_LOOK_S
) -> None:
    """Log when PostgreSQL begins to refuse writes, as after a failover, and when it accepts them again."""
    before = False
    while True:
        now = await reads_only(engine)
        if now and not before:
            log("postgresql is read-only", why=READS_ONLY, level="error")
        elif before and not now:
            log("postgresql is read-only no more")
        before = now
        await asyncio.sleep(look_s)


class ProgramList(ProgramRegistry):
    """The list of running processes, and the checks of a keeper on versions."""

    def __init__(self, wires: RedisConnections, counters: Client, engine: Engine) -> None:
        super().__init__(wires, this_program("keeper", NEEDED))
        self.outgrown = ""
        self.takes_up_layout = False
        self._counters, self._engine = counters, engine

    async def keep_looking(
        self, workers: Callable[[], Awaitable[int]], say: Callable[..., None], look_s: float = LAYOUT_LOOK_S
    ) -> None:
        """Check at intervals whether all processes can read the newest Redis layout; log with `say`.

        `workers` returns the number of gateway workers.
        """
        take_up, said = TakeUp(self.said, SILENT_S_MAX, PROGRAMS_MAX), ""
        while True:
            seen, count = None, 0
            with suppress(CountersUnavailable):
                seen, count = await self.read(), await workers()
            # Once it is taken up, no older program starts; a Redis that loses its data loses the list too.
            self.takes_up_layout |= take_up.look(time.monotonic(), seen, count)
            if take_up.why_not != said:
                said = take_up.why_not
                say("layout may be taken up" if not said else "layout waits", layout=LAYOUT, why=said)
            await asyncio.sleep(look_s)

    async def keep_to_schema(
        self, stop: asyncio.Event, writes: Agenda, look_s: float = SCHEMA_LOOK_S
    ) -> None:
        """Set `stop` when the schema becomes too new for this keeper, and store the reason in `outgrown`.

        `writes` tells when PostgreSQL was written; the check follows a write, at most each `look_s` seconds.
        """
        seen = 0
        while not self.outgrown:
            await asyncio.sleep(look_s)
            await writes.until_written(seen)
            seen = writes.written()
            self.outgrown = await outgrown(self._engine)
        stop.set()
        await asyncio.Event().wait()  # until it is cancelled

    async def report(self) -> Row:
        """Return the answer of `GET /programs`; CountersUnavailable if Redis does not answer."""
        seen, stored = await self.read(), await self._stored()
        return {
            "layout": stored.layout,
            "schema_version": stored.schema or None,
            "runs_from": stored.runs_from or None,
            "items": [_row(one, stored) for one in seen],
        }

    async def gauges(self) -> Mapping[str, object]:
        seen, stored = await self.read(), await self._stored()
        refused = sum(bool(stored.refused(one.program)) for one in seen)
        return {"programs": counted(seen), "programs_refused": refused}

    async def wait_reason(self, capability: str) -> str:
        """Return why a capability cannot be used yet, or "" if it can.

        Raise CountersUnavailable if Redis does not answer.
        """
        seen, layouts = await self.read(), await self._layouts()
        return wait_reason(capability, [one.program for one in seen], min(layouts))

    async def _stored(self) -> StoredVersions:
        """Return the layout version of the data in Redis, and the schema version in PostgreSQL."""
        layouts, at = await self._layouts(), await status(self._engine)
        return StoredVersions(max(layouts), at.version or "", at.runs_from)

    async def _layouts(self) -> list[int]:
        """Return the layout in which each partition is written; 0 if it has none."""
        markers = (await self._counters.ask_all(b"GET", keys.marker)).values()
        numbers = (raw[0] if isinstance(raw, bytes) and raw else 0 for raw in markers)
        return [number if number >= FIRST else 0 for number in numbers]


def _row(one: ProgramReport, stored: StoredVersions) -> Row:
    said = asdict(one.program)
    return {
        **said,
        "schema_version": said.pop("schema") or None,
        "started_at": datetime.fromtimestamp(one.program.started_at, UTC),
        "said_at": datetime.fromtimestamp(one.said_at, UTC),
        "refused": stored.refused(one.program) or None,
    }
