"""Loops that fail go on, and say so without filling a disk; last things are done in time, or left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

from gateway.errors import CountersUnavailable
from gateway.run import lifecycle


async def test_a_loop_that_keeps_failing_says_so_ever_more_rarely() -> None:
    runs, said = 0, []
    enough = asyncio.Event()

    async def fails() -> None:
        nonlocal runs
        runs += 1
        if runs > 9:
            enough.set()
        raise OSError("gone")

    task = asyncio.create_task(
        lifecycle.forever(
            "pusher", fails, lambda event, **facts: said.append((event, facts["failures"])), restart_s=0.0
        )
    )
    await enough.wait()
    await lifecycle.cancel([task])
    assert said == [("loop failed", count) for count in (1, 2, 4, 8)]


async def test_what_is_not_done_in_time_is_left_and_what_fails_is_said() -> None:
    did: list[str] = []
    said: list[tuple[str, str]] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            did.append("left")

    async def fails(error: Exception) -> None:
        raise error

    async def does() -> None:
        did.append("done")

    works = [hangs(), fails(OSError("gone")), fails(CountersUnavailable()), does()]
    await lifecycle.all_within(0.05, works, lambda event, **facts: said.append((event, facts["error"])))
    assert did == ["done", "left"]
    assert said == [("not done before the end", "OSError('gone')")]


def hanging(tmp_path: Path, at_last: str) -> subprocess.CompletedProcess[bytes]:
    """A process of which a thread never ends, and what its `main` does at last."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = f"""
import asyncio
from gateway.run.lifecycle import run_to_end
async def main():
    asyncio.create_task(asyncio.to_thread(open, {str(pipe)!r}))
    await asyncio.sleep(0.1)
    {at_last}
run_to_end(asyncio.run, main(), 0.2)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)


def test_a_process_ends_though_a_thread_does_not(tmp_path: Path) -> None:
    ended = hanging(tmp_path, 'print("stopped", flush=True)')
    assert (ended.returncode, ended.stdout) == (0, b"stopped\n"), ended.stderr
    assert b"a thread does not end" in ended.stderr


def test_a_process_that_failed_says_why_though_a_thread_does_not_end(tmp_path: Path) -> None:
    ended = hanging(tmp_path, 'raise OSError("the disk is gone")')
    assert ended.returncode == 1
    assert b"a thread does not end" in ended.stderr
    assert b"OSError: the disk is gone" in ended.stderr


def test_a_process_whose_threads_end_is_left_to_end_by_itself() -> None:
    done = []

    async def main() -> None:
        done.append(await asyncio.to_thread(lambda: "read"))

    lifecycle.run_to_end(asyncio.run, main())
    assert done == ["read"]
    for timer in [each for each in threading.enumerate() if isinstance(each, threading.Timer)]:
        timer.join(5)
        assert not timer.is_alive(), "what would end the process has ended"
