"""Wrong credentials are counted, told at a bounded rate, and answered later with each."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

import pytest

from gateway.core.circuit_breaker import RetryPolicy, is_worth_a_line
from gateway.core.credentials import Peppers, peppers_of
from gateway.core.failures import (
    DELAY_S_FIRST,
    DELAY_S_MAX,
    DELAYED_MAX,
    FREE_MAX,
    REASONS,
    SITES_MAX,
    TOLD_MAX,
    WINDOW_S,
    Failures,
    site_of,
)
from gateway.core.wait_hints import retry_after_s
from gateway.settings.settings import Settings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_answers_come_later_with_each_failure_up_to_a_bound() -> None:
    failures = Failures(Clock())
    delays = [failures.count("10.0.0.1", "unknown") for _ in range(FREE_MAX + 10)]
    assert delays[:FREE_MAX] == [0.0] * FREE_MAX
    assert delays[FREE_MAX] == DELAY_S_FIRST
    assert delays[FREE_MAX:] == sorted(delays[FREE_MAX:])
    assert delays[-1] == DELAY_S_MAX
    assert failures.count("10.0.0.2", "unknown") == 0.0


def test_a_site_that_stops_is_forgiven() -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(20):
        failures.count("10.0.0.1", "unknown")
    clock.now += WINDOW_S + 1
    assert failures.count("10.0.0.1", "unknown") == 0.0


def test_no_more_answers_wait_than_may() -> None:
    failures = Failures(Clock())
    for _ in range(20):
        failures.count("10.0.0.1", "unknown")
    failures.delayed = DELAYED_MAX
    assert failures.count("10.0.0.1", "unknown") == 0.0


def test_sites() -> None:
    assert site_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert site_of("2001:db8:1:2:ffff::1") == site_of("2001:db8:1:2::9%eth0")
    assert site_of("2001:db8:1:2::1") != site_of("2001:db8:1:3::1")
    assert site_of("unix") == "unix"


def test_memory_is_bounded_and_the_longest_unseen_is_forgotten() -> None:
    failures = Failures(Clock())
    for _ in range(FREE_MAX + 1):
        failures.count("192.0.2.1", "unknown")
    for number in range(SITES_MAX):
        failures.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "unknown")
    assert failures.count("192.0.2.1", "unknown") == 0.0
    assert failures.counts["unknown"] == FREE_MAX + 1 + SITES_MAX + 1


def test_what_is_told_is_bounded_and_told_once() -> None:
    failures = Failures(Clock())
    for number in range(TOLD_MAX + 5):
        failures.count(f"10.0.0.{number}", "missing")
    failures.count("10.0.0.3", "unknown")
    told = failures.take_reports()
    assert len(told) == TOLD_MAX + 1
    assert (told[0].site, told[0].attempts, told[0].reasons) == ("10.0.0.3", 2, {"missing": 1, "unknown": 1})
    assert (told[-1].site, told[-1].attempts) == ("", 5)
    assert failures.take_reports() == []
    told_of = {"missing": TOLD_MAX + 5, "unknown": 1}
    assert failures.rows("admin") == [("admin", reason, told_of.get(reason, 0)) for reason in REASONS]


# --- peppers ----------------------------------------------------------------------------
# Peppers by their ids, and what credentials are kept as under each.


CURRENT, EARLIER = "a-pepper-of-today", "one-of-last-year"


def by_hand(pepper: str, credential: str) -> str:
    return hmac.new(pepper.encode(), credential.encode(), hashlib.sha256).hexdigest()


def test_a_credential_is_kept_under_the_current_one_and_found_under_each() -> None:
    peppers = peppers_of(Settings(key_pepper=CURRENT, earlier_key_peppers=f"{EARLIER} {CURRENT}x"))
    assert peppers.digest("tk_1") == by_hand(CURRENT, "tk_1")
    names = (CURRENT, EARLIER, f"{CURRENT}x")
    assert peppers.digests("tk_1") == tuple(by_hand(one, "tk_1") for one in names)


def test_an_id_goes_with_its_pepper_wherever_that_stands_and_is_no_part_of_it() -> None:
    before = Peppers(EARLIER.encode())
    after = Peppers(CURRENT.encode(), (EARLIER.encode(),))
    assert after.ids[1:] == before.ids
    assert len({*after.ids}) == 2
    assert not any(one in CURRENT or one in EARLIER for one in after.ids)


# --- retries ----------------------------------------------------------------------------
# Pauses between attempts grow up to a longest one, and end.


def test_pauses_grow_to_the_longest_and_end() -> None:
    retries = RetryPolicy(attempts_max=5, first_s=2.0, factor=4.0, longest_s=30.0)
    assert [retries.after_s(attempts) for attempts in range(1, 7)] == [2, 8, 30, 30, None, None]


def test_ever_fewer_of_many_failures_are_said() -> None:
    assert [failures for failures in range(1, 70) if is_worth_a_line(failures)] == [1, 2, 4, 8, 16, 32, 64]


# --- retry after ------------------------------------------------------------------------
# What another side says with `Retry-After`.


NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("0.5", 0.5),
        ("9" * 64, float("9" * 64)),
        ("Sun, 29 Mar 2026 00:31:30 GMT", 90.0),
        ("Sun, 29 Mar 2026 02:31:30 +0200", 90.0),
        ("Sun, 29 Mar 2026 00:31:30 -0000", 90.0),  # of no zone: UTC, wherever this runs
        ("Sun, 29 Mar 2026 00:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates_are_read(value: str, seconds: float) -> None:
    """A date that has passed is no wait."""
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", ["", "-1", "1e3", "nan", "inf", "٣", "1_0", "+5", " 5", "soon", "Mon, 99 Mar 2026", "9" * 65]
)
def test_what_is_neither_says_nothing(value: str) -> None:
    """A stranger's value never raises."""
    assert retry_after_s(value, NOW) is None
