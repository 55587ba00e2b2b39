"""Forked processes run each test once, and say what a process died of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.waiting import HUNG_S

ROOT = Path(__file__).resolve().parent.parent
CONFTEST = """
import os, pathlib, pytest
from tests import forked
from tests.conftest import pytest_addoption, pytest_runtestloop

@pytest.fixture(scope="session")
def server():
    yield os.getpid()
    pathlib.Path(__file__).with_name(f"ended-{os.getpid()}").touch()
"""
FILE = """
import os, pathlib, pytest

def test_first(server, tmp_path):
    assert server == os.getpid() != os.getppid()

def test_second(server):
    {second}

@pytest.mark.skip(reason="for its report")
def test_skipped():
    pass

def test_third(server):
    pathlib.Path(__file__).with_name("third-" + pathlib.Path(__file__).stem).touch()
"""


@pytest.mark.parametrize(
    ("second", "options", "words"),
    [
        ("assert True", (), ["9 passed, 3 skipped"]),
        ("assert server == 0", (), ["3 failed, 6 passed, 3 skipped"]),
        ("os._exit(7)", (), ["3 failed, 6 passed, 3 skipped", "a process of tests ended with 7"]),
        ("os.abort()", (), ["a process of tests ended with -6", "in test_second"]),
        ("assert server == 0", ("-x",), ["stopping after"]),
    ],
)
def test_each_test_is_run_once_whatever_becomes_of_its_process(
    tmp_path: Path, second: str, options: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number in range(3):
        (tmp_path / f"test_{number}.py").write_text(FILE.format(second=second))
    environment = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TEST_WORKER": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "--processes", "2", "--rootdir", ".", *options],
        cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False,
        timeout=HUNG_S,
    )  # fmt: skip
    assert [word for word in words if word not in ended.stdout] == [], ended.stdout
    if not options:
        assert len(list(tmp_path.glob("third-*"))) == 3
    if second.startswith("assert"):  # fixtures of a session end with their process
        assert list(tmp_path.glob("ended-*"))


def test_a_test_that_is_too_dear_is_named_unless_it_has_a_reason() -> None:
    costs = {
        "a.py::test_cheap": 1.9,
        "a.py::test_dear[x]": 9.0,
        "a.py::test_excused[y]": 9.0,
        "a.py::test_slow": 9.0,
    }
    [said] = forked.too_dear(costs, 2.0, {"a.py::test_slow": 3.0}, {"a.py::test_excused"})
    assert said.startswith("a.py::test_dear[x] costs 9.0 CPU s, at most 6.0 here")


def test_each_test_that_is_excused_for_its_cost_exists() -> None:
    for test in forked.DEAR:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), test
