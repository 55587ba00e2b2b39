"""Runs replays of budgets, each in a process of its own, which ends with its request.

A replay reads up to millions of calls. So it has bounds of memory and time, and yields to all other processes.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from gateway.core.accounts.administration import OWNER, Row
from gateway.core.accounts.replay.fold import REPLAY_CPU_S_MAX, REPLAY_S_MAX
from gateway.core.times import zones_source
from gateway.errors import Overloaded, TooManyRequests, Unprocessable
from gateway.local.processes import command
from gateway.run.replay_process import ANSWER_BYTES_MAX, FAULTS

# Replays that a keeper runs at once: one of an organization, one of staff.
REPLAYS_MAX: Final = 2
_LONG = f"takes more than {REPLAY_CPU_S_MAX} s of a core, or {REPLAY_S_MAX:.0f} s in all: ask for a shorter time, or for fewer budgets"


class Replays:
    """The replays of one keeper. `url` returns the address of PostgreSQL.

    `stored` waits until the calls of an organization that were settled by now are there.
    """

    def __init__(
        self, url: Callable[[], str], log: Callable[..., None], stored: Callable[[int], Awaitable[None]]
    ) -> None:
        self._url, self._log, self._stored = url, log, stored
        # The organizations whose people asked for those that run; None is staff.
        self._running = list[int | None]()

    async def run(self, asked: Row, organization_id: int | None) -> Row:
        """Return the answer to a checked replay, which people of an organization, or else staff, asked for.

        Raise `TooManyRequests` while one of the organization's runs, or as many as may: staff may have all. Its process is
        killed once this is cancelled.
        """
        has_one = organization_id is not None and organization_id in self._running
        if has_one or len(self._running) >= REPLAYS_MAX:
            number = "One of your replays is" if has_one else f"{REPLAYS_MAX} replays are"
            raise TooManyRequests(f"{number} under way already: try again in a while.")
        self._running.append(organization_id)
        try:
            await self._stored(int(str(asked[OWNER])))
            return await self._run({**asked, "url": self._url(), "time_zones": zones_source()})
        finally:
            self._running.remove(organization_id)

    async def _run(self, asked: Row) -> Row:
        """Replay budgets in a process of its own; raise Unprocessable if that takes too long."""
        process = await asyncio.create_subprocess_exec(
            *command("replay", "--worker"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            limit=ANSWER_BYTES_MAX, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(REPLAY_S_MAX):
                with suppress(ConnectionError):  # it ended, and says why by its answer or without one
                    process.stdin.write(json.dumps(asked).encode() + b"\n")
                    await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            raise Unprocessable(errors=(("from", _LONG),)) from None
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
        return self._read(line, process.returncode)

    def _read(self, line: bytes, status: int | None) -> Row:
        """Return the answer of a replay's process; raise its refusal, or how the process ended."""
        if status == -signal.SIGXCPU:
            raise Unprocessable(errors=(("from", _LONG),))
        if not line:
            self._log("a replay ended without an answer", status=status, level="warning")
            raise Overloaded("The process of this replay ended early: try again, or for a shorter time.")
        answer: dict[str, Any] = json.loads(line)
        if FAULTS in answer:
            raise Unprocessable(errors=tuple([(name, fault) for name, fault in answer[FAULTS]]))
        return answer
