"""Shells complete the program's words, once they were told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT
from tests.waiting import HUNG_S


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with the program on the path and a home of its own."""
    program = tmp_path / "bin" / "tollkeeper"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n')
    program.chmod(0o755)
    return os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def said(words: list[str], environ: dict[str, str]) -> str:
    ran = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=HUNG_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("bash", {"COMP_WORDS": "tollkeeper tenant re", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "tollkeeper tenant re"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "tollkeeper tenant re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_each_shell_is_given_the_words_that_fit(
    shell: str, asked: dict[str, str], environ: dict[str, str]
) -> None:
    words = said(["tollkeeper"], environ | asked | {"_TOLLKEEPER_COMPLETE": f"complete_{shell}"})
    assert "recharge" in words
    assert "reset" in words
    assert "unblock" not in words


def test_it_is_installed_in_a_home_and_works_there(environ: dict[str, str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    said([bash, "-c", "tollkeeper --install-completion; true"], environ)
    assert "tollkeeper" in (tmp_path / ".bashrc").read_text()
    typed = (
        "source ~/.bashrc; COMP_WORDS=(tollkeeper in); COMP_CWORD=1; _tollkeeper_completion tollkeeper; "
        'echo "${COMPREPLY[@]}"'
    )
    assert said([bash, "--norc", "-c", typed], environ).split() == ["init", "invoice"]
