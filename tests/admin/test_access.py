"""API keys and admin tokens: shown once, kept as digests, refused for ever once revoked."""

from __future__ import annotations

import asyncio
import hmac
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from persistence.resources.access import MEMBERS_KEYS_MAX
from tests.admin.conftest import ADMIN, READONLY, Api
from tests.in_turn import in_turn


async def test_a_key_is_shown_once_and_kept_as_its_digest(api: Api) -> None:
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


async def test_keys_are_found_by_how_they_begin(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    made = [await api.make("api-keys", tenant_id=tenant["id"], name=f"k{n}") for n in range(3)]
    for begins in (made[1]["prefix"], made[1]["prefix"][:7]):
        found = (await api.get(f"api-keys?prefix={begins}")).json["items"]
        assert made[1]["id"] in {key["id"] for key in found}
        assert all(key["prefix"].startswith(begins) for key in found)
    assert len((await api.get("api-keys?prefix=tk_")).json["items"]) == 3
    for nobodys in ("%25", "tk%25", "k_", "_", "tk_______"):
        assert (await api.get(f"api-keys?prefix={nobodys}")).json["items"] == []


async def test_two_keys_are_never_the_same(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    keys = {(await api.make("api-keys", tenant_id=tenant["id"], name="k"))["key"] for _ in range(5)}
    assert len(keys) == 5


async def test_revoking_is_for_ever_and_keeps_its_time(api: Api) -> None:
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


async def test_deleting_a_key_revokes_it_first(api: Api) -> None:
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


@pytest.fixture
async def web(api: Api) -> dict[str, Any]:
    made: dict[str, Any] = await api.make("tenants", name="web")
    return made


@in_turn(
    ("field", "value", "named"),
    [
        ("tenant_id", 99, "tenant_id"),
        ("tenant_id", None, "tenant_id"),
        ("user", "", "user"),
        ("user", "x" * 129, "user"),
        ("user_header", "deny", "user_header"),
        ("user_header", None, "user_header"),
        ("models", [], "models"),
        ("models", [""], "models.0"),
        ("models", "gpt", "models"),
        ("models", ["gpt "], "models.0"),
        ("models", ["o9", "gpt\n"], "models.1"),
        ("user", "a\u00a0b", "user"),
        ("expires_at", "2031-01-01", "expires_at"),
        ("expires_at", "2031-01-01T00:00:00", "expires_at"),
        ("expires_at", "2031-13-01T00:00:00Z", "expires_at"),
        ("expires_at", "0001-01-01T00:00:00+23:00", "expires_at"),
        ("expires_at", 1, "expires_at"),
        ("limits", {"concurrency": 0}, "limits.concurrency"),
        ("limits", {"requests_per_minute": -1}, "limits.requests_per_minute"),
        ("limits", {"tokens_per_minute": 2**53}, "limits.tokens_per_minute"),
        ("limits", {"rpm": 1}, "limits.rpm"),
        ("limits", [], "limits"),
        ("key", "tk_mine", "key"),
        ("digest", "0" * 64, "digest"),
    ],
)
async def test_wrong_fields_of_a_key_are_named(
    api: Api, web: dict[str, Any], field: str, value: object, named: str
) -> None:
    refused = await api.post("api-keys", {"tenant_id": web["id"], "name": "k", field: value})
    assert refused.status == 422
    assert [error["field"] for error in refused.json["errors"]] == [named]
    assert api.rows("select count(*) from api_key") == [(0,)]


@in_turn("token", [None, "", "wrong", ADMIN + "x", "tka_" + "0" * 32, "tka_" + "é" * 32])
async def test_nobody_gets_in_without_a_token(api: Api, token: str | None) -> None:
    nobody = api.acting_as(token)
    for method, path in (("GET", "organizations"), ("POST", "organizations"), ("DELETE", "organizations/1")):
        answer = await nobody.call(method, path, {"name": "x"} if method == "POST" else None)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert api.rows("select count(*) from organization") == [(0,)]


async def test_a_token_that_was_used_can_be_deleted_even_by_itself(api: Api) -> None:
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


@in_turn("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_in_any_case(api: Api, scheme: str) -> None:
    sent = {"Authorization": f"{scheme} {ADMIN}"}
    assert (await api.acting_as(None).call("GET", "organizations", headers=sent)).status == 200


@in_turn("value", [f"Basic {ADMIN}", ADMIN, f"Bearer  {ADMIN} x", "Bearer"])
async def test_only_a_bearer_token_counts(api: Api, value: str) -> None:
    answer = await api.acting_as(None).call("GET", "organizations", headers={"Authorization": value})
    assert answer.status == 401


async def test_the_read_only_token_reads_everything_and_changes_nothing(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    reader = api.acting_as(READONLY)
    assert (await reader.get(f"tenants/{tenant['id']}")).status == 200
    for method, path in (
        ("POST", "tenants"),
        ("PATCH", f"tenants/{tenant['id']}"),
        ("DELETE", f"tenants/{tenant['id']}"),
        ("POST", f"tenants/{tenant['id']}/reset"),
    ):
        assert (await reader.call(method, path, {})).status == 403
    assert len(api.rows("select * from audit_log")) == 1


async def test_named_tokens_act_until_they_expire_or_are_revoked(api: Api) -> None:
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


async def test_a_member_makes_no_keys_without_end(api: Api) -> None:
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
