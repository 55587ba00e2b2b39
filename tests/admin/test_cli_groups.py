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
