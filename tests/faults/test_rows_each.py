"""One row of each kind of fault: of processes, Redis, PostgreSQL, clients and upstreams."""

from __future__ import annotations

import pytest

from tests.faults.short import EACH, Shared, play


@pytest.mark.parametrize("name", EACH)
def test_row(name: str, shared: Shared) -> None:
    play(name, shared)
