"""Usage and costs at the paths, and in the shapes, of Anthropic's and OpenAI's own Admin APIs.

They are views of `/usage`, with the same rights and the same sums. A period is divided into buckets of an
hour or a day, a page has some of these, and `page` requests the next ones. Each shape has the vendor's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.http.requests import require_read
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import REPORTS
from gateway.admin.resources.values import plausible
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import UsageQuery
from gateway.errors import NotFound, Unprocessable
from gateway.features.vendor_admin import anthropic, openai
from gateway.features.vendor_admin.limits import mount_limits
from gateway.features.vendor_admin.report import VendorQuery, VendorReport, handler, shown_id

# Groups of all buckets in a page, at most.
ROWS_MAX: Final = 10_000
# Buckets by width: the interval, its length, and the number on a page by default and at most.
WIDTHS: Final = {"1d": ("day", timedelta(days=1), 7, 31), "1h": ("hour", timedelta(hours=1), 24, 168)}
FILTERS_MAX: Final = 100
_PAGE = re.compile(r"page_(\d{1,12})", re.ASCII)


def mount_vendors(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the usage reports and spend limits of OpenAI and Anthropic at the vendors' own paths.

    `root`, the path of the Admin API, is not used.
    """
    for report in (*anthropic.REPORTS, *openai.REPORTS):
        app.router.add_get(report.path, _handler(ports, report))
    mount_limits(app, ports)
    for vendor in (anthropic, openai):
        app.router.add_route("*", f"{vendor.ROOT}/{{path:.*}}", handler(ports, vendor.refusal, _refuse_other))


async def _refuse_other(mine: AdminPorts, request: web.Request) -> dict[str, Any]:
    """Raise `NotFound` for a request to a part of a vendor's API that we do not serve."""
    raise NotFound(f"{request.method} {request.path} is not served here: the Admin API has it, at /admin/v1.")


def _handler(ports: AdminPorts, report: VendorReport) -> Callable[[web.Request], Any]:
    """Return the handler of a vendor's report, which answers one page of its buckets."""

    async def page(mine: AdminPorts, request: web.Request) -> dict[str, Any]:
        require_read(mine.actor, REPORTS["usage"])
        asked = read_query(report, request.query, datetime.now(UTC))
        end = min(asked.until, asked.since + asked.buckets * asked.width)
        groups = dict.fromkeys([*(report.groups[name] for name in asked.groups), *report.grouped])
        groups |= dict.fromkeys(report.filters[name] for name in asked.filters)
        rows = await mine.store.used(
            UsageQuery(asked.since, end, asked.interval, tuple(groups), {}, ROWS_MAX + 1)
        )
        if len(rows) > ROWS_MAX:
            raise _wrong("limit", f"asks for more than {ROWS_MAX} groups: ask for fewer buckets")
        return report.page(_buckets(report, asked, end, rows), _next(asked, end))

    return handler(ports, report.refusal, page)


def read_query(report: VendorReport, sent: MultiMapping[str], now: datetime) -> VendorQuery:
    """Parse a whole query; `Unprocessable` names the parameter and a valid value."""
    behind = "[]" if report.bracketed else ""
    lists = {name + behind: name for name in ("group_by", *report.filters)}
    _check_names(sent, {report.since, report.until, "bucket_width", "limit", "page"}, lists, behind)
    values = {plain: _list(sent, plain) for plain in lists.values()}
    width = sent.get("bucket_width", "1d")
    if width not in WIDTHS or (report.daily and width != "1d"):
        raise _wrong("bucket_width", f"must be {'1d' if report.daily else ' or '.join(WIDTHS)}")
    interval, length, usual, most = WIDTHS[width]
    if report.since not in sent:
        raise _wrong(report.since, "must be given")
    since = _moment(report, report.since, sent[report.since])
    until = now if report.until not in sent else _moment(report, report.until, sent[report.until])
    if since >= until:
        raise _wrong(report.until, f"must be behind {report.since}")
    since, until = _floor(since, length), _ceiling(until, length)
    groups = tuple(dict.fromkeys(values.pop("group_by")))
    unknown = [name for name in groups if name not in report.groups]
    if unknown:
        known = ", ".join(report.groups)
        raise _wrong(f"group_by{behind}", f"must not have {unknown[0]}: expected some of {known}")
    filters = {name: frozenset(value) for name, value in values.items() if value}
    query = VendorQuery(since, until, interval, length, _limit(sent, usual, most), groups, filters)
    return replace(query, since=_begin(query, sent["page"])) if "page" in sent else query


def _check_names(
    sent: MultiMapping[str], single: Collection[str], lists: Collection[str], behind: str
) -> None:
    """Raise `Unprocessable` for a parameter that is unknown, or in `single` and sent twice.

    The names in `lists` end in `behind`.
    """
    for name in sent:
        if name not in single and name.removesuffix("[]") + behind not in lists:
            known = ", ".join(sorted({*single, *lists}))
            raise _wrong(name, f"is no parameter of this report: expected {known}")
        if name in single and len(sent.getall(name)) > 1:
            raise _wrong(name, "must be there once")


def _list(sent: MultiMapping[str], name: str) -> list[str]:
    """Return a list parameter's values: repeated, comma-separated, or with `[]` after the name."""
    texts = [*sent.getall(name, []), *sent.getall(f"{name}[]", [])]
    values = [value for text in texts for value in text.split(",") if value]
    if len(values) > FILTERS_MAX:
        raise _wrong(name, f"must have at most {FILTERS_MAX} values")
    return values


def _limit(sent: MultiMapping[str], usual: int, most: int) -> int:
    text = sent.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= most):
        raise _wrong("limit", f"must be a number of buckets from 1 to {most}")
    return int(text)


def _moment(report: VendorReport, name: str, text: str) -> datetime:
    try:
        moment = report.moment(text).astimezone(UTC)
        plausible(moment.date())
    except (ValueError, OverflowError, OSError) as error:
        raise _wrong(name, str(error)) from error
    return moment


def _begin(asked: VendorQuery, page: str) -> datetime:
    """Return the start of a page's first bucket, by the `page` token of the page before."""
    match = _PAGE.fullmatch(page)
    begin = datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(match[1])) if match else asked.until
    if not asked.since < begin < asked.until or _floor(begin, asked.width) != begin:
        raise _wrong("page", "is not the next_page of this report")
    return begin


def _next(asked: VendorQuery, end: datetime) -> str | None:
    return f"page_{int(end.timestamp())}" if end < asked.until else None


def _floor(at: datetime, width: timedelta) -> datetime:
    epoch = datetime.fromtimestamp(0, UTC)
    return epoch + (at - epoch) // width * width


def _ceiling(at: datetime, width: timedelta) -> datetime:
    return _floor(at + width - timedelta(microseconds=1), width)


def _buckets(
    report: VendorReport, asked: VendorQuery, end: datetime, rows: Iterable[Row]
) -> list[dict[str, Any]]:
    """Return the buckets (spans of time) of a page up to `end`, also empty ones, with the usage in `rows`."""
    by_start: dict[datetime, list[Row]] = {}
    for row in rows:
        if _passes(report, asked, row):
            by_start.setdefault(cast("datetime", row["start"]), []).append(row)
    buckets, at = list[dict[str, Any]](), asked.since
    while at < end:
        results = report.results(by_start.get(at, ()), asked)
        buckets.append(report.bucket(at, at + asked.width, results))
        at += asked.width
    return buckets


def _passes(report: VendorReport, asked: VendorQuery, row: Row) -> bool:
    return all(shown_id(row, report.filters[name]) in values for name, values in asked.filters.items())


def _wrong(name: str, reason: str) -> Unprocessable:
    return Unprocessable(f"The query parameter {name} {reason}.", ((name, reason),))
