"""A pattern takes what it says and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.model import Patterns, on_list


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("gpt-4o", "gpt-4o*", True),
        ("gpt-4o-2024-11-20", "gpt-4o*", True),
        ("GPT-4o", "gpt-4o*", False),
        ("my-gpt-4o", "gpt-4o*", False),
        ("gpt-4o", "*", True),
        ("gpt-4o-mini", "*-mini", True),
        ("gpt.4o", "gpt?4o*", False),
        ("gpt-4o", "gpt-[4]o*", False),
        ("aba", "ab*ba", False),
        ("gpt-4o,o1-pro", "gpt-4o*", False),
    ],
)
def test_a_star_stands_for_any_characters_and_all_else_for_itself(
    name: str, pattern: str, fits: bool
) -> None:
    assert on_list(name, ["x", pattern]) == Patterns(["x", pattern]).hold(name) == fits


@given(st.text("ab*", max_size=6).map(lambda text: text + "*"), st.text("ab", max_size=8))
def test_patterns_fit_as_regular_expressions_do(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    fits = bool(re.fullmatch(expression, name))
    assert on_list(name, [pattern]) == Patterns(["x", pattern]).hold(name) == fits
