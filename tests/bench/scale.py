"""How cost, memory and times grow with everything there may be more of: `make bench-scale`.

Of each axis one thing grows and everything else stays. A call is of the next tenant, key or user: first of
those that nobody has called for, then of the same ones again. CPU is that of the processes' own clocks, the
least of three windows, with keepers frozen meanwhile. `slope` is the exponent by which a figure grows with
its axis: 0.00 not at all, 1.00 in proportion. In the end each call must have its row.

An axis is printed and published once it ends, also where it was cut short after its second size; those that
do not run keep what the page has of them. No size is begun after `--minutes`.
Usage: python -m tests.bench.scale [--axes NAME,…] [--most N] [--calls N] [--minutes N] [--page PAGE]
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from persistence.schema import migrate
from tests.bench import keepers as sharing
from tests.bench.deployment import Counters, Deployment, Filled, Outside, until
from tests.bench.flush import postgres
from tests.bench.machine import BenchError, cpu_s
from tests.bench.page import PAGE, block, publish

WINDOWS = 3
CALLS = 2_500
CALLERS = 256  # tenants of the axes that are of servers and processes
CALLS_A_GATEWAY = 200  # of a window, at least: what it does by itself is to be a small part of it
IDLE_S, SETTLED_S = 5.0, 3.0
MINUTES = 40.0
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
Cost = tuple[float, float]  # microseconds of CPU a call: of gateways, of Redis


@dataclass(frozen=True, slots=True)
class Point:
    """What was found where there were so many of something."""

    axis: str
    size: int
    figures: Figures
    load: float = field(default_factory=lambda: os.getloadavg()[0])


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure: sizes by axis, calls of a window, how long nobody calls, entries that wait."""

    sizes: Mapping[str, Sequence[int]]
    calls: int = CALLS
    idle_s: float = IDLE_S
    entries: int = sharing.ENTRIES
    minutes: float = MINUTES


class Bench:
    """What all axes share, and what is made for one of them."""

    def __init__(self, folder: Path, database: str, wish: Wish, say: Say) -> None:
        self.wish, self._say, self._began = wish, say, time.monotonic()
        self._folder, self._database, self._made, self._answered = folder, database, 0, 0

    def begin(self, what: str) -> None:
        """Say what is measured next; `BenchError` where there is no time for it."""
        if time.monotonic() - self._began > 60 * self.wish.minutes:
            raise BenchError(f"no time is left for {what}")
        self._say(what)

    @contextmanager
    def filled(self) -> Iterator[tuple[Path, Filled]]:
        """A folder, and a database with nobody in it, as long as they are used."""
        self._made += 1
        folder = self._folder / str(self._made)
        folder.mkdir()
        filled = Filled(self._database, f"scale{self._made}")
        filled.make("postgres")
        try:
            yield folder, filled
        finally:
            with suppress(psycopg.OperationalError):  # who ends us may have ended its server too
                filled.drop()

    @contextmanager
    def deployed(self, shards: int = 1) -> Iterator[Deployment]:
        """A deployment that nobody is in; when it is left each call must have its row."""
        self._answered = 0
        with self.filled() as (folder, filled), closing(Outside()) as self.outside:
            counters = Counters(folder / "counters", shards)
            deployment = Deployment(folder, filled, counters, self.outside.port)
            try:
                counters.start()
                yield deployment
                self._check(deployment)
            finally:
                deployment.stop()
                counters.stop()

    def until_served(self, deployment: Deployment) -> float:
        """Wait until every gateway serves; seconds."""
        ports = [one.port for one in deployment.gateways]
        return until(lambda: all(self._one(port) for port in ports), "calls are served")

    def _one(self, port: int) -> bool:
        served = self.outside.call([port], 0, 1, 1, 0) == 1
        self._answered += served
        return served

    def costs(self, deployment: Deployment, of_keys: int, users: int = 0, calls: int = 0) -> Figures:
        """CPU of a call, and of a caller's first one where there are enough of them."""
        callers, calls = users or of_keys, max(self.wish.calls, calls)
        is_new = callers >= (1 + WINDOWS) * calls
        first: list[Cost] = []
        again: list[Cost] = []

        def window(number: int, count: int = calls) -> list[Cost]:
            return self._window(deployment, number * calls, count, of_keys, users)

        window(WINDOWS, calls if is_new else max(calls, callers))  # to warm up
        for number in range(WINDOWS):
            first += window(number) if is_new else []
            again += window(number)
        if not again or (is_new and not first):
            raise BenchError("in no window every call was served")
        return {
            f"{one} µs a{what} call": min(each[place] for each in windows)
            for what, windows in (("", again), (" first", first))
            for place, one in enumerate(("gateway", "Redis"))
            if windows
        }

    def _window(self, deployment: Deployment, begin: int, calls: int, of_keys: int, users: int) -> list[Cost]:
        """What each of these calls costs, with keepers frozen; none where one of them was not served."""
        deployment.freeze()
        before = deployment.cpu_s(deployment.gateways), cpu_s(deployment.counters.pids())
        served = self.outside.call([one.port for one in deployment.gateways], begin, calls, of_keys, users)
        after = deployment.cpu_s(deployment.gateways), cpu_s(deployment.counters.pids())
        deployment.thaw()
        self._answered += served
        deployment.drain()
        if served < calls:
            self._say(f"{calls - served} of {calls} calls were not served: {self.outside.others}")
            return []
        return [(1e6 * (after[0] - before[0]) / calls, 1e6 * (after[1] - before[1]) / calls)]

    def _check(self, deployment: Deployment) -> None:
        deployment.drain()
        rows = deployment.filled.rows()
        if rows != self._answered:
            raise BenchError(f"{self._answered} calls were answered, {rows} are in the ledger")


def grown(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """More tenants (a key each), keys of one tenant, or users of one key."""
    with bench.deployed() as deployment:
        for size in sizes:
            bench.begin(f"{axis} {size:,}")
            tenants, users = (size if axis == "tenants" else 1), (size if axis == "users" else 0)
            of_keys = 1 if axis == "users" else size
            deployment.filled.grow(tenants, of_keys, users)
            deployment.counters.empty()
            times = _started(bench, deployment)
            cost = bench.costs(deployment, of_keys, users)
            memory = {
                "worker MiB": deployment.memory_mib(deployment.gateways),
                "keeper MiB": deployment.memory_mib(deployment.keepers),
                "Redis MiB": deployment.counters.summed("used_memory") / 2**20,
            }
            deployment.remove(deployment.gateways)
            yield Point(axis, size, {**cost, **memory, **times, **_restarted(deployment)})


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
        bench.begin(f"{axis} {size}")
        with bench.deployed(size) as deployment:
            deployment.filled.grow(CALLERS, CALLERS, 0)
            times = _started(bench, deployment)
            cost = bench.costs(deployment, CALLERS)
            busiest = cost["Redis µs a call"] / size
            yield Point(axis, size, {**cost, "Redis µs a call and primary": busiest, **times})


def keepers(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """So many keepers that share what waits, with a slow way to PostgreSQL; medians of rounds in turns."""
    with bench.filled() as (folder, filled):
        rounds = sharing.in_turn(folder, filled.url, sharing.Sizes(sizes, bench.wish.entries), bench.begin)
    for size in sizes:
        middle = {name: statistics.median(one[name] for one in rounds[size]) for name in rounds[size][0]}
        times = statistics.median(sharing.ratios(rounds[size], rounds[sizes[0]]))
        yield Point(axis, size, {
            "rows a second": middle["rate"],
            f"times as many as {sizes[0]}": times,
            "read an entry": middle["read"],
            "keepers µs a row": middle["keepers_us"],
            "PostgreSQL µs a row": middle["postgres_us"],
        })  # fmt: skip


def gateways(bench: Bench, axis: str, sizes: Sequence[int]) -> Iterator[Point]:
    """So many gateways of one worker, idle and then busy together."""
    with bench.deployed() as deployment:
        deployment.filled.grow(CALLERS, CALLERS, 0)
        deployment.add_keeper()
        deployment.until_whole()
        for size in sizes:
            bench.begin(f"{axis} {size}")
            while len(deployment.gateways) < size:
                for _ in range(min(STARTED_AT_ONCE, size - len(deployment.gateways))):
                    deployment.add_gateway()
                bench.until_served(deployment)
            idle = _idle(deployment, bench.wish.idle_s)
            cost = bench.costs(deployment, CALLERS, calls=CALLS_A_GATEWAY * size)
            yield Point(axis, size, {
                "idle: commands/s a worker": idle["commands"] / size,
                "idle: Redis core %": 100 * idle["Redis"],
                "idle: a worker's core %": 100 * idle["gateways"] / size,
                **cost,
                "worker MiB": deployment.memory_mib(deployment.gateways),
            })  # fmt: skip


def _idle(deployment: Deployment, idle_s: float) -> Figures:
    """What gateways do, and have Redis do, each second where nobody calls; keepers are frozen."""
    deployment.drain()
    deployment.freeze()
    time.sleep(SETTLED_S)
    counters = deployment.counters
    before = (
        counters.summed("total_commands_processed"),
        cpu_s(counters.pids()),
        deployment.cpu_s(deployment.gateways),
    )
    began = time.monotonic()
    time.sleep(idle_s)
    seconds = time.monotonic() - began
    found = {
        "commands": (counters.summed("total_commands_processed") - before[0]) / seconds,
        "Redis": (cpu_s(counters.pids()) - before[1]) / seconds,
        "gateways": (deployment.cpu_s(deployment.gateways) - before[2]) / seconds,
    }
    deployment.thaw()
    return found


Axis = Callable[[Bench, str, Sequence[int]], Iterator[Point]]
Found = tuple[list[Point], BaseException | None]
AXES: dict[str, Axis] = {
    "tenants": grown, "keys": grown, "users": grown,
    "shards": shards, "keepers": keepers, "gateways": gateways,
}  # fmt: skip


def measure(wish: Wish, say: Say, axes: Mapping[str, Axis] = AXES) -> Iterator[Found]:
    """Each axis: what was found, and what cut it short. Who interrupts is obeyed once that was told."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-scale-") as folder, postgres() as url:
        migrate.upgrade(url)
        bench = Bench(Path(folder), url, wish, say)
        for axis, sizes in wish.sizes.items():
            points: list[Point] = []
            why: BaseException | None = None
            try:
                points.extend(axes[axis](bench, axis, sizes))
            except BaseException as error:  # noqa: BLE001  # one axis keeps no other from being measured
                why = error
            yield points, why
            if why is not None and not isinstance(why, Exception):
                raise why


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent by which the second grows with the first, by least squares of the logarithms."""
    some = [(math.log(one), math.log(other)) for one, other in points if one > 0 and other > 0]
    if len(some) < 2:
        return None
    mean_x, mean_y = (sum(each) / len(some) for each in zip(*some, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in some)
    return sum((x - mean_x) * (y - mean_y) for x, y in some) / spread if spread else None


def table(points: Sequence[Point]) -> str:
    """One axis as Markdown: a line a figure, a column a size, and the slope; last the load of the machine."""
    axis, sizes = points[0].axis, [point.size for point in points]
    lines = [f"| {axis} | " + " | ".join(f"{size:,}" for size in sizes) + " | slope |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 1))
    for name in dict.fromkeys(name for point in reversed(points) for name in point.figures):
        values = [point.figures.get(name) for point in points]
        found = slope([(size, value) for size, value in zip(sizes, values, strict=True) if value is not None])
        steep = "–" if found is None else f"{found:.2f}"
        lines.append(f"| {name} | " + " | ".join(map(_short, values)) + f" | {steep} |")
    lines.append("| load of the machine | " + " | ".join(f"{point.load:.1f}" for point in points) + " | |")
    return "\n".join(lines)


def merged(there: str, new: Mapping[str, str]) -> str:
    """The tables of a page with these in the place of what it had of their axes."""
    tables = {one.split(" | ")[0].lstrip("| "): one for one in there.strip().split("\n\n")} | dict(new)
    return "\n\n".join(tables[axis] for axis in AXES if axis in tables)


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _end(*_: object) -> None:
    """End all that runs in order, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(prog="bench-scale", description=__doc__)
    parser.add_argument("--axes", default=",".join(AXES), help="names, separated by commas")
    parser.add_argument("--most", type=int, default=max(map(max, SIZES.values())), help="the largest size")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of a window")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no size is begun")
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    options = parser.parse_args()
    axes = options.axes.split(",")
    if unknown := [one for one in axes if one not in AXES]:
        parser.error(f"no such axis: {', '.join(unknown)}")
    sizes = {axis: [size for size in SIZES[axis] if size <= options.most] for axis in axes}
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    left = list(axes)
    wish = Wish(sizes, options.calls, minutes=options.minutes)
    try:
        for axis, (points, why) in zip(axes, measure(wish, say), strict=True):
            if why is None:
                left.remove(axis)
            else:
                say(f"{axis} was cut short: {why!r}")
            if len(points) > 1 or (points and why is None):
                print(table(points) + "\n", flush=True)
                if options.page:
                    found = block("scale").search(options.page.read_text(encoding="utf-8"))
                    there = found.group() if found else ""
                    publish(options.page, "scale", merged(there, {axis: table(points)}))
    finally:
        say(f"what is left: --axes {','.join(left)}" if left else "all is measured")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
