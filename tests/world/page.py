"""Write `docs/compatibility.md`: the rows that were played, and those that others have left there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.tree import ROOT
from tests.world.questions import COLUMNS

if TYPE_CHECKING:
    from tests.world.run import Cell, Row

PAGE = ROOT / "docs" / "compatibility.md"
HEAD = """# Engines it was tried with

Each row is a real program with a small random model, run behind Tollkeeper with its file of
[`deploy/providers`](../deploy/providers). Its own counters were read before and after each call, and
compared with the [row of the call](calls.md). `make world` plays the programs and writes this page.

A cell says what the program does when it is asked alone, and in brackets what became of the same call here:

- **right**: its row has what the program counted, to the token;
- **flagged**: its row says `"estimated": true`, and has at least what passed;
- **refused**: the call failed and cost nothing.

The last column has drawn calls: one to four choices, lists of prompts, streams, clients that leave,
cached prompts.

"""


def write(rows: list[Row]) -> None:
    """Write the page with these rows, in place of earlier ones of the same programs."""
    kept: dict[str, str] = {}
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else ():
        if line.startswith("| **"):
            kept[line.split("**")[1]] = line
    for row in rows:
        kept[row.name] = _line(row)
    heads = ("Program", *COLUMNS, "Drawn calls")
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *kept.values()]
    PAGE.write_text(HEAD + "\n".join(table) + "\n")


def _line(row: Row) -> str:
    cells = ["<br>".join(_told(cell) for cell in row.cells if cell.column == column) for column in COLUMNS]
    drawn = ", ".join(f"{count} {verdict}" for verdict, count in sorted(row.drawn.items(), reverse=True))
    named = f"**{row.name}** {row.version}, `{row.file}.yaml`, {row.date}"
    return f"| {' | '.join((named, *(cell or 'not served' for cell in cells), drawn))} |"


def _told(cell: Cell) -> str:
    return f"{cell.title}: {cell.fact} ({cell.verdict})"
