"""The JSON Schema that editors have: what can be applied is valid by it, and what is mistyped is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway.admin.configuration.words import KINDS, schema
from tests.admin.configuration.world import WORLD, world
from tests.tree import ROOT

VALIDATOR = Draft202012Validator(schema())
FENCES = re.compile(r"<<'END'\n(.*?)^END$|^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def faults(document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def test_it_is_a_schema_and_has_every_kind() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["properties"].keys() == KINDS.keys() == WORLD.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_each_kind_are_valid_and_mistyped_ones_are_not(kind: str) -> None:
    assert faults({kind: world()[kind]}) == []
    for one in world()[kind]:
        assert faults({kind: [{**one, "nmae": "Acme"}]}), "a field that there is not"
        required = schema()["$defs"][schema()["properties"][kind]["items"]["$ref"].rpartition("/")[2]][
            "required"
        ]
        for name in required:
            assert faults({kind: [{said: value for said, value in one.items() if said != name}]}), name
    assert faults({kind: {}}), "a kind has a list of objects"
    assert faults({kind + "s": []})


def test_what_the_documents_show_is_valid() -> None:
    text = (ROOT / "docs" / "howto" / "git.md").read_text()
    shown = [one or other for one, other in FENCES.findall(text)]
    documents = [each for one in shown for each in yaml.load_all(one, yaml.BaseLoader) if "steps" not in each]
    assert len(documents) >= 4
    for each in documents:
        assert faults(plain(each)) == []


def plain(value: Any) -> Any:
    """Values as files have them: whole numbers are numbers where no quotes are."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value
