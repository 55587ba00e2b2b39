"""`make bench`: every contender side by side in one run, as a table of ratios.

All gateways share one core in turn, everything else shares the others, the same for all. Rounds
interleave the contenders (A B C A B C …), so that a slow minute of the machine strikes them all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.contenders import OURS, PEER_STARTS, TITLES, Contender, Stage, upstream
from tests.bench.figures import Row, Window, percentile, ratios, row, table
from tests.bench.load import ANSWER, REQUEST_BYTES, Loaded, ask, pace, saturate
from tests.bench.machine import BenchError, Placement, busy_s, cpu_s, family, install_tools, rss_mib

OUT = Path("build/bench")
WARM_S = 1.0
PACED_RATE = 100.0


def main() -> int:
    """Run the bench; 0 if every contender asked for was measured without an error."""
    options = _options()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        install_tools(say)
        placement = Placement.of_this_machine()
        os.sched_setaffinity(0, {placement.client})
        with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as folder:
            report = _measure(Stage(Path(folder), OUT.resolve(), placement, say), options)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    (OUT / "bench.json").write_text(json.dumps(report["json"], indent=2) + "\n", encoding="utf-8")
    (OUT / "bench.md").write_text(report["markdown"], encoding="utf-8")
    print(report["markdown"])
    say(f"written to {OUT}/bench.json and {OUT}/bench.md")
    return 1 if report["failed"] else 0


def say(line: str) -> None:
    """Progress goes to standard error, the table alone to standard output."""
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one window under load")
    parser.add_argument("--paced-seconds", type=float, default=3.0, help="length of one window at 100/s")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="", help="comma-separated contenders: " + ", ".join(TITLES))
    parser.add_argument("--litellm", action="store_true", help="LiteLLM too (a large installation)")
    parser.add_argument("--skip-flush", action="store_true", help="leave out the flusher's rows a second")
    return parser.parse_args()


def _measure(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    wanted = [one for one in options.only.split(",") if one] or [
        one for one in TITLES if one != "litellm" or options.litellm
    ]
    unknown = sorted(set(wanted) - set(TITLES))
    if unknown:
        raise BenchError(f"unknown contender {', '.join(unknown)}; known: {', '.join(TITLES)}")
    with contextlib.ExitStack() as ending:
        ending.callback(stage.stop)
        contenders, missing = _start(stage, wanted, ending)
        idle_rss = {one.name: rss_mib(one.gateway[-1]) for one in contenders if one.gateway}
        windows, paced = _rounds(stage, contenders, options)
    rows = _rows(contenders, windows, paced, idle_rss)
    return _report(rows, windows, missing, options, stage.placement)


def _start(
    stage: Stage, wanted: list[str], ending: contextlib.ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """Start what is wanted, check that each gives the upstream's own answer; what failed is said."""
    direct = upstream(stage)
    contenders: list[Contender] = [direct]
    missing: dict[str, str] = {}
    for name in wanted:
        if name not in PEER_STARTS:
            continue
        say(f"starting {TITLES[name]} …")
        try:
            started = PEER_STARTS[name](stage)
            _check(started)
            contenders.append(started)
        except (BenchError, OSError) as error:
            missing[name] = str(error)
            say(f"  left out: {error}")
    return contenders, missing


def _check(contender: Contender) -> None:
    status, body = ask(contender.port, contender.key, contender.user)
    if status != 200:
        raise BenchError(f"answers {status}: {body[:200].decode(errors='replace')}")
    if contender.name != "litellm" and body != ANSWER.encode():
        raise BenchError("changes the upstream's answer")


def _rounds(
    stage: Stage, contenders: list[Contender], options: argparse.Namespace
) -> tuple[list[Window], dict[str, list[float]]]:
    windows: list[Window] = []
    paced: dict[str, list[float]] = {one.name: [] for one in contenders}
    for one in contenders:
        with _turn(one):
            _load(stage, one, options.connections, WARM_S)
    for number in range(1, options.rounds + 1):
        for one in contenders:
            with _turn(one):
                found = _window(stage, one, number, options)
                windows.append(found)
                say(
                    f"round {number}/{options.rounds}  {one.name:20} {found.rate:9,.0f} req/s  "
                    f"gateway {found.gateway_us:7.1f} µs  Redis {found.redis_us:5.1f} µs  "
                    f"p99 {found.p99_us / 1000:.2f} ms  {found.errors or 'no'} errors"
                )
        for one in contenders:
            with _turn(one):
                paced[one.name] += pace(one.port, one.key, one.user, PACED_RATE, options.paced_seconds)
    return windows, paced


@contextlib.contextmanager
def _turn(one: Contender) -> Iterator[None]:
    """A contender's turn under load, whatever it has to prepare and clear around it."""
    one.before()
    try:
        yield
    finally:
        one.after()


def _load(stage: Stage, one: Contender, connections: int, seconds: float) -> Loaded:
    return saturate(
        one.port,
        one.key,
        one.user,
        core=stage.placement.client,
        connections=connections,
        seconds=seconds,
        folder=stage.folder,
    )


def _window(stage: Stage, one: Contender, number: int, options: argparse.Namespace) -> Window:
    """Load one contender and read every clock before and after."""
    entries = one.entries() if one.entries else 0
    script = _scripts(one)
    ours, busy = _own_cpu_s(stage), busy_s()
    gateway, counters = cpu_s(one.gateway), cpu_s(one.redis_pids)
    loaded = _load(stage, one, options.connections, options.seconds)
    gateway, counters = cpu_s(one.gateway) - gateway, cpu_s(one.redis_pids) - counters
    ours, busy = _own_cpu_s(stage) - ours + loaded.client_cpu_s, busy_s() - busy
    calls, usec, reads = (after - before for after, before in zip(_scripts(one), script, strict=True))
    return Window(
        contender=one.name,
        round=number,
        requests=loaded.requests,
        seconds=loaded.seconds,
        errors=loaded.errors,
        p50_us=loaded.p50_us,
        p99_us=loaded.p99_us,
        gateway_cpu_s=gateway,
        load_cpu_s=ours - gateway,
        redis_cpu_s=counters,
        script_us=usec / loaded.requests,
        commands_per_read=calls / reads if reads else 0.0,
        entries=one.entries() - entries if one.entries else None,
        foreign_cores=max(0.0, busy - ours) / loaded.seconds,
    )


def _own_cpu_s(stage: Stage) -> float:
    return cpu_s({pid for program in stage.programs for pid in family(program.pid)} | {os.getpid()})


def _scripts(one: Contender) -> tuple[int, int, int]:
    """Script calls, microseconds in them, and reads from sockets, since the Redis of this contender began."""
    if one.counters is None:
        return 0, 0, 0
    found = one.counters.info("commandstats")
    ran = [found[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in found]
    reads = one.counters.info("stats")["total_reads_processed"]
    return sum(each["calls"] for each in ran), sum(each["usec"] for each in ran), reads


def _rows(
    contenders: list[Contender],
    windows: list[Window],
    paced: dict[str, list[float]],
    idle_rss: dict[str, float],
) -> list[Row]:
    def of(name: str) -> list[Window]:
        return [one for one in windows if one.contender == name]

    def added(name: str, share: float) -> float | None:
        if name == "direct" or not paced[name]:
            return None
        return percentile(paced[name], share) - percentile(paced["direct"], share)

    return [
        replace(
            row(of(one.name)),
            added_p50_us=added(one.name, 0.5),
            added_p99_us=added(one.name, 0.99),
            rss_mib=idle_rss.get(one.name),
        )
        for one in contenders
    ]


def _report(
    rows: list[Row],
    windows: list[Window],
    missing: dict[str, str],
    options: argparse.Namespace,
    placement: Placement,
) -> dict[str, Any]:
    about = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "placement": str(placement),
        "rounds": options.rounds,
        "window_s": options.seconds,
        "connections": options.connections,
    }
    lines = [
        f"{about['at']}: {about['machine']}; {placement}.",
        (
            f"{options.rounds} interleaved rounds of {options.seconds:g} s, {options.connections} "
            f"connections, {REQUEST_BYTES:,}-byte requests; medians, ratios within each round."
        ),
        "",
        table(rows, TITLES),
        ratios(windows, OURS, TITLES),
        *(f"- left out: {TITLES[name]}: {why}" for name, why in missing.items()),
    ]
    return {
        "markdown": "\n".join(lines) + "\n",
        "failed": bool(missing) or any(one.errors for one in rows),
        "json": {
            **about,
            "rows": [one.as_json() for one in rows],
            "windows": [asdict(one) for one in windows],
            "missing": missing,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
