"""The registry of running programs; each program registers itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import cast

import msgspec

from gateway.core.due import DISTANCES
from gateway.core.processes import Program, ProgramReport, programs_ahead, waiting_reason
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.address import Ask
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable

PROGRAM_SAID_EACH_S = 30.0
SILENT_S_MAX = 90
# The most processes listed: the last to report, which includes one that has just started.
PROGRAMS_MAX = 4_096
# A waiting program says so each time that it tries to connect, every second at least.
WAITING_SILENT_S_MAX = 5.0
# How long connections to other servers wait for what the one that stores the registry decides.
DECIDED_S_MAX = 1.0
_NAME = keys.PROGRAMS.encode()


class ProgramRegistry:
    """The registry of running processes; `said` describes this one.

    `waits_for` is why this process has no connection: which programs of other forms of data go before it. If it does
    not `register`, another process of the same program does.
    """

    def __init__(
        self,
        wires: RedisConnections,
        program: Program,
        *,
        each_s: float = PROGRAM_SAID_EACH_S,
        silent_s: float = SILENT_S_MAX,
        programs_max: int = PROGRAMS_MAX,
        registers: bool = True,
    ) -> None:
        self.said = program
        self._registers = registers
        self.waits_for = ""
        self._decided = asyncio.Event()
        self._wires, self._member = wires, msgspec.json.encode(program)
        self._each_s, self._silent_s, self._programs_max = each_s, silent_s, programs_max

    async def admit(self, wire: RedisConnection, ask: Ask) -> None:
        """Raise CountersUnavailable if a new connection must not be used yet: two forms of data never serve together.

        `ask` sends a command over the connection `wire`. A user who may not read the registry is admitted, as is the
        connection to another server if that of the registry does not answer.
        """
        if self._wires.of_key(_NAME) is not wire:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._decided.wait(), DECIDED_S_MAX)
        else:
            with suppress(CountersRefused):
                self.waits_for = waiting_reason(await self._join(ask))
            self._decided.set()
        if self.waits_for:
            raise CountersUnavailable(self.waits_for)

    async def _join(self, ask: Ask) -> list[Program]:
        """Register this process, and return the programs that it waits for."""
        now = _seconds(await ask(b"TIME"))
        ahead = programs_ahead(self.said, await _programs(ask, now))
        if self._registers:
            began = await self._register(ask, now, waits=bool(ahead))
            if not ahead and (
                ahead := programs_ahead(self.said, began)
            ):  # another one began at the same time
                await self._register(ask, now, waits=True)
        return ahead

    async def _register(self, ask: Ask, now: float, *, waits: bool) -> list[Program]:
        """Write whether this process waits, and return the running programs after that."""
        states = [msgspec.json.encode(replace(self.said, waits=state)) for state in (waits, not waits)]
        self._member, before = states
        written = ask(b"ZADD", _NAME, b"%.3f" % now, self._member), ask(b"ZREM", _NAME, before)
        *_, programs = await asyncio.gather(*written, _programs(ask, now))
        return programs

    async def keep_saying(self) -> None:
        """Renew the registry's entry for this process at intervals until cancelled."""
        while True:
            with suppress(CountersUnavailable):  # or full: no other process depends on it
                await self.say()
            await asyncio.sleep(self._each_s)

    async def say(self) -> None:
        """Renew the registry's entry for this process once; CountersUnavailable if Redis is away or full."""
        now = b"%.3f" % await _now(self._wires)
        written = self._send(b"ZADD", now, self._member)
        # Beyond the maximum, those silent for longest are removed.
        bounded = self._send(b"ZREMRANGEBYRANK", b"0", b"%d" % -(self._programs_max + 1))
        for wait in (written, bounded):
            await in_task(wait)

    async def leave(self) -> None:
        """Remove this process from the registry of running processes."""
        with suppress(CountersUnavailable):
            await in_task(self._send(b"ZREM", self._member))

    async def read(self) -> list[ProgramReport]:
        """Return the running processes, the last started first; remove those that do not renew entries.

        CountersUnavailable if Redis does not answer.
        """
        return await read_programs(self._wires, self._silent_s, forgets=True)

    def _send(self, verb: bytes, *rest: bytes) -> Wait[Reply]:
        return _send(self._wires, verb, _NAME, *rest)


async def read_programs(
    wires: RedisConnections, silent_s: float = SILENT_S_MAX, *, forgets: bool = False
) -> list[ProgramReport]:
    """Return the running processes, the last started first; remove those that are silent if it `forgets`."""
    now = await _now(wires)
    if forgets:
        await in_task(_send(wires, b"ZREMRANGEBYSCORE", _NAME, b"-inf", b"%.3f" % (now - silent_s)))
    return _reports(cast("list[bytes]", await in_task(_send(wires, *_select_running(now, silent_s)))), now)


async def _programs(ask: Ask, now: float) -> list[Program]:
    return [report.program for report in _reports(await ask(*_select_running(now, SILENT_S_MAX)), now)]


def _select_running(now: float, silent_s: float) -> tuple[bytes, ...]:
    """Return the command that lists processes which have reported in the last `silent_s` seconds."""
    since, until = b"(%.3f" % (now - silent_s), b"%.3f" % (now + DISTANCES * silent_s)
    return b"ZRANGE", _NAME, since, until, b"BYSCORE", b"WITHSCORES"


def _reports(flat: list[bytes], now: float) -> list[ProgramReport]:
    programs = [
        ProgramReport(program, float(at))
        for member, at in zip(flat[::2], flat[1::2], strict=True)
        if (program := _read(member)) is not None
        and not (program.waits and float(at) < now - WAITING_SILENT_S_MAX)
    ]
    return sorted(programs, key=lambda entry: (-entry.program.started_at, entry.program.id))


async def _now(wires: RedisConnections) -> float:
    """Return the time of the server that stores the registry, in seconds."""
    return _seconds(await in_task(_send(wires, b"TIME")))


def _seconds(time: Reply) -> float:
    seconds, micros = (int(number) for number in cast("list[bytes]", time))
    return seconds + micros / 1e6


def _send(wires: RedisConnections, *words: bytes) -> Wait[Reply]:
    return wires.of_key(_NAME).send(encode(*words), upkeep=True)


def _read(member: bytes) -> Program | None:
    """Return the process in an entry of the registry; None if this version cannot read it."""
    try:
        return msgspec.json.decode(member, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
