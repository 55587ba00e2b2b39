"""Stacks of their own for journeys whose data is looked at whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journey.stack import Stack


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Starts stacks; they end before the directory of the test goes, where the data of one may be."""
    stacks: list[Stack] = []
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:

        def start(*options: str, data_dir: Path | None = None, **environ: str) -> Stack:
            stacks.append(Stack(data_dir or Path(folder) / f"data{len(stacks)}", *options, **environ))
            return stacks[-1]

        yield start
        for one in stacks:
            one.stop()
