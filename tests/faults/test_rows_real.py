"""Rows of each kind of fault, with real processes."""

from __future__ import annotations

import pytest

from tests.faults.short import Shared, names, play


@pytest.mark.parametrize("name", names(real=True))
def test_row(name: str, shared: Shared) -> None:
    play(name, shared, real=True)
