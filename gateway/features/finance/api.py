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

    def asked_of(query: MultiMapping[str]) -> tuple[UsageQuery, tuple[str, ...], Callable[[Row], Row]]:
        """Return the usage query of a FOCUS request, its version's columns, and what renders a row."""
        if fixed := tuple((name, "is given by FOCUS") for name in ("interval", "group_by") if name in query):
            raise Unprocessable("Some query parameters are wrong.", fixed)
        others = MultiDict(query)
        version = others.pop("version", next(iter(VERSIONS)))
        if version not in VERSIONS:
            wrong = ("version", f"must be one of {', '.join(VERSIONS)}")
            raise Unprocessable("Some query parameters are wrong.", (wrong,))
        asked = replace(read(others), interval=FOCUS_INTERVAL, groups=(*FOCUS_GROUPED_BY, TAGS))
        seller = ports.store.letterhead.seller

        def charge(row: Row) -> Row:
            return focus_charge(
                row,
                since=asked.since,
                until=asked.until,
                seller="" if seller is None else seller.name,
            )

        return asked, VERSIONS[version], charge

    async def as_csv(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked, columns, charge = asked_of(query)
        return asked, CsvFile("focus.csv", columns, charge, used_only=True)

    async def as_parquet(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        asked, columns, charge = asked_of(query)
        file = await Parquet.of("focus.parquet", columns, FOCUS_QUANTITIES, times=FOCUS_TIMES, counts=False)
        return asked, _Charges(file, charge)

    serve_file(app, ports, f"{root}/usage/focus.csv", as_csv, admitted)
    serve_file(app, ports, f"{root}/usage/focus.parquet", as_parquet, admitted)


class _Charges:
    """The charges of rows with usage, as Parquet."""

    def __init__(self, file: Parquet, charge: Callable[[Row], Row]) -> None:
        self.name, self.media = file.name, file.media
        self.head, self.tail = file.head, file.tail
        self._file, self._charge = file, charge

    def some(self, rows: Sequence[Row]) -> bytes:
        """Return the next bytes of the Parquet file, after adding these rows of usage."""
        return self._file.some([with_types(dict(self._charge(row))) for row in rows if row["requests"]])
