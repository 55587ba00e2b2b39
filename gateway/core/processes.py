"""The processes that run: what each says of itself, whether one is too old for what is stored, and whether
all of them read today's layout. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.core.layout import LAYOUT

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
class ProgramReport:
    """One that said so, and when it did last: seconds since the epoch, by Redis' clock."""

    program: Program
    said_at: float


@dataclass(frozen=True, slots=True)
class StoredVersions:
    """What programs have to know: the newest layout in Redis, the schema, since which one programs run on it.

    0 and empty where that is not known.
    """

    layout: int
    schema: str
    runs_from: str

    def refused(self, program: Program) -> str:
        """Return why a program serves nothing of it, on one line; empty where it may."""
        if program.layout < self.layout:
            known = f"this program knows up to {program.layout}"
            return f"Redis holds layout {self.layout}, {known}: run a newer one"
        if program.schema and self.schema > program.schema and not "" < self.runs_from <= program.schema:
            return (
                f"PostgreSQL has schema version {self.schema},"
                f" this program knows {program.schema} at most: run a newer one"
            )
        return ""


class TakeUp:
    """Whether a keeper may have today's layout written: once each program that runs reads it.

    One that lives says so within `silent_s`, so the list has to say it for so long. What nobody knows means
    no: a list that cannot be read, that misses this keeper itself, since Redis takes nothing then, or a
    gateway that reports, since its user may not write the list; and one so long that not all stand in it.
    """

    def __init__(self, own: Program, silent_s: float, programs_max: int, layout: int = LAYOUT) -> None:
        self._own, self._silent_s, self._programs_max, self._layout = own, silent_s, programs_max, layout
        self._since: float | None = None
        self.why_not = "nobody has looked yet"

    def look(self, now: float, seen: Sequence[ProgramReport] | None, workers: int) -> bool:
        """Return whether today's layout may be written, by programs and workers seen; `now` is monotonic."""
        self.why_not = self._trouble(seen, workers)
        if self.why_not:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        if now - self._since < self._silent_s:
            self.why_not = "others may not have said yet that they run"
        return not self.why_not

    def _trouble(self, seen: Sequence[ProgramReport] | None, workers: int) -> str:
        there = [one.program for one in seen or ()]
        if self._own not in there:
            return "the list of programs is not kept"
        if len(there) >= self._programs_max:
            return "not all programs stand in their list"
        older = [one for one in there if one.layout < self._layout]
        if older:
            first = older[0]
            return (
                f"{len(older)} programs read less, the first is a {first.role} {first.version}"
                f" on {first.host}: layout {first.layout}"
            )
        if sum(one.role == "gateway" for one in there) < workers:
            return "a gateway reports that does not stand in the list of programs"
        return ""


def counted(seen: Iterable[ProgramReport]) -> list[list[object]]:
    """Count programs by role and version, for metrics."""
    found = Counter((one.program.role, one.program.version) for one in seen)
    told = {version for (_, version), _ in found.most_common(VERSIONS_TOLD_MAX)}
    by_label = Counter[tuple[str, str]]()
    for (role, version), count in found.items():
        by_label[role, version if version in told else OTHER] += count
    return [[role, version, count] for (role, version), count in sorted(by_label.items())]


# What `/readyz` says: whether each dependency is there, and why one is not.

# True where it is there, else why not; or False, where its name says it all.
Found = Mapping[str, bool | str]


def there(found: Found) -> dict[str, bool]:
    """Return whether each is there."""
    return {name: said is True for name, said in found.items()}


def report(well: bool, found: Found) -> dict[str, object]:
    """Return the answer, as JSON has it."""
    reasons = {name: said for name, said in found.items() if said and isinstance(said, str)}
    told = {"status": "ok" if well else "unavailable", "dependencies": there(found)}
    return {**told, **({"reasons": reasons} if reasons else {})}
