"""Composes a gateway worker: its port, TLS and settings, and its access to Redis.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.billing.sellers import Seller, seller_of
from gateway.core.calls.call import UsageBounds
from gateway.core.calls.estimate import tokenizer_of
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.credentials import peppers_of
from gateway.core.families.controlled import CountTokens, Tokenizer
from gateway.core.histograms import Histogram
from gateway.core.lru import CachePool
from gateway.counters.admission.account_limit import AccountLimit
from gateway.counters.admission.caller_holds import CallerHolds
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.empty_accounts import SharedEmptyAccounts
from gateway.counters.admission.live_holds import LiveHolds
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.admission.sharded import ShardedCounters
from gateway.counters.admission.shared_circuit_breaker import SharedCircuitBreaker
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import Leaser
from gateway.counters.redis.calls import Frames
from gateway.counters.redis.cluster import RedisConnections, Shards
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import SettlementLog
from gateway.http.server.server import DataPlane
from gateway.issuers.callers import DigestLookup, TokenCallers
from gateway.issuers.keys import AllKeys
from gateway.local import heartbeat, ports
from gateway.local.parent_pipe import ParentPipe
from gateway.run.process_vitals import ProcessVitals, limits_here
from gateway.run.reload import SettingsUpdates
from gateway.run.tls_port import TlsPort
from gateway.settings.origins import origins_of
from gateway.settings.settings import Settings
from gateway.telemetry import logs


class GatewayPort:
    """The port where the data plane accepts clients; to be made inside a running event loop."""

    def __init__(
        self, settings: Settings, plane: DataPlane, tokens: TokenCallers, log: Callable[..., None],
        sell: Callable[[Mapping[str, Seller]], None] = lambda sellers: None,
    ) -> None:  # fmt: skip
        self._settings, self._plane, self._tokens, self._log = settings, plane, tokens, log
        self._sell = sell
        self._tls = TlsPort(settings, "gateway", log)
        self._vitals = ProcessVitals("gateway")
        self.sent = SettingsUpdates(self._take, log)

    async def open(self, parent_pipe: ParentPipe | None) -> None:
        """Start to accept clients, and to receive new settings if there is a parent process."""
        settings, loop = self._settings, asyncio.get_running_loop()
        own, others = ports.supervisor_port()
        if not own:
            own = [*ports.held_port(settings.gateway_host, settings.gateway_port, "gateway").sockets]
        await self._plane.start(own, others, wrapped=self._tls.wrapped)
        heartbeat.say_ready()
        self._log("gateway started", host=settings.gateway_host, port=settings.gateway_port, tls=self._tls.on)
        if parent_pipe is not None:
            parent_pipe.listen(lambda line: loop.call_soon_threadsafe(self.sent.hear, line))

    async def keep(self) -> None:
        """Renew the certificate and the issuers' keys until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._tls.run())
            both.create_task(self._tokens.keep_fresh())

    async def keep_looking(self) -> None:
        """Measure the event loop's delay and open files until cancelled."""
        await self._vitals.keep_looking()

    def state(self) -> Mapping[str, Any]:
        """Return what the parent process is told of this one, as metrics."""
        return {"configuration_stale": int(self.sent.is_stale), **self._vitals.open_files()}

    def snapshot(self) -> Mapping[str, Any]:
        buffers = self._plane.buffers
        kept = {"buffered_bytes": buffers.used + buffers.heads, "shed": buffers.shed}
        ours = {**self._plane.snapshot(), **self._vitals.snapshot(), **self.state()}
        return {**kept, **self._tls.snapshot(), **self._tokens.snapshot(), **ours}

    def _take(self, settings: Settings) -> None:
        """Apply renewed settings to the data plane, tokens, TLS and log."""
        bounds = UsageBounds(usage_tokens_max=settings.usage_tokens_max)
        # The plane first: it may refuse, and then nothing has changed.
        self._plane.renew(
            settings.routes, settings.upstreams, limits_here(settings), settings.services, bounds=bounds,
            origins=origins_of(settings.cors_origins), workloads=settings.workloads,
            accepts_tokens=bool(settings.issuers), models=settings.models,
        )  # fmt: skip
        self._sell(sellers_of(settings.upstreams))
        self._tokens.renew(settings.issuers)
        self._tls.renew(settings)
        logs.configure(settings.log_level)
        self._log("settings renewed", routes=len(settings.routes), upstreams=len(settings.upstreams))


def sellers_of(targets: Iterable[UpstreamTarget]) -> dict[str, Seller]:
    """Return the seller (whose price list counts) by upstream name, without upstreams that have none."""
    found = {
        target.name: seller_of(target.prices, target.price_factor, target.family, target.base_url)
        for target in targets
    }
    return {name: seller for name, seller in found.items() if seller is not None}


# Callers with tokens of an issuer, connected to the directory of API keys.
def token_callers(settings: Settings, directory: DigestLookup, log: Callable[..., None]) -> TokenCallers:
    keys = AllKeys(time.monotonic, log)
    callers = TokenCallers(keys, directory, peppers_of(settings).digests, time.time)
    callers.renew(settings.issuers)
    return callers


# OpenAI's own tokenizers, if the package with their tables is installed.
#
# `pip install tollkeeper[tokenizer]` installs it. It takes about 70 MB of each worker, so it is not a
# default; the other providers publish no tokenizer. It is used only for answers without a report of their
# use.


def load_tokenizer() -> Tokenizer | None:
    """Return a function from a model's name to its tokenizer; None if the package is not installed."""
    try:
        package: Any = import_module("bpe_openai")
    except ModuleNotFoundError:
        return None

    @lru_cache
    def of_encoding(name: str) -> CountTokens:
        encode = package.get_encoding(name).encode_ordinary
        return lambda text: len(encode(text))

    def of_model(model: str) -> CountTokens | None:
        name = tokenizer_of(model)
        return of_encoding(name) if name else None

    return of_model


# A worker's slot: an id that outlives the worker, so that its successor has the same.
#
# The successor finds and corrects what a worker left in Redis under names made from its slot, instead of
# waiting until it expires.

SLOTS_MAX = 1024
SLOT_BYTES = 36


def take_worker_slot(directory: Path) -> UUID:
    """Return the id of the first free worker slot in a directory, and lock the slot until this process ends.

    The next worker in a slot continues what the last one held in Redis. If the directory cannot be written,
    or all slots are taken, return a random id, which no later worker finds.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(SLOTS_MAX):
            descriptor = os.open(directory / f"{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            try:
                return UUID(os.pread(descriptor, SLOT_BYTES, 0).decode())
            except ValueError:
                worker_slot = uuid4()
                os.pwrite(descriptor, str(worker_slot).encode(), 0)
                return worker_slot
    except OSError:
        pass
    return uuid4()


# A gateway worker's access to Redis: over one connection, or over those to a cluster's primaries.

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Door:
    """The parts of a worker that use Redis, over one connection or those to the primaries of a cluster."""

    directory: Directory
    counters: Counters | ShardedCounters
    objects: ObjectOwners
    holds: CallerHolds
    allowances: Allowances
    leaser: Leaser
    worker_reports: WorkerReports
    circuit_breaker: SharedCircuitBreaker
    empty: SharedEmptyAccounts
    tokens: TokenCallers
    caches: CachePool


def make_door(
    settings: Settings,
    wires: RedisConnections,
    settlements: SettlementLog,
    scripts: Mapping[str, Histogram],
    log: Log,
) -> Door:
    """Return the parts of a worker that use Redis; `scripts` gets the seconds of each Lua script, by name."""
    clock, took = time.monotonic, {verb: histogram.observe for verb, histogram in scripts.items()}
    worker_slot = take_worker_slot(Path(settings.data_dir) / "worker_slots")
    allowances = Allowances(clock, worker_slot)
    caches, frames = CachePool(settings.cache_bytes_max), Frames()
    directory = Directory(
        wires, clock, allowances=allowances, stale_s=settings.lease_s_max, log=log, pool=caches,
    )  # fmt: skip
    directory.sell(sellers_of(settings.upstreams))
    directory.stand_ins, directory.spent = settings.stand_ins, SpentAnswer(settings.spent_status)
    ttl_ms = int(settings.hold_ttl_s * 1000)
    leaser = Leaser(
        wires, allowances, clock, fraction=settings.lease_fraction, lease_s=settings.lease_s_max,
        took=took["lease"], pending=lambda: settlements.waiting,
    )  # fmt: skip

    def counters_of(wire: RedisConnection) -> Counters:
        return Counters(
            wire, directory, ttl_ms, clock, took, log=settlements, allowances=allowances, say=log,
            frames=frames,
        )  # fmt: skip

    counters: Counters | ShardedCounters
    if isinstance(wires, Shards):
        live = LiveHolds(wires, allowances, ttl_ms, clock, took["extend"])
        counters = ShardedCounters(
            wires, counters_of, live, AccountLimit(clock, log), hold_ttl_s=settings.hold_ttl_s, clock=clock
        )
    else:
        (wire,) = wires.wires
        counters = counters_of(wire)
    objects = ObjectOwners(wires, time.time, settings.object_ttl_s, settings.objects_max, log=log)
    reports = WorkerReports(wires, str(worker_slot), time.time_ns(), clock)
    cooling, empty = SharedCircuitBreaker(wires, clock), SharedEmptyAccounts(wires, clock)
    tokens = token_callers(settings, directory, log)
    holds = CallerHolds(wires, time.time, settlements, say=log)
    for name, cache in (("frames", frames.known), ("tokens", tokens.known)):
        caches.join(name, cache)
    return Door(
        directory, counters, objects, holds, allowances, leaser, reports, cooling, empty, tokens, caches,
    )  # fmt: skip
