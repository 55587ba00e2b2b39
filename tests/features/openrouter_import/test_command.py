"""`tollkeeper import openrouter`: each guardrail is in the files, with its members and keys, or in the report.

The types of @openrouter/sdk 1.3.19 of 22 August 2026 read the samples without a fault.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import read
from gateway.cli.admin.budget_import import Organization, translate_all
from gateway.cli.admin.imports import Translated
from gateway.features.openrouter_import.command import add_guardrails
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.tree import ROOT

__all__ = ["run"]  # a fixture

SAMPLES = Path(__file__).parent / "samples"
IMPORT = (
    "import", "openrouter", str(SAMPLES / "guardrails.json"), "--members", str(SAMPLES / "members.json"),
    "--keys", str(SAMPLES / "keys.json"), "--names", str(SAMPLES / "people.json"),
    "--names", str(SAMPLES / "workspaces.json"), "--names", str(SAMPLES / "api_keys.json"),
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
    assert {row["name"]: row["user"] for row in keys.values()} == {
        "Audit": EVE,
        "Storefront": ADA,
        "Storefront 2": "bob@shop.example",
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
    keys = [row for row in made["left_out"] if "no key is made" in row["why"]]
    assert {row["why"].partition(":")[0] for row in keys} == {"Audit", "Storefront", "Storefront 2"}
    assert {row["place"] for row in keys} == {"members.json: data[0].guardrail_id"}
    left = [row for row in made["left_out"] if row not in keys]
    assert {row["place"]: row["why"].partition(":")[0] for row in left} == {
        "members.json: data[0].guardrail_id": "1",
        "members.json: data[1].guardrail_id": "2",
        "guardrails.json: data[0]": "Everybody",
        "guardrails.json: data[1].description": "Contractors",
        "guardrails.json: data[1].enforce_zdr_openai": "Contractors",
        "guardrails.json: data[4]": "Not assigned",
        "guardrails.json: data[5]": "Providers alone",
    }
    assert not (tmp_path / "new" / "objects.yaml").read_text().count("api-keys")
    done = await run(*IMPORT, "--default", "Nobody", "--to", str(tmp_path / "other"))
    assert "--default Nobody: must be the id of one guardrail" in str(done.exception)
    alone = ("--keys", str(SAMPLES / "keys.json"), "--to", str(tmp_path / "other"))
    done = await run("import", "openrouter", str(SAMPLES / "guardrails.json"), *alone)
    assert "--keys needs --members" in str(done.exception)


Row = dict[str, Any]


def placed(rows: list[Row]) -> list[tuple[str, Row]]:
    return [(f"data[{number}]", row) for number, row in enumerate(rows)]


def translated(
    guardrails: list[Row], members: list[Row], keys: list[Row], default: str | None = None
) -> Translated:
    """Return what guardrails become, where another member made all keys."""
    rows = placed(guardrails), placed(members), placed(keys)

    def add(made: Organization) -> None:
        made.makers |= {key.get("key_name") or key["key_hash"]: "boss" for key in keys}
        add_guardrails(made, *rows, default)

    done = translate_all("Company", None, add).finish()
    read(done.objects, datetime.now(UTC))
    return done


def imported(*guardrails: Row, default: str | None = None) -> Translated:
    """Return what guardrails become, each with a key of its own, and the first non-default one with a user."""
    rows = [
        {"id": f"g{number}", "name": f"G{number}", "workspace_id": "w", **row}
        for number, row in enumerate(guardrails)
    ]
    assigned = [row["id"] for row in rows if row["id"] != default]
    keys = [
        {"guardrail_id": one, "key_hash": f"hash of {one}", "key_name": f"key of {one}"} for one in assigned
    ]
    return translated(rows, [{"guardrail_id": assigned[0], "user_id": "ann"}], keys, default)


def keys_of(made: Translated) -> list[str]:
    return [row["name"] for row in made.objects.get("api-keys", ())]


def test_openrouter_default_guardrail_of_0_leaves_no_keys_in_its_workspace() -> None:
    default = {"limit_usd": 0, "reset_interval": "monthly"}
    made = imported(
        default, {"limit_usd": 5}, {"limit_usd": 7}, {"limit_usd": 9, "workspace_id": "other"}, default="g0"
    )
    assert keys_of(made) == ["key of g3"]
    assert [(place, why.partition(":")[0]) for place, why in made.shut] == [
        ("data[0].limit_usd", "G0"), ("data[0].limit_usd", "key of g1"), ("data[0].limit_usd", "key of g2"),
    ]  # fmt: skip
    assert {(row["name"], row["amount"]) for row in made.objects["budgets"]} == {
        ("G1, each user", "5"), ("G3, each key", "9"),
    }  # fmt: skip
    free = imported({"limit_usd": None}, {"limit_usd": 5}, default="g0")
    assert (keys_of(free), free.shut) == (["key of g1"], [])


def test_openrouter_guardrail_of_0_is_an_override_of_0_beside_a_default_or_its_keys_are_not_made() -> None:
    nothing = {"limit_usd": 0, "reset_interval": "daily"}
    beside = imported({"limit_usd": 5, "reset_interval": "monthly"}, nothing, default="g0")
    assert {row["name"]: row["overrides"] for row in beside.objects["budgets"]} == {
        f"G0, each {each}": [{"who": f"group:G1, each {each}", "amount": "0"}] for each in ("user", "key")
    }
    assert (keys_of(beside), beside.shut) == (["key of g1"], [])
    alone = imported({"limit_usd": 5}, nothing)
    assert keys_of(alone) == ["key of g0"]
    assert [(place, why.partition(":")[0]) for place, why in alone.shut] == [
        ("data[1].limit_usd", "key of g1")
    ]


# Amounts that no budget has, or has as they are.
AMOUNTS = st.sampled_from([
    0, 0.0, -1, 1e-10, float("nan"), float("inf"), "NaN", "inf", "12,5", "5", True, 10**30, [5], {"usd": 5}, 5, 7.25,
])  # fmt: skip
SCOPES = st.sampled_from(["key", "member", "default", "nobody"])


@given(st.lists(st.tuples(SCOPES, AMOUNTS, st.booleans()), min_size=1, max_size=4), st.randoms())
def test_each_openrouter_key_has_at_most_the_amounts_of_all_its_guardrails_or_is_not_made(
    drawn: list[tuple[str, Any, bool]], random: Any
) -> None:
    """The key `one` is in all drawn guardrails of keys, and `two` in a good one alone."""
    rows = [
        {"id": f"g{number}", "name": "G", "workspace_id": "w", "limit_usd": amount}
        | ({"limit_requests": 5} if has_more else {})
        for number, (_, amount, has_more) in enumerate(drawn)
    ]
    ids: dict[str, list[str]] = {"key": [], "member": [], "default": [], "nobody": []}
    for row, (scope, _, _) in zip(rows, drawn, strict=True):
        ids["nobody" if scope == "default" and ids["default"] else scope].append(row["id"])
    keys = [{"guardrail_id": one, "key_hash": "h1", "key_name": "one"} for one in ids["key"]]
    keys.append({"guardrail_id": "good", "key_hash": "h2", "key_name": "two"})
    random.shuffle(keys)
    rows.append({"id": "good", "workspace_id": "w", "limit_usd": 50})
    random.shuffle(rows)
    members = [{"guardrail_id": one, "user_id": "ann"} for one in ids["member"]]
    made = translated(rows, members, keys, *ids["default"])
    limits = {
        row["id"]: row["limit_usd"]
        if type(row["limit_usd"]) in (int, float)
        and 0.001 < row["limit_usd"] < 10**6
        and "limit_requests" not in row
        else 0
        for row in rows
    }
    shared = ids["member"] + (ids["default"] or ids["nobody"])
    is_open = all(limits[one] for one in shared) and bool(ids["default"] or not ids["nobody"])
    theirs = {"one": ids["key"], "two": ["good"]}
    assert {*keys_of(made)} == {
        name for name, of in theirs.items() if is_open and of and all(limits[one] for one in of)
    }
    for name in keys_of(made):
        most = min(limits[one] for one in theirs[name] + ids["default"])
        assert ours(made.objects, "key", name, "w")["total"] <= most
    for row in made.objects.get("groups", ()):
        assert row["kind"] == "user" or {*row["members"]} <= {*keys_of(made)}


def test_openrouter_guardrail_without_members_shuts_a_workspace_without_a_known_default_guardrail() -> None:
    rows = [
        {"id": name, "name": name, "workspace_id": home, "limit_usd": amount}
        for name, home, amount in (
            ("usual", "w", 9),
            ("spare", "w", 1),
            ("maybe", "v", 1),
            ("of w", "w", 5),
            ("of v", "v", 5),
        )
    ]
    keys = [{"guardrail_id": one, "key_hash": f"key {one}"} for one in ("of w", "of v")]
    assert keys_of(translated(rows, [], keys, "usual")) == ["key of w"]
    rows[2]["limit_usd"] = None
    assert keys_of(translated(rows, [], keys, "usual")) == ["key of w", "key of v"]
    assert keys_of(translated(rows, [], keys)) == ["key of v"]


def test_openrouter_keys_with_a_limit_of_their_own_in_the_list_of_names_are_not_made(tmp_path: Path) -> None:
    made = named(
        tmp_path,
        {"hash": "h1", "name": "one", "limit": 50, "limit_reset": "weekly"},
        {"hash": "h2", "name": "two", "limit": None},
    )
    assert keys_of(made) == ["two"]
    assert [place for place, _ in made.shut] == ["names.json: data[0].limit"]


def named(tmp_path: Path, *rows: Row, member: str = "") -> Translated:
    """Return what a guardrail of the listed keys becomes, and one of a member, if any."""
    (tmp_path / "names.json").write_text(json.dumps({"data": rows}))
    guardrails = placed([
        {"id": "g", "workspace_id": "w", "limit_usd": 5}, {"id": "m", "workspace_id": "w", "limit_usd": 1},
    ])[: 2 if member else 1]  # fmt: skip
    members = placed([{"guardrail_id": "m", "user_id": member}]) if member else []
    keys = placed(
        [{"guardrail_id": "g", "key_hash": one} for one in dict.fromkeys(row["hash"] for row in rows)]
    )
    return translate_all(
        "Company", [tmp_path / "names.json"],
        lambda made: add_guardrails(made, guardrails, members, keys, None),
    ).finish()  # fmt: skip


@pytest.mark.parametrize(
    "end",
    [
        {"disabled": True},
        {"expires_at": "2026-01-01T00:00:00Z"},
        {"expires_at": "2099-01-01T00:00:00Z"},
        {"status": "exhausted"},
    ],
)
def test_openrouter_keys_that_are_disabled_or_end_are_not_made(tmp_path: Path, end: Row) -> None:
    still = {"disabled": False, "expires_at": None, "status": "active"}
    made = named(
        tmp_path, {"hash": "h1", "name": "one", **still}, {"hash": "h2", "name": "two", **still, **end}
    )
    assert keys_of(made) == ["one"]
    assert [(place, why.partition(":")[0]) for place, why in made.shut] == [
        (f"names.json: data[1].{next(iter(end))}", "two")
    ]


def test_openrouter_key_listed_twice_is_a_single_key_with_the_limits_of_both_rows(tmp_path: Path) -> None:
    rows = {"hash": "h1", "name": "prod", "limit": 5}, {"hash": "h1", "name": "prod", "limit": None}
    for order in (rows, rows[::-1]):
        made = named(tmp_path, *order)
        assert keys_of(made) == []
        assert [why.partition(":")[0] for _, why in made.shut] == ["prod"]
    assert keys_of(named(tmp_path, rows[1], rows[1])) == ["prod"]


def test_openrouter_key_without_a_known_maker_is_not_made_where_members_have_guardrails(
    tmp_path: Path,
) -> None:
    rows = {"hash": "h1", "name": "one", "creator_user_id": "ada"}, {"hash": "h2", "name": "two"}
    made = named(tmp_path, *rows, member="ada")
    [key] = made.objects["api-keys"]
    assert (key["name"], key["user"]) == ("one", "ada")
    assert [(place, why.partition(":")[0]) for place, why in made.shut] == [("--names", "two")]
    assert keys_of(named(tmp_path, *rows)) == ["one", "two"]


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
    assigned: dict[str, list[dict[str, Any]]] = {"user_id": [], "key_hash": []}
    for row in guardrails[1 if has_default else 0 :]:
        for field, of in assigned.items():
            row[field] = [who for who in row[field] if who not in taken]  # one guardrail for each
            taken.update(row[field])
            of += [{"guardrail_id": row["id"], field: who} for who in row[field]]
    rows = [{name: value for name, value in row.items() if name not in assigned} for row in guardrails]
    default = "g0" if has_default else None
    made = translated(rows, assigned["user_id"], assigned["key_hash"], default)
    objects, shut = made.objects, {why.partition(":")[0] for _, why in made.shut}
    lists = {
        "user": {row["external_id"]: row for row in objects.get("users", [])},
        "key": {row["name"]: row for row in objects.get("api-keys", [])},
    }
    tenants = {row["name"]: row for row in objects.get("tenants", [])}
    workspaces = {row["workspace_id"] for row in guardrails}
    for (each, field), tenant in product({"user": "user_id", "key": "key_hash"}.items(), sorted(workspaces)):
        for who in ("ada", "bob") if each == "user" else sorted({"k1", "k2"} - shut):
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
    left = {place for place, _ in (*made.shut, *made.left)}
    assert left == {
        f"data[{number}]"
        for number, row in enumerate(guardrails)
        if not (row["limit_usd"] or row["allowed_models"])
        or ((row is not guardrails[0] or not has_default) and not (row["user_id"] or row["key_hash"]))
    }
