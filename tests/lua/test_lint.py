"""luacheck has nothing to say of the scripts, and would have."""

from __future__ import annotations

import pytest

from gateway.counters.redis import scripts
from tests.lua.lint import warnings


def test_the_library_has_no_warnings() -> None:
    assert warnings(scripts.library().text) == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("local function of(a) return 1 end\nreturn of(1)", "W212"),
        ("local a = 1\nlocal function of(a) return a end\nreturn of(a)", "W431"),
        ("return nowhere", "W113"),
        ("somewhere = 1", "W111"),
        ("local a = 1", "W211"),
    ],
)
def test_what_is_wrong_is_said(wrong: str, code: str) -> None:
    assert [code in line for line in warnings(f"#!lua name=x\n{wrong}\n")] == [True]
