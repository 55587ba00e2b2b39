"""`/reports/…`: finance reports on invoices, charges and payments, as JSON, CSV and Parquet."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.admin.api.usage import Parquet
from gateway.admin.http import bodies
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import CSV, files_of, in_thread
from gateway.admin.http.requests import (
    decode_cursor,
    encode_cursor,
    fingerprint,
    number_or_text,
    read_once,
    require_read,
)
from gateway.admin.ports import AdminPorts, Admit
from gateway.admin.resources.reports import ASKED, ITEMS, MONTHS_MAX, PAGED, REPORTS
from gateway.core.accounts.administration import Place, Row
from gateway.core.accounts.hourly_budget import count_rows
from gateway.core.billing.finance import DOCUMENT, LegPlace, ReportPeriod
from gateway.core.billing.subscription import midnight
from gateway.core.text import csv
from gateway.errors import NotFound, Unprocessable

if TYPE_CHECKING:
    from persistence.store import Store

ITEMS_DEFAULT = 1_000
# Maximum of rows of a report's file; the ledger is streamed without one.
ROWS_MAX = 1_000_000
LEDGER = "ledger"
_PAGING = ("limit", "cursor")
_NUMBERS = ("limit", "organization_id")

Shown = Callable[[Row], dict[str, Any]]


def mount_finance(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the finance reports and their files."""

    async def show(request: web.Request, name: str) -> web.Response:
        mine = await _reader_of(ports, request, name, admit)
        sent = read_once(request.query)
        asked = checked(PAGED[name], sent)
        limit, cursor = asked.pop("limit", ITEMS_DEFAULT), asked.pop("cursor", None)
        rest = {name: sent[name] for name in sent if name not in _PAGING}
        mark = fingerprint(f"reports/{name}", rest, descending=False)
        place = None if cursor is None else decode_cursor(str(cursor), mark)
        page = _legs if name == LEDGER else partial(_rows, name)
        rows, behind = await page(mine.store, period_of(mine, name, asked), place, limit)
        shown = shown_as(name, asked)
        more = None if behind is None else encode_cursor(behind, mark)
        return web.json_response({"items": [shown(row) for row in rows[:limit]], "next_cursor": more})

    mount_finance_files(app, ports, root, admit)
    for name in ITEMS:
        app.router.add_get(f"{root}/reports/{name}", partial(show, name=name))


def mount_finance_files(app: web.Application, ports: AdminPorts, root: str, admitted: Admit) -> None:
    """Serve the files of all finance reports; `admitted` authenticates the caller."""
    files = files_of(app, ports.request_timeout_s)

    async def as_csv(request: web.Request, name: str) -> web.StreamResponse:
        mine = await _reader_of(ports, request, name, admitted)
        asked = checked(ASKED[name], read_once(request.query))
        wanted = period_of(mine, name, asked)
        pieces = _lines(mine, name, wanted, shown_as(name, asked))
        return await files.answer(request, mine.actor, _file(name, wanted, "csv"), CSV, pieces)

    async def as_parquet(request: web.Request, name: str) -> web.StreamResponse:
        mine = await _reader_of(ports, request, name, admitted)
        wanted = period_of(mine, name, checked(ASKED[name], read_once(request.query)))
        file = await Parquet.of(_file(name, wanted, "parquet"), columns_of(name), money_of(name))
        rows = await mine.store.report(name, wanted, 0, ROWS_MAX)
        return await files.answer(request, mine.actor, file.name, file.media, _written(file, rows))

    for name in ITEMS:
        for file in REPORTS[f"reports/{name}"].documents:
            handler = as_csv if file.suffix == ".csv" else as_parquet
            app.router.add_get(f"{root}/reports/{name}{file.suffix}", partial(handler, name=name))


async def _reader_of(ports: AdminPorts, request: web.Request, name: str, admitted: Admit) -> AdminPorts:
    mine = await admitted(ports, request)
    require_read(mine.actor, REPORTS[f"reports/{name}"])
    return mine


def columns_of(name: str) -> tuple[str, ...]:
    return tuple(ITEMS[name].model_fields)


def money_of(name: str) -> tuple[str, ...]:
    return tuple(each for each, field in ITEMS[name].model_fields.items() if field.annotation is Decimal)


def shown_as(name: str, asked: Mapping[str, object]) -> Shown:
    """Return what renders a row of a finance report; the ledger's rows get the accounts in the query."""
    if name != LEDGER:
        return lambda row: ITEMS[name].model_validate(row).model_dump(mode="json")
    codes = dict(pair.split(":", 1) for pair in str(asked.get("accounts") or "").split(",") if pair)

    def leg(row: Row) -> dict[str, Any]:
        amount: Any = row["amount"]
        sides = {"debit": amount if amount > 0 else None, "credit": -amount if amount <= 0 else None}
        said = {
            "date": row["at"], "account": codes.get(str(row["account"]), row["account"]),
            "description": row["said"],
        }  # fmt: skip
        return ITEMS[LEDGER].model_validate({**row, **sides, **said}).model_dump(mode="json")

    return leg


async def _lines(
    mine: AdminPorts, name: str, asked: ReportPeriod, shown: Shown
) -> AsyncGenerator[bytes, None]:
    """Yield a finance report as CSV, in pieces."""
    columns = columns_of(name)
    if name == LEDGER:
        is_first = True
        async for batch in mine.store.entries(asked):
            count_rows(len(batch))
            yield await in_thread(csv, columns, map(shown, batch), head=is_first)
            is_first = False
        if is_first:
            yield csv(columns, (), head=True)
        return
    rows = await mine.store.report(name, asked, 0, ROWS_MAX)
    yield await in_thread(csv, columns, map(shown, rows), head=True)


async def _written(file: Parquet, rows: Any) -> AsyncGenerator[bytes, None]:
    yield file.head() + await in_thread(file.some, rows)
    yield file.tail()


def checked(model: Any, sent: Mapping[str, str]) -> dict[str, Any]:
    """Validate the fields of a query string by `model`; raise `Unprocessable` with each error's field."""
    values = {name: number_or_text(text) if name in _NUMBERS else text for name, text in sent.items()}
    return bodies.check_body(model, values)


async def _rows(
    name: str, store: Store, asked: ReportPeriod, place: Place | None, limit: int
) -> tuple[Sequence[Row], Place | None]:
    """Return a page of a report's rows, and the position of the next page (None on the last one).

    A position is the number of rows before it.
    """
    after = 0
    if place is not None:
        if len(place) != 1 or not isinstance(place[0], int) or place[0] < 0:
            raise _wrong_cursor()
        after = place[0]
    rows = await store.report(name, asked, after, limit + 1)
    return rows, (after + limit,) if len(rows) > limit else None


async def _legs(
    store: Store, asked: ReportPeriod, place: Place | None, limit: int
) -> tuple[Sequence[Row], Place | None]:
    """Return up to `limit` + 1 ledger legs after `place`, and the position of the next page.

    The position is None on the last page.
    """
    rows = await store.ledger(asked, _leg(asked, place), limit + 1)
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    at, amount, number = last["at"], last["amount"], last["source_id"]
    assert isinstance(at, datetime)
    assert isinstance(amount, Decimal)
    return rows, (
        at.isoformat(), str(last["source"]), int(str(number)), int(amount < 0), str(last["account"])
    )  # fmt: skip


def _leg(asked: ReportPeriod, place: Place | None) -> LegPlace:
    """Return where a page of the ledger begins: at `place`, or at the first entry of the period."""
    first = first_entry(asked)
    if place is None:
        return first
    with suppress(TypeError, ValueError, OverflowError):
        at, source, number, is_credit, account = place
        moment = datetime.fromisoformat(str(at)).astimezone(UTC)
        if moment >= first.at:
            return LegPlace(moment, str(source), int(number), bool(is_credit), str(account))
    raise _wrong_cursor()


def first_entry(asked: ReportPeriod) -> LegPlace:
    """Return the ledger position before all entries of a period."""
    assert asked.since is not None
    return LegPlace(asked.since)


def _wrong_cursor() -> Unprocessable:
    return Unprocessable(
        "Some query parameters are wrong.", (("cursor", "is not a next_cursor of this report"),)
    )


def period_of(mine: AdminPorts, name: str, asked: Mapping[str, Any]) -> ReportPeriod:
    """Return a report's period and organization; raise `NotFound` if the caller belongs to another."""
    own, organization_id = mine.actor.organization_id, asked.get("organization_id")
    if own is not None and organization_id not in {None, own}:
        raise NotFound
    scope: dict[str, Any] = {"organization_id": own or organization_id, "currency": asked.get("currency")}
    today = datetime.now(UTC).date()
    if "at" in ASKED[name].model_fields:
        return ReportPeriod(midnight((asked.get("at") or today) + timedelta(days=1)), **scope)
    last = asked.get("until") or f"{today:%Y-%m}"
    first = asked.get("since") or last
    months = _number(last) - _number(first) + 1
    if not 0 < months <= MONTHS_MAX:
        wanted = f"must be up to {MONTHS_MAX - 1} months before to, or the same"
        raise Unprocessable("Some query parameters are wrong.", (("from", wanted),))
    return ReportPeriod(
        _first(_number(last) + 1), _first(_number(first)), by=asked.get("by") or DOCUMENT, **scope
    )


def _number(month: str) -> int:
    year, _, of_year = month.partition("-")
    return int(year) * 12 + int(of_year) - 1


def _first(number: int) -> datetime:
    return midnight(date(number // 12, number % 12 + 1, 1))


def _file(name: str, asked: ReportPeriod, suffix: str) -> str:
    last = (asked.until - timedelta(days=1)).date()
    if asked.since is None:
        return f"{name}-{last}.{suffix}"
    first, month = f"{asked.since:%Y-%m}", f"{last:%Y-%m}"
    return f"{name}-{month}.{suffix}" if first == month else f"{name}-{first}-to-{month}.{suffix}"
