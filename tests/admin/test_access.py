"""API keys and admin tokens: shown once, kept as digests, refused for ever once revoked."""

from __future__ import annotations

import asyncio
import hmac
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.accounts.administration import OVERLAP_S, OVERLAP_S_MAX
from gateway.core.issuers import known_as
from gateway.http.identity import key_digest
from persistence.resources.api_keys import MEMBERS_KEYS_MAX
from tests.admin.conftest import ADMIN, Api


async def test_api_key_secret_is_shown_once_and_stored_as_a_digest(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    sent = {
        "tenant_id": tenant["id"],
        "name": "laptop",
        "user": "ann",
        "user_header": "require",
        "limits": {"tokens_per_minute": 9},
        "models": ["gpt-5", "o9"],
        "expires_at": "2031-01-01T00:00:00+01:00",
    }
    made = await api.make("api-keys", **sent)
    key = made.pop("key")
    assert re.fullmatch(r"tk_[0-9A-Za-z]{32}", key)
    assert made["prefix"] == key[:8]
    assert made["expires_at"] == "2030-12-31T23:00:00Z"
    assert {name: made[name] for name in sent if name != "expires_at"} == {
        name: value for name, value in sent.items() if name != "expires_at"
    }
    assert (await api.get(f"api-keys/{made['id']}")).json == made
    digest = hmac.new(b"pepper", key.encode(), "sha256").hexdigest()
    assert api.rows("select digest from api_key") == [(digest,)]
    for table in ("api_key", "audit_log", "control_write", "idempotency_key"):
        assert key not in str(api.rows(f"select t::text from {table} as t"))
    assert digest not in str(api.rows("select t::text from audit_log as t"))


async def test_api_keys_can_be_listed_by_the_beginning_of_the_key(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    made = [await api.make("api-keys", tenant_id=tenant["id"], name=f"k{n}") for n in range(3)]
    for begins in (made[1]["prefix"], made[1]["prefix"][:7]):
        found = (await api.get(f"api-keys?prefix={begins}")).json["items"]
        assert made[1]["id"] in {key["id"] for key in found}
        assert all(key["prefix"].startswith(begins) for key in found)
    assert len((await api.get("api-keys?prefix=tk_")).json["items"]) == 3
    for nobodys in ("%25", "tk%25", "k_", "_", "tk_______"):
        assert (await api.get(f"api-keys?prefix={nobodys}")).json["items"] == []


async def test_revoked_api_key_keeps_the_first_revocation_time_and_cannot_be_restored(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    key = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    api.counters.pushed.clear()
    first = await api.post(f"api-keys/{key['id']}/revoke")
    again = await api.post(f"api-keys/{key['id']}/revoke")
    assert first.json["revoked_at"] is not None
    assert again.json == first.json
    assert api.counters.pushed == [f"key:{key['id']}"] * 2
    refused = await api.patch(f"api-keys/{key['id']}", {"revoked_at": None})
    assert refused.json["errors"] == [{"field": "revoked_at", "message": "cannot be set here"}]


async def test_deleting_an_api_key_while_the_counters_are_unreachable_only_revokes_the_key(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    key = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    api.counters.away = True
    waits = await api.delete(f"api-keys/{key['id']}")
    assert waits.status == 202
    assert waits.json["revoked_at"] is not None
    assert (await api.get(f"api-keys/{key['id']}")).status == 200
    api.counters.away = False
    assert (await api.delete(f"api-keys/{key['id']}")).status == 204
    assert (await api.get(f"api-keys/{key['id']}")).status == 404


async def test_request_without_a_valid_admin_token_is_refused(api: Api) -> None:
    for token in (None, "", "wrong", ADMIN + "x", "tka_" + "0" * 32, "tka_" + "é" * 32):
        answer = await api.acting_as(token).post("organizations", {"name": "x"})
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert api.rows("select count(*) from organization") == [(0,)]
    for sent, status in (
        *((f"{scheme} {ADMIN}", 200) for scheme in ("Bearer", "bearer", "BEARER")),
        *((value, 401) for value in (f"Basic {ADMIN}", ADMIN, f"Bearer  {ADMIN} x", "Bearer")),
    ):
        asked = await api.acting_as(None).call("GET", "organizations", headers={"Authorization": sent})
        assert asked.status == status, sent


async def test_admin_token_may_delete_itself_and_the_audit_entries_of_the_token_remain(api: Api) -> None:
    made = await api.make("admin-tokens", name="ci", role="admin")
    holder = api.acting_as(made["token"])
    await holder.make("organizations", name="x")
    assert (await holder.delete(f"admin-tokens/{made['id']}")).status == 204
    assert (await holder.get("organizations")).status == 401
    assert (await api.get(f"admin-tokens/{made['id']}")).status == 404
    assert (await api.get("admin-tokens")).json["items"] == []
    assert (await api.delete(f"admin-tokens/{made['id']}")).status == 404
    entries = (await api.get(f"audit-log?admin_token_id={made['id']}")).json["items"]
    assert [(entry["resource"], entry["action"]) for entry in entries] == [
        ("organizations", "create"), ("admin-tokens", "delete")
    ]  # fmt: skip


async def test_admin_token_has_the_rights_of_the_role_until_revoked_or_expired(api: Api) -> None:
    admin = await api.make("admin-tokens", name="ci", role="admin")
    reader = await api.make("admin-tokens", name="dashboard", role="readonly")
    acting = api.acting_as(admin["token"])
    made = await acting.make("organizations", name="by ci")
    assert (await api.acting_as(reader["token"]).get(f"organizations/{made['id']}")).status == 200
    assert (await api.acting_as(reader["token"]).post("organizations", {"name": "x"})).status == 403
    [(actor, token_id)] = api.rows("select actor, admin_token_id from audit_log order by id desc limit 1")
    assert (actor, token_id) == (f"token:{admin['id']}", admin["id"])
    assert (await api.post(f"admin-tokens/{admin['id']}/revoke")).status == 200
    assert (await acting.get("organizations")).status == 401
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await api.patch(f"admin-tokens/{reader['id']}", {"expires_at": past})
    assert (await api.acting_as(reader["token"]).get("organizations")).status == 401


async def test_member_may_not_create_more_api_keys_than_the_maximum_of_unrevoked_keys(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    token = await api.make(
        "admin-tokens", name="theirs", role="member", organization_id=tenant["organization_id"]
    )
    member, sent = api.acting_as(token["token"]), {"tenant_id": tenant["id"], "name": "one more"}
    api.rows(
        "insert into api_key (tenant_id, name, digest, prefix)"
        " select %s, 'k', lpad(to_hex(n), 64, '0'), 'tk_' from generate_series(1, %s) as n",
        tenant["id"], MEMBERS_KEYS_MAX - 1,
    )  # fmt: skip
    # Two at once: one of them is the last.
    answers = await asyncio.gather(*(member.post("api-keys", sent) for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [201, 409]
    [refused] = [answer for answer in answers if answer.status == 409]
    assert f"has {MEMBERS_KEYS_MAX} keys that are not revoked" in refused.json["detail"]
    assert (await api.post("api-keys", sent)).status == 201
    assert (await member.post("api-keys", sent)).status == 409
    api.rows("update api_key set revoked_at = now() where name = 'k'")
    assert (await member.post("api-keys", sent)).status == 201


# --- rotated keys -----------------------------------------------------------------------
# A key in the place of another: both are good for a stated while, then the new one alone.


TERMS = {
    "name": "website", "user": "ann", "user_header": "require", "limits": {"tokens_per_minute": 9},
    "models": ["gpt-5", "o9"],
}  # fmt: skip


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_rotated_api_key_is_replaced_by_a_key_of_the_same_terms_and_ends_after_the_overlap(
    api: Api,
) -> None:
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


async def test_api_key_rotation_overlap_is_a_day_by_default_and_has_a_maximum(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    refused = await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": OVERLAP_S_MAX + 1})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "overlap_s")
    assert (await api.post(f"api-keys/{old['id']}/rotate")).status == 200
    ends = moment((await api.get(f"api-keys/{old['id']}")).json["expires_at"])
    assert timedelta(0) <= datetime.now(UTC) + timedelta(seconds=OVERLAP_S) - ends < timedelta(minutes=5)


async def test_api_key_rotation_with_zero_overlap_revokes_the_old_key_at_once(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    new = (await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": 0})).json
    then = (await api.get(f"api-keys/{old['id']}")).json
    assert (then["revoked_at"] is not None, then["expires_at"]) == (True, None)
    assert (new["revoked_at"], new["replaced_by_id"]) == (None, None)


@pytest.mark.parametrize("said", [{}, {"expires_at": None}, {"expires_at": "2040-01-01T00:00:00Z"}])
async def test_api_key_rotation_never_extends_the_old_key_and_the_new_key_inherits_the_expiry(
    api: Api, said: dict[str, object]
) -> None:
    tenant = await api.make("tenants", name="web")
    soon = (datetime.now(UTC) + timedelta(minutes=30)).replace(microsecond=0)
    end = soon.isoformat().replace("+00:00", "Z")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k", expires_at=end)
    new = (await api.post(f"api-keys/{old['id']}/rotate", {"overlap_s": 86_400} | said)).json
    assert (await api.get(f"api-keys/{old['id']}")).json["expires_at"] == end
    assert new["expires_at"] == said.get("expires_at", end)


async def test_api_key_that_is_revoked_expired_already_rotated_or_limited_by_a_budget_is_not_rotated(
    api: Api,
) -> None:
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
    over = await api.post(f"api-keys/{await key('f')}/rotate", {"expires_at": "2020-01-01T00:00:00Z"})
    assert (over.status, over.json["errors"][0]["field"]) == (422, "expires_at")
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


async def test_api_key_replaced_by_rotation_cannot_be_given_a_later_expiry(api: Api) -> None:
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


async def test_api_key_can_be_rotated_again_after_an_older_keeper_version_deleted_the_new_key(
    api: Api,
) -> None:
    """As an older keeper does, beside this one on the same schema: by the row's id alone."""
    tenant = await api.make("tenants", name="web")
    old = (await api.make("api-keys", tenant_id=tenant["id"], user="ann"))["id"]
    new = await api.post(f"api-keys/{old}/rotate")
    api.rows("delete from api_key where id = %s returning id", new.json["id"])
    found = (await api.get(f"api-keys/{old}")).json
    assert (found["replaced_by_id"], found["user"]) == (None, "ann")
    assert (await api.post(f"api-keys/{old}/rotate")).status == 200


async def test_repeated_api_key_rotation_request_creates_no_second_key_and_shows_no_secret(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    old = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    first = await api.post(f"api-keys/{old['id']}/rotate", {}, key="r1")
    again = await api.post(f"api-keys/{old['id']}/rotate", {}, key="r1")
    assert first.json.pop("key")
    assert again.json == first.json
    assert api.rows("select count(*) from api_key") == [(2,)]


async def test_member_may_rotate_api_keys_of_the_own_organization_up_to_the_key_maximum(api: Api) -> None:
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


# --- token keys -------------------------------------------------------------------------
# Keys that are no secret: an issuer's subject stands in their place, and only who is of all may say so.


ISSUER = "https://kubernetes.default.svc"
PODS = {"name": "pods", "issuer": ISSUER, "subject": "prod"}


async def test_api_key_for_a_subject_of_an_identity_issuer_has_no_secret_and_is_found_by_gateways(
    api: Api,
) -> None:
    tenant = await api.make("tenants", name="web")
    made = await api.make("api-keys", tenant_id=tenant["id"], **PODS, limits={"concurrency": 3})
    assert "key" not in made
    assert (made["prefix"], made["issuer"], made["subject"]) == ("", ISSUER, "prod")
    assert (await api.get(f"api-keys/{made['id']}")).json == made
    digest = key_digest(known_as(ISSUER, "prod").encode(), b"pepper")
    assert api.rows("select digest from api_key") == [(digest,)]
    found = (await api.get(f"api-keys?issuer={ISSUER}&subject=prod")).json["items"]
    assert [one["id"] for one in found] == [made["id"]]
    plain = await api.make("api-keys", tenant_id=tenant["id"], name="laptop")
    assert (plain["issuer"], plain["subject"], plain["key"][:3]) == (None, None, "tk_")
    assert (await api.patch(f"api-keys/{plain['id']}", {"issuer": ISSUER, "subject": "prod"})).status == 422


async def test_identity_issuer_subject_has_at_most_a_single_unrevoked_api_key(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    made = await api.make("api-keys", tenant_id=tenant["id"], **PODS)
    refused = await api.post("api-keys", {"tenant_id": tenant["id"], **PODS})
    assert (refused.status, "revoke it first" in str(refused.json)) == (409, True)
    await api.post(f"api-keys/{made['id']}/revoke")
    newer = await api.make("api-keys", tenant_id=tenant["id"], **PODS)
    digest = key_digest(known_as(ISSUER, "prod").encode(), b"pepper")
    assert api.rows("select id from api_key where digest = %s", digest) == [(newer["id"],)]
    before = (await api.get(f"api-keys/{made['id']}")).json
    assert (before["subject"], before["revoked_at"] is not None) == ("prod", True)
    refused = await api.post("api-keys", {"tenant_id": tenant["id"], **PODS})
    assert (refused.status, "revoke it first" in str(refused.json)) == (409, True)
    expired = PODS | {"subject": "stage", "expires_at": "2020-01-01T00:00:00Z"}  # whose end may be moved
    assert (await api.make("api-keys", tenant_id=tenant["id"], **expired))["id"]
    assert (await api.post("api-keys", {"tenant_id": tenant["id"], **expired})).status == 409


async def test_deleted_key_of_an_identity_subject_leaves_the_counters_unless_a_newer_key_took_over(
    api: Api,
) -> None:
    tenant = await api.make("tenants", name="web")
    said = []
    for subject in ("a", "b", "b"):
        made = await api.make("api-keys", tenant_id=tenant["id"], **PODS | {"subject": subject})
        await api.post(f"api-keys/{made['id']}/revoke")
        said.append((made["id"], key_digest(known_as(ISSUER, subject).encode(), b"pepper")))
    for number, _ in said:
        assert (await api.delete(f"api-keys/{number}")).status == 204
    written = api.rows("select account, payload->>'digest' from control_write where payload ? 'digest'")
    # The first of "b" had given its subject up to the second.
    assert sorted(written) == sorted((f"key:{number}", digest) for number, digest in (said[0], said[2]))


async def test_organization_token_may_not_create_an_api_key_for_an_identity_issuer_subject(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    token = await api.make(
        "admin-tokens", name="own", role="operator", organization_id=tenant["organization_id"]
    )
    own = replace(api, token=token["token"])
    assert (await own.post("api-keys", {"tenant_id": tenant["id"], "name": "laptop"})).status == 201
    refused = await own.post("api-keys", {"tenant_id": tenant["id"], **PODS})
    assert (refused.status, "of all organizations" in str(refused.json)) == (403, True)
