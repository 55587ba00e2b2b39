"""The workflows of CI and release: right by their schema, and made of what the tree has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tree import ROOT
from tests.waiting import HUNG_S

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# What may leave, by the job that needs the right to.
RIGHTS = {
    "wheels": {"id-token", "attestations"}, "packages": {"id-token"}, "image": {"packages", "id-token"},
    "chart": {"packages", "id-token"},
}  # fmt: skip


def jobs(workflow: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def test_they_are_right_by_their_schema() -> None:
    words = [ROOT / ".venv/bin/check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HUNG_S, check=False)
    assert (len(WORKFLOWS), done.returncode) == (4, 0), done.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda one: one.stem)
def test_what_they_run_is_there(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = workflow.read_text()
    assert set(re.findall(r"\bmake ([a-z-]+)", said)) <= targets
    for path in re.findall(r"\bdeploy/[\w./-]+", said):
        assert (ROOT / path).exists(), path


def test_every_python_is_tested_and_has_a_wheel() -> None:
    for workflow, job in (("ci", "test"), ("release", "wheels")):
        found = jobs(ROOT / ".github" / "workflows" / f"{workflow}.yml")[job]
        assert found["strategy"]["matrix"]["python"] == PYTHONS
    for name in ("README.md", "CONTRIBUTING.md", "Makefile", "docs/index.md", "docs/operate/install.md"):
        spans = re.findall(r"Python 3\.\d+ to 3\.\d+", (ROOT / name).read_text())
        assert set(spans) == {f"Python {PYTHONS[0]} to {PYTHONS[-1]}"}, name
    assert f"newer than {PYTHONS[-1]}, the newest" in (ROOT / ".ci/environment").read_text()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda one: one.stem)
def test_a_job_may_write_only_where_it_must(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(workflow).items():
        rights = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert rights == RIGHTS.get(name, set()), name
        assert not rights or name == "wheels" or job["environment"] == "release"
