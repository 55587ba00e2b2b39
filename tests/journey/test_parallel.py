"""No amount of parallel calls gets past a limit by more than one call's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.journey.parallel import (
    CALLS,
    READ,
    SIZE,
    Crowd,
    against_credits,
    against_minute,
    against_quota,
    against_strict,
    obedient,
)
from tests.journey.stack import Stack


@pytest.fixture
def bound(own_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack whose upstream writes no more than it is told."""
    with obedient() as url:
        yield own_stack("--upstream", url)


def test_a_quota_for_one_call_admits_one_of_five_hundred(stack: Stack) -> None:
    crowd = against_quota(stack)
    assert crowd.overshoot <= SIZE
    assert crowd.outcomes == {(200, ""): 1, (429, "quota_held"): CALLS - 1}


def test_a_hundred_tokens_a_minute_are_passed_by_one_call_at_most(stack: Stack) -> None:
    crowd = against_minute(stack)
    assert crowd.overshoot <= SIZE
    assert set(crowd.outcomes) == {(200, ""), (429, "rate_limited")}


@pytest.mark.parametrize("against", [against_strict, against_credits])
def test_calls_without_a_maximum_never_use_more_than_they_hold(
    bound: Stack, against: Callable[[Stack], Crowd]
) -> None:
    """500 calls of 5,000 tokens each: 100,000 tokens of a strict plan, or 5,000 credits at one a token."""
    crowd = against(bound)
    assert READ < crowd.used <= crowd.funds
    assert crowd.admitted > 0
    assert crowd.outcomes.keys() <= {
        (200, ""),
        (429, "quota_held"),
        (429, "quota_exceeded"),
        (402, "insufficient_credits"),
    }
