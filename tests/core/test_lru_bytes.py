"""What is looked up by a key is bounded by its size, and those go that were used longest ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.histograms import quantile_of
from gateway.core.http_limits import FILES_RESERVED, HttpLimits
from gateway.core.lru import LruCache, LruEntry
from gateway.core.times import DAY_MS, HOUR_MS, moment_of, ms_of, rfc3339


def room(most: int, keys: str = "") -> LruCache[str, LruEntry]:
    found: LruCache[str, LruEntry] = LruCache(most)
    for key in keys:
        found.put(key, LruEntry())
    return found


def test_one_goes_for_each_that_comes_and_never_one_in_use() -> None:
    kept = room(4, "abcd")
    for newcomer in "efghijk":
        assert kept.find("a") is not None
        kept.put(newcomer, LruEntry())
        assert kept.held == len(kept) == 4
    assert "a" in kept.known


def test_what_takes_more_than_before_has_those_go_that_were_used_longest_ago() -> None:
    kept = room(4, "abcd")
    kept.put("b", LruEntry(), 3)
    assert (list(kept.known), kept.held) == (["b", "d"], 4)
    kept.put("b", LruEntry(), 1)
    assert (set(kept.known), kept.held) == ({"b", "d"}, 2)


def test_one_in_use_does_not_go_for_others_that_grow() -> None:
    kept = room(8, "abcd")
    for growing in "bcd":
        assert kept.find("a") is not None
        kept.put(growing, LruEntry(), 3)
    assert (list(kept.known), kept.held) == (["a", "c", "d"], 7)


def test_what_is_larger_than_all_there_is_room_for_is_there_alone() -> None:
    kept = room(4, "abcd")
    kept.put("e", LruEntry(), 9)
    assert (list(kept.known), kept.held) == (["e"], 9)
    kept.put("f", LruEntry())
    assert (list(kept.known), kept.held) == (["f"], 1)


def test_what_is_dropped_takes_no_room() -> None:
    kept = room(4, "abcd")
    kept.drop("b")
    kept.drop("b")
    assert (kept.find("b"), kept.held) == (None, 3)
    kept.put("e", LruEntry())
    assert set(kept.known) == set("acde")


# --- http limits ------------------------------------------------------------------------
# A worker's bounds leave room among the files it may have open, whatever that is.


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


# --- quantile ---------------------------------------------------------------------------
# Quantiles of histograms.


def test_quantiles_of_buckets() -> None:
    bounds = [0.1, 0.2, 0.4]
    assert quantile_of([0, 0, 0, 0], bounds, 0.5) is None
    assert quantile_of([10, 0, 0, 0], bounds, 0.5) == pytest.approx(0.05)
    assert quantile_of([5, 5, 0, 0], bounds, 0.99) == pytest.approx(0.198)
    assert quantile_of([0, 0, 0, 7], bounds, 0.5) == 0.4


# --- moments ----------------------------------------------------------------------------
# Milliseconds and moments: each is the other's.


@given(st.integers(0, 253_402_300_799_999))
def test_a_millisecond_has_one_moment(at_ms: int) -> None:
    assert ms_of(moment_of(at_ms)) == at_ms


def test_a_moment_is_counted_by_the_nearest_millisecond_and_none_is_never() -> None:
    noon = datetime(1970, 1, 2, 12, tzinfo=UTC)
    assert ms_of(noon) == DAY_MS + 12 * HOUR_MS
    assert ms_of(noon + timedelta(microseconds=600)) == ms_of(noon) + 1
    assert ms_of(None) == 0


def test_a_moment_is_written_in_utc() -> None:
    evening = datetime(2026, 1, 31, 23, 30, 0, 5, timezone(timedelta(hours=-1)))
    assert rfc3339(evening) == "2026-02-01T00:30:00.000005Z"
    assert rfc3339(evening, "seconds") == "2026-02-01T00:30:00Z"
