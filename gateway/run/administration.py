"""The keeper's process for people: the Admin API, the console, files, health and metrics.

Part of the composition root. No loop that stores rows runs here, so that requests of people never delay them.
The loops send their facts every two seconds (`admin_process.py`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from gateway import extras
from gateway.admin.application import build
from gateway.admin.console.screens import screens_off
from gateway.admin.http.answers import Answers
from gateway.admin.http.server import AdminListener, listen
from gateway.admin.ports import AdminPorts, BuiltIn
from gateway.background.loops import FailureTeller, Gauges
from gateway.background.timed.pusher import Pusher
from gateway.background.verifying.loss_counter import LossCounter
from gateway.background.verifying.unreadable import UnreadableAccounts
from gateway.core.accounts.hourly_budget import HourlyBudget
from gateway.core.credentials import peppers_of
from gateway.core.failures import Failures
from gateway.core.processes import Found
from gateway.counters.keeper.activity import Activity
from gateway.counters.keeper.client import UnsupportedVersions
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import in_words
from gateway.counters.redis.keys import partition_of
from gateway.counters.redis.script_errors import SCRIPT_ERRORS
from gateway.errors import CountersUnavailable, LoopsSilent, SettingError
from gateway.feature import features
from gateway.issuers.sign_in import SignIns
from gateway.local import heartbeat
from gateway.local import ports as sockets
from gateway.local.parent_pipe import ParentPipe
from gateway.ops import hints
from gateway.run.admin_process import FactsReader
from gateway.run.cached_lookup import CachedLookup
from gateway.run.health import (
    ACCOUNTS,
    CLOCK,
    CONFIGURATION,
    DISK,
    EVERY_PARTITION,
    OPEN_FILES,
    ROWS,
    STOPPING,
    disks,
    has_free_files,
)
from gateway.run.keeper_doors import KeeperDoors, store_over
from gateway.run.keeper_loops import keep_going
from gateway.run.keeper_parts import AdminParts
from gateway.run.keeper_settings import KeeperSettings
from gateway.run.letterhead import letterhead
from gateway.run.lifecycle import cancel, ended, stop_signal, until_stopped
from gateway.run.probes import Probe, unanswered
from gateway.run.process_vitals import ProcessVitals
from gateway.run.program_list import ProgramList
from gateway.run.reload import LOOK_S, watch
from gateway.run.replays import Replays
from gateway.run.tls_port import TlsPort
from gateway.settings.settings import Settings, reread
from gateway.telemetry import logs, metrics, scrape
from persistence import address
from persistence import engine as engines
from persistence.engine import PeoplePools, Replica
from persistence.keeper.definitions import Pushes
from persistence.keeper.sweeps import Losses
from persistence.keeper.verification import Accounts, LedgerReader
from persistence.resources import audit
from persistence.resources.console_queries import ConsoleQueries
from persistence.resources.integrity import ReconciliationResults

# The admin port of a keeper: its listener, and its built-in tokens, which are read again from their files.


# The settings of built-in tokens, each with its role.
TOKENS = {"admin_token": "admin", "readonly_token": "readonly"}


class AdminPort:
    """The admin port; `built_in` has the present tokens while `run` runs."""

    def __init__(self, settings: Settings, log: Callable[..., None], *, look_s: float = LOOK_S) -> None:
        self._log, self._look_s = log, look_s
        self.built_in = BuiltIn(settings.admin_token or None, settings.readonly_token or None)
        self._files = {name: path for name, path in settings.secret_files if name in TOKENS}
        tls = self._tls = TlsPort(settings, "admin", log, look_s=look_s)
        self.keep_certificate = tls.run
        self._listening: AdminListener | None = None
        self._answers, self.vitals = Answers(), ProcessVitals("admin")

    def prepare(self, ports: AdminPorts) -> Callable[[Sequence[socket.socket]], Coroutine[Any, Any, None]]:
        """Build the application; return a function that starts to serve it on bound sockets."""
        app = build(replace(ports, answers=self._answers))

        async def open_on(sockets: Sequence[socket.socket]) -> None:
            self._listening = await listen(app, sockets=sockets, wrapped=self._tls.wrapped)

        return open_on

    async def close(self) -> None:
        """Stop listening, after open requests are answered."""
        if self._listening is not None:
            await self._listening.stop()

    def snapshot(self) -> Mapping[str, Any]:
        return {**self._tls.snapshot(), **self._answers.snapshot(), **self.vitals.snapshot()}

    async def run(self) -> None:
        """Reload changed token files, and measure the event loop's delay, until cancelled."""
        tokens = watch(self._files.values, self._read_tokens, self._warn_kept, look_s=self._look_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(tokens)
            group.create_task(self.vitals.keep_looking())

    def _warn_kept(self, why: str) -> None:
        self._log("tokens are kept as they were", why=why, level="warning")

    async def _read_tokens(self) -> str:
        """Read the admin tokens again from their files; if one fails, keep all and return why, else ""."""
        now = {name: getattr(self.built_in, role) for name, role in TOKENS.items()}
        try:
            for name, path in self._files.items():
                now[name] = await asyncio.to_thread(reread, name, path)
            trouble = "both are the same" if now["admin_token"] == now["readonly_token"] else ""
        except SettingError as error:
            trouble = error.message
        if trouble:
            return trouble
        for name, role in TOKENS.items():
            if now[name] != getattr(self.built_in, role):
                setattr(self.built_in, role, now[name])
                self._log("token read again from its file", setting=name)
        return ""


# The identity providers by which people sign in to the console, from the settings of a keeper.


class CurrentSignIns:
    """The sign-in of the settings: `now` is None if the keeper was started without providers."""

    def __init__(self, settings: Settings, log: Callable[..., None]) -> None:
        wanted, self._log = settings.sign_in, log
        self._heard = wanted
        self.now = SignIns(wanted, time.monotonic, time.time, log) if wanted.providers else None

    def renew(self, settings: Settings) -> None:
        """Apply changed identity providers of the settings; a changed console URL needs a restart."""
        wanted, now = settings.sign_in, self.now
        if now is not None:
            now.renew_providers(wanted)
        is_new, self._heard = wanted != self._heard, wanted
        if is_new and wanted.providers and (now is None or now.console_url != wanted.console_url):
            self._log("a restart is needed", setting="sign_in", level="warning")


APPLICATION = "tollkeeper-admin"
# The loops and gateways have priority when cores are scarce: this process gets a third of their weight.
NICENESS = 5
# How long to wait for Redis before serving people, which works without it, too.
CONNECTED_S_MAX = 3.0
STALE, COMPARED, VERIFIED = "configuration_stale", "reconciliation_timestamp_seconds", "counters_verified"


# Open requests have ten seconds.
PEOPLE_END_S_MAX = 12.0


async def run_administration(settings: Settings, pipe: ParentPipe) -> None:
    """Run the process for people (Admin API and console) until its keeper stops it by a signal."""
    os.nice(NICENESS)
    stop, administration = stop_signal(), Administration(settings, pipe)
    try:
        await until_stopped(administration.start(), stop)
    finally:
        await ended(administration.stop, PEOPLE_END_S_MAX, logs.logger("tollkeeper.admin"))


class Administration:
    """Everything that people use. `pipe` receives facts of the loops, and later settings."""

    def __init__(self, settings: Settings, pipe: ParentPipe) -> None:
        address.be_known_as(APPLICATION)
        loop, self._loops_begun = asyncio.get_running_loop(), asyncio.Event()
        self._settings, self._log = settings, logs.logger("tollkeeper.admin")
        self._facts = FactsReader(
            pipe,
            first=lambda: loop.call_soon_threadsafe(self._loops_begun.set),
            others=lambda line: loop.call_soon_threadsafe(self._later.hear, line),
        )
        self._sign_ins = CurrentSignIns(settings, self._log)
        self._later = KeeperSettings(settings, None, self._log, self._sign_ins.renew)
        parts = AdminParts(settings=settings, later=self._later)
        self._routes = [routes for feature in features() if (routes := feature.routes(parts)) is not None]
        pools = self._pools = PeoplePools.create(settings.url_file("database_url"))
        self._doors = doors = KeeperDoors(settings, self._log, UnsupportedVersions())
        replica = Replica.of(settings.url_file("database_read_url"), pools.staff)
        self._programs = ProgramList(doors.wires, doors.counters, pools.staff, registers=False)
        doors.fences.admit = self._programs.admit
        self._store = store_over(
            settings, letterhead(settings), doors.counters, pools.staff,
            organizations=pools.organizations, replica=replica, programs=self._programs,
        )  # fmt: skip
        self._pusher = Pusher(Pushes(pools.staff), doors.counters, isolation=doors.isolation)
        self._reconciler, self._account_closing = doors.comparers(
            Accounts(pools.staff), ReconciliationResults(pools.staff, partition_of)
        )
        self._failures = Failures(time.monotonic)
        self._teller = FailureTeller(
            "admin", self._failures, self._log, partial(audit.note_failures, pools.staff)
        )
        # A write acknowledged here is evidence too; the loops count its loss, since they know partitions at
        # rest.
        self._losses = LossCounter(Losses(pools.staff), (doors.counters.moved,), self._log, at_rest=_nowhere)
        self._gauges = Gauges((self._losses.count, *([replica.figures] if replica is not None else [])))
        self._write_trouble = ""
        self._database = Probe(lambda: self._takes_writes(pools.probe))
        self._admin_port, self._growth = AdminPort(settings, self._log), metrics.LastGrowth()
        self._snapshot, self._ready = CachedLookup(self._look), CachedLookup(self._look_ready)
        self._written_of: Mapping[str, Any] = {}
        self._written: dict[str, tuple[bytes, str]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._stops = False

    async def start(self, own: Sequence[socket.socket] = ()) -> None:
        """Start the loops, then serve on the sockets `own`, or without any on those of the supervisor."""
        doors, port = self._doors, self._admin_port
        doors.wires.start()
        loops = {
            "fence": doors.fences.keep_looking,
            "admin port": port.run,
            "certificates": port.keep_certificate,
            "settings": self._later.keep,
        }
        self._loops = keep_going(
            loops, self._log, doors.isolation, (self._teller.loop(), self._gauges.loop())
        )
        listen_on = port.prepare(self._ports())
        await doors.wires.connected_within(CONNECTED_S_MAX)
        with suppress(CountersUnavailable):
            await doors.counters.newest_write()  # known from here on, also while Redis is away
        await self._database.answers()  # so that the first request waits for no connection
        await self._loops_begun.wait()
        await listen_on(own or sockets.supervisor_port()[0])
        heartbeat.say_ready()

    async def stop(self) -> None:
        """Stop listening, after open requests are answered."""
        self._stops = True
        await self._admin_port.close()
        await cancel(self._loops)
        for routes in self._routes:
            await routes.aclose()
        await self._doors.wires.close()
        await self._store.dispose()
        await self._pools.dispose()

    def _ports(self) -> AdminPorts:
        """Return what the Admin API and the console may use."""
        settings, pools = self._settings, self._pools
        return AdminPorts(
            store=self._store,
            pusher=self._pusher,
            counters=self._doors.counters,
            account_closing=self._account_closing,
            reconciler=self._reconciler,
            unreadable=UnreadableAccounts(
                LedgerReader(pools.staff, partition_of),
                lambda partition: KeeperCounters(
                    self._doors.wires.of(partition),
                    everybodys=self._doors.wires,
                    left_alone=self._doors.counters.left_alone,
                ),
                self._programs.running,
                partition_of,
            ),
            activity=Activity(self._doors.wires, time.time),
            programs=self._programs.report,
            peppers=peppers_of(settings),
            live=self._live,
            ready=self._is_ready,
            metrics=self._metrics,
            snapshot=self._snapshot.now,
            figures=ConsoleQueries(pools.staff, partition_of, organizations=pools.organizations),
            failures=self._failures,
            built_in=self._admin_port.built_in,
            routes=[routes.mount for routes in self._routes if routes.mount is not None],
            files=[routes.files for routes in self._routes if routes.files is not None],
            off=screens_off(settings),
            checkout=next((routes.checkout for routes in self._routes if routes.checkout is not None), None),
            sign_ins=self._sign_ins.now,
            replay=Replays(
                settings.url_file("database_url").url, self._log, self._account_closing.await_stored
            ).run,
            version=extras.version(),
            gateway_url=settings.calls_url,
            budget=HourlyBudget(
                settings.organization_cpu_s_an_hour,
                settings.organization_rows_an_hour,
                settings.organization_work_s_an_hour,
            ),
        )

    async def _live(self) -> tuple[bool, Found]:
        return True, {}

    async def _is_ready(self) -> tuple[bool, Found]:
        return (False, {"keeper": STOPPING}) if self._stops else await self._ready.now()

    async def _takes_writes(self, probe: engines.Engine) -> bool:
        self._write_trouble = "it does not answer"  # until it does
        why = await engines.write_trouble(probe)
        # An error of PostgreSQL may name users, and everybody may ask whether this process is ready.
        hint = hints.postgresql_hint(why, sqlstate=why.partition(" ")[0])
        self._write_trouble = why if why in {"", engines.READS_ONLY} else f"it cannot be used: {hint}"
        return not why

    async def _look_ready(self) -> tuple[bool, Found]:
        """Return whether the Admin API is ready, and the state of each part that it depends on."""
        wires = self._doors.wires
        database, silent = await asyncio.gather(self._database.answers(), unanswered(wires.wires))
        redis, away = len(silent) < len(wires.wires), in_words({**silent, **wires.missing}.items())
        try:
            well = self._facts.last().well
            is_last = not (await self._snapshot.now()).get(STALE, 0)
        except LoopsSilent:
            well, is_last = {}, False
        parts = {"postgresql": database, "redis": redis, VERIFIED: well.get(VERIFIED, False)}
        ours, every_well = (
            has_free_files(self._admin_port.vitals.snapshot()),
            well.get(EVERY_PARTITION, False),
        )
        # If Redis refuses calls, people still need this port: it is reported, and the port stays ready.
        return all(parts.values()), {
            **parts,
            "postgresql": database or self._write_trouble or False,
            "redis": well.get("redis", True) if redis else away,
            EVERY_PARTITION: away or every_well,
            **{name: well.get(name, True) for name in (ROWS, DISK, CLOCK, ACCOUNTS)},
            OPEN_FILES: ours and well.get(OPEN_FILES, True),
            CONFIGURATION: is_last,
        }

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that an `Accept` field asks for, and their content type.

        Each format of one snapshot is rendered once.
        """
        snapshot, kind = await self._snapshot.now(), scrape.content_type_of(accept)
        if snapshot is not self._written_of:
            self._written_of, self._written = snapshot, {}
        if kind not in self._written:
            self._written[kind] = scrape.render(kind, snapshot)
        return self._written[kind]

    async def _look(self) -> Mapping[str, Any]:
        """Return the metrics of this process, of the machine and of the loops."""
        facts = self._facts.last().snapshot
        found = metrics.merge(await asyncio.to_thread(self._of_machine), facts)
        ours = {
            **self._admin_port.snapshot(), **self._doors.isolation.figures(), **self._later.snapshot(),
            **self._growth.added(
                {"counters_exchanged": self._doors.fences.noticed, "script_errors": SCRIPT_ERRORS.snapshot()}
            ),
            "auth_failures": self._failures.rows("admin"), "lost_events": self._losses.lost,
        }  # fmt: skip
        found = metrics.merge(metrics.merge(found, ours), self._gauges.latest)
        compared = self._reconciler.figures()
        # The latest comparison counts: the loop's, or one that a person requested.
        return found | compared if compared.get(COMPARED, 0) > found.get(COMPARED, 0) else found

    def _of_machine(self) -> Mapping[str, Any]:
        """Return metrics of this machine's gateways and disks; reads files, so it must run in a thread."""
        return metrics.collect(self._settings.metrics_dir) | disks(self._settings)


async def _nowhere() -> frozenset[int]:
    return frozenset()
