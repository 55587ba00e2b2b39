"""A key in the place of another: both are good for a stated while, then the new one alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.accounts.administration import OVERLAP_S, OVERLAP_S_MAX
from persistence.resources.access import MEMBERS_KEYS_MAX
from tests.admin.conftest import Api

TERMS = {
    "name": "website", "user": "ann", "user_header": "require", "limits": {"tokens_per_minute": 9},
    "models": ["gpt-5", "o9"],
}  # fmt: skip


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_the_new_key_has_the_terms_and_the_old_one_ends_after_the_overlap(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], **TERMS)
    api.counters.pushed.clear()
    before = datetime.now(UTC)
    rotated = await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": 3600})
    assert rotated.status == 200
    new = rotated.json
    key = new.pop("key")
    assert re.fullmatch(r"tk_[0-9A-Za-z]{32}", key)
    assert (key != old["key"], new["prefix"], new["id"] != old["id"]) == (True, key[:8], True)
    assert {name: new[name] for name in TERMS} == TERMS
    assert (new["tenant_id"], new["expires_at"], new["replaced_by_id"]) == (tenant["id"], None, None)
    assert (await api.get(f"api-keys/{new['id']}")).json == new
    then = (await api.get(f"api-keys/{old['id']}")).json
    assert (then["replaced_by_id"], then["revoked_at"]) == (new["id"], None)
    ends = moment(then["expires_at"])
    assert before - timedelta(seconds=1) <= ends - timedelta(hours=1) <= datetime.now(UTC)
    assert sorted(api.counters.pushed) == sorted([f"key:{old['id']}", f"key:{new['id']}"])
    digests = {digest for (digest,) in api.rows("select digest from api_key")}
    assert len(digests) == 2
    [entry] = (await api.get("audit-log?action=rotate")).json["items"]
    assert (entry["before"]["id"], entry["after"]["id"]) == (old["id"], new["id"])
    for table in ("api_key", "audit_log", "control_write", "idempotency_key"):
        assert key not in str(api.rows(f"select t::text from {table} as t"))
    assert not any(digest in str(api.rows("select t::text from audit_log as t")) for digest in digests)


async def test_the_overlap_is_a_day_by_default_and_has_a_maximum(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    for wrong in (-1, OVERLAP_S_MAX + 1, "3600", 1.5, None):
        refused = await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": wrong})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "overlap_s")
    assert (await api.post(f"api-keys/{old['id']}/rotate")).status == 200
    ends = moment((await api.get(f"api-keys/{old['id']}")).json["expires_at"])
    assert timedelta(0) <= datetime.now(UTC) + timedelta(seconds=OVERLAP_S) - ends < timedelta(minutes=5)


async def test_no_overlap_revokes_the_old_key_at_once(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    new = (await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": 0})).json
    then = (await api.get(f"api-keys/{old['id']}")).json
    assert (then["revoked_at"] is not None, then["expires_at"]) == (True, None)
    assert (new["revoked_at"], new["replaced_by_id"]) == (None, None)


@pytest.mark.parametrize("said", [{}, {"expires_at": None}, {"expires_at": "2040-01-01T00:00:00Z"}])
async def test_an_end_that_a_key_has_is_never_later_and_goes_over(api: Api, said: dict[str, object]) -> None:
    tenant = await api.make("tenants", name="web")
    soon = (datetime.now(UTC) + timedelta(minutes=30)).replace(microsecond=0)
    end = soon.isoformat().replace("+00:00", "Z")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k", expires_at=end)
    new = (await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": 86_400} | said)).json
    assert (await api.get(f"api-keys/{old['id']}")).json["expires_at"] == end
    assert new["expires_at"] == said.get("expires_at", end)


async def test_what_cannot_be_rotated_is_refused_and_stays(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    owner = tenant["organization_id"]

    async def key(name: str, **more: object) -> int:
        return int((await api.make("api-keys", tenant_id=tenant["id"], name=name, **more))["id"])

    revoked, rotated, limited = await key("a"), await key("b"), await key("c")
    expired = await key("d", expires_at="2020-01-01T00:00:00Z")
    signed = await key("e", issuer="https://login.example.com", subject="ci")
    await api.post(f"api-keys/{revoked}/revoke")
    successor = (await api.post(f"api-keys/{rotated}/rotate")).json["id"]
    budget = {"organization_id": owner, "name": "of c", "unit": "tokens", "amount": 9, "interval": "day"}
    await api.make("budgets", **budget, api_key_id=limited)
    count = api.rows("select count(*) from api_key")
    for which, why in (
        (revoked, "revoked"), (rotated, f"Key {successor}"), (limited, "budget"), (expired, "expired"),
        (signed, "Signed tokens"),
    ):  # fmt: skip
        refused = await api.post(f"api-keys/{which}/rotate")
        assert (refused.status, why in refused.json["detail"]) == (409, True), refused.json
    assert api.rows("select count(*) from api_key") == count
    assert (await api.post("api-keys/999999/rotate")).status == 404
    # The one in its place may be, and each is deleted by itself.
    assert (await api.post(f"api-keys/{successor}/rotate")).status == 200
    assert (await api.delete(f"api-keys/{successor}")).status == 204
    assert (await api.get(f"api-keys/{rotated}")).json["replaced_by_id"] is None


async def test_a_key_that_was_replaced_is_not_brought_back(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = (await api.make("api-keys", tenant_id=tenant["id"], name="k"))["id"]
    new = (await api.post(f"api-keys/{old}/rotate", {"overlap_s": 3600})).json
    ends = (await api.get(f"api-keys/{old}")).json["expires_at"]
    for later in (None, "2999-01-01T00:00:00Z"):
        refused = await api.patch(f"api-keys/{old}", {"expires_at": later})
        assert (refused.status, f"Key {new['id']} stands" in refused.json["detail"]) == (409, True)
    assert (await api.get(f"api-keys/{old}")).json["expires_at"] == ends
    assert (await api.patch(f"api-keys/{old}", {"name": "former", "expires_at": ends})).status == 200
    soon = "2020-01-01T00:00:00Z"
    assert (await api.patch(f"api-keys/{old}", {"expires_at": soon})).json["expires_at"] == soon
    assert (await api.patch(f"api-keys/{old}", {"expires_at": ends})).status == 409
    assert (await api.patch(f"api-keys/{new['id']}", {"expires_at": "2999-01-01T00:00:00Z"})).status == 200


async def test_the_new_key_has_not_ended_before_it_is_made(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = (await api.make("api-keys", tenant_id=tenant["id"], name="k"))["id"]
    refused = await api.post(f"api-keys/{old}/rotate", {"expires_at": "2020-01-01T00:00:00Z"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "expires_at")
    assert api.rows("select count(*) from api_key") == [(1,)]


async def test_a_program_that_does_not_know_of_it_deletes_the_new_key_as_any_other(api: Api) -> None:
    """As an older keeper does, beside this one on the same schema: by the row's id alone."""
    tenant = await api.make("tenants", name="web")
    old = (await api.make("api-keys", tenant_id=tenant["id"], user="ann"))["id"]
    new = await api.post(f"api-keys/{old}/rotate")
    api.rows("delete from api_key where id = %s returning id", new.json["id"])
    found = (await api.get(f"api-keys/{old}")).json
    assert (found["replaced_by_id"], found["user"]) == (None, "ann")
    assert (await api.post(f"api-keys/{old}/rotate")).status == 200


async def test_the_same_request_again_makes_no_second_key_and_shows_none(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    first = await api.post(f"api-keys/{old['id']}/rotate", {}, key="r1")
    again = await api.post(f"api-keys/{old['id']}/rotate", {}, key="r1")
    assert first.json.pop("key")
    assert again.json == first.json
    assert api.rows("select count(*) from api_key") == [(2,)]


async def test_a_member_rotates_its_own_keys_as_far_as_it_makes_any(api: Api) -> None:
    ours = await api.make("tenants", name="ours")
    theirs = await api.make("tenants", name="theirs")
    within = {"organization_id": ours["organization_id"]}
    member, reader = [
        api.acting_as((await api.make("admin-tokens", name=role, role=role, **within))["token"])
        for role in ("member", "readonly")
    ]
    mine = await api.make("api-keys", tenant_id=ours["id"], name="k")
    others = await api.make("api-keys", tenant_id=theirs["id"], name="k")
    assert (await reader.post(f"api-keys/{mine['id']}/rotate")).status == 403
    assert (await member.post(f"api-keys/{others['id']}/rotate")).status == 404
    new = await member.post(f"api-keys/{mine['id']}/rotate")
    assert new.status == 200
    api.rows(
        "insert into api_key (tenant_id, name, digest, prefix)"
        " select %s, 'n', lpad(to_hex(n), 64, '0'), 'tk_' from generate_series(1, %s) as n",
        ours["id"], MEMBERS_KEYS_MAX - 2,
    )  # fmt: skip
    refused = await member.post(f"api-keys/{new.json['id']}/rotate")
    assert (refused.status, f"has {MEMBERS_KEYS_MAX} keys" in refused.json["detail"]) == (409, True)
    assert (await api.post(f"api-keys/{new.json['id']}/rotate")).status == 200
