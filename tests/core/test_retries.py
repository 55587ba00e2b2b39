"""Pauses between attempts grow up to a longest one, and end."""

from __future__ import annotations

from gateway.core.circuit_breaker import RetryPolicy, is_said


def test_pauses_grow_to_the_longest_and_end() -> None:
    retries = RetryPolicy(attempts_max=5, first_s=2.0, factor=4.0, longest_s=30.0)
    assert [retries.after_s(attempts) for attempts in range(1, 7)] == [2, 8, 30, 30, None, None]


def test_ever_fewer_of_many_failures_are_said() -> None:
    assert [failures for failures in range(1, 70) if is_said(failures)] == [1, 2, 4, 8, 16, 32, 64]
