"""A worker's bounds leave room among the files it may have open, whatever that is."""

from __future__ import annotations

import pytest

from gateway.core.http_limits import FILES_RESERVED, HttpLimits

LIMITS = HttpLimits()


@pytest.mark.parametrize("upstreams", [1, 3, 7])
@pytest.mark.parametrize("files", [128, 200, 256, 1024, 4096, 20_000, 65_536, 1_000_000])
def test_all_connections_there_may_be_leave_the_reserve(files: int, upstreams: int) -> None:
    here = LIMITS.within(files, upstreams)
    clients = here.connections_max + here.turned_away_max + here.tls_handshakes_max
    assert clients + upstreams * here.upstream_connections_max + FILES_RESERVED <= files
    assert here.upstream_idle_connections_max <= here.upstream_connections_max
    assert min(here.connections_max, here.tls_handshakes_max, here.upstream_connections_max) >= 1
    for name in ("connections_max", "tls_handshakes_max", "upstream_connections_max"):
        assert getattr(here, name) <= getattr(LIMITS, name)


def test_where_there_are_files_enough_nothing_is_another() -> None:
    assert LIMITS.within(65_536, 8) == LIMITS
