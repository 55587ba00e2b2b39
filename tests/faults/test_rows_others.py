"""What befalls a cluster, PostgreSQL, clients, upstreams and clocks: each row in its short form."""

from __future__ import annotations

import pytest

from tests.faults.short import OTHERS, Shared, names, play


@pytest.mark.parametrize("name", names(OTHERS))
def test_row(name: str, shared: Shared) -> None:
    play(name, shared)
