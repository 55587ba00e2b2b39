"""How long an upstream asks to be left alone: each provider's words for it, and words that say nothing."""

from __future__ import annotations

import pytest

from gateway.core.circuit_breaker import wait_told

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def told(text: str, tokens: int = 100) -> float:
    return round(heard(text, tokens)[0], 6)


def heard(text: str, tokens: int = 100) -> tuple[float, bool]:
    return wait_told([line.encode() for line in text.split("\n") if line], tokens, NOW)


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
