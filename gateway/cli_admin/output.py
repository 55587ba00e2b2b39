"""How the commands print: tables for people, JSON for programs, one sentence and exit 1 for a failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli_admin.client import AdminClient, CommandFailed, Json, find

PIPE_COLUMNS = 240
NUMBERS = frozenset(
    {
        *("id", "tenant_id", "organization_id", "plan_id", "seq"),
        *("amount", "total_amount", "total_remaining", "rollover_max"),
        *("tokens_used", "tokens_remaining", "tokens_held"),
        *("credit_balance", "credit_limit", "spend_cap"),
        *("credits", "credits_added", "negotiated_credits", "priority", "unit_cost"),
        *("quantity", "unit_price", "position", "checked", "pending", "difference"),
    }
)
# What null means where it is not just "none".
NULLS = {
    "tokens_remaining": "unlimited",
    "total_amount": "unlimited",
    "total_remaining": "unlimited",
    "models": "any",
    "spend_cap": "no cap",
}


@contextmanager
def admin() -> Iterator[AdminClient]:
    """Lend the Admin API; a failure is said on standard error and ends the command with exit code 1."""
    try:
        yield find()
    except CommandFailed as failed:
        console(error=True).print(f"[bold red]Error:[/] {escape(failed.message)}", highlight=False)
        raise typer.Exit(1) from failed


def rows(items: Sequence[Json], columns: Sequence[str], *, as_json: bool, title: str | None = None) -> None:
    """Print a list."""
    if as_json:
        print_json({"items": list(items)})
        return
    if not items:
        console().print(f"{title or 'Nothing'}: none yet." if title else "None yet.")
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    for item in items:
        table.add_row(*(escape(cell(column, item.get(column))) for column in columns))
    console().print(table)


def row(item: Json, *, as_json: bool, note: str | None = None) -> None:
    """Print one row, a field a line; `note` is for people only."""
    later = bool(item.pop("_later", False))
    if as_json:
        print_json(item)
    else:
        table = Table(show_header=False)
        for name, value in item.items():
            table.add_row(f"[bold]{escape(name)}[/]", escape(cell(name, value)))
        console().print(table)
        if note:
            console().print(note, highlight=False)
    if later:
        say("Stored; it takes effect as soon as Redis is back.")


def say(text: str) -> None:
    """Tell a person something that is no result."""
    console(error=True).print(text, highlight=False)


def cell(column: str, value: object) -> str:
    """Write a value as people read it."""
    if value is None:
        return NULLS.get(column, "-")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column in NUMBERS and not column.endswith("id"):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "-"
    return str(value)


def limits(requests: int | None, tokens: int | None, at_once: int | None) -> Json | None:
    """Put limits together; None where none was given."""
    given = {"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrency": at_once}
    return {name: value for name, value in given.items() if value is not None} or None


def given(**fields: object) -> Json:
    """Keep the fields that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def print_json(value: Json) -> None:
    """Print a value for programs, on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def console(*, error: bool = False) -> Console:
    """Open standard output or error; a pipe is wide enough for every table."""
    opened = Console(stderr=error)
    return opened if opened.is_terminal else Console(stderr=error, width=PIPE_COLUMNS)
