"""A process whose loop stands still is noticed, killed and started again; one that merely waits is not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.local import heartbeat
from gateway.local.heartbeat import Heartbeat
from gateway.local.processes import DIED, HUNG, LAST_WORDS_S, Child, ProcessSpec
from tests.tree import ROOT
from tests.waiting import eventually

# Beats from its loop; hangs, without giving way, once it is told `hang`.
BEATS = """
import asyncio, faulthandler, signal, sys, time
from gateway.local.heartbeat import keep_beating
faulthandler.register(signal.SIGUSR2)
async def main():
    sys.stdin.readline()
    beating = asyncio.create_task(keep_beating(0.05))
    await asyncio.sleep(0.2)
    open(sys.argv[1], "w").close()
    line = await asyncio.to_thread(sys.stdin.readline)
    if line == "hang\\n":
        time.sleep(1000)
asyncio.run(main())
"""
SILENT = "import sys; sys.stdin.readline(); sys.stdin.readline()"


class Kept:
    """A child that beats, with what was said of it."""

    def __init__(
        self, folder: Path, code: str, silent_s_max: float, ready_max_s: float = 60.0,
        last_words_s: float = LAST_WORDS_S,
    ) -> None:  # fmt: skip
        self.there, self.log = folder / "there", folder / "log"
        self.said: list[str] = []

        async def ready(_pid: int) -> bool:
            return code is SILENT or self.there.exists()

        program = ProcessSpec(
            "worker", (sys.executable, "-c", code, str(self.there)), ready, ready_max_s,
            stdin=b"settings", log=self.log, cwd=ROOT, silent_s_max=silent_s_max, stop_max_s=0.1,
            last_words_s=last_words_s,
        )  # fmt: skip
        self.child = Child(program, self.said.append, lambda: None)

    def restarted(self, why: str, before: int | None) -> bool:
        return self.child.restarts[why] >= 1 and self.child.pid not in {None, before}


async def test_a_loop_that_stands_still_is_killed_after_saying_where(tmp_path: Path) -> None:
    kept = Kept(tmp_path, BEATS, silent_s_max=5.0, last_words_s=5.0)
    await kept.child.start()
    before = kept.child.pid
    await kept.child.tell(b"hang")
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()
    assert any("hangs: " in one for one in kept.said)
    assert any("hung for" in one and "starting it again" in one for one in kept.said)
    assert "time.sleep" not in kept.log.read_text()  # places, no lines of code
    assert 'File "<string>", line 12 in main' in kept.log.read_text()


async def test_a_process_that_is_stopped_is_started_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, BEATS, silent_s_max=5.0)
    await kept.child.start()
    before = kept.child.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()
    assert kept.child.restarts[DIED] == 0


async def test_one_that_never_begins_to_beat_has_the_time_of_a_start(tmp_path: Path) -> None:
    kept = Kept(tmp_path, SILENT, silent_s_max=0.1, ready_max_s=2.0)
    await kept.child.start()
    before = kept.child.pid
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()


async def test_one_that_dies_is_no_one_that_hangs(tmp_path: Path) -> None:
    kept = Kept(tmp_path, BEATS, silent_s_max=30.0)
    await kept.child.start()
    before = kept.child.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    try:
        await eventually(lambda: kept.restarted(DIED, before))
    finally:
        await kept.child.stop()
    assert kept.child.restarts[HUNG] == 0
    assert any("was killed by SIGKILL" in one for one in kept.said)


async def test_time_in_which_the_listener_stood_still_does_not_count() -> None:
    """A machine that slept: an hour is over at once, and a beat comes later; then none does."""
    beats, looks, slept = Heartbeat(), 0, 0.0

    def seconds() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic() + slept

    os.write(beats.theirs, b".")
    listening = asyncio.create_task(beats.lost(60.0, 1.0, look_s=0.01, seconds=seconds))
    await eventually(lambda: looks > 2)
    slept, before = 3600.0, looks
    await eventually(lambda: looks > before + 2)
    assert not listening.done()
    os.write(beats.theirs, b".")
    assert 1.0 < await listening < 60.0
    beats.started()
    beats.close()


async def test_who_is_not_listened_to_beats_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heartbeat.HEARTBEAT_VARIABLE, raising=False)
    await asyncio.wait_for(heartbeat.keep_beating(), 10)
