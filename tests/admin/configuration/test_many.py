"""Many objects are applied with few statements, and come out as if each had been applied alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.budgets import WINDOWS_MAX
from persistence.store import Store
from tests.admin.configuration.world import Objects, apply, plan, refused
from tests.admin.conftest import Api, api_of

# Two statements find or lock, one inserts, one reads again, two are the savepoint's; some kinds look at more.
STATEMENTS_A_KIND_MAX = 9
ONCE_MAX = 30
FEW, SOME = 3, 6
KINDS = ("organizations", "users", "tenants", "api-keys", "organization-services", "budgets", "prices")


def objects_of(mark: str, count: int) -> Objects:
    """So many of each kind that there may be many of, and one plan and one service."""
    names = [f"{mark}-{number}" for number in range(count)]
    return {
        "token-plans": [{"name": mark, "total_amount": 500, "reset_interval": "monthly"}],
        "services": [
            {
                "name": mark, "key": f"s-{mark}", "credits": 2, "service_type": "Pay-As-You-Go",
                "business_model": "Consumption", "paths": [f"/{mark}/*"], "upstream": "u",
            }
        ],
        "organizations": [
            {"name": name, "limits": {"concurrency": 4}, **({"credit_unit_cost": "0.5"} if n == 1 else {})}
            for n, name in enumerate(names)
        ],
        "users": [
            {"organization": name, "external_id": "ada", **({"limits": {"concurrency": 1}} if some else {})}
            for some, name in enumerate(names)
        ],
        "tenants": [
            {"organization": name, "name": "Web", **({"plan": mark} if some else {})}
            for some, name in enumerate(names)
        ],
        "api-keys": [
            {"tenant": {"organization": name, "name": "Web"}, "name": "CI", "models": ["m*"]}
            for name in names
        ],
        "organization-services": [
            {"organization": name, "service": f"s-{mark}", "negotiated_credits": 1} for name in names
        ],
        "budgets": [
            {
                "organization": name, "name": "A day", "unit": "tokens", "amount": 9, "interval": "day",
                **({"tenant": "Web"} if some else {}),
            }
            for some, name in enumerate(names)
        ],
        "prices": [{"model": name, "currency": "USD", "input": "2.5"} for name in names],
    }  # fmt: skip


@pytest.fixture
async def counted(admin_database: str, keeper_database: str) -> AsyncIterator[tuple[Api, list[str]]]:
    """The Admin API, and what it asks of PostgreSQL."""
    statements: list[str] = []

    def store(engine: AsyncEngine, *more: Any, **named: Any) -> Store:
        def note(*asked: Any) -> None:
            statements.append(str(asked[2]))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        return Store(engine, *more, **named)

    async with api_of(admin_database, keeper_database, store=store) as api:
        api.counters.away = True  # pushes are no part of it
        yield api, statements


async def asked_for(api: Api, statements: list[str], objects: Objects, name: str) -> int:
    """How many statements it takes to apply them."""
    planned = await plan(api, objects, name=name)
    statements.clear()
    answer = await api.post("configuration", {"objects": objects, "digest": planned["digest"], "name": name})
    assert answer.json["applied"], answer.raw
    return len(statements)


async def test_as_many_statements_make_a_hundred_objects_as_make_two_hundred(
    counted: tuple[Api, list[str]],
) -> None:
    api, statements = counted
    fewer, more = objects_of("fewer", 15), objects_of("more", 30)
    assert sum(map(len, fewer.values())) > 100
    first = await asked_for(api, statements, fewer, "fewer")
    second = await asked_for(api, statements, more, "more")
    assert first == second <= ONCE_MAX + STATEMENTS_A_KIND_MAX * len(KINDS), Counter(statements)
    statements.clear()
    assert (await plan(api, more, name="more"))["changes"] == []
    assert len(statements) <= ONCE_MAX, "what is there already is compared, and not asked for one by one"


OF_TENANTS = "join tenant as t on t.id = r.tenant_id join organization as o on o.id = t.organization_id"


async def left_of(api: Api, mark: str) -> tuple[list[Any], Counter[str]]:
    """All that came of the objects of a mark, rows and control writes, without their ids."""
    here = f"%{mark}-%"
    tables = (
        ("organization as r", "r.name like %s"),
        ("credit_price as r join organization as o on o.id = r.organization_id", "o.name like %s"),
        ("app_user as r join organization as o on o.id = r.organization_id", "o.name like %s"),
        ("tenant as r join organization as o on o.id = r.organization_id", "o.name like %s"),
        (f"tenant_quota as r {OF_TENANTS}", "o.name like %s"),
        (f"api_key as r {OF_TENANTS}", "o.name like %s"),
        ("organization_service as r join organization as o on o.id = r.organization_id", "o.name like %s"),
        ("budget as r join organization as o on o.id = r.organization_id", "o.name like %s"),
        ("price as r", "r.model like %s"),
        ("applied_row as r join organization as o on (r.resource, r.row_id) = ('organizations', o.id)",
         "o.name like %s"),
    )  # fmt: skip
    found = [
        sorted(str(plain(row, mark)) for (row,) in api.rows(f"select to_jsonb(r) from {each}", here))
        for each in (f"{of} where {where}" for of, where in tables)
    ]
    whose = (
        "select w.verb, w.payload, split_part(w.account, ':', 1), o.name from control_write as w"
        " join organization as o on o.name like %s and (w.account = 'organization:' || o.id or w.account in"
        " (select 'tenant:' || t.id from tenant as t where t.organization_id = o.id) or w.account in"
        " (select 'key:' || k.id from api_key as k join tenant as t on t.id = k.tenant_id"
        "   where t.organization_id = o.id)"
        " or w.account like 'user:%%' and split_part(w.account, ':', 2)::bigint in"
        "   (select t.id from tenant as t where t.organization_id = o.id))"
    )
    writes = Counter(str(plain(row, mark)) for row in api.rows(whose, here))
    return found, writes


def audited(api: Api, mark: str, first: int, last: int) -> list[Any]:
    """What entries of the audit log say, those from one to another, by resource."""
    told = "select actor, role, action, resource, before, after from audit_log where id between %s and %s"
    return [plain(row, mark) for row in api.rows(f"{told} order by resource, id", first, last)]


def plain(value: Any, mark: str) -> Any:
    """What is the same of two rows that were made alike: without ids, moments and secrets."""
    if isinstance(value, dict):
        own = re.compile(r"(^|_)id$|_at$|^(digest|prefix|since|since_ms|effective_from)$")
        return {name: plain(each, mark) for name, each in value.items() if not own.search(name)}
    if isinstance(value, list | tuple):
        return [plain(each, mark) for each in value]
    return value.replace(mark, "MARK") if isinstance(value, str) else value


async def test_what_is_made_together_is_what_is_made_one_by_one(api: Api) -> None:
    api.counters.away = True
    await apply(api, objects_of("together", SOME))
    [(edge,)] = api.rows("select max(id) from audit_log")
    alone = objects_of("alone", SOME)
    for kind in ("token-plans", "services", *KINDS):
        for one in alone[kind]:
            done = await apply(api, {kind: [one]})
            assert [each["change"] for each in done["changes"]] == ["create"]
    (rows, writes), (own_rows, own_writes) = await left_of(api, "together"), await left_of(api, "alone")
    assert [len(some) for some in rows] == [SOME, 1, *[SOME] * 8], "all tables are compared"
    assert rows == own_rows
    # Alone, an organization is told of each of its changes, and together once: of all of them.
    assert writes.keys() == own_writes.keys()
    entries = audited(api, "together", 0, edge)
    assert len(entries) == SOME * len(KINDS) + 2, "one entry a change"
    assert entries == audited(api, "alone", edge + 1, 2 * edge + SOME)


async def test_one_of_many_that_is_refused_is_named_and_nothing_is_applied(api: Api) -> None:
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


async def test_a_deleted_user_comes_back_among_many_that_are_new(api: Api) -> None:
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
