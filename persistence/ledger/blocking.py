"""A transaction of the Admin API's store, as the writer's code sees a connection of its own.

What becomes a row is stored by the same code wherever it comes from; this is the little of
psycopg's blocking connection that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy.util import await_only

Params = Sequence[Any] | Mapping[str, Any]


def blocking(connection: Connection) -> psycopg.Connection[Any]:
    """The same transaction as a psycopg connection; must be called where the store runs its work."""
    return cast("psycopg.Connection[Any]", _Blocking(connection))


class _Blocking:
    """Runs statements, and copies rows in."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Params | None = None) -> Any:
        """The rows a statement answers; placeholders are psycopg's."""
        if parameters is None:
            return self._connection.exec_driver_sql(statement)
        named = isinstance(parameters, Mapping)
        return self._connection.exec_driver_sql(statement, parameters if named else tuple(parameters))

    @contextmanager
    def cursor(self) -> Iterator[_Copying]:
        driver = self._connection.connection.driver_connection
        yield _Copying(cast("psycopg.AsyncConnection[Any]", driver))


class _Copying:
    """A cursor that can only copy; what is written goes out at once, when the copy is over."""

    def __init__(self, driver: psycopg.AsyncConnection[Any]) -> None:
        self._driver = driver

    @contextmanager
    def copy(self, statement: str) -> Iterator[BytesIO]:
        rows = BytesIO()
        yield rows
        await_only(self._send(statement, rows.getvalue()))

    async def _send(self, statement: str, rows: bytes) -> None:
        async with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            await copy.write(rows)
