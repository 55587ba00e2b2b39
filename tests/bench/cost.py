"""What a call costs, in instructions: `python -m tests.bench.cost [--scene NAME] [--write]`.

A worker with the compiled hot path answers one call after the other, and callgrind counts what it does because a
socket is ready (`instructions.BY_SOCKETS`): no timer, no idle work, no load of other programs is in that. Then
Valkey's instructions for a pair of reserve and settle are counted, as `tests.bench.scripts` does. `costs.json` has
the number of each scene and its conditions; what is more than a hundredth above its number fails. `--write` writes
the numbers, of these scenes alone where any is named. A commit that raises a number says why, and what pays for it.

What would differ from run to run is fixed: the interpreter, its hash seed and where memory lies; garbage is not
collected. A call begins when its predecessor is settled and the worker sleeps,
so no two calls share a read or a write.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests.bench import instructions, scripts
from tests.bench import stage as staging
from tests.bench.load import ask_on
from tests.bench.machine import BenchError, check_running, stop
from tests.bench.scenes import HOT, Scene
from tests.bench.stage import Contender, Stage
from tests.bench.tollkeeper import compile_hot_path, tollkeeper
from tests.conftest import valkey_binary

COSTS = Path(__file__).with_name("costs.json")
# The most that a scene may cost, of its number.
RATIO_MAX = 1.01
CALLS = (
    "ledger", "limits", "money", "users", "groups", "rolling", "steps", "substituted", "stream", "10kB", "60kB",
)  # fmt: skip
PAIRS = {
    f"{kind}, {size} a write": (size, 1, kind) for size in (1, 16) for kind in ("ledger", "limits", "money")
}
# Calls before, and in each turn, of which the median counts: a gateway draws conclusions from the last 64 calls.
WARM, COUNTED, TURNS = 96, 64, 3
# Calls before the first scene.
BEGUN = 256
PAIR_RUNS = 5
# A worker that is counted on a busy machine answers late.
ANSWER_S_MAX = 120.0
# So often in a row a worker is seen asleep before it counts as done.
ASLEEP, LOOK_S = 3, 0.001


class FixedServer(scripts.CountedServer):
    """A Valkey of which counts what it does because commands came: its tasks by the clock are left out."""

    counted_by = instructions.fixed("readQueryFromClient", "beforeSleep")


def main() -> int:
    """Count, print each scene beside its number; 1 where one costs more than it may."""
    parser = staging.parser("cost", __doc__)
    parser.add_argument(
        "--scene", choices=(*CALLS, *PAIRS), dest="scenes", action="append", help="this scene only"
    )
    parser.add_argument("--write", action="store_true", help=f"write the numbers to {COSTS.name}")
    parser.add_argument("--keep", type=Path, help="a folder for callgrind's own files, for its other readers")
    options = parser.parse_args()
    wanted = options.scenes or [*CALLS, *PAIRS]
    found = counted(wanted, options.compiled, options.keep)
    known = json.loads(COSTS.read_text(encoding="utf-8"))
    print(as_table(found, known["instructions"]))
    if options.write:
        known["instructions"] |= found
        known["conditions"] = conditions() | {"commit": _said_by("git", "rev-parse", "--short=9", "HEAD")}
        COSTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        return 0
    if known["conditions"] | conditions() != known["conditions"]:
        staging.say(f"the numbers have other conditions than these: {conditions()}")
    return int(bool(dearer(found, known["instructions"])))


def counted(wanted: Sequence[str], compiled: Path | None = None, keep: Path | None = None) -> dict[str, int]:
    """Return the instructions of each of these scenes; `BenchError` where they cannot be counted."""
    found: dict[str, int] = {}
    calls = [name for name in wanted if name in CALLS]
    if calls:
        compiled = compiled or compile_hot_path(Path.cwd(), staging.say)
        if compiled is None:
            raise BenchError("the hot path is not compiled")
        if staging.on_stage("cost", lambda stage: found.update(_of_calls(stage, calls, keep)), compiled):
            raise BenchError("a call could not be counted")
    pairs = [name for name in wanted if name in PAIRS]
    if pairs:
        found.update(_of_pairs(pairs))
    return found


def dearer(found: dict[str, int], numbers: dict[str, int]) -> list[str]:
    """Return the scenes that cost more than their numbers let them, or that have none."""
    return [name for name, count in found.items() if count > RATIO_MAX * numbers.get(name, 0)]


def as_table(found: dict[str, int], numbers: dict[str, int]) -> str:
    """Return a line for each scene."""
    lines = [f"{'instructions a call, or a pair':32}{'counted':>12}{'number':>12}"]
    for name, count in found.items():
        number = numbers.get(name, 0)
        lines.append(
            f"{name:32}{count:12,}{number:12,}  {f'{count / number:.4f} ×' if number else ''}".rstrip()
        )
    return "\n".join(lines)


def conditions() -> dict[str, str]:
    """Return what the numbers hold for besides the tree."""
    return {
        "python": f"{platform.python_version()}, {platform.python_compiler()}",
        "compiler": _said_by("gcc", "-dumpfullversion"),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "valkey": _said_by(str(valkey_binary()), "--version").split()[2].removeprefix("v="),
    }


def _said_by(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _of_calls(stage: Stage, names: Sequence[str], keep: Path | None) -> Iterator[tuple[str, int]]:
    inside = instructions.inside(str(stage.folder), instructions.fixed(*instructions.BY_SOCKETS))
    (stage.folder / "sitecustomize.py").write_text(inside, encoding="utf-8")
    os.environ["PYTHONPATH"], stage.python = str(stage.folder), sys.executable
    one = tollkeeper(stage, [HOT[name] for name in names], twice=False)
    worker = one.gateway[0]
    os.kill(stage.programs[-1].pid, signal.SIGSTOP)  # it asks its worker for metrics, by a socket
    try:
        for name in names:
            scene = HOT[name]
            with socket.create_connection(("127.0.0.1", one.port), ANSWER_S_MAX) as connection:
                instructions.begin(worker)
                if name == names[0]:
                    os.kill(worker, signal.SIGUSR1)
                    _call(one, connection, scene, BEGUN)  # meanwhile timers run that were set before
                _call(one, connection, scene, WARM)
                instructions.written(worker, stage.folder)
                totals = []
                for _ in range(TURNS):
                    _call(one, connection, scene, COUNTED)
                    totals.append(instructions.written(worker, stage.folder))
                instructions.end(worker)
            counts = sorted((instructions.total(file), file) for file in totals)
            usual, file = counts[TURNS // 2]
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / f"callgrind.out.{name}").write_bytes(file.read_bytes())
            staging.say(f"{name}: {[count // COUNTED for count, _ in counts]}")
            yield name, round(usual / COUNTED / (scene.events or 1))
    finally:
        stop(stage.programs.pop(), ANSWER_S_MAX)  # a counted worker ends late


def _call(one: Contender, connection: socket.socket, scene: Scene, calls: int) -> None:
    """Call, each time until the call is settled and the worker sleeps."""
    traffic = one.traffic(scene)
    for number in range(calls):
        settled = _settled(one)
        status, body = ask_on(connection, traffic, number)
        if status != 200:
            raise BenchError(f"{scene.name}: status {status}: {body[:200]!r}")
        deadline, asleep = time.monotonic() + ANSWER_S_MAX, 0
        while asleep < ASLEEP:
            check_running(one.gateway)
            if time.monotonic() > deadline:
                raise BenchError(f"{scene.name}: a call does not settle")
            time.sleep(LOOK_S)
            asleep = asleep + 1 if _sleeps(one.gateway[0]) and _settled(one) > settled else 0


def _settled(one: Contender) -> int:
    assert one.counters is not None
    with one.counters.pipeline(transaction=False) as pipeline:
        for partition in range(PARTITIONS):
            pipeline.xlen(keys.outbox(partition))
        return sum(pipeline.execute())


def _sleeps(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return stat.rsplit(")", 1)[1].split()[0] == "S"


def _of_pairs(names: Sequence[str]) -> dict[str, int]:
    with scripts.served(kind=FixedServer) as (url, server), scripts.watched(f"{url}0"):
        side = scripts.Side("this tree", Path.cwd(), f"{url}1")
        try:
            found = {}
            for name in names:
                runs: list[Any] = scripts.count([side], PAIRS[name], server, PAIR_RUNS)[side.name]
                staging.say(f"{name}: {runs}")
                found[name] = round(median(runs))
            return found
        finally:
            side.close()


if __name__ == "__main__":
    sys.exit(main())
