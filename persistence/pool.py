"""The connections to PostgreSQL, counted: how many are busy, who waits for one, and what fails."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import AsyncAdaptedQueuePool, ExceptionContext, event
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncEngine

# A connection that broke or was not had; a statement that PostgreSQL ended; nothing free in time.
CONNECTION, STATEMENT, EXHAUSTED = "connection", "statement", "exhausted"
CAUSES = (CONNECTION, STATEMENT, EXHAUSTED)


class CountedPool(AsyncAdaptedQueuePool):
    """A pool that knows who waits for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting = 0
        self.failures = dict.fromkeys(CAUSES, 0)

    def _do_get(self) -> Any:
        self.waiting += 1
        try:
            return super()._do_get()
        except NoneInTime:
            self.failures[EXHAUSTED] += 1
            raise
        finally:
            self.waiting -= 1


def count_failures(engine: AsyncEngine) -> None:
    """Count what fails through an engine; what a statement says of its values is no failure."""

    def failed(context: ExceptionContext) -> None:
        pool, error = engine.pool, context.original_exception
        if not isinstance(pool, CountedPool) or not isinstance(error, psycopg.OperationalError | OSError):
            return
        lost = context.is_disconnect or getattr(error, "sqlstate", None) is None
        pool.failures[CONNECTION if lost else STATEMENT] += 1

    event.listen(engine.sync_engine, "handle_error", failed)


def figures(engine: AsyncEngine) -> dict[str, object]:
    """What metrics say of an engine's connections."""
    pool = engine.pool
    if not isinstance(pool, CountedPool):
        return {}
    return {
        "postgresql_connections": [["busy", pool.checkedout()], ["idle", pool.checkedin()]],
        "postgresql_connections_max": pool.size(),
        "postgresql_waiting": pool.waiting,
        "postgresql_failures": [[cause, count] for cause, count in pool.failures.items()],
    }
