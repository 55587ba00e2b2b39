"""Both sides of a comparison: theirs from files or the API of the provider, ours from the Admin API."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from gateway.cli.admin import output
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.provider.api import provider_api
from gateway.cli.admin.provider.printing import Comparison
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.core.provider_report import comparing
from gateway.core.provider_report.comparing import Tolerance
from gateway.core.provider_report.format import Format
from gateway.core.provider_report.reading import FORMATS, Place, read_file, within
from gateway.core.provider_report.report import FIELDS, BadReport, Line, Report

FILE_BYTES_MAX: Final = 64 * 2**20
FILES_MAX: Final = 100
DAYS_MAX: Final = 366
ITEMS_MAX: Final = 1_000_000  # days and models of one of our services
SERVICES_MAX: Final = 1_000
LOOK_UPS_MAX: Final = 100  # names of models asked of the journal
ANSWERS_MAX: Final = 100  # newest calls of each
API_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed. Without `files` the API at `url` is read, by default the provider's own."""

    provider: str
    files: Sequence[str]
    url: str | None
    since: str | None
    until: str | None
    services: Sequence[str]
    tolerance: Sequence[str]


def compared(api: AdminClient, asked: Asked) -> Comparison:
    """Read both sides and compare them; `CommandFailed` says why that cannot be done."""
    form = FORMATS[asked.provider]
    allowed = _tolerance(asked.tolerance)
    since, until = _day("--from", asked.since), _day("--to", asked.until)
    files, url = _places(asked)
    try:
        with output.waiting("Reading the report"):
            theirs = _files(form, files) if files else _asked(form, url, since, until)
        since, until = _span(theirs, since, until)
        theirs = within(theirs, since, until)
        services = _services(api, form, asked.services)
        with output.waiting("Reading our usage"):
            ours = _ours(api, services.values(), since, until, costs="cost" in theirs.states)
            rows = comparing.compare(ours, theirs, allowed, {})
            if lost := comparing.lost(rows):
                answered = _answered(api, lost, services.values(), since, until)
                rows = comparing.compare(ours, theirs, allowed, answered)
    except BadReport as error:
        raise CommandFailed(error.message) from error
    return Comparison(rows, theirs, since, until, services)


# --- theirs ---------------------------------------------------------------------------------------------


def _places(asked: Asked) -> tuple[Sequence[str], str | None]:
    """The files, or the address of the API: it may stand where a file does."""
    urls = [name for name in asked.files if name.startswith(("http://", "https://"))]
    if (asked.files and asked.url) or (urls and len(asked.files) > 1):
        raise CommandFailed("Name files or one API, not both.")
    return ((), urls[0]) if urls else (asked.files, asked.url)


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
    keys = {route.service for route in FAMILIES[Family(form.name)].routes if route.service}
    found = {row["key"]: row["id"] for row in api.items("services", SERVICES_MAX) if row["key"] in keys}
    if not found:
        raise CommandFailed(f"There is no service of {', '.join(sorted(keys))}: name yours with --service.")
    return found


def _service(api: AdminClient, name: str) -> Json:
    return api.get(f"services/{api.id_of('services', name)}")


def _ours(api: AdminClient, services: Collection[int], since: date, until: date, *, costs: bool) -> Report:
    """What we counted; without costs where theirs are not told: they may be in several currencies."""
    report = Report()
    for service_id in services:
        asked = {"group_by": "model", "interval": "day", "service_id": service_id, **_times(since, until)}
        items = api.items("usage", ITEMS_MAX + 1, **asked)
        if len(items) > ITEMS_MAX:
            raise CommandFailed(
                f"Our usage has more than {ITEMS_MAX:,} days and models: set --from and --to."
            )
        for item in items:
            # Callers may make names up, one a call: their calls fail and use nothing.
            if any(Decimal(item[name]) for name in FIELDS if name != "requests"):
                report.add(date.fromisoformat(item["start"][:10]), _line(item, costs=costs))
    return report


def _line(item: Json, *, costs: bool) -> Line:
    amounts = {name: Decimal(item[name]) for name in FIELDS if costs or name != "cost"}
    # What cost nothing is in no currency: it has no price, or is an organization's that pays in another.
    return Line(item["model"] or "(no model)", amounts, item["currency"] if amounts.get("cost") else "")


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
