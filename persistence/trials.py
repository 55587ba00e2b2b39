"""Trial runs in transactions that are undone: each ends once another session waits for its locks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import (
    StoreUnavailable,
    TrialEnded,
)
from persistence.engine import Engine, apart

T = TypeVar("T")
LOOK_S = 0.1
_SESSION = text("SELECT pg_backend_pid()")
_WAITED_FOR = text("SELECT DISTINCT unnest(pg_blocking_pids(pid)) FROM pg_locks WHERE NOT granted")


class Trials:
    """The trial runs of one database, by their PostgreSQL session."""

    def __init__(self, engine: Engine, look_s: float = LOOK_S) -> None:
        self._engine, self._look_s = engine, look_s
        self._under_way: dict[int, asyncio.Future[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def run(self, connection: AsyncConnection, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work over a connection.

        Raise `TrialEnded`, and cancel the work, once another session waits for locks of this one.
        """
        session = int(await connection.scalar(_SESSION))
        waited_for = self._under_way[session] = asyncio.get_running_loop().create_future()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        doing = asyncio.ensure_future(work())
        try:
            await asyncio.wait({doing, waited_for}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise TrialEnded
            return doing.result()
        finally:
            del self._under_way[session]
            if not doing.done():
                doing.cancel()
                await asyncio.wait({doing})

    async def _look(self) -> None:
        try:
            await asyncio.sleep(self._look_s)  # most are done by then
            while self._under_way:
                async with apart(self._engine) as connection:
                    while self._under_way:
                        self._end({*await connection.scalars(_WAITED_FOR)})
                        await asyncio.sleep(self._look_s)
        except (SQLAlchemyError, StoreUnavailable):
            self._end({*self._under_way})  # nobody knows who waits
        finally:
            self._looking = None

    def _end(self, sessions: set[int]) -> None:
        for session in sessions & self._under_way.keys():
            if not (waited_for := self._under_way[session]).done():
                waited_for.set_result(None)
