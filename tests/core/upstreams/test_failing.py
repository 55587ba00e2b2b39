"""Failures of upstreams are told once in a while, and each is in one telling."""

from __future__ import annotations

from gateway.core.circuit_breaker import TELL_EACH_S, UnreportedFailures


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
