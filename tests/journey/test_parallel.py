"""No amount of parallel calls gets past a limit by more than one call's own size."""

from __future__ import annotations

from tests.journey.parallel import CALLS, READ, SIZE, against_credits, against_quota, obedient
from tests.stage import Stage


def test_a_quota_for_one_call_admits_one_of_five_hundred(stage: Stage) -> None:
    crowd = against_quota(stage)
    assert crowd.overshoot <= SIZE
    # Those that come once the admitted call was settled meet a quota that is used up.
    assert crowd.outcomes.keys() <= {(200, ""), (429, "quota_held"), (429, "quota_exceeded")}
    assert (crowd.outcomes[200, ""], sum(crowd.outcomes.values())) == (1, CALLS)


def test_calls_without_a_maximum_never_use_more_than_they_hold(other_stage: Stage) -> None:
    """500 calls of 5,000 tokens each, against 5,000 credits at one a token."""
    with obedient() as url, other_stage.switch.to(url):
        crowd = against_credits(other_stage)
    assert READ < crowd.used <= crowd.funds
    assert crowd.admitted > 0
    assert crowd.outcomes.keys() <= {(200, ""), (429, "quota_held"), (402, "insufficient_credits")}
