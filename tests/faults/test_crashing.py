"""Crash points: each await of ours in three moments, by names that survive moved lines."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest

from gateway.core.wait import Wait
from tests.faults.crashing import Plan, Stepped
from tests.tree import ROOT

PROGRAM = """
import asyncio
from pathlib import Path
from tests.faults.crashing import Plan, Stepped
from tests.faults.test_crashing import outer
async def main():
    await asyncio.create_task(Stepped(outer(asyncio.sleep(0)), Plan({point!r}, {nth}, Path({seen!r}))))
    print("survived")
asyncio.run(main())
"""
INNER = "tests/faults/test_crashing.inner | await waited"


async def inner(waited: Awaitable[object]) -> None:
    await waited


async def outer(waited: Awaitable[object]) -> str:
    await inner(waited)
    return "done"


async def test_a_coroutine_is_driven_unchanged_and_its_points_are_named(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    answer = await asyncio.create_task(Stepped(outer(asyncio.sleep(0.01)), Plan("", 0, seen)))
    assert answer == "done"
    assert seen.read_text().splitlines() == [
        "tests/faults/test_crashing.outer | begin",
        f"{INNER} | suspended",
        f"{INNER} | sent",
        f"{INNER} | resumed",
        "tests/faults/test_crashing.outer | end",
    ]


async def test_a_request_is_driven_by_waits_alike(tmp_path: Path) -> None:
    wait: Wait[int] = Wait()
    stepped = Stepped(outer(wait), Plan("", 0, tmp_path / "seen"))
    assert stepped.send(None) is wait
    wait.set(1)
    with pytest.raises(StopIteration) as end:
        stepped.send(None)
    assert end.value.value == "done"
    assert f"{INNER} | resumed" in (tmp_path / "seen").read_text()


def test_a_process_kills_itself_at_its_point(tmp_path: Path) -> None:
    def run(point: str, nth: int = 1) -> subprocess.CompletedProcess[str]:
        program = PROGRAM.format(point=point, nth=nth, seen=str(tmp_path / "seen"))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert run(f"{INNER} | resumed").returncode == -signal.SIGKILL
    survived = run(f"{INNER} | resumed", nth=2)
    assert (survived.returncode, survived.stdout) == (0, "survived\n"), survived.stderr
