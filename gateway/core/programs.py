"""The processes that run: what each says of itself, and whether one is too old for what is stored. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# Versions that metrics tell apart; all others are one more.
VERSIONS_TOLD_MAX = 16
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Program:
    """One gateway worker or keeper, as it says. `schema` is what a keeper knows of PostgreSQL at most.

    `started_at` are seconds since the epoch, by its own clock.
    """

    id: str
    role: Literal["gateway", "keeper"]
    version: str
    layout: int
    host: str
    started_at: float
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One that said so, and when it did last: seconds since the epoch, by Redis' clock."""

    program: Program
    said_at: float


@dataclass(frozen=True, slots=True)
class Stored:
    """What programs have to know: the newest layout in Redis, the schema, since which one programs run on it.

    0 and empty where that is not known.
    """

    layout: int
    schema: str
    runs_from: str

    def refused(self, program: Program) -> str:
        """Why a program serves nothing of it, on one line; empty where it may."""
        if program.layout < self.layout:
            known = f"this program knows up to {program.layout}"
            return f"Redis holds layout {self.layout}, {known}: run a newer one"
        if program.schema and self.schema > program.schema and not "" < self.runs_from <= program.schema:
            return (
                f"PostgreSQL has schema version {self.schema},"
                f" this program knows {program.schema} at most: run a newer one"
            )
        return ""


def counted(seen: Iterable[Seen]) -> list[list[object]]:
    """How many programs there are by role and version, for metrics."""
    found = Counter((one.program.role, one.program.version) for one in seen)
    told = {version for (_, version), _ in found.most_common(VERSIONS_TOLD_MAX)}
    by_label = Counter[tuple[str, str]]()
    for (role, version), count in found.items():
        by_label[role, version if version in told else OTHER] += count
    return [[role, version, count] for (role, version), count in sorted(by_label.items())]
