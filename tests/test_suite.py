"""A test that fails once in company does not fail the run; one that fails again does, and so do many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import TRIES, UNSTEADY_MAX, VERIFY

ROOT = Path(__file__).resolve().parent.parent
# Fails as often as its file says, each time once less.
UNSTEADY = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("name", {names})
def test_it(name):
    left = Path(__file__).with_name(name)
    times = int(left.read_text()) if left.is_file() else {times}
    left.write_text(str(times - 1))
    assert times <= 0
"""


def run(folder: Path, names: int, times: int, *options: str) -> tuple[int, str]:
    file = folder / "test_them.py"
    file.write_text(UNSTEADY.format(names=[f"n{number}" for number in range(names)], times=times))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.suite", "-q", file.name, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stdout


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")])
def test_what_fails_once_is_named_and_the_run_is_green(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said = run(tmp_path, UNSTEADY_MAX, 1, *options)
    assert code == 0
    _, _, unsteady = said.partition("UNSTEADY")
    assert unsteady.count("test_them.py::test_it[n") == UNSTEADY_MAX
    assert "assert 1 <= 0" in said


@pytest.mark.parametrize("times", [TRIES, TRIES + 1])
def test_what_fails_again_fails_the_run(tmp_path: Path, times: int) -> None:
    code, said = run(tmp_path, 1, times)
    assert (code, "UNSTEADY" in said) == (1, False)


@pytest.mark.parametrize(("names", "options"), [(UNSTEADY_MAX + 1, ()), (2, ("-x",))])
def test_nothing_is_tried_again_where_much_failed_or_not_all_was_run(
    tmp_path: Path, names: int, options: tuple[str, ...]
) -> None:
    code, said = run(tmp_path, names, 1, *options)
    assert (code, "again" in said) == (1, False)


def test_a_run_without_a_failure_is_green(tmp_path: Path) -> None:
    code, said = run(tmp_path, 1, 0)
    assert (code, "again" in said) == (0, False)


def test_each_part_of_the_second_tier_is_there_and_stands_once() -> None:
    assert [path for path in VERIFY if not (ROOT / path).exists()] == []
    assert [
        path for path in VERIFY if any(Path(path).is_relative_to(other) for other in VERIFY if other != path)
    ] == []
