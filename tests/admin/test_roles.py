"""Roles: what each may read and write, of everything the Admin API has; what nobody stated is refused.

Whoever is of one organization never decides what it owes, or whether it is shut out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from gateway.admin.application import ROOT
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.admin.resources.resource import Endpoint, ReportEndpoint, Resource
from gateway.core.accounts.administration import (
    ADMIN,
    BILLING,
    CHANGE,
    CREATE,
    DELETE,
    MEMBER,
    OPERATOR,
    ROLES,
    Actor,
    RowScope,
    refused_write,
    settable,
)
from tests.admin.conftest import READONLY, Api
from tests.in_turn import in_turn
from tests.search import cases
from tests.tree import texts

# Who may write besides an admin, by hand: b is billing, o is operator. A resource that is added has its line.
WRITERS = {
    "organizations": "bo", "tenants": "o", "users": "o", "api-keys": "om", "admin-tokens": "",
    "token-plans": "bo", "tenant-quotas": "o", "token-ledger": "", "services": "b", "business-models": "b",
    "models": "o", "shares": "o", "organization-services": "b", "subscription-plans": "b",
    "organization-subscriptions": "b",
    "credit-additions": "b", "prices": "b", "exchange-rates": "b", "budgets": "b", "groups": "b", "invoices": "b",
    "payments": "b",
    "tax-rates": "b", "accounting-rates": "b", "handovers": "b", "handover-events": "", "usage-feeds": "b",
    "usage-events": "b", "raise-requests": "b", "dunning-steps": "", "charges": "", "note-applications": "",
    "configuration": "bor",
    "events": "b", "amendments": "b", "reratings": "", "credit-transactions": "", "feature-usage": "",
    "calls": "", "jobs": "", "runs": "", "webhooks": "", "webhook-deliveries": "", "quarantine": "o",
    "dead-letters": "o", "letters": "o", "programs": "",
    "audit-log": "", "reconciliation": "o", "counters": "o", "usage": "", "activity": "", "reports/receivables": "",
    "reports/unbilled": "", "reports/balances": "",
    "reports/deferred-revenue": "", "reports/revenue": "", "reports/taxes": "", "reports/ledger": "",
}  # fmt: skip
# Where an operation has others.
OTHERWISE = {"organizations.delete": "o", "services.change": "bo", "raise-requests.create": "bom"}
READERS = {"admin-tokens": {"admin", "readonly"}}
# What an organization's own people decide, by hand, and of these verbs the fields that they do not set.
# All other writes of its rows are ours.
THEIRS = {
    "organizations": "change", "tenants": "create change delete", "users": "create change delete",
    "api-keys": "create change delete rotate revoke", "admin-tokens": "create change delete revoke",
    "budgets": "create change delete raise reset override remove-override set-overrides",
    "groups": "create change delete put-member remove-member",
    "webhooks": "create change delete test",
    "configuration": "apply", "raise-requests": "create delete approve deny", "account": "credits",
}  # fmt: skip
OUR_FIELDS = {
    "organizations": "name currency credit_limit credit_unit_cost auto_top_up spend_cap due_days dunning"
    " tax_rate stripe_customer time_zone services",
    "tenants": "plan_id",
}
OF_ALL = {
    "organizations": "create",
    "admin-tokens": "ours",
    "models": "create change delete",
    "shares": "create change delete",
}
OWNED = {name: one for name, one in {**RESOURCES, **REPORTS}.items() if one.access.reach is RowScope.OWNED}
SHORT = {"b": "billing", "o": "operator", "m": "member", "r": "readonly"}


@pytest.fixture
async def holders(api: Api) -> dict[str, Api]:
    """Somebody of each role."""
    return {role: await holder_of(api, role) for role in ROLES if role != MEMBER}


async def holder_of(api: Api, role: str, organization_id: int | None = None) -> Api:
    made = await api.make("admin-tokens", name=f"the {role}", role=role, organization_id=organization_id)
    return api.acting_as(made["token"])


def verbs_of(one: Endpoint) -> set[str]:
    """What may be done to a resource or a report, as its routes are made."""
    if isinstance(one, ReportEndpoint):
        return {one.run.name} if one.run is not None else set()
    assert isinstance(one, Resource)
    found = {action.name for action in one.actions}
    found |= {action.name for part in one.parts for _, action in part.writes}
    found |= {*one.declared.actions.values()} if one.declared is not None else set()
    found |= {CREATE} if one.create is not None or one.batch is not None else set()
    found |= {one.patch_verb} if one.patch is not None else set()
    return found | ({DELETE} if one.deletable else set())


def fields_of(one: Endpoint, verb: str) -> set[str]:
    if not isinstance(one, Resource) or verb not in {CREATE, CHANGE}:
        return set()
    model = one.create if verb == CREATE else one.patch
    return set(model.model_fields) if model is not None else set()


@pytest.mark.parametrize("name", OWNED)
def test_every_write_of_an_organization_resource_is_declared_as_staff_or_organization_write(
    name: str,
) -> None:
    one = OWNED[name]
    to, verbs = one.access, verbs_of(one)
    fields = set().union(*(fields_of(one, verb) for verb in verbs))
    stated = [*to.ours, *to.theirs, *to.of_all]
    assert len(stated) == len(set(stated)), "a write has one class"
    assert verbs <= set(stated), "state in `access` whose it is"
    assert set(stated) <= verbs | fields, "nothing is classed that is not there"
    assert to.theirs == set(THEIRS.get(name, "").split())
    assert to.of_all == set(OF_ALL.get(name, "").split())
    assert to.ours - verbs == set(OUR_FIELDS.get(name, "").split())


@pytest.mark.parametrize("name", [*RESOURCES, *REPORTS])
def test_organization_token_can_make_staff_writes_only_with_the_ours_flag(name: str) -> None:
    """Each verb and field, by each role, of all organizations, of one, and of one for staff."""
    one = RESOURCES.get(name) or REPORTS[name]
    of_all, ours = OF_ALL.get(name, "").split(), OUR_FIELDS.get(name, "").split()
    for role in ROLES:
        staff = Actor("s", role)
        own, marked = (Actor("o", role, organization_id=7, is_ours=is_ours) for is_ours in (False, True))
        for verb in verbs_of(one):
            may = refused_write(staff, name, one.access, verb) is None
            reaches = name in OWNED and verb not in of_all
            theirs = reaches and verb in THEIRS.get(name, "").split()
            assert (refused_write(marked, name, one.access, verb) is None) == (may and reaches), (role, verb)
            assert (refused_write(own, name, one.access, verb) is None) == (may and theirs), (role, verb)
            for sent in fields_of(one, verb):
                sets = refused_write(staff, name, one.access, verb, [sent]) is None
                for actor, wanted in (
                    (marked, sets and reaches and sent not in of_all),
                    (own, sets and theirs and sent not in [*of_all, *ours]),
                ):
                    refused = refused_write(actor, name, one.access, verb, [sent])
                    assert (refused is None) == wanted, (role, verb, sent, refused)
                    if wanted:
                        assert settable(actor, one.access, verb, [sent]) == [sent]


async def test_adding_credits_is_403_for_an_organization_token_unless_staff_set_the_ours_flag(
    api: Api,
) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    own = await holder_of(api, ADMIN, acme)
    made = await api.make("admin-tokens", name="key account", role=ADMIN, organization_id=acme, ours=True)
    ours, token = api.acting_as(made["token"]), f"admin-tokens/{made['id']}"
    credits_ = {"organization_id": acme, "credits_added": 5}
    refused = await own.post("credit-additions", credits_)
    said = f"This token is of organization {acme} alone: it may not create credit-additions, that takes a "
    said += "token of all organizations, or one that staff marked `ours`."
    assert (refused.status, refused.json["detail"]) == (403, said)
    assert (await own.patch(f"organizations/{acme}", {"due_days": 365})).status == 403
    assert (await ours.post("credit-additions", credits_)).status == 201
    assert (await ours.patch(f"organizations/{acme}", {"due_days": 365})).status == 200
    # Neither makes another one, and its own people leave it to staff.
    for who in (own, ours):
        assert (await who.post("admin-tokens", {"name": "x", "role": ADMIN, "ours": True})).status == 403
        assert (await who.patch(token, {"ours": False})).status == 403
        assert (await who.patch(token, {"expires_at": None})).status == 403
    assert (await own.get(token)).json["ours"] is True
    assert (await own.patch(token, {"expires_at": "2027-01-01T00:00:00Z"})).status == 403
    assert (await own.post(f"{token}/revoke")).status == 403
    assert (await own.delete(token)).status == 403
    assert (await api.patch(token, {"ours": False})).json["ours"] is False
    assert (await ours.post("credit-additions", credits_)).status == 403


async def test_organization_blocked_by_staff_can_neither_create_a_tenant_nor_delete_a_blocked_tenant(
    api: Api,
) -> None:
    owner = (await api.make("organizations", name="Acme"))["id"]
    own = await holder_of(api, ADMIN, owner)
    one, two = [(await own.make("tenants", name=name))["id"] for name in ("one", "two")]
    await api.post(f"tenants/{one}/block")
    assert (await own.delete(f"tenants/{one}")).status == 403
    assert (await own.delete(f"tenants/{two}")).status == 204  # which nobody blocked
    new, objects = {"name": "three"}, {"tenants": [{"name": "three"}]}
    assert (await own.post("tenants", new)).json["detail"].startswith("Staff have blocked all tenants")
    assert (await own.post("configuration", {"objects": objects, "trial": True})).status == 403
    await api.make("tenants", name="of staff", organization_id=owner)
    assert (await own.post("tenants", new)).status == 201
    await api.post(f"tenants/{one}/unblock")
    assert (await own.delete(f"tenants/{one}")).status == 204


async def test_member_reads_the_own_organization_and_writes_only_keys_and_raise_requests(api: Api) -> None:
    own = (await api.make("organizations", name="x"))["id"]
    member = await holder_of(api, MEMBER, own)
    refused = await api.post("admin-tokens", {"name": "of all", "role": MEMBER})
    assert (refused.status, "organization_id" in str(refused.json)) == (422, True)
    wrong = []
    for name, operation, method, path in cases(await operations(api)):
        sent = {} if method != "GET" else None
        answer = await member.call(method, path.replace("{id}", "999999"), sent)
        report = REPORTS.get(name) or RESOURCES.get(name)
        is_whole = report is not None and report.access.reach is RowScope.WHOLE
        readable = method == "GET" and MEMBER in READERS.get(name, {MEMBER}) and not is_whole
        if (answer.status != 403) != (readable or "m" in OTHERWISE.get(operation, WRITERS[name])):
            wrong.append((operation, answer.status))
    assert wrong == []


async def test_every_operation_is_open_to_exactly_the_stated_roles(api: Api, holders: dict[str, Api]) -> None:
    wrong = []
    for (name, operation, method, path), role in cases([*product(await operations(api), holders)]):
        told = OTHERWISE.get(operation, WRITERS[name])
        may = {"admin", *(SHORT[each] for each in told)}
        if method == "GET":
            may = READERS.get(name, set(ROLES))
        sent = {} if method != "GET" else None
        answer = await holders[role].call(method, path.replace("{id}", "999999"), sent)
        if (answer.status != 403) != (role in may):
            wrong.append((role, operation, answer.status))
        elif answer.status == 403:
            assert "admin" in answer.json["detail"], "it says which role may"
            assert answer.json["type"].endswith("read_only" if role == "readonly" else "forbidden")
    assert wrong == []


async def test_every_admin_api_route_is_in_the_openapi_document_and_no_other(api: Api) -> None:
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


@in_turn(
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
async def test_billing_role_sets_money_fields_and_operator_role_sets_limits_of_an_organization(
    api: Api, holders: dict[str, Api], role: str, sent: dict[str, object], status: int
) -> None:
    made = await api.make("organizations", name=f"of {role} {sent}")
    answer = await holders[role].patch(f"organizations/{made['id']}", sent)
    assert answer.status == status, answer.raw
    if status == 403:
        other = "operator" if role == "billing" else "billing"
        assert answer.json["detail"] == (
            f"The role of this token, {role}, may not set {list(sent)[-1]} of organizations:"
            f" that takes admin or {other}."
        )
        assert (await api.get(f"organizations/{made['id']}")).json == made


async def test_billing_role_sets_the_price_and_operator_role_sets_the_paths_of_a_service(
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


async def test_audit_log_names_the_role_and_the_organization_of_a_changed_row(
    api: Api, holders: dict[str, Api]
) -> None:
    tenant = await holders["operator"].make("tenants", name="t")
    await holders["billing"].make("organizations", name="o")
    told = (await api.get("audit-log?resource=tenants")).json["items"]
    assert [(each["role"], each["organization_id"]) for each in told] == [
        ("operator", tenant["organization_id"])
    ]
    [made] = (await api.get("audit-log?role=billing")).json["items"]
    assert (made["resource"], made["organization_id"]) == ("organizations", tenant["organization_id"] + 1)


async def test_readonly_token_from_the_settings_can_read_but_not_write(api: Api) -> None:
    reader = api.acting_as(READONLY)
    assert (await reader.get("admin-tokens")).status == 200
    refused = await reader.post("tenants", {"name": "x"})
    assert (refused.status, refused.json["type"]) == (403, "urn:tollkeeper:problem:read_only")


def test_page_about_access_names_the_writers_of_each_resource() -> None:
    """Roles by resource, and the writes of an organization's own people."""
    table = re.findall(
        r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        texts()["docs/access.md"],
        re.MULTILINE,
    )
    shown: dict[str, tuple[set[str], set[str]]] = {}
    for names, *cells, theirs in table:
        roles = {role for role, cell in zip((BILLING, OPERATOR, MEMBER), cells, strict=True) if cell != "–"}
        verbs = set() if theirs == "–" else set(theirs.split(", "))
        shown |= {name.strip("`"): (roles, verbs) for name in names.split(", ")}
    stated = {name: resource.access for name, resource in RESOURCES.items()}
    writers = {
        name: (set(to.write.union(*to.verbs.values())) - {ADMIN}, set(to.theirs))
        for name, to in stated.items()
    }
    assert shown == {name: facts for name, facts in writers.items() if any(facts)}
