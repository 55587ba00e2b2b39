"""`/usage`: sums of calls by time and group, as JSON, CSV and Parquet; and the files of invoices."""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.api.views import row_id
from gateway.admin.http import bodies
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import CSV, files_of, headers_of, in_thread
from gateway.admin.http.requests import (
    decode_cursor,
    encode_cursor,
    fingerprint,
    number_or_text,
    read_once,
    require_read,
    with_plus,
)
from gateway.admin.ports import AdminPorts, Admit
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.reports import REPORTS, UsageItem, UsagePage, UsageReportQuery
from gateway.admin.resources.values import plausible
from gateway.core.accounts.administration import Place, Row
from gateway.core.accounts.hourly_budget import count_rows
from gateway.core.accounts.tags import GROUP, TAGS_MAX, tag_in
from gateway.core.accounts.usage import DIMENSIONS, GROUPS, UsageQuery, column_of, end_of, following
from gateway.core.accounts.usage_sums import MONEY_SUMS
from gateway.core.billing.money import EXACT
from gateway.core.text import csv
from gateway.errors import Unprocessable
from gateway.extras import loading

if TYPE_CHECKING:
    from persistence.store import Store

# Days of a report by default, up to today.
DAYS = 30
DAYS_MAX = 3_660
ITEMS_DEFAULT = 1_000
ITEMS_MAX = 10_000

PAGING = ("limit", "cursor")
_DAY = timedelta(days=1)
_NUMBERS = {"limit", "group", *(name for name in (*DIMENSIONS, *GROUPS.values()) if name.endswith("_id"))}


def mount_usage(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add the usage report to the routes of `app`, below the path `root`."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORTS["usage"])
        page, mark = _page(request.query)
        rows = await mine.store.used(page)
        told, more = rows[: page.rows_max - 1], len(rows) == page.rows_max
        return web.json_response(
            {
                "items": [render_item(item, page.groups) for item in told],
                "next_cursor": encode_cursor(_place(following(page, told)), mark) if more else None,
                **({"tags_since": await mine.store.tags_since(page)} if page.tags else {}),
            }
        )

    app.router.add_get(f"{root}/usage", show)


def read(query: MultiMapping[str]) -> UsageQuery:
    """Return the usage query of a query string; raise `Unprocessable` with each error's field."""
    return _query(_check_query(UsageReportQuery, read_once(query)), ITEMS_MAX + 1)


def _page(query: MultiMapping[str]) -> tuple[UsageQuery, str]:
    """Return the query of a page, and the fingerprint of the report for its cursors.

    The query reads one row more than the page has, to detect another page.
    """
    sent = read_once(query)
    asked = _check_query(UsagePage, sent)
    limit, cursor = asked.pop("limit", ITEMS_DEFAULT), asked.pop("cursor", None)
    assert isinstance(limit, int)
    mark = fingerprint("usage", {name: sent[name] for name in sent if name not in PAGING}, descending=False)
    page = _query(asked, limit + 1)
    return (_resume_page(page, decode_cursor(str(cursor), mark)) if cursor is not None else page), mark


def _place(page: UsageQuery) -> tuple[int, ...]:
    return int(page.since.timestamp()), int(page.until.timestamp()), page.skip


def _resume_page(page: UsageQuery, place: Place) -> UsageQuery:
    """Return the query for the page at a cursor's `place`."""
    with suppress(ValueError, OverflowError, OSError):
        seconds, end, skip = map(int, place)
        since, until = datetime.fromtimestamp(seconds, UTC), datetime.fromtimestamp(end, UTC)
        plausible(since.date())
        plausible(until.date())
        if since < until <= since + DAYS_MAX * _DAY and not seconds % 3600 and not end % 3600 and skip >= 0:
            return replace(page, since=since, until=until, skip=skip)
    raise _wrong("cursor", "is not a next_cursor of this report")


def _check_query(model: type[UsageReportQuery], sent: Mapping[str, str]) -> dict[str, object]:
    """Return the values of a usage query by name, with its filters by tags; raise `Unprocessable` if invalid."""
    # Tags have any names, so no model lists these filters: what fits `tag:NAME` is one.
    tags = {name: text for name, text in sent.items() if GROUP.fullmatch(name)}
    if len(tags) > TAGS_MAX:
        raise _wrong(next(iter(tags)), f"is one of more than {TAGS_MAX} tags, which no call has")
    values = {
        name: number_or_text(text) if name in _NUMBERS else text
        for name, text in sent.items()
        if name not in tags
    }
    # A plus sign that was not escaped arrives as a space, such as that of a time's offset.
    times = {name: with_plus(sent[name]) for name in ("from", "to") if name in sent}
    return {**bodies.check_body(model, values | times), **tags}


def _query(asked: dict[str, object], rows_max: int) -> UsageQuery:
    """Return the usage query of checked parameters, with default times."""
    until = asked.pop("until", None) or end_of("day", datetime.now(UTC))
    assert isinstance(until, datetime)
    since = asked.pop("since", None) or until - DAYS * _DAY
    assert isinstance(since, datetime)
    if since >= until:
        raise _wrong("from", "must be before to")
    if until - since > DAYS_MAX * _DAY:
        raise _wrong("from", f"must be at most {DAYS_MAX} days before to")
    groups = str(asked.pop("group_by", None) or "")
    interval = str(asked.pop("interval", "none"))
    filters = {name: value for name, value in asked.items() if value is not None}
    return UsageQuery(since, until, interval, tuple(groups.split(",")) if groups else (), filters, rows_max)


def _wrong(name: str, reason: str) -> Unprocessable:
    return Unprocessable("Some query parameters are wrong.", ((name, reason),))


def columns_of(groups: tuple[str, ...]) -> tuple[str, ...]:
    told = {name for group in groups for name in (group, column_of(group))}
    apart = {name for group, column in GROUPS.items() for name in (group, column)}
    names = tuple(name for name in UsageItem.model_fields if name in told or name not in apart)
    at = names.index("requests")
    return (*names[:at], *(group for group in groups if tag_in(group)), *names[at:])


def render_item(row: Row, groups: tuple[str, ...]) -> Row:
    item = {**row, **UsageItem.model_validate(row).model_dump(mode="json")}
    return {name: item[name] for name in columns_of(groups)}


# Usage rows as Parquet, in pieces: written bytes are sent at once, so that no file is kept in memory.
#
# Times are UTC timestamps, money has nine decimals (twelve for charges), counts are 64-bit integers.

# The digits of a 128-bit decimal, which suffice for the sum of an organization's costs.
DIGITS, DECIMALS = 38, 9
# Maximum of decimals of a unit price.
DECIMALS_OF_CHARGES = 12
_COST = MONEY_SUMS
_TEXTS = ("organization", "tenant", "user", "api_key", "project", "service", "model", "currency", "kind")


class Parquet:
    """A Parquet file with these columns; create it with `Parquet.of`, which first loads the library."""

    media = "application/vnd.apache.parquet"

    def __init__(
        self,
        name: str,
        columns: tuple[str, ...],
        money: Collection[str],
        libraries: Any,
        *,
        times: Collection[str] = ("start",),
        counts: bool = True,
    ) -> None:
        self.name = name
        arrow, parquet = libraries
        self._decimals = DECIMALS if money == _COST else DECIMALS_OF_CHARGES
        types = {
            **dict.fromkeys(times, arrow.timestamp("us", tz="UTC")),
            "month": arrow.date32(),
            **dict.fromkeys(money, arrow.decimal128(DIGITS, self._decimals)),
            **dict.fromkeys(_TEXTS, arrow.string()),
        }
        self._arrow = arrow
        other = arrow.int64() if counts else arrow.string()
        self._schema = arrow.schema(
            [(name, arrow.string() if tag_in(name) else types.get(name, other)) for name in columns]
        )
        self._written = _ByteSink()
        self._writer = parquet.ParquetWriter(arrow.PythonFile(self._written, "w"), self._schema)

    @classmethod
    async def of(
        cls, name: str, columns: tuple[str, ...], money: Collection[str] = _COST, **others: Any
    ) -> Parquet:
        """Start a Parquet file; columns other than `money` and `times` are integers if `counts`, else texts.

        The first call loads the large library in a thread.
        """
        load = importlib.import_module
        with loading("finance"):
            libraries = [await asyncio.to_thread(load, each) for each in ("pyarrow", "pyarrow.parquet")]
        return cls(name, columns, money, libraries, **others)

    def head(self) -> bytes:
        return self._written.take()

    def some(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of the next rows, as a row group of their own."""
        if rows:
            cells = {name: [self._cell(row.get(name)) for row in rows] for name in self._schema.names}
            self._writer.write_table(self._arrow.Table.from_pydict(cells, schema=self._schema))
        return self._written.take()

    def _cell(self, value: object) -> object:
        return (
            value.quantize(Decimal(1).scaleb(-self._decimals), context=EXACT)
            if isinstance(value, Decimal)
            else value
        )

    def tail(self) -> bytes:
        """Return the bytes after the last row: the index of the row groups."""
        self._writer.close()
        return self._written.take()


class _ByteSink(io.RawIOBase):
    """A file object whose written bytes are taken out piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


# Files of usage: the report as CSV and Parquet, of any size, page by page.

PAGE_ROWS = 10_000


class File(Protocol):
    name: str
    media: str

    def head(self) -> bytes:
        """Return the bytes before the first row."""

    def some(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of the next rows."""

    def tail(self) -> bytes:
        """Return the bytes after the last row."""


Begin = Callable[[AdminPorts, MultiMapping[str]], Awaitable[tuple[UsageQuery, File]]]


def mount_files(app: web.Application, ports: AdminPorts, root: str, admitted: Admit = admit) -> None:
    """Serve the usage report's files; `admitted` authenticates the caller."""

    async def as_csv(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked = read(query)
        return asked, CsvFile(
            "usage.csv", columns_of(asked.groups), lambda row: render_item(row, asked.groups)
        )

    async def as_parquet(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked = read(query)
        return asked, await Parquet.of("usage.parquet", columns_of(asked.groups))

    serve_file(app, ports, f"{root}/usage.csv", as_csv, admitted)
    serve_file(app, ports, f"{root}/usage.parquet", as_parquet, admitted)


def serve_file(app: web.Application, ports: AdminPorts, path: str, made: Begin, admitted: Admit) -> None:
    """Serve one file of usage, written page by page.

    `made` reads the query and creates the empty file; `admitted` authenticates the caller.
    """
    files = files_of(app, ports.request_timeout_s)

    async def file(request: web.Request) -> web.StreamResponse:
        mine = await admitted(ports, request)
        require_read(mine.actor, REPORTS["usage"])
        asked, empty = await made(mine, request.query)
        return await files.answer(request, mine.actor, empty.name, empty.media, _pieces(mine, asked, empty))

    app.router.add_get(path, file)


async def _pieces(ports: AdminPorts, asked: UsageQuery, file: File) -> AsyncGenerator[bytes, None]:
    """Yield a file of the usage report in pieces, one for each page of rows."""
    page = replace(asked, rows_max=PAGE_ROWS)
    rows = await ports.store.used(page)
    yield file.head() + await in_thread(file.some, rows)
    while len(rows) == PAGE_ROWS:
        page = following(page, rows)
        rows = await ports.store.used(page)
        yield await in_thread(file.some, rows)
    yield file.tail()


class CsvFile:
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


# Files of an invoice: its lines, and every use that it bills.


LINE_COLUMNS = (
    "position", "kind", "description", "service_id", "service", "tenant_id", "tenant", "quantity",
    "unit_price", "amount", "currency",
)  # fmt: skip


def mount_invoices(app: web.Application, ports: AdminPorts, root: str, admitted: Admit = admit) -> None:
    """Serve an invoice's files. Mount them before the resources, whose paths would match, too."""
    files = files_of(app, ports.request_timeout_s)

    async def lines(request: web.Request) -> web.Response:
        _, invoice = await read_invoice(request, ports, admitted)
        rows = ({**line, "currency": invoice["currency"]} for line in invoice["lines"])  # type: ignore[attr-defined]  # a list of lines
        body = csv(LINE_COLUMNS, rows, head=True)
        return web.Response(body=body, headers=headers_of(name_of(invoice, "csv"), CSV))

    async def usage(request: web.Request) -> web.StreamResponse:
        mine, invoice = await read_invoice(request, ports, admitted)
        pieces = uses(mine.store, row_id(request))
        return await files.answer(request, mine.actor, name_of(invoice, "usage.csv"), CSV, pieces)

    async def uses(store: Store, invoice_id: int) -> AsyncGenerator[bytes, None]:
        async for piece in store.usage(invoice_id):
            count_rows(piece.count(b"\n"))
            yield piece

    path = f"{root}/invoices/{{id:[0-9]+}}"
    app.router.add_get(f"{path}.csv", lines)
    app.router.add_get(f"{path}/usage.csv", usage)


async def read_invoice(request: web.Request, ports: AdminPorts, admitted: Admit) -> tuple[AdminPorts, Row]:
    """Return the invoice of the request's path, and the ports with the caller's rights."""
    resource, mine = RESOURCES["invoices"], await admitted(ports, request)
    require_read(mine.actor, resource)
    return mine, resource.render(await mine.store.get("invoices", row_id(request)))


def name_of(invoice: Mapping[str, object], suffix: str) -> str:
    return f"{invoice['kind']}-{invoice['number'] or invoice['id']}.{suffix}".replace("_", "-")
