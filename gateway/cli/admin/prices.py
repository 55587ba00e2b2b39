"""`tollkeeper prices diff`: what the bundled list of this program says that the database does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gateway.admin.resources.values import show_instant
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.configuration.commands import TIMEOUT_S, WHERE
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, print_json, rows, say, waiting
from gateway.core.billing.price_book import BUNDLED, folded
from gateway.core.billing.price_changes import SAID, Change, changes

COLUMNS = ("change", "provider", "model", "match", "effective_from", "says")
PRICES_READ_MAX = 1_000_000
NAMING = ("provider", "model", "match", "currency")
APPLIED_AS = "bundled-price-list"


def section() -> typer.Typer:
    """The commands about the list as a whole."""
    made = typer.Typer(no_args_is_help=True, help="The bundled price list.")

    @made.callback()
    def about() -> None:
        """Compare the bundled price list with the database."""

    made.command("diff")(diff)
    return made


def diff(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Take the differences over, as new prices.")] = False,
    since: Annotated[
        str | None, typer.Option("--from", help="When they come into force; RFC 3339. By default now.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    left_out: Annotated[
        bool, typer.Option("--left-out", help="Say instead what the list knows and prices cannot say.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the bundled price list and the database differ; what is gone stays in force."""
    from gateway.run.bundled_prices import library, read_bundle  # noqa: PLC0415  # large, and only asked here

    with admin() as api:
        at = _moment(since)
        with waiting("Reading the list"):
            bundle = read_bundle()
            if left_out:
                _told(bundle.left_out, as_json=as_json)
                return
            kept = [_read(row) for row in api.items("prices", PRICES_READ_MAX, source=BUNDLED)]
        found = [
            change
            for change in changes(bundle.rows, kept, at)
            if provider is None or change.row["provider"] == folded(provider)
        ]
        rows([_shown(change, as_json=as_json) for change in found], COLUMNS, as_json=as_json, title=library())
        if apply:
            _take_over(api, [change for change in found if change.kind != "gone"])


def _take_over(api: AdminClient, found: Sequence[Change]) -> None:
    """Make all prices in one transaction, so that gateways read the book once."""
    prices = [
        {
            **{name: change.row[name] for name in SAID if change.row.get(name) is not None},
            **{name: change.row[name] for name in NAMING},
            "source": BUNDLED, "effective_from": show_instant(change.at),
        }
        for change in found
    ]  # fmt: skip
    if prices:
        asked = {"objects": {"prices": prices}, "name": APPLIED_AS}
        patient = replace(api, timeout_s=TIMEOUT_S)
        with waiting("Taking over"):
            plan = patient.post(WHERE, asked)
            done = patient.post(WHERE, {**asked, "digest": plan["digest"]})
        if done["pending"]:
            say("They are stored, and in force as soon as Redis is back.")
    say(f"{len(found)} prices were taken over.")


def _shown(change: Change, *, as_json: bool) -> Json:
    says: Any = {name: {"before": was, "after": becomes} for name, (was, becomes) in change.says.items()}
    if not as_json:
        said = [f"{name} {_cell(each['before'])} → {_cell(each['after'])}" for name, each in says.items()]
        says = ", ".join(said)
    names = {name: change.row[name] for name in NAMING}
    return {"change": change.kind, **names, "effective_from": show_instant(change.at), "says": says}


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _told(left_out: Sequence[str], *, as_json: bool) -> None:
    lines = sorted(set(left_out))
    if as_json:
        print_json({"left_out": lines})
        return
    rows([{"model": each, "left_out": what} for each, _, what in (line.partition(": ") for line in lines)],
         ("model", "left_out"), as_json=False)  # fmt: skip


def _read(row: Json) -> Json:
    return {**row, "effective_from": datetime.fromisoformat(row["effective_from"])}


def _moment(since: str | None) -> datetime:
    if since is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise CommandFailed("--from must be a time such as 2026-01-31T00:00:00Z.") from error
    if at.tzinfo is None:
        raise CommandFailed("--from must name its time zone, such as 2026-01-31T00:00:00Z.")
    return at.astimezone(UTC)
