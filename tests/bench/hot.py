"""Where one gateway worker spends its time: `python -m tests.bench.hot`.

Starts our contender as the bench does and loads it three times: bare (µs a request), under
`perf` (C and kernel), and under cProfile (Python). The profiler is switched on inside the worker
by a signal, and off by the next, from a `sitecustomize` on its path; nothing in the gateway knows of it. With
`--instructions` its instructions are counted instead, which other programs' load does not change.
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.bench import instructions
from tests.bench import stage as staging
from tests.bench.load import saturate
from tests.bench.machine import BenchError, check_running
from tests.bench.scenes import HOT
from tests.bench.stage import Contender, Stage, window
from tests.bench.tollkeeper import tollkeeper

INSIDE = """
import cProfile, os, signal, sys
if sys.orig_argv[-2:] == ["serve", "--worker"]:
    profile = cProfile.Profile()
    def begin(*_):
        signal.signal(signal.SIGUSR1, end)
        profile.enable()
    def end(*_):
        profile.disable()
        profile.dump_stats(os.path.join({folder!r}, "worker.part"))
        os.rename(os.path.join({folder!r}, "worker.part"), os.path.join({folder!r}, "worker.prof"))
    signal.signal(signal.SIGUSR1, begin)
"""


# Frames of C are unwound from copies of the stack, so that callers are known: few samples, 16 KiB each.
UNWOUND = ["--call-graph", "dwarf,16384", "-F", "500"]


# How long a worker is watched that has nothing to do.
IDLE_S = 5.0


def main() -> int:
    """Profile the worker and print what it found."""
    parser = staging.parser("hot", __doc__)
    parser.add_argument("--scene", choices=HOT, default="money")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--callees", action="store_true", help="also by function with what it calls (slow)")
    parser.add_argument("--bare", action="store_true", help="no profile, only what a request costs")
    parser.add_argument("--instructions", action="store_true", help="count instructions a call (callgrind)")
    parser.add_argument("--calls", type=int, default=600, help="whose instructions are counted, at least")
    parser.add_argument("--keep", type=Path, help="where callgrind's own file is kept, for its other readers")
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args()

    def measure(stage: Stage) -> None:
        name = str(stage.folder)
        inside = instructions.inside(name) if options.instructions else INSIDE.format(folder=name)
        (stage.folder / "sitecustomize.py").write_text(inside, encoding="utf-8")
        os.environ["PYTHONPATH"] = name
        one = tollkeeper(stage, [HOT[options.scene]])
        stage.prefer(options.nice)
        _profile(stage, one, options)

    return staging.on_stage("hot", measure, options.compiled)


def _profile(stage: Stage, one: Contender, options: argparse.Namespace) -> None:
    if options.instructions:
        _count(stage, one, options)
        return
    _load(stage, one, options, 1.0)
    print("bare:   ", _load(stage, one, options, options.seconds))
    if options.bare:
        return
    worker = one.gateway[0]
    if shutil.which("perf"):
        _perf(stage, one, options, worker, ("dso", "dso,sym"))
        _perf(stage, one, options, one.redis_pids[0], ("sym",))
        if options.callees:
            _perf(stage, one, options, worker, ("sym",), callees=True)
    os.kill(worker, signal.SIGUSR1)
    print("\nprofiled:", _load(stage, one, options, options.seconds))
    os.kill(worker, signal.SIGUSR1)
    result = stage.folder / "worker.prof"
    deadline = time.monotonic() + 10
    while not result.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"process {worker} has written no profile")
        time.sleep(0.05)
    stats = pstats.Stats(str(result))
    stats.strip_dirs().sort_stats("tottime").print_stats(options.top)
    stats.sort_stats("cumtime").print_stats(options.top)


def _count(stage: Stage, one: Contender, options: argparse.Namespace) -> None:
    """Count the worker's instructions under load, once each caller has called."""
    worker, scene = one.gateway[0], HOT[options.scene]

    def calls(least: int) -> int:
        made = 0
        while made < least:
            found = saturate(
                one.port, one.traffic(scene), core=stage.placement.client, connections=options.connections,
                seconds=options.seconds, folder=stage.folder, least=0,
            )  # fmt: skip
            check_running(one.gateway)  # what is translated first may answer nothing for long
            if found.errors:
                raise BenchError(f"{found.errors} calls failed")
            made += found.requests
        return made

    calls(2 * scene.callers)
    instructions.begin(worker)
    calls(1)  # whatever runs is translated first, which takes longer than to run it
    instructions.written(worker, stage.folder)
    began, settled = time.monotonic(), one.entries()
    calls(options.calls)
    busy, busy_s = instructions.written(worker, stage.folder), time.monotonic() - began
    settled = one.entries() - settled  # those of closed connections too, which no client counts
    time.sleep(IDLE_S)
    idle, idle_s = instructions.written(worker, stage.folder), time.monotonic() - began - busy_s
    if options.keep is not None:
        shutil.copy(busy, options.keep)
    print(instructions.report(busy, idle, busy_s / idle_s, settled, options.top))
    one.after()


def _perf(  # noqa: PLR0917  # what is measured, and how it is shown
    stage: Stage, one: Contender, options: argparse.Namespace, pid: int, sorts: tuple[str, ...],
    callees: bool = False,
) -> None:  # fmt: skip
    """Record one process under load and print where its time went, down to the kernel.

    With `callees`, each function has the time of whatever it called, too.
    """
    data = stage.folder / f"perf.{pid}"
    recorder = subprocess.Popen(
        ["perf", "record", "-q", "-o", str(data), "-p", str(pid), *(UNWOUND if callees else [])],
        stderr=subprocess.DEVNULL,
    )
    _load(stage, one, options, options.seconds)
    recorder.send_signal(signal.SIGINT)
    recorder.wait()
    name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    for sort in sorts:
        report = ["perf", "report", "-i", str(data), "--stdio", "-q", "--sort", sort, "-g", "none"]
        report.append("--children" if callees else "--no-children")
        found = subprocess.run(report, capture_output=True, text=True, check=False).stdout
        print(f"\nperf of {name} by {sort}\n" + "\n".join(found.strip().splitlines()[: options.top]))


def _load(stage: Stage, one: Contender, options: argparse.Namespace, seconds: float) -> str:
    found = window(stage, one, seconds, scene=HOT[options.scene], connections=options.connections)
    return (
        f"{found.requests / found.seconds:,.0f} req/s, gateway {found.gateway_us:.1f} µs, "
        f"Redis {found.redis_us:.1f} µs a request, {found.errors} errors"
    )


if __name__ == "__main__":
    sys.exit(main())
