"""Health of a process and of its machine, at its operations port: disk, Redis, clock.

It answers probes and metrics. An answer waits a bounded time, so that a probe never hangs, and results are
cached, so that frequent requests cost little.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.core.model import PARTITIONS
from gateway.core.processes import Found, report, report_availability
from gateway.core.wait import in_task
from gateway.counters.redis.address import (
    WHY,
    facts_of,
    files_failing,
    in_words,
    refusal_in,
    replica_lags,
    why_refused,
)
from gateway.counters.redis.cluster import WHY_MOVING, RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from gateway.settings.settings import Settings
from gateway.telemetry import metrics as tallies

# The share of a process' maximum of open files above which hardly one is left.
FILES_SHARE_MAX = 0.9
DISK_LOOK_S = 5.0
# With less free space nothing can be stored: the settlement log needs room while Redis is away.
FREE_BYTES_MIN = 16 * 1024 * 1024
# The operations port of a `serve` without a keeper: health and metrics, for probes and scrapes.
#
# It has its own few lines of HTTP/1.1: only GET, one answer a connection, small bounded requests.


HEAD_BYTES_MAX = 16_384
REQUEST_MAX_S = 5.0
SILENT_MAX = 64  # connections without a complete request
ANSWERS_MAX = 32  # answers being written at once, apart from /livez
BACKLOG = 1_024
# Whether each partition is available and verified: a cluster serves the others without one.
EVERY_PARTITION = "every_partition"
# The reason of that while a keeper verifies.
PARTITIONS_WAIT: Final = f"{{}} of {PARTITIONS} partitions wait for a keeper to verify them"
# Whether the running settings are those of the configuration file.
CONFIGURATION = "configuration"
# Whether a keeper stores rows in PostgreSQL.
ROWS = "rows"
# Whether there is room on the disks of our directories.
DISK = "disk"
# Whether each process can open more files.
OPEN_FILES = "open_files"
# Whether the clock agrees with that of Redis.
CLOCK = "clock"
# Whether this process can read all accounts that it met.
ACCOUNTS = "accounts"
# Checks that leave a process ready: calls go on, and an alert fires.
TOLD_ALONE = frozenset({ACCOUNTS, CLOCK, CONFIGURATION, DISK, EVERY_PARTITION, OPEN_FILES})
ProtocolFactory = Callable[[], asyncio.Protocol]
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def has_free_files(snapshot: Mapping[str, Any]) -> bool:
    opened, most = (dict(snapshot.get(name, ())) for name in ("open_files", "open_files_max"))
    return all(count <= FILES_SHARE_MAX * most[name] for name, count in opened.items() if name in most)


class DiskWatch:
    """Watches the disks of our directories; `full` are the full ones. Logs each change.

    `look` returns the directories whose disks have less than a number of free bytes.
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
        """Look at intervals which disks are full, and log each change."""
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
    """Return metrics of the size and free bytes of the disks with our directories; skip unreadable ones."""
    free: list[tuple[str, int]] = []
    size: list[tuple[str, int]] = []
    for name, place in _places(settings):
        with suppress(OSError):
            size_bytes, free_bytes = _disk_usage(_existing(place))
            if size_bytes:  # what has no size is no disk, such as /proc
                free.append((name, free_bytes))
                size.append((name, size_bytes))
    return {"disk_free_bytes": free, "disk_size_bytes": size}


def full_disks(settings: Settings, free_bytes_min: int = FREE_BYTES_MIN) -> tuple[str, ...]:
    """Return the directories whose disks have less than `free_bytes_min` bytes free, one for each disk."""
    found: dict[int, str] = {}
    for _, place in _places(settings):
        with suppress(OSError):
            there = _existing(place)
            size_bytes, free_bytes = _disk_usage(there)
            if size_bytes and free_bytes < free_bytes_min:
                found.setdefault(there.stat().st_dev, str(place))
    return tuple(found.values())


def _disk_usage(place: Path) -> tuple[int, int]:
    """Return the bytes of a disk, and those free for us. `shutil` would load bz2 and lzma into each worker."""
    disk = os.statvfs(place)
    return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize


def _places(settings: Settings) -> tuple[tuple[str, Path], ...]:
    return ("data", Path(settings.data_dir)), ("settlements", settings.settlements_dir)


def _existing(place: Path) -> Path:
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


# Whether the servers of Redis accept and store calls, from their own figures.
#
# These are queried every few seconds: a server that refuses calls may get no commands meanwhile, and its
# recovery must be noticed.

ASK_S = 2.0
# Codes that the figures do not show: they are known from answers to calls, for this time.
ANSWERED = {"MISCONF", "NOREPLICAS"}
ANSWERED_S = 10.0
# The largest tolerated difference of two clocks.
CLOCK_OFF_S_MAX = 10.0
# The most reasons that are told, and the length of each.
REASONS_MAX, CAUSE_CHARS_MAX = 16, 200


class RedisState:
    """The state of Redis: `refusing` has the partitions whose calls are refused, by code; `taking` the
    others.

    Both are numbers of partitions. `moving` are the slots of a cluster that are moved key by key, and how many
    commands met that. `adjust` is called with the seconds that our clock is ahead of all servers, 0 if it agrees
    with one. `clock_off_s` is how far our clock is ahead of the server's with the
    largest difference.
    """

    def __init__(
        self, wires: RedisConnections, log: Callable[..., None], *, wall: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic, adjust: Callable[[float], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.refusing: Mapping[str, int] = {}
        self.taking = PARTITIONS
        self.moving: Mapping[int, int] = {}
        self.clock_off_s = 0.0
        # By the name of each server that refuses calls, its code.
        self._codes: Mapping[str, str] = {}
        self._facts: list[dict[str, str]] = []
        self._wires, self._log, self._wall, self._seconds = wires, log, wall, seconds
        self._adjust = adjust

    async def keep_asking(self, *, ask_s: float = ASK_S) -> None:
        """Query the Redis servers until cancelled.

        Log when they begin to refuse calls, and when they stop, and so of each slot that is being moved.
        """
        while True:
            before, moving = self._codes, self.moving
            await self.ask()
            for slot in self.moving.keys() - moving.keys():
                self._log("redis slot is being moved", slot=slot, why=WHY_MOVING, level="warning")
            for slot in moving.keys() - self.moving.keys():
                self._log("redis slot is at rest again", slot=slot, level="info")
            for code in {code for server, code in self._codes.items() if before.get(server) != code}:
                servers = ", ".join(server for server, theirs in self._codes.items() if theirs == code)
                self._log("redis refuses", code=code, servers=servers, why=WHY[code], level="error")
            if before and not self._codes:
                self._log("redis takes everything again", level="info")
            await asyncio.sleep(ask_s)

    async def ask(self) -> None:
        """Query all servers' states; note refused and accepting partitions, and the clock's offset."""
        wires = self._wires.wires
        found = await asyncio.gather(*(self._ask_server(wire) for wire in wires))
        refusing, taking, offsets, codes = Counter[str](), 0, list[float](), dict[str, str]()
        for wire, (facts, ahead_s) in zip(wires, found, strict=True):
            by_itself = why_refused(facts)
            if code := by_itself or self._answered(wire):
                refusing[code] += len(wire.partitions)
                codes[wire.server] = code
            if wire.available and not by_itself:
                taking += len(wire.partitions)
            if facts:
                offsets.append(ahead_s)
        self.refusing, self.taking, self._codes = refusing, taking, codes
        self.clock_off_s = max(offsets, key=abs, default=0.0)
        if offsets:
            least = min(offsets, key=abs)
            self._adjust(least if abs(least) >= CLOCK_OFF_S_MAX else 0.0)
        self.moving = self._wires.moving
        self._facts = [facts for facts, _ in found if facts]

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Why calls of some partitions are refused: (server, cause), at most `REASONS_MAX`."""
        refusals = {server: f"{code}: {WHY[code]}" for server, code in self._codes.items()}
        moved = {f"slot {slot}": WHY_MOVING for slot in sorted(self.moving)}
        found = {**self._wires.missing, **refusals, **moved}
        return [(server, cause[:CAUSE_CHARS_MAX]) for server, cause in found.items()][:REASONS_MAX]

    @property
    def why(self) -> str:
        """The reasons why Redis refuses calls, as a sentence; empty if it refuses none."""
        return in_words(self.reasons)

    def snapshot(self) -> dict[str, object]:
        missing = self._wires.missing
        servers = dict.fromkeys([*self._wires.servers, *missing])
        return {
            "redis_away": [(server, int(server in missing)) for server in servers],
            tallies.REDIS_REASONS: [(server, cause, 1) for server, cause in self.reasons],
            "partitions_refusing": [*self.refusing.items()],
            "partitions_taking": self.taking,
            "redis_slots_moving": [(str(slot), met) for slot, met in sorted(self.moving.items())],
            "clock_offset_seconds": [("redis", self.clock_off_s)],
        }

    def figures(self) -> dict[str, object]:
        """Return metrics of the Redis servers for a keeper: of each metric the worst value of all servers."""
        memory = [[int(fact.get(name) or 0) for name in ("used_memory", "maxmemory")] for fact in self._facts]
        if not memory:
            return {}
        used, most = max(memory, key=lambda one: (one[0] / one[1] if one[1] else 0.0, one[0]))
        failing = Counter(file for facts in self._facts for file in files_failing(facts))
        lags = [lag for facts in self._facts for lag in replica_lags(facts)]
        return {
            "redis_memory_used_bytes": used,
            "redis_memory_max_bytes": most,
            "redis_files_failing": [(file, failing[file]) for file in ("append_only", "snapshot")],
            "redis_replicas": min(int(fact.get("connected_slaves") or 0) for fact in self._facts),
            **({"redis_replica_lag_seconds": max(lags)} if lags else {}),
        }

    async def _ask_server(self, wire: RedisConnection) -> tuple[dict[str, str], float]:
        """Return the INFO of a server, and the seconds that our clock is ahead of the server's."""
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
        """Return the error code by which Redis refused a recent command, or the connection; "" for none."""
        code, at = wire.refusal
        if wire.available and code in ANSWERED and self._seconds() - at < ANSWERED_S:
            return code
        return "" if wire.available else refusal_in(wire.cause)


# Logs when servers of Redis go away and when all are back.

AWAY_LOOK_S = 0.2


async def tell_of_redis(
    ways: RedisConnections, log: Callable[..., None], *, look_s: float = AWAY_LOOK_S
) -> None:
    """Log the servers that are away, whenever they are others, and when all are back, until cancelled."""
    logged: tuple[int, frozenset[str]] = (0, frozenset())
    while True:
        missing = ways.missing
        now = ways.away if missing else 0, frozenset(missing)
        if now != logged:
            logged = now
            if missing:
                log("redis is away", partitions=ways.away, why=in_words(missing.items()), level="error")
            else:
                log("redis is back", level="info")
        await asyncio.sleep(look_s)


@dataclass(frozen=True, slots=True)
class Ops:
    """The sources of the port's answers.

    `dependencies` returns, by name, whether each dependency is well, or why not. `metrics` takes the `Accept`
    field and returns body and content type.
    """

    dependencies: Callable[[], Awaitable[Found]]
    metrics: Callable[[str], tuple[bytes, str]]


async def listen(
    ops: Ops,
    host: str,
    port: int,
    answers_max: int = ANSWERS_MAX,
    *,
    wrapped: Callable[[ProtocolFactory], ProtocolFactory] | None = None,
    given: socket.socket | None = None,
) -> asyncio.Server:
    """Listen at a host and port, or at the socket `given`, and answer up to `answers_max` requests at once.

    Return the server. `OSError` if the port is taken. `wrapped` adds TLS to connections.
    """
    served, loop = OpsConnections(ops, answers_max), asyncio.get_running_loop()

    def plain() -> asyncio.Protocol:
        reader = asyncio.StreamReader(limit=HEAD_BYTES_MAX, loop=loop)
        return asyncio.StreamReaderProtocol(reader, served.connection, loop=loop)

    made: ProtocolFactory = plain if wrapped is None else wrapped(plain)
    if given is not None:
        return await loop.create_server(made, sock=given, backlog=BACKLOG)
    return await loop.create_server(made, host, port, backlog=BACKLOG)


class OpsConnections:
    """The connections of the port. Beyond a maximum without a request, the oldest is closed.

    A probe sends its request at once, so it is answered even if others hold connections open; `/livez` is
    answered even if others read their answers slowly.
    """

    def __init__(self, ops: Ops, answers_max: int) -> None:
        self._ops = ops
        self._answers_max = answers_max
        self._silent: dict[asyncio.StreamWriter, None] = {}
        self._answers = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection; the oldest one without a request makes room if there are too many."""
        if len(self._silent) >= SILENT_MAX:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.transport.abort()
        self._silent[writer] = None
        try:
            async with asyncio.timeout(REQUEST_MAX_S):
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._silent.pop(writer, None)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; beyond the maximum, only `/livez` is answered."""
        head = await reader.readuntil(b"\r\n\r\n")
        self._silent.pop(writer, None)
        if self._answers >= self._answers_max and b" /livez" not in head[:16]:
            return
        self._answers += 1
        try:
            writer.write(await _make_answer(self._ops, head))
            await writer.drain()
        finally:
            self._answers -= 1


async def _make_answer(ops: Ops, head: bytes) -> bytes:
    """Return the whole answer to a request for the state of a process."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    fields = {name.strip().lower(): value for name, _, value in (line.partition(":") for line in lines)}
    status, body, content_type = await _find_content(ops, method, path, fields.get("accept", "").strip())
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    message = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\n{allow}Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return message.encode() + (b"" if method == "HEAD" else body)


async def _find_content(ops: Ops, method: str, path: str, accept: str) -> tuple[int, bytes, str]:
    """Return status, body and type of the content at a path."""
    if path not in {"/livez", "/readyz", "/metrics"}:
        return 404, b'{"status":"not found"}', "application/json"
    if method not in {"GET", "HEAD"}:
        return 405, b'{"status":"method not allowed"}', "application/json"
    if path == "/metrics":
        return 200, *ops.metrics(accept)
    dependencies = await ops.dependencies() if path == "/readyz" else {}
    well = all(
        is_there for name, is_there in report_availability(dependencies).items() if name not in TOLD_ALONE
    )
    return (200 if well else 503), json.dumps(report(well, dependencies)).encode(), "application/json"


# The reason that a stopping process gives for not being ready.
STOPPING = "it stops: what is under way is finished, and no more should come"


async def of_gateway(
    state: Callable[[], Mapping[str, Any]], serves: Callable[[], bool | str], disk: DiskWatch
) -> Found:
    """Return the readiness checks of a gateway that runs no keeper; `state` is that of its workers.

    `serves` returns True if a worker accepts calls, or else the reason why none does. One reachable primary
    of a Redis cluster is enough for `redis`; the check `every_partition` requires all of them. The check
    `configuration` fails if the file on disk is invalid, and so not applied.
    """
    found = state()
    every = PARTITIONS * found.get("workers", 0)
    away, unverified = (found.get(name, 0) for name in ("partitions_away", "partitions_unverified"))
    silent = "" if every else "no worker reports its state"
    why = silent or in_words((server, cause) for server, cause, _ in found.get(tallies.REDIS_REASONS, ()))
    return {
        "gateway": serves() or "no worker accepts calls",
        "redis": (away < every and found.get("partitions_taking", 1) > 0) or why,
        "counters_verified": unverified < every,
        EVERY_PARTITION: why
        or (unverified > away and PARTITIONS_WAIT.format(-(-unverified // found["workers"])))
        or every > away == 0,
        CONFIGURATION: not found.get("configuration_stale", 0),
        ACCOUNTS: check_accounts(dict(found.get("left_alone", ())).get("account", 0)),
        **of_process(found, disk),
    }


def check_accounts(unreadable: int) -> bool | str:
    """Return True, or what helps if this process cannot read some accounts."""
    why = "accounts that cannot be read, whose calls are refused: see tollkeeper doctor"
    return not unreadable or f"{why}; tollkeeper counters rebuild ORG rebuilds them from rows"


def of_process(snapshot: Mapping[str, Any], disk: DiskWatch) -> Found:
    """Return the checks of disks, open files and the clock, from the metrics of a process."""
    return {
        DISK: not disk.full or f"the disk of {', '.join(disk.full)} is full",
        OPEN_FILES: has_free_files(snapshot) or "hardly any file is left that a process may open",
        CLOCK: _check_clock(snapshot.get("clock_offset_seconds", ())),
    }


def _check_clock(offsets: Iterable[tuple[str, float]]) -> bool | str:
    """Return True if this machine's clock agrees with others, else the differences as text."""
    said = [
        f"the clock is {abs(off_s):,.0f} s {'ahead of' if off_s > 0 else 'behind'} that of {name}"
        for name, off_s in offsets
        if abs(off_s) >= CLOCK_OFF_S_MAX
    ]
    return not said or ", ".join(said)
