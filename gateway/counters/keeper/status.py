"""Read-only queries of the counters: quotas, balances, budgets, seqs, holds, and running processes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, cast

import msgspec

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.outbox import stream_place
from gateway.core.accounts.plans import LiveQuota
from gateway.core.accounts.refusals import Counts, bounded
from gateway.core.due import DISTANCES
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.recovery import AccountHead, WorkerReport
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS
from gateway.core.processes import Program, ProgramReport
from gateway.core.wait import Wait, in_task
from gateway.counters.keeper.client import Client, are_any_there, entries_of, is_readable
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable


class AccountHeads(Client):
    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Return the quotas of (partition, tenant id) pairs as of now; None for a tenant that is not loaded.

        A quota that this version cannot read is omitted.
        """
        found = await self.peek(states.TenantState, tenants)
        return {id_: _quota(state) if state else None for id_, state in found.items()}

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        found = await self.peek(states.OrganizationState, organizations)
        return {id_: state.balance if state else None for id_, state in found.items()}

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> dict[str, dict[int, LiveWindow] | None]:
        """Return the stored windows of (partition, account name) pairs, by account name and budget.

        None for a missing account. CountersUnavailable if a partition is not verified.
        """
        named: dict[int, list[str]] = {}
        for partition, name in accounts:
            named.setdefault(partition, []).append(name)
        await self._require_verified(named)
        found: dict[str, dict[int, LiveWindow] | None] = {}
        for partition, names in named.items():
            raw = await self.states([keys.budget_account(partition, name) for name in names])
            for name, packed in zip(names, raw, strict=True):
                with self.left_alone.reading("account", keys.budget_account(partition, name)):
                    found[name] = None if packed is None else live_windows(packed)
        return found

    async def account_heads(self, owners: Sequence[Owner]) -> dict[str, AccountHead | None]:
        """Return the balances of stored accounts, and the numbers (seq) of their last movements, by name.

        Due resets are not applied. None for a missing account; one of another version is omitted.
        CountersUnavailable if a partition is not verified, since a missing account may be loaded later.
        """
        organizations = [(keys.partition_of(one.organization_id), one.organization_id) for one in owners]
        tenants = [
            (keys.partition_of(one.organization_id), tenant_id)
            for one in owners
            for tenant_id in one.tenant_ids
        ]
        await self._require_verified({partition for partition, _ in organizations})
        found: dict[str, AccountHead | None] = {}
        for id_, tenant in (await self.stored(states.TenantState, tenants)).items():
            found[f"tenant:{id_}"] = AccountHead(tenant.seq, _remaining(tenant)) if tenant else None
        for id_, state in (await self.stored(states.OrganizationState, organizations)).items():
            found[f"credits:{id_}"] = AccountHead(state.credit_seq, state.balance) if state else None
            found[f"spend:{id_}"] = AccountHead(state.spend_seq, state.spent) if state else None
        return found

    async def open_calls(self, organization_id: int, tenant_ids: Sequence[int]) -> int:
        """Return how many calls, holds by the API and jobs of an organization's tenants are open.

        CountersUnavailable if the partition is not verified, since a missing tenant may be loaded later.
        """
        partition = keys.partition_of(organization_id)
        await self._require_verified([partition])
        found = await self.stored(states.TenantState, [(partition, id_) for id_ in tenant_ids])
        return sum(state.inflight for state in found.values() if state)

    async def unreadable(self, owners: Sequence[Owner]) -> set[str]:
        """Return the names of accounts whose stored layout no version up to this one can read."""
        found = set[str]()
        for one in owners:
            id_, partition = one.organization_id, keys.partition_of(one.organization_id)
            names = [keys.tenant_state(partition, tenant_id) for tenant_id in one.tenant_ids]
            *tenants, organization = await self.states([*names, keys.organization_state(partition, id_)])
            for tenant_id, raw in zip(one.tenant_ids, tenants, strict=True):
                if _is_nobodys(states.TenantState, raw):
                    found.add(f"tenant:{tenant_id}")
            if _is_nobodys(states.OrganizationState, organization):
                found |= {f"credits:{id_}", f"spend:{id_}"}
        return found

    async def _require_verified(self, partitions: Iterable[int]) -> None:
        """Raise CountersUnavailable if a partition is not verified: missing keys may be loaded later."""
        for partition in partitions:
            run_id = self.run_id_of(partition)
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable

    async def depth(self) -> tuple[int, int]:
        """Return the number of entries in all outboxes, and the oldest one's time in ms (0: none)."""
        names = [keys.outbox(partition) for partition in self.partitions]
        firsts = await entries_of(self, dict.fromkeys(names, b""), 1)
        waiting = [
            (name, read[0][0])
            for name, read in zip(names, firsts, strict=True)
            if isinstance(read, list) and read
        ]
        lengths = await self.ask_each((b"XLEN", name.encode()) for name, _ in waiting)
        times = [stream_place(first)[0] for _, first in waiting]
        return sum(length for length in lengths if isinstance(length, int)), min(times, default=0)

    async def holds(self) -> int:
        """Return the number of holds of calls in flight, over all partitions."""
        if not await are_any_there(self, [keys.deadlines(one) for one in self.partitions]):
            return 0
        counts = await self.ask_all(b"ZCARD", keys.deadlines)
        return sum(count for count in counts.values() if isinstance(count, int))


def _is_nobodys(kind: type[states.State], raw: bytes | None) -> bool:
    """Return whether a state is unreadable, although no newer version can have stored it."""
    return False if not raw or raw[0] > LAYOUT else not is_readable(kind, raw)


def _remaining(tenant: states.TenantState) -> int | None:
    return None if tenant.unlimited else tenant.remaining


def _quota(state: states.TenantState) -> LiveQuota:
    cause = state.block_cause
    return LiveQuota(
        tokens_used=state.used,
        tokens_remaining=_remaining(state),
        tokens_held=state.held,
        is_blocked=state.is_blocked,
        manual_block=state.manual_block,
        block_cause=None if cause is None else cause.word,
        last_reset_ms=state.last_reset,
        next_reset_ms=state.next_reset,
        cycle=state.cycle,
        seq=state.seq,
    )


# The use and refusals of tenants' calls in the last minute, summed over all gateways, in Redis.
#
# Every other second each worker adds its counts to a hash that covers five seconds and expires. Nothing
# depends on these counts: while Redis is away they are dropped, and no call waits for them.

PUBLISH_S = 2.0
BUCKET_S = 5
WINDOW_S_MAX = 60
KEPT_S = WINDOW_S_MAX + 4 * BUCKET_S
TENANTS_TOLD_MAX = 100  # by one worker, each time


class Activity:
    """The hashes of the last minute; `unix_seconds` returns the time of day."""

    def __init__(self, wires: RedisConnections, unix_seconds: Callable[[], float]) -> None:
        self._wires, self._unix_seconds = wires, unix_seconds

    async def keep_publishing(self, taken: Callable[[], Counts]) -> None:
        """Publish the activity counts that `taken` returns, at intervals until cancelled."""
        while True:
            await asyncio.sleep(PUBLISH_S)
            with suppress(CountersUnavailable):
                await self.publish(taken())

    async def publish(self, counts: Counts) -> None:
        """Add activity counts to the present interval's hash; CountersUnavailable without Redis."""
        if not counts:
            return
        name = keys.activity(int(self._unix_seconds()) // BUCKET_S).encode()
        wire = self._wires.of_key(name)
        waits = [
            wire.send(encode(b"HINCRBY", name, b"%d:%b" % (tenant_id, kind.encode()), b"%d" % count))
            for (tenant_id, kind), count in bounded(counts, TENANTS_TOLD_MAX).items()
        ]
        waits.append(wire.send(encode(b"EXPIRE", name, b"%d" % KEPT_S)))
        for wait in waits:
            await in_task(wait)

    async def read(self, window_s: int) -> tuple[list[tuple[tuple[int, str], int]], float]:
        """Return the activity counts of about the last `window_s` seconds, and the exact number of seconds.

        Each count has its tenant id and kind. CountersUnavailable if Redis does not answer.
        """
        now = self._unix_seconds()
        last = int(now) // BUCKET_S
        first = last - min(window_s, WINDOW_S_MAX) // BUCKET_S
        names = [keys.activity(bucket).encode() for bucket in range(first, last + 1)]
        waits = [self._wires.of_key(name).send(encode(b"HGETALL", name)) for name in names]
        found: list[tuple[tuple[int, str], int]] = []
        for wait in waits:
            answer = cast("list[bytes]", await in_task(wait))
            for field, count in zip(answer[::2], answer[1::2], strict=True):
                tenant_id, _, kind = field.decode().partition(":")
                found.append(((int(tenant_id), kind), int(count)))
        return found, now - first * BUCKET_S


# One key in which each running keeper stores its version and the ids of its peppers for credentials.
#
# No other process depends on it: it is for people, and for the search for a wrong pepper.

SAID_EACH_S = 10.0
PRESENCE_KEPT_S = 60
_KEEPERS = keys.KEEPERS.encode()


@dataclass(frozen=True, slots=True)
class KeeperInfo:
    """The last report of a keeper: version, ids of its peppers (current one first), unreadable accounts."""

    version: str
    peppers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    unreadable: int = 0


class Presence:
    """Reports that this keeper runs, and how many accounts it cannot read."""

    def __init__(
        self,
        wires: RedisConnections,
        version: str,
        peppers: tuple[str, ...],
        unreadable: Callable[[], int] = int,
    ) -> None:
        self._wires, self._version, self._peppers = wires, version, peppers
        self._unreadable = unreadable

    async def keep_saying(self) -> None:
        """Renew the report of this keeper at intervals until cancelled."""
        while True:
            with suppress(CountersUnavailable, CountersRefused):  # a full server refuses writes
                wire = self._wires.of_key(_KEEPERS)
                raw = msgspec.json.encode(KeeperInfo(self._version, self._peppers, self._unreadable()))
                await in_task(wire.send(encode(b"SET", _KEEPERS, raw, b"EX", b"%d" % PRESENCE_KEPT_S)))
            await asyncio.sleep(SAID_EACH_S)


async def heard(wires: RedisConnections) -> KeeperInfo | None:
    """Return the last keeper's report, or None if it has expired or no keeper of this version wrote it.

    `CountersRefused` without the right to read it.
    """
    raw = await in_task(wires.of_key(_KEEPERS).send(encode(b"GET", _KEEPERS)))
    try:
        return msgspec.json.decode(raw, type=KeeperInfo) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# Why a keeper stores no rows, for as long as that is so: the last such keeper to speak is heard.

UNSTORED_KEPT_S = 10
_UNSTORED = keys.UNSTORED.encode()


@dataclass(frozen=True, slots=True)
class UnstoredRows:
    """Why no row of a server's partitions is stored, and for how many seconds; `code` is an SQLSTATE, or "".

    `server` is the address of one of several servers of Redis, else "".
    """

    why: str
    seconds: float
    code: str = ""
    server: str = ""

    def __str__(self) -> str:
        whose = f" of {self.server}" if self.server else ""
        return f"no row{whose} could be stored for {self.seconds:,.0f} s: {self.why}"


async def say_unstored(wires: RedisConnections, unstored: UnstoredRows | None) -> None:
    """Store why no rows are stored, for `UNSTORED_KEPT_S` seconds, or None: they are again.

    CountersUnavailable without Redis.
    """
    command = [b"DEL", _UNSTORED]
    if unstored is not None:
        command = [b"SET", _UNSTORED, msgspec.json.encode(unstored), b"EX", b"%d" % UNSTORED_KEPT_S]
    await in_task(wires.of_key(_UNSTORED).send(encode(*command)))


async def read_unstored(wires: RedisConnections) -> UnstoredRows | None:
    """Return why a keeper stores no rows; None if each does, or one of another version says so."""
    raw = await in_task(wires.of_key(_UNSTORED).send(encode(b"GET", _UNSTORED)))
    try:
        return msgspec.json.decode(raw, type=UnstoredRows) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# The running processes: each gateway worker and keeper is in one sorted set, by the time of its last report.
#
# It is only for people. A silent process is removed, by Redis' clock.

PROGRAM_SAID_EACH_S = 30.0
SILENT_S_MAX = 90
# The most processes listed: the last to report, which includes one that has just started.
PROGRAMS_MAX = 4_096
HOST_CHARS_MAX = 253
_NAME = keys.PROGRAMS.encode()


class ProgramRegistry:
    """The registry of running processes; `said` describes this one."""

    def __init__(
        self,
        wires: RedisConnections,
        said: Program,
        *,
        each_s: float = PROGRAM_SAID_EACH_S,
        silent_s: float = SILENT_S_MAX,
        programs_max: int = PROGRAMS_MAX,
    ) -> None:
        self.said = said
        self._wires, self._member = wires, msgspec.json.encode(said)
        self._each_s, self._silent_s, self._programs_max = each_s, silent_s, programs_max

    async def keep_saying(self) -> None:
        """Renew the registry's entry for this process at intervals until cancelled."""
        while True:
            with suppress(CountersUnavailable):  # or full: no other process depends on it
                await self.say()
            await asyncio.sleep(self._each_s)

    async def say(self) -> None:
        """Renew the registry's entry for this process once; CountersUnavailable if Redis is away or full."""
        now = b"%.3f" % await self._now()
        told = self._send(b"ZADD", now, self._member)
        # Beyond the maximum, those silent for longest are removed.
        bounded = self._send(b"ZREMRANGEBYRANK", b"0", b"%d" % -(self._programs_max + 1))
        for wait in (told, bounded):
            await in_task(wait)

    async def leave(self) -> None:
        """Remove this process from the registry of running processes."""
        with suppress(CountersUnavailable):
            await in_task(self._send(b"ZREM", self._member))

    async def read(self) -> list[ProgramReport]:
        """Return the running processes, the last started first; remove those that do not renew entries.

        CountersUnavailable if Redis does not answer.
        """
        now = await self._now()
        since, until = b"(%.3f" % (now - self._silent_s), b"%.3f" % (now + DISTANCES * self._silent_s)
        gone = self._send(b"ZREMRANGEBYSCORE", b"-inf", since[1:])
        there = self._send(b"ZRANGE", since, until, b"BYSCORE", b"WITHSCORES")
        await in_task(gone)
        flat = cast("list[bytes]", await in_task(there))
        found = [
            ProgramReport(program, float(said))
            for member, said in zip(flat[::2], flat[1::2], strict=True)
            if (program := _read(member)) is not None
        ]
        return sorted(found, key=lambda one: (-one.program.started_at, one.program.id))

    async def _now(self) -> float:
        """Return the time of the server that stores the registry, in seconds."""
        answer = await in_task(self._wires.of_key(_NAME).send(encode(b"TIME"), upkeep=True))
        seconds, micros = (int(one) for one in cast("list[bytes]", answer))
        return seconds + micros / 1e6

    def _send(self, verb: bytes, *rest: bytes) -> Wait[Reply]:
        return self._wires.of_key(_NAME).send(encode(verb, _NAME, *rest), upkeep=True)


def _read(member: bytes) -> Program | None:
    """Return the process in an entry of the registry; None if this version cannot read it."""
    try:
        return msgspec.json.decode(member, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# Reports of workers in Redis, each in a field named by its worker number.

# The interval of unchanged reports: a keeper waits longer before a worker counts as gone.
SAY_AGAIN_S = 5.0

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """Writes one worker's report to each server. CountersUnavailable is raised if no server answers."""

    def __init__(
        self, wires: RedisConnections, worker_slot: str, beat: int, clock: Callable[[], float]
    ) -> None:
        self._wires, self._worker_slot, self._beat, self._clock = wires, worker_slot.encode(), beat, clock
        # By server, the last report: epochs, history, number of its invalidation connection, and time.
        self._said: dict[RedisConnection, tuple[Sequence[int], bytes, int, float]] = {}

    async def report(self, epochs: Sequence[int]) -> None:
        """Report that this worker lives, and the epoch of each partition for which it sent all records again.

        An unchanged report is rarely repeated to a server that reports changes, because the server would
        report that it was lost. CountersUnavailable if no server answers.
        """
        self._beat += 1
        epochs, now = tuple(epochs), self._clock()
        wires = self._wires.wires
        waits = {
            wire: wire.send(
                encode(b"HSET", _name(wire), self._worker_slot, self._packed(wire, epochs)), upkeep=True
            )
            for wire in wires
            if not self._has_heard(wire, epochs, now)
        }
        saying = {wire: (epochs, wire.run_id, wire.hearing.since, now) for wire in waits}
        answered = {wire: self._said[wire] for wire in wires if wire not in waits}
        for wire in await _answered(waits, one_at_least=not answered):
            answered[wire] = saying[wire]
        self._said = answered

    async def leave(self) -> None:
        """Delete this worker's report from every server, because keepers need not wait for its records."""
        self._said = {}
        left = {
            wire: wire.send(encode(b"HDEL", _name(wire), self._worker_slot)) for wire in self._wires.wires
        }
        await _answered(left)

    def _has_heard(self, wire: RedisConnection, epochs: Sequence[int], now: float) -> bool:
        """Return whether a server got a report of `epochs` a moment ago, under its present history."""
        if wire not in self._said or not wire.hearing.since:
            return False
        *said, at = self._said[wire]
        return said == [epochs, wire.run_id, wire.hearing.since] and now - at < SAY_AGAIN_S

    def _packed(self, wire: RedisConnection, epochs: Sequence[int]) -> bytes:
        return pack(WorkerReport(wire.run_id, self._beat, tuple(epochs)))


def _name(wire: RedisConnection) -> bytes:
    return keys.workers(wire.part.anchor).encode()


async def _answered(
    waits: Mapping[RedisConnection, Wait[Reply]], *, one_at_least: bool = True
) -> list[RedisConnection]:
    """Wait for all replies; return the connections that answered.

    If none did and `one_at_least` is set, raise CountersUnavailable.
    """
    answered, fault = [], CountersUnavailable()
    for wire, wait in waits.items():
        try:
            await in_task(wait)
            answered.append(wire)
        except CountersUnavailable as error:
            fault = error
    if one_at_least and not answered:
        raise fault
    return answered


def pack(report: WorkerReport) -> bytes:
    """Return a worker's packed report: run id, number of the report, and the epoch of each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> WorkerReport | None:
    """Return a worker's unpacked report; None if another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return WorkerReport(run_id, beat, tuple(epochs))
