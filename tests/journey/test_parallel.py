"""No amount of parallel calls gets past a limit by more than one call's own size."""

from __future__ import annotations

from tests.journey.parallel import CALLS, SIZE, against_minute, against_quota
from tests.journey.stack import Stack


def test_a_quota_for_one_call_admits_one_of_five_hundred(stack: Stack) -> None:
    crowd = against_quota(stack)
    assert crowd.overshoot <= SIZE
    assert crowd.outcomes == {(200, ""): 1, (429, "quota_held"): CALLS - 1}


def test_a_hundred_tokens_a_minute_are_passed_by_one_call_at_most(stack: Stack) -> None:
    crowd = against_minute(stack)
    assert crowd.overshoot <= SIZE
    assert set(crowd.outcomes) == {(200, ""), (429, "rate_limited")}
