"""How cost, memory and times grow with everything there may be more of: `make bench-scale`.

Of each axis one thing grows and everything else stays. Each call is of the next tenant, key or user. CPU is
read from /proc, the least of three windows, with keepers frozen meanwhile; `slope` is the exponent by which a
figure grows with its axis: 0.00 not at all, 1.00 in proportion. In the end each call must have its row.
Usage: python -m tests.bench.scale [--axes NAME,…] [--most N] [--calls N] [--page PAGE]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from persistence.schema import migrate
from tests.bench.deployment import Counters, Deployment, Filled, Outside, until
from tests.bench.flush import postgres, postgres_cpu_s, postmaster
from tests.bench.machine import BenchError, cpu_s
from tests.bench.page import PAGE, publish

WINDOWS = 3
CALLERS = 256  # tenants of the axes that are of servers and processes
IDLE_S = 5.0
STARTED_AT_ONCE = 4  # to start costs a core for a second
SIZES: dict[str, tuple[int, ...]] = {
    "tenants": (1, 100, 10_000, 100_000),
    "keys": (1, 1_000, 100_000, 1_000_000),
    "users": (1, 1_000, 100_000, 1_000_000),
    "shards": (1, 3),
    "keepers": (1, 2, 4),
    "gateways": (1, 10, 50),
}
Figures = Mapping[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """What was found where there were so many of something."""

    axis: str
    size: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure: sizes by axis, calls of a window, and how long nobody calls."""

    sizes: Mapping[str, Sequence[int]]
    calls: int
    idle_s: float = IDLE_S


class Bench:
    """The servers that all axes share, and how many calls a window has."""

    def __init__(self, folder: Path, database: str, outside: Outside, wish: Wish, say: Say) -> None:
        self.database, self.outside, self.calls, self.idle_s = database, outside, wish.calls, wish.idle_s
        self.say, self.answered = say, 0
        self._folder, self._made = folder, 0

    @contextmanager
    def deployed(self, shards: int = 1) -> Iterator[Deployment]:
        """A deployment with a database and a Redis of its own, with nobody in it."""
        self._made += 1
        folder = self._folder / str(self._made)
        folder.mkdir()
        filled = Filled(self.database, f"scale{self._made}")
        filled.make("postgres")
        counters = Counters(folder / "counters", shards)
        deployment = Deployment(folder, filled, counters, self.outside.port)
        try:
            counters.start()
            yield deployment
        finally:
            deployment.stop()
            counters.stop()

    def until_served(self, deployment: Deployment) -> float:
        """Wait until every gateway serves; seconds."""
        ports = [one.port for one in deployment.gateways]
        return until(lambda: all(self._one(port) for port in ports), "calls are served")

    def _one(self, port: int) -> bool:
        served = self.outside.call([port], 0, 1, 1, 0) == 1
        self.answered += served
        return served

    def window(self, deployment: Deployment, of_keys: int, users: int = 0) -> Figures:
        """Cost of a call: the least of some windows, keepers frozen."""
        ports = [one.port for one in deployment.gateways]
        found: list[tuple[float, float]] = []
        for number in range(1 + WINDOWS):  # the first one warms up
            deployment.freeze()
            before = deployment.cpu_s(deployment.gateways), cpu_s(deployment.counters.pids())
            served = self.outside.call(ports, number * self.calls, self.calls, of_keys, users)
            after = deployment.cpu_s(deployment.gateways), cpu_s(deployment.counters.pids())
            deployment.thaw()
            if served < self.calls:
                raise BenchError(f"{self.calls - served} of {self.calls} calls were not served")
            self.answered += served
            found.append((after[0] - before[0], after[1] - before[1]))
            deployment.drain()
        scale = 1e6 / self.calls
        return {
            "gateway µs a call": min(gateway for gateway, _ in found[1:]) * scale,
            "Redis µs a call": min(counters for _, counters in found[1:]) * scale,
        }

    def check(self, deployment: Deployment) -> None:
        """`BenchError` unless each call that was answered has its row."""
        deployment.drain()
        rows = deployment.filled.rows()
        if rows != self.answered:
            raise BenchError(f"{self.answered} calls were answered, {rows} are in the ledger")
        self.answered = 0


def grown(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """More tenants (a key each), keys of one tenant, or users of one key."""
    with bench.deployed() as deployment:
        for size in sizes:
            bench.say(f"{axis} {size:,}")
            tenants, users = (size if axis == "tenants" else 1), (size if axis == "users" else 0)
            of_keys = 1 if axis == "users" else size
            deployment.filled.grow(tenants, of_keys, users)
            deployment.counters.empty()
            times = _started(bench, deployment)
            cost = bench.window(deployment, of_keys, users)
            memory = {
                "worker MiB": deployment.memory_mib(deployment.gateways),
                "keeper MiB": deployment.memory_mib(deployment.keepers),
                "Redis MiB": deployment.counters.summed("used_memory") / 2**20,
            }
            deployment.remove(deployment.gateways)
            yield Point(axis, size, {**cost, **memory, **times, **_restarted(deployment)})
        bench.check(deployment)


def _started(bench: Bench, deployment: Deployment) -> Figures:
    """Start a gateway and a keeper beside an empty Redis: until one call is served, and until all are."""
    began = time.monotonic()
    deployment.add_keeper()
    deployment.add_gateway()
    bench.until_served(deployment)
    first = time.monotonic() - began
    deployment.until_whole()
    return {"first answer s": first, "all served s": time.monotonic() - began}


def _restarted(deployment: Deployment) -> Figures:
    """Start a keeper beside a Redis that has everything: until it says that all is served."""
    deployment.drain()
    deployment.remove(deployment.keepers)
    began = time.monotonic()
    deployment.add_keeper()
    deployment.until_whole()
    found = {"keeper again s": time.monotonic() - began}
    deployment.remove(deployment.keepers)
    return found


def shards(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """One Redis, or a cluster of three primaries with a replica each."""
    for size in sizes:
        bench.say(f"{axis} {size}")
        with bench.deployed(size) as deployment:
            deployment.filled.grow(CALLERS, CALLERS, 0)
            times = _started(bench, deployment)
            cost = bench.window(deployment, CALLERS)
            bench.check(deployment)
            busiest = cost["Redis µs a call"] / size
            yield Point(axis, size, {**cost, "Redis µs a call and primary": busiest, **times})


def keepers(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """So many keepers that write what waits."""
    with bench.deployed() as deployment:
        deployment.filled.grow(CALLERS, CALLERS, 0)
        _started(bench, deployment)
        server = postmaster(deployment.filled.url)
        for size in sizes:
            bench.say(f"{axis} {size}")
            while len(deployment.keepers) < size:
                deployment.add_keeper()
            for one in range(size):
                until(lambda number=one: deployment.is_whole(number), "each keeper serves")
            rates = [_drained(bench, deployment, server) for _ in range(WINDOWS)]
            yield Point(axis, size, max(rates, key=lambda each: each["rows a second"]))
        bench.check(deployment)


def _drained(bench: Bench, deployment: Deployment, server: int) -> Figures:
    deployment.freeze()
    port = deployment.gateways[0].port
    served = bench.outside.call([port], 0, 2 * bench.calls, CALLERS, 0)
    bench.answered += served
    before = deployment.cpu_s(deployment.keepers), postgres_cpu_s(server)
    deployment.thaw()
    seconds = max(deployment.drain(), 1e-3)
    after = deployment.cpu_s(deployment.keepers), postgres_cpu_s(server)
    return {
        "rows a second": served / seconds,
        "keepers µs a row": (after[0] - before[0]) * 1e6 / served,
        "PostgreSQL µs a row": (after[1] - before[1]) * 1e6 / served,
    }


def gateways(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """So many gateways of one worker, idle and then busy together."""
    with bench.deployed() as deployment:
        deployment.filled.grow(CALLERS, CALLERS, 0)
        deployment.add_keeper()
        deployment.until_whole()
        nobody = _idle(deployment, bench.idle_s)
        for size in sizes:
            bench.say(f"{axis} {size}")
            while len(deployment.gateways) < size:
                for _ in range(min(STARTED_AT_ONCE, size - len(deployment.gateways))):
                    deployment.add_gateway()
                bench.until_served(deployment)
            idle = _idle(deployment, bench.idle_s)
            cost = bench.window(deployment, CALLERS)
            yield Point(axis, size, {
                "idle: commands/s a worker": (idle["commands"] - nobody["commands"]) / size,
                "idle: Redis core %": 100 * idle["Redis"],
                "idle: a worker's core %": 100 * idle["gateways"] / size,
                **cost,
                "worker MiB": deployment.memory_mib(deployment.gateways),
            })  # fmt: skip
        bench.check(deployment)


def _idle(deployment: Deployment, idle_s: float) -> Figures:
    """What is done each second where nobody calls."""
    deployment.drain()
    counters = deployment.counters
    before = (
        counters.summed("total_commands_processed"),
        cpu_s(counters.pids()),
        deployment.cpu_s(deployment.gateways),
    )
    began = time.monotonic()
    time.sleep(idle_s)
    seconds = time.monotonic() - began
    return {
        "commands": (counters.summed("total_commands_processed") - before[0]) / seconds,
        "Redis": (cpu_s(counters.pids()) - before[1]) / seconds,
        "gateways": (deployment.cpu_s(deployment.gateways) - before[2]) / seconds,
    }


AXES: dict[str, Callable[[Bench, str, Sequence[int]], Iterator[Point]]] = {
    "tenants": grown, "keys": grown, "users": grown,
    "shards": shards, "keepers": keepers, "gateways": gateways,
}  # fmt: skip


def measure(wish: Wish, say: Say) -> Iterator[list[Point]]:
    """Each axis that is asked for."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-scale-") as folder, postgres() as url:
        migrate.upgrade(url)
        outside = Outside()
        try:
            bench = Bench(Path(folder), url, outside, wish, say)
            for axis, sizes in wish.sizes.items():
                yield list(AXES[axis](bench, axis, sizes))
        finally:
            outside.stop()


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent by which the second grows with the first, by least squares of the logarithms."""
    some = [(math.log(one), math.log(other)) for one, other in points if one > 0 and other > 0]
    if len(some) < 2:
        return None
    mean_x, mean_y = (sum(each) / len(some) for each in zip(*some, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in some)
    return sum((x - mean_x) * (y - mean_y) for x, y in some) / spread if spread else None


def table(points: Sequence[Point]) -> str:
    """One axis as Markdown: a line a figure, a column a size, and the slope."""
    axis, sizes = points[0].axis, [point.size for point in points]
    lines = [f"| {axis} | " + " | ".join(f"{size:,}" for size in sizes) + " | slope |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 1))
    for name in points[0].figures:
        values = [point.figures[name] for point in points]
        found = slope(list(zip(map(float, sizes), values, strict=True)))
        steep = "–" if found is None else f"{found:.2f}"
        lines.append(f"| {name} | " + " | ".join(map(_short, values)) + f" | {steep} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def main() -> int:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(prog="bench-scale", description=__doc__)
    parser.add_argument("--axes", default=",".join(AXES), help="names, separated by commas")
    parser.add_argument("--most", type=int, default=max(map(max, SIZES.values())), help="the largest size")
    parser.add_argument("--calls", type=int, default=5_000, help="calls of a window")
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    options = parser.parse_args()
    axes = options.axes.split(",")
    if unknown := [one for one in axes if one not in AXES]:
        parser.error(f"no such axis: {', '.join(unknown)}")
    sizes = {axis: [size for size in SIZES[axis] if size <= options.most] for axis in axes}
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    tables = []
    try:
        for points in measure(Wish(sizes, options.calls), say):
            tables.append(table(points))
            print(tables[-1] + "\n", flush=True)
    except BenchError as error:
        print(f"bench-scale: {error}", file=sys.stderr)
        return 1
    if options.page:
        publish(options.page, "scale", "\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
