"""The list of running processes, and the checks of a keeper on versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from gateway.background.loops import Agenda
from gateway.core.accounts.administration import Row
from gateway.core.capabilities import wait_reason
from gateway.core.layout import FIRST, LAYOUT
from gateway.core.processes import (
    Program,
    ProgramReport,
    StoredVersions,
    TakeUp,
    counted,
    programs_ahead,
    waiting_reason,
)
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.program_registry import PROGRAMS_MAX, SILENT_S_MAX, ProgramRegistry
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.errors import CountersUnavailable
from gateway.run.lifecycle import this_program
from persistence.engine import Engine
from persistence.schema.database import outgrown, status
from persistence.schema.standing import NEEDED

# The longest time that a keeper runs on after a migration that it does not fit.
SCHEMA_LOOK_S = 5.0
LAYOUT_LOOK_S = 1.0


class ProgramList(ProgramRegistry):
    """The list of running processes, and the checks of a keeper on versions."""

    def __init__(
        self, wires: RedisConnections, counters: Client, engine: Engine, *, registers: bool = True
    ) -> None:
        super().__init__(wires, this_program("keeper", NEEDED), registers=registers)
        self.outgrown = ""
        self.takes_up_layout = False
        self._counters, self._engine = counters, engine

    async def keep_looking(
        self, workers: Callable[[], Awaitable[int]], say: Callable[..., None], look_s: float = LAYOUT_LOOK_S
    ) -> None:
        """Check at intervals whether all processes can read the newest Redis layout; log with `say`.

        `workers` returns the number of gateway workers. A process that the list lacks is put there again: its entry was
        not stored, or was lost with the data of Redis.
        """
        take_up, reason = TakeUp(self.said, SILENT_S_MAX, PROGRAMS_MAX), ""
        while True:
            seen, count = None, 0
            with suppress(CountersUnavailable):
                seen, count = await self.read(), await workers()
                if all(report.program.id != self.said.id for report in seen):
                    await self.say()
            # Once it is taken up, no older program starts; a Redis that loses its data loses the list too.
            self.takes_up_layout |= take_up.look(time.monotonic(), seen, count)
            if take_up.why_not != reason:
                reason = take_up.why_not
                say("layout may be taken up" if not reason else "layout waits", layout=LAYOUT, why=reason)
            await asyncio.sleep(look_s)

    async def keep_to_schema(
        self, stop: asyncio.Event, writes: Agenda, look_s: float = SCHEMA_LOOK_S
    ) -> None:
        """Set `stop` when the schema becomes too new for this keeper, and store the reason in `outgrown`.

        `writes` tells when PostgreSQL was written; the check follows a write, at most each `look_s` seconds.
        """
        seen = 0
        while not self.outgrown:
            await asyncio.sleep(look_s)
            await writes.until_written(seen)
            seen = writes.written()
            self.outgrown = await outgrown(self._engine)
        stop.set()
        await asyncio.Event().wait()  # until it is cancelled

    async def report(self) -> Row:
        """Return the answer of `GET /programs`; CountersUnavailable if Redis does not answer."""
        seen, stored = await self.read(), await self._stored()
        programs = [report.program for report in seen]
        return {
            "layout": stored.layout,
            "schema_version": stored.schema or None,
            "runs_from": stored.runs_from or None,
            "items": [_row(report, stored, programs) for report in seen],
        }

    async def running(self) -> list[Program]:
        """Return the running programs; CountersUnavailable if Redis does not answer."""
        return [report.program for report in await self.read()]

    async def gauges(self) -> Mapping[str, object]:
        seen, stored = await self.read(), await self._stored()
        programs = [report.program for report in seen]
        refused = sum(bool(_refusal(program, stored, programs)) for program in programs)
        return {"programs": counted(seen), "programs_refused": refused}

    async def wait_reason(self, capability: str) -> str:
        """Return why a capability cannot be used yet, or "" if it can.

        Raise CountersUnavailable if Redis does not answer.
        """
        seen, layouts = await self.read(), await self._layouts()
        return wait_reason(capability, [report.program for report in seen], min(layouts))

    async def _stored(self) -> StoredVersions:
        """Return the layout version of the data in Redis, and the schema version in PostgreSQL."""
        layouts, at = await self._layouts(), await status(self._engine)
        return StoredVersions(max(layouts), at.version or "", at.runs_from)

    async def _layouts(self) -> list[int]:
        """Return the layout in which each partition is written; 0 if it has none."""
        markers = (await self._counters.ask_all(b"GET", keys.marker)).values()
        numbers = (raw[0] if isinstance(raw, bytes) and raw else 0 for raw in markers)
        return [number if number >= FIRST else 0 for number in numbers]


def _refusal(program: Program, stored: StoredVersions, programs: Sequence[Program]) -> str:
    """Return why a program serves nothing, or nothing well: it is too old, or others have other forms of data."""
    return stored.refused(program) or waiting_reason(programs_ahead(program, programs))


def _row(report: ProgramReport, stored: StoredVersions, programs: Sequence[Program]) -> Row:
    facts = asdict(report.program)
    return {
        **facts,
        "schema_version": facts.pop("schema") or None,
        "time_zones": report.program.time_zones or None,
        "forms": report.program.forms or None,
        "started_at": datetime.fromtimestamp(report.program.started_at, UTC),
        "said_at": datetime.fromtimestamp(report.said_at, UTC),
        "refused": _refusal(report.program, stored, programs) or None,
    }
