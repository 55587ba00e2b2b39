"""Most rows, with our programs in this process."""

from __future__ import annotations

import pytest

from tests.faults.short import Shared, names, play


@pytest.mark.parametrize("name", names(real=False))
def test_row(name: str, shared: Shared) -> None:
    play(name, shared, real=False)
