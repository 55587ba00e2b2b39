"""One stack for the journeys that leave it well; a fresh one for those that break something."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journey.stack import Stack


@pytest.fixture(scope="package")  # an idle stack takes a tenth of a core from all that comes later
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        one = Stack(Path(folder) / "data", "--workers", "2")
        yield one
        assert one.stop() == 0


@pytest.fixture(scope="session")
def ended() -> Iterator[Path]:
    """The data directory of a stack that was started and ended: a start on its copy takes half the time."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        data = Path(folder) / "data"
        assert Stack(data).stop() == 0
        yield data


@pytest.fixture
def own_stack(ended: Path) -> Iterator[Callable[..., Stack]]:
    stacks: list[Stack] = []
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:

        def start(*options: str, **environ: str) -> Stack:
            data = Path(folder) / f"data{len(stacks)}"
            if "TOLLKEEPER_KEY_PEPPER" not in environ:  # with another one its keys would be unknown
                subprocess.run(["cp", "-pR", ended, data], check=True)
            stacks.append(Stack(data, *options, **environ))
            return stacks[-1]

        yield start
        for one in stacks:
            one.stop()
