"""The keeper, composed: the flusher and every other loop of the clock, and the Admin API.

Part of the composition root, apart from `app.py` so that a gateway worker never loads
PostgreSQL's libraries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from gateway.admin.invoices.missing_glyphs import missing_glyphs
from gateway.admin.ports import AdminPorts
from gateway.admin.smtp import Mailer
from gateway.background.flushing.flusher import Failed, Flushed
from gateway.background.flushing.losses import LossCounter
from gateway.background.flushing.refused import RefusedDrain
from gateway.background.flushing.share import Share
from gateway.background.isolation import Isolation
from gateway.background.timed.clock_changes import ClockChanges
from gateway.background.timed.closing import AccountClosing
from gateway.background.timed.expirer import Expirer
from gateway.background.timed.failures import FailureTeller
from gateway.background.timed.news import NewsWatch
from gateway.background.timed.price_list import PriceList
from gateway.background.timed.pusher import Pusher
from gateway.background.timed.sweeper import Sweeper
from gateway.background.timed.webhooks import WebhookDeliveries
from gateway.background.verifying.gauges import Gauges
from gateway.background.verifying.reconciler import Reconciler
from gateway.core.accounts.administration import Row
from gateway.core.failures import Failures
from gateway.core.histogram import SECONDS, Histogram
from gateway.core.integrity.verified import Verified, summary
from gateway.core.model import PARTITIONS
from gateway.core.peppers import peppers_of
from gateway.counters.fences import Fences
from gateway.counters.keeper.activity import Activity
from gateway.counters.keeper.left_alone import LeftAlone
from gateway.counters.keeper.moves import Moves
from gateway.counters.keeper.presence import Presence
from gateway.counters.keeper.refused import RefusedStream
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connecting import wires_to
from gateway.counters.redis.keys import partition_of
from gateway.counters.redis.wire import Wire
from gateway.run import servers
from gateway.run.admin_port import AdminPort
from gateway.run.away import tell_of_redis
from gateway.run.billing_loops import billing_loops, invoicing_loops
from gateway.run.calling_out import outgoing
from gateway.run.collecting import Collecting
from gateway.run.invoice_letterhead import invoice_renderer
from gateway.run.keeper_settings import KeeperSettings, Source
from gateway.run.kept_servers import KeptServers, Shared
from gateway.run.looping import keep_going
from gateway.run.old_months import drop_old_months, wait_for_archive
from gateway.run.readiness import Probe, all_answer, one_answers
from gateway.run.running import Running
from gateway.run.starting import reached, redis_reached
from gateway.run.stopping import cancel
from gateway.run.supervisor.ops import CONFIGURATION, DISK, EVERY_PARTITION, OPEN_FILES
from gateway.run.vitals import has_files_left
from gateway.settings.settings import Settings
from gateway.telemetry import logs, metrics
from gateway.telemetry import snapshot_files as tallies
from persistence import engine as engines
from persistence import pool
from persistence.away import is_away
from persistence.billing.allocations import Allocations
from persistence.glyphs import Glyphs
from persistence.keeper import budget_uses, handovers, usage_feed, watch
from persistence.keeper.clock_changes import ToldClocks
from persistence.keeper.deliveries import Deliveries
from persistence.keeper.handovers import HandoverQueue
from persistence.keeper.losses import Losses
from persistence.keeper.notices import Notices
from persistence.keeper.pushes import Pushes
from persistence.keeper.reconciliations import Accounts
from persistence.keeper.shares import Shares
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.usage_feed import FeedQueue
from persistence.ledger.checkpoints import Checkpoints
from persistence.ledger.refused import RefusedJournal
from persistence.replica import Replica
from persistence.resources import audit
from persistence.resources.figures import Figures
from persistence.resources.prices import PriceTable
from persistence.resources.quarantine import Quarantines
from persistence.resources.reconciliation_results import Results
from persistence.schedule import Schedule
from persistence.schema import partitions, roles
from persistence.store import Store

REDIS_CALL_S, PARTITIONS_AHEAD_S = 10.0, 3600.0
# How long people wait for the bundled prices of a new database; they come later all the same.
PRICED_S_MAX = 20.0
ACCOUNTS_SAID_MAX = 20


class Keeper:
    """Everything the clock and people do."""

    def __init__(self, settings: Settings, source: Source = None) -> None:
        self._settings, self._invoice_renderer = settings, invoice_renderer(settings)
        log = self._log = logs.logger("tollkeeper.keeper")
        later = self._later = KeeperSettings(settings, source, log)
        self._collecting = Collecting(settings, later)
        self._pools = engines.Pools.create(settings.url_file("database_url"), settings.invoices_at_once)
        self._engine, self._fences = self._pools.loops, Fences(str(uuid4()), time.monotonic, self._log)
        self._wires = wires_to(
            parse_url(settings.url_file("redis_url"), settings.redis_files),
            lambda where: Wire(
                where, time.monotonic, call_s=REDIS_CALL_S, stall_s=REDIS_CALL_S, refuses_eviction=True
            ),
            begun=self._fences.guard, call_s=REDIS_CALL_S,
        )  # fmt: skip
        isolation = self._isolation = Isolation(self._log, is_away)
        self._counters = KeeperCounters(self._wires, left_alone=LeftAlone(self._log))
        self._moves, accounts = Moves(self._wires), Accounts(self._engine)
        self._quarantines, sweeps = Quarantines(self._engine), Sweeps(self._engine)
        self._pusher = Pusher(Pushes(self._pools.people), self._counters, isolation=isolation)
        told, moved = ToldClocks(self._engine, partition_of), self._counters.moved
        shared = Shared(
            settings, self._engine, self._wires, self._fences, self._counters, moved, self._log,
            first=self._moves.take_up, flushed=self._flushed, verified=self._verified,
            went_back=self._went_back, refuse=self._refuse, isolation=isolation,
            share=Share(Shares(self._pools.share, settings.admin_port)),
        )  # fmt: skip
        self._servers = KeptServers(self._wires, shared)
        self._sweeper, journal = Sweeper(sweeps, self._counters), RefusedJournal(self._engine)
        self._refused = RefusedDrain(RefusedStream(self._counters), journal, isolation=isolation)
        private, head = settings.webhook_private_addresses, self._invoice_renderer.letterhead
        mailer = Mailer.of(later.saying("smtp_url"), settings.smtp_from, settings.smtp_ca_file)
        store_over = partial(
            Store, partition_of=partition_of, private_addresses=private, mail_allowed=bool(mailer),
            letterhead=head, replica=Replica.of(settings.url_file("database_read_url"), self._engine),
            glyphs=Glyphs(missing_glyphs),
        )  # fmt: skip
        self._store, self._billing_store = map(store_over, (self._pools.people, self._pools.billing))
        self._outgoing, now = outgoing(later.proxies, private=private), partial(datetime.now, UTC)
        self._news_watch, waiting = NewsWatch(Notices(self._engine), now), Deliveries(self._engine)
        self._webhook_deliveries = WebhookDeliveries(
            waiting, self._outgoing, now, mailer=mailer, isolation=isolation
        )
        grants, self._failures = Allocations(self._pools.billing), Failures(time.monotonic)
        self._expirer = Expirer(grants, self._counters, partition_of, isolation=isolation)
        results, note = Results(self._engine, partition_of), partial(audit.note_failures, self._engine)
        self._reconciler = Reconciler(self._counters, accounts, results, now, partition_of=partition_of)
        self._account_closing = AccountClosing(self._counters, accounts, self._reconciler)
        self._clock_changes = ClockChanges(told, now, isolation=isolation)
        self._losses = LossCounter(Losses(self._engine), (moved,), self._log, at_rest=self._servers.at_rest)
        self._teller = FailureTeller("admin", self._failures, self._log, note)
        self._price_list = PriceList(PriceTable(self._engine), self._read_price_list, self._priced)
        self.programs = Running(self._wires, self._counters, self._engine)
        self._gauges = self._looked_up()
        self._growth = tallies.LastGrowth()
        self._database = Probe(lambda: engines.answers(self._engine))
        self._redis = Probe(lambda: one_answers(self._wires.wires))
        self._every_redis = Probe(lambda: all_answer(self._wires.wires))
        self._flush_rows: dict[str, int] = {}
        self._admin_port, self._flush_seconds = AdminPort(settings, self._log), Histogram()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, stop: asyncio.Event) -> bool:
        """Wait for both databases, start every loop, then listen; False where it is to stop meanwhile.

        StartError where a database does not answer in time, or is not fit for this program.
        """
        self._wires.start()
        settings, log, isolation = self._settings, self._log, self._isolation
        unread = partial(self._counters.left_alone.count, "account")
        if not await redis_reached(self._wires, settings.start_wait_s, stop, log):
            return False
        trouble = partial(engines.trouble, self._engine)
        if not await reached("PostgreSQL", trouble, wait_s=settings.start_wait_s, stop=stop, log=log):
            return False
        await roles.refuse_unfit(self._engine)
        self._servers.start()
        billing = self._pools.billing
        schedule = Schedule(billing, self._billing_store, settings.invoice_grace_hours)
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "fence": self._fences.keep_looking,
            "redis": partial(tell_of_redis, self._wires, log),
            "moves": self._moves.keep_taking_up,
            "servers": self._servers.run,
            "presence": Presence(
                self._wires, version("tollkeeper"), peppers_of(settings).ids, unread
            ).keep_saying,
            "programs": self.programs.keep_saying,
            "schema": partial(self.programs.keep_to_schema, stop),
            "sweeper": self._sweeper.run,
            "refused": self._refused.run,
            "expirer": self._expirer.run,
            **billing_loops(settings, self._billing_store, Checkpoints(billing), log, isolation),
            **invoicing_loops(settings, schedule, self._account_closing, log),
            **self._collecting.loops(
                HandoverQueue(self._engine, self._billing_store), FeedQueue(self._engine), log, isolation
            ),
            "clock changes": self._clock_changes.run,
            "reconciler": self._reconciler.run,
            "news": self._news_watch.run,
            "webhooks": self._webhook_deliveries.run,
            "watcher": self._gauges.run,
            "failures": self._teller.run,
            "partitions": self._keep_partitions,
            "prices": self._price_list.run,
            "admin port": self._admin_port.run,
            "certificates": self._admin_port.keep_certificate,
            "settings": self._later.keep,
        }
        self._loops = keep_going(loops, log, isolation)
        with suppress(TimeoutError):
            async with asyncio.timeout(PRICED_S_MAX):
                await self._price_list.there.wait()
        self._log("keeper started", port=await self._admin_port.open(self._ports()))
        return True

    async def stop(self) -> None:
        """Stop people first, then the loops; what waits in the outbox is flushed last."""
        await self._admin_port.close()
        await cancel(self._loops)
        may_write = not self.programs.outgrown
        if self._loops and may_write:
            await self._refused.finish()
        await self._servers.stop(flushes=may_write)
        await self._outgoing.aclose()
        await self._collecting.aclose()
        await self.programs.leave()
        await self._wires.close()
        await self._store.dispose()
        await self._pools.dispose()
        if self._admin_port.is_open:
            self._log("keeper stopped")

    def _ports(self) -> AdminPorts:
        settings = self._settings
        return AdminPorts(
            store=self._store,
            pusher=self._pusher,
            counters=self._counters,
            account_closing=self._account_closing,
            reconciler=self._reconciler,
            invoice_renderer=self._invoice_renderer,
            activity=Activity(self._wires, time.time),
            programs=self.programs.report,
            peppers=peppers_of(settings),
            live=self._live,
            ready=self._ready,
            metrics=self._metrics,
            snapshot=self._snapshot,
            figures=Figures(self._pools.people, partition_of),
            failures=self._failures,
            built_in=self._admin_port.built_in,
            read_collected=self._collecting.read,
            sign_ins=self._later.sign_ins.now,
            look_up_returned=self._collecting.look_up,
            version=version("tollkeeper"),
        )

    def _looked_up(self) -> Gauges:
        settings, replica = self._settings, self._store.replica
        return Gauges((
            partial(servers.memory, self._counters), partial(servers.certificates, settings, self._wires),
            partial(watch.gauges, self._engine, replica, settings.invoice_schedule),
            self._losses.count, self.programs.gauges, partial(wait_for_archive, self._engine, settings),
        ))  # fmt: skip

    def _flushed(self, outcome: Flushed | Failed) -> None:
        if isinstance(outcome, Failed):
            said = {"error": str(outcome.error), "failures": outcome.failures}
            if outcome.is_news:
                self._log("flush failed", level="warning", **said)
            return
        self._flush_seconds.observe(outcome.seconds)
        report = outcome.report
        for table, rows in report.rows.items():
            self._flush_rows[table] = self._flush_rows.get(table, 0) + rows
        for account in report.quarantined:
            self._log("account quarantined", account=account, level="error")
        if report.dead_letters:
            self._log("dead letters", count=report.dead_letters, level="error")

    def _verified(self, done: list[Verified]) -> None:
        level = "warning" if any(each.rebuilt or each.repushed for each in done) else "info"
        self._log("counters verified", **summary(done), level=level)

    def _went_back(self, accounts: list[str]) -> None:
        shown = accounts[:ACCOUNTS_SAID_MAX]
        self._log("postgresql is older than it was", quarantined=len(accounts), accounts=shown, level="error")

    async def _refuse(self, tenants: Mapping[int, Sequence[int]]) -> None:
        if accounts := await self._quarantines.refuse(tenants):
            self._log("too much waits, calls refused", accounts=accounts[:ACCOUNTS_SAID_MAX], level="error")

    def _read_price_list(self) -> Sequence[Row]:
        from gateway.run.bundled_prices import library, read_bundle  # noqa: PLC0415  # large, once in a life

        bundle = read_bundle()
        self._log("bundled prices read", library=library(), left_out=len(set(bundle.left_out)))
        return bundle.rows

    def _priced(self, added: int) -> None:
        self._log("bundled prices put in", prices=added)

    async def _keep_partitions(self) -> None:
        while True:
            await partitions.ensure(self._engine, by=self._settings.partitions_by)
            await drop_old_months(self._engine, self._settings, self._log)
            await budget_uses.forget(self._engine)
            await usage_feed.forget(self._engine)
            await handovers.forget(self._engine, self._settings.stripe_events_keep_days)
            await asyncio.sleep(PARTITIONS_AHEAD_S)

    async def _live(self) -> tuple[bool, Mapping[str, object]]:
        return True, {}

    async def _ready(self) -> tuple[bool, Mapping[str, object]]:
        probes, verified = (self._database, self._redis, self._every_redis), self._servers.verified
        database, redis, every = await asyncio.gather(*(one.answers() for one in probes))
        parts = {"postgresql": database, "redis": redis, "counters_verified": verified > 0}
        port = self._admin_port
        beside = {EVERY_PARTITION: every and verified == PARTITIONS, DISK: not port.disk.full}
        beside[OPEN_FILES] = has_files_left(port.vitals.snapshot())
        return all(parts.values()), {**parts, **beside, CONFIGURATION: await self._later.is_last()}

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        return metrics.render(accept, await self._snapshot())

    async def _snapshot(self) -> Mapping[str, Any]:
        snapshot = await asyncio.to_thread(tallies.collect, self._settings.metrics_dir)
        snapshot.setdefault("bounds", list(SECONDS))
        snapshot["flush_rows"] = [[table, rows] for table, rows in sorted(self._flush_rows.items())]
        snapshot["flush_seconds"] = self._flush_seconds.snapshot()
        snapshot |= {**self._reconciler.figures(), "reclaimed_holds": self._servers.reclaimed}
        snapshot = tallies.merge(snapshot, {"auth_failures": self._failures.rows("admin")})
        snapshot |= {"lost_events": self._losses.lost, "partitions_flushed": self._servers.share.size}
        snapshot = tallies.merge(snapshot | self._isolation.figures(), self._counters.left_alone.figures())
        if (quarantined := self._servers.quarantined) is not None:
            snapshot["quarantined_accounts"] = quarantined
        snapshot = tallies.merge(snapshot, self._gauges.latest)
        snapshot = tallies.merge(snapshot, {**self._admin_port.snapshot(), **self._later.snapshot()})
        snapshot |= {**pool.figures(self._engine), "webhook_attempts": self._webhook_deliveries.figures()}
        exchanged = self._growth.added({"counters_exchanged": self._fences.noticed})
        snapshot = tallies.merge(snapshot, exchanged)
        return {**snapshot, **await self._servers.waiting()}
