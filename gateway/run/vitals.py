"""What a process says of itself and of the machine below it: its loop, its open files, its disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.core.histogram import Histogram
from gateway.core.http_limits import HttpLimits
from gateway.local import open_files
from gateway.settings.settings import Settings

LOOK_S = 0.25
FILES_LOOK_S = 5.0
# Of the files that a process may have open, what may be: then there is hardly one left.
FILES_SHARE_MAX = 0.9
DISK_LOOK_S = 5.0
# Below this nothing more can be kept: a settlement log needs room for what it is told while Redis is away.
FREE_BYTES_MIN = 16 * 1024 * 1024


class ProcessVitals:
    """How much later than wanted the loop turns, which every call that is under way waits; and open files."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.seconds = Histogram()
        self.files, self.files_max = open_files.count(), open_files.limit()

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        files_at = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            self.seconds.observe(max(0.0, now - before - LOOK_S))
            if now - files_at >= FILES_LOOK_S:
                self.files, files_at = open_files.count(), now

    def snapshot(self) -> dict[str, object]:
        """What metrics say of it."""
        return {
            "loop_lag_seconds": {self.process: self.seconds.snapshot()},
            "open_files": [(self.process, self.files)],
            "open_files_max": [(self.process, self.files_max)],
        }


def has_files_left(snapshot: Mapping[str, Any]) -> bool:
    """Whether, by their numbers, each process can open more files."""
    opened, most = (dict(snapshot.get(name, ())) for name in ("open_files", "open_files_max"))
    return all(count <= FILES_SHARE_MAX * most[name] for name, count in opened.items() if name in most)


def limits_here(settings: Settings, files_max: int | None = None) -> HttpLimits:
    """The limits of a gateway worker as far as this machine lets it open files."""
    return settings.http.within(files_max or open_files.limit(), len(settings.upstreams))


def few_files(settings: Settings, files_max: int | None = None) -> str:
    """In a sentence that a worker takes fewer connections than are set, for want of files; else empty."""
    most = files_max or open_files.limit()
    wanted, here = settings.http.connections_max, limits_here(settings, most).connections_max
    if here == wanted:
        return ""
    said = f"a process may have {most:,} open files, so a gateway worker takes {here:,} connections"
    wished = f"not the {wanted:,} of TOLLKEEPER_CONNECTIONS_MAX"
    return f"{said}, {wished}: raise the limit (ulimit -n, LimitNOFILE=)"


class DiskWatch:
    """Which disks of ours are full, as was seen last: who asks waits for none. Each change is told once.

    `look` is asked, with the bytes that must be free, which directories have hardly any room.
    """

    def __init__(
        self,
        settings: Settings,
        log: Callable[..., None],
        look: Callable[[Settings, int], tuple[str, ...]] | None = None,
    ) -> None:
        self._settings, self._log = settings, log
        self._look = look or full_disks
        # The directories whose disks have hardly any room.
        self.full: tuple[str, ...] = ()

    async def keep_looking(
        self, *, look_s: float = DISK_LOOK_S, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        """Look until cancelled."""
        while True:
            before, now = self.full, await asyncio.to_thread(self._look, self._settings, free_bytes_min)
            self.full = now
            for place in now:
                if place not in before:
                    self._log("disk is full", place=place, free_bytes_min=free_bytes_min, level="error")
            for place in before:
                if place not in now:
                    self._log("disk has room again", place=place)
            await asyncio.sleep(look_s)


def disks(settings: Settings) -> dict[str, object]:
    """How large the disks of our directories are, and what of them is free, as far as that can be told."""
    free: list[tuple[str, int]] = []
    size: list[tuple[str, int]] = []
    for name, place in _places(settings):
        with suppress(OSError):
            usage = shutil.disk_usage(_existing(place))
            free.append((name, usage.free))
            size.append((name, usage.total))
    return {"disk_free_bytes": free, "disk_size_bytes": size}


def full_disks(settings: Settings, free_bytes_min: int = FREE_BYTES_MIN) -> tuple[str, ...]:
    """The directories whose disks have hardly any room, one of each disk."""
    found: dict[int, str] = {}
    for _, place in _places(settings):
        with suppress(OSError):
            there = _existing(place)
            if shutil.disk_usage(there).free < free_bytes_min:
                found.setdefault(there.stat().st_dev, str(place))
    return tuple(found.values())


def _places(settings: Settings) -> tuple[tuple[str, Path], ...]:
    return ("data", Path(settings.data_dir)), ("settlements", settings.settlements_dir)


def _existing(place: Path) -> Path:
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
