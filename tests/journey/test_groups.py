"""Groups from the Admin API to a refusal: a pool of its members, each member's own, who comes and goes."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from tests.journey.budgets import Spender
from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until

_numbers = count(1)


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


def group_of(spender: Spender, kind: str = "user", **said: Any) -> Body:
    name = f"{kind}s {next(_numbers)}"
    return spender.stack.make("groups", organization_id=spender.organization, name=name, kind=kind, **said)


def refusal(answer: Any) -> tuple[int, str | None]:
    return answer.status_code, answer.headers.get("x-tollkeeper-reason")


def test_group_shares_an_amount_of_its_members_whoever_comes_and_goes(spender: Spender) -> None:
    group = group_of(spender, members=["ada", "bob"])
    pool = spender.budget(3, "requests", group_id=group["id"])
    spender.known(pool, user="ada")
    assert [spender.chat(user=user).status_code for user in ("ada", "bob", "ada")] == [200] * 3
    for user in ("ada", "bob"):
        assert refusal(spender.chat(user=user)) == (429, "budget_exceeded")
    assert spender.chat(user="eve").status_code == spender.chat().status_code == 200
    place = f"/groups/{group['id']}/members"
    assert spender.stack.admin("PUT", f"{place}/eve")[0] == 204
    spender.until(429, user="eve")
    assert spender.stack.admin("DELETE", f"{place}/ada")[0] == 204
    spender.until(200, user="ada")
    assert spender.chat(user="bob").status_code == 429
    assert spender.used(pool) == 3


def test_group_with_each_has_an_amount_of_each_member(spender: Spender) -> None:
    group = group_of(spender, members=["ada", "bob"])
    each = spender.budget(2, "requests", group_id=group["id"], each="user")
    spender.known(each, user="ada")
    spender.known(each, user="bob")
    for user in ("ada", "bob"):
        assert [spender.chat(user=user).status_code for _ in range(3)] == [200, 200, 429]
    assert [spender.chat(user="eve").status_code for _ in range(3)] == [200] * 3


def test_group_is_of_keys_tenants_and_projects_too(spender: Spender) -> None:
    other, key = spender.another_key()
    groups = [
        group_of(spender, "api_key", members=[other]), group_of(spender, "tenant", members=[spender.tenant]),
        group_of(spender, "project", members=[0, 7]),
    ]  # fmt: skip
    names = {}
    for group, amount in zip(groups, (2, 9, 1), strict=True):
        names[group["kind"]] = spender.budget(amount, "requests", group_id=group["id"])
    spender.known(*names.values(), key=key, project_id="7")
    # Two of the key that is in the group, one of the project, nine in all.
    assert [spender.chat(key=key).status_code for _ in range(3)] == [200, 200, 429]
    assert [spender.chat(project_id="0").status_code for _ in range(2)] == [200, 429]
    assert [spender.chat(project_id="8").status_code for _ in range(7)] == [200] * 6 + [429]


def test_calls_stand_with_the_groups_of_their_time(spender: Spender) -> None:
    group = group_of(spender, members=["ada"])
    whole = group_of(spender, "tenant", members=[spender.tenant])
    spender.known(pool := spender.budget(1, "requests", group_id=group["id"]), user="ada")
    for user, status in (("ada", 200), ("ada", 429), ("bob", 200)):
        assert spender.chat(user=user).status_code == status
    assert spender.stack.admin("DELETE", f"/budgets/{pool['id']}")[0] == 204
    assert spender.stack.admin("DELETE", f"/groups/{group['id']}")[0] == 204
    path = f"/calls?tenant_id={spender.tenant}&order=asc"
    calls = wait_until(lambda: len(found := spender.stack.admin("GET", path)[1]["items"]) == 3 and found)
    both = [group["id"], whole["id"]]
    assert [(call["status"], call["groups"]) for call in calls] == [
        (200, both),
        (429, both),
        (200, [whole["id"]]),
    ]
