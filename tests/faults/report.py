"""The matrix as it was found: kept as JSON while it is played, printed as a table. Pure but for files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.audit import Figures
from tests.faults.scene import Row

COLUMNS = (
    "Row", "Seed", "Answers", "Lost", "Doubled", "Nano lost", "Nano doubled", "Over-granted",
    "Counted as lost", "Detected", "Serving again", "Also", "Holds",
)  # fmt: skip


COUNTS = ("lost", "doubled", "lost_nano", "doubled_nano", "over_granted", "counted_lost")


@dataclass(frozen=True, slots=True)
class Played:
    """One row played: its figures, or the error that ended it."""

    name: str
    title: str
    seed: int
    seconds: float
    figures: dict[str, Any]
    error: str = ""

    @classmethod
    def of(cls, row: Row, seed: int, seconds: float, figures: Figures | None, error: str = "") -> Played:
        """From what playing it found."""
        return cls(row.name, row.title, seed, round(seconds, 1), asdict(figures or Figures()), error)

    @property
    def holds(self) -> bool:
        """Whether every promise held."""
        return not self.error and not self.figures["broken"]


class Results:
    """What was played so far, in a file that a run takes up again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "faults.json"
        self.played: dict[str, Played] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, seed: int) -> None:
        """Take up rows that held under the same seed; others are played again."""
        if self.path.exists():
            kept = [Played(**one) for one in json.loads(self.path.read_text())["rows"]]
            self.played = {one.name: one for one in kept if one.seed == seed and one.holds}

    def add(self, played: Played, about: Mapping[str, object]) -> None:
        """Keep a row, on disk at once."""
        self.played[played.name] = played
        rows = [asdict(one) for one in self.played.values()]
        self.path.write_text(json.dumps({"about": dict(about), "rows": rows}, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(as_markdown(list(self.played.values()), about))


def as_markdown(played: list[Played], about: Mapping[str, object]) -> str:
    """The table and what each row that does not hold says."""
    lines = ["; ".join(f"{name} {value}" for name, value in about.items()) + ".", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * 10 + "---|---|"]
    lines += ["| " + " | ".join(cells(one)) + " |" for one in played]
    for one in played:
        if not one.holds:
            lines += ["", f"**{one.title}** (seed {one.seed}): {one.error}"]
            lines += [f"- {each}" for each in one.figures["broken"][:20]]
    return "\n".join(lines) + "\n"


def cells(played: Played) -> list[str]:
    """One row of the table, as texts."""
    found = played.figures
    other = found["other"] | ({"late reports": len(found["late"])} if found["late"] else {})
    also = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in other.items())
    return [
        played.title, str(played.seed), f"{found['complete']:,}",
        *(f"{found[name]:,}" for name in COUNTS),
        *(_seconds(found[name]) for name in ("detected_s", "serving_s")),
        also, "yes" if played.holds else "NO",
    ]  # fmt: skip


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"
