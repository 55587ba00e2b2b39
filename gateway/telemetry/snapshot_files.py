"""The numbers of all workers on this machine: left in files, merged, never going back.

Each worker replaces one small file; whoever is scraped adds them up. A worker that has died is
folded into `retired.json`, so that its counts stay counted. A worker is known by process id and
start time, since ids are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import msgspec

from gateway.telemetry.facts import GAUGES, LAST, WAKING

PUBLISH_INTERVAL_S = 1.0
RETIRED = "retired.json"
BESIDE = "-beside"
FILES_MAX = 1_000
# How rows of several are one where they are not added: the earliest, the latest, the worst.
TOGETHER: dict[str, Callable[[Any, Any], Any]] = {
    "certificate_expiry_timestamp_seconds": min, LAST: max, "open_files": max, "open_files_max": min,
    "clock_offset_seconds": partial(max, key=abs),
}  # fmt: skip

Snapshot = Mapping[str, Any]


class LastGrowth:
    """When each counter of `WAKING` last grew in this process, Unix time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._before: dict[str, float] = {}
        self._at: dict[str, float] = dict.fromkeys(WAKING, 0.0)

    def added(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, and when its counters last grew; zero for one that never did."""
        for name in WAKING:
            value = snapshot.get(name, 0)
            total = sum(number for *_, number in value) if isinstance(value, list | tuple) else value
            if total > self._before.get(name, 0):
                self._at[name] = self._clock()
            self._before[name] = total
        return {**snapshot, LAST: [[name, at] for name, at in self._at.items()]}


async def publish(directory: Path, snapshot: Callable[[], Snapshot], *, beside: bool = False) -> None:
    """Leave this process's snapshot every second, and once more when cancelled.

    One `beside` the workers tells of them, and is none of them.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{os.getpid()}-{_started(os.getpid())}{BESIDE if beside else ''}.json"
    growth = LastGrowth()
    try:
        while True:
            with contextlib.suppress(OSError):  # a full disk must not stop the gateway
                _replace(path, msgspec.json.encode(growth.added(snapshot())))
            await asyncio.sleep(PUBLISH_INTERVAL_S)
    finally:
        with contextlib.suppress(OSError):
            _replace(path, msgspec.json.encode(growth.added(snapshot())))


def collect(directory: Path) -> dict[str, Any]:
    """The sum over all workers that ever wrote here; folds the dead ones. Empty if none did."""
    try:
        with _locked(directory):
            return _collected(directory)
    except FileNotFoundError:
        return {}


def merge(left: Snapshot, right: Snapshot) -> dict[str, Any]:
    """Add two snapshots: numbers, rows by their labels, histograms bucket by bucket.

    Histograms whose bounds differ (two versions side by side) cannot be added; the right wins.
    """
    if left.get("bounds", right.get("bounds")) != right.get("bounds", left.get("bounds")):
        left = {name: value for name, value in left.items() if not isinstance(value, dict)}
    return {
        name: _added(name, left[name], right[name])
        if name in left and name in right
        else left.get(name, right.get(name))
        for name in {**left, **right}
    }


def _added(name: str, left: Any, right: Any) -> Any:
    if name == "bounds":
        return right
    if isinstance(left, dict) and isinstance(right, dict):
        return merge(left, right)
    if isinstance(left, list) and isinstance(right, list):
        if all(isinstance(item, int | float) for item in (*left, *right)):
            return [sum(pair) for pair in zip(left, right, strict=True)] if len(left) == len(right) else right
        together = TOGETHER.get(name, add)
        rows: dict[tuple[Any, ...], Any] = {}
        for *labels, number in (*left, *right):
            before = rows.get(tuple(labels))
            rows[tuple(labels)] = number if before is None else together(before, number)
        return [[*labels, number] for labels, number in rows.items()]
    if isinstance(left, list | dict) or isinstance(right, list | dict):
        return right  # another version counted it by other labels
    return left + right


def _collected(directory: Path) -> dict[str, Any]:
    total: dict[str, Any] = {}
    retired = _read(directory / RETIRED) or {}
    folded: list[Path] = []
    oldest, workers = time.time(), 0
    for path in sorted(directory.glob("*-*.json"))[:FILES_MAX]:
        pid, _, started = path.stem.removesuffix(BESIDE).partition("-")
        alive = pid.isdigit() and _started(int(pid)) == started
        found = _read(path)
        if found is None:
            continue
        if alive:
            total = merge(total, found)
            if path.stem.endswith(BESIDE):
                continue
            workers += 1
            with contextlib.suppress(OSError):
                oldest = min(oldest, path.stat().st_mtime)
        else:
            retired = merge(retired, {name: value for name, value in found.items() if name not in GAUGES})
            folded.append(path)
    if folded:
        _replace(directory / RETIRED, msgspec.json.encode(retired))
        for path in folded:
            path.unlink(missing_ok=True)
    if workers:
        # A worker whose loop hangs, or whose disk is full, leaves nothing new.
        total |= {"workers": workers, "worker_report_age_seconds": max(0.0, time.time() - oldest)}
    return merge(retired, total)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _replace(path: Path, content: bytes) -> None:
    """Write a file that nobody sees half written; each has one writer at a time."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _started(pid: int) -> str:
    """When a process started, as an opaque text; empty if there is no such process."""
    try:
        # Field 22 of /proc/PID/stat; the program's name before it may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except (OSError, IndexError):
        if Path("/proc/self").exists():
            return ""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "0"
    except OSError:
        return ""
    return "0"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
