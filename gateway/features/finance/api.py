"""`/usage/focus.csv`: the charges of each day as FOCUS 1.4 has them, for the Admin API and the console."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.api.usage import CsvFile, File, read, serve_file
from gateway.admin.ports import AdminPorts, Admit
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import UsageQuery
from gateway.errors import Unprocessable
from gateway.features.finance.focus import FOCUS_COLUMNS, FOCUS_GROUPED_BY, FOCUS_INTERVAL, focus_charge


def mount_focus(app: web.Application, ports: AdminPorts, root: str, admitted: Admit) -> None:
    """Serve the file; `admitted` names who asks."""

    async def as_focus(_: AdminPorts, query: MultiMapping[str]) -> tuple[UsageQuery, File]:
        if fixed := tuple((name, "is given by FOCUS") for name in ("interval", "group_by") if name in query):
            raise Unprocessable("Some query parameters are wrong.", fixed)
        asked = replace(read(query), interval=FOCUS_INTERVAL, groups=FOCUS_GROUPED_BY)
        seller = ports.store.letterhead.seller

        def charge(row: Row) -> Row:
            return focus_charge(
                row,
                since=asked.since,
                until=asked.until,
                seller="" if seller is None else seller.name,
                tokens=row["model"] is not None,
            )

        return asked, CsvFile("focus.csv", FOCUS_COLUMNS, charge, used_only=True)

    serve_file(app, ports, f"{root}/usage/focus.csv", as_focus, admitted)
