"""Parses a report: pages of JSON, lines of JSON, or CSV.

Unknown fields are ignored. A missing field, a wrong value and a report that ends early are refused with their
position, because half a report would look like calls that only we have.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from functools import partial
from io import StringIO
from typing import Annotated, Final, TypeVar

import msgspec

from gateway.features.provider_report import anthropic, openai
from gateway.features.provider_report.comparison import BadReport, CsvExport, Format, ProviderReport

FORMATS: Final = {format_.name: format_ for format_ in (openai.FORMAT, anthropic.FORMAT)}
COLUMNS_MAX: Final = 200
PAGE_NAME_CHARACTERS_MAX: Final = 4_096
SAID_CHARACTERS_MAX: Final = 300  # of an error message, which may quote the report
_DAY = timedelta(days=1)
_Read = TypeVar("_Read")


class _Page(msgspec.Struct):
    """A page of buckets, or a single bucket in a file."""

    data: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    results: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    has_more: bool | msgspec.UnsetType = msgspec.UNSET
    next_page: Annotated[str, msgspec.Meta(max_length=PAGE_NAME_CHARACTERS_MAX)] | None = None


_pages = msgspec.json.Decoder(_Page)
_any = msgspec.json.Decoder(msgspec.Raw)
_several = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class ReportPosition:
    """A position in a report for error messages: the file or page, and the provider's format."""

    source: str
    of: Format

    def refused(self, where: str, what: object) -> BadReport:
        """Return the error for a fault at `where`, with the names of readable reports."""
        message = str(what)
        message = message if len(message) <= SAID_CHARACTERS_MAX else f"{message[:SAID_CHARACTERS_MAX]}…"
        return BadReport(f"{self.source}{where}: {message}. Readable are {self.of.wanted}.")

    def read(self, where: str, reader: Callable[[], _Read]) -> _Read:
        """Return the result of `reader`; errors name the position `where`."""
        try:
            return reader()
        except BadReport as error:
            raise self.refused(where, error.message) from error
        except RecursionError as error:
            raise self.refused(where, "it has too many brackets within each other") from error
        except (ValueError, msgspec.DecodeError) as error:
            raise self.refused(where, error) from error


def read_file(report: ProviderReport, data: bytes, place: ReportPosition) -> None:
    """Add a whole file to a report."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise place.refused("", f"it must be text in UTF-8, and byte {error.start} is not") from error
    if not text.strip():
        raise place.refused("", "it must not be empty")
    if text.lstrip()[0] not in "{[":
        _add_table(report, text, place)
        return
    more, where = "", ""
    for where, raw in _documents(text.encode(), place):
        more = add_page(report, raw, place, where)
    if more:
        message = f"has_more must be false on the last page; the page {more!r} must follow"
        raise place.refused(where, message)


def add_page(report: ProviderReport, raw: bytes, place: ReportPosition, where: str = "") -> str:
    """Add a page to a report; return the name of the next page, empty after the last."""
    page = place.read(where, lambda: _pages.decode(raw))
    if page.data is msgspec.UNSET:
        if page.results is msgspec.UNSET:
            raise place.refused(where, "it must be a page, with `data`, or a bucket, with `results`")
        _add_bucket(report, raw, place, where)
        return ""
    if page.has_more is msgspec.UNSET:
        raise place.refused(where, "a page must have the field `has_more`")
    for at, bucket in enumerate(page.data):
        _add_bucket(report, bytes(bucket), place, f"{where}, data[{at}]")
    if page.has_more and not page.next_page:
        raise place.refused(where, "a page with has_more must name the `next_page`")
    return page.next_page or "" if page.has_more else ""


def _documents(data: bytes, place: ReportPosition) -> Iterator[tuple[str, bytes]]:
    """Yield each document of a file with its position: a single one, an array, or one per line."""
    lines = data.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip())
    if any(map(bytes.strip, lines[first + 1 :])) and _is_whole(lines[first]):
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f", line {number}", line
        return
    if data.lstrip()[:1] == b"[":
        for at, raw in enumerate(place.read("", lambda: _several.decode(data))):
            yield f", [{at}]", bytes(raw)
        return
    yield "", data


def _is_whole(line: bytes) -> bool:
    try:
        _any.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _add_bucket(report: ProviderReport, raw: bytes, place: ReportPosition, where: str) -> None:
    """Add the results of a bucket to the report; raise the refusal of a bucket beyond one day."""
    start, end, results = place.read(where, lambda: place.of.bucket(raw))
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if not start < end <= start.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY:
        raise place.refused(where, f"a bucket must lie within one day of UTC, not from {start} to {end}")
    report.days.add(start.date())
    for at, result in enumerate(results):
        add = partial(_add_result, report, start.date(), result, place)
        place.read(f"{where}, results[{at}]", add)


def _add_result(report: ProviderReport, day: date, raw: msgspec.Raw, place: ReportPosition) -> None:
    report.add(day, place.of.result(bytes(raw)))


def _add_table(report: ProviderReport, text: str, place: ReportPosition) -> None:
    """Add the rows of a CSV text to the report; raise CommandFailed naming a wrong line."""
    rows = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        head = next(rows)
        table = _table(head, place)
        for cells in rows:
            if cells:
                _add_row(report, table, dict(zip(head, cells, strict=True)), place, rows.line_num)
    except csv.Error as error:
        raise place.refused(f", line {rows.line_num}", error) from error
    except ValueError as error:  # of zip
        message = f"it must have {len(head)} cells, as the first line has"
        raise place.refused(f", line {rows.line_num}", message) from error


def _table(head: list[str], place: ReportPosition) -> CsvExport:
    """Return which of a provider's CSV exports has these columns."""
    if len(head) > COLUMNS_MAX or len(set(head)) < len(head):
        raise place.refused(", line 1", f"it must name at most {COLUMNS_MAX} columns, each once")
    table = next((table for table in place.of.tables if table.mark in head), None)
    if table is None:
        marks = ", ".join(table.mark for table in place.of.tables)
        raise place.refused(", line 1", f"it must be JSON, or CSV with one of the columns {marks}")
    for name in table.columns:
        if name not in head:
            raise place.refused(", line 1", f"the column {name} is missing")
    return table


def _add_row(
    report: ProviderReport, table: CsvExport, row: dict[str, str], place: ReportPosition, number: int
) -> None:
    """Add a row of a CSV export to the report."""
    day, line = place.read(
        f", line {number}", lambda: table.read({name: cell.strip() for name, cell in row.items()})
    )
    report.days.add(day)
    if line is not None:
        place.read(f", line {number}", lambda: report.add(day, line))


def within(report: ProviderReport, since: date, until: date) -> ProviderReport:
    """Return the part of a report from `since` up to before `until`."""
    rows = {key: amounts for key, amounts in report.rows.items() if since <= key[0] < until}
    days = {day for day in report.days if since <= day < until}
    return ProviderReport(rows, days, report.states, report.currency)
