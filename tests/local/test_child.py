"""A child process: what it is told while it is being started, and what counts as started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.local.processes import DIED, HUNG, Child, ProcessSpec
from tests.waiting import eventually

READS = "import sys; line = sys.stdin.readline(); open(sys.argv[1], 'w').write(line); sys.stdin.read()"


async def test_what_is_told_while_it_starts_is_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"

    async def ready(_pid: int) -> bool:
        return said.exists() and said.read_text().endswith("\n")

    program = ProcessSpec("reader", (sys.executable, "-c", READS, str(said)), ready, stdin=b"old")
    child = Child(program, lambda _: None, lambda: None)
    spawns = asyncio.create_subprocess_exec

    async def told(*words: Any, **more: Any) -> asyncio.subprocess.Process:
        await child.tell(b"new")
        return await spawns(*words, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", told)
    await child.start()
    await child.stop()
    assert said.read_text() == "new\n"


async def test_a_start_that_fails_is_no_restart(tmp_path: Path) -> None:
    program, away = tmp_path / "program", tmp_path / "away"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    said: list[str] = []

    async def ready(_pid: int) -> bool:
        return True

    child = Child(ProcessSpec("sleeper", (str(program),), ready, stop_max_s=0.1), said.append, lambda: None)
    await child.start()
    try:
        program.rename(away)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await eventually(lambda: sum("cannot be started" in one for one in said) >= 2)
        assert child.restarts == {DIED: 0, HUNG: 0}
        away.rename(program)
        await eventually(lambda: any("started again" in one for one in said))
        assert child.restarts == {DIED: 1, HUNG: 0}
    finally:
        await child.stop()
