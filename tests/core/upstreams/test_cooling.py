"""The table of upstreams that are left alone: bounded in time, in number and in bytes."""

from __future__ import annotations

from gateway.core.circuit_breaker import (
    COOLING_S_MIN,
    ENTRIES_MAX,
    FIELDS_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    TOLD_S_MAX,
    BackoffEntry,
    CircuitBreaker,
)


def test_an_entry_lasts_as_long_as_was_asked_for() -> None:
    cooling = CircuitBreaker(60)
    assert cooling.begin("a model m", 20, (), 100) == 20
    assert cooling.of("a model m", 119.9) is not None
    assert cooling.of("a model m", 120) is None
    assert cooling.of("a model n", 100) is None
    assert cooling.of("b model m", 100) is None


def test_what_begins_is_told() -> None:
    """Once for each that is new or longer: what others heard, or what changes nothing, is no news."""
    told: list[int] = []
    cooling = CircuitBreaker(60, begun=lambda: told.append(1))
    cooling.begin("a", 20, (), 100)
    cooling.begin("a", 10, (), 100)
    cooling.begin("b", 0, (), 100)
    cooling.take("c", BackoffEntry(130, 130, ()), 100)
    assert len(told) == 1
    cooling.begin("c", 40, (), 100)
    assert len(told) == 2


def test_nobody_is_silenced_for_longer_than_the_maximum() -> None:
    cooling = CircuitBreaker(60)
    assert cooling.begin("a", 287_441, (), 100) == 60
    one = cooling.of("a", 159.9)
    assert one is not None
    assert one.told_until == 100 + 287_441
    assert cooling.of("a", 160) is None
    cooling.begin("b", 1e300, (), 100)
    found = cooling.of("b", 100)
    assert found is not None
    assert (found.until, found.told_until) == (160, 100 + TOLD_S_MAX)


def test_a_maximum_of_nothing_turns_it_off() -> None:
    cooling = CircuitBreaker(0)
    assert cooling.begin("a", 20, (), 100) == 0
    assert not cooling.entries


def test_another_maximum_counts_for_what_is_there() -> None:
    cooling = CircuitBreaker(600)
    cooling.begin("a", 500, (), 100)
    cooling.begin("b", 5, (), 100)
    cooling.bound(10, 100)
    assert cooling.of("a", 109) is not None
    assert cooling.of("a", 110) is None
    cooling.bound(0, 102)
    assert not cooling.entries


def test_what_is_shorter_than_the_minimum_is_none() -> None:
    cooling = CircuitBreaker(60)
    for wait_s in (0, -1, COOLING_S_MIN / 2):
        assert cooling.begin("a", wait_s, (), 100) == 0
    assert not cooling.entries


def test_the_later_end_stays() -> None:
    cooling = CircuitBreaker(60)
    cooling.begin("a", 20, (b"x-ratelimit-a: 1",), 100)
    assert cooling.begin("a", 10, (b"x-ratelimit-a: 2",), 105) == 0
    one = cooling.of("a", 119)
    assert one is not None
    assert one.fields == (b"x-ratelimit-a: 1",)
    assert cooling.begin("a", 25, (b"x-ratelimit-a: 3",), 105) == 10
    assert cooling.begin("a", 7, (), 131) == 7  # it was over


def test_everybody_waits_once_two_organizations_were_refused_or_a_limit_is_spent() -> None:
    told: list[int] = []
    cooling = CircuitBreaker(60, begun=lambda: told.append(1))

    def waits(now: float) -> list[int]:
        one = cooling.of("a", now)
        return [] if one is None else [each for each in (1, 2, 3) if one.concerns(each)]

    assert cooling.begin("a", 50, (), 100, 1) == 50
    assert waits(101) == [1]
    assert cooling.begin("a", 40, (), 101, 1) == 0
    assert waits(101) == [1]
    assert cooling.begin("a", 20, (), 102, 2) == 20  # for as long as both were told to
    assert waits(103) == [1, 2, 3]
    assert cooling.begin("a", 60, (), 103, 3) == 0
    assert not waits(122)
    assert cooling.begin("a", 50, (), 130, 1) == 50
    assert cooling.begin("a", 7, (), 131) == 7  # a limit is spent
    assert waits(137) == [1, 2, 3]
    assert cooling.begin("a", 9, (), 138, 2) == 9  # what was over is no refusal beside it
    assert waits(139) == [2]
    assert len(told) == 5


def test_strangers_cannot_make_it_grow() -> None:
    """Models are callers' words: the entry that ends first goes, and one that ends before all is not kept."""
    cooling = CircuitBreaker(60)
    for number in range(ENTRIES_MAX):
        cooling.begin(f"a model {number}", 10 + number / 10, (), 100)
    assert cooling.begin("a model long", 50, (), 100) == 50
    assert len(cooling.entries) == ENTRIES_MAX
    assert cooling.of("a model 0", 100) is None
    assert cooling.of("a model 1", 100) is not None
    assert cooling.begin("a model short", 5, (), 100) == 0
    assert cooling.of("a model 1", 100) is not None
    assert cooling.begin("a model later", 5, (), 200) == 5  # all others are over
    assert set(cooling.entries) == {"a model later"}


def test_a_name_nobody_means_is_not_kept() -> None:
    cooling = CircuitBreaker(60)
    for name in ("m" * (NAME_CHARACTERS_MAX + 1), "m\n", "m\x00", "m\ud800"):
        assert cooling.begin(name, 20, (), 100) == 0
    assert cooling.begin("käthe's model", 20, (), 100) == 20


def test_fields_are_bounded_and_plain() -> None:
    cooling = CircuitBreaker(60)
    long = b"x-ratelimit-long: " + b"1" * FIELDS_BYTES_MAX
    lines = (b"x-ratelimit-a: 1", b"x-ratelimit-b: \xff", b"x-ratelimit-c: \t", b"x-ratelimit-d: 2", long)
    cooling.begin("a", 20, lines, 100)
    one = cooling.of("a", 100)
    assert one is not None
    assert one.fields == (b"x-ratelimit-a: 1", b"x-ratelimit-d: 2")


def test_what_others_tell_is_bounded_as_well() -> None:
    cooling = CircuitBreaker(60)
    cooling.take("a", BackoffEntry(10_000, 10_000, ()), 100)
    assert cooling.of("a", 159) is not None
    assert cooling.of("a", 160) is None
    cooling.sweep(160)
    assert not cooling.entries
