"""Keys that are no secret: an issuer's subject stands in their place, and only who is of all may say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.issuers import known_as
from gateway.http.identity import key_digest
from tests.admin.conftest import Api
from tests.in_turn import in_turn

ISSUER = "https://kubernetes.default.svc"
PODS = {"name": "pods", "issuer": ISSUER, "subject": "prod"}


async def test_a_key_of_a_subject_has_no_secret_and_is_found_as_gateways_look_for_it(
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


async def test_a_subject_has_one_key_at_a_time(api: Api) -> None:
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
    assert (await api.make("api-keys", tenant_id=tenant["id"], **PODS | {"subject": "stage"}))["id"]


async def test_a_key_that_has_expired_is_in_the_way_since_its_end_may_be_moved(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    await api.make("api-keys", tenant_id=tenant["id"], **PODS, expires_at="2020-01-01T00:00:00Z")
    assert (await api.post("api-keys", {"tenant_id": tenant["id"], **PODS})).status == 409


async def test_what_is_deleted_says_so_to_the_counters_where_its_end_is_kept(api: Api) -> None:
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


async def test_an_organizations_own_people_claim_no_subject(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    token = await api.make(
        "admin-tokens", name="own", role="operator", organization_id=tenant["organization_id"]
    )
    own = replace(api, token=token["token"])
    assert (await own.post("api-keys", {"tenant_id": tenant["id"], "name": "laptop"})).status == 201
    refused = await own.post("api-keys", {"tenant_id": tenant["id"], **PODS})
    assert (refused.status, "of all organizations" in str(refused.json)) == (403, True)


@pytest.fixture
async def web(api: Api) -> dict[str, Any]:
    made: dict[str, Any] = await api.make("tenants", name="web")
    return made


@in_turn(
    "said",
    [
        {"issuer": ISSUER},
        {"subject": "prod"},
        {"issuer": "", "subject": "prod"},
        {"issuer": "a b", "subject": "prod"},
        {"issuer": ISSUER, "subject": ""},
        {"issuer": ISSUER, "subject": "a\nb"},
        {"issuer": ISSUER, "subject": "a\u200bb"},
        {"issuer": ISSUER, "subject": "x" * 513},
        {"issuer": ISSUER, "subject": 7},
    ],
)
async def test_what_no_token_can_say_is_422(api: Api, web: dict[str, Any], said: dict[str, object]) -> None:
    refused = await api.post("api-keys", {"tenant_id": web["id"], "name": "pods", **said})
    assert refused.status == 422


async def test_a_key_that_is_a_secret_never_is_a_subject(api: Api, web: dict[str, Any]) -> None:
    made = await api.make("api-keys", tenant_id=web["id"], name="laptop")
    assert (await api.patch(f"api-keys/{made['id']}", {"issuer": ISSUER, "subject": "prod"})).status == 422
