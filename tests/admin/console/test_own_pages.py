"""Pages of people who are not staff: each sees what is theirs, and does what is theirs to do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest

from gateway.admin.console.own_pages import snippets
from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import Budget, account_of
from tests.admin.conftest import ADMIN, Api
from tests.admin.console.conftest import Person
from tests.admin.console.usage_rows import NANO, call, used
from tests.admin.test_roles import app_of

BAD = "<script>alert(1)</script>"
# A person who signed in with a key may open these: the way in and out, and links in mails.
BY_KEY = {"/", "/me", "/sign-in", "/sign-out", "/mail/{token}", "/raise/{token}"}
# Those of the key's page, tried one by one; and what programs ask, who are known otherwise.
PROGRAMS = ("/me/", "/admin", "/static", "/livez", "/readyz", "/metrics", "/stripe/events", "/v1/")


@dataclass
class Team:
    """One organization with two tenants; of ours two users, with a key each, and a call by each."""

    api: Api
    organization: int
    tenant: int
    users: dict[str, int]
    keys: dict[str, dict[str, Any]]
    budgets: dict[str, int]

    async def person(self, role: str = "member", user: str = "") -> Person:
        who = {"user_id": self.users[user]} if user else {}
        made = await self.api.make("admin-tokens", name=role, role=role, tenant_id=self.tenant, **who)
        return await signed_in(self.api, made["token"])

    async def holder(self, name: str = "ann") -> Person:
        return await signed_in(self.api, self.keys[name]["key"])


async def signed_in(api: Api, secret: str) -> Person:
    person = Person(api.client)
    assert (await person.sign_in(secret)).status == 303
    return person


@pytest.fixture
async def team(api: Api) -> Team:
    organization = (await api.make("organizations", name="acme"))["id"]
    tenants = [
        (await api.make("tenants", name=name, organization_id=organization))["id"]
        for name in ("search", "secret-tenant")
    ]
    users = {
        name: (await api.make("users", external_id=name, organization_id=organization))["id"]
        for name in ("ann", "bob")
    }
    keys = {
        name: await api.make("api-keys", tenant_id=tenants[0], name=f"{name}'s {BAD}", user=name)
        for name in users
    }
    keys["other"] = await api.make("api-keys", tenant_id=tenants[1], name="secret-key")
    for number, (name, key) in enumerate(keys.items()):
        tenant, user = key["tenant_id"], users.get(name, 0)
        model = f"gpt-{name}"
        call(
            api, str(UUID(int=number + 1)), organization=organization, tenant=tenant, api_key_id=key["id"],
            user_id=user or None, model=model, status=429 if name == "ann" else 200,
            reason="budget_exceeded" if name == "ann" else None,
        )  # fmt: skip
        used(
            api, datetime.now(UTC), (number + 1) * NANO, organization=organization, tenant=tenant,
            key=key["id"], user=user, model=model,
        )  # fmt: skip
    day = {"organization_id": organization, "unit": "money", "interval": "day"}
    budgets = {
        name: (await api.make("budgets", name=name, **day, **more))["id"]
        for name, more in {
            f"each {BAD}": {"amount": "20", "each": "user"},
            "the team": {"amount": "50", "tenant_id": tenants[0]},
            "bob alone": {"amount": "5", "user": "bob"},
            "secret-budget": {"amount": "7", "tenant_id": tenants[1]},
        }.items()
    }
    return Team(api, organization, tenants[0], users, keys, budgets)


async def test_me_page_shows_a_user_only_the_keys_calls_and_budgets_of_that_user(team: Team) -> None:
    for person in (await team.person(user="ann"), await team.holder("ann")):
        assert (await person.open("/")).headers["Location"] == "/me"
        page = await person.open("/me")
        text = unescape(page.text)
        assert page.status == 200
        assert "ann's" in text
        assert "budget exceeded" in text
        assert "gpt-ann" in text
        for name in ("bob", "secret", "gpt-other"):
            assert name not in text.replace("bob alone", ""), name
        assert ("the team" in text, "bob alone" in text) == (True, False)
        assert "$20.00" in text
        assert "each user: ann" in text
        assert "$1.00" in text.partition("Left of each budget")[0]
        assert BAD not in page.text


async def test_me_page_shows_budgets_of_groups_that_the_user_is_in(team: Team) -> None:
    for name, kind, more in (
        ("mine", "user", {"members": ["ann"]}),
        ("theirs", "user", {"members": ["bob"]}),
        ("our tenant", "tenant", {"members": [team.tenant]}),
        ("our keys", "api_key", {"members": [team.keys["ann"]["id"]]}),
        ("their keys", "api_key", {"members": [team.keys["bob"]["id"]]}),
        ("by claim", "user", {"claim": "engineers"}),
        ("other claim", "user", {"claim": "sales"}),
        ("projects", "project", {"members": [7]}),
    ):
        group = await team.api.make("groups", organization_id=team.organization, name=name, kind=kind, **more)
        await team.api.make(
            "budgets", organization_id=team.organization, name=f"pool {name}", unit="money", amount="90",
            window="rolling", length="5h", group_id=group["id"],
        )  # fmt: skip
    team.api.rows(
        "insert into signed_in_user values (%s, 'ann', '[\"engineers\"]') returning name", team.organization
    )
    page = unescape((await (await team.person(user="ann")).open("/me")).text)
    shown = set(re.findall(r'title="pool ([^"]+)"', page))
    assert shown == {"mine", "our tenant", "our keys", "by claim", "projects"}
    assert page.count("in any 5 hours") == len(shown)


async def test_me_page_says_how_much_steps_saved_a_user_by_model(team: Team) -> None:
    for number, (name, saved) in enumerate((("ann", 41_200_000_000), ("bob", 7_000_000_000), ("ann", 0))):
        call(
            team.api, str(UUID(int=100 + number)), organization=team.organization, tenant=team.tenant,
            api_key_id=team.keys[name]["id"], user_id=team.users[name], model=f"sonnet-{number}", currency="USD",
            model_asked="opus", substituted_by='{"id": 1, "name": "team"}', saved=saved,
        )  # fmt: skip
    page = unescape((await (await team.person(user="ann")).open("/me")).text)
    assert re.findall(r"saved (.*?)\.</p>", page) == ["$41.20 by sonnet-0 for opus (1 request)"]
    lead = await signed_in(team.api, ADMIN)
    explorer = unescape((await lead.open("/usage")).text)
    assert re.findall(r"saved (.*?)\.</p>", explorer) == [
        "$41.20 by sonnet-0 for opus (1 request)", "$7.00 by sonnet-1 for opus (1 request)",
    ]  # fmt: skip


async def test_budget_page_says_how_much_its_own_steps_saved_by_model(team: Team) -> None:
    terms = {
        "organization_id": team.organization, "unit": "money", "amount": "90", "interval": "month",
        "steps": [{"at": 0.5, "models": {"opus": "sonnet"}}],
    }  # fmt: skip
    await team.api.make(
        "prices", model="sonnet", currency="USD", input="3", effective_from="2026-01-01T00:00:00Z"
    )
    own, other = [(await team.api.make("budgets", name=name, **terms))["id"] for name in ("own", "other")]
    for number, (budget, saved) in enumerate(((own, 41_200_000_000), (other, 7_000_000_000))):
        call(
            team.api, str(UUID(int=200 + number)), organization=team.organization, tenant=team.tenant,
            model="sonnet", currency="USD", model_asked="opus",
            substituted_by=json.dumps({"id": budget, "name": "as it was then"}), saved=saved,
        )  # fmt: skip
    page = unescape((await (await signed_in(team.api, ADMIN)).open(f"/budgets/{own}")).text)
    assert re.findall(r">([^>]* saved .*?)\.</p>", page) == [
        "In 30 days, steps of this budget saved $41.20 by sonnet for opus (1 request)"
    ]


async def test_me_page_of_a_readonly_token_without_a_user_shows_the_team_without_forms(team: Team) -> None:
    page = unescape((await (await team.person("readonly")).open("/me")).text)
    assert ("ann's" in page, "bob's" in page, "secret" in page) == (True, True, False)
    assert 'action="/me/' not in page
    reader = await team.person("readonly")
    form = {"form_token": (await reader.open("/me")).form_token, "amount": "60", "reason": "x"}
    key, budget = team.keys["ann"]["id"], team.budgets["the team"]
    for address in (f"/me/keys/{key}/rotate", f"/me/budgets/{budget}/ask"):
        assert (await reader.post(address, form)).status == 403, address


async def test_person_signed_in_by_api_key_is_refused_every_page_except_me(team: Team) -> None:
    person = await team.holder()
    form = {"form_token": (await person.open("/me")).form_token}
    seen = 0
    for route in app_of(team.api.client).router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if path in BY_KEY or path.startswith(PROGRAMS) or route.method not in {"GET", "POST"}:
            continue
        address = re.sub(r"\{[^}]*\}", "1", path)
        answer = await (person.open(address) if route.method == "GET" else person.post(address, form))
        assert answer.status in {403, 404}, (route.method, path, answer.status)
        assert "secret" not in answer.text
        seen += answer.status == 403
    assert seen > 100
    bearer = team.api.acting_as(team.keys["ann"]["key"])
    assert (await bearer.get("api-keys")).status == 401


async def test_person_signed_in_by_api_key_rotates_only_that_key_and_only_once(team: Team) -> None:
    person, own, others = await team.holder(), team.keys["ann"]["id"], team.keys["bob"]["id"]
    page = await person.open("/me")
    form = {"form_token": page.form_token}
    assert (await person.post(f"/me/keys/{own}/rotate", {})).status == 403
    assert (await person.post(f"/me/keys/{others}/rotate", form)).status == 404
    made = await person.post(f"/me/keys/{own}/rotate", form)
    [new] = re.findall(r'id="secret">(tk_\w+)<', made.text)
    assert made.status == 201
    old = (await team.api.get(f"api-keys/{own}")).json
    assert old["replaced_by_id"] not in {None, own}
    again = await person.post(f"/me/keys/{own}/rotate", form)
    assert (again.status, "stands in its place already" in again.text) == (409, True)
    # Who holds the old key alone does not get the one that follows the new one.
    assert (await person.post(f"/me/keys/{old['replaced_by_id']}/rotate", form)).status == 404
    assert new[:8] in (await (await signed_in(team.api, new)).open("/me")).text
    [entry] = (await team.api.get("audit-log?resource=api-keys&action=rotate")).json["items"]
    assert (entry["actor"], new in str(entry)) == (f"key:{own}", False)


async def test_person_signed_in_by_api_key_may_not_rotate_twice_or_under_a_per_key_budget(team: Team) -> None:
    person, own = await team.holder(), team.keys["ann"]["id"]
    form = {"form_token": (await person.open("/me")).form_token}
    made = await person.post(f"/me/keys/{own}/rotate", form)
    [new] = re.findall(r'id="secret">(tk_\w+)<', made.text)
    next_id = (await team.api.get(f"api-keys/{own}")).json["replaced_by_id"]
    holder = await signed_in(team.api, new)
    form = {"form_token": (await holder.open("/me")).form_token}
    again = await holder.post(f"/me/keys/{next_id}/rotate", form)
    assert (again.status, "works until" in again.text) == (409, True)
    other = await team.holder("bob")
    day = {"unit": "money", "interval": "day", "organization_id": team.organization}
    await team.api.make("budgets", name="of each key", amount="20", each="key", **day)
    form = {"form_token": (await other.open("/me")).form_token}
    refused = await other.post(f"/me/keys/{team.keys['bob']['id']}/rotate", form)
    assert (refused.status, "counts each key by itself" in refused.text) == (409, True)
    # Who manages keys may.
    assert (await team.api.post(f"api-keys/{team.keys['bob']['id']}/rotate", {})).status == 200


async def test_member_may_rotate_only_the_own_api_keys(team: Team) -> None:
    person = await team.person(user="ann")
    form = {"form_token": (await person.open("/me")).form_token}
    made = await person.post(f"/me/keys/{team.keys['ann']['id']}/rotate", form)
    assert (made.status, "tk_" in made.text) == (201, True)
    for name in ("bob", "other"):
        assert (await person.post(f"/me/keys/{team.keys[name]['id']}/rotate", form)).status == 404


async def test_user_may_request_a_raise_only_of_budgets_that_limit_calls_of_that_user(team: Team) -> None:
    asking = {"amount": "80", "reason": f"release {BAD}"}
    for person, scope in ((await team.person(user="ann"), "token:"), (await team.holder(), "key:")):
        budget = team.budgets[f"each {BAD}"]
        form = {"form_token": (await person.open("/me")).form_token, **asking}
        assert (await person.post(f"/me/budgets/{budget}/ask", form)).headers["Location"] == "/me?done=asked"
        [made, *_] = (await team.api.get("raise-requests?order=desc")).json["items"]
        assert (made["amount"], made["status"]) == ("80", "open")
        assert made["requested_by"].startswith(scope)
        page = await person.open("/me?done=asked")
        assert ("release" in page.text, BAD in page.text) == (True, False)
        for name in ("bob alone", "secret-budget"):
            refused = await person.post(f"/me/budgets/{team.budgets[name]}/ask", form)
            assert refused.status == 404, name
        assert 'name="who" value="ann"' in page.text
        assert (await person.post(f"/me/budgets/{budget}/ask", {**form, "who": "bob"})).status == 404
        low = await person.post(f"/me/budgets/{budget}/ask", {**form, "amount": "1", "who": "ann"})
        assert (low.status, "amount" in low.text) == (422, True)
    staff = await signed_in(team.api, ADMIN)
    assert "2 requests for more of a budget" in (await staff.open("/")).text
    assert 'title="2 requests for more of a budget"' in (await staff.open("/waiting")).text
    elsewhere = (await team.api.make("organizations", name="elsewhere"))["id"]
    token = await team.api.make("admin-tokens", name="else", role="operator", organization_id=elsewhere)
    for address in ("/waiting", "/"):
        assert "for more of" not in (await (await signed_in(team.api, token["token"])).open(address)).text
    own = await team.api.make("admin-tokens", name="own", role="admin", organization_id=team.organization)
    assert (
        "2 requests for more of a budget" in (await (await signed_in(team.api, own["token"])).open("/")).text
    )
    assert (await (await team.holder()).open("/waiting")).status == 403


async def test_revoked_api_key_ends_the_console_session_and_may_not_sign_in_again(team: Team) -> None:
    person, key = await team.holder(), team.keys["ann"]
    assert (await team.api.post(f"api-keys/{key['id']}/revoke")).status == 200
    assert (await person.open("/me")).headers["Location"].startswith("/sign-in")
    door = await Person(team.api.client).sign_in(key["key"])
    assert (door.status, "not known" in door.text) == (401, True)


async def test_me_page_is_403_for_staff_without_a_tenant(team: Team) -> None:
    page = await (await signed_in(team.api, ADMIN)).open("/me")
    assert (page.status, "people of one tenant" in page.text) == (403, True)


def test_sample_code_for_each_sdk_compiles_and_contains_the_model_and_the_gateway_address() -> None:
    models = {"openai": "gpt-4o-mini", "anthropic": "claude-x", "google-genai": "gemini-x"}
    found = dict(snippets("https://ai.example", models))
    assert found.keys() == {*models, "curl"}
    for sdk, model in models.items():
        compile(found[sdk], sdk, "exec")
        assert f'"{model}"' in found[sdk]
        assert "https://ai.example" in found[sdk]
    assert snippets("", {}) == []


async def test_team_lead_creates_a_budget_through_the_new_budget_form(team: Team) -> None:
    lead = await team.person("operator")
    [new] = re.findall(r'href="(/budgets/new[^"]*)"', (await lead.open("/team")).text)
    page = await lead.open(unescape(new))
    form = page.text
    assert page.status == 200
    assert (await lead.open(f"/budgets/new?organization_id={team.organization + 1}")).status == 422
    assert ('name="tenant_id" value="search"' in form, 'name="organization_id"' in form) == (True, False)
    typed = {"each": "user", "tenant_id": "search", "amount": "5", "unit": "money", "interval": "day"}
    meant = "Each user of tenant search may use $5.00 a day"
    assert meant in (await lead.open(f"/budgets/meaning?{urlencode(typed)}")).text
    made = await lead.fill(unescape(new), "/budgets", **typed)
    number = made.headers["Location"].split("/")[2].partition("?")[0]
    budget = (await team.api.get(f"budgets/{number}")).json
    assert (budget["name"], budget["organization_id"], budget["each"]) == (meant, team.organization, "user")


async def test_team_lead_sees_the_own_tenant_and_may_approve_raises_of_team_budgets_only(team: Team) -> None:
    lead = await team.person("operator")
    own = await lead.fill(
        "/budgets/new", "/budgets", name="ours", amount="9", unit="money", interval="day",
        organization_id=str(team.organization), tenant_id=str(team.tenant),
    )  # fmt: skip
    [budget] = [int(own.headers["Location"].split("/")[2].partition("?")[0])]
    for each in (budget, team.budgets["the team"]):
        await team.api.make("raise-requests", budget_id=each, amount="90", reason=f"demo {BAD}")
    page = await lead.open("/team")
    text = unescape(page.text)
    assert page.status == 200
    for said in ("By person", "ann", "bob", "$1.00", "$2.00", "ours", "the team", "operator", "gpt-ann"):
        assert said in text, said
    for hidden in ("secret", "gpt-other"):
        assert hidden not in text, hidden
    assert BAD not in page.text
    actions = re.findall(r'action="(/raise-requests/[^"]+)"', page.text)
    assert len(actions) == 2, "of the team's own budget alone"
    answer = await lead.post(actions[0], {"form_token": page.form_token})
    assert (answer.status, actions[0].endswith("approve")) == (303, True)
    assert (await team.api.get(f"budgets/{budget}")).json["raised_to"] == "90"
    for role in ("member", "readonly"):
        assert (await (await team.person(role)).open("/team")).status == 403
    menu = (await (await team.person()).open("/me")).text
    assert ('href="/me"' in menu, 'href="/team"' in menu) == (True, False)


async def test_account_page_shows_plan_use_credits_and_invoices_of_the_customer(team: Team) -> None:
    api, own = team.api, {"organization_id": team.organization}
    plan = await api.make(
        "subscription-plans", name="Gold", monthly_cost="10", annual_cost="100", feature_access=[]
    )
    today = str(datetime.now(UTC).date())
    await api.make("organization-subscriptions", **own, plan_id=plan["id"], start_date=today)
    await api.make("credit-additions", **own, credits_added=1234, unit_cost="0.01")
    invoice = await api.make(
        "invoices", **own, period_start=today, period_end=str(datetime.now(UTC).date() + timedelta(days=2))
    )
    for role in ("admin", "billing", "operator", "member", "readonly"):
        token = await api.make("admin-tokens", name="c", role=role, **own)
        person = await signed_in(api, token["token"])
        page = await person.open("/account")
        assert page.status == 200
        for said in ("Gold", "1,234", "To buy credits", f'href="/invoices/{invoice["id"]}.csv"', "gpt-other"):
            assert said in page.text, (role, said)
        assert 'href="/account"' in page.text
    assert (await (await team.person()).open("/account")).status == 403
    assert (await (await signed_in(api, ADMIN)).open("/account")).status == 403


async def test_call_page_shows_a_user_the_steps_of_own_calls_and_is_404_for_calls_of_others(
    team: Team,
) -> None:
    anns, bobs = (str(UUID(int=number)) for number in (1, 2))
    for person in (await team.person(user="ann"), await team.holder("ann")):
        assert f'href="/me/calls/{anns}"' in (await person.open("/me")).text
        text = unescape((await person.open(f"/me/calls/{anns}")).text)
        assert "A budget's amount is used up." in text
        assert '"the team": 50 of 50' in text
        assert f'"each {BAD}", user ann: 20 of 20' in text
        for name in ("secret", "bob"):
            assert name not in text, name
        for other in (bobs, str(UUID(int=3)), str(UUID(int=9))):
            assert (await person.open(f"/me/calls/{other}")).status == 404


async def test_call_page_links_the_refusing_budget_only_for_people_allowed_to_read_that_budget(
    team: Team,
) -> None:
    secret = team.budgets["secret-budget"]
    team.api.rows(
        "update call set refused_kind = 'budget', refused_by = case when request_id = %s then %s else %s end",
        str(UUID(int=1)), team.budgets["the team"], secret,
    )  # fmt: skip
    rows = {row["model"]: row["id"] for row in (await team.api.get("calls")).json["items"]}
    lead = await team.person("operator")
    page = (await lead.open(f"/calls/{rows['gpt-ann']}")).text
    assert f'href="/budgets/{team.budgets["the team"]}">the team</a>' in page
    assert "It refused this call." in page
    assert f"/budgets/{secret}" not in (await lead.open(f"/calls/{rows['gpt-bob']}")).text


async def test_raise_request_page_shows_used_limit_held_and_the_amount_left_after_the_raise(
    team: Team,
) -> None:
    each = team.budgets[f"each {BAD}"]
    key, now = await team.holder("ann"), int(datetime.now(UTC).timestamp() * 1000)
    form = {"form_token": (await key.open("/me")).form_token, "reason": "more"}
    for amount in ("40", "25"):
        assert (await key.post(f"/me/budgets/{each}/ask", {**form, "amount": amount})).status == 303
    account = account_of(team.organization, Budget(1, "", "money", 1, "day", each="user"), "ann")
    team.api.counters.windows[account] = {each: LiveWindow(each, 37_560_000_000, 1_000_000_000, now)}
    staff = await signed_in(team.api, ADMIN)
    for row, left in zip(
        (await team.api.get("raise-requests")).json["items"],
        ("$1.44", "$0.00: its calls would still be refused"),
        strict=True,
    ):
        text = (await staff.open(f"/raise-requests/{row['id']}")).text.partition('id="figures"')[2]
        assert dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", text.partition("</section>")[0])) == {
            "Whose": "user ann", "Limit": "$20.00", "Used": "$37.56", "Held by calls in flight": "$1.00",
            "Left after the raise": left,
        }  # fmt: skip
