"""Write `docs/compatibility.md`: the rows that were played, and those that others have left there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.tree import ROOT
from tests.world.programs import PROGRAMS
from tests.world.questions import ABORTED, CHOICES, COLUMNS, MAXIMA

if TYPE_CHECKING:
    from tests.world.run import Cell, Row

PAGE = ROOT / "docs" / "compatibility.md"
HEAD = """# Engines it was tried with

Each row is a real program with a small random model, called through Tollkeeper with the program's file in
[`deploy/providers`](../deploy/providers). The program's own counters were compared with the
[row of each call](calls.md).
`make world` plays the programs and writes this page.

A cell states the behaviour of the program alone, and in brackets the result of the same call through Tollkeeper:

- **right**: the row has the program's count, to the token;
- **flagged**: the row has `"estimated": true`, and counts at least the text of the answer;
- **refused**: the call failed and cost nothing;
- **as reported**: the row counts the characters that the program reports as tokens ([what to
  set](howto/vllm.md#where-other-servers-differ)).

Drawn calls have one to four choices, lists of prompts, streams, clients that leave, and cached prompts.

"""


CHANGED = """## What changed

These programs were tried in two versions; the table lists each cell that differs between them. The length of a
text, and the part made after its client has left, are random: differences only in these are not listed.

"""
DRAWN_NUMBER = re.compile(r"\b(?:1[7-9]|[2-9]\d|\d{3,})\b")
ANY_NUMBER, NO_MAXIMUM = re.compile(r"\d+"), re.compile(rf"^{MAXIMA}, .*(?:none|beyond)")
CELL = re.compile(r"(.*?): (.*) \((.*?)\)")


def write(rows: list[Row]) -> None:
    """Write the page with these rows, in place of earlier ones of the same programs."""
    kept = lines()
    for row in rows:
        kept[row.name] = _line(row)
    heads = ("Program", *COLUMNS, "Drawn calls")
    order = [kept.pop(name) for name in [*PROGRAMS] if name in kept]
    PAGE.write_text(HEAD + table(heads, [*order, *kept.values()]))
    changes = [_changes(program.before, program.name) for program in PROGRAMS.values() if program.before]
    if found := [one for one in changes if one]:
        changed = table(("Program", "Earlier", "Now", "What differs"), found)
        PAGE.write_text(f"{PAGE.read_text()}\n{CHANGED}{changed}")


def lines() -> dict[str, str]:
    """Return the lines of programs that the page has, by their names."""
    said = PAGE.read_text().partition("## ")[0] if PAGE.is_file() else ""
    return {line.split("**")[1]: line for line in said.splitlines() if line.startswith("| **")}


def cells(line: str) -> dict[str, tuple[str, str]]:
    """Return the facts and verdicts of a line of the page, by column and question."""
    found = {}
    for column, told in zip(COLUMNS, line.split(" | ")[1:], strict=False):
        for one in told.split("<br>"):
            if parts := CELL.fullmatch(one):
                found[f"{column}, {parts[1]}"] = (parts[2], parts[3])
    return found


def _changes(now: str, before: str) -> str:
    """Return a line of what differs between two versions, if the page has both."""
    kept = lines()
    if now not in kept or before not in kept:
        return ""
    differ = _differences(kept[before], kept[now])
    versions = [kept[one].split("** ")[1].split(", ")[0] for one in (before, now)]
    what = "<br>".join(differ) or f"none of {len(cells(kept[now]))} cells"
    return f"| **{now}** | {' | '.join(versions)} | {what} |"


def differences(row: Row) -> list[str]:
    """Return the cells of a row that differ from those that the page has of its program."""
    kept = lines().get(row.name)
    return ["not on the page"] if kept is None else _differences(kept, _line(row))


def _differences(before: str, now: str) -> list[str]:
    old, new = cells(before), cells(now)
    return [
        f"{title}: {' '.join(old[title])} → {' '.join(new[title])}"
        for title in new
        if title in old
        and not title.startswith(ABORTED)
        and _plain(title, old[title]) != _plain(title, new[title])
    ]


def _plain(title: str, cell: tuple[str, str]) -> tuple[str, str]:
    """Return a cell without numbers that chance decides."""
    number = ANY_NUMBER if title.startswith(CHOICES) or NO_MAXIMUM.search(title) else DRAWN_NUMBER
    return (number.sub("n", cell[0].partition(", row")[0]), cell[1])


def table(heads: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows]) + "\n"


def _line(row: Row) -> str:
    cells = ["<br>".join(_told(cell) for cell in row.cells if cell.column == column) for column in COLUMNS]
    drawn = ", ".join(f"{count} {verdict}" for verdict, count in sorted(row.drawn.items(), reverse=True))
    named = f"**{row.name}** {row.version}, `{row.file}.yaml`, {row.date}"
    return f"| {' | '.join((named, *(cell or 'not served' for cell in cells), drawn))} |"


def _told(cell: Cell) -> str:
    return f"{cell.title}: {cell.fact} ({cell.verdict})"
