"""What a process says of itself and of the machine below it: how late its loop is, how full its disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.core.histogram import Histogram
from gateway.settings.settings import Settings

LOOK_S = 0.25
DISK_LOOK_S = 5.0
# Below this nothing more can be kept: a settlement log needs room for what it is told while Redis is away.
FREE_BYTES_MIN = 16 * 1024 * 1024


class LoopLag:
    """How much later than wanted the loop turns: what every call that is under way waits."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.seconds = Histogram()

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_S)
            self.seconds.observe(max(0.0, time.monotonic() - before - LOOK_S))

    def snapshot(self) -> dict[str, object]:
        """What metrics say of it."""
        return {"loop_lag_seconds": {self.process: self.seconds.snapshot()}}


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
