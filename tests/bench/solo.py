"""One contender with the stage for itself: how `hot` and `in_turn` set it, and what a call costs there."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench.contenders import Contender, Stage, upstream
from tests.bench.load import Loaded, Traffic, saturate
from tests.bench.machine import (
    BenchError,
    Placement,
    check_running,
    cpu_s,
    install_tools,
    leave_nothing_behind,
)

CONNECTIONS = 32


class Cost(NamedTuple):
    """A window: what was called, and CPU of gateway and Redis, microseconds a call."""

    found: Loaded
    gateway_us: float
    redis_us: float


def parser(program: str, what: str | None) -> argparse.ArgumentParser:
    """Reads what may be said to each of them."""
    found = argparse.ArgumentParser(prog=program, description=what)
    found.add_argument("--compiled", type=Path, help="a copy whose hot path is compiled (`make compile`)")
    found.add_argument("--nice", type=int, default=0, help="priority of all programs, -20 (root) to 19")
    return found


def on_stage(program: str, options: argparse.Namespace, measure: Callable[[Stage], None]) -> int:
    """Set a stage with an upstream, measure, and end all of it; 1 where it cannot be done, which is told."""
    leave_nothing_behind()
    placement = Placement.of_this_machine()
    with tempfile.TemporaryDirectory(prefix=f"tollkeeper-{program}-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stage = Stage(folder, Path("build/bench").resolve(), placement, print)
        stage.compiled = None if options.compiled is None else options.compiled.resolve()
        try:
            install_tools(print)
            os.sched_setaffinity(0, {placement.client})
            upstream(stage)
            measure(stage)
        except BenchError as error:
            print(f"{program}: {error}", file=sys.stderr)
            return 1
        finally:
            stage.stop()
    return 0


def called(
    stage: Stage,
    one: Contender,
    seconds: float,
    traffic: Traffic | None = None,
    connections: int = CONNECTIONS,
) -> Loaded:
    """Have these call, or all of its own, as fast as they are answered."""
    return saturate(
        one.port, traffic or one.traffic, core=stage.placement.client, connections=connections,
        seconds=seconds, folder=stage.folder,
    )  # fmt: skip


def cost(
    stage: Stage,
    one: Contender,
    seconds: float,
    traffic: Traffic | None = None,
    connections: int = CONNECTIONS,
) -> Cost:
    """The same, and what it cost; the contender stands still before and after."""
    one.before()
    check_running(one.gateway, stage.placement.gateway)
    before = cpu_s(one.gateway), cpu_s(one.redis_pids)
    found = called(stage, one, seconds, traffic, connections)
    used = cpu_s(one.gateway) - before[0], cpu_s(one.redis_pids) - before[1]
    check_running(one.gateway, stage.placement.gateway)
    one.after()
    return Cost(found, 1e6 * used[0] / found.requests, 1e6 * used[1] / found.requests)
