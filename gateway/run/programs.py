"""The list of programs as a keeper tells it, to people and to metrics: who runs, and who is too old.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from gateway.core.accounts.administration import Row
from gateway.core.layout import FIRST, LAYOUT
from gateway.core.processes import ProgramReport, StoredVersions, TakeUp, counted
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.status import PROGRAMS_MAX, SILENT_S_MAX, ProgramRegistry
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.errors import CountersUnavailable
from gateway.run.lifecycle import this_program
from persistence.engine import Engine
from persistence.schema.version import NEEDED, outgrown, status

# A keeper that was there before such a migration goes on for so long.
SCHEMA_LOOK_S = 5.0
LAYOUT_LOOK_S = 1.0


class ProgramList(ProgramRegistry):
    """All programs; this keeper is one of them."""

    def __init__(self, wires: RedisConnections, counters: Client, engine: Engine) -> None:
        super().__init__(wires, this_program("keeper", NEEDED))
        self.outgrown = ""
        self.takes_up_layout = False
        self._counters, self._engine = counters, engine

    async def keep_looking(
        self, workers: Callable[[], Awaitable[int]], say: Callable[..., None], look_s: float = LAYOUT_LOOK_S
    ) -> None:
        """Know again and again whether each program that runs reads today's layout; `workers` report."""
        take_up, said = TakeUp(self.said, SILENT_S_MAX, PROGRAMS_MAX), ""
        while True:
            seen, count = None, 0
            with suppress(CountersUnavailable):
                seen, count = await self.read(), await workers()
            self.takes_up_layout = take_up.look(time.monotonic(), seen, count)
            if take_up.why_not != said:
                said = take_up.why_not
                say("layout may be taken up" if not said else "layout waits", layout=LAYOUT, why=said)
            await asyncio.sleep(look_s)

    async def keep_to_schema(self, stop: asyncio.Event, look_s: float = SCHEMA_LOOK_S) -> None:
        """Have this keeper `stop` once the schema is one that does not serve it: `outgrown` says why."""
        while not self.outgrown:
            await asyncio.sleep(look_s)
            self.outgrown = await outgrown(self._engine)
        stop.set()
        await asyncio.Event().wait()  # until it is cancelled

    async def report(self) -> Row:
        """What `GET /programs` answers; CountersUnavailable where Redis does not answer."""
        seen, stored = await self.read(), await self._stored()
        return {
            "layout": stored.layout,
            "schema_version": stored.schema or None,
            "runs_from": stored.runs_from or None,
            "items": [_row(one, stored) for one in seen],
        }

    async def gauges(self) -> Mapping[str, object]:
        """How many there are, for metrics."""
        seen, stored = await self.read(), await self._stored()
        refused = sum(bool(stored.refused(one.program)) for one in seen)
        return {"programs": counted(seen), "programs_refused": refused}

    async def _stored(self) -> StoredVersions:
        """The needed versions; a newer version's marker says its number where all others do."""
        markers = await self._counters.ask_all(b"GET", keys.marker)
        numbers = (raw[0] for raw in markers.values() if isinstance(raw, bytes) and raw)
        layout = max((one for one in numbers if one >= FIRST), default=0)
        at = await status(self._engine)
        return StoredVersions(layout, at.version or "", at.runs_from)


def _row(one: ProgramReport, stored: StoredVersions) -> Row:
    said = asdict(one.program)
    return {
        **said,
        "schema_version": said.pop("schema") or None,
        "started_at": datetime.fromtimestamp(one.program.started_at, UTC),
        "said_at": datetime.fromtimestamp(one.said_at, UTC),
        "refused": stored.refused(one.program) or None,
    }
