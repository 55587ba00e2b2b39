"""Lists: one page of a resource's rows under filters, usually newest first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import UUID

from aiohttp import web
from multidict import MultiDict
from yarl import URL

from gateway.admin import credentials, live
from gateway.admin.console import formatting
from gateway.admin.console.formatting import MONEY, Cell, Names, cell, label_of, references
from gateway.admin.console.home import (
    FOUND,
    SEARCHED,
    Choices,
    ConsoleShell,
    Posted,
    SignedInPerson,
    query,
    see,
)
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.explanation import REFUSALS
from gateway.admin.http.requests import FILTER_CHARS_MAX, id_of, read_query
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, Query, Row, refused_read, refused_write
from gateway.core.accounts.tags import GROUP, TAG, tag_in
from gateway.errors import Forbidden, Unprocessable

# The order of a list: its rows' own, in both directions, or a bounded number of rows sorted by another
# column.

# Maximum of rows that can be sorted by a column: all of them are read for each page.
SORTED_MAX = 1_000
# The columns of time. Lists are in this order, except lists by account.
IN_ORDER = ("created_at", "timestamp", "id")
BY_ACCOUNT = frozenset({"token-ledger", "credit-transactions", "feature-usage"})
# Parameters of each page of the console: what was done just now.
EVERY_PAGES = frozenset({"done", "later"})
NO_FILTER = "is not a filter"
# Columns that cannot be sorted.
UNSORTED = frozenset((
    "quota", "use", "of", "amount", "state", "change", "after", "limits", "last_delivery", "events",
    "feature_access",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a list by a column; `is_own` if it is the list's usual order."""

    column: str
    descending: bool
    is_own: bool

    @property
    def said(self) -> str:
        return f"-{self.column}" if self.descending else self.column


def order_of(screen: Screen, text: str) -> Order:
    """Return the order that the query parameter `sort` (`text`) requests, or else the list's usual one."""
    by_time = screen.resource.name not in BY_ACCOUNT
    own = next((name for name in IN_ORDER if name in screen.columns), "") if by_time else ""
    column, descending = text.removeprefix("-"), text.startswith("-")
    if not _is_sortable(screen, column):
        return Order(own, screen.newest_first, is_own=True)
    return Order(column, descending, is_own=column == own)


def headings(screen: Screen, order: Order) -> list[tuple[str, str]]:
    """Return for each column the link that sorts by it ("" if none can), and the column's current order."""
    headings_ = []
    for column in screen.columns:
        is_here = column == order.column
        now = ("descending" if order.descending else "ascending") if is_here else ""
        asks = (
            ""
            if not _is_sortable(screen, column)
            else f"-{column}"
            if is_here and not order.descending
            else column
        )
        headings_.append((asks, now))
    return headings_


def in_order(rows: Sequence[Row], screen: Screen, order: Order, names: Names) -> list[Row]:
    """Sort rows by a column: references by the name of their row, empty values last."""
    target = screen.resource.target(order.column)

    def value(row: Row) -> Any:
        value_ = row.get(order.column)
        if target and isinstance(value_, int):
            return names.get((target, value_), str(value_)).casefold()
        if isinstance(value_, str):
            return Decimal(value_) if order.column in MONEY else value_.casefold()
        return value_ if isinstance(value_, (int, float)) else str(value_)

    there = [row for row in rows if row.get(order.column) is not None]
    return [
        *sorted(there, key=value, reverse=order.descending),
        *(row for row in rows if row.get(order.column) is None),
    ]


def referred(rows: Sequence[Row], screen: Screen, order: Order) -> Mapping[str, set[int]]:
    target = screen.resource.target(order.column)
    ids = {row[order.column] for row in rows if target and isinstance(row.get(order.column), int)}
    return {target: ids} if ids else {}  # type: ignore[dict-item]  # integers


def _is_sortable(screen: Screen, column: str) -> bool:
    is_field = column in screen.columns and column in screen.resource.out.model_fields
    return is_field and column not in UNSORTED


ROWS_A_PAGE = 50
FOUND_MAX = 20
# Similar names shown if no row has the typed one.
ALIKE_SHOWN_MAX = 3
KINDS = {"id": "id", "count": "id"}
# Maximum of counted rows, beyond which "more" is shown; and milliseconds that a list waits for the count.
COUNT_MAX = 10_000
COUNT_MS_MAX = 200
_PAGE = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FilterControl:
    name: str
    label: str
    kind: str
    value: str
    choices: Sequence[tuple[str, str]] = ()
    refers: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ListPage:
    """The rows of a page, the query parameters of the next page, and the number of rows if known."""

    rows: Sequence[Row]
    next: Mapping[str, str] | None
    count: int | None
    is_too_long: bool = False


@dataclass(frozen=True, slots=True)
class ListRow:
    id: int | str
    href: str
    cells: Sequence[Cell]
    row: Row


async def show(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, *, screen: Screen
) -> web.Response:
    """`GET /<resource>`: the page of a list."""
    listed = await page_of(desk, screen, request)
    status = 422 if listed["errors"] else 200
    return desk.answer(request, signed, "list.html", status, list=listed)


async def page_of(
    desk: ConsoleShell,
    screen: Screen,
    request: web.Request,
    *,
    rows_max: int = ROWS_A_PAGE,
    file: str = "",
    **fixed: str,
) -> dict[str, Any]:
    """Return the facts for a page of a list by the request's query, with links to other pages and the file.

    Filters in `fixed` override the query's.
    """
    choices = await desk.choices({screen.resource.target(name) for name in screen.filters})
    order = order_of(screen, request.query.get("sort", ""))
    list_page = ListPage((), None, None)
    named, errors = await find_names(desk, request.query, targets_of(screen))
    if not errors:
        try:
            list_page = await _read_page(
                desk, screen, request, order, rows_max=rows_max, fixed={**named, **fixed}
            )
        except Unprocessable as wrong:
            errors = dict(wrong.errors)
    stated = tags_in(screen, request)
    declared = await declared_tags(desk, request.query) if screen.resource.tagged else []
    known = (*screen.filters, *stated)
    is_filtered = any(request.query.get(name) for name in (*known, "from", "to"))
    actor = desk.ports.actor
    # All rows that a person may see have these.
    alike = {name for name in ("organization_id", "tenant_id") if getattr(actor, name) is not None}
    controls = _controls(screen, request, choices, errors, dict.fromkeys((*declared, *stated)))
    return {
        "screen": screen,
        "labels": [label_of(name) for name in screen.columns],
        "lines": await lines_of(desk, screen, list_page.rows),
        "controls": [control for control in controls if control.value or control.name not in alike],
        "errors": {name if text == NO_FILTER else label_of(name): text for name, text in errors.items()},
        "next": _address(request, **list_page.next) if list_page.next else "",
        "is_first": not request.query.keys() & {"cursor", "page"},
        "first": _address(request),
        "empty": "Nothing matches these filters." if is_filtered else screen.empty,
        "next_step": ("Clear the filters", request.path) if is_filtered else _next_step(desk, screen),
        "count": list_page.count,
        "count_max": COUNT_MAX,
        "sort": request.query.get("sort", ""),
        "headings": [
            (_address(request, sort=asks) if asks else "", now) for asks, now in headings(screen, order)
        ],
        "is_unsorted": not order.is_own and list_page.is_too_long,
        "sorted_max": SORTED_MAX,
        "file": _address(request, path=file or f"{request.path}.csv"),
    }


def _next_step(desk: ConsoleShell, screen: Screen) -> tuple[str, str]:
    """Return text and address of the button on an empty list: to create a row if allowed."""
    resource, actor = screen.resource, desk.ports.actor
    if resource.create is None or refused_write(actor, resource.name, resource.access, CREATE) is not None:
        return screen.next_step
    return f"New {screen.one}", f"/{screen.name}/new"


async def _read_page(
    desk: ConsoleShell,
    screen: Screen,
    request: web.Request,
    order: Order,
    *,
    rows_max: int,
    fixed: Mapping[str, str],
) -> ListPage:
    """Return the rows of a page; another order than the usual one only if at most `SORTED_MAX` rows match."""
    operations = desk.operations[screen.name]
    if not order.is_own:
        rows, more = await operations.list(replace(read(screen, request, SORTED_MAX, fixed), after=None))
        if more is None:
            names = await desk.names(referred(rows, screen, order))
            page = _page(request)
            rows = in_order(rows, screen, order, names)
            shown_rows = rows[page * rows_max : (page + 1) * rows_max]
            following = {"page": str(page + 2)} if (page + 1) * rows_max < len(rows) else None
            return ListPage(shown_rows, following, len(rows))
    query = read(screen, request, rows_max, fixed)
    (rows, cursor), count = await asyncio.gather(
        operations.list(query), operations.count(query, COUNT_MAX, COUNT_MS_MAX)
    )
    return ListPage(rows, {"cursor": cursor} if cursor else None, count, is_too_long=not order.is_own)


async def find(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /find/<resource>?<field>=`: rows with a matching name, as options of a field."""
    name = request.match_info["resource"]
    text = next(iter(request.query.values()), "").strip()
    return desk.answer(request, signed, "options.html", options=await found_by_name(desk, name, text))


async def found_by_name(desk: ConsoleShell, name: str, text: str) -> Sequence[tuple[int, str]]:
    """Return ids and names of rows that match a typed name; none if the actor may not read them."""
    if name not in FOUND or not 0 < len(text) <= FILTER_CHARS_MAX:
        return ()
    if refused_read(desk.ports.actor, name, RESOURCES[name].access) is not None:
        return ()
    if name in SEARCHED:
        rows, _ = await desk.operations[name].list(query(FOUND_MAX, search=text))
        return [(int(str(row["id"])), str(row["name"])) for row in rows]
    return await desk.ports.figures.find(name, text, FOUND_MAX)


async def ids_of_names(
    desk: ConsoleShell, typed: Mapping[str, str], targets: Mapping[str, str]
) -> dict[str, int]:
    """Return the ids of rows by field, from `typed` names; raise `Unprocessable` for an unclear name.

    `targets` are the fields' resources.
    """
    ids, errors = await find_names(desk, typed, targets)
    if errors:
        raise Unprocessable("Some names do not say which row is meant.", tuple(errors.items()))
    return {name: int(text) for name, text in ids.items()}


async def find_names(
    desk: ConsoleShell, typed: Mapping[str, str], targets: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the ids of rows by typed names, as texts by field; and errors by field.

    `targets` are the fields' resources. Numbers are ignored, as their field checks them. A name that no row
    or several rows have is an error.
    """
    wanted = {name: text.strip() for name, text in typed.items() if targets.get(name) in FOUND}
    named = {name: text for name, text in wanted.items() if text and not text.isdecimal()}
    rows = await asyncio.gather(*(_find_named(desk, targets[name], text) for name, text in named.items()))
    names = dict(zip(named, rows, strict=True))
    errors = {name: error for name, error in names.items() if isinstance(error, str)}
    return {name: str(row_id) for name, row_id in names.items() if name not in errors}, errors


async def _find_named(desk: ConsoleShell, target: str, text: str) -> int | str:
    """Return the id of the row with this name; an error message if none or several have it."""
    rows = await found_by_name(desk, target, text)
    same = [row_id for row_id, name in rows if name.casefold() == text.casefold()]
    if len(same) == 1:
        return same[0]
    if same:
        numbers = ", ".join(map(str, sorted(same)))
        return f"is the name of {len(same)} rows: give one of their numbers, {numbers}"
    alike = ", ".join(f"{name} ({row_id})" for row_id, name in rows[:ALIKE_SHOWN_MAX])
    return f"names nothing: {f'there is {alike}' if alike else 'give a whole name, or a number'}"


def read(screen: Screen, request: web.Request, rows_max: int, fixed: Mapping[str, str]) -> Query:
    """Return a page's list query without empty filters; dates are whole UTC days, times are as given.

    Raise `Unprocessable` for a parameter that is no filter of the list: it never shows other rows than asked.
    """
    wanted = order_of(screen, request.query.get("sort", ""))
    is_back = wanted.descending if wanted.is_own else screen.newest_first
    order = "desc" if is_back else "asc"
    sent = MultiDict({"limit": str(rows_max), "order": order, **fixed})
    days = {"from": 0, "to": 1} if screen.spans_time else {}
    tags = tags_in(screen, request)
    known = {*screen.filters, *tags, *days, *screen.besides, "cursor", "page", "sort"}
    if wrong := unknown(request.query, known):
        raise Unprocessable("Some query parameters are wrong.", tuple(wrong.items()))
    for name in (*screen.filters, *tags, "cursor", *days):
        for text in map(str.strip, request.query.getall(name, ())):
            if text and name not in fixed:
                is_day = name in days and "T" not in text
                sent.add(name, _midnight(name, text, days[name]) if is_day else text)
    return read_query(screen.name, screen.resource.filters, sent, tagged=screen.resource.tagged)


def tags_in(screen: Screen, request: web.Request) -> list[str]:
    """Return the tags that a page's address filters by, where the rows of its list have tags."""
    return list(filter(GROUP.fullmatch, request.query)) if screen.resource.tagged else []


async def declared_tags(desk: ConsoleShell, filters: Mapping[str, str]) -> list[str]:
    """Return the tags of the organization that the reader is of, or that the filters name, as `tag:NAME`."""
    named = desk.ports.actor.organization_id or id_of(filters.get("organization_id", ""))
    return [] if named is None else [TAG + name for name in await desk.tags(named)]


def unknown(sent: Iterable[str], known: Collection[str], wrong: str = NO_FILTER) -> dict[str, str]:
    """Return the error `wrong` by name of each query parameter in `sent` that is not `known`."""
    return {name: wrong for name in sent if name not in known and name not in EVERY_PAGES}


def in_words(errors: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {text}" for name, text in errors.items())


def targets_of(screen: Screen) -> dict[str, str]:
    return {name: screen.resource.target(name) for name in screen.filters}


async def lines_of(desk: ConsoleShell, screen: Screen, rows: Sequence[Row]) -> list[ListRow]:
    """Return rows for a table, with the names of referred rows and the quotas of tenants."""
    if screen.name == "tenants":
        rows = await with_quotas(desk, rows)
    if screen.name == "budgets":
        rows = [{**row, "use": formatting.use_of(row)} for row in rows]
    names = await desk.names(references(screen, rows))
    return [
        ListRow(
            row_id := number if isinstance(number := row.get("id", 0), int) else str(number),
            f"/{screen.name}/{row_id}" if screen.has_page else "",
            [cell(screen, row, name, names) for name in screen.columns],
            row,
        )
        for row in rows
    ]


async def with_quotas(desk: ConsoleShell, tenants: Sequence[Row]) -> list[Row]:
    ids = [int(str(row["id"])) for row in tenants]
    stored = await desk.ports.figures.quotas(ids)
    quotas: dict[object, Any] = {row["id"]: row for row in await live.overlay(desk.ports, "quota", stored)}
    return [{**row, "quota": quota_of(quotas.get(row["id"]))} for row in tenants]


def quota_of(row: Row | None) -> Row | None:
    """Return a quota with its used, held and remaining shares in per cent; None if there is none."""
    if row is None:
        return None
    values: Any = row
    used, held, left = int(values["tokens_used"]), int(values["tokens_held"]), values["tokens_remaining"]
    whole = used + max(0, int(left)) if left is not None else 0
    is_over = left is not None and int(left) <= 0
    used_share = 100.0 if is_over else formatting.percent(used, whole) if left is not None else 0.0
    held_share = min(formatting.percent(held, whole), 100.0 - used_share) if left is not None else 0.0
    return {
        **row,
        "whole": whole,
        "used_share": round(used_share, 2),
        "held_share": round(held_share, 2),
        "tone": "bad" if left is not None and left <= 0 else "warn" if used_share >= 80 else "good",
    }


def _controls(
    screen: Screen, request: web.Request, choices: Choices, errors: Mapping[str, str], tags: Iterable[str]
) -> list[FilterControl]:
    """Return the controls of a list's filters, and those of `tags`, such as `tag:feature`."""
    controls = []
    for name in screen.filters:
        wanted = screen.resource.filters[name]
        target = screen.resource.target(name)
        offered = [(choice, choice.replace("_", " ")) for choice in wanted.choices]
        if target:
            offered = choices.get(target, [])
        elif wanted.kind == "flag":
            offered = [("true", "yes"), ("false", "no")]
        elif (screen.name, name) == ("calls", "reason"):
            offered = [(refusal, refusal.replace("_", " ")) for refusal in sorted(REFUSALS)]
        value, error = request.query.get(name, ""), errors.get(name, "")
        if wanted.or_tag and tag_in(value):
            offered.append((value, value))
        kind = "choice" if offered else "named" if target in FOUND else KINDS.get(wanted.kind, "text")
        shape = "search" if name == "search" else kind
        controls.append(FilterControl(name, label_of(name), shape, value, offered, target, error))
    for name in tags:
        value, error = request.query.get(name, ""), errors.get(name, "")
        controls.append(FilterControl(name, f"Tag {tag_in(name)}", "text", value, (), "", error))
    if screen.spans_time:
        for name in ("from", "to"):
            value = request.query.get(name, "")
            kind = "text" if "T" in value else "day"
            controls.append(FilterControl(name, name.title(), kind, value, error=errors.get(name, "")))
    return controls


def _page(request: web.Request) -> int:
    text = request.query.get("page", "")
    return int(text) - 1 if _PAGE.fullmatch(text) else 0


def _address(request: web.Request, path: str = "", **changes: str) -> str:
    here = {"cursor", "page", "done"}
    kept = {name: text for name, text in request.query.items() if text and name not in here} | changes
    # Names in our paths contain no characters that need escaping.
    return str(URL(path or request.path).with_query(kept)) if kept else path or request.path


def _midnight(name: str, text: str, days: int) -> str:
    try:
        return f"{date.fromisoformat(text) + timedelta(days=days)}T00:00:00Z"
    except (ValueError, OverflowError) as error:
        raise Unprocessable(errors=((name, "must be a day such as 2026-01-31"),)) from error


# The search on every page: by request id, the beginning of a key, a user's own id, or a name.
#
# The form is posted and answered directly, so that a pasted text is in no address. Of a whole key only the
# visible prefix is searched for or shown.

_SECRET = re.compile(rf"({credentials.ADMIN_TOKEN}|{credentials.API_KEY})([0-9A-Za-z]+)", re.ASCII)
# The search filter of each resource, and the fields shown next to a row's name.
_BY_NAME = {
    "api-keys": ("prefix", ("prefix", "tenant_id")),
    "users": ("external_id", ("organization_id", "name")),
    "tenants": ("search", ("organization_id",)),
    "organizations": ("search", ()),
}
_BY_REQUEST = {
    "calls": ("created_at", "tenant_id", "model"),
    "credit-transactions": ("timestamp", "organization_id"),
    "feature-usage": ("timestamp", "organization_id"),
}


@dataclass(frozen=True, slots=True)
class Hit:
    """A row found by a search: its name, further facts, and its address."""

    name: str
    notes: Sequence[str]
    href: str


Hits = list[tuple[str, list[Hit]]]


async def ask_search(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.Response:
    """`POST /search`: redirect to the only hit, or show all."""
    text = posted.get("q", "")
    wanted = reduced(text.strip())[:FILTER_CHARS_MAX] if isinstance(text, str) else ""
    hits = await _found_by_search(desk, wanted)
    if only := _only(hits):
        return see(only)
    return desk.answer(request, signed, "search.html", wanted=wanted, found=hits)


async def show_search(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /search?q=`: show all hits."""
    text = request.query.get("q", "").strip()
    wanted = reduced(text)
    if wanted != text:
        return see(f"/search?q={quote(wanted, safe='')}")
    return desk.answer(
        request, signed, "search.html", wanted=wanted, found=await _found_by_search(desk, wanted)
    )


def reduced(text: str) -> str:
    """Return the text to search for; a key or admin token in it is cut to its visible beginning."""
    secret = _SECRET.search(text)
    if secret is None or len(secret[2]) <= credentials.SHOWN_CHARS:
        return text
    return secret[1] + secret[2][: credentials.SHOWN_CHARS]


async def _found_by_search(desk: ConsoleShell, wanted: str) -> Hits:
    if not wanted or len(wanted) > FILTER_CHARS_MAX:
        return []
    with suppress(ValueError):
        return await _of_request(desk, str(UUID(wanted)))
    results = await asyncio.gather(
        *(_hits(desk, name, by, wanted, notes) for name, (by, notes) in _BY_NAME.items())
    )
    return [(SCREENS[name].title, hits) for name, hits in zip(_BY_NAME, results, strict=True) if hits]


async def _of_request(desk: ConsoleShell, request_id: str) -> Hits:
    """Return the call of a request; if it is no longer in the journal, the request's ledger rows."""
    for names in (("calls",), ("credit-transactions", "feature-usage")):
        results = await asyncio.gather(
            *(_hits(desk, name, "request_id", request_id, _BY_REQUEST[name]) for name in names)
        )
        sections = [(SCREENS[name].title, hits) for name, hits in zip(names, results, strict=True) if hits]
        if sections:
            return sections
    sent = MultiDict(request_id=request_id, limit=str(FOUND_MAX))
    ledger = desk.operations["token-ledger"]
    rows, _ = await ledger.list(read_query("token-ledger", ledger.resource.filters, sent))
    tenants = sorted({int(str(row["tenant_id"])) for row in rows})
    called = await desk.names({"tenants": set(tenants)})
    asked = f"request_id={request_id}"
    moved = [
        Hit(
            called.get(("tenants", tenant), f"tenant {tenant}"),
            ("ledger",),
            f"/tenants/{tenant}?{asked}#ledger",
        )
        for tenant in tenants
    ]
    return [("Ledgers", moved)] if moved else []


async def _hits(desk: ConsoleShell, name: str, by: str, wanted: str, notes: Sequence[str]) -> list[Hit]:
    screen, operations = SCREENS[name], desk.operations[name]
    sent = MultiDict({by: wanted, "limit": str(FOUND_MAX)})
    try:
        rows, _ = await operations.list(read_query(name, screen.resource.filters, sent))
    except (Unprocessable, Forbidden):
        return []
    names = await desk.names(references(screen, rows))
    return [
        Hit(
            str(row.get(screen.resource.named_by) or row["id"]),
            [cell(screen, row, note, names).text for note in notes if row[note] is not None],
            f"/{name}/{row['id']}" if SCREENS[name].has_page else f"/{name}?{by}={quote(wanted, safe='')}",
        )
        for row in rows
    ]


def _only(sections: Hits) -> str:
    pages = {hit.href for _, hits in sections for hit in hits}
    return pages.pop() if len(pages) == 1 else ""
