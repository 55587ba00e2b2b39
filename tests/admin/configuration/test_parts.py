"""Parts of rows in configuration files: members of groups and overrides of budgets, by the names of what they name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.admin.configuration.objects import OBJECT_VALUES_MAX
from gateway.core.accounts.groups import MEMBERS_MAX
from tests.admin.configuration.world import Objects, apply, exported, plan, refused
from tests.admin.conftest import Api


def budget(each: str, *overrides: object, **more: object) -> Objects:
    """One organization with two tenants, a group of each kind of them, and a budget with these overrides."""
    return {
        "organizations": [{"name": "Acme"}],
        "tenants": [{"organization": "Acme", "name": name} for name in ("Web", "App")],
        "groups": [
            {"organization": "Acme", "name": "Team", "kind": "user", "members": ["ada", "bob"]},
            {"organization": "Acme", "name": "Shops", "kind": "tenant", "members": ["Web", "App"]},
        ],
        "budgets": [
            {
                "organization": "Acme", "name": "A day", "unit": "money", "amount": "20", "interval": "day",
                "each": each, "overrides": [*overrides], **more,
            }
        ],
    }  # fmt: skip


async def overrides_of(api: Api) -> list[tuple[str, Any]]:
    [row] = (await api.get("budgets")).json["items"]
    items = (await api.get(f"budgets/{row['id']}/overrides")).json["items"]
    return [(item["who"], item["amount"]) for item in items]


async def test_apply_gives_a_budget_the_overrides_of_the_file_and_no_others(api: Api) -> None:
    objects = budget("user", {"who": "ada", "amount": "50"}, {"who": "group:Team", "amount": None})
    await apply(api, objects)
    [team] = (await api.get("groups?name=Team")).json["items"]
    assert await overrides_of(api) == [("ada", "50"), (f"group:{team['id']}", None)]
    [entry] = (await api.get("audit-log?resource=budgets&action=set-overrides")).json["items"]
    assert [own["who"] for own in entry["after"]["overrides"]] == ["ada", f"group:{team['id']}"]

    swapped = budget("user", {"who": "group:Team", "amount": None}, {"who": "ada", "amount": "50.0"})
    swapped["groups"][0]["members"] = ["bob", "ada"]
    assert (await plan(api, swapped))["changes"] == [], (
        "their order means nothing, nor how an amount is written"
    )

    changed = budget("user", {"who": "ada", "amount": "60"}, {"who": "group:Team", "amount": "0"})
    changed["groups"][0]["members"] = ["carol"]
    planned = await plan(api, changed)
    assert {change["resource"]: change["fields"] for change in planned["changes"]} == {
        "groups": {"members": {"before": ["ada", "bob"], "after": ["carol"]}},
        "budgets": {
            "overrides": {
                "before": [
                    {"who": "ada", "amount": "50", "until": None, "reason": None},
                    {"who": "group:Team", "amount": None, "until": None, "reason": None},
                ],
                "after": [{"who": "ada", "amount": "60"}, {"who": "group:Team", "amount": "0"}],
            }
        },
    }
    await apply(api, changed)
    assert await overrides_of(api) == [("ada", "60"), (f"group:{team['id']}", "0")]

    del changed["budgets"][0]["overrides"]
    await apply(api, changed)
    assert await overrides_of(api) == [], "a file had them, and says nothing of them any more"


async def test_overrides_in_no_file_stay(api: Api) -> None:
    objects = budget("user")
    del objects["budgets"][0]["overrides"]
    await apply(api, objects)
    [row] = (await api.get("budgets")).json["items"]
    await api.call("PUT", f"budgets/{row['id']}/overrides/eve", {"amount": "3"})
    assert (await plan(api, objects))["changes"] == []


async def test_an_override_that_has_ended_counts_as_missing_in_a_file(api: Api) -> None:
    ended = {"who": "ada", "amount": "50", "until": "2020-01-01T00:00:00Z"}
    objects = budget("user", ended, {"who": "bob", "amount": "1"})
    await apply(api, objects)
    assert await overrides_of(api) == [("bob", "1")]
    assert (await plan(api, objects))["changes"] == []


async def test_parts_that_name_tenants_come_out_by_name_and_apply_to_an_empty_organization(api: Api) -> None:
    await apply(api, budget("tenant", {"who": "App", "amount": "7"}, {"who": "group:Shops", "amount": "9"}))
    tenants = {row["name"]: row["id"] for row in (await api.get("tenants")).json["items"]}
    [shops] = (await api.get("groups?name=Shops")).json["items"]
    assert shops["members"] == [tenants["Web"], tenants["App"]]
    assert (await overrides_of(api))[0] == (str(tenants["App"]), "7")
    objects = (await exported(api))["objects"]
    assert [group.get("members") for group in objects["groups"]] == [["ada", "bob"], ["Web", "App"]]
    assert objects["budgets"][0]["overrides"] == [
        {"who": "App", "amount": "7"}, {"who": "group:Shops", "amount": "9"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("each", "override", "field", "message"),
    [
        ("user", {"who": "ada", "amount": 5}, "overrides", "must be a decimal"),
        ("user", {"who": "ada"}, "overrides.0.amount", "required"),
        ("user", {"who": {"name": "ada"}, "amount": "1"}, "overrides.0.who", "valid string"),
        ("user", {"who": "group:Nobody", "amount": "1"}, "overrides.0.who", "no group named 'Nobody'"),
        ("user", {"who": "group:Shops", "amount": "1"}, "overrides.0.who", "of the kind that `each` is"),
        ("tenant", {"who": "Elsewhere", "amount": "1"}, "overrides.0.who", "no tenant named 'Elsewhere'"),
        ("tenant", {"who": 7, "amount": "1"}, "overrides.0.who", "must be its name"),
        ("project", {"who": "x", "amount": "1"}, "overrides.0.who", "must be the id of a project"),
        ("user", 5, "overrides.0", "must be an object"),
    ],
)  # fmt: skip
async def test_wrong_override_in_a_file_is_refused_with_its_place(
    api: Api, each: str, override: object, field: str, message: str
) -> None:
    errors = await refused(api, budget(each, override), trial=True)
    assert any(at.startswith(f"budgets.0.{field}") and message in why for at, why in errors.items()), errors


async def test_wrong_members_in_a_file_are_refused_with_their_place(api: Api) -> None:
    objects = budget("user", {"who": "ada", "amount": "1"}, {"who": "ada", "amount": "2"})
    assert await refused(api, objects, trial=True) == {"budgets.0.overrides": "must have each who once"}
    objects = budget("user")
    objects["groups"][1]["members"] = ["Web", "Gone"]
    assert list(await refused(api, objects)) == ["groups.1.members.1"]
    objects["groups"][1]["members"] = ["Web", {"organization": "Other", "name": "Web"}]
    objects["organizations"].append({"name": "Other"})
    objects["tenants"].append({"organization": "Other", "name": "Web"})
    errors = await refused(api, objects, trial=True)
    assert list(errors) == ["groups.1.members"]
    assert "of this organization" in errors["groups.1.members"]


async def test_a_group_of_the_most_members_goes_out_and_in_again(api: Api) -> None:
    assert MEMBERS_MAX > OBJECT_VALUES_MAX
    objects = budget("user")
    objects["groups"][0]["members"] = [f"user-{number}" for number in range(MEMBERS_MAX)]
    await apply(api, objects)
    assert (await plan(api, (await exported(api))["objects"]))["changes"] == []
    objects["groups"][0]["members"].append("one more")
    assert list(await refused(api, objects)) == ["groups.0.members"]
