"""A feature is one place: what its record names is there, and nobody but itself imports it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import typer

from gateway.calls.ports import RefusedRuns
from gateway.core.accounts.runs import read_run
from gateway.errors import InvalidRequest, RunNotFound
from gateway.feature import features
from gateway.features.record import Feature, load
from gateway.http.ports import refuse_later
from gateway.settings.settings import NAMES as SETTINGS
from gateway.telemetry.metrics import FACTS
from persistence.tables import metadata
from tests.http.fakes import CALLER
from tests.numbers import FOLDERS_A_FEATURE_MAX, folders_of, imports
from tests.tree import ROOT
from tests.waiting import HUNG_S

NAMES = [feature.name for feature in features()]
# Everything that is composed of features, and every module that is left.
EVERYTHING = """
import importlib, pkgutil, gateway, persistence
for package in (gateway, persistence):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".versions." not in found.name and not found.name.endswith((".env", "__main__")):
            importlib.import_module(found.name)
from gateway.feature import features
from gateway.admin.api.openapi import document
from gateway.admin.resources.registry import RESOURCES, REPORTS
from gateway.cli import main
from gateway.cli.admin import program
document(RESOURCES, REPORTS, version="1")
program.mount(main.app)
print(*(feature.name for feature in features()))
"""
# The reference pages, and what a process says of itself and takes to the workers at its start.
STARTED = """
import json
from deploy.reference import pages
from gateway.core.capabilities import CAPABILITIES
from gateway.settings.settings import NAMES, from_json, load, to_json
settings = load({})
assert from_json(to_json(settings)).values() == settings.values()
made = {name: text for name, text in pages().items() if name.endswith(".md")}
print(json.dumps({"capabilities": [*CAPABILITIES], "settings": [*NAMES], "pages": made}))
"""
# Features that a house without Envoy, another gateway before, a provider's invoices or live audio takes away first.
TAKEN_AWAY = (
    "litellm_import",
    "openrouter_import",
    "portkey_import",
    "provider_report",
    "rate_limit_service",
    "vendor_admin",
    "websockets",
)
# Headings of their commands in the reference.
COMMANDS_OF = {
    "litellm_import": "### tollkeeper import litellm",
    "openrouter_import": "### tollkeeper import openrouter",
    "portkey_import": "### tollkeeper import portkey",
    "provider_report": "## tollkeeper reconcile-provider",
    "rate_limit_service": "## tollkeeper rls",
}
# What features add to the process of a keeper's loops, where settings say nothing.
WORK = """
import sys
from gateway.background.loops import Isolation
from gateway.feature import features
from gateway.run.keeper_parts import KeeperParts
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import Settings
settings = Settings()
later = KeeperSettings(settings, None, print, print)
parts = KeeperParts(
    settings=settings, later=later, engine=None, store=None, counters=None, isolation=Isolation(), log=print
)
for feature in features():
    feature.work(parts)
print([name for name in ("pydantic", "aiohttp.web", "jinja2", "stripe", "typst") if name in sys.modules])
"""


@pytest.mark.parametrize("feature", features(), ids=lambda feature: feature.name)
def test_every_table_setting_and_metric_declared_by_a_feature_exists(feature: Feature) -> None:
    assert isinstance(feature, Feature)
    assert set(feature.tables) <= set(metadata.tables)
    if feature.settings is not None:
        assert feature.settings.__module__ == f"gateway.features.{feature.name}.settings"
        assert set(feature.settings.__struct_fields__) <= set(SETTINGS)
    assert {name for name, *_ in feature.metrics} <= {fact.name for fact in FACTS}
    app = typer.Typer()
    feature.commands(app)
    feature.admin_commands(app)
    for name in ("resources", "actions", "verbs", "subjects", "invoice_history",
                 "listeners", "invoice_listeners", "list_sources"):  # fmt: skip
        assert iter(getattr(feature, name)())
    assert (
        feature.name
        == Path(sys.modules[f"gateway.features.{feature.name}.feature"].__file__ or "").parent.name
    )


def test_every_code_location_declared_by_a_feature_can_be_imported() -> None:
    records = sorted((ROOT / "gateway" / "features").glob("*/feature.py"))
    places = [
        place
        for record in records
        for place in re.findall(r'"((?:gateway|persistence)[\w.]+:\w+)"', record.read_text(encoding="utf-8"))
    ]
    assert places
    for place in places:
        assert load(place) is not None, place


def test_keeper_background_work_imports_no_web_template_or_payment_library() -> None:
    ran = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, check=True, text=True, capture_output=True)
    assert ran.stdout.strip() == "[]"


def test_no_module_outside_a_feature_imports_that_feature() -> None:
    graph = imports()
    for name in NAMES:
        roots = [f"gateway.features.{name}", f"persistence.{name}"]
        own = {root for root in roots if root in graph.modules}
        own |= {module for root in tuple(own) for module in graph.find_descendants(root)}
        others = {other for module in own for other in graph.find_modules_that_directly_import(module)} - own
        assert others == set(), name


def test_code_of_a_feature_lies_in_no_more_than_the_allowed_number_of_folders() -> None:
    for name in NAMES:
        assert len(folders_of(name)) <= FOLDERS_A_FEATURE_MAX, folders_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_program_still_loads_when_the_code_of_a_feature_is_deleted(name: str, tmp_path: Path) -> None:
    assert output_without(tmp_path, (name,), EVERYTHING).split() == [
        other for other in NAMES if other != name
    ]


def test_rest_starts_and_is_documented_without_seven_features(tmp_path: Path) -> None:
    whole, rest = (
        json.loads(output_without(tmp_path / str(len(taken)), taken, STARTED)) for taken in ((), TAKEN_AWAY)
    )
    assert (rest["capabilities"], rest["settings"]) == (whole["capabilities"], whole["settings"])
    assert output_without(tmp_path / "5", (), WORK).strip() == "[]"
    for page, text in rest["pages"].items():
        assert set(text.splitlines()) <= set(whole["pages"][page].splitlines()), page
    for heading in COMMANDS_OF.values():
        assert heading in whole["pages"]["commands.md"]
        assert heading not in rest["pages"]["commands.md"]


def output_without(folder: Path, names: Collection[str], script: str) -> str:
    """Return what a script prints in a copy of the product in `folder` whose code of these features is deleted."""
    if not folder.exists() or not any(folder.iterdir()):
        for package in ("gateway", "persistence", "lua", "deploy"):
            shutil.copytree(ROOT / package, folder / package)  # with what is compiled of it
    for name in names:
        shutil.rmtree(folder / "gateway" / "features" / name)
        for own in (folder / "persistence" / name, folder / "persistence" / f"{name}.py"):
            if own.is_dir():
                shutil.rmtree(own)
            own.unlink(missing_ok=True)
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, check=False, text=True, capture_output=True,
        timeout=HUNG_S,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def test_background_calls_and_runs_are_refused_without_the_installed_feature() -> None:
    runs, asked = RefusedRuns(), read_run("r1")
    for refused in (refuse_later(), runs.find(CALLER, asked, ())):
        with pytest.raises(InvalidRequest):
            await refused
    with pytest.raises(InvalidRequest, match="leave the run r1 out"):
        runs.cached(CALLER, asked)
    for refused in (runs.tell(CALLER, "r1"), runs.end(CALLER, "r1")):
        with pytest.raises(RunNotFound):
            await refused
