"""`tollkeeper import portkey`: each policy is in the files, with the calls that it limits, or in the report.

The samples have the fields and the kinds of examples of Portkey's OpenAPI of 12 June 2026, and lists of values,
models and unknown fields besides.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import read
from gateway.cli.admin.budget_import import NotTranslated, Organization, translate_all
from gateway.cli.admin.imports import Translated, read_rows
from gateway.features.portkey_import.command import add_policies, translate
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.tree import ROOT

__all__ = ["run"]  # a fixture

SAMPLES = Path(__file__).parent / "samples"
IMPORT = (
    "import", "portkey", str(SAMPLES / "usage_limits.json"), "--rate-limits", str(SAMPLES / "rate_limits.json"),
    "--names", str(SAMPLES / "workspaces.json"),
)  # fmt: skip
# The workspace of the samples' policies.
OWN = "5b1d8a2e-3c47-4f6f-8a55-9e0b7d3c6f21"
# By name: unit, amount, interval or window and length, each, tenant, key, user, tags, model, group, thresholds.
BUDGETS = {
    "Keys of assistants": ("money", "1000", "month", "key", "Assistants", None, {}, None, None, [0.8, 1]),
    "Each user": ("money", "49.99", "week", "user", OWN, None, {}, None, None, [0.5, 0.8, 1]),
    "Two features, each user: search": (
        "tokens", 1000000, "first_use 14d", "user", None, None, {"feature": "search"}, None, None, [0.5, 0.8, 1],
    ),
    "Two features, each user: summary": (
        "tokens", 1000000, "first_use 14d", "user", None, None, {"feature": "summary"}, None, None, [0.5, 0.8, 1],
    ),
    "Both workspaces together": (
        "money", "5000", "month", None, None, None, {}, None, "Both workspaces together", [0.5, 0.8, 1],
    ),
    "The night's key": (
        "money", "12.50", "total", None, "5b1d8a2e-3c47-4f6f-8a55-9e0b7d3c6f21",
        "f47ac10b-0000-4372-a567-0e02b2c3d479", {}, "gpt-4o*", None, [0.5, 0.8, 1],
    ),
    "a0000008-58cc-4372-a567-0e02b2c3d479": (
        "tokens", 300, "month", None, OWN, None, {"team": "red"}, None, None, [0.5, 0.8, 1],
    ),
    "Tokens of users, an hour": (
        "tokens", 10000, "rolling 1h", "tag:user_id", "Assistants", None, {}, None, None, [0.5, 0.8, 1],
    ),
    "Calls of the night's key": (
        "requests", 500, "rolling 1d", None, "5b1d8a2e-3c47-4f6f-8a55-9e0b7d3c6f21",
        "f47ac10b-0000-4372-a567-0e02b2c3d479", {}, None, None, [0.5, 0.8, 1],
    ),
}  # fmt: skip


async def test_policies_imported_from_portkey_are_applied_as_the_budgets_that_a_person_would_make(
    run: Run, api: Api, tmp_path: Path
) -> None:
    done = await run(*IMPORT, "--to", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    objects = str(tmp_path / "new" / "objects.yaml")
    applied = await run("apply", "-f", objects, "--secrets-dir", str(tmp_path / "secrets"))
    assert applied.exit_code == 0, (applied.output, applied.exception)
    listed = {
        kind: (await from_json(run, kind, "list"))["items"] for kind in ("tenant", "key", "group", "budget")
    }
    names = {(kind, row["id"]): row["name"] for kind, rows in listed.items() for row in rows}
    assert {
        row["name"]: (
            row["unit"], row["amount"], row["interval"] or f"{row['window']} {row['length']}", row["each"],
            names.get(("tenant", row["tenant_id"])), names.get(("key", row["api_key_id"])), row["tags"],
            row["model"], names.get(("group", row["group_id"])), row["thresholds"],
        )
        for row in listed["budget"]
    } == BUDGETS  # fmt: skip
    tenants = {row["name"]: row for row in listed["tenant"]}
    assert tenants["Assistants"]["limits"] == {"requests_per_minute": 100}
    assert tenants["Assistants"]["user_limits"] == {"tokens_per_minute": 20000}
    [group] = listed["group"]
    assert {names["tenant", member] for member in group["members"]} == {"Assistants", "Batch"}
    assert (await run("diff", "-f", objects)).exit_code == 0


async def test_portkey_import_writes_the_objects_that_its_page_shows(run: Run, tmp_path: Path) -> None:
    text = (ROOT / "docs/howto/from-portkey.md").read_text()
    (tmp_path / "page.json").write_text(text.partition("<<'JSON'\n")[2].partition("\nJSON\n")[0])
    to = ("--org", "Over from Portkey", "--to", str(tmp_path / "new"))
    assert (await run("import", "portkey", str(tmp_path / "page.json"), *to)).exit_code == 0
    made = yaml.safe_load((tmp_path / "new" / "objects.yaml").read_text())
    shown = yaml.safe_load("budgets:" + text.partition("```yaml\nbudgets:")[2].partition("```")[0])
    assert [row for row in made["budgets"] if row["name"] != "Each user"] == shown["budgets"]


async def test_portkey_import_names_each_policy_and_field_that_is_left_out(run: Run, tmp_path: Path) -> None:
    made = await from_json(run, *IMPORT, "--to", str(tmp_path / "new"))
    assert {row["place"]: row["why"].partition(":")[0] for row in made["left_out"]} == {
        "usage_limits.json: data[5].group_by": "Each key and user",
        "usage_limits.json: data[6].status": "Before the move",
        "usage_limits.json: data[7].exclude_cached": "a0000008-58cc-4372-a567-0e02b2c3d479",
        "rate_limits.json: data[4].unit": "Each key, a minute",
    }


# Calls with a value of all that policies know. A key is of one workspace.
HOMES = {"k1": "w1", "k2": "w1", "k3": "w2"}
CALLS = [
    {"api_key": key, "workspace_id": home, "organisation_id": "o", "model": model, "metadata._user": user, "metadata.feature": feature}
    for (key, home), model, user, feature in product(HOMES.items(), ("m1", "m2"), ("u1", "u2"), ("f1", "f2"))
]  # fmt: skip
VALUES = {key: sorted({call[key] for call in CALLS}) for key in CALLS[0]}
CONDITIONS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda key: st.fixed_dictionaries({
        "key": st.just(key),
        "value": st.just("*") | st.lists(st.sampled_from([*VALUES[key], "other"]), min_size=1, unique=True),
    })
)  # fmt: skip
POLICIES = st.fixed_dictionaries({
    "name": st.just("P"), "organisation_id": st.just("o"), "workspace_id": st.just("w1"), "type": st.just("tokens"), "credit_limit": st.just(7),
    "conditions": st.lists(CONDITIONS, max_size=3),
    "group_by": st.lists(st.sampled_from(sorted(VALUES)).map(lambda key: {"key": key}), max_size=3),
})  # fmt: skip


def names_workspaces(policy: dict[str, Any]) -> bool:
    return "workspace_id" in {row["key"] for row in (*policy["conditions"], *policy["group_by"])}


def account_of_portkey(policy: dict[str, Any], call: dict[str, str]) -> object:
    """Return the account that Portkey counts a call in: one for each combination of the values grouped by.

    A policy is of its own workspace, unless it names workspaces itself.
    """
    if not names_workspaces(policy) and call["workspace_id"] != policy["workspace_id"]:
        return None
    for condition in policy["conditions"]:
        if condition["value"] != "*" and call[condition["key"]] not in condition["value"]:
            return None
    return tuple(call[group["key"]] for group in policy["group_by"])


def accounts_of_ours(objects: dict[str, list[dict[str, Any]]], call: dict[str, str]) -> list[object]:
    """Return the accounts of budgets that take from a call."""
    ours = {"tenant": call["workspace_id"], "api_key": call["api_key"], "user": call["metadata._user"]}
    ours |= {"key": ours["api_key"], "tag:feature": call["metadata.feature"], "model": call["model"]}
    groups = {row["name"]: row for row in objects.get("groups", [])}
    accounts: list[object] = []
    for budget in objects["budgets"]:
        group = groups.get(budget.get("group", ""))
        names = ("api_key" if "api_key" in budget else "tenant", "user", "model")
        chosen = all(budget[name] == ours[name] for name in names if name in budget)
        chosen &= budget.get("tags", {}).get("feature", call["metadata.feature"]) == call["metadata.feature"]
        if chosen and (group is None or ours[group["kind"]] in group["members"]):
            accounts.append((budget["name"], ours[budget["each"]] if budget.get("each") else None))
    return accounts


@given(POLICIES)
def test_an_imported_policy_limits_the_same_calls_together_as_at_portkey(
    policy: dict[str, Any],
) -> None:
    values = {row["key"]: row["value"] for row in policy["conditions"] if row["value"] != "*"}
    homes = {HOMES.get(key) for key in values.get("api_key", ())}
    own = homes if names_workspaces(policy) else {"w1"}
    assume(homes <= {*values.get("workspace_id", own)})  # a policy's keys are of its workspaces
    made = Organization("Company", None)
    try:
        translate(made, policy)
    except NotTranslated:
        assert "budgets" not in made.finish().objects
        return
    objects = made.finish().objects
    theirs, ours = (
        [account_of_portkey(policy, call) for call in CALLS],
        [accounts_of_ours(objects, call) for call in CALLS],
    )
    assert [account is not None for account in theirs] == [len(accounts) == 1 for accounts in ours]
    for (a, b), (c, d) in combinations([*zip(theirs, ours, strict=True)], 2):
        assert a is None or c is None or (a == c) == (b == d)


ANY = st.sampled_from([
    None, "", "*", "x", "monthly", 0, -1, 7, 0.5, 1e308, float("nan"), True, [], [None], ["a"], {}, {"key": "a"},
])  # fmt: skip
ENTRIES = st.lists(
    st.fixed_dictionaries({"key": st.sampled_from([*VALUES, "metadata.", "config"]) | ANY, "value": ANY}),
    max_size=2,
)
WRONG = st.fixed_dictionaries(
    {"type": st.sampled_from(["cost", "tokens", "requests"]) | ANY, "conditions": ENTRIES | ANY, "group_by": ENTRIES | ANY},
    optional={
        "credit_limit": st.just(9) | ANY, "alert_threshold": ANY, "periodic_reset": ANY, "periodic_reset_days": ANY,
        "unit": st.sampled_from(["rpm", "rph"]) | ANY, "value": st.just(9) | ANY, "status": ANY, "workspace_id": ANY, "more": ANY,
    },
)  # fmt: skip


@given(st.lists(WRONG, max_size=4))
def test_every_policy_is_in_files_that_apply_reads_or_in_the_report(policies: list[dict[str, Any]]) -> None:
    rows = [(f"[{number}]", policy | {"name": f"P{number}"}) for number, policy in enumerate(policies)]
    before = Organization("Company", None).finish().objects
    done = translate_all("Company", None, lambda made: add_policies(made, rows)).finish()
    read(done.objects, datetime.now(UTC))
    assert before.keys() <= done.objects.keys()
    budgets = {budget["name"].partition(":")[0] for budget in done.objects.get("budgets", [])}
    limited = {
        row["name"] if "name" in row else row["external_id"]
        for rows in done.objects.values()
        for row in rows
        if "limits" in row
    }
    for number, policy in enumerate(policies):
        left = [
            why
            for place, why in (*done.shut, *done.left)
            if place.startswith(f"[{number}]") and why.startswith(f"P{number}: ")
        ]
        assert left or f"P{number}" in budgets or (policy.get("unit") == "rpm" and limited), policy
        assert "more" not in policy or policy["more"] in (None, "", [], {}) or left


def policy(name: str, *conditions: tuple[str, Any], each: str = "api_key", **more: Any) -> dict[str, Any]:
    rows = [{"key": key, "value": value} for key, value in conditions]
    usual = {
        "id": name,
        "name": name,
        "conditions": rows,
        "group_by": [{"key": each}],
        "type": "cost",
        "credit_limit": 5,
    }
    return usual | more


def imported(path: Path, *policies: dict[str, Any]) -> Translated:
    path.write_text(json.dumps({"data": policies}))
    rows = read_rows([path])
    made = translate_all("Company", None, lambda made: add_policies(made, rows)).finish()
    read(made.objects, datetime.now(UTC))
    return made


def test_portkey_policies_for_each_user_of_two_workspaces_become_budgets_of_two_tenants(
    tmp_path: Path,
) -> None:
    both = [
        policy(
            f"Each user of {own}",
            ("metadata._user", "*"),
            each="metadata._user",
            workspace_id=own,
            credit_limit=amount,
        )
        for own, amount in (("ws-a", 3), ("ws-b", 5))
    ]
    made = imported(tmp_path / "policies.json", *both)
    assert [(row["tenant"], row["each"], row["amount"]) for row in made.objects["budgets"]] == [
        ("ws-a", "user", "3"), ("ws-b", "user", "5"),
    ]  # fmt: skip
    assert [row["name"] for row in made.objects["tenants"]] == ["ws-a", "ws-b"]


def test_portkey_rates_without_a_workspace_condition_become_limits_of_the_own_workspace(
    tmp_path: Path,
) -> None:
    rate = {"unit": "rpm", "value": 9, "type": "requests", "credit_limit": None, "workspace_id": "ws-a"}
    user = policy("One", ("metadata._user", "ada"), each="metadata._user", **rate)
    made = imported(
        tmp_path / "policies.json", policy("All", each="workspace_id", **rate) | {"group_by": []}, user
    )
    assert made.objects["tenants"][0]["limits"] == {"requests_per_minute": 9}
    assert [(row["external_id"], row["limits"]) for row in made.objects["users"]] == [
        ("ada", {"requests_per_minute": 9})
    ]
    assert "limits" not in made.objects["organizations"][0]


@pytest.mark.parametrize(
    "lost",
    [{"credit_limit": 0}, {"credit_limit": -1}, {"credit_limit": "12,5"}, {"periodic_reset_days": 0}, {"periodic_reset": "45s"},
     {"credit_limit": None, "unit": "rpm", "value": 0, "type": "requests"}],
)  # fmt: skip
def test_portkey_keys_of_a_policy_that_is_left_out_are_not_made_and_are_first_in_the_report(
    tmp_path: Path, lost: dict[str, Any]
) -> None:
    shut = policy("Shut", ("api_key", ["k1", "k2"]), **lost)
    made = imported(
        tmp_path / "policies.json", policy("First", ("api_key", "k1")), policy("Pair", ("api_key", ["k1", "k3"])),
        policy("Other", ("api_key", "k4")), shut,
    )  # fmt: skip
    assert [row["name"] for row in made.objects["api-keys"]] == ["k4"]
    assert [row["name"] for row in made.objects["budgets"]] == ["Other"]
    keys = [why.partition(":")[0] for _, why in made.shut]
    assert sorted(keys)[-3:] == ["k1", "k2", "k3"], "k3 has lost the amount that it shares with k1"


def test_portkey_credit_limit_of_0_leaves_no_keys_of_the_workspaces_that_the_policy_is_of(
    tmp_path: Path,
) -> None:
    keys = [
        policy(f"Of {home}", ("api_key", f"key of {home}"), workspace_id=home) for home in ("ws-a", "ws-b")
    ]
    contractors = policy(
        "Nothing for contractors", ("metadata.role", "contractor"), each="metadata.role", credit_limit=0,
        workspace_id="ws-b",
    )  # fmt: skip
    made = imported(tmp_path / "policies.json", *keys, contractors)
    assert [row["name"] for row in made.objects["api-keys"]] == ["key of ws-a"]
    assert [(place.partition(": ")[2], why.partition(":")[0]) for place, why in made.shut] == [
        ("data[1]", "Of ws-b"), ("data[2].credit_limit", "Nothing for contractors"),
        ("data[2].credit_limit", "key of ws-b"),
    ]  # fmt: skip
    ended = imported(tmp_path / "policies.json", *keys, contractors | {"status": "archived"})
    assert (len(ended.objects["api-keys"]), ended.shut) == (2, [])


OPEN = {"k1": "w1", "k2": "w2", "k3": None}  # nobody knows the workspace of k3
UNSAYABLE = st.sampled_from([
    *({"credit_limit": amount} for amount in (0, -1, 1e-10, float("nan"), float("inf"), "NaN", "5", True, 10**30, [5], None)),
    *({"credit_limit": None, "unit": "rpm", "type": "requests", "value": rate} for rate in (0, 0.5, 10**30, "5", None)),
    {"periodic_reset": "45s"}, {"periodic_reset_days": 400}, {"type": "calls"}, {"status": "paused"}, {"limit_requests": 0},
])  # fmt: skip
READABLE = st.lists(
    st.sampled_from([("workspace_id", "w1"), ("workspace_id", "w2"), ("workspace_id", "*"), ("api_key", "k1"), ("api_key", "*"),
                     ("model", "m"), ("metadata._user", "ada")]).map(lambda row: {"key": row[0], "value": row[1]}),
    max_size=2, unique_by=lambda row: row["key"],
)  # fmt: skip
UNREADABLE = st.sampled_from([
    None, "w1", [5], [{"key": "virtual_key", "value": "v"}], [{"key": "config", "value": "c"}], [{"key": "api_key", "value": 5}],
    [{"key": "api_key", "value": "*", "excludes": ["k1"]}], [{"key": "workspace_id", "value": "w1", "excludes": ["k1"]}],
])  # fmt: skip


@given(UNSAYABLE, READABLE | UNREADABLE, st.sampled_from(["w1", "w2", None, 5]), st.sampled_from([0, 3]))
def test_no_key_is_made_that_an_inexpressible_portkey_policy_may_limit(
    lost: dict[str, Any], conditions: Any, own: Any, place: int
) -> None:
    rows = [policy(f"Of {key}", ("api_key", key), workspace_id=home) for key, home in OPEN.items()]
    rows.insert(place, policy("Lost", **{"workspace_id": own, "conditions": conditions, **lost}))
    places = [(f"[{number}]", row) for number, row in enumerate(rows)]
    made = translate_all("Company", None, lambda made: add_policies(made, places)).finish()
    try:
        asked = {row["key"]: row["value"] for row in conditions if row.keys() == {"key", "value"}}
        is_readable = len(asked) == len(conditions) and {*asked.values()} <= {
            "w1",
            "w2",
            "*",
            "k1",
            "m",
            "ada",
        }
    except (AttributeError, TypeError):
        is_readable, asked = False, {}
    limited = {
        key
        for key, home in OPEN.items()
        if not is_readable
        or (
            asked.get("api_key", "*") in (key, "*")
            and (
                asked.get("api_key") == key
                or asked.get("workspace_id", own) in (home, "*", None, 5)
                or home is None
            )
        )
    }
    assert {row["name"] for row in made.objects.get("api-keys", ())} == OPEN.keys() - limited
    assert {why.partition(":")[0] for _, why in made.shut} >= {"Lost", *limited}
    assert len(made.objects.get("budgets", ())) == len(OPEN) - len(limited)


def test_portkey_keys_of_workspaces_with_a_limit_of_their_own_in_the_list_of_names_are_not_made(
    tmp_path: Path,
) -> None:
    limit = {"credit_limit": 0, "periodic_reset": "monthly"}
    rows = [{"id": "w1", "name": "One", "usage_limits": limit}, {"id": "w2", "name": "Two", "usage_limits": None},
            {"id": "k3", "name": "CI", "rate_limits": [{"unit": "rpm", "value": 5}]},
            {"id": "k2", "status": "active", "expires_at": None}]  # fmt: skip
    (tmp_path / "names.json").write_text(json.dumps({"data": rows}))
    places = [("", policy(f"Of {key}", ("api_key", key), workspace_id=home)) for key, home in OPEN.items()]
    made = translate_all(
        "Company", [tmp_path / "names.json"], lambda made: add_policies(made, places)
    ).finish()
    assert [row["name"] for row in made.objects["api-keys"]] == ["k2"]
    assert {place for place, _ in made.shut if place} == {
        "names.json: data[0].usage_limits.credit_limit", "names.json: data[2].rate_limits[0].unit",
    }  # fmt: skip


@pytest.mark.parametrize("end", [{"status": "archived"}, {"expires_at": "2099-01-01T00:00:00Z"}])
def test_portkey_keys_that_are_not_active_or_end_are_not_made(tmp_path: Path, end: dict[str, Any]) -> None:
    rows = [{"id": "k1", "name": "One", **end}, {"id": "k2", "name": "Two", "status": "active"}]
    (tmp_path / "names.json").write_text(json.dumps({"data": rows}))
    places = [("", policy(f"Of {key}", ("api_key", key), workspace_id="w")) for key in ("k1", "k2")]
    made = translate_all(
        "Company", [tmp_path / "names.json"], lambda made: add_policies(made, places)
    ).finish()
    assert [row["name"] for row in made.objects["api-keys"]] == ["Two"]
    assert [place for place, _ in made.shut if place] == [f"names.json: data[0].{next(iter(end))}"]


def test_a_policy_with_a_rate_and_an_amount_is_reported() -> None:
    amount = {"name": "P", "type": "requests", "conditions": [], "group_by": [], "credit_limit": 5}
    with pytest.raises(NotTranslated, match="credit_limit"):
        translate(Organization("Company", None), {**amount, "unit": "rpm", "value": 3})


@pytest.mark.parametrize(
    ("text", "options", "fault"),
    [
        ("{", (), "is no JSON"),
        ("[]", (), "data must be a list of objects"),
        ('{"data": [1]}', (), "data must be a list of objects"),
        ('{"data": [], "total": 2}', (), "total is 2, and there are 0 here"),
        (
            '{"data": [{"id": "a", "name": "b"}, {"id": "a", "name": "c"}]}',
            (),
            "data[1].id: policies.json: data[0] has the same",
        ),
        (" " * (4 * 2**20 + 1), (), "more than 4194304 bytes"),
        ('{"data": []}', ("--org", "two\nlines"), "--org organizations.0.name: must be one line"),
        ('{"data": []}', ("--names", "/nowhere.json"), "/nowhere.json cannot be read"),
        ('{"data": []}', ("--to", "/"), "name a new directory with --to"),
    ],
)
async def test_portkey_import_refuses_an_incomplete_list_and_writes_no_files(
    run: Run, tmp_path: Path, text: str, options: tuple[str, ...], fault: str
) -> None:
    (tmp_path / "policies.json").write_text(text)
    to = ("--to", str(tmp_path / "new"))
    done = await run("import", "portkey", str(tmp_path / "policies.json"), *to, *options)
    assert (done.exit_code != 0, fault in str(done.exception)) == (True, True), done.exception
    assert not (tmp_path / "new").exists()
