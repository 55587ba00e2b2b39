"""Writes as transactions: all of it or none, tried again where that helps, told apart where not."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import TypeAdapter

from gateway.admin.resources.values import Metadata
from gateway.core.accounts.call_facts import CallFacts, write_facts
from persistence.resources import audit
from tests.admin.conftest import Api
from tests.connections import connected


async def test_failed_write_stores_no_row_and_may_be_retried_with_the_same_idempotency_key(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(audit, "record_audit", break_down)
        answer = await api.post("tenants", {"name": "web"}, key="k")
    assert answer.status == 500
    assert answer.json["detail"] == "Something went wrong; the log says what."
    for table in ("tenant", "organization", "control_write", "audit_log", "idempotency_key", "tenant_quota"):
        assert api.rows(f"select count(*) from {table}") == [(0,)], table
    assert (await api.post("tenants", {"name": "web"}, key="k")).status == 201


async def test_every_write_is_audited_and_reads_are_not(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    await api.get(f"tenants/{tenant['id']}")
    await api.patch(f"tenants/{tenant['id']}", {"name": "www"})
    recharged = await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 3})
    await api.delete(f"tenants/{tenant['id']}")
    rows = api.rows(
        "select action, resource, resource_id, before, after, request_id from audit_log order by id"
    )
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (action, "tenants", str(tenant["id"])) for action in ("create", "change", "recharge", "delete")
    ]
    assert rows[0][4] == tenant
    assert (rows[1][3]["name"], rows[1][4]["name"]) == ("web", "www")
    assert rows[2][4] == {"amount": 3}
    assert rows[2][5] == recharged.headers["x-request-id"]


async def test_write_that_deadlocks_is_tried_again(api: Api) -> None:
    plan = await api.make("token-plans", name="p")
    tenant = await api.make("tenants", name="web")
    with connected(api.url) as other:
        # The other transaction holds the plan and will ask for the tenant; ours takes them the other way.
        other.execute("set deadlock_timeout = '10s'")
        other.execute("select 1 from token_plan where id = %s for update", (plan["id"],))
        ours = asyncio.create_task(api.patch(f"tenants/{tenant['id']}", {"plan_id": plan["id"]}))
        await api.until_locked()
        await asyncio.to_thread(
            other.execute, "select 1 from tenant where id = %s for update", (tenant["id"],)
        )
        other.rollback()
        assert (await ours).status == 200
    assert api.rows("select count(*) from control_write where verb = 'plan'") == [(1,)]


async def test_request_without_postgres_is_answered_503(api: Api, postgres: str) -> None:
    await api.get("organizations")
    name = api.url.rsplit("/", 1)[1]
    with connected(postgres, autocommit=True) as admin:
        admin.execute(f"alter database {name} with allow_connections false")
        try:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )
            answer = await api.get("organizations")
        finally:
            admin.execute(f"alter database {name} with allow_connections true")
    assert (answer.status, answer.json["type"]) == (503, "urn:tollkeeper:problem:store_unavailable")
    assert answer.headers["Retry-After"]
    assert (await api.get("organizations")).status == 200


# --- values -----------------------------------------------------------------------------
# What rows hold is told, also where another version stored it.


told = TypeAdapter(Metadata | None).validate_python


def test_call_metadata_stored_in_raw_form_by_an_older_keeper_is_shown_decoded() -> None:
    stored = json.loads(write_facts(CallFacts(model="m", status=200, counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0))))
    assert told(stored) == {
        "model": "m", "streamed": False, "status": 200, "duration_ms": 0, "input": 14, "output": 7,
        "cached": 4, "reasoning": 6, "estimated": False,
    }  # fmt: skip


def test_call_metadata_of_an_unknown_form_is_shown_as_unreadable() -> None:
    assert told([1]) == {"unreadable": True}
    assert (told({"a": [1]}), told(None)) == ({"a": [1]}, None)
