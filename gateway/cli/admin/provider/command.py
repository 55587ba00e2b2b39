"""`tollkeeper reconcile-provider`: whether a provider counted what we counted, by day and model."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.error import HTTPError

import typer

from gateway.cli.admin import output
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.provider import printing
from gateway.cli.admin.provider.api import provider_api, spans
from gateway.core.provider_report import comparing
from gateway.core.provider_report.comparing import Tolerance
from gateway.core.provider_report.format import Format
from gateway.core.provider_report.reading import FORMATS, Place, read_file, within
from gateway.core.provider_report.report import FIELDS, BadReport, Line, Report

FILE_BYTES_MAX: Final = 64 * 2**20
FILES_MAX: Final = 100
DAYS_MAX: Final = 366
SERVICES_MAX: Final = 1_000
LOOK_UPS_MAX: Final = 100  # names of models asked of the journal
ANSWERS_MAX: Final = 100  # newest calls of each
API_DAYS: Final = 30
BAD_INPUT: Final = 2
TOO_MUCH: Final = 422  # how the Admin API answers where more is asked than one answer holds


class Provider(StrEnum):
    """Whose report it is."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def reconcile_provider(
    provider: Annotated[Provider, typer.Argument(help="Whose report it is.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Reports as JSON or CSV, - for standard input; without, the API."
        ),
    ] = None,
    *,
    api: Annotated[
        str | None, typer.Option("--api", help="Base URL of the provider's API, by default its own.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="From this day on, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this day, UTC.")] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="Ours that go to the provider, by key or id; by default those of its built-in routes."
        ),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="How much may differ: 1%, cost=0.01, requests=5%. Without a field, each."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare days and models with a provider's report; exit 1 if any differs, 2 if it cannot be read."""
    form = FORMATS[provider]
    with output.admin(failed=BAD_INPUT) as admin, _said():
        allowed = _tolerance(tolerance or ())
        first, last = _day("--from", since), _day("--to", until)
        if files and api:
            raise CommandFailed("Name files or --api, not both.")
        with output.waiting("Reading the report"):
            theirs = _files(form, files) if files else _asked(form, api, first, last)
        first, last = _span(theirs, first, last)
        theirs = within(theirs, first, last)
        services = _services(admin, form, service or ())
        with output.waiting("Reading our usage"):
            ours = _ours(admin, services.values(), first, last)
            rows = comparing.compare(ours, theirs, allowed, {})
            if lost := comparing.lost(rows):
                answered = _answered(admin, lost, services.values(), first, last)
                rows = comparing.compare(ours, theirs, allowed, answered)
    found = printing.Comparison(rows, theirs, first, last, services)
    if as_json:
        printing.print_json(found)
    elif as_csv:
        printing.print_csv(found)
    else:
        printing.print_table(found)
    if not found.is_matched:
        raise typer.Exit(1)


@contextmanager
def _said() -> Iterator[None]:
    """A report that cannot be read is a command that failed."""
    try:
        yield
    except BadReport as error:
        raise CommandFailed(error.message) from error


# --- theirs ---------------------------------------------------------------------------------------------


def _files(form: Format, names: Sequence[str]) -> Report:
    if len(names) > FILES_MAX:
        raise CommandFailed(f"At most {FILES_MAX} files are read at once.")
    report = Report()
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
        read_file(report, data, Place(shown, form))
    return report


def _asked(form: Format, url: str | None, since: date | None, until: date | None) -> Report:
    until = until or datetime.now(UTC).date()
    since = since or until - timedelta(days=API_DAYS)
    _check(since, until)
    return provider_api(form, url).read(since, until)


# --- ours -----------------------------------------------------------------------------------------------


def _services(api: AdminClient, form: Format, named: Sequence[str]) -> dict[str, int]:
    """The services that are compared, by key."""
    if named:
        return {str(row["key"]): int(row["id"]) for row in (_service(api, name) for name in named)}
    from gateway.core.families.registry import ALL  # noqa: PLC0415  # only asked for here

    routes = next(family.routes for family in ALL if family.name == form.name)
    keys = {route.service for route in routes if route.service}
    found = {row["key"]: row["id"] for row in api.items("services", SERVICES_MAX) if row["key"] in keys}
    if not found:
        raise CommandFailed(f"There is no service of {', '.join(sorted(keys))}: name yours with --service.")
    return found


def _service(api: AdminClient, name: str) -> Json:
    return api.get(f"services/{api.id_of('services', name)}")


def _ours(api: AdminClient, services: Collection[int], since: date, until: date) -> Report:
    report = Report()
    for service_id in services:
        for first, last in spans(since, until):
            for item in _items(api, service_id, first, last):
                report.add(date.fromisoformat(item["start"][:10]), _line(item))
    return report


def _items(api: AdminClient, service_id: int, since: date, until: date) -> list[Json]:
    """The usage of a service by day and model; of less time at once where that is too much for one answer."""
    asked = {"group_by": "model", "interval": "day", "service_id": service_id, **_times(since, until)}
    try:
        items: list[Json] = api.get("usage", **asked)["items"]
    except CommandFailed as failed:
        days, cause = (until - since).days, failed.__cause__
        if days == 1 or not (isinstance(cause, HTTPError) and cause.code == TOO_MUCH):
            raise
        middle = since + timedelta(days=days // 2)
        return _items(api, service_id, since, middle) + _items(api, service_id, middle, until)
    return items


def _line(item: Json) -> Line:
    amounts = {name: Decimal(item[name]) for name in FIELDS}
    # What cost nothing is in no currency: it has no price, or is an organization's that pays in another.
    return Line(item["model"] or "(no model)", amounts, item["currency"] if amounts["cost"] else "")


def _answered(
    api: AdminClient, names: Collection[str], services: Collection[int], since: date, until: date
) -> dict[str, set[str]]:
    """Which models answered for those asked for, of their newest calls as the journal has them."""
    found: dict[str, set[str]] = {}
    for name in sorted(names)[:LOOK_UPS_MAX]:
        for service_id in services:
            calls = api.items(
                "calls", ANSWERS_MAX, model=name, service_id=service_id, order="desc", **_times(since, until)
            )
            found.setdefault(name, set()).update(
                call["response_model"].lower() for call in calls if call["response_model"]
            )
    return found


def _times(since: date, until: date) -> dict[str, str]:
    return {"from_": f"{since}T00:00:00Z", "to": f"{until}T00:00:00Z"}


# --- what was typed -------------------------------------------------------------------------------------


def _tolerance(texts: Sequence[str]) -> Tolerance:
    try:
        return comparing.read_tolerance(texts)
    except ValueError as error:
        raise CommandFailed(f"--tolerance {error}.") from error


def _day(option: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError as error:
        raise CommandFailed(f"{option} must be a day such as 2026-01-31, not {text!r}.") from error


def _span(theirs: Report, since: date | None, until: date | None) -> tuple[date, date]:
    """The days that are compared: those asked for, else those of the report."""
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
