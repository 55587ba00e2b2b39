"""Files of usage: the report as CSV and Parquet, and its charges as FOCUS 1.2; of any size, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.api.parquet import Parquet
from gateway.admin.api.usage import columns_of, read, shown
from gateway.admin.http.auth import admit, require_read
from gateway.admin.http.files import CSV, files_of
from gateway.admin.http.metered import in_thread
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import REPORTS
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import UsageQuery, following
from gateway.core.billing import focus
from gateway.core.spreadsheet import csv
from gateway.errors import Unprocessable

PAGE_ROWS = 10_000

Admit = Callable[[AdminPorts, web.Request], Awaitable[AdminPorts]]


class File(Protocol):
    """A file that is written row by row."""

    name: str
    media: str

    def head(self) -> bytes:
        """What comes before the first row."""

    def some(self, rows: Sequence[Row]) -> bytes:
        """The next rows."""

    def tail(self) -> bytes:
        """What comes behind the last row."""


Begin = Callable[[AdminPorts, MultiMapping[str]], Awaitable[tuple[UsageQuery, File]]]


def mount_files(app: web.Application, ports: AdminPorts, root: str, admitted: Admit = admit) -> None:
    """Serve the report's files; `admitted` names who asks."""
    files = files_of(app, ports.request_timeout_s)

    def serve(path: str, made: Begin) -> None:
        async def file(request: web.Request) -> web.StreamResponse:
            mine = await admitted(ports, request)
            require_read(mine.actor, REPORTS["usage"])
            asked, empty = await made(mine, request.query)
            return await files.answer(
                request, mine.actor, empty.name, empty.media, _pieces(mine, asked, empty)
            )

        app.router.add_get(root + path, file)

    async def as_csv(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked = read(query)
        return asked, _Csv("usage.csv", columns_of(asked.groups), lambda row: shown(row, asked.groups))

    async def as_parquet(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked = read(query)
        return asked, await Parquet.of("usage.parquet", columns_of(asked.groups))

    async def as_focus(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        if fixed := tuple((name, "is given by FOCUS") for name in ("interval", "group_by") if name in query):
            raise Unprocessable("Some query parameters are wrong.", fixed)
        asked = replace(read(query), interval=focus.INTERVAL, groups=focus.GROUPED_BY)
        seller = ports.invoice_renderer.seller

        def charge(row: Row) -> Row:
            return focus.charge(
                row,
                since=asked.since,
                until=asked.until,
                seller=seller,
                tokens=row["model"] is not None,
            )

        return asked, _Csv("focus.csv", focus.COLUMNS, charge, used_only=True)

    serve("/usage.csv", as_csv)
    serve("/usage.parquet", as_parquet)
    serve("/usage/focus.csv", as_focus)


async def _pieces(ports: AdminPorts, asked: UsageQuery, file: File) -> AsyncGenerator[bytes, None]:
    page = replace(asked, rows_max=PAGE_ROWS)
    rows = await ports.store.used(page)
    yield file.head() + await in_thread(file.some, rows)
    while len(rows) == PAGE_ROWS:
        page = following(page, rows)
        rows = await ports.store.used(page)
        yield await in_thread(file.some, rows)
    yield file.tail()


class _Csv:
    media = CSV

    def __init__(
        self, name: str, columns: tuple[str, ...], cells: Callable[[Row], Row], *, used_only: bool = False
    ) -> None:
        self.name = name
        self._columns, self._cells, self._used_only = columns, cells, used_only

    def head(self) -> bytes:
        return csv(self._columns, (), head=True)

    def some(self, rows: Sequence[Row]) -> bytes:
        told: Iterable[Row] = (row for row in rows if row["requests"] or not self._used_only)
        return csv(self._columns, map(self._cells, told))

    def tail(self) -> bytes:
        return b""
