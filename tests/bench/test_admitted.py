"""The bench of limits: ours passes none and forgets nothing, and the table tells who does."""

from __future__ import annotations

import pytest

from tests.bench.admitted import OK, REFUSED, Round, as_markdown, killed, stage, upstream
from tests.bench.limited import KINDS, message


@pytest.mark.nightly
def test_ours_admits_what_the_budget_is_worth_and_remembers_it_when_killed() -> None:
    with upstream() as asked, stage(asked) as mine:
        together, after = killed(KINDS["tollkeeper"].start(mine, 4), 16, 4)
    assert set(together) == {OK, REFUSED}
    assert 1 <= together[OK] <= together[OK] + after[OK] <= 4
    assert after[REFUSED] == 1


def test_the_table_tells_least_and_most_and_what_it_came_to() -> None:
    rounds = [
        Round("nginx", admitted=20, answered=10, forgotten=10, failed=0),
        Round("litellm", admitted=70, answered=10, forgotten=0, failed=1),
        Round("litellm", admitted=90, answered=10, forgotten=4, failed=0),
    ]
    text = as_markdown(rounds, {"envoy": "does not start"}, calls=500, worth=20)
    assert "| nginx | `limit_req`: requests | 20 | 0 | 10 of 10 |" in text
    assert "| 70 to 90 | 70 calls, 0.005040 USD | 0 to 4 of 10, 0.000288 USD |" in text
    assert "Least and most of all rounds (2)" in text
    assert "- LiteLLM: **1 calls failed**" in text
    assert "- left out: Envoy: does not start" in text
    assert "| Tollkeeper |" not in text, "what was not measured has no row"


def test_every_contender_is_sent_the_same_but_for_its_key() -> None:
    bodies = {message(key).partition(b"\r\n\r\n")[2] for key in ("a", "another")}
    assert [len(body) for body in bodies] == [1_136], "of which the hand-made limiter estimates what is used"
