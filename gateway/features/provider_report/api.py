"""A provider's own API of usage and costs: its pages in order, and every failure as one sentence.

The administrator's key is sent to the given address alone: no redirect is followed, and plain HTTP is for
this machine only. A provider's error message is not repeated, because it may contain the key.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

import typer

from gateway.cli.admin import output
from gateway.cli.admin.client import AdminClient, CommandFailed, Json, is_local
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.core.text import csv
from gateway.core.wait_hints import retry_after_s
from gateway.features.provider_report import comparison
from gateway.features.provider_report.comparison import (
    DAYS_A_PAGE,
    EXACT,
    FIELDS,
    BadReport,
    ComparisonResult,
    DayComparison,
    Format,
    NameMatch,
    ProviderReport,
    ReportLine,
    Tolerance,
    counted,
    total,
)
from gateway.features.provider_report.reading import FORMATS, ReportPosition, add_page, read_file, within

PAGES_MAX: Final = 1_000  # of all reports of one comparison
PAGE_BYTES_MAX: Final = 16 * 2**20
PAGE_S_MAX: Final = 60.0
SILENT_S_MAX: Final = 30.0
TRIES_MAX: Final = 4  # of one page
PAUSE_S_MAX: Final = 60.0
KEY_BYTES_MAX: Final = 4_096
_CHUNK_BYTES: Final = 65_536
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504, 529})


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Refuse every redirect, because another address would get the key."""


@dataclass(frozen=True, slots=True)
class ProviderApi:
    """A provider's base URL, such as https://api.openai.com, and an administrator's key."""

    of: Format
    url: str
    key: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    pages_max: int = PAGES_MAX

    def read(self, since: date, until: date) -> ProviderReport:
        """Return all reports for the days from `since` up to before `until`."""
        report = ProviderReport(days={since + timedelta(days=at) for at in range((until - since).days)})
        pages = 0
        for path, parameters in self.of.questions:
            for first, last in spans(since, until):
                pages = self._add_pages(report, path, {**parameters, **self.of.span(first, last)}, pages)
        return report

    def _add_pages(self, report: ProviderReport, path: str, query: Mapping[str, str], pages: int) -> int:
        """Add all pages of an answer to `report`; return the number of pages read, with `pages` before."""
        page, seen = "", set[str]()
        while page or not seen:
            if page in seen or pages >= self.pages_max:
                why = f"has more than {self.pages_max:,} pages, or one twice: ask for less time"
                raise CommandFailed(f"{self.url}{path} {why}.")
            seen.add(page)
            pages += 1
            raw = self._page(path, {**query, "page": page} if page else query)
            page = add_page(report, raw, ReportPosition(f"{self.url}{path}, page {pages}", self.of))
        return pages

    def _page(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return a page of the provider's API; try again after a pause if it is busy."""
        for number in range(1, TRIES_MAX + 1):
            try:
                return self._answer(path, query)
            except HTTPError as error:
                with error:
                    if error.code not in _AGAIN or number == TRIES_MAX:
                        raise CommandFailed(self._refusal(error.code, path)) from error
                    self.sleep(_pause_s(error.headers.get("retry-after"), number))
            except (URLError, OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)
                raise CommandFailed(f"Nothing usable answers at {self.url}{path} ({reason}).") from error
        raise AssertionError("the last try returns or raises")

    def _answer(self, path: str, query: Mapping[str, str]) -> bytes:
        headers = {"Accept": "application/json", **self.of.headers(self.key)}
        request = Request(f"{self.url}{path}?{urlencode(query)}", headers=headers)  # noqa: S310  # checked scheme
        until = self.clock() + PAGE_S_MAX
        with _opener(self.url).open(request, timeout=SILENT_S_MAX) as answer:
            return self._read_body(answer, path, until)

    def _read_body(self, answer: HTTPResponse, path: str, until: float) -> bytes:
        """Return the body of an answer; raise `CommandFailed` if it is too long or too slow."""
        body = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > PAGE_BYTES_MAX:
                raise CommandFailed(f"A page of {self.url}{path} has more than {PAGE_BYTES_MAX:,} bytes.")
            if self.clock() > until:
                raise CommandFailed(f"A page of {self.url}{path} took more than {PAGE_S_MAX:.0f} s.")
        return bytes(body)

    def _refusal(self, status: int, path: str) -> str:
        if status in {401, 403}:
            return (
                f"{self.url} does not accept the key ({status}). {self.of.key_variable} must hold one of an "
                "administrator of the organization; an ordinary API key may not read reports."
            )
        if status in _AGAIN:
            return f"{self.url}{path} answered {status}, {TRIES_MAX} times. Try again later."
        return f"{self.url}{path} answered {status}. --api must be the base URL, such as {self.of.url}."


def provider_api(form: Format, url: str | None, environ: Mapping[str, str] = os.environ) -> ProviderApi:
    """Return the API of a provider, with its key from the environment."""
    base = (url or form.url).rstrip("/").removesuffix("/v1")
    parts = urlsplit(base)
    plain = parts.scheme == "http" and is_local(parts.hostname or "")
    if not parts.hostname or parts.query or parts.username or not (parts.scheme == "https" or plain):
        raise CommandFailed(
            f"--api must be a base URL such as {form.url}, with https unless it is this machine."
        )
    return ProviderApi(form, base, _key(form, environ))


def spans(since: date, until: date) -> Iterator[tuple[date, date]]:
    """Yield the period in spans of at most `DAYS_A_PAGE` days."""
    while since < until:
        last = min(since + timedelta(days=DAYS_A_PAGE), until)
        yield since, last
        since = last


def _key(form: Format, environ: Mapping[str, str]) -> str:
    """Return the provider's API key, from its environment variable or the file that another one names."""
    from gateway.settings.secret_files import Environment  # help is shown without settings

    name = form.key_variable
    key = Environment(environ).get(name, "").strip()
    if not key:
        raise CommandFailed(
            f"Name a FILE with the report, or set {name} (or {name}_FILE) to read it from {form.url}."
        )
    if len(key) > KEY_BYTES_MAX or not (key.isascii() and key.isprintable() and " " not in key):
        raise CommandFailed(f"{name} must be one word of at most {KEY_BYTES_MAX:,} ASCII characters.")
    return key


def _opener(url: str) -> OpenerDirector:
    # Requests to this machine never go through a proxy.
    direct = (ProxyHandler({}),) if is_local(urlsplit(url).hostname or "") else ()
    return build_opener(_NoRedirect, *direct)


def _pause_s(text: str | None, number: int) -> float:
    """Return the seconds to wait after try `number`: the provider's `Retry-After`, else doubled each time.

    `text` is the header's text.
    """
    wanted = retry_after_s(text, time.time()) if text else None
    return min(float(2 ** (number - 1)) if wanted is None else wanted, PAUSE_S_MAX)


# The outcome of the comparison, as a table, as CSV and as JSON. Counts are numbers, money is exact decimals.
@dataclass(frozen=True, slots=True)
class Comparison:
    """All compared rows, the provider's report, the days from `since` to before `until`, and our services."""

    rows: Sequence[DayComparison]
    theirs: ProviderReport
    since: date
    until: date
    services: Collection[str]

    @property
    def fields(self) -> list[str]:
        """The compared fields: those in the provider's report."""
        return [name for name in FIELDS if name in self.theirs.states] or list(FIELDS)

    @property
    def is_matched(self) -> bool:
        """Whether our usage and the provider's agree in every row."""
        return all(row.verdict is ComparisonResult.MATCHED for row in self.rows)


def print_json(found: Comparison) -> None:
    """Print the comparison as JSON."""
    fields = found.fields
    output.print_json(
        {
            "from": str(found.since),
            "to": str(found.until),
            "services": sorted(found.services),
            "currency": found.theirs.currency or None,
            "compared": fields,
            "verdicts": counted(found.rows),
            "items": [_as_json(row, fields) for row in found.rows],
            "total": _as_json(total(found.rows, fields), fields),
        }
    )


def print_csv(found: Comparison) -> None:
    """Print the comparison as CSV, with the total in the last line."""
    fields = found.fields
    lines = [_flat(row, fields) for row in [*found.rows, total(found.rows, fields)]]
    typer.echo(csv(tuple(lines[0]), lines, head=True), nl=False)


def print_table(found: Comparison) -> None:
    """Print the comparison as a table. A cell has one number if our usage and the provider's agree."""
    fields = found.fields
    shown = [_render_row(row, fields) for row in [*found.rows, total(found.rows, fields)]]
    last = found.until - timedelta(days=1)
    title = f"{found.since} to {last}, ours of {', '.join(sorted(found.services))}: ours / theirs"
    output.rows(shown, ("day", "model", "verdict", *fields, "names"), as_json=False, title=title)
    verdicts = [f"{number} {name}" for name, number in counted(found.rows).items() if number]
    output.say(", ".join(verdicts) or "Neither side has anything.")


def _as_json(row: DayComparison, fields: Sequence[str]) -> Json:
    """Return the comparison of a day as JSON: both counts, their difference and percent by field."""
    return {
        **_head(row),
        "our_models": list(row.our_names),
        "their_models": list(row.their_names),
        "ours": {name: _plain(name, row.ours.get(name)) for name in fields} if row.ours else None,
        "theirs": {name: _plain(name, row.theirs.get(name)) for name in fields} if row.theirs else None,
        "difference": {name: _plain(name, row.difference(name)) for name in fields},
        "percent": {name: _percent(row, name) for name in fields},
    }


def _flat(row: DayComparison, fields: Sequence[str]) -> Json:
    flat = {**_head(row), "our_models": " ".join(row.our_names), "their_models": " ".join(row.their_names)}
    for name in fields:
        flat[f"ours_{name}"] = _plain(name, row.ours.get(name))
        flat[f"theirs_{name}"] = _plain(name, row.theirs.get(name))
        flat[f"difference_{name}"] = _plain(name, row.difference(name))
        flat[f"percent_{name}"] = _percent(row, name)
    return flat


def _head(row: DayComparison) -> Json:
    day = str(row.day) if row.day else None
    return {"day": day, "model": row.model, "verdict": row.verdict.value, "matched_by": row.by.value}


def _render_row(row: DayComparison, fields: Sequence[str]) -> Json:
    cells: Json = {"day": str(row.day or ""), "model": row.model, "verdict": row.verdict.value, "names": ""}
    for name in fields:
        ours, theirs = row.ours.get(name), row.theirs.get(name)
        difference, percent = row.difference(name), _percent(row, name)
        cells[name] = _written(ours) if not difference else f"{_written(ours)} / {_written(theirs)}"
        if difference and row.verdict is ComparisonResult.DIFFERS:
            cells[name] += f" ({EXACT.normalize(difference):+,f}{f', {percent} %' if percent else ''})"
    if row.by is not NameMatch.NAME:
        cells["names"] = f"{', '.join(row.our_names)} / {', '.join(row.their_names)} (by {row.by.value})"
    return cells


def _written(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{EXACT.normalize(amount):,f}"


def _plain(name: str, amount: Decimal | None) -> int | str | None:
    if amount is None:
        return None
    return f"{EXACT.normalize(amount):f}" if name == "cost" else int(amount)


def _percent(row: DayComparison, name: str) -> str | None:
    percent = row.percent(name)
    return None if percent is None else f"{percent:f}"


# Both sides of a comparison: theirs from files or the API of the provider, ours from the Admin API.

FILE_BYTES_MAX: Final = 64 * 2**20
FILES_MAX: Final = 100
DAYS_MAX: Final = 366
ITEMS_MAX: Final = 1_000_000  # days and models of one of our services
SERVICES_MAX: Final = 1_000
LOOK_UPS_MAX: Final = 100  # names of models asked of the journal
ANSWERS_MAX: Final = 100  # newest calls of each
API_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """The options of the command. Without `files`, the API at `url` is read, by default the provider's."""

    provider: str
    files: Sequence[str]
    url: str | None
    since: str | None
    until: str | None
    services: Sequence[str]
    tolerance: Sequence[str]


def compare_usage(api: AdminClient, asked: ProviderOptions) -> Comparison:
    """Return the comparison of our usage and a provider's report; `CommandFailed` if it is impossible."""
    form = FORMATS[asked.provider]
    allowed = _tolerance(asked.tolerance)
    since, until = _day("--from", asked.since), _day("--to", asked.until)
    files, url = _places(asked)
    try:
        with output.waiting("Reading the report"):
            theirs = _files(form, files) if files else _make_report(form, url, since, until)
        since, until = _span(theirs, since, until)
        theirs = within(theirs, since, until)
        services = _services(api, form, asked.services)
        with output.waiting("Reading our usage"):
            ours = _ours(api, services.values(), since, until, costs="cost" in theirs.states)
            rows = comparison.compare_reports(ours, theirs, allowed, {})
            if lost := comparison.lost_rows(rows):
                answered = _answering_models(api, lost, services.values(), since, until)
                rows = comparison.compare_reports(ours, theirs, allowed, answered)
    except BadReport as error:
        raise CommandFailed(error.message) from error
    return Comparison(rows, theirs, since, until, services)


# --- theirs ---------------------------------------------------------------------------------------------
def _places(asked: ProviderOptions) -> tuple[Sequence[str], str | None]:
    """Return the report files to read, or the URL of the provider's API.

    `CommandFailed` if both are given.
    """
    urls = [name for name in asked.files if name.startswith(("http://", "https://"))]
    has_another = len(asked.files) > 1
    if (asked.files and asked.url) or (urls and has_another):
        raise CommandFailed("Name files or one API, not both.")
    return ((), urls[0]) if urls else (asked.files, asked.url)


def _files(form: Format, names: Sequence[str]) -> ProviderReport:
    """Return the report of a provider that the files `names` contain; "-" is standard input."""
    if len(names) > FILES_MAX:
        raise CommandFailed(f"At most {FILES_MAX} files are read at once.")
    report = ProviderReport()
    for name in names:
        shown = "standard input" if name == "-" else name
        try:
            if name == "-":
                data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
            else:
                with Path(name).open("rb") as file:
                    data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise CommandFailed(f"{shown} cannot be read: {error.strerror}.") from error
        if len(data) > FILE_BYTES_MAX:
            raise CommandFailed(f"{shown} has more than {FILE_BYTES_MAX:,} bytes: take one of less time.")
        read_file(report, data, ReportPosition(shown, form))
    return report


def _make_report(form: Format, url: str | None, since: date | None, until: date | None) -> ProviderReport:
    until = until or datetime.now(UTC).date()
    since = since or until - timedelta(days=API_DAYS)
    _check(since, until)
    return provider_api(form, url).read(since, until)


# --- ours -----------------------------------------------------------------------------------------------
def _services(api: AdminClient, form: Format, named: Sequence[str]) -> dict[str, int]:
    """Return, by key, the ids of the services to compare: those in `named`, else those of built-in routes."""
    if named:
        return {str(row["key"]): int(row["id"]) for row in (_service(api, name) for name in named)}
    keys = {route.service for route in FAMILIES[Family(form.name)].routes if route.service}
    ids = {row["key"]: row["id"] for row in api.items("services", SERVICES_MAX) if row["key"] in keys}
    if not ids:
        raise CommandFailed(f"There is no service of {', '.join(sorted(keys))}: name yours with --service.")
    return ids


def _service(api: AdminClient, name: str) -> Json:
    return api.get(f"services/{api.id_of('services', name)}")


def _ours(
    api: AdminClient, services: Collection[int], since: date, until: date, *, costs: bool
) -> ProviderReport:
    """Return our usage by day and model, without costs if `costs` is False."""
    report = ProviderReport()
    for service_id in services:
        asked = {"group_by": "model", "interval": "day", "service_id": service_id, **_times(since, until)}
        items = api.items("usage", ITEMS_MAX + 1, **asked)
        if len(items) > ITEMS_MAX:
            raise CommandFailed(
                f"Our usage has more than {ITEMS_MAX:,} days and models: set --from and --to."
            )
        for item in items:
            # Callers may invent names of models. Such calls fail and use nothing.
            if any(Decimal(item[name]) for name in FIELDS if name != "requests"):
                report.add(date.fromisoformat(item["start"][:10]), _line(item, costs=costs))
    return report


def _line(item: Json, *, costs: bool) -> ReportLine:
    amounts = {name: Decimal(item[name]) for name in FIELDS if costs or name != "cost"}
    # A row without a cost has no currency: it has no price, or its organization pays in another currency.
    return ReportLine(item["model"] or "(no model)", amounts, item["currency"] if amounts.get("cost") else "")


def _answering_models(
    api: AdminClient, names: Collection[str], services: Collection[int], since: date, until: date
) -> dict[str, set[str]]:
    """Return, for each model in `names`, the models that answered its newest calls in the journal."""
    answers: dict[str, set[str]] = {}
    for name in sorted(names)[:LOOK_UPS_MAX]:
        for service_id in services:
            calls = api.items(
                "calls", ANSWERS_MAX, model=name, service_id=service_id, order="desc", **_times(since, until)
            )
            answers.setdefault(name, set()).update(
                call["response_model"].lower() for call in calls if call["response_model"]
            )
    return answers


def _times(since: date, until: date) -> dict[str, str]:
    return {"from_": f"{since}T00:00:00Z", "to": f"{until}T00:00:00Z"}


# --- what was typed -------------------------------------------------------------------------------------
def _tolerance(texts: Sequence[str]) -> Tolerance:
    try:
        return comparison.read_tolerance(texts)
    except ValueError as error:
        raise CommandFailed(f"--tolerance {error}.") from error


def _day(option: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError as error:
        raise CommandFailed(f"{option} must be a day such as 2026-01-31, not {text!r}.") from error


def _span(theirs: ProviderReport, since: date | None, until: date | None) -> tuple[date, date]:
    """Return the first compared day and the day after the last: the requested ones, else the report's."""
    if not theirs.days and not (since and until):
        raise CommandFailed("The report has no days: name them with --from and --to.")
    since = since or min(theirs.days)
    until = until or max(theirs.days) + timedelta(days=1)
    _check(since, until)
    return since, until


def _check(since: date, until: date) -> None:
    if not since < until:
        raise CommandFailed(f"--from must be before --to, and {since} is not before {until}.")
    if (until - since).days > DAYS_MAX:
        raise CommandFailed(f"At most {DAYS_MAX} days are compared at once: set --from and --to.")


# `tollkeeper reconcile-provider`: a report of a provider beside our own.
