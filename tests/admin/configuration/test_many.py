"""Many objects are applied in one transaction: one of them that is wrong is named, and none is applied."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import DateOrder
from gateway.core.accounts.budgets import WINDOWS_MAX
from tests.admin.configuration.world import Objects, apply, exported, plan, refused
from tests.admin.conftest import Api

FEW, SOME = 3, 4


async def test_apply_of_many_budgets_of_an_organization_updates_the_organization_in_redis_once(
    api: Api,
) -> None:
    api.counters.away = True
    budgets = [
        {"organization": "Acme", "name": f"b{n}", "unit": "tokens", "amount": 9, "interval": "day"}
        for n in range(FEW)
    ]
    acme = {"name": "Acme", "limits": {"concurrency": 4}}
    done = await apply(api, {"organizations": [acme], "budgets": budgets})
    assert len(done["changes"]) == 1 + FEW
    [(acme_id,)] = api.rows("select id from organization")
    told = api.rows("select verb from control_write where account = %s", f"organization:{acme_id}")
    assert told == [("define",)]
    entries = "select resource, count(*) from audit_log group by resource order by resource"
    assert api.rows(entries) == [("budgets", FEW), ("organizations", 1)]


async def test_apply_of_many_objects_names_the_refused_object_and_applies_none(api: Api) -> None:
    budgets = [
        {"organization": "Acme", "name": f"b{n}", "unit": "tokens", "amount": 1 + n, "interval": "day"}
        for n in range(WINDOWS_MAX + 1)
    ]
    objects: Objects = {"organizations": [{"name": "Acme"}], "budgets": budgets}
    wrong = await refused(api, objects, trial=True)
    assert wrong == {
        f"budgets.{WINDOWS_MAX}.name": f"there are {WINDOWS_MAX} budgets of just these calls: "
        "there cannot be more"
    }
    tenants = [{"organization": "Acme", "name": name} for name in ("one", "two", "three")]
    tenants[1]["plan"] = "Dear"
    plans = [{"name": "Dear", "currency": "EUR", "overage_unit_price": "1", "overage_policy": "bill"}]
    objects = {"organizations": [{"name": "Acme"}], "token-plans": plans, "tenants": tenants}
    assert await refused(api, objects, trial=True) == {
        "tenants.1.plan_id": "costs EUR, and the organization pays in USD"
    }
    keys = [
        {"tenant": "Web", "name": name, "issuer": "https://issuer.example", "subject": "same"}
        for name in ("one", "two")
    ]
    tenants = [{"organization": "Acme", "name": "Web"}]
    planned = await api.post(
        "configuration",
        {
            "objects": {"organizations": [{"name": "Acme"}], "tenants": tenants, "api-keys": keys},
            "trial": True,
        },
    )
    assert planned.status == 409, planned.raw
    assert planned.json["detail"].startswith("api-keys.1: There is a key of this subject")
    assert (await api.get("organizations")).json["items"] == []


async def test_apply_of_many_users_restores_the_deleted_user_among_new_users(api: Api) -> None:
    users: list[dict[str, Any]] = [{"organization": "Acme", "external_id": f"u{n}"} for n in range(FEW)]
    objects: Objects = {"organizations": [{"name": "Acme"}], "users": users[:1]}
    await apply(api, objects)
    [user] = [one for one in (await api.get("users")).json["items"] if one["external_id"] == "u0"]
    assert (await api.delete(f"users/{user['id']}")).status == 204
    users[0]["limits"] = {"concurrency": 2}
    done = await apply(api, {**objects, "users": users})
    assert [each["change"] for each in done["changes"]] == ["create"] * FEW
    there = {one["external_id"]: one for one in (await api.get("users")).json["items"]}
    assert (there["u0"]["id"], there["u0"]["limits"]) == (user["id"], {"concurrency": 2})
    assert {"u0", "u1", "u2"} <= there.keys()


async def test_prune_of_many_organizations_keeps_rows_still_used_and_states_the_reason(api: Api) -> None:
    names = [f"o{n}" for n in range(40)]
    objects: Objects = {
        "token-plans": [{"name": "Pro"}],
        "organizations": [{"name": name} for name in names],
        "tenants": [{"organization": name, "name": "Web"} for name in names],
    }
    await apply(api, objects)
    owners = {one["name"]: one["id"] for one in (await api.get("organizations?limit=100")).json["items"]}
    webs = {one["organization_id"]: one["id"] for one in (await api.get("tenants?limit=100")).json["items"]}
    # What people made by hand is of theirs.
    await api.make("tenants", organization_id=owners["o3"], name="By hand")
    await api.make("users", organization_id=owners["o17"], external_id="by-hand")
    await api.make("admin-tokens", organization_id=owners["o18"], name="by hand", role="operator")
    day = {"name": "A day", "unit": "tokens", "amount": 9, "interval": "day"}
    await api.make("budgets", organization_id=owners["o30"], tenant_id=webs[owners["o30"]], **day)
    done = await apply(api, {"token-plans": objects["token-plans"]}, prune=True)
    assert {each["name"]: each["stays"] for each in done["changes"] if each["stays"]} == {
        "o3": "The organization still has tenants; delete them first.",
        "o17": "The organization still has users; delete them first.",
        "o18": "Admin tokens are still of this organization; revoke them first.",
        "o30 / Web": "A budget is of this tenant; delete it first.",
        "o30": "The organization still has tenants; delete them first.",
    }
    there = {one["name"] for one in (await api.get("organizations?limit=100")).json["items"]}
    assert there & {*names} == {"o3", "o17", "o18", "o30"}
    [[deleted]] = api.rows(
        "select count(*) from audit_log where action = 'delete' and resource = 'organizations'"
    )
    assert deleted == len(names) - 4


# --- dated ------------------------------------------------------------------------------
# Rows that take each other's place in time are found as one who looks through all of them finds them.


MOMENTS = st.integers(0, 12)


class Watched(dict[str, Any]):
    """A row that counts how often it is looked at."""

    looked = 0

    def __getitem__(self, name: str) -> Any:
        Watched.looked += 1
        return super().__getitem__(name)


@given(st.lists(MOMENTS, max_size=12), MOMENTS, st.randoms())
def test_lookup_by_date_finds_the_newest_row_of_that_date_and_the_row_in_force(
    moments: list[int], asked: int, any_: Any
) -> None:
    rows = [{"id": number, "since": moment} for number, moment in enumerate(moments)]
    any_.shuffle(rows)
    made: list[Any] = [row for row in rows if row["since"] == asked]
    before: list[Any] = [row for row in rows if row["since"] <= asked]
    dated = DateOrder(rows, "since")
    assert dated.made_for(asked) == max(made, key=lambda row: row["id"], default=None)
    assert dated.in_force(asked) == max(before, key=lambda row: (row["since"], row["id"]), default=None)


def test_lookup_by_date_in_thousands_of_rows_reads_each_row_at_most_four_times() -> None:
    rows = [Watched(id=number, since=number) for number in range(2_000)]
    dated = DateOrder(rows, "since")
    for number in range(2_000):
        assert dated.made_for(number) is rows[number]
    assert Watched.looked <= 4 * len(rows)


# --- names of others --------------------------------------------------------------------
# What a file means stays what it means, whatever other people name theirs.


ACME: Objects = {
    "organizations": [{"name": "Acme"}, {"name": "Globex"}],
    "tenants": [{"name": "Web", "organization": "Acme"}],
    "api-keys": [{"name": "CI", "tenant": {"organization": "Acme", "name": "Web"}}],
}


async def person(api: Api, role: str, organization: str) -> tuple[Api, int]:
    """Somebody of an organization, and its id."""
    [found] = (await api.get(f"organizations?name={organization}")).json["items"]
    token = await api.make("admin-tokens", name=role, role=role, organization_id=found["id"])
    return api.acting_as(token["token"]), found["id"]


async def only(api: Api, path: str) -> Any:
    [found] = (await api.get(path)).json["items"]
    return found


async def test_apply_still_changes_the_applied_key_after_a_member_creates_a_key_of_the_same_name(
    api: Api,
) -> None:
    await apply(api, ACME)
    made = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    await member.make("api-keys", tenant_id=made["tenant_id"], name="CI")
    again = await plan(api, ACME)
    assert (again["changes"], again["noted"]) == ([], 0)
    objects = {**ACME, "organizations": [{"name": "Acme"}, {"name": "Globex", "due_days": 3}]}
    limited = {**ACME["api-keys"][0], "limits": {"concurrency": 2}}
    done = await apply(api, {**objects, "api-keys": [limited]})
    assert [(each["resource"], each["id"]) for each in done["changes"] if each["resource"] == "api-keys"] == [
        ("api-keys", made["id"])
    ]
    assert (await api.get(f"api-keys/{made['id']}")).json["limits"] == {"concurrency": 2}


async def test_apply_still_changes_the_key_first_matched_by_name_after_a_second_key_takes_that_name(
    api: Api,
) -> None:
    await apply(api, {"organizations": ACME["organizations"], "tenants": ACME["tenants"]})
    web = await only(api, "tenants")
    there = await api.make("api-keys", tenant_id=web["id"], name="CI")
    assert (await apply(api, ACME))["noted"] == 1
    await api.make("api-keys", tenant_id=web["id"], name="CI")
    assert (await plan(api, ACME))["changes"] == []
    limited = {**ACME, "api-keys": [{**ACME["api-keys"][0], "limits": {"concurrency": 2}}]}
    [change] = (await plan(api, limited))["changes"]
    assert change["id"] == there["id"]
    # Under a name that nothing was applied under, nothing says which is meant: neither is taken.
    planned = await plan(api, ACME, name="other")
    assert [(each["change"], each["resource"]) for each in planned["changes"]] == [("create", "api-keys")]


async def test_prune_deletes_no_key_while_another_key_has_the_same_name(api: Api) -> None:
    await apply(api, ACME)
    made = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    other = await member.make("api-keys", tenant_id=made["tenant_id"], name="CI")
    written = await exported(api)
    assert [one["name"] for one in written["objects"]["api-keys"]] == ["CI"]
    assert [line.partition(":")[0] for line in written["left_out"]] == [f"api-keys {other['id']} (CI)"]
    assert (await plan(api, written["objects"], prune=True))["changes"] == []
    without = {kind: some for kind, some in ACME.items() if kind != "api-keys"}
    [change] = (await apply(api, without, prune=True))["changes"]
    assert (change["change"], change["id"], "others have its name" in change["stays"]) == (
        "delete", made["id"], True,
    )  # fmt: skip
    assert (await api.get(f"api-keys/{made['id']}")).json["revoked_at"] is None
    await api.post(f"api-keys/{other['id']}/revoke")
    await apply(api, without, prune=True)
    assert (await api.get(f"api-keys/{made['id']}")).json["revoked_at"] is not None


async def test_tenant_name_in_a_file_means_the_tenant_of_that_file_despite_a_namesake_elsewhere(
    api: Api,
) -> None:
    await apply(api, {"organizations": ACME["organizations"]})
    operator, globex = await person(api, "operator", "Globex")
    await operator.make("tenants", organization_id=globex, name="Web")
    key = {"name": "CI", "tenant": "Web"}
    await apply(api, {**ACME, "api-keys": [key]})
    made = await only(api, "api-keys")
    [acme] = (await api.get("organizations?name=Acme")).json["items"]
    [mine] = [one for one in (await api.get("tenants")).json["items"] if one["organization_id"] == acme["id"]]
    assert made["tenant_id"] == mine["id"]


async def test_tenant_name_without_organization_keeps_the_first_meaning_after_a_namesake_appears(
    api: Api,
) -> None:
    await apply(api, {"organizations": ACME["organizations"]})
    [acme] = (await api.get("organizations?name=Acme")).json["items"]
    web = await api.make("tenants", organization_id=acme["id"], name="Web")
    keys: Objects = {"api-keys": [{"name": "CI", "tenant": "Web"}]}
    await apply(api, keys)
    assert (await plan(api, keys))["noted"] == 0
    operator, globex = await person(api, "operator", "Globex")
    await operator.make("tenants", organization_id=globex, name="Web")
    more: Objects = {"api-keys": [*keys["api-keys"], {"name": "CD", "tenant": "Web"}]}
    await apply(api, more)
    found = (await api.get("api-keys")).json["items"]
    assert {one["tenant_id"] for one in found} == {web["id"]}
    message = (await refused(api, keys, name="other"))["api-keys.0.tenant"]
    assert message == "there are 2 tenants named 'Web': say {organization, name}"
    pruned = {each["resource"] for each in (await plan(api, more, prune=True))["changes"]}
    assert pruned == {"organizations"}, "what is only spoken of is never pruned"


# --- renamed meanwhile ------------------------------------------------------------------
# What people of an organization do between two applies of staff stops none, and gives none their rows.


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
    """The same files after a change of another organization, and their objects of Acme."""
    said = {"requests_per_minute": limit}
    return {
        **FILES,
        "organizations": [{"name": "Acme"}, {"name": "Globex", "due_days": limit}],
        "tenants": [{**FILES["tenants"][0], "limits": said}],
        "api-keys": [{**KEY, "limits": said}],
        "budgets": [{**BUDGET, "amount": str(limit)}],
        "webhooks": [{**FILES["webhooks"][0], "enabled": bool(limit % 2)}],
    }


async def test_apply_changes_the_rotated_key_despite_another_key_of_the_same_name(api: Api) -> None:
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


async def test_apply_renames_a_row_renamed_by_hand_back_to_the_name_of_the_file(api: Api) -> None:
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


async def test_apply_recreates_a_deleted_key_and_budget_despite_other_rows_of_the_same_name(api: Api) -> None:
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


async def test_key_with_a_subject_taken_by_another_key_waits_while_the_rest_of_the_files_is_applied(
    api: Api,
) -> None:
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


async def test_apply_continues_with_other_objects_when_a_referenced_tenant_is_renamed_or_deleted(
    api: Api,
) -> None:
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


async def test_apply_recreates_a_revoked_key_and_keeps_the_budget_of_the_revoked_key(api: Api) -> None:
    files = {**FILES, "budgets": [{**BUDGET, "tenant": "Web", "api_key": "web"}]}
    await apply(api, files)
    key = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    await member.post(f"api-keys/{key['id']}/revoke")
    done = await apply(api, files)
    told = {each["resource"]: (each["change"], bool(each["stays"])) for each in done["changes"]}
    assert told == {"api-keys": ("create", False), "budgets": ("change", True)}


@pytest.mark.parametrize("role", ["operator", "billing", "admin"])
async def test_organization_token_may_not_rename_the_own_organization(api: Api, role: str) -> None:
    await api.make("organizations", name="Acme")
    somebody, acme = await person(api, role, "Acme")
    refused = await somebody.patch(f"organizations/{acme}", {"name": "Newco"})
    assert (refused.status, "may not set name of organizations" in refused.json["detail"]) == (403, True)
    assert (await api.get(f"organizations/{acme}")).json["name"] == "Acme"
    assert (await api.patch(f"organizations/{acme}", {"name": "Acme Ltd"})).status == 200


async def test_apply_reports_a_row_created_by_hand_as_taken_over_only_the_first_time(api: Api) -> None:
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


@pytest.mark.parametrize("seed", range(2))
async def test_files_of_staff_still_apply_after_random_changes_by_an_organization(
    api: Api, seed: int
) -> None:
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
