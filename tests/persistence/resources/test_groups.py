"""Groups in the database: their members, what gateways are told of them, and how many budgets they may bring."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import BUDGET_ACCOUNTS_MAX
from gateway.core.accounts.definitions import OrganizationDefinition
from gateway.core.accounts.groups import MEMBERS_MAX, Groups, GroupTerms, row_of
from gateway.core.model import Caller
from gateway.errors import Conflict, Unprocessable
from persistence import engine as engines
from persistence.keeper.definitions import of_accounts
from tests.persistence.resources.test_budgets import ORGANIZATION, OTHER, Desk, desk

__all__ = ["desk"]


async def make(desk: Desk, name: str = "Platform", kind: str = "user", **over: Any) -> Row:
    values = {"organization_id": ORGANIZATION, "name": name, "kind": kind, "members": [], **over}
    return (await desk.do("create", resource="groups", **values)).row


async def refused(desk: Desk, verb: str, row_id: int | None = None, **values: Any) -> dict[str, str]:
    with pytest.raises(Unprocessable) as caught:
        await desk.do(verb, row_id, "groups", **values)
    return dict(caught.value.errors)


async def told(desk: Desk) -> GroupTerms:
    """The groups that gateways are told of."""
    engine = engines.create(desk.url)
    async with engine.connect() as connection:
        account = f"organization:{ORGANIZATION}"
        [definition] = (await of_accounts(connection, [account]))[account]
    await engine.dispose()
    assert isinstance(definition, OrganizationDefinition)
    return definition.terms.groups


@pytest.fixture
async def full(desk: Desk) -> list[Row]:
    """A group of Ada alone for each budget that a call may meet, and a budget of each."""
    groups = [await make(desk, f"g{n}", members=["ada"]) for n in range(BUDGET_ACCOUNTS_MAX)]
    for group in groups:
        await desk.make(group_id=group["id"], name=f"of {group['name']}")
    return groups


async def test_definition_of_groups_has_a_table_of_digests(desk: Desk) -> None:
    users = await make(desk, members=["ada", "é", 'a "quoted" one'])
    tenants = await make(desk, "Tenants", "tenant", members=[1, 3])
    claimed = await make(desk, "Claimed", claim="platform-team", members=["ada"])
    await make(desk, "Gone")
    of, within, theirs = (int(str(row["id"])) for row in (users, tenants, claimed))
    found = await told(desk)
    assert found.table == b"".join(sorted([
        row_of("user", "ada", of), row_of("user", "é", of), row_of("user", 'a "quoted" one', of),
        row_of("tenant", "1", within), row_of("tenant", "3", within), row_of("user", "ada", theirs),
    ]))  # fmt: skip
    assert (sorted(found.kinds), found.claims) == (["tenant", "user"], {"platform-team": (theirs,)})
    assert Groups(found).of(Caller(ORGANIZATION, 3, 1, 0), "ada", None) == (of, within, theirs)


async def test_group_has_a_member_put_once_and_no_longer_a_removed_member(desk: Desk) -> None:
    group_id = int(str((await make(desk, members=["ada"]))["id"]))
    for verb, wanted in (("put-member", ["ada", "bob"]), ("remove-member", ["ada"])):
        done = await desk.do(verb, group_id, "groups", member="bob")
        assert done.row["members"] == wanted
        assert [intent.account for intent in done.intents] == [f"organization:{ORGANIZATION}"]
        again = await desk.do(verb, group_id, "groups", member="bob")
        assert (again.row["members"], again.intents) == (wanted, ())


@pytest.mark.parametrize(
    ("kind", "members", "fault"),
    [
        ("user", ["ada", 7], "must be texts, the callers' own ids of users"),
        ("user", ["ada", "ada"], "must each be there once"),
        ("tenant", ["web"], "must be ids of tenants"),
        ("tenant", [1, OTHER], f"there is no tenant {OTHER} of this organization"),
        ("api_key", [OTHER], f"there is no api key {OTHER} of this organization"),
        ("project", ["07"], "must be ids of projects"),
    ],
)
async def test_group_refuses_members_that_are_none_of_its_kind_and_organization(
    desk: Desk, kind: str, members: list[object], fault: str
) -> None:
    values = {"organization_id": ORGANIZATION, "name": "a", "kind": kind, "members": members}
    assert await refused(desk, "create", **values) == {"members": fault}
    assert desk.rows("SELECT count(*) FROM caller_group") == [(0,)]


async def test_group_takes_ids_as_texts(desk: Desk) -> None:
    group_id = int(str((await make(desk, kind="tenant", members=["1"]))["id"]))
    done = await desk.do("put-member", group_id, "groups", member="3")
    assert done.row["members"] == [1, 3]


async def test_group_has_at_most_ten_thousand_members(desk: Desk) -> None:
    most = [f"user {n}" for n in range(MEMBERS_MAX)]
    group_id = int(str((await make(desk, members=most))["id"]))
    assert await refused(desk, "put-member", group_id, member="ada") == {"members": "must be at most 10000"}
    assert (await desk.do("put-member", group_id, "groups", member="user 0")).row["members"] == most


async def test_group_with_a_claim_is_of_users(desk: Desk) -> None:
    values = {"organization_id": ORGANIZATION, "name": "a", "kind": "project", "members": [], "claim": "x"}
    assert await refused(desk, "create", **values) == {"claim": "needs a group of the kind user"}


async def test_group_of_a_budget_stays_until_that_is_deleted(desk: Desk) -> None:
    group_id = int(str((await make(desk))["id"]))
    made = await desk.make(group_id=group_id, name="pool")
    with pytest.raises(Conflict, match="name this group, delete them first: pool"):
        await desk.do("delete", group_id, "groups")
    await desk.do("delete", int(str(made["id"])))
    await desk.do("delete", group_id, "groups")
    assert await told(desk) == GroupTerms()


async def test_budget_names_a_group_of_its_organization(desk: Desk) -> None:
    others = await make(desk, organization_id=OTHER)
    assert await desk.refused(group_id=others["id"]) == {"group_id": "is of another organization"}
    assert await desk.refused(group_id=99) == {"group_id": "there is no caller group 99"}
    own = await make(desk)
    [budget] = [await desk.make(group_id=own["id"], tenant_id=1)]
    assert [(one.group_id, one.tenant_id) for one in await desk.told()] == [(budget["group_id"], 1)]


async def test_membership_of_more_budgets_than_a_call_may_meet_is_refused_with_their_names(
    desk: Desk, full: list[Row]
) -> None:
    last = int(str((await make(desk, "last", members=["bob"]))["id"]))
    await desk.make(group_id=last, name="of last")
    why = (await refused(desk, "put-member", last, member="ada"))["members"]
    assert why.partition("with: ")[2].split(", ") == [*(f"of g{n}" for n in range(16)), "of last"]
    assert (await refused(desk, "change", last, members=["ada"])).keys() == {"members"}
    # One budget fewer leaves room for the membership, and then for no other budget of anybody.
    [first] = desk.rows("SELECT id FROM budget WHERE name = 'of g0'")
    await desk.do("delete", first[0])
    await desk.do("put-member", last, "groups", member="ada")
    assert "organization_id" in await desk.refused(name="of anybody")


async def test_claim_of_more_budgets_than_a_call_may_meet_is_refused_with_their_names(desk: Desk) -> None:
    for n in range(BUDGET_ACCOUNTS_MAX):
        group = await make(desk, f"g{n}", claim="platform")
        await desk.make(group_id=group["id"], name=f"of g{n}")
    last = int(str((await make(desk, "last", claim="research"))["id"]))
    await desk.make(group_id=last, name="of last")
    why = (await refused(desk, "change", last, claim="platform"))["claim"]
    assert why.partition("with: ")[2].split(", ") == [*(f"of g{n}" for n in range(16)), "of last"]
