"""What reserve + settle cost the Redis core: CPU microseconds a call, by how many leave in one write.

`python -m tests.bench.scripts [--against TREE] [--loopback] [--runs N] [--instructions] [--scene NAME]`. A
server of its own, append-only file on and reached by a socket, as shipped; key, user, tenant and organization
limits, a token quota and a ledger entry a call (`limits`); the same without limits (`ledger`), with credits, with
units by tiers under a cap, and with budgets: `money` has four, of the organization, a tenant, a key and each user;
`owners` has the first three; `steps` has `money` with steps that match and are not reached. `users` has 32 users of
each organization. `users in turn` has each write call for the next organizations. Another tree (a folder or a git
revision) makes its own accounts and commands, in a database of the same server, and takes turns with this tree
within every run: what slows the machine for a moment slows both alike. Least and median over the runs, and the
ratio of the least; `empty` is a script that does nothing, for each call.

With `--instructions` callgrind counts what the server does for a pair, with a gateway's prefixes watched: that is
the same on a busy machine. First come the bytes of one call's accounts and hold. Then each scene, the median of the
runs in turn and its ratio to this tree's; this tree is there twice, so that its own ratio says how exact the
others are. docs/internals/figures.md has these counts at 6bcca754.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import redis

from gateway.counters.admission.key_changes import HEARD
from gateway.counters.redis import keys
from gateway.local.embedded.valkey import environment
from tests.bench import commands, instructions
from tests.conftest import ValkeyServer

# Calls a write, of how many organizations, of which scene.
CASES = (
    (1, 1, "limits"), (4, 1, "limits"), (16, 1, "limits"), (50, 1, "limits"),
    (4, 64, "limits"), (16, 64, "limits"), (64, 64, "limits"),
    (16, 1, "credits"), (16, 1, "tiers"),
    (4, 1, "one window"), (4, 1, "eight windows"), (4, 1, "four accounts"),
    (16, 1, "one window"), (16, 1, "eight windows"), (16, 1, "four accounts"),
    (16, 1, "two windows"), (16, 1, "eight accounts"),
    (4, 1, "money"), (16, 1, "money"), (64, 64, "money"),
    (16, 1, "rolling"), (16, 1, "first use"),
)  # fmt: skip
CALLS_A_RUN = 800
# The cases whose instructions are counted. To define 10,000 organizations takes two minutes a side.
COUNTED = (
    (1, 1, "ledger"), (1, 1, "limits"), (1, 1, "money"),
    (16, 1, "ledger"), (16, 1, "limits"), (16, 1, "money"), (16, 1, "owners"), (16, 1, "steps"), (16, 1, "rolling"),
    (16, 64, "users"), (16, 64, "users, owners"), (16, 64, "users, money"), (16, 10_000, "users in turn"),
)  # fmt: skip
RUNS, COUNTED_RUNS = 15, 5
# Counted are so many writes, and no more calls than in a run; before them so many calls warm up.
COUNTED_WRITES, WARM_CALLS = 200, 160
# A server that is counted on a busy machine answers late.
ANSWER_S_MAX = 120
# The scenes of whose call the bytes are said, and the accounts and holds in keys.
STORED = "limits", "money"
STORED_LETTERS = "kutohb"
DONE = (struct.pack("<d", 1), struct.pack("<q", 1))
EMPTY = "#!lua name=empty\nredis.register_function('empty', function() return 1 end)"


@dataclass(slots=True)
class Cost:
    """One side's runs: CPU and script time a pair, in microseconds."""

    cpu_us: list[float] = field(default_factory=list)
    script_us: list[float] = field(default_factory=list)


class Side:
    """A tree whose commands are measured, in a database of its own."""

    def __init__(self, name: str, tree: Path, url: str) -> None:
        self.name = name
        self.client = redis.Redis.from_url(url)
        self._process = subprocess.Popen(
            [sys.executable, "-c", Path(commands.__file__).read_text(), url],
            cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def writes(
        self, organizations: int, size: int, kind: str, calls: int = CALLS_A_RUN
    ) -> list[tuple[list[Any], list[Any]]]:
        """The writes of one run, made before its clock starts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((organizations, size, calls // size, kind), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)  # type: ignore[no-any-return]  # our child's

    def clear(self) -> None:
        """Empty the outboxes."""
        for p in range(64):
            self.client.delete(keys.outbox(p))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self.client.close()


class Empty(Side):
    """Two scripts a call that do nothing: what calling any script costs."""

    def __init__(self, url: str) -> None:
        self.name, self.client = "empty", redis.Redis.from_url(url)
        self.client.function_load(EMPTY)

    def writes(
        self, organizations: int, size: int, kind: str, calls: int = CALLS_A_RUN
    ) -> list[tuple[list[Any], list[Any]]]:
        one = [("FCALL", "empty", 0)] * size
        return [(one, one)] * (calls // size)

    def close(self) -> None:
        self.client.close()


def measure(sides: list[Side], case: tuple[int, int, str], runs: int) -> dict[str, Cost]:
    """Take turns `runs` times; the first turn warms up and is not counted."""
    size, organizations, kind = case
    costs = {side.name: Cost() for side in sides}
    for run in range(runs + 1):
        for side in sides:
            made = side.writes(organizations, size, kind)
            cpu, script = _spent(side.client)
            for first, second in made:
                _send(side.client, first)
                _send(side.client, second)
            cpu_after, script_after = _spent(side.client)
            if run and made:
                calls = len(made) * size
                costs[side.name].cpu_us.append((cpu_after - cpu) / calls)
                costs[side.name].script_us.append((script_after - script) / calls)
            side.clear()
    return costs


def count(
    sides: list[Side], case: tuple[int, int, str], server: ValkeyServer, runs: int
) -> dict[str, list[float]]:
    """Return the instructions of the server for a pair in each run, by side; they take turns.

    A run before each that counts warms up; before the first, each organization calls.
    """
    size, organizations, kind = case
    assert server.process is not None
    pid, counts = server.process.pid, {side.name: list[float]() for side in sides}
    counted = min(CALLS_A_RUN, COUNTED_WRITES * size)
    for run in range(runs):
        for side in sides:
            warm = WARM_CALLS if run else max(CALLS_A_RUN, organizations)
            for calls, counts_now in ((warm, False), (counted, True)):
                writes = side.writes(organizations, size, kind, calls)
                if counts_now:
                    instructions.begin(pid)
                for first, second in writes:
                    _send(side.client, first)
                    _send(side.client, second)
                side.clear()
            total = instructions.taken(pid, server.folder)
            counts[side.name] += [total / (len(writes) * size)] if writes else []
    return counts


def stored(side: Side, kind: str) -> dict[str, int]:
    """Return the bytes of the accounts and the hold of one call in flight, by the letters of their keys."""
    reserves, settles = side.writes(1, 1, kind, 1)[0]
    _send(side.client, reserves)
    sizes = dict.fromkeys(STORED_LETTERS, 0)
    for name in cast("list[bytes]", side.client.keys("tk:{*}:?:*")):
        letter = name.decode().split(":")[2]
        if letter in sizes:
            sizes[letter] += cast("int", side.client.strlen(name))
    _send(side.client, settles)
    return sizes


class CountedServer(ValkeyServer):
    """A server whose instructions callgrind counts."""

    counted_by = instructions.VALGRIND

    def program(self) -> tuple[str, ...]:
        out = f"--callgrind-out-file={self.folder}/callgrind.out"
        return *self.counted_by, out, *super().program()


@contextmanager
def watched(url: str) -> Iterator[None]:
    """Have the server tell a client of changed keys, as it tells a gateway."""
    with redis.Redis.from_url(url, protocol=3) as client:
        wanted = [part for prefix in HEARD for part in (b"PREFIX", prefix)]
        client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", *wanted)  # type: ignore[no-untyped-call]  # the same
        yield


def _send(client: redis.Redis, sent: list[Any]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in sent:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py
        for answer in pipeline.execute():
            answers = answer if isinstance(answer, list) else [answer]
            assert all(one == 1 or one[:8] in DONE for one in answers), answers


def _spent(client: redis.Redis) -> tuple[float, float]:
    """CPU and script microseconds of the server so far."""
    cpu = client.info("cpu")
    stats = client.info("commandstats")
    return (
        1e6 * (float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])),
        float(stats.get("cmdstat_fcall", {}).get("usec", 0)),
    )


@contextmanager
def served(
    *, loopback: bool = False, kind: type[ValkeyServer] = ValkeyServer
) -> Iterator[tuple[str, ValkeyServer]]:
    """A server as shipped, by its socket unless `loopback`: its address, to which a database is added."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/valkey.sock"
        server = kind(Path(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--unixsocket", path)
        server.environment = environment()
        server.start()
        try:
            by_socket = f"unix://{path}?socket_timeout={ANSWER_S_MAX}&db="
            yield (f"redis://127.0.0.1:{server.port}/" if loopback else by_socket), server
        finally:
            server.stop()


@contextmanager
def tree_at(place: str) -> Iterator[Path]:
    """The tree in a folder, or of a git revision."""
    if Path(place).is_dir():
        yield Path(place).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", place], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def as_row(case: tuple[int, int, str], costs: dict[str, Cost], against: list[str]) -> str:
    """One line of the table."""
    size, organizations, kind = case
    cells = [kind, str(size), str(organizations)]
    for cost in costs.values():
        if not cost.cpu_us:
            cells += ["–", "–"]
            continue
        cells += [f"{min(cost.cpu_us):.1f} ({median(cost.cpu_us):.1f})", f"{min(cost.script_us):.1f}"]
    for name in against:
        if not costs[name].cpu_us:
            cells += ["–", "–"]
            continue
        here, there = costs["this tree"], costs[name]
        cells += [
            f"{min(here.cpu_us) / min(there.cpu_us):.2f} ×",
            f"{min(here.script_us) / min(there.script_us):.2f} ×",
        ]
    return "| " + " | ".join(cells) + " |"


def print_counts(
    sides: list[Side], cases: list[tuple[int, int, str]], server: ValkeyServer, runs: int
) -> None:
    """Print the bytes and the instructions of each side."""
    print(f"| bytes of a call in flight | {' | '.join(side.name for side in sides)} |")
    print("|---|" + "---:|" * len(sides))
    for kind in STORED:
        sizes = [stored(side, kind) for side in sides]
        cells = [
            f"{sum(one.values()):,} ("
            + ", ".join(f"{letter} {one[letter]}" for letter in one if one[letter])
            + ")"
            for one in sizes
        ]
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"\n| scene | calls a write | organizations | {' | '.join(side.name for side in sides)} |")
    print("|---|" + "---:|" * (2 + len(sides)))
    for case in cases:
        counts = count(sides, case, server, runs)
        this = median(counts[sides[0].name])
        cells = [
            f"{median(runs_) / 1000:,.1f} = {this / median(runs_):.3f} ×" if runs_ else "–"
            for runs_ in counts.values()
        ]
        print(f"| {case[2]} | {case[0]} | {case[1]} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--against",
        metavar="TREE",
        action="append",
        default=[],
        help="a folder or a git revision takes turns too",
    )
    parser.add_argument("--runs", type=int, help=f"{RUNS}, or {COUNTED_RUNS} of instructions")
    parser.add_argument("--loopback", action="store_true", help="by TCP, as a Redis elsewhere is reached")
    parser.add_argument("--instructions", action="store_true", help="count instructions a pair (callgrind)")
    parser.add_argument("--scene", metavar="NAME", dest="scenes", action="append", help="this scene only")
    options = parser.parse_args()
    cases = [
        case for case in (COUNTED if options.instructions else CASES) if case[2] in (options.scenes or case)
    ]
    with ExitStack() as stack:
        kind = CountedServer if options.instructions else ValkeyServer
        url, server = stack.enter_context(served(loopback=options.loopback, kind=kind))
        sides = [Side("this tree", Path.cwd(), f"{url}1")]
        if options.instructions and options.against:
            sides.append(Side("itself", Path.cwd(), f"{url}2"))
        elif not options.instructions:
            sides.insert(0, Empty(f"{url}0"))
        for at, place in enumerate(options.against):
            sides.append(Side(place, stack.enter_context(tree_at(place)), f"{url}{3 + at}"))
        for side in sides:
            stack.callback(side.close)
        if options.instructions:
            stack.enter_context(watched(f"{url}0"))
            print_counts(sides, cases, server, options.runs or COUNTED_RUNS)
            return
        titles = [f"{side.name}, CPU µs a pair: least (median) | script µs" for side in sides]
        titles += ["CPU | script"] * len(options.against)
        print(f"| kind | calls a write | organizations | {' | '.join(titles)} |")
        print("|---|" + "---:|" * (2 + 2 * len(titles)))
        for case in cases:
            print(as_row(case, measure(sides, case, options.runs or RUNS), options.against), flush=True)


if __name__ == "__main__":
    main()
