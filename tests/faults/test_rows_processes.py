"""What befalls gateways and keepers: each row of the matrix in its short form."""

from __future__ import annotations

import pytest

from tests.faults.short import PROCESSES, Shared, names, play


@pytest.mark.parametrize("name", names(PROCESSES))
def test_row(name: str, shared: Shared) -> None:
    play(name, shared)
