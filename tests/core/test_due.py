"""When times have come by which lists in Redis are scored, and which lists these are."""

from __future__ import annotations

import pytest

from gateway.core.due import bounds_ahead, has_come
from tests.tree import ROOT

# By file that scores a list by time, the rule for members that stand too far ahead.
RULES = {
    "gateway/counters/late.py": "deadlines of holds, 49 h: due",
    "gateway/features/jobs/stored.py": "next looks at jobs, an interval, or 300 or 3600 s: due",
    "gateway/counters/keeper/program_registry.py": "programs, 90 s: gone",
    "lua/share.lua": "calls of an upstream, 30 s: gone",
    "lua/extend.lua": "deadlines, which each renewal sets anew; late.py",
    "lua/lease.lua": "deadlines; late.py",
    "lua/reserve.lua": "deadlines; late.py",
    "gateway/counters/history_guard.py": "pulses only rise: an older one is what they are for",
    "gateway/counters/admission/caller_holds.py": "places of a caller; each goes with its hold",
    "lua/grow.lua": "objects of a caller; the index is bounded by their number",
    "gateway/counters/admission/empty_accounts.py": "empty accounts; each goes with its own key, after a day",
    "gateway/counters/admission/model_sessions.py": "sessions of a tenant; the list ends with the last one, an hour later",
    "gateway/counters/keeper/budget_accounts.py": "accounts and runs of a caller; each goes with its key",
    "lua/lib/budget_accounts.lua": "the same",
    "lua/run.lua": "the same",
    "gateway/counters/keeper/client.py": "none: the right to do it",
    "gateway/ops/doctor_redis.py": "none: the right to do it",
}


@pytest.mark.parametrize(
    ("at", "come"), [(99, True), (100, True), (101, False), (120, False), (121, True), (float("inf"), True)]
)
def test_time_has_come_in_the_past_or_beyond_two_distances(at: float, come: bool) -> None:
    assert has_come(at, now=100, longest=10) is come
    assert has_come(at, now=100, longest=0), "nothing waits in a list that puts nothing ahead"


def test_scores_beyond_begin_behind_two_distances_and_have_an_end() -> None:
    assert bounds_ahead(100, 10) == (b"(120", b"(+inf")


def test_each_list_that_is_scored_has_a_rule() -> None:
    files = [*ROOT.glob("gateway/**/*.py"), *ROOT.glob("lua/**/*.lua")]
    scored = {str(file.relative_to(ROOT)) for file in files if "ZADD" in file.read_text()}
    assert scored == RULES.keys()
