"""What a process says of its loop and of the disk below it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from gateway.run.health import (
    FREE_BYTES_MIN,
    LOOK_S,
    DiskWatch,
    ProcessVitals,
    disks,
    full_disks,
    has_files_left,
)
from gateway.settings.settings import Settings
from gateway.telemetry import metrics as tallies
from tests.waiting import eventually


async def test_a_loop_that_is_held_up_turned_late() -> None:
    lag = ProcessVitals("gateway")
    looking = asyncio.create_task(lag.keep_looking())
    await eventually(lambda: sum(lag.seconds.counts))
    before = lag.seconds.total
    until = time.monotonic() + LOOK_S * 3
    while time.monotonic() < until:  # work that holds a loop up
        pass
    await eventually(lambda: lag.seconds.total - before >= LOOK_S)
    looking.cancel()
    said = lag.snapshot()
    assert said["loop_lag_seconds"] == {"gateway": lag.seconds.snapshot()}


async def test_open_files_are_counted_again_and_a_process_that_has_hardly_any_left_is_told() -> None:
    vitals = ProcessVitals("gateway")
    before = vitals.files
    assert 0 < before < vitals.files_max
    looking = asyncio.create_task(vitals.keep_looking())
    with ExitStack() as opened:
        for _ in range(50):
            opened.enter_context(tempfile.TemporaryFile())
        await eventually(lambda: vitals.files >= before + 50)
    looking.cancel()
    assert has_files_left(vitals.snapshot())
    vitals.files = vitals.files_max
    assert not has_files_left(vitals.snapshot())
    keeper = ProcessVitals("keeper")
    assert not has_files_left(tallies.merge(vitals.snapshot(), keeper.snapshot()))


def test_of_several_workers_the_fullest_counts() -> None:
    one = {"open_files": [["gateway", 7]], "open_files_max": [["gateway", 256]]}
    other = {"open_files": [["gateway", 250]], "open_files_max": [["gateway", 1024]]}
    assert tallies.merge(one, other) == {
        "open_files": [["gateway", 250]], "open_files_max": [["gateway", 256]],
    }  # fmt: skip


def test_disks_are_told_by_what_they_are_for_also_before_their_directory_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "not" / "yet"))
    found = disks(settings)
    size = shutil.disk_usage(tmp_path).total
    assert found["disk_size_bytes"] == [("data", size), ("settlements", size)]
    assert isinstance(found["disk_free_bytes"], list)
    assert [name for name, free in found["disk_free_bytes"] if 0 <= free <= size] == ["data", "settlements"]


async def test_a_disk_that_fills_up_and_is_cleared_is_told_once_each(tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []
    watch = DiskWatch(
        Settings(data_dir=str(tmp_path)), lambda event, **more: said.append((event, more["place"]))
    )
    full, room = shutil.disk_usage(tmp_path).total + 1, 0

    async def looked(free_bytes_min: int) -> None:
        looking = asyncio.create_task(watch.keep_looking(look_s=0, free_bytes_min=free_bytes_min))
        await eventually(lambda: bool(watch.full) == bool(free_bytes_min))
        looking.cancel()

    for wanted in (room, full, full, room, full):
        await looked(wanted)
    place = str(tmp_path)
    assert said == [("disk is full", place), ("disk has room again", place), ("disk is full", place)]


async def test_of_two_disks_each_change_is_told(tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []
    found: tuple[str, ...] = ()
    watch = DiskWatch(
        Settings(data_dir=str(tmp_path)),
        lambda event, **more: said.append((event, more["place"])),
        lambda *_: found,
    )
    looking = asyncio.create_task(watch.keep_looking(look_s=0))
    try:
        for found in (("/data",), ("/data", "/settlements"), ("/settlements",), ()):
            await eventually(lambda now=found: watch.full == now)
    finally:
        looking.cancel()
    full, room = "disk is full", "disk has room again"
    assert said == [(full, "/data"), (full, "/settlements"), (room, "/data"), (room, "/settlements")]


def test_a_disk_with_less_room_than_is_wanted_is_full(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    total = shutil.disk_usage(tmp_path).total
    assert full_disks(settings, total + 1) == (str(tmp_path),), "one disk is told once"
    if shutil.disk_usage(tmp_path).free > 2 * FREE_BYTES_MIN:
        assert full_disks(settings) == ()
