"""One stack for the journeys that leave it well; a fresh one for those that break something."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journey.stack import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        one = Stack(Path(folder) / "data", "--workers", "2")
        yield one
        assert one.stop() == 0


@pytest.fixture
def own_stack() -> Iterator[Callable[..., Stack]]:
    stacks: list[Stack] = []
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:

        def start(*options: str, **environ: str) -> Stack:
            stacks.append(Stack(Path(folder) / f"data{len(stacks)}", *options, **environ))
            return stacks[-1]

        yield start
        for one in stacks:
            one.stop()
