"""Write `docs/meetings.md`: what was done with each program, and what was found."""

from __future__ import annotations

from tests.tree import ROOT
from tests.world import page
from tests.world.meeting import MeetingRow
from tests.world.meetings import MEETINGS

PAGE = ROOT / "docs" / "meetings.md"
HEAD = """# Programs it meets

Each row is a real program that calls Tollkeeper, is called by it, or reads its data. `make world` runs
these programs, and writes this page.

- **right**: Tollkeeper and the program agree;
- **what to set**: it works with the setting that the row names.

"""
HEADS = ("Program", "What was done", "What was found", "Verdict")


def write(rows: list[MeetingRow]) -> None:
    """Write the page with these rows, in place of earlier ones of the same programs."""
    kept = lines()
    for row in rows:
        names = [f"**{row.name}** {row.version}, {row.date}"] + [f"**{row.name}**"] * (len(row.cells) - 1)
        kept[row.name] = [
            f"| {name} | {cell.done} | {cell.found} | {cell.verdict} |"
            for name, cell in zip(names, row.cells, strict=False)
        ]
    met = [line for name in MEETINGS for line in kept.get(name, ())]
    PAGE.write_text(HEAD + page.table(HEADS, met))


def lines() -> dict[str, list[str]]:
    """Return the lines of programs that the page has, by their names; each line is a cell."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else ():
        if line.startswith("| **"):
            found.setdefault(line.split("**")[1], []).append(line)
    return found
