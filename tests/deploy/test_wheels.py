"""What `pip install` takes: all that runs is in the wheel, and all that says a version says the same."""

from __future__ import annotations

import email
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from gateway.extras import version
from tests.deploy import installed
from tests.tree import ROOT

PACKAGES = ("gateway", "persistence", "lua")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    said = installed.said_by(sys.executable, ROOT / "deploy" / "wheels.py", folder, "--pure", cwd=folder)
    return Path(said.strip())


def parts(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


def test_each_file_of_the_packages_is_in_the_wheel_and_no_other(wheel: Path) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
    }
    made = {"gateway/cli/admin/commands.json"}
    assert {name for name in parts(wheel) if ".dist-info/" not in name} == here | made
    assert {Path(name).suffix for name in here} >= {".lua", ".sql", ".html", ".css", ".js", ".typ", ".json"}


def test_it_asks_for_what_the_project_asks_for(wheel: Path) -> None:
    assert wheel.name == f"tollkeeper_gateway-{VERSION}-py3-none-any.whl"
    about = email.message_from_bytes(parts(wheel)[f"tollkeeper_gateway-{VERSION}.dist-info/METADATA"])
    asked = [one for one in about.get_all("Requires-Dist", []) if "extra ==" not in one]
    plain = {re.sub(r"\s", "", one) for one in asked}
    assert plain == {re.sub(r"\s", "", one) for one in PROJECT["dependencies"]}
    assert (about["Version"], about["Requires-Python"]) == (VERSION, PROJECT["requires-python"])


def test_up_runs_from_an_environment_that_has_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    programs = installed.install(wheel, tmp_path)
    assert installed.place_of(programs, "gateway.http.proxy", tmp_path).is_relative_to(tmp_path / "venv")
    assert installed.said_by(programs / "tollkeeper", "--version", cwd=tmp_path) == f"tollkeeper {VERSION}\n"
    found = installed.up(programs, tmp_path)
    assert found["answer"]["choices"][0]["message"]["content"]
    assert found["openapi"]["info"]["version"] == VERSION
    assert '<link rel="stylesheet" href="/static/' in found["page"]
    assert found["status"] == 0


def test_everything_that_says_a_version_says_the_same() -> None:
    """The project's own file says it; the chart's number is the same as Helm wants it written."""
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "tollkeeper" / "Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION
    assert chart["version"] == re.sub(r"(?<=\d)rc(?=\d)", "-rc.", VERSION)
    label = re.findall(r'^ARG VERSION="(.*)"$', (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert label == [VERSION]
    assert version() == VERSION  # of this environment, which programs of the checkout say
