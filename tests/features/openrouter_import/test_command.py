"""`tollkeeper import openrouter`: each guardrail is in the files, with its members and keys, or in the report.

The types of @openrouter/sdk 1.3.19 of 22 August 2026 read the samples without a fault.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import read
from gateway.cli.admin.budget_import import Organization
from gateway.cli.admin.imports import Translated
from gateway.features.openrouter_import.command import translate_all
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.tree import ROOT

__all__ = ["run"]  # a fixture

SAMPLES = Path(__file__).parent / "samples"
IMPORT = (
    "import", "openrouter", str(SAMPLES / "guardrails.json"), "--members", str(SAMPLES / "members.json"),
    "--keys", str(SAMPLES / "keys.json"), "--names", str(SAMPLES / "people.json"),
    "--names", str(SAMPLES / "workspaces.json"),
)  # fmt: skip
MINI, OPUS = "openai/gpt-5.2-20251211", "anthropic/claude-4.5-opus-20251124"
EVE, MIA, ADA = (f"{name}@shop.example" for name in ("eve", "mia", "ada"))


async def test_guardrails_imported_from_openrouter_are_applied_as_budgets_overrides_and_lists_of_models(
    run: Run, api: Api, tmp_path: Path
) -> None:
    done = await run(*IMPORT, "--default", "Everybody", "--to", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    objects = str(tmp_path / "new" / "objects.yaml")
    applied = await run("apply", "-f", objects, "--secrets-dir", str(tmp_path / "secrets"))
    assert applied.exit_code == 0, (applied.output, applied.exception)
    budgets = {row["name"]: row for row in (await from_json(run, "budget", "list"))["items"]}
    assert {name: (row["amount"], row["interval"], row["each"]) for name, row in budgets.items()} == {
        "Everybody, each user": ("500", "month", "user"),
        "Everybody, each key": ("500", "month", "key"),
        "Production keys, each key": ("20", "day", "key"),
    }
    keys = {row["id"]: row for row in (await from_json(run, "key", "list"))["items"]}
    groups = {
        f"group:{row['id']}": {
            member if row["kind"] == "user" else keys[member]["name"] for member in row["members"]
        }
        for row in (await from_json(run, "group", "list"))["items"]
    }
    overrides = {
        each: (await from_json(run, "budget", "overrides", f"Everybody, each {each}"))["items"]
        for each in ("user", "key")
    }
    assert {
        each: {row["amount"]: groups[row["who"]] for row in rows} for each, rows in overrides.items()
    } == {
        "user": {"30.50": {EVE, MIA}, "500": {ADA}},
        "key": {"30.50": {"Audit"}},
    }
    assert groups[f"group:{budgets['Production keys, each key']['group_id']}"] == {
        "Storefront",
        "Storefront 2",
    }
    assert {row["name"]: row["models"] for row in keys.values()} == {
        "Audit": [MINI],
        "Storefront": None,
        "Storefront 2": None,
    }
    [tenant] = (await from_json(run, "tenant", "list"))["items"]
    assert (tenant["name"], set(tenant["models"])) == ("Shop", {MINI, OPUS})
    users = (await from_json(run, "user", "list"))["items"]
    assert {row["external_id"]: row["models"] for row in users if row["models"]} == {EVE: [MINI], MIA: [MINI]}
    assert (await run("diff", "-f", objects)).exit_code == 0


async def test_openrouter_import_writes_the_objects_that_its_page_shows(run: Run, tmp_path: Path) -> None:
    text = (ROOT / "docs/howto/from-openrouter.md").read_text()
    for name, answer in re.findall(r"cat > (\S+) <<'JSON'\n(.*?)\nJSON\n", text, re.DOTALL):
        (tmp_path / name).write_text(answer)
    options = ("--members", str(tmp_path / "members.json"), "--default", "Production Guardrail")
    to = ("--org", "Over from OpenRouter", "--to", str(tmp_path / "new"))
    done = await run("import", "openrouter", str(tmp_path / "guardrails.json"), *options, *to)
    assert (done.exit_code, "Nothing is left out." in done.output) == (0, True)
    made = yaml.safe_load((tmp_path / "new" / "objects.yaml").read_text())
    shown = yaml.safe_load("groups:" + text.partition("```yaml\ngroups:")[2].partition("```")[0])
    assert (made["groups"], made["budgets"][:1]) == (shown["groups"], shown["budgets"])


async def test_openrouter_import_names_each_guardrail_and_field_that_is_left_out(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "members.json").write_text(
        '{"data": [{"id": "1", "guardrail_id": "gone", "user_id": "eve"}, {"id": "2", "guardrail_id": ["x"]}]}'
    )
    made = await from_json(
        run, *IMPORT, "--members", str(tmp_path / "members.json"), "--to", str(tmp_path / "new")
    )
    assert {row["place"]: row["why"].partition(":")[0] for row in made["left_out"]} == {
        "members.json: data[0].guardrail_id": "1",
        "members.json: data[1].guardrail_id": "2",
        "guardrails.json: data[0]": "Everybody",
        "guardrails.json: data[1].description": "Contractors",
        "guardrails.json: data[1].enforce_zdr_openai": "Contractors",
        "guardrails.json: data[4]": "Not assigned",
        "guardrails.json: data[5]": "Providers alone",
    }
    done = await run(*IMPORT, "--default", "Nobody", "--to", str(tmp_path / "other"))
    assert "--default Nobody: must be the id of one guardrail" in str(done.exception)


def imported(*guardrails: dict[str, Any], default: str | None = None) -> Translated:
    """Return what guardrails become, each with a key of its own, and the first non-default one with a user."""
    rows = [
        (f"data[{number}]", {"id": f"g{number}", "name": f"G{number}", "workspace_id": "w", **row})
        for number, row in enumerate(guardrails)
    ]
    assigned = [row["id"] for _, row in rows if row["id"] != default]
    made = Organization("Company", None)
    keys = {one: [{"key_hash": f"hash of {one}", "key_name": f"key of {one}"}] for one in assigned}
    translate_all(made, rows, {assigned[0]: [{"user_id": "ann"}]}, keys, default)
    done = made.finish()
    read(done.objects, datetime.now(UTC))
    return done


def test_openrouter_default_guardrail_of_0_leaves_no_keys_in_its_workspace() -> None:
    default = {"limit_usd": 0, "reset_interval": "monthly"}
    made = imported(
        default, {"limit_usd": 5}, {"limit_usd": 7}, {"limit_usd": 9, "workspace_id": "other"}, default="g0"
    )
    assert [row["name"] for row in made.objects["api-keys"]] == ["key of g3"]
    assert [(place, why.partition(":")[0]) for place, why in made.shut] == [
        ("data[0].limit_usd", "G0"), ("data[1]", "key of g1"), ("data[2]", "key of g2"),
    ]  # fmt: skip
    assert {(row["name"], row["amount"]) for row in made.objects["budgets"]} == {
        ("G1, each user", "5"), ("G3, each key", "9"),
    }  # fmt: skip
    free = imported({"limit_usd": None}, {"limit_usd": 5}, default="g0")
    assert ([row["name"] for row in free.objects["api-keys"]], free.shut) == (["key of g1"], [])


def test_openrouter_guardrail_of_0_is_an_override_of_0_beside_a_default_or_its_keys_are_not_made() -> None:
    nothing = {"limit_usd": 0, "reset_interval": "daily"}
    beside = imported({"limit_usd": 5, "reset_interval": "monthly"}, nothing, default="g0")
    assert {row["name"]: row["overrides"] for row in beside.objects["budgets"]} == {
        f"G0, each {each}": [{"who": f"group:G1, each {each}", "amount": "0"}] for each in ("user", "key")
    }
    assert ([row["name"] for row in beside.objects["api-keys"]], beside.shut) == (["key of g1"], [])
    alone = imported(nothing, {"limit_usd": 5})
    assert [row["name"] for row in alone.objects["api-keys"]] == ["key of g1"]
    assert [(place, why.partition(":")[0]) for place, why in alone.shut] == [
        ("data[0].limit_usd", "G0"), ("data[0]", "key of g0"),
    ]  # fmt: skip


GUARDRAILS = st.lists(
    st.fixed_dictionaries({
        "limit_usd": st.sampled_from([None, 0.5, 20, 500]),
        "reset_interval": st.sampled_from([None, "daily", "monthly"]),
        "allowed_models": st.none() | st.lists(st.sampled_from([MINI, OPUS]), min_size=1, unique=True),
        "workspace_id": st.sampled_from(["w1", "w1", "w2"]),
        "user_id": st.lists(st.sampled_from(["ada", "bob"]), unique=True),
        "key_hash": st.lists(st.sampled_from(["k1", "k2"]), unique=True),
    }), min_size=1, max_size=4,
)  # fmt: skip
INTERVALS = {None: "total", "daily": "day", "monthly": "month"}


def smallest(amounts: list[tuple[str, float]]) -> dict[str, float]:
    """Return the smallest amount of each interval."""
    return {interval: min(most for of, most in amounts if of == interval) for interval, _ in amounts}


def ours(objects: dict[str, list[dict[str, Any]]], each: str, who: str, tenant: str) -> dict[str, float]:
    """Return the amounts that calls of a user or a key in a tenant have, by interval."""
    members = {row["name"]: row["members"] for row in objects.get("groups", [])}
    amounts = []
    for budget in objects.get("budgets", []):
        if budget["each"] == each and budget.get("tenant", tenant) == tenant:
            own = [
                float(row["amount"])
                for row in budget.get("overrides", [])
                if who in members[row["who"].removeprefix("group:")]
            ]
            if who in members.get(budget.get("group"), [who]):
                amounts.append((budget["interval"], min(own, default=float(budget["amount"]))))
    return smallest(amounts)


@given(GUARDRAILS, st.booleans())
def test_users_and_keys_have_the_same_smallest_amounts_and_common_models_as_at_openrouter(
    guardrails: list[dict[str, Any]], has_default: bool
) -> None:
    for number, row in enumerate(guardrails):
        row |= {"id": f"g{number}", "name": f"G{number}"}
    taken: set[str] = set()
    assigned: dict[str, dict[str, list[dict[str, Any]]]] = {"user_id": {}, "key_hash": {}}
    for row in guardrails[1 if has_default else 0 :]:
        for field, of in assigned.items():
            row[field] = [who for who in row[field] if who not in taken]  # one guardrail for each
            taken.update(row[field])
            of[row["id"]] = [{field: who} for who in row[field]]
    made = Organization("Company", None)
    rows = [
        (row["id"], {name: value for name, value in row.items() if name not in assigned})
        for row in guardrails
    ]
    translate_all(made, rows, assigned["user_id"], assigned["key_hash"], "g0" if has_default else None)
    objects = made.finish().objects
    read(objects, datetime.now(UTC))
    lists = {
        "user": {row["external_id"]: row for row in objects.get("users", [])},
        "key": {row["name"]: row for row in objects.get("api-keys", [])},
    }
    tenants = {row["name"]: row for row in objects.get("tenants", [])}
    workspaces = {row["workspace_id"] for row in guardrails}
    for (each, field), tenant in product({"user": "user_id", "key": "key_hash"}.items(), sorted(workspaces)):
        for who in ("ada", "bob") if each == "user" else ("k1", "k2"):
            theirs = [row for row in guardrails[has_default:] if who in row[field]]
            theirs += [row for row in guardrails[:has_default] if row["workspace_id"] == tenant]
            amounts = [
                (INTERVALS[row["reset_interval"]], row["limit_usd"]) for row in theirs if row["limit_usd"]
            ]
            assert ours(objects, each, who, tenant) == smallest(amounts)
            models = [set(row["allowed_models"]) for row in theirs if row["allowed_models"]]
            found = [
                set(row["models"])
                for row in (lists[each].get(who, {}), tenants.get(tenant, {}))
                if "models" in row
            ]
            assert set.intersection({MINI, OPUS}, *found) == set.intersection({MINI, OPUS}, *models)
    left = {place for place, _ in made.finish().left}
    assert left == {
        row["id"]
        for row in guardrails
        if not (row["limit_usd"] or row["allowed_models"])
        or ((row is not guardrails[0] or not has_default) and not (row["user_id"] or row["key_hash"]))
    }
