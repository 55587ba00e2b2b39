"""What a program of this process does when it is killed, and when it is held."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings.settings import Settings
from tests.faults.staged import KILLED, Life, StagedLoop, StagedProgram
from tests.waiting import eventually


class Counting(StagedProgram):
    """Has a file that is its own, counts on, and cleans up at its end."""

    counted, has_cleaned_up = 0, False

    async def _serve(self, life: Life) -> None:
        own = os.open(Path(self.settings.data_dir, "own"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            while True:
                self.counted += 1
                await asyncio.sleep(0)
        finally:
            self.has_cleaned_up = True

    async def goes_on(self) -> bool:
        """Whether it counts while others do."""
        before = self.counted
        for _ in range(20):
            await asyncio.sleep(0)
        return self.counted > before


@pytest.fixture
def program(tmp_path: Path) -> Counting:
    settings = Settings(redis_url="redis://127.0.0.1:9/0", data_dir=str(tmp_path))
    return Counting("serve", settings, tmp_path / "log")


@pytest.fixture
def loop() -> Iterator[StagedLoop]:
    one = StagedLoop()
    yield one
    one.close()


def run(loop: StagedLoop, work: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(work)


def test_it_dies_at_a_step_cleans_nothing_up_and_lets_go_of_what_it_had(
    loop: StagedLoop, program: Counting
) -> None:
    async def play() -> None:
        program.start()
        await eventually(program.goes_on)
        program.life.dies_at = program.life.steps + 7
        before = program.counted
        await eventually(lambda: program.ended == KILLED)
        assert (program.counted - before, program.has_cleaned_up) == (6, False)
        assert not await program.goes_on()
        program.start()  # its file is free
        await eventually(program.goes_on)
        assert (program.starts, program.ended) == (2, None)
        program.kill()

    run(loop, play())


def test_who_is_held_does_nothing_until_it_goes_on(loop: StagedLoop, program: Counting) -> None:
    async def play() -> None:
        program.start()
        await eventually(program.goes_on)
        program.hold()
        assert not await program.goes_on()
        program.send(signal.SIGCONT)
        await eventually(program.goes_on)
        program.kill()
        assert not program.has_cleaned_up

    run(loop, play())
