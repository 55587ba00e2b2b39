"""A list as a file: every row that its filters let through, streamed, and so many at most."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from aiohttp import web

from gateway.admin.console import lists
from gateway.admin.console.desk import Desk
from gateway.admin.console.screens import Screen
from gateway.admin.console.sessions import Signed
from gateway.admin.http.files import CSV, Files
from gateway.admin.http.listing import LIMIT_MAX
from gateway.core.accounts.administration import Query, Row
from gateway.core.spreadsheet import csv
from gateway.errors import Unprocessable

ROWS_MAX = 100_000
COUNT_MS_MAX = 10_000


class Exports:
    """The files of all lists."""

    def __init__(self, files: Files, *, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._files = files

    async def file(
        self, desk: Desk, request: web.Request, signed: Signed, *, screen: Screen, **fixed: str
    ) -> web.StreamResponse:
        """`GET /<resource>.csv`: the columns are the fields of the Admin API; filters in `fixed` are set."""
        query = lists.read(screen, request, LIMIT_MAX, fixed)
        pieces = self._pieces(desk, screen, query)
        return await self._files.answer(request, signed.actor, f"{screen.name}.csv", CSV, pieces)

    async def _pieces(self, desk: Desk, screen: Screen, query: Query) -> AsyncGenerator[bytes, None]:
        operations, columns = desk.operations[screen.name], tuple(screen.resource.out.model_fields)
        count = await operations.count(query, self._rows_max, COUNT_MS_MAX)
        if count is None or count > self._rows_max:
            reason = f"let more than {self._rows_max:,} rows through: narrow them"
            if count is None:
                reason = "let so much through that counting it takes too long: narrow them"
            raise Unprocessable("This list is too long for a file.", (("filters", reason),))
        yield csv(columns, (), head=True)
        async for rows in operations.every(query):
            yield csv(columns, map(_flat, rows))


def _flat(row: Row) -> Row:
    """A row whose documents and lists are texts."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in row.items()
    }
