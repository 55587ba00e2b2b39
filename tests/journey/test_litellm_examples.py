"""The examples that come with LiteLLM: each value is taken over, or its place is named as left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.admin.configuration import documents
from gateway.cli.admin.imports import CONFIG, write_files
from gateway.features.litellm_import.command import ENVIRON, translate
from gateway.settings.config_file import read_config, table_of
from tests.journey.clients import python_of_clients

PARTS = ("model_list", "litellm_settings", "general_settings", "router_settings", "guardrails", "mcp_servers")
EXAMPLES_MIN = 30


class AnyVariable(dict[str, str]):
    """An environment in which each variable is set."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> str:
        return self.get(name)

    def get(self, name: str, _: object = None) -> str:  # type: ignore[override]  # one kind of default
        return "https://a.example" if name.endswith(("BASE", "URL", "ENDPOINT")) else "v"


def values(part: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        for name, each in part.items():
            yield from values(each, f"{place}.{name}" if place else str(name))
    elif isinstance(part, list):
        for number, each in enumerate(part):
            yield from values(each, f"{place}[{number}]")
    elif part not in (None, ""):
        yield place, part


def is_in(value: Any, text: str) -> bool:
    """Whether what is made says it; of a model and an address the part that stays."""
    said = str(value).removeprefix(ENVIRON).rstrip("/").removesuffix("/v1")
    return said.rpartition("/")[2] in text or str(value).lower() in text


def silent(source: Any, directory: Path) -> list[str]:
    """Places of the source that are neither taken over nor named; the files that are made are read."""
    made = translate(source, "Company", directory, datetime.now(UTC))
    write_files(directory, made)
    table_of(read_config(directory / CONFIG, AnyVariable()), AnyVariable())
    left = "|".join(re.escape(place) for place, _ in made.left)
    text = json.dumps([made.config, made.objects, made.secrets])
    return [
        place
        for place, value in values(source)
        if not re.match(rf"(?:{left})(?:$|[.\[])", place) and not is_in(value, text)
    ]


@pytest.mark.nightly
def test_each_setting_of_litellms_examples_is_taken_over_or_named(tmp_path: Path) -> None:
    [package] = python_of_clients().parents[1].glob("lib/python*/site-packages/litellm")
    seen = 0
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8")
        if re.search(rf"^(?:{'|'.join(PARTS)}):", text, re.MULTILINE) is None:
            continue
        seen += 1
        [source] = [each.value for each in documents(text, str(path))]
        if places := silent(source, tmp_path / str(seen)):
            found[str(path.relative_to(package))] = places
    assert (found, seen >= EXAMPLES_MIN) == ({}, True), seen
