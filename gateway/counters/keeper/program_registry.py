"""The registry of running programs; each program registers itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

import msgspec

from gateway.core.due import DISTANCES
from gateway.core.processes import Program, ProgramReport
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

PROGRAM_SAID_EACH_S = 30.0
SILENT_S_MAX = 90
# The most processes listed: the last to report, which includes one that has just started.
PROGRAMS_MAX = 4_096
_NAME = keys.PROGRAMS.encode()


class ProgramRegistry:
    """The registry of running processes; `said` describes this one."""

    def __init__(
        self,
        wires: RedisConnections,
        program: Program,
        *,
        each_s: float = PROGRAM_SAID_EACH_S,
        silent_s: float = SILENT_S_MAX,
        programs_max: int = PROGRAMS_MAX,
    ) -> None:
        self.said = program
        self._wires, self._member = wires, msgspec.json.encode(program)
        self._each_s, self._silent_s, self._programs_max = each_s, silent_s, programs_max

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
    since, until = b"(%.3f" % (now - silent_s), b"%.3f" % (now + DISTANCES * silent_s)
    gone = _send(wires, b"ZREMRANGEBYSCORE", _NAME, b"-inf", since[1:]) if forgets else None
    there = _send(wires, b"ZRANGE", _NAME, since, until, b"BYSCORE", b"WITHSCORES")
    if gone is not None:
        await in_task(gone)
    flat = cast("list[bytes]", await in_task(there))
    programs = [
        ProgramReport(program, float(at))
        for member, at in zip(flat[::2], flat[1::2], strict=True)
        if (program := _read(member)) is not None
    ]
    return sorted(programs, key=lambda entry: (-entry.program.started_at, entry.program.id))


async def _now(wires: RedisConnections) -> float:
    """Return the time of the server that stores the registry, in seconds."""
    seconds, micros = (int(number) for number in cast("list[bytes]", await in_task(_send(wires, b"TIME"))))
    return seconds + micros / 1e6


def _send(wires: RedisConnections, *words: bytes) -> Wait[Reply]:
    return wires.of_key(_NAME).send(encode(*words), upkeep=True)


def _read(member: bytes) -> Program | None:
    """Return the process in an entry of the registry; None if this version cannot read it."""
    try:
        return msgspec.json.decode(member, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
