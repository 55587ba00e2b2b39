"""`/usage`: calls added up by time and by whatever they are told apart, as JSON and as CSV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.http import body
from gateway.admin.http.auth import identify
from gateway.admin.http.listing import number_or_text, read_once, with_plus
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import UsageAsked, UsageItem
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import DIMENSIONS, GROUPS, UsageQuery
from gateway.core.spreadsheet import csv
from gateway.errors import Unprocessable

DAYS = 30
ITEMS_MAX = 10_000
Identified = Callable[[AdminPorts, web.Request], Awaitable[object]]

_HOUR = timedelta(hours=1)
_NUMBERS = {name for name in DIMENSIONS if name.endswith("_id")}


def mount_usage(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the report and its files."""

    async def show(request: web.Request) -> web.Response:
        await identify(ports, request)
        return web.json_response({"items": await items(ports, read(request.query))})

    app.router.add_get(f"{root}/usage", show)
    mount_files(app, ports, root)


def mount_files(
    app: web.Application, ports: AdminPorts, root: str, identified: Identified = identify
) -> None:
    """Serve the report's files; `identified` refuses who may not read."""

    async def file(request: web.Request) -> web.Response:
        await identified(ports, request)
        found = await items(ports, read(request.query))
        columns = tuple(found[0]) if found else ("start",)
        return web.Response(
            body=csv(columns, found, head=True),
            headers={
                "Content-Type": "text/csv; charset=utf-8",
                "Content-Disposition": 'attachment; filename="usage.csv"',
            },
        )

    app.router.add_get(f"{root}/usage.csv", file)


async def items(ports: AdminPorts, asked: UsageQuery) -> list[Row]:
    """What was used, an item a group and time; `Unprocessable` where there are too many."""
    found = await ports.store.used(asked)
    if len(found) > ITEMS_MAX:
        reason = f"more than {ITEMS_MAX} items: ask for less time, fewer groups or a longer interval"
        raise Unprocessable("Some query parameters are wrong.", (("group_by", reason),))
    return [_shown(item, asked.groups) for item in found]


def read(query: MultiMapping[str]) -> UsageQuery:
    """What a query string asks; `Unprocessable` names what is wrong with it."""
    sent = read_once(query)
    values = {name: number_or_text(text) if name in _NUMBERS else text for name, text in sent.items()}
    values |= {name: with_plus(sent[name]) for name in ("from", "to") if name in sent}
    asked = body.check(UsageAsked, values)
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + _HOUR
    until = asked.pop("until", None) or now
    assert isinstance(until, datetime)
    since = asked.pop("since", None) or until - timedelta(days=DAYS)
    assert isinstance(since, datetime)
    if since >= until:
        raise Unprocessable("Some query parameters are wrong.", (("from", "must be before to"),))
    groups = str(asked.pop("group_by", None) or "")
    interval = str(asked.pop("interval", "none"))
    filters = {name: value for name, value in asked.items() if value is not None}
    return UsageQuery(
        since, until, interval, tuple(groups.split(",")) if groups else (), filters, ITEMS_MAX + 1
    )


def _shown(row: Row, groups: tuple[str, ...]) -> Row:
    """A row as an item, without the fields of groups nobody asked for."""
    item = UsageItem.model_validate(row).model_dump(mode="json")
    told = {name for group in groups for name in (group, GROUPS[group])}
    apart = {name for group, column in GROUPS.items() for name in (group, column)}
    return {name: value for name, value in item.items() if name in told or name not in apart}
