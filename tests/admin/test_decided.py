"""Letters and accounts that are stopped keep who decided about them: the person, not the token alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from persistence.resources.access import STAFF
from tests.admin.console.elsewhere import Browser, World, console_of_people

LETTER = (
    "insert into dead_letter (partition, entry_id, reason, raw, organization_id, resolved_at)"
    " values (1, '1-1', 'unreadable', 'x', %s, null) returning id"
)
STOPPED = (
    "insert into quarantine (account, partition, organization_id, kind, entry_id, epoch, stored_seq,"
    " found_seq, reason) values ('credits:' || %s, 1, %s, 'conflict', '1-2', 1, 1, 2, 'other') returning id"
)
KIM = {"person": "Kim", "identity": "u-1"}


@pytest.fixture
async def world(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        yield made


def of(row: object, word: str) -> dict[str, object]:
    """Who a row says it was."""
    found = json.loads(json.dumps(row))
    return {name: found[f"{word}_{name}"] for name in ("by", "issuer", "identity", "person")}


async def test_who_decides_is_named_and_is_staff_to_the_organization(world: World) -> None:
    api = world.api
    token = await world.let_in()
    own = (await api.make("organizations", name="of-decisions"))["id"]
    [(letter,)], [(stopped,)] = api.rows(LETTER, own), api.rows(STOPPED, own, own)
    kim = Browser.at(world)
    assert (await kim.sign_in()).status == 200
    for path, action in ((f"dead-letters/{letter}", "resolve"), (f"quarantine/{stopped}", "release")):
        done = await kim.person.fill(f"/{path}", f"/{path}/{action}", reason="looked at")
        assert done.status == 303, done.text
    whole = {"by": f"token:{token['id']}", "issuer": world.provider.url, **KIM}
    theirs = await api.make("admin-tokens", name="theirs", role="operator", organization_id=own)
    for path, word in ((f"dead-letters/{letter}", "resolved"), (f"quarantine/{stopped}", "released")):
        assert of((await api.get(path)).json, word) == whole
        assert "Kim" in (await kim.person.open(f"/{path}")).text
        seen = (await api.acting_as(theirs["token"]).get(path)).json
        assert of(seen, word) == {"by": STAFF, "issuer": None, "identity": None, "person": None}
        assert seen[f"{word}_reason"] == "looked at"


async def test_an_organization_sees_which_of_its_own_tokens_decided(world: World) -> None:
    api = world.api
    own = (await api.make("organizations", name="that-decides"))["id"]
    [(letter,)] = api.rows(LETTER, own)
    theirs = await api.make("admin-tokens", name="own", role="operator", organization_id=own, ours=True)
    operator = api.acting_as(theirs["token"])
    open_ = (await operator.get(f"dead-letters/{letter}")).json
    assert set(of(open_, "resolved").values()) == {None}
    done = await operator.post(f"dead-letters/{letter}/resolve", {"reason": "ours"})
    assert (done.status, of(done.json, "resolved")["by"]) == (200, f"token:{theirs['id']}")
    [listed] = (await operator.get("dead-letters")).json["items"]
    assert of(listed, "resolved") == of(done.json, "resolved")
