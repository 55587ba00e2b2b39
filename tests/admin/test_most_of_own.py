"""What an organization's own people make has an end; staff may make more."""

from __future__ import annotations

from asyncio import gather
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, ROLES, Actor, refused_write
from persistence.apply_transaction import MOST, TIMES_A_DAY
from persistence.engine import plain_url
from tests.admin.configuration.world import plan
from tests.admin.conftest import Api


def test_every_kind_that_an_organizations_role_makes_has_a_maximum() -> None:
    actors = [Actor("somebody", role, organization_id=1) for role in ROLES]
    made = {
        name
        for name, resource in RESOURCES.items()
        if resource.create is not None
        and any(refused_write(actor, name, resource.access, CREATE) is None for actor in actors)
    }
    assert made == MOST.keys()


@dataclass(frozen=True)
class Kind:
    """How rows of a kind are made: many in its table, and one by the Admin API. `owner` is whose they are."""

    table: str
    rows: str
    one: str
    more: dict[str, Any] = field(default_factory=dict)
    owner: str = "organization_id"
    gone: str = "deleted_at"


KINDS = {
    "webhooks": Kind("webhook (organization_id, url, secret)", "'https://x.example/' || n, 's'", "url"),
    "tenants": Kind("tenant (organization_id, name)", "'k' || n", "name"),
    "users": Kind("app_user (organization_id, external_id)", "'k' || n", "external_id"),
    "api-keys": Kind(
        "api_key (tenant_id, name, digest, prefix)", "'k' || n, lpad(to_hex(n), 64, '0'), 'tk_'", "name",
        owner="tenant_id", gone="revoked_at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_one_more_is_refused_until_another_is_gone_and_staff_may_make_it(api: Api, kind: str) -> None:
    how = KINDS[kind]
    acme = (await api.make("organizations", name="Acme"))["id"]
    globex = (await api.make("organizations", name="Globex"))["id"]
    await api.make("tenants", organization_id=globex, name="Others count for nothing")
    web = (await api.make("tenants", organization_id=acme, name="Web"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    owner = web if how.owner == "tenant_id" else acme
    numbers = "generate_series(1, %s) as n returning id"
    rows = api.rows(
        f"insert into {how.table} select %s, {how.rows} from {numbers}",
        owner,
        MOST[kind] - (kind == "tenants"),
    )

    def one(name: str) -> dict[str, Any]:
        return {how.owner: owner, how.one: f"https://hooks.example.com/{name}" if how.one == "url" else name}

    refused = await theirs.post(kind, one("one"))
    assert refused.status == 409
    assert f"at most {MOST[kind]} {kind.replace('-', ' ')}" in refused.json["detail"]
    table = how.table.split()[0]
    api.rows(f"update {table} set {how.gone} = now() where id = %s", rows[0][0])
    await theirs.make(kind, **one("one"))
    assert (await theirs.post(kind, one("two"))).status == 409
    await api.make(kind, **one("two"))


async def test_who_makes_the_last_ones_at_once_makes_no_more_than_there_may_be(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    api.rows(
        "insert into webhook (organization_id, url, secret) select %s, 'https://x.example/' || n, 's'"
        " from generate_series(1, %s) as n returning id", acme, MOST["webhooks"] - 2,
    )  # fmt: skip
    answers = await gather(
        *(theirs.post("webhooks", {"url": f"https://hooks.example.com/{number}"}) for number in range(6))
    )
    assert sorted(answer.status for answer in answers) == [201, 201, 409, 409, 409, 409]


async def test_who_waits_long_for_another_of_the_organization_is_told_and_holds_nobody_up(
    api: Api, admin_database: str
) -> None:
    acme, globex = [(await api.make("organizations", name=name))["id"] for name in ("Acme", "Globex")]
    theirs, others = [
        api.acting_as((await api.make("admin-tokens", name="t", role="admin", organization_id=one))["token"])
        for one in (acme, globex)
    ]
    with psycopg.connect(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7812, hashint8(%s))", (acme,))
        refused = await theirs.post("tenants", {"organization_id": acme, "name": "Web"})
        assert (refused.status, refused.json["detail"]) == (
            503, "Others of this organization make some as well, and take long: try again in a while.",
        )  # fmt: skip
        await others.make("tenants", organization_id=globex, name="Web")
        await api.make("tenants", organization_id=acme, name="Of staff")
    await theirs.make("tenants", organization_id=acme, name="Web")


async def test_what_is_made_and_ended_in_turns_has_an_end_within_a_day(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    web = (await api.make("tenants", organization_id=acme, name="Web"))["id"]
    token = await api.make("admin-tokens", name="t", role="member", organization_id=acme)
    theirs = api.acting_as(token["token"])
    most = TIMES_A_DAY * MOST["api-keys"]
    api.rows(
        "insert into api_key (tenant_id, name, digest, prefix, revoked_at)"
        " select %s, 'k', lpad(to_hex(n), 64, '0'), 'tk_', now() from generate_series(1, %s) as n"
        " returning id",
        web, most,
    )  # fmt: skip
    refused = await theirs.post("api-keys", {"tenant_id": web, "name": "one"})
    assert refused.status == 409
    assert f"at most {most} api keys within 24 hours" in refused.json["detail"]
    await api.make("api-keys", tenant_id=web, name="of staff")
    api.rows(
        "update api_key set created_at = created_at - interval '25 hours' where id ="
        " (select min(id) from api_key where tenant_id = %s) returning id", web,
    )  # fmt: skip
    assert (await theirs.post("api-keys", {"tenant_id": web, "name": "two"})).status == 409
    api.rows(
        "update api_key set created_at = created_at - interval '25 hours' where id in"
        " (select id from api_key where tenant_id = %s and name = 'k' limit 2) returning id", web,
    )  # fmt: skip
    await theirs.make("api-keys", tenant_id=web, name="three")


async def test_configuration_that_would_make_too_many_is_refused_as_a_whole(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    more: dict[str, list[dict[str, Any]]] = {
        "webhooks": [{"url": f"https://hooks.example.com/{number}"} for number in range(2)],
        "tenants": [{"name": f"t{number}"} for number in range(2)],
    }
    for kind, some in more.items():  # the first of both would fit
        numbers = "generate_series(1, %s) as n returning id"
        api.rows(
            f"insert into {KINDS[kind].table} select %s, {KINDS[kind].rows} from {numbers}",
            acme,
            MOST[kind] - 1,
        )
        digest = (await plan(theirs, {kind: some}))["digest"]
        refused = await theirs.post("configuration", {"objects": {kind: some}, "digest": digest})
        assert refused.status == 409
        field = KINDS[kind].one
        names = {row[field] for row in (await theirs.get(f"{kind}?limit=1000")).json["items"]}
        assert names.isdisjoint(one[field] for one in some)
