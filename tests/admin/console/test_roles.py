"""The console as each role has it: what is offered can be done, and what cannot be done is not offered."""

from __future__ import annotations

import re

import pytest

from gateway.admin.application import ROOT
from tests.admin import two_organizations
from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.test_roles import THEIRS, app_of

ALWAYS = {"/search", "/sign-out"}
# What writes nothing that is an organization's; a link in a mail, and Stripe by its secret.
NO_WRITES = {"/sign-in", "/sign-out", "/search", "/mail/{token}", "/stripe/events"}
VERBS = {"POST": "create", "PATCH": "change", "DELETE": "delete"}
PAGES = (
    "organizations", "tenants", "users", "api-keys", "services", "token-plans", "budgets", "credit-additions",
    "invoices", "organization-subscriptions", "webhooks",
)  # fmt: skip
_FORM = re.compile(r'<form method="post" action="([^"]+)"')
_NEW = re.compile(r'href="(/[\w-]+/new)')


async def person_of(api: Api, role: str, organization_id: int | None = None) -> Person:
    made = await api.make("admin-tokens", name=role, role=role, organization_id=organization_id)
    person = Person(api.client)
    assert (await person.sign_in(made["token"])).status == 303
    return person


@pytest.mark.parametrize("whose", ["all", "one"])
async def test_no_button_is_dead(api: Api, whose: str) -> None:
    world = await two_organizations.make(api)
    rows = {**world.shared, **world.alphas}
    own = world.alphas["organizations"]
    of = own if whose == "one" else None
    people = {role: await person_of(api, role, of) for role in ("billing", "operator", "readonly")}
    people["member"] = await person_of(api, "member", own)
    offered: dict[str, set[str]] = {}
    for role, person in people.items():
        found = offered[role] = set()
        for name in PAGES:
            for address in (f"/{name}", f"/{name}/{rows[name]}"):
                page = await person.open(address)
                assert page.status == 200, (role, address)
                found |= {*_FORM.findall(page.text), *_NEW.findall(page.text)} - ALWAYS
    for role, person in people.items():
        token = {"form_token": (await person.open("/")).form_token}
        for address in sorted(offered[role]):
            if address.endswith("/new"):
                assert (await person.open(address)).status == 200, (role, address)
            else:
                assert (await person.post(address, token)).status != 403, (role, address)
    assert offered["readonly"] == set()
    assert {address.split("/")[1] for address in offered["member"]} == {"api-keys"}
    assert "/budgets/new" in offered["billing"] - offered["operator"]
    assert ("/credit-additions/new" in offered["billing"]) == (whose == "all")
    assert {"/tenants/new", "/api-keys/new"} <= offered["operator"] - offered["billing"]
    assert ("/services/new" in offered["billing"]) == (whose == "all")
    assert "/webhooks/new" not in offered["billing"] | offered["operator"]


async def test_every_route_that_writes_is_of_a_class_and_keeps_to_it(api: Api) -> None:
    """Those of the API and of the console, asked by an organization's own administrator."""
    own = (await api.make("organizations", name="x"))["id"]
    token = (await api.make("admin-tokens", name="t", role="admin", organization_id=own))["token"]
    admin, person = api.acting_as(token), Person(api.client)
    await person.sign_in(token)
    form = {"form_token": (await person.open("/")).form_token}
    wrong, seen = [], set[str]()
    for route in app_of(api.client).router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if route.method in {"GET", "HEAD"} or path in NO_WRITES:
            continue
        address = re.sub(r"\{id[^}]*\}+", "999999", path)
        in_api = address.startswith(ROOT)
        name, _, verb = address.removeprefix(ROOT).strip("/").replace("/999999", "").partition("/")
        verb = VERBS.get(verb or route.method, verb)
        theirs = verb in THEIRS.get(name, "").split() or name == "configuration"
        answer = await (admin.call(route.method, address, {}) if in_api else person.post(address, form))
        if (answer.status == 403) == theirs:
            wrong.append((route.method, path, answer.status))
        seen.add(name)
    assert wrong == []
    assert {"invoices", "payments", "events", "letters", "configuration", "credit-additions"} <= seen


async def test_a_form_asks_for_what_its_role_may_set(api: Api) -> None:
    made = await api.make("organizations", name="x", credit_limit=5)
    one = f"/organizations/{made['id']}"
    operator, billing = await person_of(api, "operator"), await person_of(api, "billing")
    forms = {who: (await person.open(one)).text for who, person in (("o", operator), ("b", billing))}
    assert 'name="credit_limit"' in forms["b"]
    assert 'name="credit_limit"' not in forms["o"]
    assert 'name="limits.concurrency"' in forms["o"]
    assert 'name="limits.concurrency"' not in forms["b"]
    assert (await operator.fill(one, f"{one}/change", name="y")).status == 303
    assert (await api.get(f"organizations/{made['id']}")).json == {**made, "name": "y"}


async def test_the_menu_has_what_may_be_read(api: Api) -> None:
    made = await api.make("organizations", name="x")
    everybody, billing = await person_of(api, "admin"), await person_of(api, "billing")
    own = await person_of(api, "admin", made["id"])
    assert 'href="/admin-tokens"' in (await everybody.open("/")).text
    assert 'href="/admin-tokens"' not in (await billing.open("/")).text
    assert (await billing.open("/admin-tokens")).status == 403
    page = (await own.open("/")).text
    assert 'href="/reconciliation"' not in page
    assert "/live/history" not in page
    assert f'href="/organizations/{made["id"]}"' in page
    for address in ("/live", "/live/history", "/reconciliation"):
        assert (await own.open(address)).status == 403, address
