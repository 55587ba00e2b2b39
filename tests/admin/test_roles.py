"""Roles: what each may read and write, of everything the Admin API has; what nobody stated is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from gateway.admin.application import ROOT
from gateway.admin.resources import REPORTS, RESOURCES
from gateway.core.accounts.roles import MEMBER, ROLES, Reach
from tests.admin.conftest import READONLY, Api

# Who may write besides an admin, by hand: b is billing, o is operator. A resource that is added has its line.
WRITERS = {
    "organizations": "bo", "tenants": "o", "users": "o", "api-keys": "om", "admin-tokens": "",
    "token-plans": "bo", "tenant-quotas": "o", "token-ledger": "", "services": "b", "business-models": "b",
    "organization-services": "b", "subscription-plans": "b", "organization-subscriptions": "b",
    "credit-additions": "b", "prices": "b", "budgets": "b", "invoices": "b", "payments": "b",
    "tax-rates": "b", "handovers": "b", "handover-events": "", "usage-feeds": "b",
    "usage-events": "b", "dunning-steps": "", "charges": "",
    "configuration": "bor",
    "events": "b", "amendments": "b", "reratings": "", "credit-transactions": "", "feature-usage": "",
    "calls": "", "webhooks": "", "webhook-deliveries": "", "quarantine": "o", "dead-letters": "o",
    "letters": "o", "programs": "",
    "audit-log": "", "reconciliation": "o", "usage": "", "activity": "", "reports/receivables": "",
    "reports/deferred-revenue": "", "reports/revenue": "", "reports/taxes": "", "reports/ledger": "",
}  # fmt: skip
# Where an operation has others.
OTHERWISE = {"organizations.delete": "o", "services.change": "bo"}
READERS = {"admin-tokens": {"admin", "readonly"}}
SHORT = {"b": "billing", "o": "operator", "m": "member", "r": "readonly"}


@pytest.fixture
async def holders(api: Api) -> dict[str, Api]:
    """Somebody of each role."""
    return {role: await holder_of(api, role) for role in ROLES if role != MEMBER}


async def holder_of(api: Api, role: str, organization_id: int | None = None) -> Api:
    made = await api.make("admin-tokens", name=f"the {role}", role=role, organization_id=organization_id)
    return api.acting_as(made["token"])


async def test_a_member_reads_what_is_their_organizations_and_changes_its_keys_alone(api: Api) -> None:
    own = (await api.make("organizations", name="x"))["id"]
    member = await holder_of(api, MEMBER, own)
    refused = await api.post("admin-tokens", {"name": "of all", "role": MEMBER})
    assert (refused.status, "organization_id" in str(refused.json)) == (422, True)
    wrong = []
    for name, operation, method, path in await operations(api):
        sent = {} if method != "GET" else None
        answer = await member.call(method, path.replace("{id}", "999999"), sent)
        report = REPORTS.get(name) or RESOURCES.get(name)
        is_whole = report is not None and report.access.reach is Reach.WHOLE
        readable = method == "GET" and MEMBER in READERS.get(name, {MEMBER}) and not is_whole
        if (answer.status != 403) != (readable or "m" in OTHERWISE.get(operation, WRITERS[name])):
            wrong.append((operation, answer.status))
    assert wrong == []


async def test_every_operation_is_open_to_those_roles_it_is_stated_for(
    api: Api, holders: dict[str, Api]
) -> None:
    wrong = []
    for name, operation, method, path in await operations(api):
        told = OTHERWISE.get(operation, WRITERS[name])
        may = {"admin", *(SHORT[each] for each in told)}
        if method == "GET":
            may = READERS.get(name, set(ROLES))
        for role, holder in holders.items():
            answer = await holder.call(
                method, path.replace("{id}", "999999"), {} if method != "GET" else None
            )
            if (answer.status != 403) != (role in may):
                wrong.append((role, operation, answer.status))
            elif answer.status == 403:
                assert "admin" in answer.json["detail"], "it says which role may"
                assert answer.json["type"].endswith("read_only" if role == "readonly" else "forbidden")
    assert wrong == []


async def test_every_route_of_the_api_is_an_operation_of_its_document(api: Api) -> None:
    told = {(method, path) for _, _, method, path in await operations(api)}
    served = {
        (route.method, route.resource.canonical.replace("{id:[0-9]+}", "{id}"))
        for route in app_of(api.client).router.routes()
        if route.resource is not None and route.resource.canonical.startswith(ROOT)
    }
    assert {each for each in served if each[0] != "HEAD"} - {("GET", f"{ROOT}/openapi.json")} == told


async def operations(api: Api) -> list[tuple[str, str, str, str]]:
    """Of each operation its resource, its name, its method and its path."""
    document = (await api.get("openapi.json")).json
    return list(_operations(document))


def _operations(document: Any) -> Iterator[tuple[str, str, str, str]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "parameters":
                yield operation["tags"][0], operation["operationId"], method.upper(), path


def app_of(client: TestClient[Any, Any]) -> Any:
    """The application a client talks to."""
    return client.server.app  # type: ignore[attr-defined]  # of a test server


@pytest.mark.parametrize(
    ("role", "sent", "status"),
    [
        ("billing", {"credit_limit": 5}, 200),
        ("billing", {"spend_cap": "9.5"}, 200),
        ("billing", {"limits": {"concurrency": 2}}, 403),
        ("operator", {"limits": {"concurrency": 2}}, 200),
        ("operator", {"credit_limit": 5}, 403),
        ("operator", {"name": "y", "tax_rate": "0"}, 403),
        ("admin", {"credit_limit": 5}, 200),
    ],
)
async def test_money_and_limits_of_an_organization_are_of_different_roles(
    api: Api, holders: dict[str, Api], role: str, sent: dict[str, object], status: int
) -> None:
    made = await api.make("organizations", name="x")
    answer = await holders[role].patch(f"organizations/{made['id']}", sent)
    assert answer.status == status, answer.raw
    if status == 403:
        other = "operator" if role == "billing" else "billing"
        assert answer.json["detail"] == (
            f"The role of this token, {role}, may not set {list(sent)[-1]} of organizations:"
            f" that takes admin or {other}."
        )
        assert (await api.get(f"organizations/{made['id']}")).json == made


async def test_a_service_has_a_price_from_one_role_and_an_upstream_from_another(
    api: Api, holders: dict[str, Api]
) -> None:
    service = {
        "name": "sms", "key": "sms", "credits": 2, "service_type": "Pay-As-You-Go", "business_model_id": 1,
    }  # fmt: skip
    refused = await holders["billing"].post("services", {**service, "upstream": "elsewhere"})
    assert refused.status == 403
    made = await holders["billing"].make("services", **service)
    one = f"services/{made['id']}"
    assert (await holders["operator"].patch(one, {"credits": 0})).status == 403
    assert (await holders["operator"].patch(one, {"paths": ["/v1/*"]})).json["paths"] == ["/v1/*"]
    assert (await holders["billing"].patch(one, {"paths": ["/*"]})).status == 403


async def test_the_audit_log_says_which_role_changed_whose_row(api: Api, holders: dict[str, Api]) -> None:
    tenant = await holders["operator"].make("tenants", name="t")
    await holders["billing"].make("organizations", name="o")
    told = (await api.get("audit-log?resource=tenants")).json["items"]
    assert [(each["role"], each["organization_id"]) for each in told] == [
        ("operator", tenant["organization_id"])
    ]
    [made] = (await api.get("audit-log?role=billing")).json["items"]
    assert (made["resource"], made["organization_id"]) == ("organizations", tenant["organization_id"] + 1)


async def test_the_tokens_of_the_settings_are_what_they_were(api: Api) -> None:
    reader = api.acting_as(READONLY)
    assert (await reader.get("admin-tokens")).status == 200
    refused = await reader.post("tenants", {"name": "x"})
    assert (refused.status, refused.json["type"]) == (403, "urn:tollkeeper:problem:read_only")
