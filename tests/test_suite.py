"""The tiers name files that are there, a run of them fails where one test does, and what failed is said."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search import seeds_of
from tests.suite import VERIFY
from tests.waiting import HUNG_S

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("text", "code"), [("assert True", 0), ("assert False", 1)])
def test_one_test_that_fails_fails_the_run(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {text}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.suite", "-q", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        timeout=HUNG_S,
        check=False,
    )
    assert ended.returncode == code


def test_each_part_of_the_second_tier_is_there_and_stands_once() -> None:
    assert [path for path in VERIFY if not (ROOT / path).exists()] == []
    assert [
        path for path in VERIFY if any(Path(path).is_relative_to(other) for other in VERIFY if other != path)
    ] == []


def test_a_seed_that_fails_is_played_first_until_it_passes(tmp_path: Path) -> None:
    def play(fails_at: int) -> list[int]:
        played = list[int]()
        with suppress(ValueError), seeds_of("histories", 7, 3, tmp_path) as seeds:
            for seed in seeds:
                played.append(seed)
                if seed == fails_at:
                    raise ValueError
        return played

    usual = play(0)
    assert play(usual[1]) == usual[:2]
    assert play(0) == [usual[1], *usual]
    assert play(0) == usual


def test_the_example_that_fails_is_printed() -> None:
    @settings(database=None)
    @given(st.just("a value"))
    def fails(value: str) -> None:
        raise AssertionError(value)

    with pytest.raises(AssertionError) as failed:
        fails()
    assert "value='a value'" in "".join(failed.value.__notes__)
