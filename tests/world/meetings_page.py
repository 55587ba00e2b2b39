"""Write `docs/meetings.md`: what was done with each program, what was found, and what was wrong at first."""

from __future__ import annotations

from tests.tree import ROOT
from tests.world import page
from tests.world.meeting import MeetingRow
from tests.world.meetings import MEETINGS

PAGE = ROOT / "docs" / "meetings.md"
HEAD = """# Programs it meets

Each row is a real program in front of Tollkeeper, behind it, or reading what it writes. `make world` plays
them against a whole Tollkeeper or a part of it, and writes this page. Where a rule stands in a test, the row
runs that test with the program.

- **right**: what Tollkeeper and the program say is the same;
- **what to set**: it works once something is set, which the row names.

"""
HEADS = ("Program", "What was done", "What was found", "Verdict")
# What was wrong when it was first played, and what was changed here.
MENDED = {
    "FOCUS validator": (
        "BilledCost-C-001-M where all costs are whole; ServiceName-C-005-C where an event names no model",
        "A cost has always a decimal point; use of tokens is of a model, whether it names one or not",
    ),
    "openapi-python-client": (
        "The client imported `models/pricing_type_1.py`, which was not made: a service could not be read",
        "The document states the kinds of a pricing as conditions, no longer as `oneOf` beside its fields",
    ),
}


def write(rows: list[MeetingRow]) -> None:
    """Write the page with these rows, in place of earlier ones of the same programs."""
    kept = lines()
    for row in rows:
        kept[row.name] = [
            f"| **{row.name}** {row.version}, {row.date} | {cell.done} | {cell.found} | {cell.verdict} |"
            for cell in row.cells
        ]
    met = [line for name in MEETINGS for line in kept.get(name, ())]
    mended = [f"| {name} | {wrong} | {mend} |" for name, (wrong, mend) in MENDED.items()]
    PAGE.write_text(
        HEAD
        + page.table(HEADS, met)
        + "\n## What was wrong at first\n\n"
        + page.table(("Program", "What", "Mend"), mended)
    )


def lines() -> dict[str, list[str]]:
    """Return the lines of programs that the page has, by their names; each line is a cell."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else ():
        if line.startswith("| **"):
            found.setdefault(line.split("**")[1], []).append(line)
    return found
