"""What came of comparing, as a table, as CSV and as JSON. Counts are numbers, money is exact decimals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

import typer

from gateway.cli.admin import output
from gateway.cli.admin.client import Json
from gateway.core.provider_report.comparing import By, Compared, Verdict, counted, total
from gateway.core.provider_report.report import EXACT, FIELDS, Report
from gateway.core.spreadsheet import csv


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, and of what they are: days from `since` to `until` (not included) and services of ours."""

    rows: Sequence[Compared]
    theirs: Report
    since: date
    until: date
    services: Collection[str]

    @property
    def fields(self) -> list[str]:
        """The fields that are compared: those which the report has."""
        return [name for name in FIELDS if name in self.theirs.states] or list(FIELDS)

    @property
    def is_matched(self) -> bool:
        """Whether nothing differs."""
        return all(row.verdict is Verdict.MATCHED for row in self.rows)


def print_json(found: Comparison) -> None:
    """Print everything for programs."""
    fields = found.fields
    output.print_json(
        {
            "from": str(found.since),
            "to": str(found.until),
            "services": sorted(found.services),
            "currency": found.theirs.currency or None,
            "compared": fields,
            "verdicts": counted(found.rows),
            "items": [_object(row, fields) for row in found.rows],
            "total": _object(total(found.rows, fields), fields),
        }
    )


def print_csv(found: Comparison) -> None:
    """Print a line a row, the total last."""
    fields = found.fields
    lines = [_flat(row, fields) for row in [*found.rows, total(found.rows, fields)]]
    typer.echo(csv(tuple(lines[0]), lines, head=True), nl=False)


def print_table(found: Comparison) -> None:
    """Print a table for people: one number where both sides agree."""
    fields = found.fields
    shown = [_shown(row, fields) for row in [*found.rows, total(found.rows, fields)]]
    last = found.until - timedelta(days=1)
    title = f"{found.since} to {last}, ours of {', '.join(sorted(found.services))}: ours / theirs"
    output.rows(shown, ("day", "model", "verdict", *fields, "names"), as_json=False, title=title)
    verdicts = [f"{number} {name}" for name, number in counted(found.rows).items() if number]
    output.say(", ".join(verdicts) or "Neither side has anything.")


def _object(row: Compared, fields: Sequence[str]) -> Json:
    return {
        **_head(row),
        "our_models": list(row.our_names),
        "their_models": list(row.their_names),
        "ours": {name: _plain(name, row.ours.get(name)) for name in fields} if row.ours else None,
        "theirs": {name: _plain(name, row.theirs.get(name)) for name in fields} if row.theirs else None,
        "difference": {name: _plain(name, row.difference(name)) for name in fields},
        "percent": {name: _percent(row, name) for name in fields},
    }


def _flat(row: Compared, fields: Sequence[str]) -> Json:
    flat = {**_head(row), "our_models": " ".join(row.our_names), "their_models": " ".join(row.their_names)}
    for name in fields:
        flat[f"ours_{name}"] = _plain(name, row.ours.get(name))
        flat[f"theirs_{name}"] = _plain(name, row.theirs.get(name))
        flat[f"difference_{name}"] = _plain(name, row.difference(name))
        flat[f"percent_{name}"] = _percent(row, name)
    return flat


def _head(row: Compared) -> Json:
    day = str(row.day) if row.day else None
    return {"day": day, "model": row.model, "verdict": row.verdict.value, "matched_by": row.by.value}


def _shown(row: Compared, fields: Sequence[str]) -> Json:
    cells: Json = {"day": str(row.day or ""), "model": row.model, "verdict": row.verdict.value, "names": ""}
    for name in fields:
        ours, theirs = row.ours.get(name), row.theirs.get(name)
        difference, percent = row.difference(name), _percent(row, name)
        cells[name] = _written(ours) if not difference else f"{_written(ours)} / {_written(theirs)}"
        if difference and row.verdict is Verdict.DIFFERS:
            cells[name] += f" ({EXACT.normalize(difference):+,f}{f', {percent} %' if percent else ''})"
    if row.by is not By.NAME:
        cells["names"] = f"{', '.join(row.our_names)} / {', '.join(row.their_names)} (by {row.by.value})"
    return cells


def _written(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{EXACT.normalize(amount):,f}"


def _plain(name: str, amount: Decimal | None) -> int | str | None:
    if amount is None:
        return None
    return f"{EXACT.normalize(amount):f}" if name == "cost" else int(amount)


def _percent(row: Compared, name: str) -> str | None:
    percent = row.percent(name)
    return None if percent is None else f"{percent:f}"
