"""Which programs run: each gateway worker and keeper says so in one sorted set, by when it did last.

Nothing depends on it: it is for people. Who is silent goes by itself, by Redis' own clock.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

import msgspec

from gateway.core.programs import Program, Seen
from gateway.core.wait import Wait, in_task
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

SAID_EACH_S = 30.0
SILENT_S_MAX = 90
# Those that spoke last; a process that has just begun is one of them.
PROGRAMS_MAX = 4_096
HOST_CHARS_MAX = 253
_NAME = keys.PROGRAMS.encode()


class Programs:
    """All there are, of which this process is one."""

    def __init__(
        self,
        wires: Wires,
        said: Program,
        *,
        each_s: float = SAID_EACH_S,
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
        # What is more than so many goes, the longest silent first.
        bounded = self._send(b"ZREMRANGEBYRANK", b"0", b"%d" % -(self._programs_max + 1))
        for wait in (told, bounded):
            await in_task(wait)

    async def leave(self) -> None:
        """Be there no more."""
        with suppress(CountersUnavailable):
            await in_task(self._send(b"ZREM", self._member))

    async def read(self) -> list[Seen]:
        """Who is there, those that began last first; CountersUnavailable where nobody knows.

        Who is silent is removed.
        """
        since = b"(%.3f" % (await self._now() - self._silent_s)
        gone = self._send(b"ZREMRANGEBYSCORE", b"-inf", since[1:])
        there = self._send(b"ZRANGE", since, b"+inf", b"BYSCORE", b"WITHSCORES")
        await in_task(gone)
        flat = cast("list[bytes]", await in_task(there))
        found = [
            Seen(program, float(said))
            for member, said in zip(flat[::2], flat[1::2], strict=True)
            if (program := _read(member)) is not None
        ]
        return sorted(found, key=lambda one: (-one.program.started_at, one.program.id))

    async def _now(self) -> float:
        """The time of who has the list."""
        answer = await in_task(self._wires.of_key(_NAME).send(encode(b"TIME"), upkeep=True))
        seconds, micros = (int(one) for one in cast("list[bytes]", answer))
        return seconds + micros / 1e6

    def _send(self, verb: bytes, *rest: bytes) -> Wait[Reply]:
        return self._wires.of_key(_NAME).send(encode(verb, _NAME, *rest), upkeep=True)


def _read(member: bytes) -> Program | None:
    """What a member says; None for what no program of ours says."""
    try:
        return msgspec.json.decode(member, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
