"""What befalls Redis, and its data: each row of the matrix in its short form."""

from __future__ import annotations

import pytest

from tests.faults.short import REDIS, Shared, names, play


@pytest.mark.parametrize("name", names(REDIS))
def test_row(name: str, shared: Shared) -> None:
    play(name, shared)
