"""The shape of the tree: import-linter's contracts, and that every module has its place in them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tree import offenders, texts

ROOT = Path(__file__).resolve().parent.parent
LAYERS_MAX = 8
ROOT_FILES_MAX = 8


def test_every_module_has_its_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    placed = {name for layer in layers for name in re.findall(r"[\w.]+", layer)}
    found = {
        f"gateway.{path.stem}"
        for path in (ROOT / "gateway").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert found - placed == set()


@pytest.mark.parametrize(
    "library",
    ["hiredis", "sqlalchemy", "psycopg", "alembic", "aiohttp", "jinja2", "httptools"],
)
def test_every_outside_library_has_one_door(library: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    doors = [
        contract["allowed_importers"]
        for contract in contracts
        if contract["type"] == "protected" and library in contract["protected_modules"]
    ]
    assert len(doors) == 1
    # It serves people, by features too, and calls others; an answer becomes the events of a socket.
    assert len(doors[0]) == {"aiohttp": 3, "httptools": 2}.get(library, 1)


def test_the_root_of_the_gateway_stays_small_and_its_layers_few() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert len(layers) <= LAYERS_MAX
    files = [path.name for path in (ROOT / "gateway").iterdir() if path.is_file()]
    assert len(files) <= ROOT_FILES_MAX, files


@pytest.mark.parametrize("door", ["http", "counters", "background", "settings", "telemetry"])
def test_no_door_knows_a_vendor(door: str) -> None:
    vendor = re.compile(r"openai|anthropic|gemini|claude|x-goog|google", re.IGNORECASE)
    offenders(
        f"{name}: {found.group()}"
        for name in texts()
        if name.startswith(f"gateway/{door}/") and (found := vendor.search(texts()[name]))
    )


@pytest.mark.parametrize(
    "where", ["gateway/counters/", "gateway/run/", "gateway/settings/urls.py", "persistence/"]
)
def test_urls_of_several_servers_are_split_by_split_servers_alone(where: str) -> None:
    split = re.compile(r"\burl(split|parse)\b")
    offenders(
        f"{name}: {found.group()}, where gateway.files.split_servers reads several servers on any Python"
        for name in texts()
        if name.startswith(where) and name.endswith(".py") and (found := split.search(texts()[name]))
    )


@pytest.mark.parametrize(
    ("process", "others"),
    [
        (
            "gateway.run.keeper",
            (
                "pydantic",
                "aiohttp",
                "aiosmtplib",
                "yaml",
                "jinja2",
                "gateway.admin.application",
                "gateway.app",
                "gateway.http.proxy",
            ),
        ),
        ("gateway.run.supervisor", ("sqlalchemy", "psycopg", "aiohttp", "pydantic", "gateway.app")),
        ("persistence.engine", ("sqlalchemy.orm",)),
        ("persistence.schema.standing", ("sqlalchemy", "alembic", "persistence.tables")),
        ("gateway.run.people_process", ("gateway.settings.settings", "gateway.telemetry.logs")),
        (
            "gateway.app",
            ("sqlalchemy", "psycopg", "aiohttp", "pydantic", "yaml", "difflib", "persistence.engine"),
        ),
        ("gateway.app, gateway.run.serving, gateway.run.keeper", ("prometheus_client",)),
        ("gateway.run.administration", ("gateway.background.flushing.flusher", "persistence.ledger.writer")),
    ],
)
def test_no_process_loads_what_another_one_runs(process: str, others: tuple[str, ...]) -> None:
    code = f"import sys, {process}; print([one for one in {others!r} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
