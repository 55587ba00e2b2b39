"""`tollkeeper import litellm`: files that are read and applied as any, and a list of all that is left out."""

from __future__ import annotations

import json
import re
import stat
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import read
from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.configuration import written
from gateway.cli.admin.imports import Translated, read_rows
from gateway.features.litellm_import.command import Lists, litellm, translate
from gateway.settings.config_file import read_config, table_of
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.tree import ROOT

__all__ = ["run"]  # a fixture

SOURCE = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/prod-4o
      api_base: https://example.openai.azure.com/
      api_key: os.environ/AZURE_ONE
      api_version: 2024-10-21
      rpm: 60
  - model_name: gpt-4o
    litellm_params: {model: azure/prod-4o, api_base: https://example.openai.azure.com,
                     api_version: 2024-10-21, api_key: os.environ/AZURE_TWO}
  - model_name: gpt-4o
    litellm_params: {model: gpt-4o, api_key: sk-plain-text}
    model_info: {supports_vision: true}
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5, max_budget: 50, budget_duration: 30d}
  - model_name: local/*
    litellm_params: {model: hosted_vllm/*, api_base: "http://127.0.0.1:8000/v1"}
  - model_name: house
    litellm_params: {model: openai/house, api_base: os.environ/HOUSE_URL, api_key: os.environ/HOUSE_KEY}
  - model_name: nova
    litellm_params: {model: predibase/nova-pro, adapter_id: a}
  - model_name: "*"
    litellm_params: {model: hosted_vllm/*, api_base: "http://127.0.0.1:8000/v1"}
litellm_settings:
  max_budget: 100
  budget_duration: 1d
  drop_params: True
  fallbacks: [{claude: [gpt-4o]}, {gone: [gpt-4o]}]
  success_callback: [langfuse]
  default_internal_user_params: {max_budget: 5, budget_duration: 7d, user_role: internal_user}
  default_team_settings:
    - team_id: team-1
      langfuse_secret: os.environ/LANGFUSE
router_settings:
  model_group_alias: {best: claude, worst: nova}
  routing_strategy: least-busy
general_settings:
  master_key: sk-1234
guardrails:
  - guardrail_name: g
    litellm_params: {guardrail: custom.guard}
"""
TEAMS = [
    {"team_id": "t1", "team_alias": "Search", "max_budget": 20.5, "budget_duration": "30d", "rpm_limit": 60,
     "models": ["gpt-4o"], "metadata": {"cost_center": "7"}, "team_memberships": []},
]  # fmt: skip
KEYS = {"keys": [{"key_alias": "ann", "team_id": "t1", "user_id": "ann", "tpm_limit": 1000, "max_budget": 3,
                  "token": "hash"}]}  # fmt: skip
USERS = {
    "users": [{"user_id": "ann", "max_budget": None}],
    "total": 1,
    "page": 1,
    "page_size": 25,
    "total_pages": 1,
}


NOW = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SOURCE)
    (tmp_path / "teams.json").write_text(json.dumps(TEAMS))
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    (tmp_path / "users.json").write_text(json.dumps(USERS))
    return path


async def test_configuration_imported_from_litellm_is_accepted_and_applied(
    run: Run, api: Api, source: Path, tmp_path: Path
) -> None:
    to = tmp_path / "new"
    ours = [f"--{name}={tmp_path / name}.json" for name in ("teams", "keys", "users")]
    done = await run("import", "litellm", str(source), "--to", str(to), *ours)
    assert done.exit_code == 0, done.output
    names = ("AZURE_ONE", "AZURE_TWO", "ANTHROPIC_API_KEY", "HOUSE_KEY")
    environ = {**{name: f"key-of-{name}" for name in names}, "HOUSE_URL": "https://house.example/v1"}
    table = table_of(read_config(to / "tollkeeper.yaml", environ), environ)
    upstreams = {each.name: each for each in table.upstreams}
    assert (upstreams["azure"].path, upstreams["azure"].query) == (
        "/openai/deployments/{model}/{operation}", (("api-version", "2024-10-21"),),
    )  # fmt: skip
    assert upstreams["hosted-vllm"].base_url == "http://127.0.0.1:8000"
    assert {"azure", "azure-2"} <= upstreams.keys()  # an account each
    text = (to / "tollkeeper.yaml").read_text() + (to / "objects.yaml").read_text() + done.output
    assert "sk-plain-text" not in text
    [secret] = (to / "keys").iterdir()
    assert (secret.read_text(), stat.S_IMODE(secret.stat().st_mode)) == ("sk-plain-text\n", 0o600)
    applied = await run("apply", "-f", str(to / "objects.yaml"), "--secrets-dir", str(tmp_path / "secrets"))
    assert applied.exit_code == 0, applied.output
    budgets = {each["name"]: each for each in (await from_json(run, "budget", "list"))["items"]}
    assert {name: (each["amount"], each["interval"], each["each"]) for name, each in budgets.items()} == {
        "All calls": ("100", "day", None),
        "Each user": ("5", "week", "user"),
        "Key ann": ("3", "total", None),
        "Model claude": ("50", "month", None),
        "Team Search": ("20.50", "month", None),
    }
    tenants = {each["name"]: each for each in (await from_json(run, "tenant", "list"))["items"]}
    assert (tenants["Search"]["limits"], tenants["Search"]["models"]) == (
        {"requests_per_minute": 60}, ["gpt-4o"],
    )  # fmt: skip
    [key] = (await from_json(run, "key", "list"))["items"]
    assert (key["name"], key["user"], key["models"], key["limits"]) == (
        "ann", "ann", None, {"tokens_per_minute": 1000},
    )  # fmt: skip
    owner = await from_json(run, "org", "show", "Company")
    assert set(owner["models"]) == {"gpt-4o", "claude", "local/*", "house", "best"}
    again = await run("import", "litellm", str(source), "--to", str(to))
    assert (again.exit_code != 0, "is there already" in str(again.exception)) == (True, True)


async def test_litellm_import_lists_each_ignored_setting_with_a_reason(
    run: Run, source: Path, tmp_path: Path
) -> None:
    made = await from_json(run, "import", "litellm", str(source), "--to", str(tmp_path / "new"))
    assert {each["place"] for each in made["left_out"]} == {
        "model_list[0].litellm_params.rpm", "model_list[2].model_info.supports_vision",
        "model_list[6].litellm_params.model", "model_list[6].litellm_params.adapter_id",
        "model_list[6].model_name", "model_list[7].model_name",
        "litellm_settings.drop_params",
        "litellm_settings.fallbacks.gone", "litellm_settings.success_callback",
        "litellm_settings.default_internal_user_params.user_role",
        "litellm_settings.default_team_settings[0].langfuse_secret",
        "router_settings.model_group_alias.worst", "router_settings.routing_strategy",
        "general_settings.master_key", "guardrails[0].guardrail_name",
        "guardrails[0].litellm_params.guardrail",
    }  # fmt: skip
    assert all(each["why"] for each in made["left_out"])


def targets(*rows: dict[str, Any], **more: Any) -> Any:
    found = translate({"model_list": list(rows), **more}, "Company", Path("/d"), NOW)
    return {each.get("name") or each["prefix"]: each["targets"] for each in found.config["models"]}


def test_litellm_fallbacks_and_aliases_are_imported_as_targets_of_a_model() -> None:
    settings = {"fallbacks": [{"a": ["b"]}], "model_group_alias": {"c": {"model": "a", "hidden": True}}}
    first, second = {"upstream": "openai", "model": "gpt-4o"}, {"upstream": "groq", "model": "llama"}
    assert targets(row("a", "gpt-4o"), row("b", "groq/llama"), router_settings=settings) == {
        "a": [first, second], "b": [second], "c": [first, second],
    }  # fmt: skip


def test_litellm_import_gives_bedrock_and_vertex_models_upstreams_with_cloud_credentials(
    tmp_path: Path,
) -> None:
    rows = [
        {"model": "bedrock/converse/eu.amazon.nova-pro-v1:0", "aws_region_name": "eu-central-1",
         "aws_profile_name": "p"},
        {"model": "vertex_ai/claude-opus-4", "vertex_project": "os.environ/PROJECT",
         "vertex_location": "europe-west4"},
        {"model": "vertex_ai/gemini-2.5-pro", "vertex_project": "house"},
        {"model": "vertex_ai/textembedding-gecko"},
    ]  # fmt: skip
    source = {"model_list": [{"model_name": f"m{n}", "litellm_params": row} for n, row in enumerate(rows)]}
    made = translate(source, "Company", tmp_path, NOW)
    path = tmp_path / "tollkeeper.yaml"
    path.write_text(written(made.config))
    environ = {"PROJECT": "their", "VERTEX_REGION": "europe-west1"}
    table = table_of(read_config(path, environ), environ)
    found = {each.name: (each.base_url, each.auth, each.region, each.project) for each in table.upstreams}
    assert found["bedrock"] == (
        "https://bedrock-runtime.eu-central-1.amazonaws.com",
        "aws",
        "eu-central-1",
        "",
    )
    assert found["vertex-ai-anthropic-models"] == (
        "https://europe-west4-aiplatform.googleapis.com", "google", "europe-west4", "their",
    )  # fmt: skip
    assert found["vertex-ai"] == (
        "https://europe-west1-aiplatform.googleapis.com", "google", "europe-west1", "house",
    )  # fmt: skip
    assert [each["targets"][0].get("model") for each in made.config["models"]] == [
        "eu.amazon.nova-pro-v1:0", "claude-opus-4", "gemini-2.5-pro",
    ]  # fmt: skip
    assert [place for place, _ in made.left] == [
        "model_list[3].litellm_params.model", "model_list[0].litellm_params.aws_profile_name",
        "model_list[3].model_name",
    ]  # fmt: skip
    assert "Callers of m0 use the API of bedrock, not OpenAI's: nothing is translated." in made.notes


def made_of(*rows: dict[str, Any], **more: Any) -> Translated:
    return translate({"model_list": list(rows)}, "Company", Path("/d"), NOW, whole(**more))


def whole(
    teams: list[dict[str, Any]] | None = None, keys: list[dict[str, Any]] | None = None,
    users: list[dict[str, Any]] | None = None, **more: Any,
) -> Lists:  # fmt: skip
    """Return lists as a whole export has them: with the memberships of each team, and the user of each key."""
    named = {str(key["user_id"]) for key in keys or () if key.get("user_id")} - {
        row["user_id"] for row in users or ()
    }
    everybody = [*(users or ()), *({"user_id": user} for user in sorted(named))]
    return Lists(
        teams if teams is None else [{"team_memberships": []} | team for team in teams], keys, everybody,
        **{"tags": [], **more},
    )  # fmt: skip


def row(name: str, model: str, **params: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model, **params}}


HOUSE = {"api_base": "http://127.0.0.1:8000/v1", "api_key": "os.environ/HOUSE_KEY"}


@pytest.mark.parametrize(
    ("params", "upstream"),
    [
        ({}, "openai"),
        ({"api_base": "https://api.openai.com/v1"}, "openai"),
        (HOUSE, "openai-2"),
        ({"api_key": "os.environ/SECOND_KEY"}, "openai-2"),
        ({"organization": "org-1"}, "openai-2"),
    ],
)
def test_litellm_import_does_not_name_a_customized_openai_upstream_like_the_default_upstream(
    params: dict[str, Any], upstream: str
) -> None:
    made = made_of(row("m", "openai/gpt-4o", **params))
    assert list(made.config["upstreams"]) == [upstream]
    assert made.objects["organizations"] == [{"name": "Company", "models": ["m"]}]


@pytest.mark.parametrize(
    ("name", "model", "target"),
    [
        ("openai/*", "openai/*", "*"),
        ("gpt-*", "openai/gpt-*", "gpt-*"),
        ("new-*", "openai/responses/gpt-4o", "gpt-4o"),
        ("a", "azure/o_series/prod", "prod"),
        ("b", "bedrock/invoke/us-gov-west-1/amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
        ("b", "bedrock/agent/A1/B2", None),
        ("*-mini", "openai/*-mini", None),
        ("plain", "openai/*", None),
        ("two words", "openai/gpt-4o", None),
    ],
)
def test_litellm_import_reads_unusual_model_names_or_ignores_the_row(
    name: str, model: str, target: str | None
) -> None:
    made = made_of(row(name, model, **({"api_base": "https://a.example"} if "azure" in model else {})))
    assert [each["targets"][0]["model"] for each in made.config["models"]] == ([target] if target else [])
    assert bool(made.left) is (target is None)
    if target is None:
        assert not made.config["upstreams"]


def test_litellm_import_allows_unlisted_models_only_if_a_wildcard_uses_the_default_upstream() -> None:
    everything = made_of(row("m", "gpt-4o"), row("*", "openai/*"))
    assert everything.objects["organizations"] == [{"name": "Company"}]
    assert [each["name"] for each in everything.config["models"]] == ["m"]
    house = made_of(row("m", "gpt-4o"), row("*", "openai/*", **HOUSE))
    assert house.objects["organizations"] == [{"name": "Company", "models": ["m"]}]
    assert [place for place, _ in house.left] == ["model_list[1].model_name"]


def test_litellm_import_lists_keys_that_cannot_be_used_as_ignored() -> None:
    teams = [
        {"team_id": "t", "models": ["fast"], "team_member_budget": 4}, {"team_id": "gone", "blocked": True},
    ]  # fmt: skip
    rows = [
        {"key_alias": "good", "team_id": "t", "expires": "2026-12-31T00:00:00Z", "blocked": False,
         "models": ["all-team-models"], "model_max_budget": {"m": {"budget_limit": 1}}},
        {"key_alias": "narrow", "team_id": "t", "models": ["m", "unheard-of"],
         "allowed_routes": ["llm_api_routes"]},
        {"key_alias": "any", "models": ["all-proxy-models"]},
        {"key_alias": "nothing", "models": ["no-default-models"]},
        {"key_alias": "blocked", "blocked": True},
        {"key_alias": "old", "expires": "2026-11-28T00:00:00+00:00"},
        {"key_alias": "odd", "expires": "soon"},
        {"key_alias": "theirs", "team_id": "gone"},
        {"key_alias": "lost", "team_id": "elsewhere"},
        {"key_alias": "manager", "allowed_routes": ["management_routes"]},
    ]  # fmt: skip
    model = row("m", "gpt-4o") | {"model_info": {"access_groups": ["fast"]}}
    made = made_of(model, teams=teams, keys=rows)
    found = [(each["name"], each["tenant"]["name"], each.get("models")) for each in made.objects["api-keys"]]
    assert found == [
        ("good", "t", None), ("narrow", "t", ["m", "unheard-of"]), ("any", "Everybody", None),
        ("nothing", "Everybody", ["no-default-models"]),
    ]  # fmt: skip
    assert made.objects["api-keys"][0]["expires_at"] == "2026-12-31T00:00:00Z"
    assert [each.get("models") for each in made.objects["tenants"]] == [["m"], None]
    assert [(each["name"], each.get("each")) for each in made.objects["budgets"]] == [
        ("Each of team t", "user"), ("Key good, m", None),
    ]  # fmt: skip
    left = dict(made.left)
    assert left.keys() == {
        "teams[1]", "keys[1].models",
        "keys[3].models", *(f"keys[{number}]" for number in (4, 5, 6, 7, 9)),
    }  # fmt: skip
    assert made.shut == [
        ("keys[8]", "lost is of the team elsewhere, which no list of --teams has: no key is made")
    ]
    assert made_of(model, keys=[{"blocked": True}]).objects.get("api-keys") is None


# As LiteLLM 1.110.2 answers (`TeamListResponseObject`, `LiteLLM_TeamMembership`, `/tag/list`), on 30 November 2026.
SHARED = {"budget_id": "b1", "max_budget": 10, "budget_duration": "30d"}
TEAM = {
    "team_id": "t", "team_alias": "Search", "metadata": {"team_member_budget_id": "b1"},
    "budget_limits": [{"budget_duration": "24h", "max_budget": 3, "reset_at": "2026-12-01T00:00:00Z"},
                      {"budget_limit": 9, "time_period": "5h"}],
    "team_memberships": [
        {"user_id": "ada", "team_id": "t", "budget_id": "b1", "spend": 1.5, "litellm_budget_table": SHARED},
        {"user_id": "bob", "team_id": "t", "budget_id": "b2", "spend": 0.0,
         "litellm_budget_table": {"budget_id": "b2", "max_budget": 50, "budget_duration": "1mo",
                                  "temp_budget_increase": 5}},
        {"user_id": "eve", "team_id": "t", "budget_id": "b3", "spend": 0.0,
         "litellm_budget_table": {"budget_id": "b3", "max_budget": 2, "budget_duration": "1d"}},
    ],
}  # fmt: skip


def budgets_of(made: Translated) -> dict[str, dict[str, Any]]:
    assert all(row["unit"] == "money" and row["organization"] == "Company" for row in made.objects["budgets"])
    return {
        row["name"]: {
            name: value for name, value in row.items() if name not in {"name", "unit", "organization"}
        }
        for row in made.objects["budgets"]
    }


def test_litellm_members_with_a_budget_of_their_own_become_overrides_of_the_budget_of_each_member() -> None:
    made = made_of(row("m", "gpt-4o"), teams=[TEAM])
    assert budgets_of(made) == {
        "Team Search, 24h": {"tenant": "Search", "amount": "3", "interval": "day"},
        "Team Search, 5h": {"tenant": "Search", "amount": "9", "window": "first_use", "length": "5h"},
        "Each of team Search": {
            "tenant": "Search", "each": "user", "amount": "10", "interval": "month",
            "overrides": [{"who": "bob", "amount": "50"}],
        },
        "eve of team Search": {"tenant": "Search", "user": "eve", "amount": "2", "interval": "day"},
    }  # fmt: skip
    at = "teams[0].team_memberships[1].litellm_budget_table"
    assert [place for place, _ in made.left] == [f"{at}.temp_budget_increase"]


def test_litellm_users_become_overrides_of_the_budget_of_each_user_and_keep_their_models_and_limits() -> None:
    users = [
        {"user_id": "ada", "max_budget": 0.5, "budget_duration": "7d", "spend": 3.0, "models": ["m"]},
        {"user_id": "bob", "max_budget": 4, "rpm_limit": 5},
    ]  # fmt: skip
    source = {
        "model_list": [row("m", "gpt-4o")],
        "litellm_settings": {"max_internal_user_budget": 2, "internal_user_budget_duration": "weekly"},
    }
    made = translate(source, "Company", Path("/d"), NOW, whole(users=users))
    assert budgets_of(made) == {
        "Each user": {"each": "user", "tenant": "Everybody", "amount": "2", "interval": "week",
                      "overrides": [{"who": "ada", "amount": "0.5"}]},
        "User bob": {"user": "bob", "tenant": "Everybody", "amount": "4", "interval": "total"},
    }  # fmt: skip
    assert made.objects["users"] == [
        {"organization": "Company", "external_id": "ada", "models": ["m"]},
        {"organization": "Company", "external_id": "bob", "limits": {"requests_per_minute": 5}},
    ]
    assert made.left == []


LOST = {
    "an amount of 0": {"max_budget": 0},
    "an amount below nine decimals": {"max_budget": 1e-10, "budget_duration": "30d"},
    "an amount below 0": {"max_budget": -1},
    "no number": {"max_budget": "much"},
    "a duration of 0 s": {"max_budget": 5, "budget_duration": "0s"},
    "a duration of 1 s": {"max_budget": 5, "budget_duration": "1s"},
    "a duration of 45 s": {"max_budget": 3.0, "budget_duration": "45s"},
    "tokens of 0": {"tpm_limit": 0},
    "requests of 0": {"rpm_limit": 0, "tpm_limit": 5},
    "half a request": {"rpm_limit": 0.5},
    "no call at once": {"max_parallel_requests": 0},
    "a model's amount of 0": {"model_max_budget": {"m": {"budget_limit": 0}}},
    "a window's amount of 0": {"budget_limits": [{"budget_duration": "1d", "max_budget": 0}]},
    "one of two windows": {"budget_limits": [{"budget_duration": "1d", "max_budget": 2}, {"budget_duration": "1s", "max_budget": 1}]},
}  # fmt: skip
OF_KEYS = {
    "a named budget": {"budget_id": "b1"},
    "requests of a model": {"model_rpm_limit": {"m": 5}},
}
NO_LIMIT: dict[str, Any] = {
    "max_budget": None,
    "budget_duration": "0s",
    "tpm_limit": None,
    "budget_id": None,
    "model_max_budget": {},
}


def keys_of(made: Translated) -> list[str]:
    return [each["name"] for each in made.objects.get("api-keys", ())]


@pytest.mark.parametrize("lost", {**LOST, **OF_KEYS}.values(), ids={**LOST, **OF_KEYS}.keys())
def test_litellm_key_with_an_inexpressible_limit_is_not_made_and_is_first_in_the_report(
    lost: dict[str, Any],
) -> None:
    keys = [{"key_alias": "free", **NO_LIMIT}, {"key_alias": "bound", "max_budget": None, **deepcopy(lost)}]
    made = made_of(row("m", "gpt-4o"), row("nova", "predibase/nova"), keys=keys)
    assert keys_of(made) == ["free"]
    [(place, why)] = made.shut
    assert (place, why.partition(":")[0]) == ("keys[1]", "bound")
    assert not [each for each in made.objects.get("budgets", ()) if each.get("api_key") == "bound"]


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST.keys())
def test_litellm_teams_members_and_users_with_an_inexpressible_limit_have_no_keys(
    lost: dict[str, Any],
) -> None:
    member = {"user_id": "eve", "budget_id": "b", "litellm_budget_table": deepcopy(lost)}
    teams = [
        {"team_id": "shut", **deepcopy(lost)}, {"team_id": "open", "team_memberships": [member]},
        {"team_id": "other"},
    ]  # fmt: skip
    users = [{"user_id": "ann", **deepcopy(lost)}]
    owners = [
        ("shut", None), ("open", None), ("open", "eve"), ("open", "bob"), ("other", "eve"), (None, "ann"),
        (None, "bob"),
    ]  # fmt: skip
    keys = [{"key_alias": f"{team} {user}", "team_id": team, "user_id": user} for team, user in owners]
    made = made_of(row("m", "gpt-4o"), teams=teams, users=users, keys=keys)
    assert keys_of(made) == ["open None", "open bob", "other eve", "None bob"]
    assert [place for place, _ in made.shut] == ["teams[0]", "keys[0]", "keys[2]", "keys[5]"]
    tenants = {each["name"] for each in made.objects["tenants"]}
    assert tenants == {"open", "other", "Everybody"}
    assert {each["tenant"] for each in made.objects.get("budgets", ()) if "tenant" in each} <= tenants


def test_litellm_total_or_usual_user_budget_of_0_leaves_no_keys_that_the_budget_would_count() -> None:
    model = row("m", "gpt-4o")
    keys = [
        {"key_alias": "own", "user_id": "ann"},
        {"key_alias": "raised", "user_id": "bob"},
        {"key_alias": "team", "team_id": "t"},
    ]
    lists = whole(teams=[{"team_id": "t"}], keys=keys, users=[{"user_id": "bob", "max_budget": 3}])
    found = {}
    for settings in ("max_budget", "max_internal_user_budget"):
        source = {"model_list": [model], "litellm_settings": {settings: 0}}
        for name, those in (("lists", lists), ("none", whole())):
            made = translate(deepcopy(source), "Company", Path("/d"), NOW, those)
            found[settings, name] = keys_of(made)
            assert made.left[0][0] == f"litellm_settings.{settings}"
    assert found == {
        ("max_budget", "lists"): [], ("max_budget", "none"): [],
        ("max_internal_user_budget", "lists"): ["raised", "team"], ("max_internal_user_budget", "none"): [],
    }  # fmt: skip


def test_litellm_models_and_keys_of_tags_with_an_inexpressible_budget_are_not_made() -> None:
    tags = [{"name": "night", "litellm_budget_table": {"max_budget": 0}}]
    keys = [{"key_alias": "tagged", "metadata": {"tags": ["night"]}}, {"key_alias": "plain"}]
    models = row("m", "gpt-4o"), row("spent", "gpt-4o-mini", max_budget=0, budget_duration="1d")
    made = made_of(*models, keys=keys, tags=tags)
    assert [each["name"] for each in made.config["models"]] == ["m"]
    assert keys_of(made) == ["plain"]
    assert [place for place, _ in made.shut] == ["model_list[1]", "keys[0]"]


@pytest.mark.parametrize(
    "models",
    [
        (row("spent", "gpt-4o", max_budget=0),),
        (row("nova", "predibase/nova"),),
        (row("spent", "gpt-4o", max_budget=0), row("*", "openai/*")),
        (row("spent", "gpt-4o", max_budget=0), row("sp*", "openai/*")),
    ],
)
@pytest.mark.parametrize("keys", [[{"key_alias": "k"}], None])
def test_litellm_keys_that_could_call_a_model_that_is_left_out_are_not_made(
    models: tuple[dict[str, Any], ...], keys: list[dict[str, Any]] | None
) -> None:
    made = made_of(*models, keys=keys)
    assert keys_of(made) == []
    assert ("model_list", True) in [(place, "no key is made" in why) for place, why in made.shut]


def test_litellm_tenants_of_members_or_users_with_a_lost_limit_have_no_first_key() -> None:
    def team(name: str, **table: Any) -> dict[str, Any]:
        members = [{"user_id": "eve", "budget_id": "b", "litellm_budget_table": table}]
        return {"team_id": name, "team_memberships": members}

    teams = [team("spent", max_budget=0), team("slow", rpm_limit=5), team("open", max_budget=5)]
    made = made_of(row("m", "gpt-4o"), teams=teams)
    assert [each["tenant"]["name"] for each in made.objects["api-keys"]] == ["open"]
    assert [place for place, _ in made.shut] == ["tenants.spent", "tenants.slow"]
    users = [{"user_id": "ann", "budget_id": "b"}]
    made = made_of(row("m", "gpt-4o"), teams=[team("open")], users=users)
    assert (keys_of(made), [place for place, _ in made.shut]) == ([], ["tenants.open"])


@pytest.mark.parametrize(
    ("other", "made"), [("openai/gpt-4o", False), ("openai/gpt*", False), ("openai/gpt-4o-mini", True)]
)
def test_litellm_key_with_a_budget_of_a_model_that_counts_calls_of_a_longer_name_is_not_made(
    other: str, made: bool
) -> None:
    keys = [{"key_alias": "k", "model_max_budget": {"gpt-4o": 5}}]
    done = made_of(row("gpt-4o", "gpt-4o"), row(other, other), keys=keys)
    assert (keys_of(done), len(done.objects.get("budgets", ()))) == ((["k"], 1) if made else ([], 0))
    assert [place for place, _ in done.shut] == ([] if made else ["keys[0]"])


def test_litellm_amount_of_0_of_a_member_or_user_is_an_override_of_0_beside_the_budget_of_each() -> None:
    def of(user: str, **table: Any) -> dict[str, Any]:
        return {"user_id": user, "budget_id": user, "litellm_budget_table": table}

    members = [
        of("carol", max_budget=0.0, budget_duration="1d"),
        of("bob", max_budget=2, budget_duration="7d"),
    ]
    team = {
        "team_id": "t",
        "team_member_budget": 5,
        "team_member_budget_duration": "7d",
        "team_memberships": members,
    }
    keys = [{"key_alias": name, "team_id": "t", "user_id": name} for name in ("carol", "bob")]
    source = {"model_list": [row("m", "gpt-4o")], "litellm_settings": {"max_internal_user_budget": 2}}
    users = [{"user_id": "dan", "max_budget": 0}]
    made = translate(source, "Company", Path("/d"), NOW, whole(teams=[team], keys=keys, users=users))
    assert {name: each["overrides"] for name, each in budgets_of(made).items()} == {
        "Each user": [{"who": "dan", "amount": "0"}],
        "Each of team t": [{"who": "carol", "amount": "0"}, {"who": "bob", "amount": "2"}],
    }
    assert (keys_of(made), made.shut, made.left) == (["carol", "bob"], [], [])


@pytest.mark.parametrize("counts_all", [False, True])
def test_litellm_user_budget_counts_calls_of_team_keys_only_if_litellm_applies_user_budgets_to_team_keys(
    *, counts_all: bool
) -> None:
    source = {
        "model_list": [row("m", "gpt-4o")],
        "general_settings": {"apply_user_budget_to_team_keys": counts_all},
    }
    users = [
        {
            "user_id": "alice",
            "max_budget": 1.0,
            "budget_limits": [{"budget_duration": "1d", "max_budget": 0.5}],
        }
    ]
    teams = [{"team_id": "t", "team_alias": "Everybody"}]
    made = translate(
        source,
        "Company",
        Path("/d"),
        NOW,
        whole(users=users, teams=teams, keys=[{"key_alias": "k", "team_id": "t"}]),
    )
    [team, *homes] = made.objects["tenants"]
    assert (team["name"], [each["name"] for each in homes]) == (
        "Everybody 2",
        [] if counts_all else ["Everybody"],
    )
    assert {each.get("tenant") for each in budgets_of(made).values()} == {None if counts_all else "Everybody"}


def test_litellm_rates_of_members_become_rates_of_the_only_key_or_of_each_user_of_the_tenant() -> None:
    def of(user: str) -> dict[str, Any]:
        return {
            "user_id": user,
            "budget_id": user,
            "litellm_budget_table": {"max_budget": None, "tpm_limit": 900, "rpm_limit": 7},
        }

    team = {"team_id": "t", "team_memberships": [of("ann"), of("bob"), of("eve")]}
    shared = {
        "team_id": "u",
        "team_member_budget_table": {"max_budget": None, "rpm_limit": 4},
        "team_memberships": [of("eve")],
    }
    keys = [
        {"key_alias": name, "team_id": "t", "user_id": name, "rpm_limit": 5} for name in ("ann", "bob", "bob")
    ]
    keys.append({"key_alias": "eve", "team_id": "u", "user_id": "eve"})
    made = made_of(row("m", "gpt-4o"), teams=[team, shared], keys=keys)
    assert [(each["name"], each["limits"]) for each in made.objects["api-keys"]] == [
        ("ann", {"requests_per_minute": 5, "tokens_per_minute": 900}),
    ]
    assert [place for place, _ in made.shut] == ["keys[1]", "keys[2]", "keys[3]"]
    assert [each.get("user_limits") for each in made.objects["tenants"]] == [None, {"requests_per_minute": 4}]
    assert made.left[-1][0] == "teams[0].team_memberships[2].litellm_budget_table", (
        "of eve there is no key in t"
    )


async def test_litellm_import_prints_the_keys_that_are_not_made_before_all_else(
    run: Run, source: Path, tmp_path: Path
) -> None:
    keys = [{"key_alias": "stopped", "max_budget": 0.0}]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    options = ("--keys", str(tmp_path / "keys.json"))
    done = await run("import", "litellm", str(source), "--to", str(tmp_path / "new"), *options)
    lines = done.output.splitlines()
    assert lines[1] == "Not made, as a limit of theirs cannot be said: 1."
    assert lines[2].startswith(
        "  keys[0]: stopped: keys[0].max_budget cannot be said (0.0: an amount of money must be above 0"
    )
    assert lines[2].endswith("): no key is made")
    made = await from_json(run, "import", "litellm", str(source), "--to", str(tmp_path / "other"), *options)
    assert made["left_out"][0]["place"] == "keys[0]"


# Members of LiteLLM's tables and answers of 1.110.2 that limit calls, read in its schema.prisma, its response types and
# its limiters.
BUDGET = ["max_budget", "tpm_limit", "rpm_limit", "tpd_limit", "max_parallel_requests", "model_max_budget", "model_max_budget.m",
          "model_max_budget.m.max_budget", "model_max_budget.m.budget_limit", "model_max_budget.m.tpm_limit"]  # fmt: skip
METADATA = [f"metadata.{name}" for name in (
    "model_rpm_limit", "model_tpm_limit.m", "model_itpm_limit.m", "model_otpm_limit.m", "mcp_rpm_limit.s", "tag_rpm_limit.t",
    "end_user_budget_id", "max_batch_file_records", "max_batch_file_uploads_per_day", "max_file_downloads_per_minute",
)]  # fmt: skip
WINDOWS = ["budget_limits", "budget_limits.0.max_budget", "budget_limits.0.budget_limit"]
TABLE = [f"litellm_budget_table.{name}" for name in BUDGET]
MEMBERS = {
    "keys": [*BUDGET, *METADATA, *WINDOWS, *TABLE, "budget_id", "agent_id", "organization_id", "org_id", "project_id",
             "litellm_organization_table.litellm_budget_table.max_budget", "litellm_project_table.model_rpm_limit.m",
             "team_max_budget", "team_rpm_limit", "team_member_tpm_limit", "team_model_max_budget.m.max_budget",
             "team_metadata.model_tpm_limit.m", "user_tpm_limit", "user_max_budget", "end_user_rpm_limit", "end_user_max_budget",
             "organization_max_budget", "organization_metadata.model_rpm_limit.m", "rpm_limit_per_model.m", "a_new_one"],
    "teams": [*BUDGET, *METADATA, *WINDOWS, *TABLE, "organization_id", "team_member_budget", "metadata.team_member_budget_id",
              *(f"team_member_budget_table.{name}" for name in BUDGET), "a_new_one"],
    "team_memberships": [*TABLE, "budget_id", "litellm_budget_table.a_new_one"],
    "users": [*BUDGET, *WINDOWS, *METADATA, "organization_id", "organization_memberships.0.litellm_budget_table.max_budget", "a_new_one"],
    "tags": [*TABLE, "budget_id", "litellm_budget_table.a_new_one"],
    "organizations": [*TABLE, *METADATA, "budget_id", "members.0.litellm_budget_table.tpm_limit", "a_new_one"],
    "projects": [*TABLE, *METADATA, "model_rpm_limit.m", "model_tpm_limit.spend", "budget_id", "blocked", "a_new_one"],
    "source": [f"litellm_settings.{name}" for name in (
        "max_budget", "max_internal_user_budget", "max_user_budget", "max_end_user_budget", "max_end_user_budget_id",
        "default_internal_user_params.max_budget", "default_internal_user_params.tpm_limit", "tag_budget_config.t.max_budget",
        "tag_budget_config.t.tpm_limit",
    )] + ["general_settings.max_parallel_requests", "general_settings.global_max_parallel_requests",
          "router_settings.provider_budget_config.openai.budget_limit"],
}  # fmt: skip
VALUES = [0, 0.0, -1, -0.5, float("nan"), float("inf"), "inf", "NaN", "much", "5", True, 10**30, 1e-10, 0.5, 5, 7.25, [5], {"a": 0},
          {"a": {"b": 5}}]  # fmt: skip


def placed(path: str, value: Any) -> Any:
    """Return a part of a document with the value at a path."""
    name, _, rest = path.partition(".")
    inner = placed(rest, value) if rest else value
    return [inner] if name == "0" else {name: inner}


def amounts_of(made: Translated) -> list[float]:
    """Return all amounts of budgets, and rates, that count calls of the user u by the key k, which is of the team t."""
    amounts: list[float] = []
    ours = {"tenant": "t", "api_key": "k", "user": "u", "tags": {"tag": "t"}}
    for row in made.objects.get("budgets", ()):
        if all(row.get(name, value) == value for name, value in ours.items()):
            own = [each["amount"] for each in row.get("overrides", ()) if each["who"] == "u"]
            amounts.append(float(*own or [row["amount"]]))
    for row in (*made.objects["api-keys"], *made.objects["tenants"], *made.objects.get("users", ())):
        amounts += [*row.get("limits", {}).values(), *row.get("user_limits", {}).values()]
    return amounts


def with_one(kind: str, path: str, value: Any) -> Translated:
    """Return what a whole export becomes, with one more member of one record of a kind."""
    rows: dict[str, dict[str, Any]] = {
        "keys": {"key_alias": "k", "team_id": "t", "user_id": "u", "metadata": {"tags": ["t"]}},
        "teams": {"team_id": "t"}, "team_memberships": {"user_id": "u", "team_id": "t"}, "users": {"user_id": "u"},
        "tags": {"name": "t"}, "organizations": {"organization_id": "o"}, "projects": {"project_id": "p"},
        "source": {"model_list": [row("m", "gpt-4o")], "general_settings": {"apply_user_budget_to_team_keys": True}},
    }  # fmt: skip
    for name, member in placed(path, value).items() if path else ():
        known = rows[kind].get(name)
        rows[kind][name] = known | member if isinstance(known, dict) else member
    rows["keys"] |= {f"{name}_id": name[0] for name in ("organization", "project") if kind == f"{name}s"}
    rows["teams"]["team_memberships"] = [rows["team_memberships"]]
    lists = {name: [rows[name]] for name in ("teams", "keys", "users", "tags", "organizations", "projects")}
    made = translate(rows["source"], "Company", Path("/d"), NOW, Lists(**lists))
    read(made.objects, datetime.now(UTC))
    return made


@given(
    st.sampled_from([(kind, path) for kind, paths in MEMBERS.items() for path in paths]),
    st.sampled_from(VALUES),
)
def test_litellm_key_has_at_most_each_limit_of_its_records_or_is_not_made(
    member: tuple[str, str], value: Any
) -> None:
    made = with_one(*member, value)
    if "k" in keys_of(made):
        most = float(value)
        assert not isinstance(value, bool)
        assert 0 < min(amounts_of(made), default=float("inf")) <= most
    else:
        assert "cannot be said" in made.shut[0][1]


@pytest.mark.parametrize("kind", MEMBERS)
def test_litellm_key_is_made_if_its_records_have_no_limit_or_an_expressible_limit(kind: str) -> None:
    assert with_one(kind, "", None).shut == []
    for path in {
        "max_budget",
        "rpm_limit",
        "budget_limits.0.max_budget",
        "litellm_budget_table.max_budget",
    } & {*MEMBERS[kind]}:
        if kind not in {"organizations", "projects"} and (
            kind in {"team_memberships", "tags"} or "table" not in path
        ):
            assert (keys_of(with_one(kind, path, 5)), amounts_of(with_one(kind, path, 5))) == (["k"], [5]), (
                path
            )


def test_litellm_answers_with_all_members_of_its_types_are_taken_over_whole(tmp_path: Path) -> None:
    """The samples are what response types of LiteLLM 1.110.2 wrote on 1 December 2026."""
    lists = {
        name: [each for _, each in read_rows([Path(__file__).parent / "samples" / f"{name}.json"], name)]
        for name in ("teams", "keys", "users", "tags", "organizations")
    }
    made = translate({"model_list": [row("gpt-4o", "gpt-4o")]}, "Company", tmp_path, NOW, Lists(**lists))
    assert (keys_of(made), made.shut) == (["reports", "own"], [])
    assert {name: (row["amount"], row.get("interval")) for name, row in budgets_of(made).items()} == {
        "Tag beta": ("5.0", "month"), "User bob": ("50.0", "month"), "Team Search": ("100.0", "week"),
        "bob of team Search": ("5.0", "month"), "Key reports": ("20.0", "month"), "Key reports, 1d": ("3.0", "day"),
        "Key own, gpt-4o": ("2.5", "day"),
    }  # fmt: skip
    assert made.objects["api-keys"][0]["limits"] == {"tokens_per_minute": 90000}
    assert not [place for place, _ in made.left if place.endswith(("spend", "token", "created_at"))]
    del lists["organizations"]
    made = translate({"model_list": [row("gpt-4o", "gpt-4o")]}, "Company", tmp_path, NOW, Lists(**lists))
    assert keys_of(made) == ["own"], "nobody knows the limits of the organization"


@pytest.mark.parametrize(
    ("option", "answer", "fault"),
    [
        ("users", {"users": [{"user_id": "ann"}], "total_pages": 2}, "total_pages is 2, and there are 1 here"),
        ("users", {"users": [{"user_id": "ann"}], "total": 26, "total_pages": 1}, "total is 26"),
        ("keys", {"keys": ["hash"], "total_count": 1}, "keys must be a list of objects"),
        ("keys", {"keys": [{"token": "h", "max_budget": 0}, {"token": "h"}]}, "has the same token and other fields"),
        ("teams", [{"team_id": "t"}, {"team_id": "t", "max_budget": 0}], "has the same team_id and other fields"),
    ],
)  # fmt: skip
def test_litellm_import_refuses_an_incomplete_or_contradictory_list(
    source: Path, tmp_path: Path, option: str, answer: Any, fault: str
) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    given: dict[str, Any] = {option: [tmp_path / "answer.json"]}
    with pytest.raises(CommandFailed, match=re.escape(fault)):
        litellm(source, to=tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_litellm_keys_of_users_and_tags_that_no_list_has_are_not_made() -> None:
    keys: list[dict[str, Any]] = [
        {"key_alias": "ann", "user_id": "ann"},
        {"key_alias": "tagged", "metadata": {"tags": ["t"]}},
        {"key_alias": "free"},
    ]
    assert keys_of(translate({}, "Company", Path("/d"), NOW, Lists(keys=keys))) == ["free"]
    team = {"team_id": "t", "team_memberships": [], "metadata": {"tags": ["t"]}}
    tags = [{"name": "t", "litellm_budget_table": {"max_budget": 5}}]
    made = translate(
        {}, "Company", Path("/d"), NOW, Lists([team], [{"key_alias": "k", "team_id": "t"}], tags=tags)
    )
    assert (keys_of(made), made.shut[0][0]) == ([], "teams[0]")
    source = {"litellm_settings": {"tag_budget_config": {"t": {"max_budget": 0}}}}
    made = translate(source, "Company", Path("/d"), NOW, Lists(keys=keys[1:], tags=tags))
    assert keys_of(made) == ["free"], "the smaller of both budgets of the tag is lost"


def test_litellm_tags_become_declared_names_with_values_which_budgets_and_keys_have() -> None:
    source = {
        "model_list": [row("m", "gpt-4o")],
        "litellm_settings": {
            "tag_budget_config": {"product:chat-bot": {"max_budget": 0.5, "budget_duration": "1d"}}
        },
    }
    tags = [
        {"name": "beta", "models": [], "litellm_budget_table": {"max_budget": 7, "budget_duration": "30d"}},
        {"name": "user:ada", "litellm_budget_table": {"max_budget": 1}},
        {"name": "x" * 65, "litellm_budget_table": {"max_budget": 1}},
        {"name": "seen in calls", "models": None},
    ]
    keys = [{"key_alias": "k", "metadata": {"tags": ["product:chat-bot", "beta", "gamma"]}}]
    made = translate(source, "Company", Path("/d"), NOW, whole(keys=keys, tags=tags))
    assert made.objects["organizations"][0]["tags"] == ["product", "tag"]
    assert {name: row["tags"] for name, row in budgets_of(made).items()} == {
        "Tag product:chat-bot": {"product": "chat-bot"}, "Tag beta": {"tag": "beta"},
        "Tag user:ada": {"tag": "user:ada"},
    }  # fmt: skip
    assert made.objects["api-keys"][0]["tags"] == {"product": "chat-bot", "tag": "beta"}
    assert [place for place, _ in made.left] == [
        "tags[2].litellm_budget_table", "tags[2].litellm_budget_table.max_budget", "keys[0].metadata.tags",
    ]  # fmt: skip


def test_litellm_budget_fallbacks_become_a_step_of_the_budget_of_their_model() -> None:
    keys = [{
        "key_alias": "k", "model_max_budget": {"a": {"budget_limit": 0.01, "time_period": "1d"}, "b": 3},
        "budget_fallbacks": {"a": ["b", "c"], "b": ["gone"], "c": ["a"]},
    }]  # fmt: skip
    made = made_of(row("a", "gpt-4o"), row("b", "gpt-4o-mini"), row("c", "gpt-4.1-nano"), keys=keys)
    key = {"tenant": "Everybody", "api_key": "k"}
    assert budgets_of(made) == {
        "Key k, a": {
            **key, "model": "a", "amount": "0.01", "interval": "day",
            "steps": [{"at": 1, "models": {"a": "b"}, "session": "keep"}],
        },
        "Key k, b": {**key, "model": "b", "amount": "3", "interval": "total"},
    }  # fmt: skip
    assert {place: why.partition(":")[0] for place, why in made.left} == {
        "keys[0].budget_fallbacks.a": "only the first, b",
        "keys[0].budget_fallbacks.b": "none of these models was taken over",
        "keys[0].budget_fallbacks.c":
            "only a model_max_budget of this model, of the same key or user, leads to its fallbacks",
    }  # fmt: skip


def test_example_of_budget_fallbacks_in_the_documentation_equals_the_imported_budget() -> None:
    page = (ROOT / "docs/howto/from-litellm-budgets.md").read_text()
    key, ours = (
        json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    )
    rows = row("anthropic-haiku-4-5", "anthropic/claude-haiku-4-5"), row("gpt-5.5", "gpt-5.5")
    assert made_of(*rows, keys=[key]).objects["budgets"] == ours["budgets"]


def test_litellm_import_takes_a_named_credential_from_the_credential_list() -> None:
    listed = {"credential_name": "one", "credential_values": {"api_key": "os.environ/ONE"}}
    source = {
        "model_list": [row("m", "gpt-4o", litellm_credential_name="one"),
                       row("n", "gpt-4o", litellm_credential_name="two")],
        "credential_list": [listed],
    }  # fmt: skip
    made = translate(source, "Company", Path("/d"), NOW)
    assert [each["keys"] for each in made.config["upstreams"].values()] == [[{"env": "ONE"}]]
    assert [place for place, _ in made.left] == [
        "model_list[1].litellm_params.model",
        "model_list[1].model_name",
    ]


def test_litellm_import_warns_that_a_target_with_another_api_is_skipped() -> None:
    rows = row("gpt-4o", "gpt-4o"), row("gpt-4o", "anthropic/claude-opus-4"), row("c", "claude-opus-4")
    of_another = [note for note in made_of(*rows).notes if "API" in note]
    alone = "calls of the API of anthropic alone"
    assert of_another == [
        f"The target claude-opus-4 (anthropic) of gpt-4o answers {alone}: others pass it over.",
        "Callers of c use the API of anthropic, not OpenAI's: nothing is translated.",
    ]


@pytest.mark.parametrize(("text", "said"), [("- a", "must be one document"), ("a: [", "line 1")])
async def test_litellm_import_refuses_an_invalid_source_and_writes_no_files(
    run: Run, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    done = await run("import", "litellm", str(path), "--to", str(tmp_path / "new"))
    assert (done.exit_code != 0, said in str(done.exception)) == (True, True)
    assert not (tmp_path / "new").exists()
