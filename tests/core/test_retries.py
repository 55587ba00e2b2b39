"""Pauses between attempts grow up to a longest one, and end."""

from __future__ import annotations

from gateway.core.retries import Retries


def test_pauses_grow_to_the_longest_and_end() -> None:
    retries = Retries(attempts_max=5, first_s=2.0, factor=4.0, longest_s=30.0)
    assert [retries.after_s(attempts) for attempts in range(1, 7)] == [2, 8, 30, 30, None, None]
