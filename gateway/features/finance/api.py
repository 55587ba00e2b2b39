"""`/usage/focus.csv` and `.parquet`: the charges of each day in the FOCUS format.

For the Admin API and the console.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aiohttp import web
from multidict import MultiDict, MultiMapping

from gateway.admin.api.usage import CsvFile, File, Parquet, read, serve_file
from gateway.admin.ports import AdminPorts, Admit
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import TAGS, UsageQuery
from gateway.errors import Unprocessable
from gateway.features.finance.focus import (
    FOCUS_GROUPED_BY,
    FOCUS_INTERVAL,
    FOCUS_QUANTITIES,
    FOCUS_TIMES,
    VERSIONS,
    focus_charge,
    with_types,
)


def mount_focus(app: web.Application, ports: AdminPorts, root: str, admitted: Admit) -> None:
    """Serve usage reports in FOCUS, a standard for cloud costs; `admitted` authenticates a request."""

    def renderer(usage: UsageQuery) -> Callable[[Row], Row]:
        seller = ports.store.letterhead.seller
        name = "" if seller is None else seller.name
        return lambda row: focus_charge(row, since=usage.since, until=usage.until, seller=name)

    async def as_csv(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        usage, columns = read_focus_query(query)
        return usage, CsvFile("focus.csv", columns, renderer(usage), used_only=True)

    async def as_parquet(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        usage, columns = read_focus_query(query)
        file = await Parquet.of("focus.parquet", columns, FOCUS_QUANTITIES, times=FOCUS_TIMES, counts=False)
        return usage, _Charges(file, renderer(usage))

    serve_file(app, ports, f"{root}/usage/focus.csv", as_csv, admitted)
    serve_file(app, ports, f"{root}/usage/focus.parquet", as_parquet, admitted)


def read_focus_query(query: MultiMapping[str]) -> tuple[UsageQuery, tuple[str, ...]]:
    """Return the usage query of a FOCUS request, and the columns of its version; raise `Unprocessable`."""
    if fixed := tuple((name, "is given by FOCUS") for name in ("interval", "group_by") if name in query):
        raise Unprocessable("Some query parameters are wrong.", fixed)
    others = MultiDict(query)
    version = others.pop("version", next(iter(VERSIONS)))
    if version not in VERSIONS:
        wrong = ("version", f"must be one of {', '.join(VERSIONS)}")
        raise Unprocessable("Some query parameters are wrong.", (wrong,))
    usage = replace(read(others), interval=FOCUS_INTERVAL, groups=(*FOCUS_GROUPED_BY, TAGS))
    return usage, VERSIONS[version]


class _Charges:
    """The charges of rows with usage, as Parquet."""

    def __init__(self, file: Parquet, charge: Callable[[Row], Row]) -> None:
        self.name, self.media = file.name, file.media
        self.head, self.tail = file.head, file.tail
        self._file, self._charge = file, charge

    def some(self, rows: Sequence[Row]) -> bytes:
        """Return the next bytes of the Parquet file, after adding these rows of usage."""
        return self._file.some([with_types(dict(self._charge(row))) for row in rows if row["requests"]])
