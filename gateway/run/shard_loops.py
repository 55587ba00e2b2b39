"""The keeper's loops for each server of Redis, which use its one connection, for its partitions.

A single server has all partitions. In a cluster each primary has loops of its own, so that none waits for
another. Part of the composition root.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from gateway.background.flushing.flusher import FailedBatch, FlushedBatch, Flusher, KeeperShare
from gateway.background.flushing.late import LateSettlements, Rollbacks
from gateway.background.loops import Agenda, Isolation, Loop, call
from gateway.background.timed.pusher import RECLAIMED_OF, Pusher, Reclaimer
from gateway.background.verifying.admission_gate import AdmissionGate
from gateway.background.verifying.published_lists import PublishedLists
from gateway.background.verifying.rewinds import Rewinds
from gateway.background.verifying.verifier import RestoredRows, Verifier
from gateway.core.accounts.holds import MovementRange, ReclaimPolicy
from gateway.core.integrity.recovery import VerificationResult
from gateway.counters.admission.empty_accounts import read_empty_accounts
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.outbox import DeletedEntries, OrphanReader, Outbox
from gateway.counters.keeper.unstored_rows import UnstoredRows
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.late import ReclaimClient
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of, partition_of_digest
from gateway.errors import CountersUnavailable, LedgerUnavailable, TollkeeperError
from gateway.run.keeper_loops import Run, keep_going
from gateway.run.lifecycle import cancel
from gateway.settings.settings import Settings
from persistence import server_certificate
from persistence.engine import Engine
from persistence.error_mapping import code_of
from persistence.keeper.definitions import Pushes
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.verification import Accounts, LedgerReader
from persistence.ledger.writer import LedgerWriter
from persistence.resources.integrity import Quarantines


@dataclass(frozen=True, slots=True)
class LoopContext:
    """What the loops of all servers share. `counters` reaches all servers; `moved` is the evidence of all.

    `first` is awaited before partitions are checked: it adopts those that were moved between servers. The
    loops flush the partitions of the keeper's `share`. Once `takes_up()` is true, partitions are written in
    today's layout.
    """

    settings: Settings
    engine: Engine
    wires: RedisConnections
    fences: HistoryGuards
    counters: KeeperCounters
    moved: deque[MovementRange]
    log: Callable[..., None]
    first: Callable[[], Awaitable[object]]
    flushed: Callable[[FlushedBatch | FailedBatch], None]
    verified: Callable[[list[VerificationResult]], None]
    went_back: Callable[[list[str]], None]
    refuse: Callable[[Mapping[int, Sequence[int]]], Awaitable[None]]
    isolation: Isolation
    agenda: Agenda
    share: KeeperShare
    takes_up: Callable[[], bool]


class ShardLoops:
    def __init__(self, wire: RedisConnection, shared: LoopContext) -> None:
        self.wire, self._log = wire, shared.log
        settings, engine, fence = shared.settings, shared.engine, shared.fences.of(wire)
        counters = KeeperCounters(
            wire, everybodys=shared.wires, moved=shared.moved, left_alone=shared.counters.left_alone,
            takes_up=shared.takes_up,
        )  # fmt: skip
        sweeps, quarantines = Sweeps(engine), Quarantines(engine)
        truths = LedgerReader(engine, partition_of, partition_of_digest)

        def partitions() -> Sequence[int]:
            return wire.part.partitions

        def flushed() -> frozenset[int]:
            mine = shared.share.partitions().intersection(wire.part.partitions)
            self.outbox.keep_to(mine)
            return mine

        self.counters, self._writer = counters, LedgerWriter(settings.url_file("database_url"))
        deleted = DeletedEntries(counters)
        self.outbox = Outbox(counters, shared.log, check_history=fence.check_history, deleted=deleted)
        streams = OrphanReader(counters, fence.check_history, deleted)
        rewinds = Rewinds(fence, counters, streams, quarantines, first=shared.first)
        self.rollbacks = Rollbacks(
            self.outbox, counters, Accounts(engine), quarantines, first=rewinds.notice,
            partition_of=partition_of, observe=shared.went_back, partitions=partitions,
            written=shared.agenda.written,
        )  # fmt: skip
        self._flusher = Flusher(
            self.outbox, self._writer, shared.flushed,
            before_storing=self.rollbacks.stop_accounts, refuse=shared.refuse, partitions=flushed,
            flush_interval_s=settings.flush_interval_s, waiting_entries_max=settings.waiting_entries_max,
        )  # fmt: skip
        keeping = ReclaimClient(counters)
        self._late = LateSettlements(keeping, sweeps)
        self.gate = AdmissionGate(truths, counters, time.monotonic, hurry=self._late.hurry, say=shared.log)
        restored = RestoredRows(truths, shared.counters, quarantines, shared.isolation, shared.went_back)
        self._pusher = Pusher(
            Pushes(engine), shared.counters, partitions, isolation=shared.isolation, restored=restored
        )
        self.verifier = Verifier(
            truths, counters, shared.verified,
            admission_gate=self.gate, rewinds=rewinds, partitions=partitions, isolation=shared.isolation,
            hold_back=self._pusher.hold_back, say=shared.log,
        )  # fmt: skip
        self.reclaimer = Reclaimer(keeping, ReclaimPolicy(settings.reclaim))
        self._isolation, self._agenda = shared.isolation, shared.agenda
        self._flushing: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []

    @property
    def in_hand(self) -> frozenset[int]:
        return self._flusher.in_hand

    @property
    def trouble(self) -> tuple[float, Exception] | None:
        return self._flusher.trouble

    def start(self) -> None:
        """Start the loops of one server of Redis."""
        loops = {
            "verifier": self.verifier.run,
            "late": self._late.run,
        }
        away = (CountersUnavailable,)
        rows = (
            Loop("pusher", 0.25, (call(self._pusher.push_more),), again=True, agenda=self._agenda),
            Loop("reclaimer", 1.0, (call(self.reclaimer.sweep),), quiet=away),
            Loop("rollbacks", 1.0, (call(self.rollbacks.look),), quiet=away),
        )
        self._flushing = asyncio.create_task(self._flusher.run())
        self._loops = keep_going(loops, self._log, self._isolation, rows)

    async def stop(self) -> None:
        """Stop the loops; flush the outbox last."""
        await cancel(self._loops)
        self._flusher.stop()
        if self._flushing is not None:
            await self._flushing
        self.outbox.keep_to(())
        self._writer.close()


class AllShardLoops:
    def __init__(self, wires: RedisConnections, shared: LoopContext) -> None:
        self._wires, self._shared, self.share = wires, shared, shared.share
        self._sharing: list[asyncio.Task[None]] = []
        self._kept: dict[RedisConnection, ShardLoops] = {}
        self._ending: dict[ShardLoops, asyncio.Task[None]] = {}
        self._reclaimed_before = Counter[str]()

    @property
    def verified(self) -> int:
        """The number of partitions that are verified since Redis last started, and admit calls."""
        there = [self._kept.get(wire) for wire in self._wires.wires]
        return sum(loops.verifier.open_count for loops in there if loops is not None)

    @property
    def reclaimed(self) -> list[tuple[str, int]]:
        """The numbers of holds reclaimed since the start, by kind."""
        there = [self._reclaimed_before, *(counts.reclaimer.reclaimed for counts in self._kept.values())]
        return [(kind, sum(counts[kind] for counts in there)) for kind in RECLAIMED_OF]

    def unstored(self) -> UnstoredRows | None:
        """Return why no rows of a server are stored, of the server for which that is so for longest."""
        failing = [(loops.trouble, wire) for wire, loops in self._kept.items() if loops.trouble is not None]
        if not failing:
            return None
        (since, error), wire = min(failing, key=lambda failure: failure[0][0])
        server = wire.server if wire.address.members or wire.address.shards else ""
        why = error.message if isinstance(error, TollkeeperError) else type(error).__name__
        return UnstoredRows(why, time.monotonic() - since, code_of(error), server)

    @property
    def quarantined(self) -> int | None:
        """The number of accounts in quarantine; None before the first check."""
        counts = (loops.rollbacks.quarantined for loops in self._kept.values())
        return max((count for count in counts if count is not None), default=None)

    def start(self) -> None:
        """Start the loops of this keeper: for its share of partitions, global lists, and each server."""
        run = partial(self.share.run, self._reached, self._in_hand)
        shared = self._shared
        truths = LedgerReader(shared.engine, partition_of, partition_of_digest)
        lists = PublishedLists(truths, shared.counters, self._may_publish, shared.log)
        loops: dict[str, Run] = {"share": run, "lists": lists.run}
        self._sharing = keep_going(loops, shared.log, shared.isolation)
        self.look()

    def look(self) -> None:
        """Stop the loops of servers that are gone, and start those of new ones."""
        wires = self._wires.wires
        for wire in [known_wire for known_wire in self._kept if known_wire not in wires]:
            gone = self._kept.pop(wire)
            self._reclaimed_before += gone.reclaimer.reclaimed
            self._ending[gone] = asyncio.create_task(gone.stop())
            self._ending[gone].add_done_callback(partial(self._ended, gone))
        for wire in wires:
            if wire not in self._kept:
                self._kept[wire] = ShardLoops(wire, self._shared)
                self._kept[wire].start()

    def _ended(self, gone: ShardLoops, _: asyncio.Task[None]) -> None:
        del self._ending[gone]

    async def stop(self, *, flushes: bool = True) -> None:
        """Stop the loops of all servers, then release this keeper's partitions to other keepers.

        Remaining entries are flushed first, unless `flushes` is False because nothing may be stored any more.
        """
        if not flushes:
            await self._leave()
        await asyncio.gather(*(loops.stop() for loops in self._kept.values()), *self._ending.values())
        await self._leave()

    async def _leave(self) -> None:
        if self._sharing:
            await cancel(self._sharing)
            self._sharing = []
            with suppress(LedgerUnavailable):
                await self.share.leave()

    def _may_publish(self) -> bool:
        """Return whether this keeper may publish global lists (services, prices) in Redis.

        A partition must be verified, and none may be kept by a newer version.
        """
        return self.verified > 0 and not any(loops.counters.newer for loops in self._kept.values())

    def _reached(self) -> list[int]:
        """Return partitions whose server answers, without those that a newer version's keepers flush."""
        there = [(wire.part.partitions, kept) for wire, kept in self._kept.items() if wire.connected]
        return [
            partition
            for partitions, kept in there
            for partition in partitions
            if partition not in kept.counters.newer
        ]

    def _in_hand(self) -> frozenset[int]:
        """Return partitions whose entries are being read or stored, including those of lost servers."""
        return frozenset[int]().union(*(loops.in_hand for loops in (*self._kept.values(), *self._ending)))

    async def workers(self) -> int:
        """Return the number of gateway workers that report; CountersUnavailable if Redis is away."""
        return max([len(await loops.counters.reports()) for loops in list(self._kept.values())], default=0)

    async def at_rest(self) -> set[int]:
        """Return partitions whose workers have all sent their logs again, of servers that answer."""
        partitions: set[int] = set()
        for loops in list(self._kept.values()):
            with suppress(CountersUnavailable):
                partitions |= await loops.gate.at_rest()
        return partitions

    async def waiting(self) -> dict[str, object]:
        """Return metrics of the entries that wait in servers' outboxes; {} if no server answers."""
        entries = waiting = broken = holds = 0
        oldest: list[int] = []
        answered = False
        for loops in list(self._kept.values()):  # servers may be added and removed meanwhile
            with suppress(CountersUnavailable):
                count, oldest_ms = await loops.counters.depth()
                apart = await loops.outbox.parked(loops.wire.part.partitions)
                holds += await loops.counters.holds()
                entries, waiting, answered = entries + count, waiting + sum(apart.values()), True
                broken += len(loops.outbox.broken)
                oldest += [oldest_ms] if oldest_ms else []
        if not answered:
            return {}
        return {
            "outbox_entries": entries,
            "outbox_oldest_seconds": max(0.0, time.time() - min(oldest) / 1000) if oldest else 0.0,
            "waiting_entries": waiting,
            "outbox_streams_broken": broken,
            "holds": holds,
        }


# Metrics of the servers that a keeper uses.
async def empty_accounts(wires: RedisConnections) -> Mapping[str, object]:
    """Return the number of accounts without money, by upstream, for metrics."""
    counts = Counter(account.upstream for account in (await read_empty_accounts(wires)).values())
    return {"upstream_accounts_empty": [*counts.items()]}


async def server_certificates(settings: Settings, wires: RedisConnections) -> Mapping[str, object]:
    ends = {
        "redis": min((wire.certificate_end for wire in wires.wires if wire.certificate_end), default=None),
        "postgresql": await asyncio.to_thread(server_certificate.certificate_end, settings.database_url),
    }
    return {"certificate_expiry_timestamp_seconds": [row for row in ends.items() if row[1] is not None]}
