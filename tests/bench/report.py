"""What a run of the bench found, as JSON and as Markdown. Pure but for the clock's date."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from statistics import median

from tests.bench.contenders import INTERPRETED, NOT_HERE, OURS, TITLES
from tests.bench.figures import Row, Window, pair, percentile, ratios, row, table
from tests.bench.load import REQUEST_BYTES


@dataclass(slots=True)
class Measured:
    """Everything measured. By contender: paced latencies (µs), p50 and p99 at part of its load, idle memory
    (MiB), calls answered, and `rows`, the calls found in the database in the end. `flushed` is what the
    flusher's own bench said.
    """

    windows: list[Window] = field(default_factory=list)
    paced: dict[str, list[float]] = field(default_factory=dict)
    partly: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    idle_rss: dict[str, float] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    ready_s: tuple[float, ...] = ()
    flushed: dict[str, object] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def lost(self, name: str) -> int:
        """Calls answered and not in the ledger, or in it without a call; 0 is right.

        The client hangs up on the calls in flight when a window ends: they may be in the ledger too.
        """
        more = self.rows[name] - self.answered[name]
        return -more if more < 0 else max(0, more - self.cut[name])


def rows_of(measured: Measured) -> list[Row]:
    """One row a contender, in the order they were first measured."""
    names = list(dict.fromkeys(one.contender for one in measured.windows))
    return [_row(measured, name) for name in names]


def _row(measured: Measured, name: str) -> Row:
    found = replace(
        row([one for one in measured.windows if one.contender == name]), rss_mib=measured.idle_rss.get(name)
    )
    if partly := measured.partly.get(name):
        found = replace(
            found,
            partly_p50_us=median(p50 for p50, _ in partly),
            partly_p99_us=median(p99 for _, p99 in partly),
        )
    paced, direct = measured.paced.get(name), measured.paced.get("direct")
    if not paced or not direct or name == "direct":
        return found
    added = [percentile(paced, share) - percentile(direct, share) for share in (0.5, 0.99)]
    return replace(found, added_p50_us=added[0], added_p99_us=added[1])


def failed(measured: Measured) -> bool:
    """Whether anything was left out, answered an error, or lost or doubled a call."""
    errors = any(one.errors for one in measured.windows)
    return bool(measured.missing) or errors or any(measured.lost(name) for name in measured.rows)


def as_markdown(measured: Measured, about: Mapping[str, object]) -> str:
    """The tables, what they were measured on, and what was left out."""
    notes = [
        f"- {TITLES[name]}: {found:,} calls in token_ledger of {measured.answered[name]:,} answered"
        + (
            f" (**{measured.lost(name):,} lost or doubled**)"
            if measured.lost(name)
            else "; none lost or doubled"
        )
        for name, found in measured.rows.items()
    ]
    notes += [
        f"- {TITLES[name]}: keeper and PostgreSQL took {median(found):.1f} µs of CPU a request meanwhile"
        for name in dict.fromkeys(one.contender for one in measured.windows)
        if any(found := [one.behind_us for one in measured.windows if one.contender == name])
    ]
    if measured.ready_s:
        first, second = measured.ready_s
        notes.append(f"- `tollkeeper up`: ready in {second:.1f} s ({first:.1f} s on an empty data directory)")
    if measured.flushed:
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.flushed.items())
        notes.append(f"- flusher, outbox to rows: {shown}")
    notes += [f"- left out: {TITLES[name]}: {why}" for name, why in measured.missing.items()]
    notes += [f"- not here: {what}: {why}" for what, why in NOT_HERE.items()]
    shown = "; ".join(f"{name} {value}" for name, value in about.items())
    head = (
        f"{shown}. {REQUEST_BYTES:,}-byte requests over kept connections; medians over rounds, in brackets "
        "the least of any round, ratios within each round. `req/s of a full gateway core` is requests by "
        "gateway CPU second: where the load core (client, upstream, Redis) gave out before the gateway, "
        "req/s is its limit, not the gateway's. Each contender has one worker, pinned to a core of its own, "
        "and reaches a Valkey of its own, with the same settings, by a socket. Redis CPU includes rewriting "
        "its append-only file. nginx + Lua + Redis is the usual hand-made limiter: it asks Redis once a "
        "request, without a pipeline, and settles many at once. Our keeper and PostgreSQL are "
        "frozen while a window is measured, but for the contender that says it is flushing. `at 70 %` is at "
        "that part of what the contender took in the same round."
    )
    peers = [one for one in measured.windows if one.contender != INTERPRETED]
    tables = [table(rows_of(measured), TITLES), ratios(peers, OURS, TITLES)]
    return "\n\n".join([head, *(one.strip() for one in tables if one), "\n".join(notes)]).rstrip() + "\n"


def as_pair(measured: Measured, about: Mapping[str, object]) -> str:
    """The interpreted program beside the compiled one; empty where one of them was not measured."""
    of = {name: [one for one in measured.windows if one.contender == name] for name in (INTERPRETED, OURS[0])}
    if not all(of.values()):
        return ""
    shown = "; ".join(f"{name} {value}" for name, value in about.items())
    memory = [measured.idle_rss.get(name, 0.0) for name in of]
    return (
        f"{shown}. The same sources, in turn: {TITLES[OURS[0]]}. Medians over rounds, in brackets the least "
        "of any round; ratios are medians of the ratios within each round.\n\n"
        + pair(*of.values())
        + f"| memory of an idle worker, MiB | {memory[0]:.0f} | {memory[1]:.0f} | "
        f"{memory[1] / memory[0] if memory[0] else 0:.2f} × |\n"
    )


def as_json(measured: Measured, about: Mapping[str, object]) -> dict[str, object]:
    """The same with every window."""
    return {
        "about": dict(about),
        "rows": [one.as_json() for one in rows_of(measured)],
        "windows": [asdict(one) for one in measured.windows],
        "answered": measured.answered,
        "in_ledger": measured.rows,
        "ready_s": measured.ready_s,
        "flushed": measured.flushed,
        "missing": measured.missing,
    }


def about_this_run(placement: object, rounds: int, seconds: float, connections: int) -> dict[str, object]:
    """Where and how the run was made."""
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "on": f"{platform.machine()}, {os.cpu_count()} cores, Linux {kernel}",
        "placement": str(placement),
        "rounds": rounds,
        "window_s": seconds,
        "connections": connections,
    }
