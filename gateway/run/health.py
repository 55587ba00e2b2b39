"""What a process says of itself and of the machine below it: its loop, its open files, its disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.core.histograms import Histogram
from gateway.core.http_limits import HttpLimits
from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.redis.address import (
    WHY,
    facts_of,
    files_failing,
    refusal_in,
    replica_lags,
    why_refused,
)
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from gateway.local import heartbeat
from gateway.settings.settings import Settings

LOOK_S = 0.25
FILES_LOOK_S = 5.0
# Of the files that a process may have open, what may be: then there is hardly one left.
FILES_SHARE_MAX = 0.9
DISK_LOOK_S = 5.0
# Below this nothing more can be kept: a settlement log needs room for what it is told while Redis is away.
FREE_BYTES_MIN = 16 * 1024 * 1024


class ProcessVitals:
    """How much later than wanted the loop turns, which every call that is under way waits; and open files."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.seconds = Histogram()
        self.files, self.files_max = heartbeat.count_open_files(), heartbeat.open_files_limit()

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        files_at = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            self.seconds.observe(max(0.0, now - before - LOOK_S))
            if now - files_at >= FILES_LOOK_S:
                self.files, files_at = heartbeat.count_open_files(), now

    def snapshot(self) -> dict[str, object]:
        """What metrics say of it."""
        return {
            "loop_lag_seconds": {self.process: self.seconds.snapshot()},
            "open_files": [(self.process, self.files)],
            "open_files_max": [(self.process, self.files_max)],
        }


def has_files_left(snapshot: Mapping[str, Any]) -> bool:
    """Whether, by their numbers, each process can open more files."""
    opened, most = (dict(snapshot.get(name, ())) for name in ("open_files", "open_files_max"))
    return all(count <= FILES_SHARE_MAX * most[name] for name, count in opened.items() if name in most)


def limits_here(settings: Settings, files_max: int | None = None) -> HttpLimits:
    """The limits of a gateway worker as far as this machine lets it open files."""
    return settings.http.within(files_max or heartbeat.open_files_limit(), len(settings.upstreams))


def few_files(settings: Settings, files_max: int | None = None) -> str:
    """In a sentence that a worker takes fewer connections than are set, for want of files; else empty."""
    most = files_max or heartbeat.open_files_limit()
    wanted, here = settings.http.connections_max, limits_here(settings, most).connections_max
    if here == wanted:
        return ""
    said = f"a process may have {most:,} open files, so a gateway worker takes {here:,} connections"
    wished = f"not the {wanted:,} of TOLLKEEPER_CONNECTIONS_MAX"
    return f"{said}, {wished}: raise the limit (ulimit -n, LimitNOFILE=)"


class DiskWatch:
    """Which disks of ours are full, as was seen last: who asks waits for none. Each change is told once.

    `look` is asked, with the bytes that must be free, which directories have hardly any room.
    """

    def __init__(
        self,
        settings: Settings,
        log: Callable[..., None],
        look: Callable[[Settings, int], tuple[str, ...]] | None = None,
    ) -> None:
        self._settings, self._log = settings, log
        self._look = look or full_disks
        # The directories whose disks have hardly any room.
        self.full: tuple[str, ...] = ()

    async def keep_looking(
        self, *, look_s: float = DISK_LOOK_S, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        """Look until cancelled."""
        while True:
            before, now = self.full, await asyncio.to_thread(self._look, self._settings, free_bytes_min)
            self.full = now
            for place in now:
                if place not in before:
                    self._log("disk is full", place=place, free_bytes_min=free_bytes_min, level="error")
            for place in before:
                if place not in now:
                    self._log("disk has room again", place=place)
            await asyncio.sleep(look_s)


def disks(settings: Settings) -> dict[str, object]:
    """How large the disks of our directories are, and what of them is free, as far as that can be told."""
    free: list[tuple[str, int]] = []
    size: list[tuple[str, int]] = []
    for name, place in _places(settings):
        with suppress(OSError):
            usage = shutil.disk_usage(_existing(place))
            free.append((name, usage.free))
            size.append((name, usage.total))
    return {"disk_free_bytes": free, "disk_size_bytes": size}


def full_disks(settings: Settings, free_bytes_min: int = FREE_BYTES_MIN) -> tuple[str, ...]:
    """The directories whose disks have hardly any room, one of each disk."""
    found: dict[int, str] = {}
    for _, place in _places(settings):
        with suppress(OSError):
            there = _existing(place)
            if shutil.disk_usage(there).free < free_bytes_min:
                found.setdefault(there.stat().st_dev, str(place))
    return tuple(found.values())


def _places(settings: Settings) -> tuple[tuple[str, Path], ...]:
    return ("data", Path(settings.data_dir)), ("settlements", settings.settlements_dir)


def _existing(place: Path) -> Path:
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


# Whether the servers of Redis that are there take calls, and keep them, as they say themselves.
#
# Part of the composition root. What they say is looked at every few seconds: who refuses calls may be asked
# for nothing meanwhile, and must be known to be well again.


ASK_S = 2.0
# What a server does not say of itself is known by what calls were answered, for so long.
ANSWERED = {"MISCONF", "NOREPLICAS"}
ANSWERED_S = 10.0
# By how much two clocks may differ.
CLOCK_OFF_S_MAX = 10.0


class RedisState:
    """`refusing` says of how many partitions calls are refused, by code; `taking`, of how many none are.

    `clock_off_s` is how far our clock is ahead of theirs, that of who differs most.
    """

    def __init__(
        self, wires: RedisConnections, log: Callable[..., None], *, wall: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.refusing: Mapping[str, int] = {}
        self.taking = PARTITIONS
        self.clock_off_s = 0.0
        self._facts: list[dict[str, str]] = []
        self._wires, self._log, self._wall, self._seconds = wires, log, wall, seconds

    async def keep_asking(self, *, ask_s: float = ASK_S) -> None:
        """Ask until cancelled, and say when a server begins to refuse calls, and when none does any more."""
        while True:
            before = self.refusing
            await self.ask()
            for code in self.refusing.keys() - before.keys():
                self._log("redis refuses", code=code, why=WHY[code], level="error")
            if before and not self.refusing:
                self._log("redis takes everything again", level="info")
            await asyncio.sleep(ask_s)

    async def ask(self) -> None:
        """Ask each server once."""
        wires = self._wires.wires
        found = await asyncio.gather(*(self._asked(wire) for wire in wires))
        refusing, taking, off_s = Counter[str](), 0, 0.0
        for wire, (facts, ahead_s) in zip(wires, found, strict=True):
            by_itself = why_refused(facts)
            if code := by_itself or self._answered(wire):
                refusing[code] += len(wire.partitions)
            if wire.available and not by_itself:
                taking += len(wire.partitions)
            off_s = max(off_s, ahead_s, key=abs)
        self.refusing, self.taking, self.clock_off_s = refusing, taking, off_s
        self._facts = [facts for facts, _ in found if facts]

    @property
    def why(self) -> str:
        """Why calls are refused, in words; empty where none are."""
        return why(self.refusing)

    def snapshot(self) -> dict[str, object]:
        """What metrics say of it, in any process."""
        return {
            "partitions_refusing": [*self.refusing.items()],
            "partitions_taking": self.taking,
            "clock_offset_seconds": [("redis", self.clock_off_s)],
        }

    def figures(self) -> dict[str, object]:
        """What metrics say of the servers themselves: once, by the keeper. Of several, the worst."""
        memory = [[int(one.get(name) or 0) for name in ("used_memory", "maxmemory")] for one in self._facts]
        if not memory:
            return {}
        used, most = max(memory, key=lambda one: (one[0] / one[1] if one[1] else 0.0, one[0]))
        failing = Counter(file for facts in self._facts for file in files_failing(facts))
        lags = [lag for facts in self._facts for lag in replica_lags(facts)]
        return {
            "redis_memory_used_bytes": used,
            "redis_memory_max_bytes": most,
            "redis_files_failing": [(file, failing[file]) for file in ("append_only", "snapshot")],
            "redis_replicas": min(int(one.get("connected_slaves") or 0) for one in self._facts),
            **({"redis_replica_lag_seconds": max(lags)} if lags else {}),
        }

    async def _asked(self, wire: RedisConnection) -> tuple[dict[str, str], float]:
        """What a server says, and how far our clock is ahead of its own."""
        began = self._wall()
        with suppress(CountersUnavailable):
            answer = await in_task(wire.send(encode(b"INFO"), at_once=True, upkeep=True))
            facts = facts_of(answer)
            theirs, now = facts.get("server_time_usec", ""), self._wall()
            if theirs.isdecimal() and began <= now:
                at = int(theirs) / 1e6
                return facts, began - at if at < began else min(0.0, now - at)
            return facts, 0.0
        return {}, 0.0

    def _answered(self, wire: RedisConnection) -> str:
        """By which code calls were refused lately, or why there is no connection."""
        code, at = wire.refusal
        if wire.available and code in ANSWERED and self._seconds() - at < ANSWERED_S:
            return code
        return "" if wire.available else refusal_in(wire.trouble)


def why(codes: Mapping[str, float]) -> str:
    """Codes by which Redis refuses calls, in words."""
    return ", ".join(f"{code}: {WHY.get(code, 'Redis refuses calls')}" for code in sorted(codes))


# Says when Redis goes and when it is back; of a cluster, how much of it.
#
# Part of the composition root.


AWAY_LOOK_S = 0.2


async def tell_of_redis(
    ways: RedisConnections, log: Callable[..., None], *, look_s: float = AWAY_LOOK_S
) -> None:
    """Say it until cancelled: in between no call waits for it."""
    said = 0
    while True:
        if (away := ways.away) != said:
            said = away
            if away:
                log("redis is away", partitions=away, why=ways.trouble, level="error")
            else:
                log("redis is back", level="info")
        await asyncio.sleep(look_s)
