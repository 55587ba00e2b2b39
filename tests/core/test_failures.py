"""Wrong credentials are counted, told at a bounded rate, and answered later with each."""

from __future__ import annotations

from gateway.core.credentials import (
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
    told = failures.take_told()
    assert len(told) == TOLD_MAX + 1
    assert (told[0].site, told[0].attempts, told[0].reasons) == ("10.0.0.3", 2, {"missing": 1, "unknown": 1})
    assert (told[-1].site, told[-1].attempts) == ("", 5)
    assert failures.take_told() == []
    told_of = {"missing": TOLD_MAX + 5, "unknown": 1}
    assert failures.rows("admin") == [("admin", reason, told_of.get(reason, 0)) for reason in REASONS]
