"""A list as a file: every row that its filters let through, streamed, and so many at most."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from gateway.admin.console import lists
from gateway.admin.console.desk import Desk
from gateway.admin.console.screens import Screen
from gateway.admin.console.sessions import Signed
from gateway.admin.http.guard import DEADLINE
from gateway.admin.http.listing import LIMIT_MAX
from gateway.core.accounts.administration import Query, Row
from gateway.core.spreadsheet import csv
from gateway.errors import Overloaded, Unprocessable

ROWS_MAX = 100_000
COUNT_MS_MAX = 10_000
# Each has a connection to PostgreSQL most of the time its reader takes.
EXPORTS_MAX = 4


class Exports:
    """The files of all lists."""

    def __init__(self, desk: Desk, *, rows_max: int = ROWS_MAX) -> None:
        self._desk = desk
        self._rows_max = rows_max
        self._free = asyncio.Semaphore(EXPORTS_MAX)

    async def file(
        self, screen: Screen, request: web.Request, signed: Signed, **fixed: str
    ) -> web.StreamResponse:
        """`GET /<resource>.csv`: the columns are the fields of the Admin API; filters in `fixed` are set."""
        query = lists.read(screen, request, LIMIT_MAX, fixed)
        if self._free.locked():
            raise Overloaded(f"{EXPORTS_MAX} lists are being written already: try again in a while.")
        async with self._free:
            operations = self._desk.operations[screen.name]
            count = await operations.count(query, self._rows_max, COUNT_MS_MAX)
            if count is None or count > self._rows_max:
                reason = f"let more than {self._rows_max:,} rows through: narrow them"
                if count is None:
                    reason = "let so much through that counting it takes too long: narrow them"
                raise Unprocessable("This list is too long for a file.", (("filters", reason),))
            return await self._write(screen, request, query)

    async def _write(self, screen: Screen, request: web.Request, query: Query) -> web.StreamResponse:
        columns = tuple(screen.resource.out.model_fields)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/csv; charset=utf-8",
                "Content-Disposition": f'attachment; filename="{screen.name}.csv"',
            }
        )
        await response.prepare(request)
        whole = False
        try:
            await response.write(csv(columns, (), head=True))
            async for rows in self._desk.operations[screen.name].every(query):
                await response.write(csv(columns, map(_flat, rows)))
                bound = asyncio.get_running_loop().time() + self._desk.ports.request_timeout_s
                request[DEADLINE].reschedule(bound)
            await response.write_eof()
            whole = True
        finally:
            # A file that breaks off must not look whole.
            if not whole and request.transport is not None:
                request.transport.abort()
        return response


def _flat(row: Row) -> Row:
    """A row whose documents and lists are texts."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in row.items()
    }
