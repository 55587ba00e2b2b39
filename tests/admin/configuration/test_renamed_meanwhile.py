"""What people of an organization do between two applies of staff stops none, and gives none their rows."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.admin.configuration.test_names_of_others import only, person
from tests.admin.configuration.world import Objects, apply, exported, plan
from tests.admin.conftest import Api

KEY: Objects = {"name": "web", "tenant": {"organization": "Acme", "name": "Web"}}
BUDGET: Objects = {
    "name": "A day", "organization": "Acme", "unit": "money", "amount": "25", "interval": "day",
}  # fmt: skip
FILES: Objects = {
    "organizations": [{"name": "Acme"}, {"name": "Globex"}],
    "tenants": [{"name": "Web", "organization": "Acme"}],
    "api-keys": [KEY],
    "budgets": [BUDGET],
    "webhooks": [{"url": "https://acme.example.com/told", "organization": "Acme"}],
}


def with_limit(limit: int) -> Objects:
    """The same files, of which another organization has changed, and what they say of Acme."""
    said = {"requests_per_minute": limit}
    return {
        **FILES,
        "organizations": [{"name": "Acme"}, {"name": "Globex", "due_days": limit}],
        "tenants": [{**FILES["tenants"][0], "limits": said}],
        "api-keys": [{**KEY, "limits": said}],
        "budgets": [{**BUDGET, "amount": str(limit)}],
        "webhooks": [{**FILES["webhooks"][0], "enabled": bool(limit % 2)}],
    }


async def test_a_rotated_key_is_the_files_own_whatever_else_has_its_name(api: Api) -> None:
    await apply(api, FILES)
    made = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    other = await member.make("api-keys", tenant_id=made["tenant_id"], name="web")
    for _ in range(2):
        rotated = (await member.post(f"api-keys/{made['id']}/rotate", {"overlap_s": 3600})).json
        made = rotated
    [change] = (await plan(api, {"api-keys": [{**KEY, "limits": {"concurrency": 2}}]}))["changes"]
    assert (change["change"], change["id"]) == ("change", made["id"])
    assert [one["name"] for one in (await exported(api))["objects"]["api-keys"]] == ["web"]
    done = await apply(api, FILES, prune=True)
    assert (done["changes"], done["noted"], done["forgotten"]) == ([], 1, 1)
    again = await plan(api, FILES, prune=True)
    assert (again["changes"], again["noted"], again["forgotten"]) == ([], 0, 0)
    assert (await api.get(f"api-keys/{other['id']}")).json["revoked_at"] is None


async def test_a_renamed_row_is_named_again_as_its_file_says(api: Api) -> None:
    await apply(api, FILES)
    ids = {kind: (await only(api, kind))["id"] for kind in ("tenants", "api-keys", "budgets", "webhooks")}
    operator, _ = await person(api, "admin", "Acme")
    for kind, row_id in ids.items():
        name = {"url": "https://other.example.com"} if kind == "webhooks" else {"name": "mine"}
        assert (await operator.patch(f"{kind}/{row_id}", name)).status == 200
    done = await apply(api, FILES)
    assert {each["resource"]: (each["change"], each["id"]) for each in done["changes"]} == {
        kind: ("change", row_id) for kind, row_id in ids.items()
    }
    assert not done["secrets"]
    assert (await plan(api, FILES))["changes"] == []


async def test_where_a_row_is_gone_a_new_one_is_made_beside_what_others_named_so(api: Api) -> None:
    await apply(api, FILES)
    made, budget = await only(api, "api-keys"), await only(api, "budgets")
    member, acme = await person(api, "member", "Acme")
    await member.post(f"api-keys/{made['id']}/revoke")
    theirs = [(await member.make("api-keys", tenant_id=made["tenant_id"], name="web"))["id"] for _ in "ab"]
    billing, _ = await person(api, "billing", "Acme")
    assert (await billing.delete(f"budgets/{budget['id']}")).status == 204
    squat = {**BUDGET, "organization_id": acme, "interval": "week"}
    del squat["organization"]
    theirs_too = await billing.make("budgets", **squat)
    done = await apply(api, with_limit(7))
    told = {each["resource"]: (each["change"], each["stays"]) for each in done["changes"]}
    assert (told["api-keys"], told["organizations"]) == (("create", ""), ("change", ""))
    why = f"budgets {theirs_too['id']} has its name, whose interval never changes: rename or delete that one"
    assert told["budgets"] == ("create", why), "of budgets there are no two of one name: this one waits"
    [own] = [
        one["id"]
        for one in (await api.get("api-keys")).json["items"]
        if one["revoked_at"] is None and one["id"] not in theirs
    ]
    assert (await only(api, "budgets"))["interval"] == "week"
    await api.patch(f"budgets/{theirs_too['id']}", {"name": "Theirs"})
    await apply(api, with_limit(7))
    found = {one["id"]: one["interval"] for one in (await api.get("budgets")).json["items"]}
    assert found.pop(theirs_too["id"]) == "week"
    assert [*found.values()] == ["day"]
    [change] = (await plan(api, {"api-keys": [KEY]}))["changes"]
    assert change["id"] == own


async def test_a_key_of_a_subject_that_another_key_has_waits_alone(api: Api) -> None:
    tokens = {"issuer": "https://idp.example.com", "subject": "ci"}
    files: Objects = {**FILES, "api-keys": [{**KEY, **tokens}]}
    await apply(api, files)
    made = await only(api, "api-keys")
    await api.post(f"api-keys/{made['id']}/revoke")
    for name in ("web", "by hand"):
        other = await api.make("api-keys", tenant_id=made["tenant_id"], name=name, **tokens)
        changed = {**with_limit(7), "api-keys": [*files["api-keys"], {**KEY, "name": f"not {name}"}]}
        done = await apply(api, changed)
        told = {each["at"]: (each["change"], each["stays"]) for each in done["changes"]}
        why = f"api-keys {other['id']} has its issuer and subject: revoke that one"
        assert (told["api-keys.0"], told["api-keys.1"]) == (("create", why), ("create", ""))
        await api.post(f"api-keys/{other['id']}/revoke")
    done = await apply(api, files)
    [change] = [each for each in done["changes"] if each["at"] == "api-keys.0"]
    assert (change["change"], change["stays"]) == ("create", "")
    assert not [each for each in (await plan(api, files))["changes"] if each["at"] == "api-keys.0"]


async def test_what_a_file_only_names_keeps_the_rest_of_it_waiting_for_nothing(api: Api) -> None:
    await apply(api, {"organizations": FILES["organizations"]})
    operator, acme = await person(api, "operator", "Acme")
    web = await api.make("tenants", organization_id=acme, name="Web")
    files: Objects = {"organizations": [{"name": "Acme"}, {"name": "Globex"}], "api-keys": [KEY]}
    await apply(api, files)
    assert (await operator.patch(f"tenants/{web['id']}", {"name": "Shop"})).status == 200
    assert (await plan(api, files))["changes"] == []
    key = await only(api, "api-keys")
    await api.post(f"api-keys/{key['id']}/revoke")
    assert (await operator.delete(f"tenants/{web['id']}")).status == 204
    changed = {**files, "organizations": [{"name": "Acme"}, {"name": "Globex", "due_days": 3}]}
    done = await apply(api, changed, prune=True)
    [globex, left] = sorted(done["changes"], key=lambda each: bool(each["stays"]))
    assert (globex["resource"], globex["change"]) == ("organizations", "change")
    assert (left["at"], "tenant is not there any more" in left["stays"]) == ("api-keys.0", True)


async def test_a_budget_of_a_key_that_was_revoked_stays_and_stops_nothing(api: Api) -> None:
    files = {**FILES, "budgets": [{**BUDGET, "tenant": "Web", "api_key": "web"}]}
    await apply(api, files)
    key = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    await member.post(f"api-keys/{key['id']}/revoke")
    done = await apply(api, files)
    told = {each["resource"]: (each["change"], bool(each["stays"])) for each in done["changes"]}
    assert told == {"api-keys": ("create", False), "budgets": ("change", True)}


@pytest.mark.parametrize("role", ["operator", "billing", "admin"])
async def test_nobody_of_one_organization_gives_it_the_name_of_another(api: Api, role: str) -> None:
    await api.make("organizations", name="Acme")
    somebody, acme = await person(api, role, "Acme")
    refused = await somebody.patch(f"organizations/{acme}", {"name": "Newco"})
    assert (refused.status, "may not set name of organizations" in refused.json["detail"]) == (403, True)
    assert (await api.get(f"organizations/{acme}")).json["name"] == "Acme"
    assert (await api.patch(f"organizations/{acme}", {"name": "Acme Ltd"})).status == 200


async def test_a_row_made_by_hand_is_taken_in_plain_sight(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    files = {"organizations": [{"name": "Acme"}]}
    taken = {"resource": "organizations", "name": "Acme", "at": "organizations.0", "id": made["id"]}
    done = await apply(api, files)
    assert (done["taken"], done["taken_count"]) == ([taken], 1)
    assert (await plan(api, files))["taken"] == []


class Somebody:
    """People of Acme, who do as they like with what is theirs; `theirs` are rows that they made.

    Of budgets there are no two of one name: one that has a file's is that of the file, or the file's waits.
    """

    def __init__(self, api: Api, acme: int, seed: int) -> None:
        self._api = api
        self._acme = acme
        self._random = random.Random(seed)
        self.theirs: dict[str, dict[int, Any]] = {kind: {} for kind in ("tenants", "api-keys", "budgets")}

    async def act(self) -> None:
        """Do something with a row of some kind."""
        kind = self._random.choice([*self.theirs])
        rows = (await self._api.get(f"{kind}?limit=1000")).json["items"]
        rows = [row for row in rows if not row.get("revoked_at")]
        deed = self._random.choice(["make", "make", "rename", "end", "rotate"])
        if deed == "make":
            await self._make(kind)
        elif rows and (row := self._random.choice(rows)):
            if deed == "rename":
                name = self._random.choice(["web", "Web", "A day", "other"])
                await self._api.patch(f"{kind}/{row['id']}", {"name": name})
            elif deed == "rotate" and kind == "api-keys":
                await self._api.post(f"{kind}/{row['id']}/rotate", {"overlap_s": 60})
                if row["id"] in self.theirs[kind]:
                    del self.theirs[kind][row["id"]]
            elif kind == "api-keys":
                await self._api.post(f"{kind}/{row['id']}/revoke")
            else:
                await self._api.delete(f"{kind}/{row['id']}")

    async def _make(self, kind: str) -> None:
        rows = (await self._api.get("tenants?limit=1000")).json["items"]
        values: dict[str, Any] = {"organization_id": self._acme, "name": "Web"}
        if kind == "api-keys":
            if not rows:
                return
            values = {"tenant_id": self._random.choice(rows)["id"], "name": "web"}
        elif kind == "budgets":
            interval = self._random.choice(["day", "week"])
            values |= {"name": "A day", "unit": "money", "amount": "1", "interval": interval}
        made = await self._api.post(kind, values)
        if made.status == 201 and kind != "budgets":
            self.theirs[kind][made.json["id"]] = made.json

    async def seen(self) -> dict[tuple[str, int], Any]:
        """What they made, as it is now."""
        return {
            (kind, row["id"]): {name: row.get(name) for name in ("name", "limits", "amount", "revoked_at")}
            for kind, made in self.theirs.items()
            for row in (await self._api.get(f"{kind}?limit=1000")).json["items"]
            if row["id"] in made
        }


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_people_do_between_two_applies_staffs_files_are_applied(api: Api, seed: int) -> None:
    await apply(api, FILES)
    admin, acme = await person(api, "operator", "Acme")
    somebody = Somebody(admin, acme, seed)
    for turn in range(1, 6):
        for _ in range(5):
            await somebody.act()
        before = await somebody.seen()
        files = with_limit(turn)
        done = await apply(api, files, prune=bool(turn % 2))
        waits = {each["resource"] for each in done["changes"] if each["stays"]}
        assert waits <= {"budgets"}, "all but a name that there cannot be two of is free"
        assert await somebody.seen() == before, "what is theirs is as they left it"
        again = await plan(api, files)
        assert ({each["resource"] for each in again["changes"]}, again["noted"]) == (waits, 0)
        [globex] = (await api.get("organizations?name=Globex")).json["items"]
        assert globex["due_days"] == turn
