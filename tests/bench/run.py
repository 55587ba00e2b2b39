"""`make bench`: every contender side by side in one run, as a table of ratios.

All gateways share one core in turn, everything else shares the others, the same for all. Rounds
interleave the contenders (A B C A B C …), so that a slow minute of the machine strikes them all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.contenders import (
    INTERPRETED,
    OTHER,
    OURS,
    PEER_STARTS,
    TITLES,
    Contender,
    Stage,
    Start,
    upstream,
)
from tests.bench.figures import Window
from tests.bench.load import ANSWER, Loaded, ask, pace, rest_ms, saturate
from tests.bench.machine import (
    BenchError,
    Placement,
    busy_s,
    check_running,
    cpu_s,
    families_cpu_s,
    install_tools,
    leave_nothing_behind,
    rss_mib,
)
from tests.bench.page import PAGE, publish
from tests.bench.report import Measured, about_this_run, as_json, as_markdown, as_pair, failed
from tests.bench.tollkeeper import compile_hot_path, tollkeeper

FLUSH = Path(__file__).parent / "flush.py"
OUT = Path("build/bench")
WARM_S = 1.0
CHECK_S_MAX = 5.0
PACED_RATE = 100.0
PARTLY = 0.7  # of what a contender takes
PARTLY_CONNECTIONS = 4  # times as many: each rests most of the time
FOREIGN_MAX = 0.05  # cores that processes outside the bench may use before a window is measured again


def main() -> int:
    """Run the bench; 0 if every contender asked for was measured, without an error or a lost call."""
    leave_nothing_behind()
    options = _options()
    OUT.mkdir(parents=True, exist_ok=True)
    measured = Measured()
    try:
        install_tools(say)
        compiled = None if options.interpreted else compile_hot_path(Path.cwd(), say)
        other = options.against and (compile_hot_path(options.against, say) or options.against.resolve())
        placement = Placement.of_this_machine()
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {placement.client})
        with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as folder:
            Path(folder).chmod(0o755)
            stage = Stage(
                Path(folder), OUT.resolve(), placement, say, compiled=compiled, other=other,
                callers=options.callers, organizations=options.organizations, traced=not options.same_heads,
            )  # fmt: skip
            _measure(stage, options, measured)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    if not options.skip_flush:
        measured.flushed = _flushed(cores)
    about = about_this_run(placement, options.rounds, options.seconds, options.connections)
    about["callers"] = f"{options.callers} keys and users of {options.organizations} organizations"
    about["heads"] = "all the same" if options.same_heads else "a traceparent of its own for each call"
    about["our hot path"] = f"{'compiled' if compiled else 'interpreted'}, on {stage.python}"
    markdown = as_markdown(measured, about)
    (OUT / "bench.json").write_text(json.dumps(as_json(measured, about), indent=2) + "\n", encoding="utf-8")
    pair = as_pair(measured, about)
    (OUT / "bench.md").write_text(f"{markdown}\n{pair}".strip() + "\n", encoding="utf-8")
    print(markdown)
    print(pair)
    say(f"written to {OUT}/bench.json and {OUT}/bench.md")
    if failed(measured):
        return 1
    if options.page and not options.only and compiled:
        publish(options.page, "gateway", markdown)
    if options.page and pair:
        publish(options.page, "compiled", pair)
    return 0


def say(line: str) -> None:
    """Progress goes to standard error, the table alone to standard output."""
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of one window under load")
    parser.add_argument("--paced-seconds", type=float, default=3.0, help="length of one window at 100/s")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--callers", type=int, default=1, help="keys that call in turn, each for its own user"
    )
    parser.add_argument("--organizations", type=int, default=1, help="whose keys these are")
    parser.add_argument("--same-heads", action="store_true", help="no traceparent of its own for each call")
    parser.add_argument("--attempts", type=int, default=3, help="tries for a window others disturb")
    parser.add_argument("--nice", type=int, default=0, help="priority of all programs, -20 (root) to 19")
    parser.add_argument("--only", default="", help="comma-separated contenders: " + ", ".join(TITLES))
    parser.add_argument("--litellm", action="store_true", help="LiteLLM too (a large installation)")
    parser.add_argument("--skip-flush", action="store_true", help="leave out the flusher's rows a second")
    parser.add_argument("--interpreted", action="store_true", help="do not compile our own hot path")
    parser.add_argument("--against", type=Path, help="checkout of another revision, measured beside this one")
    parser.add_argument("--page", type=Path, help=f"page to publish a run on where nothing failed: {PAGE}")
    return parser.parse_args()


def _measure(stage: Stage, options: argparse.Namespace, measured: Measured) -> None:
    wanted = [one for one in options.only.split(",") if one] or [
        one for one in TITLES if one != "litellm" or options.litellm
    ]
    unknown = sorted(set(wanted) - set(TITLES))
    if unknown:
        raise BenchError(f"unknown contender {', '.join(unknown)}; known: {', '.join(TITLES)}")
    if stage.other is None and OTHER in wanted:
        wanted.remove(OTHER)
    if stage.compiled is None and INTERPRETED in wanted:
        wanted.remove(INTERPRETED)  # all of ours are
    with contextlib.ExitStack() as ending:
        ending.callback(stage.stop)
        contenders, measured.missing = _start(stage, wanted)
        for one in contenders:
            measured.answered[one.name], measured.cut[one.name] = 1, 0
            if one.gateway:
                measured.idle_rss[one.name] = max(map(rss_mib, one.gateway))
            measured.ready_s = one.ready_s or measured.ready_s
        stage.prefer(options.nice)
        _rounds(stage, contenders, options, measured)
        for one in contenders:
            if one.rows:
                with _turn(one):
                    pass  # drained once more, whatever the order was
                measured.rows[one.name] = one.rows()


def _start(stage: Stage, wanted: list[str]) -> tuple[list[Contender], dict[str, str]]:
    """Start what is wanted, check that each gives the upstream's own answer; what failed is said."""
    contenders: list[Contender] = [upstream(stage)]
    missing: dict[str, str] = {}
    ours = [name for name in OURS if name in wanted]
    alone = [name for name in (INTERPRETED, OTHER) if name in wanted]
    groups: list[tuple[list[str], Callable[[Stage], list[Contender]]]] = [
        ([name], partial(_one, PEER_STARTS[name])) for name in wanted if name in PEER_STARTS
    ]
    groups += [(each, partial(tollkeeper, names=each)) for each in (ours, alone) if each]
    for names, start in groups:
        say(f"starting {TITLES[names[0]]} …")
        try:
            for started in start(stage):
                with _turn(started):
                    _check(started)
                contenders.append(started)
        except (BenchError, OSError) as error:
            missing |= dict.fromkeys(names, str(error))
            say(f"  left out: {error}")
    return contenders, missing


def _one(start: Start, stage: Stage) -> list[Contender]:
    return [start(stage)]


def _check(contender: Contender) -> None:
    deadline = time.monotonic() + CHECK_S_MAX
    status, body = ask(contender.port, contender.traffic)
    while status != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
        status, body = ask(contender.port, contender.traffic)
    if status != 200:
        raise BenchError(f"answers {status}: {body[:200].decode(errors='replace')}")
    if contender.name != "litellm" and body != ANSWER.encode():
        raise BenchError("changes the upstream's answer")


def _rounds(
    stage: Stage, contenders: list[Contender], options: argparse.Namespace, measured: Measured
) -> None:
    for one in contenders:
        with _turn(one):
            _load(stage, one, options.connections, WARM_S, measured)
    for number in range(1, options.rounds + 1):
        for one in contenders:
            measured.windows.append(_quiet_window(stage, one, number, options, measured))
        for one, found in zip(contenders, measured.windows[-len(contenders) :], strict=True):
            if found.rate > 2 * PACED_RATE:
                measured.partly.setdefault(one.name, []).append(_partly(stage, one, found, options, measured))
                measured.paced.setdefault(one.name, []).extend(_quiet_pace(stage, one, options, measured))


@contextlib.contextmanager
def _turn(one: Contender) -> Iterator[None]:
    """A contender's turn under load, whatever it has to prepare and clear around it."""
    one.before()
    try:
        yield
    finally:
        one.after()


def _load(  # noqa: PLR0917  # what wrk is told, and where it is noted
    stage: Stage, one: Contender, connections: int, seconds: float, measured: Measured, pause_ms: int = 0
) -> Loaded:
    loaded = saturate(
        one.port,
        one.traffic,
        core=stage.placement.client,
        connections=connections,
        seconds=seconds,
        folder=stage.folder,
        pause_ms=pause_ms,
    )
    measured.answered[one.name] += loaded.requests - loaded.errors
    measured.cut[one.name] += connections
    return loaded


def _quiet_window(
    stage: Stage, one: Contender, number: int, options: argparse.Namespace, measured: Measured
) -> Window:
    """Measure again, a few times, while others use the machine; keep the quietest."""
    best: Window | None = None
    for _ in range(options.attempts):
        with _turn(one):
            try:
                found = _window(stage, one, number, options, measured)
            except BenchError as error:
                raise BenchError(f"{one.name}, round {number}: {error}") from error
        say(
            f"round {number}/{options.rounds}  {one.name:20} {found.rate:9,.0f} req/s  "
            f"gateway {found.gateway_us:7.1f} µs  Redis {found.redis_us:5.1f} µs  "
            f"p99 {found.p99_us / 1000:6.2f} ms  {found.errors or 'no'} errors"
            + (f"  disturbed: {found.foreign_cores:.2f} cores" if found.foreign_cores > FOREIGN_MAX else "")
        )
        if best is None or found.foreign_cores < best.foreign_cores:
            best = found
        if best.foreign_cores <= FOREIGN_MAX:
            break
    assert best is not None
    return best


def _partly(
    stage: Stage, one: Contender, found: Window, options: argparse.Namespace, measured: Measured
) -> tuple[float, float]:
    """Latencies, p50 and p99, at a share of what it just took; its connections rest between calls."""
    connections = PARTLY_CONNECTIONS * options.connections
    rest = rest_ms(PARTLY * found.rate, found.p50_us * PARTLY, connections)
    with _turn(one):
        loaded = _load(stage, one, connections, options.paced_seconds, measured, rest)
    share = loaded.requests / loaded.seconds / found.rate
    say(f"  {one.name:20} at {share:.0%}  p99 {loaded.p99_us / 1000:6.2f} ms")
    return loaded.p50_us, loaded.p99_us


def _quiet_pace(stage: Stage, one: Contender, options: argparse.Namespace, measured: Measured) -> list[float]:
    """Latencies at a low rate, in the quietest of a few attempts."""
    best: list[float] = []
    quietest = float("inf")
    for _ in range(options.attempts):
        with _turn(one):
            ours, busy = _own_cpu_s(stage), busy_s()
            calls = pace(one.port, one.traffic, PACED_RATE, options.paced_seconds)
            foreign = (busy_s() - busy - (_own_cpu_s(stage) - ours)) / options.paced_seconds
        measured.answered[one.name] += len(calls)
        if foreign < quietest:
            best, quietest = calls, foreign
        if quietest <= FOREIGN_MAX:
            break
    return best


def _window(
    stage: Stage, one: Contender, number: int, options: argparse.Namespace, measured: Measured
) -> Window:
    """Load one contender and read every clock before and after."""
    entries = one.entries() if one.entries else 0
    script = _scripts(one)
    core = stage.placement.client
    ours, busy, there, start = _own_cpu_s(stage), busy_s(), busy_s(core), time.monotonic()
    check_running(one.gateway, stage.placement.gateway)
    check_running(one.redis_pids, stage.placement.redis)
    gateway, counters, behind = (
        cpu_s(one.gateway),
        families_cpu_s(one.redis_pids),
        families_cpu_s(one.behind()),
    )
    loaded = _load(stage, one, options.connections, options.seconds, measured)
    gateway, counters = cpu_s(one.gateway) - gateway, families_cpu_s(one.redis_pids) - counters
    behind = families_cpu_s(one.behind()) - behind
    check_running(one.gateway, stage.placement.gateway)
    there = (busy_s(core) - there) / (time.monotonic() - start)
    ours, busy = _own_cpu_s(stage) - ours, busy_s() - busy
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
        load_busy=there,
        redis_cpu_s=counters,
        behind_cpu_s=behind,
        script_us=usec / loaded.requests,
        scripts_per_read=calls / reads if reads else 0.0,
        requests_per_script=loaded.requests / calls if calls else 0.0,
        entries=one.entries() - entries if one.entries else None,
        foreign_cores=max(0.0, busy - ours) / loaded.seconds,
    )


def _own_cpu_s(stage: Stage) -> float:
    return families_cpu_s({program.pid for program in stage.programs} | {os.getpid()})


def _scripts(one: Contender) -> tuple[int, int, int]:
    """Script calls, microseconds in them, and reads from sockets, since the Redis of this contender began."""
    if one.counters is None:
        return 0, 0, 0
    found = one.counters.info("commandstats")
    ran = [found[name] for name in ("cmdstat_fcall", "cmdstat_evalsha", "cmdstat_eval") if name in found]
    reads = one.counters.info("stats")["total_reads_processed"]
    return sum(each["calls"] for each in ran), sum(each["usec"] for each in ran), reads


def _flushed(cores: set[int]) -> dict[str, object]:
    """What the flusher's own bench says, on all cores; empty where it is not there."""
    if not FLUSH.exists():
        return {}
    say("measuring the flusher …")
    os.sched_setaffinity(0, cores)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.flush"], capture_output=True, text=True, check=False
    )
    try:
        found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": (done.stderr or done.stdout).strip()[-300:]}
    return found


if __name__ == "__main__":
    sys.exit(main())
