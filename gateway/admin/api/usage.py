"""`/usage`: calls added up by time and by whatever they are told apart, as JSON and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.http import body
from gateway.admin.http.auth import admit, require_read
from gateway.admin.http.listing import (
    decode_cursor,
    encode_cursor,
    fingerprint,
    number_or_text,
    read_once,
    with_plus,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import REPORTS, UsageAsked, UsageItem, UsagePage
from gateway.admin.resources.values import plausible
from gateway.core.accounts.administration import Place, Row
from gateway.core.accounts.usage import DIMENSIONS, GROUPS, UsageQuery, end_of, following
from gateway.errors import Unprocessable

# By default a report is of so many days, today the last of them.
DAYS = 30
DAYS_MAX = 3_660
ITEMS_DEFAULT = 1_000
ITEMS_MAX = 10_000

PAGING = ("limit", "cursor")
_DAY = timedelta(days=1)
_NUMBERS = {"limit", *(name for name in DIMENSIONS if name.endswith("_id"))}


def mount_usage(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the report."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORTS["usage"])
        page, mark = _page(request.query)
        found = await mine.store.used(page)
        told, more = found[: page.rows_max - 1], len(found) == page.rows_max
        return web.json_response(
            {
                "items": [shown(item, page.groups) for item in told],
                "next_cursor": encode_cursor(_place(following(page, told)), mark) if more else None,
            }
        )

    app.router.add_get(f"{root}/usage", show)


def read(query: MultiMapping[str]) -> UsageQuery:
    """What a query string asks, whole; `Unprocessable` names what is wrong with it."""
    return _query(_checked(UsageAsked, read_once(query)), ITEMS_MAX + 1)


def _page(query: MultiMapping[str]) -> tuple[UsageQuery, str]:
    """What a page is asked for, with one row more to know whether there is another, and the report's mark."""
    sent = read_once(query)
    asked = _checked(UsagePage, sent)
    limit, cursor = asked.pop("limit", ITEMS_DEFAULT), asked.pop("cursor", None)
    assert isinstance(limit, int)
    mark = fingerprint("usage", {name: sent[name] for name in sent if name not in PAGING}, descending=False)
    page = _query(asked, limit + 1)
    return (_resumed(page, decode_cursor(str(cursor), mark)) if cursor is not None else page), mark


def _place(page: UsageQuery) -> tuple[int, ...]:
    return int(page.since.timestamp()), int(page.until.timestamp()), page.skip


def _resumed(page: UsageQuery, place: Place) -> UsageQuery:
    with suppress(ValueError, OverflowError, OSError):
        seconds, end, skip = map(int, place)
        since, until = datetime.fromtimestamp(seconds, UTC), datetime.fromtimestamp(end, UTC)
        plausible(since.date())
        plausible(until.date())
        if since < until <= since + DAYS_MAX * _DAY and not seconds % 3600 and not end % 3600 and skip >= 0:
            return replace(page, since=since, until=until, skip=skip)
    raise _wrong("cursor", "is not a next_cursor of this report")


def _checked(model: type[UsageAsked], sent: Mapping[str, str]) -> dict[str, object]:
    values = {name: number_or_text(text) if name in _NUMBERS else text for name, text in sent.items()}
    return body.check(
        model, values | {name: with_plus(sent[name]) for name in ("from", "to") if name in sent}
    )


def _query(asked: dict[str, object], rows_max: int) -> UsageQuery:
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
    """The fields of an item, without those of groups nobody asked for."""
    told = {name for group in groups for name in (group, GROUPS[group])}
    apart = {name for group, column in GROUPS.items() for name in (group, column)}
    return tuple(name for name in UsageItem.model_fields if name in told or name not in apart)


def shown(row: Row, groups: tuple[str, ...]) -> Row:
    """A row as an item."""
    item = UsageItem.model_validate(row).model_dump(mode="json")
    return {name: item[name] for name in columns_of(groups)}
