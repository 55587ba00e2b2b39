"""The settlement log of a worker: certain once it says so, bounded, and found again after a crash."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.layout import LAYOUT
from gateway.core.wait import in_task
from gateway.counters.settlement_log import log as settlement_log_log
from gateway.counters.settlement_log.log import JOB, SPOOLED, SUFFIX, LogLimits, SettlementLog
from gateway.errors import CountersUnavailable, StartError
from tests.builders import settlement_log
from tests.counters.segments import answered, contents_of
from tests.tree import ROOT
from tests.waiting import WITHIN_S, eventually

ANSWER = b"a" * 24
HANGS_S = 60.0
QUICK = LogLimits(write_s=0.001)
Open = Callable[..., SettlementLog]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Open]:
    logs: list[SettlementLog] = []

    def opened(folder: Path = tmp_path, bounds: LogLimits = QUICK, **more: Any) -> SettlementLog:
        logs.append(settlement_log(folder, bounds=bounds, **more))
        return logs[-1]

    yield opened
    for log in logs:
        await log.close()


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(f"*{SUFFIX}"))]


def waiting(folder: Path) -> int:
    return sum(len(contents_of(data).waiting) for data in contents(folder))


def noted(folder: Path) -> list[bytes]:
    return [record.arguments for data in contents(folder) for record in answered(data)]


def abandon(log: SettlementLog) -> None:
    """What a worker that is killed leaves: its files, unlocked."""
    for one in log.segments:
        one.leave()
    log.segments.clear()


def hang(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[], object]) -> threading.Event:
    """Have the disk take its time for each write; set once it does."""
    writes, begun = os.pwrite, threading.Event()
    monkeypatch.setattr(os, "pwrite", lambda *given: (begun.set(), hangs(), writes(*given))[2])
    return begun


# --- what is kept -----------------------------------------------------------------------


async def test_what_is_spooled_is_on_the_disk_when_it_is_said_so(begin: Open, tmp_path: Path) -> None:
    log = begin()
    waits = [log.spool(b"%d" % one) for one in range(100)]
    assert log.waiting == 100
    for wait in waits:
        await in_task(wait)
    assert (waiting(tmp_path), log.waiting, log.counts.spooled) == (100, 100, 100)
    assert log.woken.is_set()


async def test_who_ends_waits_until_the_counters_have_it_or_there_is_no_more_time(begin: Open) -> None:
    log = begin()
    await in_task(log.spool(b"one"))
    await log.sent(time.monotonic())
    assert log.waiting == 1
    sending = asyncio.create_task(log.sent(time.monotonic() + WITHIN_S))
    await asyncio.sleep(0)
    assert not sending.done()
    (segment,) = [one for one in log.segments if one.waiting]
    log.done(segment, next(iter(segment.waiting)))
    await sending
    assert log.waiting == 0


async def test_jobs_are_kept_apart_from_settlements_and_found_again(begin: Open, tmp_path: Path) -> None:
    log = begin()
    log.take_up(LAYOUT)
    spooled = {b"settlement": SPOOLED, b'{"job": 1}': JOB, b"another": SPOOLED, b'{"job": 2}': JOB}
    await asyncio.gather(*(in_task(log.spool(one, kind)) for one, kind in spooled.items()))
    (own,) = (one for one in log.segments if one.waiting)
    log.done(own, min(own.kinds))
    await eventually(lambda: waiting(tmp_path) == 3)
    abandon(log)
    (found,) = await begin().adopt()
    records = {found.record(one).arguments: found.kinds.get(one, SPOOLED) for one in found.waiting}
    assert records == {one: kind for one, kind in spooled.items() if b"1" not in one}


async def test_many_at_once_cost_one_sync(begin: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begin(bounds=replace(QUICK, spool_s_max=WITHIN_S))
    synced: list[int] = []
    syncs = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(file), syncs(file))[1])
    await asyncio.gather(*(in_task(log.spool(b"one")) for _ in range(1000)))
    assert len(synced) == 1


async def test_what_was_acknowledged_is_written_soon(begin: Open, tmp_path: Path) -> None:
    log = begin()
    log.note(b"one", ANSWER)
    assert noted(tmp_path) == []
    await log.written()
    assert (noted(tmp_path), log.waiting) == ([b"one"], 0)


async def test_what_is_done_is_marked_and_waits_no_more(begin: Open, tmp_path: Path) -> None:
    log = begin()
    for name in (b"one", b"two"):
        await in_task(log.spool(name))
    (file,) = log.segments
    first = next(iter(file.waiting))
    assert file.record(first).arguments == b"one"
    log.done(file, first)
    await eventually(lambda: waiting(tmp_path) == 1)
    assert log.waiting == 1


# --- bounds -----------------------------------------------------------------------------


async def test_acknowledged_records_make_room_the_oldest_first(begin: Open, tmp_path: Path) -> None:
    log = begin(bytes_max=64_000)
    for number in range(200):
        log.note(b"%03d" % number + b"x" * 1000, ANSWER)
        await log.written()
    kept = [int(one[:3]) for one in noted(tmp_path)]
    assert sum(map(len, contents(tmp_path))) <= 64_000
    assert sorted(kept) == list(range(200 - len(kept), 200))
    assert len(kept) > 40


@pytest.mark.parametrize("keep_s", [60.0, 0.0])
async def test_what_is_dropped_before_its_time_is_counted_and_said_once(
    begin: Open, tmp_path: Path, keep_s: float
) -> None:
    """A log that is only as long as it should be drops nothing early."""
    said: list[str] = []
    log = begin(bytes_max=64_000, keep_s=keep_s, say=lambda event, **_: said.append(event))
    for _ in range(200):
        log.note(b"x" * 1000, ANSWER)
        await log.written()
    dropped = 200 - len(noted(tmp_path))
    assert dropped > 100
    assert log.counts.dropped_early == (dropped if keep_s else 0)
    assert len(said) == (1 if keep_s else 0)


async def test_spooled_records_are_never_dropped_and_full_is_said(begin: Open, tmp_path: Path) -> None:
    said: list[str] = []
    log = begin(bytes_max=20_000, say=lambda event, **_: said.append(event))
    taken = 0
    with suppress(CountersUnavailable):
        while True:
            await in_task(log.spool(b"x" * 1000))
            taken += 1
    assert 15 <= taken < 20
    log.note(b"y" * 1000, ANSWER)
    await log.written()
    with pytest.raises(CountersUnavailable):
        await in_task(log.spool(b"x" * 1000))
    assert (waiting(tmp_path), log.counts.refused, log.counts.unlogged) == (taken, 2, 1)
    assert len(said) == 1
    for file in list(log.segments):
        for offset in list(file.waiting):
            log.done(file, offset)
    await in_task(log.spool(b"x" * 1000))
    assert log.waiting == 1


async def test_a_spool_takes_the_room_of_what_was_only_noted(begin: Open, tmp_path: Path) -> None:
    log = begin(bytes_max=20_000)
    for _ in range(15):
        log.note(b"x" * 1000, ANSWER)
        await log.written()
    for _ in range(15):
        await in_task(log.spool(b"y" * 1000))
    assert waiting(tmp_path) == 15


async def test_more_notes_than_are_kept_in_memory_are_counted(begin: Open) -> None:
    log = begin(bounds=replace(QUICK, notes_max=2))
    for _ in range(3):
        log.note(b"one", ANSWER)
    assert log.counts.unlogged == 1


async def test_old_acknowledged_records_expire_where_the_counters_are_known_to_have_them(
    begin: Open, tmp_path: Path
) -> None:
    now = [0.0]
    log = begin(keep_s=60.0, clock=lambda: now[0])
    log.note(b"one", ANSWER)
    await in_task(log.spool(b"two"))
    log.rotate()
    log.note(b"three", ANSWER)
    await log.written()
    now[0] += 61.0
    log.expire(0.0)
    assert (noted(tmp_path), waiting(tmp_path)) == ([b"one"], 1)


# --- disks that fail --------------------------------------------------------------------


async def test_a_disk_that_fails_refuses_and_the_next_record_begins_a_file(
    begin: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    log = begin(say=lambda event, **facts: said.append({"event": event, **facts}))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        log.note(b"one", ANSWER)
        with pytest.raises(CountersUnavailable):
            await in_task(log.spool(b"two"))
        assert (log.waiting, log.counts.unlogged, log.counts.refused) == (0, 1, 1)
        log.note(b"again", ANSWER)
        await log.written()
    assert ["No space left" in one.get("error", "") for one in said] == [True, False]
    await in_task(log.spool(b"three"))
    assert (len(contents(tmp_path)), waiting(tmp_path)) == (3, 1)


async def test_a_disk_that_hangs_keeps_nobody_waiting_longer_than_its_bound(
    begin: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(bounds=replace(QUICK, spool_s_max=0.05))
    healed = threading.Event()
    begun = hang(monkeypatch, lambda: healed.wait(HANGS_S))
    waits = [log.spool(b"one")]
    try:
        await eventually(begun.is_set)
        waits.append(log.spool(b"behind"))
        for wait in waits:
            with pytest.raises(CountersUnavailable):
                await in_task(wait)
        assert (log.waiting, healed.is_set()) == (1, False)
    finally:
        healed.set()


async def test_who_comes_while_the_disk_hangs_on_is_not_kept_waiting_either(
    begin: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(bounds=replace(QUICK, spool_s_max=0.05, spools_max=2))
    healed = threading.Event()
    hang(monkeypatch, lambda: healed.wait(HANGS_S))
    try:
        for name in (b"one", b"behind", b"later"):
            with pytest.raises(CountersUnavailable):
                await in_task(log.spool(name))
        assert log.spool(b"too many").done
        assert (log.waiting, log.counts.refused) == (2, 1)
        assert not healed.is_set()
    finally:
        healed.set()


async def test_what_is_noted_while_a_write_takes_long_is_written_after_it(
    begin: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin()
    healed = threading.Event()
    begun = hang(monkeypatch, lambda: healed.wait(HANGS_S))
    spooled = log.spool(b"one")
    await eventually(begun.is_set)
    log.note(b"two", ANSWER)
    healed.set()
    await in_task(spooled)
    await asyncio.wait_for(log.written(), 30)
    assert noted(tmp_path) == [b"two"]


async def test_a_file_that_makes_room_while_it_is_read_is_read_to_its_end(begin: Open) -> None:
    log = begin()
    log.note(b"one", ANSWER)
    await log.written()
    (file,) = log.segments
    with closing(file.reading()) as reading:
        log._drop(file)
        (found,) = reading.piece()
        assert [one.arguments for one in settlement_log_log.records_in(found)] == [b"one"]


def test_a_worker_that_can_keep_nothing_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartError, match="cannot be written"):
        asyncio.run(_opened(tmp_path / "file" / "below"))


async def _opened(folder: Path) -> None:
    settlement_log(folder)


# --- other workers' files ---------------------------------------------------------------


async def test_a_living_workers_files_are_left_alone_and_a_dead_ones_adopted_once(
    begin: Open, tmp_path: Path
) -> None:
    first, second = begin(), begin()
    await in_task(first.spool(b"one"))
    assert await second.adopt() == []
    abandon(first)
    (adopted,) = await second.adopt()
    assert [adopted.record(at).arguments for at in adopted.waiting] == [b"one"]
    assert (second.waiting, await second.adopt()) == (1, [])
    assert await begin().adopt() == []
    second.done(adopted, next(iter(adopted.waiting)))
    second.expire(0.0)
    assert (waiting(tmp_path), adopted in second.segments) == (0, False)


async def test_files_of_another_format_are_named_and_left_alone(begin: Open, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / f"other{SUFFIX}"
    path.write_bytes(b"TKSETTLE\xff\xff" + bytes(20))
    log = begin(say=lambda event, **_: said.append(event))
    for _ in range(2):
        assert await log.adopt() == []
    assert (path.exists(), len(said)) == (True, 1)


async def test_a_file_that_cannot_be_read_is_named_and_keeps_no_other_from_being_adopted(
    begin: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = settlement_log_log.HEADER + settlement_log_log.block(
        settlement_log_log.SPOOLED, 1, settlement_log_log.records([(b"", b"one")])
    )
    for name in ("a", "b"):
        (tmp_path / f"{name}{SUFFIX}").write_bytes(good)
    said: list[str] = []
    log = begin(say=lambda event, **facts: said.append(f"{event}: {facts['file']}"))
    reads = os.pread

    def broken(descriptor: int, count: int, at: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/a{SUFFIX}"):
            raise OSError(errno.EIO, "Input/output error")
        return reads(descriptor, count, at)

    monkeypatch.setattr(os, "pread", broken)
    (adopted,) = await log.adopt()
    assert (adopted.path.name, said[0]) == (f"b{SUFFIX}", f"settlement log cannot be read: a{SUFFIX}")
    assert await log.adopt() == []
    assert len(said) == 2


async def test_damage_in_an_adopted_file_is_said(begin: Open, tmp_path: Path) -> None:
    data = bytearray(
        settlement_log_log.HEADER + settlement_log_log.block(settlement_log_log.SPOOLED, 1, b"x" * 50)
    )
    data[40] ^= 1
    good = settlement_log_log.block(
        settlement_log_log.SPOOLED, 1, settlement_log_log.records([(b"", b"one")])
    )
    (tmp_path / f"damaged{SUFFIX}").write_bytes(bytes(data) + good)
    said: list[dict[str, Any]] = []
    log = begin(say=lambda event, **facts: said.append(facts))
    (adopted,) = await log.adopt()
    assert (len(adopted.waiting), said[0]["damaged"], said[0]["level"]) == (1, 1, "error")


# --- the end ----------------------------------------------------------------------------


async def test_a_worker_that_ends_in_order_leaves_what_may_be_needed_and_nothing_else(
    begin: Open, tmp_path: Path
) -> None:
    log = begin()
    await log.close()
    assert (contents(tmp_path), log.left_behind) == ([], False)
    log = begin()
    log.note(b"young", ANSWER)
    await log.close()
    assert (noted(tmp_path), log.left_behind) == ([b"young"], True)
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    path.unlink()
    sure = replace(QUICK, at_risk_s=0.0)
    log = begin(bounds=sure)
    log.note(b"old", ANSWER)
    await log.close()
    assert (contents(tmp_path), log.left_behind) == ([], False)
    log = begin(bounds=sure)
    await in_task(log.spool(b"waits"))
    await log.close()
    assert (waiting(tmp_path), log.left_behind) == (1, True)


async def test_a_disk_that_hangs_keeps_no_worker_from_ending(
    begin: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files stay for whoever comes next, and nothing is closed under the thread that writes."""
    said: list[str] = []
    log = begin(say=lambda event, **_: said.append(event), bounds=replace(QUICK, close_s_max=0.05))
    await in_task(log.spool(b"kept"))
    healed = threading.Event()
    hang(monkeypatch, healed.wait)
    log.note(b"late", ANSWER)
    try:
        assert not await asyncio.wait_for(log.close(), 30)
        assert (waiting(tmp_path), len(log.segments)) == (1, 1)
    finally:
        healed.set()
    assert said == ["settlement log was not closed: its disk hangs"]
    await log.written()
    assert noted(tmp_path) == [b"late"]


async def test_a_disk_that_hangs_on_removing_a_file_keeps_no_worker_from_ending(
    begin: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(bounds=replace(QUICK, close_s_max=0.05))
    healed = threading.Event()
    removes = os.unlink
    monkeypatch.setattr(os, "unlink", lambda *path: (healed.wait(), removes(*path)))
    try:
        assert not await asyncio.wait_for(log.close(), 30)
    finally:
        healed.set()


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.builders import settlement_log
from gateway.core.wait import in_task

async def main():
    log = settlement_log(Path(sys.argv[1]), bytes_max=1 << 24)
    number = 0
    while True:
        log.note(b"note %d" % number, b"a" * 24)
        await in_task(log.spool(b"%d" % number))
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_a_killed_worker_leaves_every_settlement_it_called_certain(begin: Open, tmp_path: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220  # nothing else runs here
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
    ) as worker:
        assert worker.stdout is not None
        for _ in range(200):
            worker.stdout.readline()
        worker.send_signal(signal.SIGKILL)
        said = 200 + len(worker.stdout.read().splitlines())
    log = begin()
    found = await log.adopt()
    # On a busy machine these are several files.
    names = sorted(int(one.record(at).arguments) for one in found for at in one.waiting)
    assert names[:said] == list(range(said))
    assert len(names) <= said + 1
