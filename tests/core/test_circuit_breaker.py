"""The table of upstreams that are left alone: bounded in time, in number and in bytes."""

from __future__ import annotations

import pytest

from gateway.core.circuit_breaker import (
    COOLING_S_MIN,
    ENTRIES_MAX,
    FIELDS_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    TOLD_S_MAX,
    BackoffEntry,
    CircuitBreaker,
)
from gateway.core.unreported_failures import TELL_EACH_S, UnreportedFailures
from gateway.core.wait_hints import wait_hint


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


# --- failing ----------------------------------------------------------------------------
# Failures of upstreams are told once in a while, and each is in one telling.


def test_the_first_failure_is_told_and_the_others_once_in_a_while_with_their_number() -> None:
    failing = UnreportedFailures()
    assert failing.note("own", "refused", 0.0) == 1
    assert [failing.note("own", "refused", TELL_EACH_S * part / 10) for part in range(1, 10)] == [0] * 9
    assert failing.note("own", "timeout", 1.0) == 1, "another cause is told at once"
    assert failing.note("other", "refused", 1.0) == 1, "so is another upstream"
    assert failing.note("own", "refused", TELL_EACH_S) == 10
    assert failing.note("own", "refused", TELL_EACH_S + 1) == 0


def test_every_failure_is_in_one_telling() -> None:
    failing, told, count = UnreportedFailures(), 0, 0
    for number in range(1000):
        told += failing.note("own", "refused", number / 7)
        count += 1
    last = failing.note("own", "refused", 1e9)
    assert told + last == count + 1


# --- limits told ------------------------------------------------------------------------
# How long an upstream asks to be left alone: each provider's words for it, and words that say nothing.


NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def told(text: str, tokens: int = 100) -> float:
    return round(heard(text, tokens)[0], 6)


def heard(text: str, tokens: int = 100) -> tuple[float, bool]:
    return wait_hint([line.encode() for line in text.split("\n") if line], tokens, NOW)


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("20", 20), ("0", 0), ("1.5", 1.5), ("287441", 287_441), (" 7 ", 7),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30), ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ("Tuesday, 14-Nov-23 22:13:50 GMT", 30), ("Tue Nov 14 22:13:50 2023", 30),
        ("Sun, 14 Nov 9999 22:13:50 GMT", 251_698_233_630), ("9" * 20, 1e20), ("0" * 63 + "7", 7),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str, wait_s: float) -> None:
    assert told(f"Retry-After: {value}") == wait_s


@pytest.mark.parametrize(
    "value",
    [
        "", "-5", "+5", "soon", "NaN", "inf", "1e9", "0x10", "1_000", "١٢", "9" * 65, "1 2", "1,2", "1.",
        ".5",
        "Tue, 99 Nov 2023 22:13:50 GMT", "Tue, 14 Nov 99999 22:13:50 GMT", "x" * 10_000,
        "5" + " " * 80 + "5",
    ],
)  # fmt: skip
def test_what_is_no_wait_says_nothing(value: str) -> None:
    assert told(f"retry-after: {value}") == 0
    assert told(f"retry-after-ms: {value}") == 0
    assert told(f"x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: {value}") == 0


def test_milliseconds_go_before_seconds() -> None:
    assert told("retry-after-ms: 1250\nretry-after: 2") == 1.25


def test_what_is_said_twice_in_two_ways_says_nothing() -> None:
    assert told("retry-after: 5\nretry-after: 60") == 0
    assert told("retry-after: 5\nRetry-After: 5") == 5


def test_a_date_goes_by_the_clock_of_who_says_it() -> None:
    """One that is ten minutes fast asks for as much as it means."""
    fields = "date: Tue, 14 Nov 2023 22:23:20 GMT\nretry-after: Tue, 14 Nov 2023 22:23:40 GMT"
    assert told(fields) == 20
    assert told("date: nonsense\nretry-after: Tue, 14 Nov 2023 22:13:40 GMT") == 20


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("6m0s", 360), ("1s", 1), ("20ms", 0.02), ("2m59.56s", 179.56), ("1h2m3s", 3723), ("1d", 86_400),
        ("12", 12), ("0s", 0), ("1700000045", 45), ("1700000045500", 45.5), ("1600000000", 0),
        ("2023-11-14T22:14:20Z", 60), ("2023-11-14T23:14:20+01:00", 60), ("2023-11-14T22:14:20.500Z", 60.5),
        ("2023-11-14T22:00:00Z", 0), ("9999-12-31T23:59:59Z", 251_702_300_799),
    ],
)  # fmt: skip
def test_a_reset_is_a_span_a_number_or_a_time(value: str, wait_s: float) -> None:
    assert told(f"x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: {value}") == wait_s


OPENAI = """x-ratelimit-limit-requests: 60
x-ratelimit-limit-tokens: 150000
x-ratelimit-remaining-requests: {requests}
x-ratelimit-remaining-tokens: {tokens}
x-ratelimit-reset-requests: 1s
x-ratelimit-reset-tokens: 6m0s
"""
ANTHROPIC = """anthropic-ratelimit-requests-limit: 1000
anthropic-ratelimit-requests-remaining: {requests}
anthropic-ratelimit-requests-reset: 2023-11-14T22:13:21Z
anthropic-ratelimit-input-tokens-limit: 80000
anthropic-ratelimit-input-tokens-remaining: {tokens}
anthropic-ratelimit-input-tokens-reset: 2023-11-14T22:14:20Z
"""


def test_the_reset_of_what_is_spent_counts_where_nothing_says_when_to_retry() -> None:
    assert told(OPENAI.format(requests=0, tokens=149_984)) == 1
    assert told(OPENAI.format(requests=59, tokens=0)) == 360
    assert told(OPENAI.format(requests=0, tokens=3)) == 360
    assert told(ANTHROPIC.format(requests=0, tokens=70_000)) == 1
    assert told(ANTHROPIC.format(requests=999, tokens=0)) == 60


def test_retry_after_goes_before_resets() -> None:
    assert told(OPENAI.format(requests=0, tokens=0) + "retry-after: 3") == 3
    assert told(OPENAI.format(requests=0, tokens=0) + "retry-after: 0") == 0


@pytest.mark.parametrize("fields", [OPENAI, ANTHROPIC])
def test_a_call_that_was_too_large_for_what_is_left_is_its_own_matter(fields: str) -> None:
    left = fields.format(requests=59, tokens=20_000) + "retry-after: 30"
    assert told(left, tokens=50_000) == 0
    assert told(left, tokens=1_000) == 30  # refused by a limit that is not told


def test_what_is_nearly_spent_is_spent_for_everybody() -> None:
    assert told(OPENAI.format(requests=59, tokens=1_400) + "retry-after: 30", tokens=50_000) == 30
    assert told(OPENAI.format(requests=59, tokens=1_600) + "retry-after: 30", tokens=50_000) == 0


def test_where_something_is_left_of_every_limit_none_is_spent() -> None:
    """However small the call was by our estimate, which its caller makes."""
    assert heard(OPENAI.format(requests=59, tokens=30_000) + "retry-after: 50", tokens=1) == (50, False)
    assert heard(ANTHROPIC.format(requests=59, tokens=30_000) + "retry-after: 50", tokens=1) == (50, False)
    assert heard("retry-after: 50") == (50, False)
    assert heard("x-ratelimit-reset-tokens: 50s") == (50, False)
    rejected = "anthropic-ratelimit-unified-{}status: rejected\nretry-after: 50"
    assert heard(rejected.format("overage-")) == (50, False)
    assert heard(rejected.format("")) == (50, True)
    assert heard(OPENAI.format(requests=59, tokens=0) + "retry-after: 50") == (50, True)


def test_a_limit_of_requests_that_is_spent_is_not_a_large_call() -> None:
    assert told(OPENAI.format(requests=0, tokens=20_000) + "retry-after: 30", tokens=50_000) == 30


def test_a_subscription_says_that_it_is_used_up() -> None:
    fields = """anthropic-ratelimit-unified-status: {status}
anthropic-ratelimit-unified-reset: 1700287441
anthropic-ratelimit-unified-5h-status: allowed
anthropic-ratelimit-unified-5h-reset: 1700001000
anthropic-ratelimit-unified-5h-utilization: 0.4
"""
    assert told(fields.format(status="rejected")) == 287_441
    assert told(fields.format(status="rejected") + "retry-after: 40") == 40


def test_without_a_word_of_what_is_left_the_first_reset_counts() -> None:
    assert told("x-ratelimit-reset-requests: 20s\nx-ratelimit-reset-tokens: 6m0s") == 20
    assert told("x-ratelimit-limit: 5\nx-ratelimit-reset: 1700000030") == 30


def test_where_nothing_is_spent_and_nothing_asks_to_wait_nobody_waits() -> None:
    assert told(OPENAI.format(requests=59, tokens=149_984)) == 0
    assert told("content-type: text/plain") == 0
    assert told("") == 0


def test_numbers_that_are_none_are_not_taken_for_nothing() -> None:
    """A remainder nobody can read is no remainder of 0."""
    assert told(OPENAI.format(requests="-1", tokens="lots")) == 1  # as if nothing were said of what is left
