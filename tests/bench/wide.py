"""What a call costs gateways and Redis as workers are added: `python -m tests.bench.wide [--against TREE]`.

One deployment for each number of workers, its processes on cores of their own: client, model, Redis, the
rest, then a core for each worker. On sixteen cores that is 1, 2, 4 and 8 workers, in four minutes. On fewer
it runs those that fit, and says so; on two or three, one worker shares them as in `tests.bench.hot`. Another
tree takes turns with this one, window by window. Keepers stand still while a window is measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.bench import stage as staging
from tests.bench.figures import OTHER, OURS
from tests.bench.load import saturate
from tests.bench.machine import (
    BenchError,
    Placement,
    check_running,
    cpu_s,
    families_cpu_s,
    pin,
    stop,
)
from tests.bench.scenes import SCENES, Scene
from tests.bench.stage import Contender, Stage
from tests.bench.tollkeeper import compile_hot_path, tollkeeper

WORKERS = (1, 2, 4, 8)
WIDE = "ledger", "limits", "organizations", "money"
# Cores that are no worker's: client, model, Redis, the rest.
SHARED = 4
CONNECTIONS_EACH = 32
WARM_S = 1.0
COLUMNS = (
    "workers",
    "scene",
    "calls/s",
    "Redis µs",
    "gateway µs",
    "p99 ms",
    "calls, Redis, gateway beside the other",
)


def fitting(cores: int) -> tuple[int, ...]:
    """The numbers of workers that have cores of their own on so many; one worker runs in any case."""
    return tuple(one for one in WORKERS if one == 1 or one + SHARED <= cores)


def placed(cores: list[int], shared: Placement) -> tuple[Placement, list[int]]:
    """Where all runs, and the cores of workers in their order; as `shared` where there are too few."""
    if len(cores) <= SHARED:
        return shared, [shared.gateway]
    client, model, counters, rest, *workers = cores
    return Placement(workers[0], client, model, counters, rest), workers


def main() -> int:
    """Print the table, row by row as it is measured."""
    parser = staging.parser("wide", __doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window")
    parser.add_argument("--against", type=Path, help="checkout of another revision beside this one")
    parser.add_argument("--scenes", default=",".join(WIDE), help="comma-separated")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    numbers, scenes = fitting(len(cores)), [SCENES[name] for name in options.scenes.split(",")]
    if numbers != WORKERS:
        left = ", ".join(map(str, WORKERS[len(numbers) :]))
        staging.say(f"{len(cores)} cores: {left} workers are left out, which need {WORKERS[-1] + SHARED}")

    def measure(stage: Stage) -> None:
        stage.placement, workers = placed(cores, stage.placement)
        stage.compiled = stage.compiled or compile_hot_path(Path.cwd(), staging.say)
        names = [OURS]
        if options.against:
            stage.other = compile_hot_path(options.against, staging.say) or options.against.resolve()
            names.append(OTHER)
        print(f"| {' | '.join(COLUMNS)} |\n|---:|---|---:|---:|---:|---:|---|", flush=True)
        for number in numbers:
            _measure(stage, number, workers, scenes, names, options.seconds)

    return staging.on_stage("wide", measure, options.compiled)


def _measure(  # noqa: PLR0917  # how many workers, where, in what, of which trees
    stage: Stage, number: int, cores: list[int], scenes: list[Scene], names: list[str], seconds: float
) -> None:
    before = len(stage.programs)
    deployments = {}
    for name in names:
        one = tollkeeper(stage, scenes, name, workers=number, folder=f"{name}-{number}")
        for at, pid in enumerate(one.gateway):
            pin([pid], cores[at % number % len(cores)])
        deployments[name] = one
    for scene in scenes:
        rows = {name: _window(stage, one, scene, number, seconds) for name, one in deployments.items()}
        calls, redis, gateway, p99 = rows[OURS]
        beside = "–"
        if OTHER in rows:
            beside = ", ".join(
                f"{ours / theirs:.2f} ×" for ours, theirs in zip(rows[OURS][:3], rows[OTHER][:3], strict=True)
            )
        row = f"{calls:,.0f} | {redis:.1f} | {gateway:.1f} | {p99:.1f} | {beside}"
        print(f"| {number} | {scene.title} | {row} |", flush=True)
    while len(stage.programs) > before:
        stop(stage.programs.pop())


def _window(
    stage: Stage, one: Contender, scene: Scene, number: int, seconds: float
) -> tuple[float, float, float, float]:
    """Calls a second, µs of Redis and of gateways a call, p99 in ms; the first second warms up."""
    one.before(scene)
    connections, traffic = CONNECTIONS_EACH * number, one.traffic(scene)
    for lasts in (WARM_S, seconds):
        check_running(one.gateway)
        began = cpu_s(one.gateway), families_cpu_s(one.redis_pids)
        found = saturate(
            one.port, traffic, core=stage.placement.client, connections=connections, seconds=lasts,
            folder=stage.folder,
        )  # fmt: skip
        if found.errors:
            raise BenchError(f"{one.name}, scene {scene.name}: {found.errors} calls failed")
    gateway, redis = cpu_s(one.gateway) - began[0], families_cpu_s(one.redis_pids) - began[1]
    one.after()
    each = 1e6 / found.requests
    return found.requests / found.seconds, redis * each, gateway * each, found.p99_us / 1000


if __name__ == "__main__":
    sys.exit(main())
