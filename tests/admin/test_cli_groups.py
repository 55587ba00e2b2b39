"""`tollkeeper group`: groups, and members one by one."""

from __future__ import annotations

from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run

__all__ = ["run"]


async def test_group_command_adds_and_removes_members(api: Api, run: Run) -> None:
    await api.make("organizations", name="Hooli")
    made = await from_json(run, "group", "create", "Hooli", "Platform", "user", "--members", "ada")
    assert (made["members"], made["kind"]) == (["ada"], "user")
    for verb, members in (("put-member", ["ada", "a/b c"]), ("remove-member", ["ada"])):
        assert (await run("group", verb, "Platform", "a/b c")).exit_code == 0
        assert (await from_json(run, "group", "show", "Platform"))["members"] == members
    budget = await from_json(
        run, "budget", "create", "Hooli", "pool", "tokens", "5", "day", "--group", "Platform"
    )
    assert budget["group_id"] == made["id"]
    assert (await run("group", "delete", "Platform")).exit_code == 1


async def test_members_that_are_tenants_are_named(api: Api, run: Run) -> None:
    hooli, other = [await api.make("organizations", name=name) for name in ("Hooli", "Other")]
    ids = [(await api.make("tenants", name=name, organization_id=hooli["id"]))["id"] for name in ("a", "b")]
    await api.make("tenants", name="theirs", organization_id=other["id"])
    made = await from_json(run, "group", "create", "Hooli", "Two", "tenant", "--members", "a")
    assert made["members"] == ids[:1]
    assert (await from_json(run, "group", "change", "Two", "--members", "b"))["members"] == ids[1:]
    assert (await run("group", "put-member", "Two", "a")).exit_code == 0
    assert sorted((await from_json(run, "group", "show", "Two"))["members"]) == sorted(ids)
    assert (await run("group", "remove-member", "Two", "a")).exit_code == 0
    refused = await run("group", "put-member", "Two", "theirs")
    assert (refused.exit_code, "There is no tenant named 'theirs'" in refused.output) == (1, True)
