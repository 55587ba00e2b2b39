"""Steps of budgets: which substitute a model has, in which order steps count, and which one is taken."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gateway.core.accounts.steps import (
    ENTRY_BYTES,
    JUDGED_MAX,
    STEP_PARTS,
    WEIGHED_MAX,
    MatchedStep,
    Step,
    StepMatches,
    Weighed,
    matched_steps,
    substitutes_of,
    taken_step,
)


@pytest.mark.parametrize(
    ("model", "substitute"),
    [
        ("claude-opus-4-6", "whole"), ("CLAUDE-OPUS-4-6", "whole"), ("claude-opus-4-7", "longer"),
        ("claude-sonnet", "shorter"), ("claude-", "shorter"), ("claude", "any"), ("Longer", "any"), ("", "any"),
    ],
)  # fmt: skip
def test_a_whole_name_goes_before_the_longest_beginning(model: str, substitute: str) -> None:
    models = (
        ("*", "any"),
        ("claude-*", "shorter"),
        ("Claude-Opus-*", "longer"),
        ("claude-opus-4-6", "whole"),
    )
    assert Step(0.5, models).substitute_of(model) == substitute
    assert Step(0.5, models[::-1]).substitute_of(model) == substitute


def test_matches_are_remembered_by_the_version_of_budgets_within_their_bytes() -> None:
    matches, versions = StepMatches(4 * ENTRY_BYTES), [object(), object()]
    low, high = [((1, (Step(at, (("dear*", "cheap"),)),)),) for at in (0.5, 0.9)]
    known = matches.find(versions[0], low, "dear")
    assert matches.find(versions[0], low, "dear") is known == matched_steps(low, "dear")
    assert matches.find(versions[1], high, "dear") == matched_steps(high, "dear")
    assert matches.find(versions[0], (*low, (2, low[0][1])), "dear") == (
        *known,
        MatchedStep(2, 500_000, "cheap", False),
    )
    for number in range(4):
        assert matches.find(versions[0], low, f"dear-{number}") == known
    assert matches.find(versions[0], low, "dear") is not known


def test_a_model_is_no_substitute_of_itself() -> None:
    assert Step(0.5, (("*", "Cheap"),)).substitute_of("cheap") == ""
    assert Step(0.5, (("dear", "cheap"),)).substitute_of("dearer") == ""


@pytest.mark.parametrize("at", [0.0, 0.07, 0.1, 0.29, 1 / 3, 0.8, 0.999999, 1.0])
def test_a_part_is_in_millionths_rounded_up(at: float) -> None:
    parts = Step(at, ()).parts
    assert Fraction(str(at)) <= Fraction(parts, STEP_PARTS) < Fraction(str(at)) + Fraction(1, STEP_PARTS)


def test_a_bounded_number_of_steps_match_by_budget_and_the_greatest_at_first() -> None:
    low, high, none = (
        Step(0.2, (("d*", "a"),)),
        Step(0.9, (("d*", "b"),), switches=True),
        Step(0.5, (("x", "c"),)),
    )
    assert matched_steps(((7, (low, none, high)), (3, (low,))), "dear") == (
        MatchedStep(3, 200_000, "a", False), MatchedStep(7, 900_000, "b", True), MatchedStep(7, 200_000, "a", False),
    )  # fmt: skip
    many = tuple(
        (budget, tuple(Step(at / 20, (("d*", f"m{budget}-{at}"),)) for at in range(20)))
        for budget in range(16)
    )
    matched = matched_steps(many, "dear")
    assert (len(matched), matched[-1].budget_id) == (JUDGED_MAX, JUDGED_MAX // 20 - 1)
    assert substitutes_of(matched) == [f"m0-{at}" for at in range(19, -1, -1)][:WEIGHED_MAX]


def test_of_steps_that_hold_alike_the_smaller_budget_counts_then_the_greatest_at() -> None:
    def step(budget: int, parts: int) -> MatchedStep:
        return MatchedStep(budget, parts, f"m{budget}-{parts}", False)

    weighed = [
        Weighed(step(2, 9), (5, 0)),
        Weighed(step(1, 3), (5, 0)),
        Weighed(step(1, 8), (5, 0)),
        Weighed(step(3, 1), (4, 9)),
    ]
    assert taken_step(weighed) == step(3, 1)
    assert taken_step(weighed[:3]) == step(1, 8)
    assert taken_step(weighed[:1]) == step(2, 9)
    assert taken_step([]) is None
