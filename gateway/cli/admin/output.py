"""Output of the commands: tables for people, JSON for programs, one sentence and exit 1 for a failure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from itertools import count
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from gateway.cli.admin import described
from gateway.cli.admin.client import AdminClient, CommandFailed, Json, find
from gateway.core.text import visible, visible_json
from gateway.errors import SettingError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Rich is loaded when something is printed: the request to the Admin API is sent before.
PIPE_COLUMNS = 240
READABLE_COLUMNS = 12
NUMBERS_ELSEWHERE = frozenset({"checked", "pending", "difference", "position", "quantity", "unit_price"})
# The meaning of null in these fields; "none" in others.
NULLS = {
    "tokens_remaining": "unlimited",
    "total_amount": "unlimited",
    "total_remaining": "unlimited",
    "models": "any",
    "spend_cap": "no cap",
}


@contextmanager
def admin(*, failed: int = 1) -> Iterator[AdminClient]:
    """Yield a client of the Admin API; print a failure to standard error, and exit with the code `failed`."""
    with failing(failed):
        yield find()


@contextmanager
def failing(failed: int = 1) -> Iterator[None]:
    """Print a failure of the commands in the context to standard error, and exit with the code `failed`."""
    try:
        yield
    except (CommandFailed, SettingError) as failure:
        console(error=True).print(f"[bold red]Error:[/] {escape(failure.message)}", highlight=False)
        raise typer.Exit(failed) from failure


def rows(items: Sequence[Json], columns: Sequence[str], *, as_json: bool, title: str | None = None) -> None:
    """Print rows as a table, or one below the other if the terminal is too narrow for a table."""
    if as_json:
        print_json({"items": list(items)})
        return
    if not items:
        console().print(f"{title}: none yet." if title else "None yet.")
        return
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers() else "left", overflow="fold")
    cells = [[escape(cell(column, item.get(column))) for column in columns] for item in items]
    for line in cells:
        table.add_row(*line)
    out = console()
    if _fits(columns, cells, out.width):
        out.print(table)
        return
    if title:
        out.print(f"[italic]{escape(title)}[/]")
    for line in cells:
        out.print(_record(columns, line))


@contextmanager
def steps(total: int, title: str) -> Iterator[Callable[[str], None]]:
    """Show the progress of long work on standard error: a bar on a terminal, else one line a step.

    Yield a function to call after each of the `total` steps, with the step's result.
    """
    out = console(error=True)
    if not out.is_terminal:
        numbers = count(1)
        yield lambda text: out.print(
            f"{next(numbers)}/{total} {visible(text)}", highlight=False, markup=False
        )
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as progress:
        task = progress.add_task(title, total=total)

        def step(text: str) -> None:
            progress.console.print(visible(text), highlight=False, markup=False)
            progress.advance(task)

        yield step


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show on a terminal that work is in progress."""
    if not sys.stderr.isatty() and not os.environ.get("FORCE_COLOR"):
        yield  # the request is sent before rich is loaded
        return
    with console(error=True).status(title):
        yield


def row(item: Json, *, as_json: bool, note: str | None = None) -> None:
    """Print one row, one field a line, or as JSON; `note` is a sentence that JSON output lacks."""
    later = bool(item.pop("_later", False))
    if as_json:
        print_json(item)
    else:
        from rich.table import Table

        table = Table(show_header=False)
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for name, value in item.items():
            table.add_row(f"[bold]{escape(name)}[/]", escape(cell(name, value)))
        console().print(table)
        if note:
            console().print(note, highlight=False)
    if later:
        say("Stored; it takes effect as soon as Redis is back.")


def report(
    document: Json, title: str, columns: Sequence[str] = (), *, inner: str = "items", as_json: bool
) -> None:
    """Print an answer that contains rows: the rows as a table, then the other fields."""
    if not as_json:
        lines = document[inner]
        document = {name: value for name, value in document.items() if name != inner}
        rows(lines, columns or tuple(lines[0] if lines else ()), as_json=False, title=title)
    row(document, as_json=as_json)


def deleted(row_id: int | str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": row_id, "deleted": True})
    else:
        say("Deleted.")


def say(text: str) -> None:
    """Print a message, which is not a result, to standard error."""
    console(error=True).print(text, highlight=False)


def escape(text: str) -> str:
    """Return a text without control characters, and with Rich's markup escaped."""
    from rich import markup

    return markup.escape(visible(text))


def cell(column: str, value: object) -> str:
    if value is None:
        return NULLS.get(column, "-")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column in numbers() and not column.endswith("id"):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "-"
    return str(value)


@cache
def numbers() -> frozenset[str]:
    """Return the names of table columns that are shown as numbers."""
    return NUMBERS_ELSEWHERE | frozenset(described.document()["numbers"])


def _fits(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether each column fits with its name and a readable part of its contents."""
    from rich.cells import cell_len

    widest = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    needed = [max(len(name), min(most, READABLE_COLUMNS)) for name, most in zip(columns, widest, strict=True)]
    return sum(needed) + 3 * len(columns) + 1 <= width


def _record(columns: Sequence[str], line: Sequence[str]) -> Table:
    from rich.table import Table

    record = Table(show_header=False, expand=True)
    record.add_column(no_wrap=True)
    record.add_column(overflow="fold", ratio=1)
    for name, value in zip(columns, line, strict=True):
        record.add_row(f"[bold]{escape(name)}[/]", value)
    return record


def print_json(value: Json) -> None:
    """Print a value as one line of JSON; escape characters that the output's encoding lacks."""
    text = json.dumps(value, ensure_ascii=not _writes_all(sys.stdout))
    sys.stdout.write(visible_json(text) + "\n")
    sys.stdout.flush()


def console(*, error: bool = False) -> Console:
    """Open standard output or error; a pipe is wide enough for every table, unless COLUMNS sets a width.

    Characters that the encoding lacks are shown as ?.
    """
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, TextIOWrapper) and not _writes_all(stream):
        stream.reconfigure(errors="replace")
    from rich.console import Console

    opened = Console(stderr=error)
    is_wide = opened.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    return opened if is_wide else Console(stderr=error, width=PIPE_COLUMNS)


def _writes_all(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


# Options that several commands share.

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
