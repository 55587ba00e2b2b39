"""Running processes: their descriptions, and whether each is recent enough for the stored data. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.core.layout import LAYOUT

# Most programs that a sentence names.
PROGRAMS_NAMED_MAX = 5
# Most versions with a label of their own in metrics; the rest share one.
VERSIONS_TOLD_MAX = 16
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Program:
    """One gateway worker or keeper, as it describes itself.

    `schema` is the newest PostgreSQL schema that a keeper knows. `started_at` is Unix time by its own clock.
    `knows` are the names of `CAPABILITIES` that it knows, and `time_zones` is the edition that it reads; earlier
    programs name none. `forms` is the second number of its layout, "" for that of a release. It `waits` while
    programs of other forms serve.
    """

    id: str
    role: Literal["gateway", "keeper"]
    version: str
    layout: int
    host: str
    started_at: float
    schema: str = ""
    knows: tuple[str, ...] = ()
    time_zones: str = ""
    forms: str = ""
    waits: bool = False

    def may_serve_beside(self, other: Program) -> bool:
        """Return whether both read each other's data: the older of two layouts must be that of a release."""
        if self.layout == other.layout:
            return self.forms == other.forms
        return not min(self, other, key=lambda program: program.layout).forms


def programs_ahead(own: Program, seen: Sequence[Program]) -> list[Program]:
    """Return the programs for whose end `own` waits: two that differ in forms never serve together.

    A program that waits itself goes ahead only if it began before, and none with the forms of `own` serves.
    """
    others = [program for program in seen if not own.may_serve_beside(program)]
    serving = [program for program in others if not program.waits]
    forms = own.layout, own.forms
    if serving or any(not program.waits and (program.layout, program.forms) == forms for program in seen):
        return serving
    return [program for program in others if (program.started_at, program.id) < (own.started_at, own.id)]


def waiting_reason(ahead: Sequence[Program]) -> str:
    """Return why a program waits for those `ahead` of it; "" without any."""
    return (
        f"it waits for the end of programs with other forms of data: {name_programs(ahead)}" if ahead else ""
    )


def name_programs(programs: Sequence[Program]) -> str:
    """Return programs in words, at most `PROGRAMS_NAMED_MAX` of them."""
    names = ", ".join(
        f"{program.role} {program.version} on {program.host}" for program in programs[:PROGRAMS_NAMED_MAX]
    )
    more = len(programs) - PROGRAMS_NAMED_MAX
    return f"{names} and {more} more" if more > 0 else names


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """A program and the time of its last report: Unix time by Redis's clock."""

    program: Program
    said_at: float


@dataclass(frozen=True, slots=True)
class StoredVersions:
    """The versions of stored data: the newest layout in Redis, the schema, and the oldest fit program.

    0 and empty mean unknown.
    """

    layout: int
    schema: str
    runs_from: str

    def refused(self, program: Program) -> str:
        """Return why a program is too old for the stored data, on one line; empty if it is not."""
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
    """Decides whether a keeper may enable writing the current layout: once all running programs can read it.

    A live program reports within `silent_s`, so the list must be complete for that long. Doubt means no: if
    the list is unreadable, lacks this keeper (then Redis accepts no writes), or lacks a gateway that reports
    elsewhere (its Redis user may not write the list), or is full.
    """

    def __init__(self, own: Program, silent_s: float, programs_max: int, layout: int = LAYOUT) -> None:
        self._own_program, self._silent_s, self._programs_max, self._layout = (
            own,
            silent_s,
            programs_max,
            layout,
        )
        self._since: float | None = None
        self.why_not = "nobody has looked yet"

    def look(self, now: float, seen: Sequence[ProgramReport] | None, workers: int) -> bool:
        """Return whether the current layout of stored data may be written, because all programs can read it.

        `seen` are the reports of running programs, None if unknown; `workers` is the number of
        workers that report to the keeper: all must be in the list. `now` is monotonic, in seconds.
        """
        self.why_not = self._trouble(seen, workers)
        if self.why_not:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        if now - self._since < self._silent_s:
            self.why_not = "others may not have said yet that they run"
        return not self.why_not

    def _trouble(self, seen: Sequence[ProgramReport] | None, workers: int) -> str:
        """Return why the newest layout must not be taken up now, or ""."""
        there = [process.program for process in seen or ()]
        if self._own_program not in there:
            return "the list of programs is not kept"
        if len(there) >= self._programs_max:
            return "not all programs stand in their list"
        older = [program for program in there if program.layout < self._layout]
        if older:
            first = older[0]
            return (
                f"{len(older)} programs read less, the first is a {first.role} {first.version}"
                f" on {first.host}: layout {first.layout}"
            )
        others = [
            program for program in there if not (program.waits or program.may_serve_beside(self._own_program))
        ]
        if others:
            return f"programs have other forms: {name_programs(others)}"
        if sum(program.role == "gateway" for program in there) < workers:
            return "a gateway reports that does not stand in the list of programs"
        return ""


def counted(seen: Iterable[ProgramReport]) -> list[list[object]]:
    """Return (role, version, number of running programs) for metrics; rare versions are put together."""
    counter = Counter((process.program.role, process.program.version) for process in seen)
    versions = {version for (_, version), _ in counter.most_common(VERSIONS_TOLD_MAX)}
    by_label = Counter[tuple[str, str]]()
    for (role, version), count in counter.items():
        by_label[role, version if version in versions else OTHER] += count
    return [[role, version, count] for (role, version), count in sorted(by_label.items())]


# The answer of `/readyz`: whether each dependency is available, and why one is not.

# By dependency True if it is available, else the reason, or False without a further reason.
Found = Mapping[str, bool | str]


def report_availability(dependencies: Found) -> dict[str, bool]:
    """Return for each dependency, such as Redis, whether it is available."""
    return {name: outcome is True for name, outcome in dependencies.items()}


def report(well: bool, dependencies: Found) -> dict[str, object]:
    """Return the answer of `/readyz` as a dict: status, dependencies, and reasons of failures."""
    reasons = {name: reason for name, reason in dependencies.items() if reason and isinstance(reason, str)}
    document = {"status": "ok" if well else "unavailable", "dependencies": report_availability(dependencies)}
    return {**document, **({"reasons": reasons} if reasons else {})}
