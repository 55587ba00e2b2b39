"""Where accounts stand in the counters, looked at only: quotas, balances, budgets, seqs, holds."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, cast

import msgspec

from gateway.core.accounts.budgets import LiveWindow
from gateway.core.accounts.plans import LiveQuota
from gateway.core.accounts.refusals import Counts, bounded
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.recovery import AccountHead, WorkerReport
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS
from gateway.core.processes import Program, ProgramReport
from gateway.core.wait import Wait, in_task
from gateway.counters.keeper.client import Client, are_any_there, is_readable
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable


class AccountHeads(Client):
    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Read the quotas of (partition, tenant id) pairs as they stand; None for one that is not loaded.

        Nothing of one that nobody here can read, here and below.
        """
        found = await self.peek(states.TenantState, tenants)
        return {id_: _quota(state) if state else None for id_, state in found.items()}

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        found = await self.peek(states.OrganizationState, organizations)
        return {id_: state.balance if state else None for id_, state in found.items()}

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> dict[str, dict[int, LiveWindow] | None]:
        """Read windows, by budget, of (partition, account name) pairs as they are stored.

        None where there is no such account. CountersUnavailable where a partition is not verified.
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
        """Read where accounts stand as they are stored, no due reset included, by account name.

        None where the counters have no such account; nothing of one that another version has stored.
        CountersUnavailable where a partition is not verified: what is not there may only not be there yet.
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

    async def unreadable(self, owners: Sequence[Owner]) -> set[str]:
        """Return which of their accounts are stored as no version up to ours stores them, by account name."""
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
        """CountersUnavailable where one is not verified: what is not there may only not be there yet."""
        for partition in partitions:
            run_id = self.run_id_of(partition)
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable

    async def holds(self) -> int:
        """Return holds of calls in flight, over all partitions."""
        if not await are_any_there(self, [keys.deadlines(one) for one in self.partitions]):
            return 0
        counts = await self.ask_all(b"ZCARD", keys.deadlines)
        return sum(count for count in counts.values() if isinstance(count, int))


def _is_nobodys(kind: type[states.State], raw: bytes | None) -> bool:
    """Return whether a state cannot be read, though no newer version may have stored it."""
    return False if not raw or raw[0] > LAYOUT else not is_readable(kind, raw)


def _remaining(tenant: states.TenantState) -> int | None:
    return None if tenant.unlimited else tenant.remaining


def _quota(state: states.TenantState) -> LiveQuota:
    return LiveQuota(
        tokens_used=state.used,
        tokens_remaining=_remaining(state),
        tokens_held=state.held,
        is_blocked=state.is_blocked,
        manual_block=state.manual_block,
        last_reset_ms=state.last_reset,
        next_reset_ms=state.next_reset,
        cycle=state.cycle,
        seq=state.seq,
    )


# What tenants' calls used and were refused in the last minute, of all gateways together, kept in Redis.
#
# Each worker adds what it counted every other second to a hash of five seconds, which Redis forgets
# by itself. Nothing depends on it: while Redis is away nothing is kept, and nothing waits.

PUBLISH_S = 2.0
BUCKET_S = 5
WINDOW_S_MAX = 60
KEPT_S = WINDOW_S_MAX + 4 * BUCKET_S
TENANTS_TOLD_MAX = 100  # by one worker, each time


class Activity:
    """The hashes of the last minute; `unix_seconds` is the time of day."""

    def __init__(self, wires: RedisConnections, unix_seconds: Callable[[], float]) -> None:
        self._wires, self._unix_seconds = wires, unix_seconds

    async def keep_publishing(self, taken: Callable[[], Counts]) -> None:
        """Add what is taken, again and again, until cancelled."""
        while True:
            await asyncio.sleep(PUBLISH_S)
            with suppress(CountersUnavailable):
                await self.publish(taken())

    async def publish(self, counts: Counts) -> None:
        """Add counts to the present hash; CountersUnavailable where Redis does not answer."""
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
        """Return counts of the last seconds, and how many they really were.

        CountersUnavailable where Redis does not answer.
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


# Whether a keeper runs, and its peppers for credentials: one key, which each keeper renews.
#
# Nothing depends on it. People read it, and the search for a wrong pepper does too.

SAID_EACH_S = 10.0
PRESENCE_KEPT_S = 60
_KEEPERS = keys.KEEPERS.encode()


@dataclass(frozen=True, slots=True)
class KeeperInfo:
    """What the keeper that spoke last is: its version, and the ids of its peppers, the current one first; and
    how many accounts it found that it cannot read.
    """

    version: str
    peppers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    unreadable: int = 0


class Presence:
    """Says that this keeper is there, and how many accounts it cannot read."""

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
        """Say it again and again, until cancelled."""
        while True:
            with suppress(CountersUnavailable, CountersRefused):  # a full server takes nothing
                wire = self._wires.of_key(_KEEPERS)
                raw = msgspec.json.encode(KeeperInfo(self._version, self._peppers, self._unreadable()))
                await in_task(wire.send(encode(b"SET", _KEEPERS, raw, b"EX", b"%d" % PRESENCE_KEPT_S)))
            await asyncio.sleep(SAID_EACH_S)


async def heard(wires: RedisConnections) -> KeeperInfo | None:
    """Return what the keeper that spoke last has said, if one did lately; `CountersRefused` for no right.

    None too for what no keeper of this version says.
    """
    raw = await in_task(wires.of_key(_KEEPERS).send(encode(b"GET", _KEEPERS)))
    try:
        return msgspec.json.decode(raw, type=KeeperInfo) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# Which programs run: each gateway worker and keeper says so in one sorted set, by when it did last.
#
# Nothing depends on it: it is for people. Who is silent goes by itself, by Redis' own clock.

PROGRAM_SAID_EACH_S = 30.0
SILENT_S_MAX = 90
# Those that spoke last; a process that has just begun is one of them.
PROGRAMS_MAX = 4_096
HOST_CHARS_MAX = 253
_NAME = keys.PROGRAMS.encode()


class ProgramRegistry:
    """All programs; this process is one of them."""

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
        """Say again and again that this one is there, until cancelled."""
        while True:
            with suppress(CountersUnavailable):  # or full: nobody depends on it
                await self.say()
            await asyncio.sleep(self._each_s)

    async def say(self) -> None:
        """Say it once; CountersUnavailable where Redis does not answer, or takes nothing."""
        now = b"%.3f" % await self._now()
        told = self._send(b"ZADD", now, self._member)
        # Beyond so many, the longest silent go first.
        bounded = self._send(b"ZREMRANGEBYRANK", b"0", b"%d" % -(self._programs_max + 1))
        for wait in (told, bounded):
            await in_task(wait)

    async def leave(self) -> None:
        """Be there no more."""
        with suppress(CountersUnavailable):
            await in_task(self._send(b"ZREM", self._member))

    async def read(self) -> list[ProgramReport]:
        """Return who is there, those that began last first; CountersUnavailable where nobody knows.

        Who is silent is removed.
        """
        since = b"(%.3f" % (await self._now() - self._silent_s)
        gone = self._send(b"ZREMRANGEBYSCORE", b"-inf", since[1:])
        there = self._send(b"ZRANGE", since, b"+inf", b"BYSCORE", b"WITHSCORES")
        await in_task(gone)
        flat = cast("list[bytes]", await in_task(there))
        found = [
            ProgramReport(program, float(said))
            for member, said in zip(flat[::2], flat[1::2], strict=True)
            if (program := _read(member)) is not None
        ]
        return sorted(found, key=lambda one: (-one.program.started_at, one.program.id))

    async def _now(self) -> float:
        """Return the time of who has the list."""
        answer = await in_task(self._wires.of_key(_NAME).send(encode(b"TIME"), upkeep=True))
        seconds, micros = (int(one) for one in cast("list[bytes]", answer))
        return seconds + micros / 1e6

    def _send(self, verb: bytes, *rest: bytes) -> Wait[Reply]:
        return self._wires.of_key(_NAME).send(encode(verb, _NAME, *rest), upkeep=True)


def _read(member: bytes) -> Program | None:
    """Return what a member says; None for what no program of ours says."""
    try:
        return msgspec.json.decode(member, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


# What workers report of themselves in Redis, each in a field of its own named by its worker number.

# Between two reports that say the same: a keeper waits longer before it takes a worker for gone.
SAY_AGAIN_S = 5.0

_REPORT = struct.Struct(f"<40sQ{PARTITIONS}Q")


class WorkerReports:
    """One worker's report, left with each server. CountersUnavailable is raised where none answers."""

    def __init__(
        self, wires: RedisConnections, worker_slot: str, beat: int, clock: Callable[[], float]
    ) -> None:
        self._wires, self._worker_slot, self._beat, self._clock = wires, worker_slot.encode(), beat, clock
        # Of each server: the last epochs, their history, since when it tells; and when.
        self._said: dict[RedisConnection, tuple[Sequence[int], bytes, int, float]] = {}

    async def report(self, epochs: Sequence[int]) -> None:
        """Say that it lives, and the epoch of each partition that all earlier entries were sent again for.

        Who tells what changes would tell that its data is another: to say the same again has time there.
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
        """Nothing is left of this worker that anybody has to wait for."""
        self._said = {}
        left = {
            wire: wire.send(encode(b"HDEL", _name(wire), self._worker_slot)) for wire in self._wires.wires
        }
        await _answered(left)

    def _has_heard(self, wire: RedisConnection, epochs: Sequence[int], now: float) -> bool:
        """Return whether this very data has this report, as of a moment ago."""
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
    """Wait for all of them; who answered, CountersUnavailable where that is nobody and must not be."""
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
    """Return a report as its field holds it: run id, beat, an epoch each partition."""
    return _REPORT.pack(report.run_id, report.beat, *report.epochs)


def unpack(raw: bytes) -> WorkerReport | None:
    """Return the report of a field; None where another version wrote it."""
    if len(raw) != _REPORT.size:
        return None
    run_id, beat, *epochs = _REPORT.unpack(raw)
    return WorkerReport(run_id, beat, tuple(epochs))
