"""How many instructions one call takes of a gateway worker, counted by callgrind.

They are the same however busy the machine is, where microseconds are not. What the kernel does for a call
is not among them, nor what the worker does by the clock: that is counted while it is idle, and taken off.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.bench.machine import BenchError

# A worker so counted runs 30 to 50 times slower, and forks nothing.
VALGRIND = (
    "valgrind", "--tool=callgrind", "--instr-atstart=no", "--compress-strings=no", "--compress-pos=no",
)  # fmt: skip
# What runs because a socket is ready: its reader, and what that puts off to the next turn of the loop. Timers
# run elsewhere, but what they put off is in the second, so they are made to wait (`inside`).
BY_SOCKETS = ("uv__stream_io", "uv__run_idle")
TIMERS_S = 36_000
DUMP_S_MAX = 60.0
SOCKETS = "uv__stream_io [loop.cpython-311-x86_64-linux-gnu.so]"  # uvloop's, with all that they call
_LINE = re.compile(r"^\s*([\d,]+) \([^)]*\)\s+(.*)$")
_PLACE = re.compile(r"(?:.*?:)?(?P<name>[^:\[']+)(?:'\d+)? \[(?P<object>[^\]]*)\]$")


def fixed(*names: str) -> tuple[str, ...]:
    """Return the words that have a program lie in memory the same way each time, and count these functions alone."""
    return "setarch", "-R", *VALGRIND, *(f"--toggle-collect={name}" for name in names)


def inside(folder: str, program: tuple[str, ...] = VALGRIND) -> str:
    """What has a worker start itself again under valgrind: a part of a `sitecustomize`.

    From SIGUSR1 on its timers wait for hours, as if calls took no time, and no garbage is collected: that hits
    some calls and not others.
    """
    command = [*program, f"--callgrind-out-file={folder}/callgrind.out"]
    return f"""
import gc, os, signal, sys
if sys.orig_argv[-2:] == ["serve", "--worker"]:
    if "COUNTED" not in os.environ:
        os.environ |= dict(COUNTED="1", PYTHONHASHSEED="0")
        command = {command!r}
        os.execvp(command[0], [*command, sys.executable, *sys.orig_argv[1:]])
    def begin(*_):
        gc.disable()
        if loop := sys.modules.get("gateway.run.coarse_loop"):
            soon = loop.coarse
            loop.coarse = lambda delay, now: soon(delay, now) + {TIMERS_S}
    signal.signal(signal.SIGUSR1, begin)
"""


def begin(pid: int) -> None:
    """Count from here on."""
    _control("--instr=on", pid)


def written(pid: int, folder: Path) -> Path:
    """Where what was counted since is written; count from here on."""
    before = set(folder.glob("callgrind.out.*"))
    _control("--dump", pid)
    deadline = time.monotonic() + DUMP_S_MAX
    while time.monotonic() < deadline:
        new = set(folder.glob("callgrind.out.*")) - before
        if found := [one for one in new if one.stat().st_size]:
            return found[0]
        time.sleep(0.2)
    raise BenchError("callgrind has written nothing")


def taken(pid: int, folder: Path) -> int:
    """Return how many instructions a process took since `begin`, and count no more."""
    found = total(written(pid, folder))
    end(pid)
    return found


def total(found: Path) -> int:
    """Return the instructions in what was written."""
    return int(found.read_text(encoding="utf-8").partition("\ntotals: ")[2].split()[0])


def end(pid: int) -> None:
    """Count no more."""
    _control("--instr=off", pid)


def report(busy: Path, idle: Path, idle_share: float, calls: int, top: int) -> str:
    """What a settled call took: in total, by object file, by function, and by function with all it calls.

    What was counted while the worker was `idle` is not a call's: so many times that is left out.
    """
    own, inclusive = _less(busy, idle, idle_share, "no"), _less(busy, idle, idle_share, "yes")
    by_object: Counter[str] = Counter()
    for name, count in own.items():
        by_object[name.rpartition("[")[2].rstrip("]")] += count
    lines = [
        f"{by_object.total() / calls:,.0f} instructions a call, of {calls} calls that settled",
        f"{inclusive[SOCKETS] / calls:,.0f} of them by sockets: no timer is in these, nor a slow machine",
    ]
    for title, counted in (
        ("by object file", by_object), ("by function", own), ("with all it calls", inclusive),
    ):  # fmt: skip
        lines.append(f"\n{title}")
        lines += [f"{count / calls:12,.0f}  {name}" for name, count in counted.most_common(top)]
    return "\n".join(lines)


def _less(busy: Path, idle: Path, idle_share: float, inclusive: str) -> Counter[str]:
    found, out = _functions(busy, inclusive), _functions(idle, inclusive)
    for name, count in out.items():
        found[name] -= round(count * idle_share)
    return found


def _functions(written: Path, inclusive: str) -> Counter[str]:
    """Instructions by function; of one that calls itself the most at any depth, where all it calls counts."""
    command = ["callgrind_annotate", "--threshold=100", f"--inclusive={inclusive}", str(written)]
    annotated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: Counter[str] = Counter()
    for line in annotated.splitlines():
        counted = _LINE.match(line)
        place = None if counted is None else _PLACE.match(counted[2])
        if counted is None or place is None or place["object"] == "???":
            continue
        name, count = f"{place['name']} [{Path(place['object']).name}]", int(counted[1].replace(",", ""))
        found[name] = max(found[name], count) if inclusive == "yes" else found[name] + count
    return found


def _control(what: str, pid: int) -> None:
    done = subprocess.run(["callgrind_control", what, str(pid)], capture_output=True, text=True, check=False)
    if done.returncode or "OK" not in done.stdout:
        raise BenchError(f"callgrind_control {what}: {(done.stdout + done.stderr).strip()[-300:]}")
