"""Starts, watches, informs and stops a keeper's process for people (Admin API, console), from its loops'
process.

Part of the composition root. The port is bound here, so that requests wait while that process is restarted.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from gateway.errors import LoopsSilent, StartError
from gateway.local import ports
from gateway.local.heartbeat import SILENT_S_MAX
from gateway.local.parent_pipe import ParentPipe
from gateway.local.processes import Child
from gateway.run import people_process
from gateway.run.lifecycle import cancel
from gateway.run.serving import restarts_of
from gateway.settings.settings import Settings, to_json
from gateway.telemetry import metrics

# Facts that the keeper's loops send to the process for people, as lines on its standard input.
#
# No disk is between the two, because a full disk is one of the facts.

TOLD_EACH_S = 2.0
# The prefix of a line with facts. Lines with settings are JSON.
_MARK = b"facts "


class LoopFacts(msgspec.Struct, frozen=True):
    """Metrics of the loops, and, by name, whether each thing they look after is well, or why not."""

    snapshot: Mapping[str, Any]
    well: Mapping[str, bool | str]


def written_fact(facts: LoopFacts) -> bytes:
    return _MARK + msgspec.json.encode(facts)


class FactsReader:
    """Receives facts in the process for people; a line is decoded only when it is needed.

    After `silent_s_max` seconds without facts the loops count as hung or stopped, and earlier facts as unknown.
    `first` is called after the first facts, and `others` with lines that are no facts, both from another
    thread.
    """

    def __init__(
        self, pipe: ParentPipe, first: Callable[[], object], others: Callable[[bytes], object],
        *, clock: Callable[[], float] = time.monotonic, silent_s_max: float = SILENT_S_MAX,
    ) -> None:  # fmt: skip
        self._first, self._others, self._clock, self._silent_s_max = first, others, clock, silent_s_max
        self._line, self._heard_at = b"", clock()
        pipe.listen(self._hear)

    def last(self) -> LoopFacts:
        """Return the newest facts; raise `LoopsSilent` if none were received, or they are too old."""
        if not self._line or self._clock() - self._heard_at > self._silent_s_max:
            raise LoopsSilent
        return msgspec.json.decode(self._line[len(_MARK) :], type=LoopFacts)

    def _hear(self, line: bytes) -> None:
        if not line.startswith(_MARK):
            self._others(line)
            return
        is_first = not self._line
        self._line, self._heard_at = line, self._clock()
        if is_first:
            self._first()


# How long the process for people of a killed keeper may still hold the port.
LEFT_S_MAX = 5.0
LOOK_S = 0.1


class AdminProcess:
    """The process for people; `facts` returns what to send to it. It may already be `loading` its code."""

    def __init__(
        self, settings: Settings, facts: Callable[[], Awaitable[LoopFacts]], log: Callable[..., None],
        *, loading: people_process.Loading = None, left_s_max: float = LEFT_S_MAX,
    ) -> None:  # fmt: skip
        self._settings, self._facts, self._log, self._left_s_max = settings, facts, log, left_s_max
        self._port: ports.ReservedPort | None = None
        self._child: Child | None = None
        if loading is not None:
            self._port, self._child = loading
        self._has_begun = asyncio.Event()

    async def begin(self) -> int:
        """Acquire the admin port and start the process; return the port's number.

        `StartError` names a port that is taken.
        """
        if self._port is None:
            self._port = await self._held()
        settings = self._settings
        program = people_process.program(self._port, to_json(settings), settings.worker_silent_s_max)
        if self._child is None:
            self._child = Child(program, partial(self._log, level="warning"), lambda: None)
        self._child.program = program
        self._starting = asyncio.create_task(self._child.start())
        return self._port.number

    async def open(self) -> None:
        self._has_begun.set()
        await self._starting

    async def keep_telling(self) -> None:
        """Send facts about the keeper's loops to the process for people, at intervals, until cancelled."""
        await self._has_begun.wait()
        while self._child is not None:
            await self._child.send(written_fact(await self._facts()))
            await asyncio.sleep(TOLD_EACH_S)

    def renew(self, settings: Settings) -> None:
        if self._child is not None:
            self._renewing = asyncio.create_task(self._child.tell(to_json(settings)))

    async def stop(self) -> None:
        """Stop listening, and wait until open requests are answered."""
        if self._port is not None:
            self._port.close()
        if self._child is None:
            return
        await cancel([self._starting])
        await self._child.stop()

    def snapshot(self) -> metrics.Snapshot:
        return restarts_of([self._child] if self._child is not None else ())

    async def _held(self) -> ports.ReservedPort:
        """Reserve the Admin API's port, and wait for an earlier process that still has it."""
        clock, settings = asyncio.get_running_loop().time, self._settings
        until = clock() + self._left_s_max
        while True:
            try:
                what = "Admin API, TOLLKEEPER_ADMIN_PORT"
                return ports.held_port(settings.admin_host, settings.admin_port, what)
            except StartError as error:
                cause = error.__cause__
                if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE or clock() > until:
                    raise
            await asyncio.sleep(LOOK_S)
