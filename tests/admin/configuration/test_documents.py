"""YAML of configuration: what is written reads the same; what is hostile is refused, soon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gateway.admin.configuration.words import KINDS, model, schema, word
from gateway.admin.resources.registry import RESOURCES
from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.configuration import BYTES_MAX, documents, read_sources, written
from tests.admin.configuration.world import WORLD, apply, exported, plan, world
from tests.admin.conftest import Api, empty
from tests.tree import ROOT

texts = st.text(st.characters(codec="utf-8"), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts | floats,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(("tenants", "budgets", "no", "2024")), values, min_size=1))
def test_written_yaml_reads_back_as_the_same_value(value: dict[str, object]) -> None:
    [document] = documents(written(value), "it")
    assert document.value == value


def test_yaml_reader_reads_unquoted_values_by_the_rules_of_yaml_1_2() -> None:
    text = """
        country: NO
        day: 2026-01-31
        time: 12:30:00
        octal: 0755
        grouped: 1_000
        whole: -12
        part: 0.25
        quoted: "12"
        nothing: ~
        empty:
        truth: true
        power: 1e3
        small: 1.0e-05
        signless: 1.0e5
        endless: 1.0e+999
        folded: >-
          one
          line
    """
    [document] = documents(text, "it")
    assert document.value == {
        "country": "NO", "day": "2026-01-31", "time": "12:30:00", "octal": "0755", "grouped": "1_000",
        "whole": -12, "part": 0.25, "quoted": "12", "nothing": None, "empty": None, "truth": True,
        "power": "1e3", "small": 0.00001, "signless": "1.0e5", "endless": "1.0e+999", "folded": "one line",
    }  # fmt: skip


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "line 1: anchors and aliases"), ("tenants: *them", "anchors and aliases"),
        ("tenants:\n  - name: A\n    name: B", "line 3: name stands here a second time"),
        ("tenants: []\ntenants: []", "line 2: tenants stands here a second time"),
        ("tenants: !!python/object/apply:os.system [id]", "tags such as"), ("name: !!str 5", "tags such as"),
        ("!!str name: 5", "tags such as"), ("&a name: 5", "anchors and aliases"),
        ("<<: {a: 1}", "a field must have a plain name"), ("? [a, b]\n: c", "a field must have a plain name"),
        ("tenants:\n\t- a", "not valid YAML"), ("tenants: [", "not valid YAML"),
        ("tenants: \x00", "not valid YAML"), ("a: " + "[" * 900, "nested more than 32 deep"),
        ("a: " + "{b: " * 900, "nested more than 32 deep"),
        # The parser of PyYAML 6.0.4 has a bound of its own.
        ("a: " + "[" * 1_000_000, "nest"), ("a: " + "{b: " * 1_000_000, "nest"),
        ("- " * 100_000, "nested more than 32 deep"),
    ],
)  # fmt: skip
def test_yaml_reader_refuses_hostile_or_ambiguous_text_with_the_line(text: str, said: str) -> None:
    assert_refused(text, said)


def assert_refused(text: str, said: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        list(documents(text, "it.yaml"))
    assert said in refused.value.message
    assert refused.value.message.startswith("it.yaml, ")
    assert len(refused.value.message) < 300


def test_configuration_error_names_the_file_and_line_of_the_wrong_object_among_several_files(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("# none yet\ntenants: []\nplans:\n")
    second.write_text("tenants:\n  - name: A\n  - nme: B\n")
    sources = read_sources([str(tmp_path)])
    assert sources.located("tenants.1.nme: unknown field") == (
        f"{second}, document 1, line 3, tenants, nme: unknown field"
    )
    assert sources.located("tenants.2: there is none") == "tenants.2: there is none"
    assert sources.located("  tenants: too many") == f"  {first}, document 1, line 2, tenants: too many"
    assert sources.located("  plans: unknown kind") == f"  {first}, document 1, line 3, plans: unknown kind"
    assert sources.located("  tenant: unknown kind") == "  tenant: unknown kind"


def test_yaml_reader_refuses_too_many_files_or_bytes_and_malformed_documents(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (BYTES_MAX + 1))
    with pytest.raises(CommandFailed, match="too much"):
        read_sources([str(tmp_path)])
    (tmp_path / "big.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandFailed, match="UTF-8"):
        read_sources([str(tmp_path)])
    (tmp_path / "big.yaml").unlink()
    with pytest.raises(CommandFailed, match=r"no \.yaml"):
        read_sources([str(tmp_path)])
    for number in range(1_001):
        (tmp_path / f"{number}.yaml").touch()
    with pytest.raises(CommandFailed, match="too much"):
        read_sources([str(tmp_path)])
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(CommandFailed, match="document 1: must be kinds"):
        read_sources([str(tmp_path / "list.yaml")])
    (tmp_path / "list.yaml").write_text("---\n---\ntenants: 5")
    with pytest.raises(CommandFailed, match="document 2, line 3: tenants must be a list"):
        read_sources([str(tmp_path / "list.yaml")])


# --- round trip -------------------------------------------------------------------------
# What is written down of an installation changes nothing there, and makes the same of an empty one.


# What can be made and is no configuration, and why.
OTHERS = {
    "admin-tokens": "credentials of people and programs that administer",
    "credit-additions": "money that moves",
    "invoices": "documents",
    "accounting-rates": "figures of the day",
    "raise-requests": "questions that somebody decides",
    "amendments": "corrections of what was used",
}


def test_every_creatable_resource_is_supported_in_configuration_files_or_listed_as_excluded() -> None:
    made = {resource.name for resource in RESOURCES.values() if resource.create is not None}
    assert made == KINDS.keys() | OTHERS.keys()
    assert not KINDS.keys() & OTHERS.keys()


def test_example_configuration_sets_every_field_except_listed_exceptions() -> None:
    for kind, resource in KINDS.items():
        said = {name for one in WORLD[kind] for name in one}
        told = {word(resource, name) for name in model(resource).model_fields}
        assert told - said <= UNSAID.get(kind, set()), kind


# What says the same as others of its kind do, or cannot stand together with them.
UNSAID = {
    "prices": {"cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output",
               "image_input", "image_output", "audio_second", "video_second", "page", "search", "container",
               "cache_hour", "cache_audio", "source"},
    "budgets": {"user", "project_id", "anchor_day"},
    "token-plans": {"rollover_max", "admission", "on_exhausted", "on_store_failure"},
    "organization-subscriptions": {"end_date", "trial_end", "negotiated_cost", "overage_unit_price",
                                   "discount_end"},
    "business-models": {"description"},
}  # fmt: skip


async def test_applying_an_export_changes_no_row_and_recreates_all_objects_in_an_empty_database(
    api: Api,
) -> None:
    made = await apply(api, world())
    assert made["applied"]
    again = await plan(api, world())
    assert (again["changes"], again["noted"]) == ([], 0), "applying again does nothing"

    first = await exported(api)
    assert first["left_out"] == []
    assert first["objects"].keys() == KINDS.keys()
    there = await plan(api, first["objects"], name="of the export")
    assert there["changes"] == []

    empty(api.url)
    assert (await apply(api, first["objects"]))["applied"]
    second = await exported(api)
    for kind in KINDS:
        assert second["objects"][kind] == first["objects"][kind], kind
    assert (await plan(api, first["objects"]))["changes"] == []


async def test_export_leaves_out_bundled_prices_and_users_first_seen_in_requests(api: Api) -> None:
    bundled = {"model": "of-the-list", "currency": "USD", "input": "1", "source": "bundled"}
    await api.make("prices", **bundled, effective_from="2026-01-01T00:00:00Z")
    organization = (await api.make("organizations", name="Acme"))["id"]
    for name in ("met", "limited"):
        api.rows(
            "insert into app_user (organization_id, external_id, first_sight) values (%s, %s, true)",
            organization, name,
        )  # fmt: skip
    [limited] = (await api.get("users?external_id=limited")).json["items"]
    await api.patch(f"users/{limited['id']}", {"limits": {"concurrency": 1}})
    objects = (await exported(api))["objects"]
    assert "of-the-list" not in {one["model"] for one in objects.get("prices", ())}
    assert [one["external_id"] for one in objects["users"] if one.get("organization")] == ["limited"]


async def test_export_leaves_out_and_lists_rows_with_an_ambiguous_name(api: Api) -> None:
    tenant = await api.make("tenants", name="Web")
    twice = [await api.make("api-keys", name="Twice", tenant_id=tenant["id"]) for _ in range(2)]
    its = {"organization_id": tenant["organization_id"], "api_key_id": twice[0]["id"], "interval": "day"}
    await api.make("budgets", name="Of one", unit="tokens", amount=5, **its)
    found = await exported(api)
    assert [line.partition(":")[0] for line in found["left_out"]] == [
        *(f"api-keys {one['id']} (Twice)" for one in twice),
        "budgets 1 (Of one)",
    ]
    assert not found["objects"].keys() & {"api-keys", "budgets"}


# --- schema -----------------------------------------------------------------------------
# The JSON Schema that editors have: what can be applied is valid by it, and what is mistyped is not.


VALIDATOR = Draft202012Validator(schema())
FENCES = re.compile(r"<<'END'\n(.*?)^END$|^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def faults(document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def test_configuration_schema_is_valid_json_schema_with_every_kind() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["properties"].keys() == KINDS.keys() == WORLD.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_schema_accepts_valid_objects_of_each_kind_and_refuses_mistyped_objects(
    kind: str,
) -> None:
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


def test_yaml_examples_in_the_documentation_are_valid_by_the_configuration_schema() -> None:
    pages = ("git.md", "from-claude-gateway.md", "from-kong.md", "from-openrouter.md", "from-portkey.md")
    text = "".join((ROOT / "docs" / "howto" / page).read_text() for page in pages)
    shown = [one or other for one, other in FENCES.findall(text)]
    values = [document.value for text in shown for document in documents(text, "page")]
    configured = [
        value for value in values if isinstance(value, dict) and not {"steps", "upstreams"} & value.keys()
    ]
    assert len(configured) >= 4 + len(pages) - 1
    for value in configured:
        assert faults(value) == []
