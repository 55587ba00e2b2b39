"""A child process: what it is told while it is being started."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.local.child import Child, Program

READS = "import sys; line = sys.stdin.readline(); open(sys.argv[1], 'w').write(line); sys.stdin.read()"


async def test_what_is_told_while_it_starts_is_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"

    async def ready(_pid: int) -> bool:
        return said.exists() and said.read_text().endswith("\n")

    program = Program("reader", (sys.executable, "-c", READS, str(said)), ready, stdin=b"old")
    child = Child(program, lambda _: None, lambda: None)
    spawns = asyncio.create_subprocess_exec

    async def told(*words: Any, **more: Any) -> asyncio.subprocess.Process:
        await child.tell(b"new")
        return await spawns(*words, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", told)
    await child.start()
    await child.stop()
    assert said.read_text() == "new\n"
