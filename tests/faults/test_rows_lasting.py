"""What befalls jobs, holds by API, sockets and capacity: each row of them in its short form."""

from __future__ import annotations

import pytest

from tests.faults.rows_lasting import FAULTS
from tests.faults.short import Shared, play

SOONEST = "redis_paused_5"


@pytest.mark.parametrize(
    "name",
    [pytest.param(f"lasting_{one}", marks=() if one == SOONEST else pytest.mark.nightly) for one in FAULTS],
)
def test_row(name: str, shared: Shared) -> None:
    play(name, shared)
