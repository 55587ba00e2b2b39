"""A keeper's process for people, as the one with its loops has it: started, watched, told, stopped.

Part of the composition root. The port is bound here: where that process dies, who asks meanwhile waits for
the next one, and is not refused.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from functools import partial

from gateway.errors import StartError
from gateway.local import ports
from gateway.local.child import Child, Program
from gateway.run import facts as told
from gateway.run.facts import Facts
from gateway.run.serving import command, restarts_of
from gateway.run.stopping import cancel
from gateway.settings.settings import Settings, to_json
from gateway.telemetry import snapshot_files as tallies

# How long the port of a keeper that was killed may still be had by its process for people.
LEFT_S_MAX = 5.0
LOOK_S = 0.1
# It loads its code, and is told that the loops have begun, before it listens.
READY_S_MAX = 90.0
# Requests that are under way have ten seconds.
STOP_S_MAX = 13.0


class People:
    """The process; `facts` are what the loops tell it."""

    def __init__(
        self, settings: Settings, facts: Callable[[], Awaitable[Facts]], log: Callable[..., None],
        *, left_s_max: float = LEFT_S_MAX,
    ) -> None:  # fmt: skip
        self._settings, self._facts, self._log, self._left_s_max = settings, facts, log, left_s_max
        self._port: ports.HeldPort | None = None
        self._child: Child | None = None
        self._has_begun = asyncio.Event()

    async def begin(self) -> int:
        """Have the port, and the process loaded; `StartError` names a port that is taken."""
        self._port = port = await self._held()
        given, told = port.given(0, 1)
        program = Program(
            "the process for people", command("admin", "--worker"), ready_max_s=READY_S_MAX,
            stdin=to_json(self._settings), stop_max_s=STOP_S_MAX, given=given, environment=told,
            silent_s_max=self._settings.worker_silent_s_max,
        )  # fmt: skip
        self._child = Child(program, partial(self._log, level="warning"), lambda: None)
        self._starting = asyncio.create_task(self._child.start())
        return port.number

    async def open(self) -> None:
        """Have it listen, now that the loops have begun."""
        self._has_begun.set()
        await self._starting

    async def keep_telling(self) -> None:
        """Tell it of the loops each second, until cancelled."""
        await self._has_begun.wait()
        while self._child is not None:
            await self._child.send(told.written(await self._facts()))
            await asyncio.sleep(told.TOLD_EACH_S)

    def renew(self, settings: Settings) -> None:
        """Have it go by other settings."""
        if self._child is not None:
            self._renewing = asyncio.create_task(self._child.tell(to_json(settings)))

    async def stop(self) -> None:
        """Stop listening, and wait until what is asked is answered."""
        if self._port is not None:
            self._port.close()
        if self._child is None:
            return
        await cancel([self._starting])
        await self._child.stop()

    def snapshot(self) -> tallies.Snapshot:
        """What metrics say of it."""
        return restarts_of([self._child] if self._child is not None else ())

    async def _held(self) -> ports.HeldPort:
        clock, settings = asyncio.get_running_loop().time, self._settings
        until = clock() + self._left_s_max
        while True:
            try:
                what = "Admin API, TOLLKEEPER_ADMIN_PORT"
                return ports.held(settings.admin_host, settings.admin_port, what)
            except StartError as error:
                cause = error.__cause__
                if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE or clock() > until:
                    raise
            await asyncio.sleep(LOOK_S)
