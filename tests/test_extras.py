"""Extras are extras: without them all else runs, and what needs one says how to install it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from gateway import extras
from gateway.errors import MissingExtra
from gateway.extras import LIBRARIES, is_installed, loading
from tests.deploy import installed
from tests.tree import ROOT
from tests.waiting import HUNG_S

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Modules that load a library of an extra as they are loaded; others load those where they need them.
LOADS = """
import importlib, json, pkgutil, gateway, persistence
lacking = []
for package in (gateway, persistence):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            module.name.endswith(("__main__", "migrations.env")) or importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            lacking.append(error.name)
print(json.dumps(lacking))
"""


def test_version_is_that_of_the_installed_distribution() -> None:
    assert extras.version() == version(extras.DISTRIBUTION)


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For a Python that sees this project and the packages of the base alone."""
    base = installed.base(tmp_path_factory.mktemp("installed") / "base", extras.DISTRIBUTION)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{base}"}


def run(environ: dict[str, str], *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-P", *words]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=HUNG_S, cwd=cwd
    )


def test_each_extra_has_its_libraries_and_its_lock() -> None:
    assert LIBRARIES.keys() == EXTRAS.keys() - {"all", "dev"}
    assert EXTRAS["all"] == [f"{extras.DISTRIBUTION}[{','.join(LIBRARIES)}]"]
    brought_by = packages_distributions()
    for extra, libraries in LIBRARIES.items():
        locked = pins(f"{extra}.lock")
        assert {re.split(r"[\[>=]", wanted)[0] for wanted in EXTRAS[extra]} <= locked <= pins("all.lock")
        for library in libraries:
            assert locked & {name.lower() for name in brought_by.get(library, [library.replace("_", "-")])}


def pins(lock: str) -> set[str]:
    """The packages of a lock, and of those that it names."""
    text = (ROOT / "deploy" / "extras" / lock).read_text()
    found = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    return found.union(*(pins(other) for other in re.findall(r"^-r (\S+)$", text, re.MULTILINE)))


def test_without_extras_modules_are_loaded_that_need_none(environ: dict[str, str]) -> None:
    said = run(environ, "-c", LOADS)
    assert said.returncode == 0, said.stderr
    assert sorted(json.loads(said.stdout)) == ["grpc", "jwt", "stripe", "typst", "wsproto", "wsproto"]


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["invoice", "--help"]])
def test_without_extras_the_command_line_helps(environ: dict[str, str], words: list[str]) -> None:
    said = run(environ, "-m", "gateway", *words)
    assert (said.returncode, "Usage: tollkeeper" in said.stdout) == (0, True), said.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["archive", "--to", "archive", "--database-url", "postgresql://h/d"], "archive"),
        (["backup", "--to", "s3://bucket/folder", "--database-url", "postgresql://h/d"], "backup"),
        (["restore", "--from", "s3://bucket/folder/one", "--database-url", "postgresql://h/d"], "backup"),
        (["call", "list", "--archive", "archive"], "archive"),
        (["rls", "--config", "rls.yaml"], "rls"),
        (["keeper"], "stripe"),
        (["up", "--data-dir", "data"], "stripe"),
        (["up", "--data-dir", "data"], "up"),
    ],
)
def test_a_command_says_which_extra_it_needs(
    environ: dict[str, str], tmp_path: Path, words: list[str], extra: str
) -> None:
    more = {"TOLLKEEPER_STRIPE_API_KEY": "sk_test_of_these_tests"} if extra == "stripe" else {}
    more["TOLLKEEPER_DATA_DIR"] = str(tmp_path)
    said = run(environ | more, "-m", "gateway", *words, cwd=tmp_path)
    assert said.returncode == 1
    assert extras.install(extra) in said.stderr.splitlines()[-1]


def test_what_another_module_lacks_is_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stripe", None)
    assert not is_installed("stripe")
    with pytest.raises(MissingExtra, match=re.escape(extras.install("stripe"))), loading("stripe"):
        importlib.import_module("stripe")
    with pytest.raises(ModuleNotFoundError), loading("stripe"):
        importlib.import_module("gateway.no_such_module")
