"""The bench of a rolling restart says what was not as it should be."""

from __future__ import annotations

from collections import Counter

from tests.bench.rolling import report, went_well
from tests.deploy.rolling import USED, Charged, Load, Outcome

LOAD = Load(rate=10, clients=2, streams=1)
ONCE = Charged(4, 4, 4 * USED)


def outcome() -> Outcome:
    return Outcome(statuses=Counter({200: 4}), took=[0.1] * 4, streams=1, seconds=2.0)


def test_what_failed_or_was_cut_is_told() -> None:
    for told in (
        {"failures": Counter({"ConnectionResetError": 1})},
        {"statuses": Counter({200: 4, 503: 1})},
        {"cut": Counter({"IncompleteReadError": 1})},
    ):
        one = outcome()
        for name, value in told.items():
            setattr(one, name, value)
        assert not went_well(one)
        assert report(LOAD, 1, one, ONCE, ONCE).count("| 1 |\n") == 1
    assert went_well(outcome())


def test_what_is_charged_twice_is_told() -> None:
    assert "| calls charged exactly once | 4 |" in report(LOAD, 1, outcome(), ONCE, ONCE)
    twice = Charged(5, 4, 5 * USED)
    assert "| calls charged exactly once | **no**" in report(LOAD, 1, outcome(), twice, ONCE)
