"""The compiled hot path is held to the very tests of the interpreted one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_S_MAX = 900


def compiler() -> object:
    spec = importlib.util.spec_from_file_location("compile_hot_path", ROOT / "deploy" / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    bool(compiler().lacking()),  # type: ignore[attr-defined]  # a script, loaded by its path
    reason="this machine has no C compiler or no Python.h",
)
def test_compiled_hot_path_passes_the_data_planes_tests(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "compile.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert build.returncode == 0, build.stderr[-2000:]
    assert list((tmp_path / "gateway" / "http").glob("proxy.*.so"))
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    run = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            *("tests/http", "tests/core", "tests/counters"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
