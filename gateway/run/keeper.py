"""Composes a keeper: the flusher and all other background loops. Another process serves people.

Part of the composition root, apart from `app.py`, so that a gateway worker never loads PostgreSQL's
libraries. The code of the Admin API is not loaded here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from gateway import extras
from gateway.background.flushing.flusher import FailedBatch, FlushedBatch, KeeperShare
from gateway.background.flushing.late import RefusedDrain
from gateway.background.loops import Agenda, Gauges, Loop, call
from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.background.timed.price_list import PriceList
from gateway.background.timed.pusher import Pusher
from gateway.background.verifying.loss_counter import LossCounter
from gateway.core.accounts.administration import Row
from gateway.core.credentials import peppers_of
from gateway.core.histograms import SECONDS, Histogram
from gateway.core.integrity.recovery import VerificationResult, summary
from gateway.core.model import PARTITIONS
from gateway.counters.admission.empty_accounts import read_empty_accounts
from gateway.counters.keeper.client import UnsupportedVersions
from gateway.counters.keeper.moves import SlotMoves
from gateway.counters.keeper.outbox import RefusedStream
from gateway.counters.keeper.presence import Presence
from gateway.counters.keeper.unstored_rows import UnstoredRows, say_unstored
from gateway.counters.redis.cluster import Shards
from gateway.counters.redis.keys import partition_of
from gateway.counters.redis.script_errors import SCRIPT_ERRORS
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.errors import CountersUnavailable, StartError
from gateway.feature import features
from gateway.ops import hints
from gateway.outbound.posting import Outgoing
from gateway.run import shard_loops
from gateway.run.admin_process import AdminProcess, LoopFacts
from gateway.run.expirer import expirer
from gateway.run.health import (
    ACCOUNTS,
    EVERY_PARTITION,
    PARTITIONS_WAIT,
    ROWS,
    DiskWatch,
    RedisState,
    check_accounts,
    of_process,
    tell_of_redis,
)
from gateway.run.keeper_doors import KeeperDoors, store_over
from gateway.run.keeper_loops import keep_going, watch_read_only
from gateway.run.keeper_parts import KeeperParts
from gateway.run.keeper_settings import KeeperSettings, Source
from gateway.run.letterhead import letterhead
from gateway.run.lifecycle import cancel, ended, stop_signal
from gateway.run.people_process import Loading
from gateway.run.process_vitals import ProcessVitals
from gateway.run.program_list import ProgramList
from gateway.run.reaching import redis_reached, wait_until_reached
from gateway.run.shard_loops import AllShardLoops, LoopContext
from gateway.run.timed_loops import (
    billing_loops,
    clock_changes,
    empty_accounts_loop,
    invoicing_loops,
    month_ends,
    news_loops,
    sweeper,
)
from gateway.run.tls_port import check_files
from gateway.settings.settings import Settings
from gateway.telemetry import logs, metrics
from persistence import address
from persistence import engine as engines
from persistence.billing.credit_balances import Allocations
from persistence.engine import Engine
from persistence.keeper import forgetting, gauges, verification
from persistence.keeper.agenda import AgendaReader
from persistence.keeper.definitions import ClockReports, Pushes
from persistence.keeper.news import Deliveries, Notices
from persistence.keeper.shares import KeeperShares
from persistence.keeper.sweeps import Losses, Sweeps
from persistence.keeper.verification import Accounts
from persistence.ledger.checkpoints import Checkpoints
from persistence.ledger.redrive import RefusedJournal
from persistence.queries import SlowQuery
from persistence.resources.integrity import Quarantines, ReconciliationResults
from persistence.resources.prices import PriceTable
from persistence.schedule import Schedule
from persistence.schema import partitions, privileges


# Housekeeping: a keeper creates tables of months ahead and drops old ones, as configured.
def housekeeping(
    engine: Engine, settings: Settings, log: Callable[..., None], *more: Callable[[], Awaitable[object]]
) -> Loop:
    """Return the keeper's loop that creates table partitions of coming months and deletes old data.

    It also runs the functions `more`.
    """
    return Loop("partitions", 3_600.0, (
        call(lambda: partitions.ensure_partitions(engine, by=settings.partitions_by)),
        call(lambda: drop_old_months(engine, settings, log)),
        call(lambda: verification.forget_budget_uses(engine)),
        call(Notices(engine).forget),
        *(call(one) for one in more),
    ))  # fmt: skip


def log_slow_query(log: Callable[..., None], slow: SlowQuery) -> None:
    """Log a query that took longer than usual: its name and sentence, without values."""
    name, sentence, usual_s = slow.query
    log(
        "slow query", query=name, sentence=sentence, seconds=round(slow.seconds, 3), usual_s=usual_s,
        runs=slow.runs, level="warning",
    )  # fmt: skip


async def drop_old_months(engine: Engine, settings: Settings, log: Callable[..., None]) -> None:
    """Drop months of calls, hours, events and re-ratings that are older than the settings keep.

    A month of calls that must stay, for example because it is not archived yet, is logged.
    """

    def stays(month: date, why: str) -> None:
        log("month of calls stays", month=f"{month:%Y-%m}", why=why, level="warning")

    dropped: list[str] = []
    if days := settings.calls_keep_days:
        archived = any(feature.archives_calls(settings) for feature in features())
        dropped += await partitions.drop_calls(engine, days, are_archived=archived, stays=stays)
    if days := settings.usage_hours_keep_days:
        dropped += await partitions.drop_hours(engine, days)
    for month in dropped:
        log("month dropped", partition=month)
    if days := settings.events_keep_days:
        await forgetting.forget_events(engine, days)
    if days := settings.reratings_keep_days:
        await forgetting.forget_reratings(engine, days)


# How long the start waits for the bundled prices of a new database; later they are still loaded.
PRICED_S_MAX = 20.0
# How long the start of the admin port waits for verified counters, and how often that is checked.
VERIFIED_S_MAX, VERIFIED_LOOK_S = 2.0, 0.02
ACCOUNTS_SAID_MAX = 20
# For how long flushes may fail, or the oldest row may wait, before `/readyz` says so. A server that restarts is
# back before.
UNSTORED_S_MIN, ROWS_AGE_S_MAX = 5.0, 30.0
# Loops that need no pass until PostgreSQL was written to, apart from a few seconds' delay.
OF_WRITES = frozenset({"clock changes", "dunning", "ids", "payments", "rating", "reconciler", "watcher"})
APPLICATION = "tollkeeper-keeper"


# A keeper ends in any case this long after its grace period.
ENDING_S_MAX = 4.0


async def run_keeper(settings: Settings, source: Source = None, people: Loading = None) -> None:
    """Run the keeper until SIGTERM or SIGINT, then flush remaining entries.

    `source` gives later settings; `people` is the process for Admin API and console, if it is loading
    already.
    """
    stop, keeper = stop_signal(), Keeper(settings, source, people)
    try:
        if await keeper.start(stop):
            await stop.wait()
    finally:
        await ended(keeper.stop, settings.shutdown_grace_s + ENDING_S_MAX, logs.logger("tollkeeper.keeper"))
    if keeper.programs.outgrown:
        raise StartError(keeper.programs.outgrown)


class Keeper:
    """A keeper with all its loops."""

    def __init__(self, settings: Settings, source: Source = None, people: Loading = None) -> None:
        address.be_known_as(APPLICATION)
        check_files(settings, "admin")  # report here a file that the process for people cannot use
        self._settings, log = settings, logs.logger("tollkeeper.keeper")
        self._log = log
        self._people = AdminProcess(settings, self._facts, log, loading=people)
        later = self._later = KeeperSettings(settings, source, log, self._people.renew)
        self._pools = engines.Pools.create(
            settings.url_file("database_url"), settings.invoices_at_once, partial(log_slow_query, log)
        )
        self._engine, doors = self._pools.loops, KeeperDoors(settings, log, UnsupportedVersions(log))
        self._fences, self._wires, self._counters = doors.fences, doors.wires, doors.counters
        isolation = self._isolation = doors.isolation
        self._moves, accounts = SlotMoves(self._wires), Accounts(self._engine)
        self._quarantines, moved = Quarantines(self._engine), self._counters.moved
        self._sweeps = Sweeps(self._engine)
        now = partial(datetime.now, UTC)
        reader = AgendaReader(self._engine, self._sweeps.since, now)
        self._agenda = agenda = Agenda(reader.read, written=lambda: reader.written)
        shared = LoopContext(
            settings, self._engine, self._wires, self._fences, self._counters, moved, self._log,
            first=self._moves.take_up, flushed=self._flushed, verified=self._verified,
            went_back=self._went_back, refuse=self._refuse, isolation=isolation, agenda=agenda,
            share=KeeperShare(KeeperShares(self._pools.share, settings.admin_port)),
            takes_up=lambda: self.programs.takes_up_layout,
        )  # fmt: skip
        self._servers = AllShardLoops(self._wires, shared)
        self._ids = Pusher(Pushes(self._engine), self._counters, isolation=isolation)
        journal = RefusedJournal(self._engine)
        self._refused = RefusedDrain(RefusedStream(self._counters), journal, isolation=isolation)
        mailer = None
        if settings.smtp_url:
            from gateway.admin.smtp import SmtpMailer  # noqa: PLC0415  # its library is for those who mail

            mailer = SmtpMailer.of(later.saying("smtp_url"), settings.smtp_from, settings.smtp_ca_file)
        self._store = store_over(settings, letterhead(settings), self._counters, self._pools.billing)
        self._outgoing = Outgoing(private=settings.webhook_private_addresses, proxies=later.proxies)
        link = f"{settings.links_url}/mail/{{}}".format
        links = {event: link for feature in features() for event, link in feature.links(settings).items()}
        waiting = Deliveries(self._engine, link, links)
        self._webhook_deliveries = WebhookDeliveries(
            waiting, self._outgoing, now, mailer=mailer, isolation=isolation, agenda=agenda
        )
        self._reconciler, self._account_closing = doors.comparers(
            accounts, ReconciliationResults(self._engine, partition_of)
        )
        self._losses = LossCounter(Losses(self._engine), (moved,), self._log, at_rest=self._servers.at_rest)
        table = PriceTable(self._engine)
        self._price_list = PriceList(table, self._read_price_list, self._priced, self._compare_prices)
        self._redis_state = RedisState(self._wires, self._log)
        self.programs = ProgramList(self._wires, self._counters, self._engine)
        self._fences.admit = self.programs.admit
        parts = KeeperParts(
            settings=settings, later=later, engine=self._engine, store=self._store, counters=self._counters,
            isolation=isolation, log=log,
        )  # fmt: skip
        self._work = [work for feature in features() if (work := feature.work(parts)) is not None]
        self._gauges, self._growth = self._looked_up(), metrics.LastGrowth()
        self._flush_rows: dict[str, int] = {}
        self._flush_seconds, self._vitals = Histogram(), ProcessVitals("keeper")
        self._disk, self._waiting = DiskWatch(settings, log), dict[str, Any]()
        self._says_unstored = False
        self._loops: list[asyncio.Task[None]] = []
        self._telling: list[asyncio.Task[None]] = []
        self._port: int | None = None

    async def start(self, stop: asyncio.Event) -> bool:
        """Wait for both databases, start all loops, then the admin port; False if `stop` is set meanwhile.

        StartError if a database does not answer in time, or does not suit this version.
        """
        port = await self._people.begin()
        self._wires.start()
        settings, log, isolation = self._settings, self._log, self._isolation
        self._telling = keep_going({"people": self._people.keep_telling}, log, isolation)
        unread = partial(self._counters.left_alone.count, "account")
        if not await self._reach_redis(stop):
            return False
        trouble = partial(engines.trouble, self._engine)
        hint = hints.postgresql_hint
        if not await wait_until_reached(
            "PostgreSQL", trouble, wait_s=settings.start_wait_s, stop=stop, log=log, hint=hint
        ):
            return False
        await privileges.refuse_unfit(self._engine, hints.postgresql_hint)
        # Before the catalogue is published, so that a gateway with a catalogue has its prices as well.
        self._loops = keep_going({"prices": self._price_list.run}, log, isolation)
        with suppress(TimeoutError):
            async with asyncio.timeout(PRICED_S_MAX):
                await self._price_list.there.wait()
        self._servers.start()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "fence": self._fences.keep_looking,
            "redis": partial(tell_of_redis, self._wires, log),
            "redis state": self._redis_state.keep_asking,
            "presence": Presence(self._wires, extras.version(), peppers_of(settings).ids, unread).keep_saying,
            "programs": self.programs.keep_saying,
            "layout": partial(self.programs.keep_looking, self._servers.workers, log),
            "schema": partial(self.programs.keep_to_schema, stop, self._agenda),
            "postgresql": partial(watch_read_only, self._engine, log),
            "webhooks": self._webhook_deliveries.run,
            "settings": self._later.keep,
            "vitals": self._vitals.keep_looking,
            "disk": self._disk.keep_looking,
        }
        for work in self._work:
            loops |= work.tasks
        self._loops += keep_going(loops, log, isolation, self._rows())
        with suppress(TimeoutError):
            async with asyncio.timeout(VERIFIED_S_MAX):
                while not self._servers.verified:  # noqa: ASYNC110  # several servers report it
                    await asyncio.sleep(VERIFIED_LOOK_S)
        await self._people.open()
        self._port = port
        self._log("keeper started", port=port)
        return True

    async def _reach_redis(self, stop: asyncio.Event) -> bool:
        """Wait for Redis; return False if `stop` is set meanwhile.

        Programs of other forms of data are waited for without end, and people are told.
        """
        logged = ""
        while not stop.is_set():
            try:
                return await redis_reached(
                    self._wires, self._settings.start_wait_s, stop, self._log, lambda: self.programs.waits_for
                )
            except StartError:
                if not (why := self.programs.waits_for):
                    raise
                if why != logged:
                    logged = why
                    self._log("keeper waits", why=why, level="warning")
                await self._people.open()
        return False

    def _rows(self) -> Sequence[Loop]:
        """Return the loops of this keeper that read and write PostgreSQL."""
        settings, engine, billing, log = self._settings, self._engine, self._pools.billing, self._log
        now, away, agenda = partial(datetime.now, UTC), (CountersUnavailable,), self._agenda
        # A single server never moves partitions.
        woken = self._wires.moves if isinstance(self._wires, Shards) else lambda: None
        schedule = Schedule(billing, self._store, settings.invoice_grace_hours)
        rows = (
            sweeper(self._sweeps, self._counters, agenda),
            expirer(Allocations(billing), self._counters, partition_of, agenda),
            clock_changes(ClockReports(engine, partition_of), now),
            *news_loops(Notices(engine), now, agenda),
            empty_accounts_loop(Notices(engine), partial(read_empty_accounts, self._wires)),
            *billing_loops(self._store, now, agenda=agenda).values(),
            month_ends(Checkpoints(billing), now),
            *invoicing_loops(settings, schedule, self._account_closing, log),
            *(loop for work in self._work for loop in work.loops),
            self._refused.loop(),
            self._gauges.loop(),
            housekeeping(engine, settings, log, *(one for work in self._work for one in work.hourly)),
            Loop("ids", 1.0, (call(self._keep_ids),), quiet=away),
            Loop("moves", 1.0, (call(self._moves.take_up),), woken=woken()),
            Loop("servers", 1.0, (call(self._servers.look),), woken=woken()),
            Loop("reconciler", 10.0, (call(self._reconciler.sample),), quiet=away),
            Loop("unreadable accounts", 10.0, (call(self._counters.look_again),), quiet=away),
            Loop("nightly comparison", 60.0, (call(self._reconciler.look_at_night),)),
            # A few commands for each server of Redis.
            Loop("waiting", 2.0, (call(self._count_waiting), call(self._say_unstored)), quiet=away),
        )
        return [replace(row, writes=agenda) if row.name in OF_WRITES else row for row in rows]

    async def stop(self) -> None:
        """Stop the Admin API's process, then all loops; flush the outbox to PostgreSQL last."""
        await self._people.stop()
        await cancel([*self._telling, *self._loops])
        may_write = not self.programs.outgrown
        if self._loops and may_write:
            await self._refused.finish()
        await self._servers.stop(flushes=may_write)
        await self._outgoing.aclose()
        for work in self._work:
            await work.aclose()
        await self.programs.leave()
        await self._wires.close()
        await self._pools.dispose()
        if self._port is not None:
            self._log("keeper stopped")

    def _looked_up(self) -> Gauges:
        settings = self._settings
        return Gauges((
            partial(shard_loops.server_certificates, settings, self._wires),
            partial(gauges.watch_gauges, self._engine, settings.invoice_schedule),
            self._losses.count, self.programs.gauges, partial(shard_loops.empty_accounts, self._wires),
            *(gauge for work in self._work for gauge in work.gauges),
        ))  # fmt: skip

    def _flushed(self, outcome: FlushedBatch | FailedBatch) -> None:
        """Count and log what a flush stored, or why it failed."""
        if isinstance(outcome, FailedBatch):
            self._isolation.say("flush failed", "flusher", outcome.error)
            return
        self._agenda.hurry()
        self._flush_seconds.observe(outcome.seconds)
        report = outcome.report
        for table, rows in report.rows.items():
            self._flush_rows[table] = self._flush_rows.get(table, 0) + rows
        for account in report.quarantined:
            self._log("account quarantined", account=account, level="error")
        if report.dead_letters:
            self._log("dead letters", count=report.dead_letters, level="error")

    def _verified(self, done: list[VerificationResult]) -> None:
        level = "warning" if any(each.rebuilt or each.repushed for each in done) else "info"
        self._log("counters verified", **summary(done), level=level)

    def _went_back(self, accounts: list[str]) -> None:
        shown = accounts[:ACCOUNTS_SAID_MAX]
        self._log("postgresql is older than it was", quarantined=len(accounts), accounts=shown, level="error")

    async def _keep_ids(self) -> None:
        if await self._ids.keep_ids():
            self._log("ids moved ahead: postgresql lacks what redis was told", level="error")

    async def _refuse(self, tenants: Mapping[int, Sequence[int]]) -> None:
        if accounts := await self._quarantines.refuse(tenants):
            self._log("too much waits, calls refused", accounts=accounts[:ACCOUNTS_SAID_MAX], level="error")

    def _read_price_list(self) -> Sequence[Row]:
        from gateway.run.bundled_prices import read_bundle  # noqa: PLC0415  # once in a life

        bundle = read_bundle()
        self._log("bundled prices read", library=bundle.library, left_out=len(set(bundle.left_out)))
        return bundle.rows

    def _priced(self, added: int) -> None:
        self._log("bundled prices put in", prices=added)

    def _compare_prices(self) -> None:
        from gateway.run.bundled_prices import missing_here  # noqa: PLC0415  # once in a life

        if says := missing_here(self._settings.database_url):
            self._log("prices are missing", why=says, level="warning")

    async def _count_waiting(self) -> None:
        self._waiting = await self._servers.waiting()

    def _unstored(self) -> UnstoredRows | None:
        unstored = self._servers.unstored()
        return unstored if unstored is not None and unstored.seconds >= UNSTORED_S_MIN else None

    async def _say_unstored(self) -> None:
        """Store in Redis why no rows are stored, or, once, that they are again."""
        unstored = self._unstored()
        if unstored is not None or self._says_unstored:
            await say_unstored(self._wires, unstored)
        self._says_unstored = unstored is not None

    def _rows_are_stored(self) -> bool | str:
        """Return True, or why rows were not stored for long: a flush fails, or waits for a lock."""
        if (unstored := self._unstored()) is not None:
            return str(unstored)
        oldest_s = float(self._waiting.get("outbox_oldest_seconds", 0.0))
        return oldest_s < ROWS_AGE_S_MAX or f"the oldest row waits for {oldest_s:,.0f} s"

    async def _facts(self) -> LoopFacts:
        """Return this keeper's metrics and the state of each part that it depends on."""
        verified, snapshot, why = self._servers.verified, self._snapshot(), self._redis_state.why
        return LoopFacts(
            snapshot,
            {
                "redis": self._redis_state.taking > 0 or why,
                "counters_verified": verified > 0,
                EVERY_PARTITION: why
                or verified == PARTITIONS
                or PARTITIONS_WAIT.format(PARTITIONS - verified),
                ROWS: self._rows_are_stored(),
                ACCOUNTS: check_accounts(self._counters.left_alone.count("account")),
                **of_process(snapshot, self._disk),
            },
        )

    def _snapshot(self) -> Mapping[str, Any]:
        """Return this process's metrics."""
        snapshot: dict[str, Any] = {
            "bounds": list(SECONDS),
            "flush_rows": [[table, rows] for table, rows in sorted(self._flush_rows.items())],
            "flush_seconds": self._flush_seconds.snapshot(),
            "reclaimed_holds": self._servers.reclaimed,
            "lost_events": self._losses.lost,
            "partitions_flushed": self._servers.share.size,
            "webhook_attempts": self._webhook_deliveries.figures(),
            **self._reconciler.figures(), **self._isolation.figures(),
            **self._counters.left_alone.figures(), **self._vitals.snapshot(),
            **self._later.snapshot(), **engines.pool_figures(self._engine),
            **self._people.snapshot(),
        }  # fmt: skip
        if (quarantined := self._servers.quarantined) is not None:
            snapshot["quarantined_accounts"] = quarantined
        snapshot |= {**self._redis_state.snapshot(), **self._redis_state.figures()}
        snapshot = metrics.merge(snapshot, self._gauges.latest)
        counted = {
            "counters_exchanged": self._fences.noticed,
            "script_errors": SCRIPT_ERRORS.snapshot(),
            "settlements_unmatched": SETTLE_RESULTS.snapshot(),
        }
        grown = self._growth.added(counted)
        return {**metrics.merge(snapshot, grown), **self._waiting}
