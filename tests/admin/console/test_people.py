"""People who are signed in: as long as their provider vouches for them, and as an organization's own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from gateway.admin.application import ROOT
from gateway.admin.resources.registry import RESOURCES
from gateway.issuers.sign_in import opened
from persistence.resources.sessions import (
    SESSIONS_EACH_MAX,
    SESSIONS_MAX,
    SESSIONS_OF_ORGANIZATION_MAX,
    SESSIONS_OF_STAFF_MAX,
)
from tests.admin import two_organizations
from tests.admin.conftest import ADMIN, Api
from tests.admin.console.conftest import Person
from tests.admin.console.elsewhere import Browser, World, console_of_people
from tests.admin.test_roles import THEIRS, app_of
from tests.waiting import eventually


@pytest.fixture
async def world(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        yield made


async def renewed(world: World) -> Browser:
    """A person whose provider can be asked about them again, and is to be."""
    world.provider.renews = True
    await world.let_in()
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    make_due(world)
    return browser


def make_due(world: World) -> None:
    world.api.rows("update console_session set asked_at = now() - interval '31 seconds'")


def asked(world: World) -> int:
    return world.provider.asked.count("/token")


async def test_session_ends_at_the_next_renewal_after_the_identity_provider_removed_the_person(
    world: World,
) -> None:
    browser = await renewed(world)
    assert (await browser.person.open("/")).status == 200
    world.provider.is_gone = True
    assert (await browser.person.open("/")).status == 200  # it was asked a moment ago
    make_due(world)
    assert (await browser.person.open("/")).status == 303
    assert world.api.rows("select count(*) from console_session") == [(0,)]
    entries = (await world.api.get("audit-log?resource=console-sessions&action=end")).json["items"]
    assert [entry["person"] for entry in entries] == ["Kim"]


async def test_session_ends_when_the_person_leaves_the_group_that_gave_access(world: World) -> None:
    await world.let_in("others")
    browser = await renewed(world)
    world.provider.person |= {"groups": ["others"]}
    assert (await browser.person.open("/")).status == 303
    assert (await Browser.at(world).sign_in()).status == 200


async def test_session_ends_when_the_identity_provider_renews_a_session_for_another_person(
    world: World,
) -> None:
    browser = await renewed(world)
    world.provider.person |= {"sub": "u-9"}
    assert (await browser.person.open("/")).status == 303


async def test_concurrent_requests_of_a_session_ask_the_identity_provider_for_a_single_renewal(
    world: World,
) -> None:
    browser = await renewed(world)
    for times in (2, 3):  # a code was redeemed before
        answers = await asyncio.gather(*(browser.person.open("/tenants") for _ in range(8)))
        assert {answer.status for answer in answers} == {200}
        assert asked(world) == times
        make_due(world)


async def test_session_is_not_extended_by_a_renewal_without_an_id_token(world: World) -> None:
    """Whoever left the group has tokens still; what does not name them says nothing of that."""
    browser = await renewed(world)
    ends = world.api.rows(
        "update console_session set expires_at = now() + interval '9 minutes' returning expires_at"
    )
    world.provider.bent, world.provider.person = lambda _: None, {"sub": "u-1", "name": "Kim", "groups": []}
    for times in (2, 3):  # what was given the last time is asked with the next time
        assert (await browser.person.open("/")).status == 200
        assert asked(world) == times
        make_due(world)
    assert world.api.rows("select expires_at from console_session") == ends
    world.api.rows("update console_session set expires_at = now()")
    assert (await browser.person.open("/")).status == 303


async def test_request_cancelled_during_renewal_still_stores_the_new_renewal_token(world: World) -> None:
    """What is asked with is good once here: the next one is kept, whoever waits for the page."""
    browser = await renewed(world)
    [first] = world.provider.renewals
    world.held.goes_on.clear()
    try:
        leaving = asyncio.ensure_future(browser.person.open("/"))
        await eventually(lambda: world.held.times == 2)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
    finally:
        world.held.goes_on.set()
    sealed = "select renewal from console_session"
    cookie = browser.session.partition("=")[2]
    await eventually(lambda: opened(world.api.rows(sealed)[0][0], cookie) != first)
    make_due(world)
    assert (await browser.person.open("/")).status == 200


async def test_person_opening_too_many_sessions_ends_no_sessions_of_other_people(world: World) -> None:
    await world.let_in()
    other = Browser.at(world)
    await other.sign_in()
    first = Browser.at(world)
    world.provider.person |= {"sub": "u-2", "name": "Ada"}
    await first.sign_in()
    copied = "digest, token_digest, expires_at, issuer, identity, person"
    world.api.rows(
        f"insert into console_session ({copied}) select 'd' || n, token_digest, expires_at, issuer, identity,"
        " person from console_session, generate_series(1, 1100) as n where person = 'Ada'"
    )
    last = Browser.at(world)
    await last.sign_in()
    [(theirs,), (others,)] = world.api.rows(
        "select count(*) from console_session group by person order by 1 desc"
    )
    assert (theirs, others) == (SESSIONS_EACH_MAX, 1)
    assert [(await one.person.open("/")).status for one in (other, first, last)] == [200, 303, 200]


OF_OTHERS = (
    "insert into console_session (digest, token_digest, expires_at, organization_id)"
    " select 'd' || %s || '-' || n, 't' || n, now() + interval '1 hour', %s from generate_series(1, %s) as n"
    " returning id"
)


async def test_organization_opening_too_many_sessions_ends_no_sessions_of_other_organizations(
    world: World,
) -> None:
    """However many tokens it makes, or people its provider names."""
    tenants = [await world.api.make("tenants", name=name) for name in ("acme", "bolt")]
    acme, bolt = (int(one["organization_id"]) for one in tenants)
    people, clerk = Person(world.api.client), Person(world.api.client)
    made = await world.api.make("admin-tokens", name="bolt's", role="readonly", organization_id=bolt)
    assert (await people.sign_in(made["token"])).status == 303
    assert (await clerk.sign_in(ADMIN)).status == 303
    world.api.rows(OF_OTHERS, "acme", acme, SESSIONS_OF_ORGANIZATION_MAX + 900)
    await world.let_in("of-acme", role="member", organization_id=acme)
    world.provider.person |= {"groups": ["of-acme"]}
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    by_owner = "select organization_id, count(*) from console_session group by organization_id"
    assert dict(world.api.rows(by_owner)) == {acme: SESSIONS_OF_ORGANIZATION_MAX, bolt: 1, None: 1}
    for one in (people, clerk, browser.person):
        assert (await one.open("/")).status == 200


async def test_staff_opening_too_many_sessions_end_no_sessions_of_organizations(world: World) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own = {"organization_id": int(tenant["organization_id"])}
    made = await world.api.make("admin-tokens", name="own", role="readonly", **own)
    theirs = Person(world.api.client)
    assert (await theirs.sign_in(made["token"])).status == 303
    world.api.rows(OF_OTHERS, "staff", None, SESSIONS_OF_STAFF_MAX + 10)
    clerk = Person(world.api.client)
    assert (await clerk.sign_in(ADMIN)).status == 303
    counted = "select count(*) from console_session where organization_id is null"
    assert world.api.rows(counted) == [(SESSIONS_OF_STAFF_MAX,)]
    assert [(await one.open("/")).status for one in (theirs, clerk)] == [200, 200]


async def test_new_session_at_the_total_maximum_ends_a_session_of_the_organization_with_most(
    world: World,
) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own = {"organization_id": int(tenant["organization_id"])}
    made = await world.api.make("admin-tokens", name="own", role="readonly", **own)
    for number in range(SESSIONS_MAX // 100 - 1):
        world.api.rows(OF_OTHERS, f"o{number}", 10_000 + number, 100)
    world.api.rows(OF_OTHERS, "most", 9_999, 150)
    theirs = Person(world.api.client)
    assert (await theirs.sign_in(made["token"])).status == 303
    by_owner = "select organization_id, count(*) from console_session group by organization_id"
    counted = dict(world.api.rows(by_owner))
    assert sum(counted.values()) == SESSIONS_MAX
    assert (counted.pop(9_999), counted.pop(own["organization_id"])) == (99, 1)
    assert set(counted.values()) == {100}
    assert (await theirs.open("/")).status == 200


async def both(world: World) -> tuple[Browser, Browser]:
    """Two people whom two providers call alike to the letter, signed in."""
    await world.let_in()
    await world.let_in(name="people of the other", issuer=world.other.url)
    mine, theirs = Browser.at(world), Browser.at(world)
    await mine.sign_in()
    await theirs.sign_in("/sign-in/other")
    return mine, theirs


async def test_audit_log_distinguishes_people_with_the_same_identity_at_two_providers(world: World) -> None:
    for number, browser in enumerate(await both(world)):
        made = await browser.person.fill("/tenants/new", "/tenants", name=f"of-{number}")
        assert made.status == 303
    found = (await world.api.get("audit-log?resource=tenants&action=create&person=Kim")).json["items"]
    assert {(one["after"]["name"], one["issuer"], one["identity"], one["person"]) for one in found} == {
        ("of-0", world.provider.url, "u-1", "Kim"), ("of-1", world.other.url, "u-1", "Kim"),
    }  # fmt: skip
    for number, issuer in enumerate((world.provider.url, world.other.url)):
        for by in (f"issuer={issuer}", f"identity=u-1&issuer={issuer}", f"person=Kim&issuer={issuer}"):
            [own] = (await world.api.get(f"audit-log?resource=tenants&action=create&{by}")).json["items"]
            assert own["after"]["name"] == f"of-{number}"
    page = await browser.person.open("/audit-log?resource=tenants")
    assert all(f">{one.url}<" in page.text for one in (world.provider, world.other))


async def test_session_limit_counts_the_same_identity_at_two_providers_as_two_people(world: World) -> None:
    mine, theirs = await both(world)
    copied = "digest, token_digest, expires_at, issuer, identity, person"
    world.api.rows(
        f"insert into console_session ({copied}) select 'd' || n, token_digest, expires_at, issuer, identity,"
        f" person from console_session, generate_series(1, 50) as n where issuer = '{world.other.url}'"
    )
    await Browser.at(world).sign_in("/sign-in/other")
    by_issuer = "select issuer, count(*) from console_session group by issuer"
    assert dict(world.api.rows(by_issuer)) == {world.provider.url: 1, world.other.url: SESSIONS_EACH_MAX}
    assert [(await one.person.open("/")).status for one in (mine, theirs)] == [200, 303]


async def test_session_limit_of_a_person_covers_sessions_opened_through_any_group(world: World) -> None:
    await world.let_in()
    browser = Browser.at(world)
    await browser.sign_in()
    copied = "digest, token_digest, expires_at, issuer, identity, person"
    world.api.rows(
        f"insert into console_session ({copied}) select 'd' || n, 'another', expires_at, issuer, identity,"
        " person from console_session, generate_series(1, 50) as n"
    )
    await Browser.at(world).sign_in()
    assert world.api.rows("select count(*) from console_session") == [(SESSIONS_EACH_MAX,)]


async def test_form_submitted_twice_is_done_once_for_each_person_sharing_an_admin_token(world: World) -> None:
    await world.let_in()
    once = "0" * 32
    for number in (1, 2):
        world.provider.person |= {"sub": f"u-{number}"}
        browser = Browser.at(world)
        await browser.sign_in()
        sent = {"form_token": (await browser.person.open("/")).form_token, "once": once}
        sent["name"] = f"twice {number}"
        for _ in range(2):
            assert (await browser.person.post("/tenants", sent)).status == 303
    entries = (await world.api.get("audit-log?resource=tenants&action=create")).json["items"]
    assert sorted(entry["identity"] for entry in entries) == ["u-1", "u-2"]


async def test_old_audit_entry_without_an_issuer_shows_the_issuer_of_the_admin_token(world: World) -> None:
    made = await world.let_in()
    before = "actor, action, resource, admin_token_id, person"
    world.api.rows(
        f"insert into audit_log ({before}) values"
        f" ('token:{made['id']}', 'create', 'plans-of-old', {made['id']}, 'Kim'),"
        f" ('token:{made['id']}', 'change', 'plans-of-old', {made['id']}, null)"
    )
    entries = (await world.api.get("audit-log?resource=plans-of-old")).json["items"]
    named = {entry["action"]: (entry["person"], entry["issuer"], entry["identity"]) for entry in entries}
    assert named == {"create": ("Kim", world.provider.url, None), "change": (None, None, None)}
    for issuer, count in ((world.provider.url, 1), (world.other.url, 0)):
        found = (await world.api.get(f"audit-log?resource=plans-of-old&issuer={issuer}")).json["items"]
        assert len(found) == count


async def test_session_is_not_extended_while_the_identity_provider_is_unreachable(world: World) -> None:
    browser = await renewed(world)
    ends = "select expires_at > now() + interval '59 minutes', expires_at > now() + interval '61 minutes'"
    world.api.rows("update console_session set expires_at = now() + interval '5 minutes'")
    world.provider.is_away = True
    assert (await browser.person.open("/")).status == 200
    assert world.api.rows(f"{ends} from console_session") == [(False, False)]
    world.provider.is_away = False
    make_due(world)
    assert (await browser.person.open("/")).status == 200
    assert world.api.rows(f"{ends} from console_session") == [(True, False)]
    world.api.rows("update console_session set created_at = now() - interval '11 hours 55 minutes'")
    make_due(world)
    assert (await browser.person.open("/")).status == 200
    assert world.api.rows(f"{ends} from console_session") == [(False, False)]


async def test_stored_renewal_token_can_be_decrypted_only_with_the_session_cookie(world: World) -> None:
    browser = await renewed(world)
    [renewal] = world.provider.renewals
    [(sealed, row)] = world.api.rows("select renewal, s::text from console_session as s")
    assert renewal not in row
    assert opened(sealed, browser.session.partition("=")[2]) == renewal
    for cookie in ("", "A" * 43):
        with pytest.raises(ValueError, match="another cookie"):
            opened(sealed, cookie)
    assert "renewal" not in str((await world.api.get("audit-log?resource=console-sessions")).json)


async def test_member_signed_in_by_an_identity_provider_sees_only_the_own_organization(world: World) -> None:
    tenant = await world.api.make("tenants", name="acme")
    other = await world.api.make("tenants", name="bravo")
    own, tenant_id = tenant["organization_id"], tenant["id"]
    budget = {"name": "acme's", "unit": "tokens", "amount": 50, "interval": "day"}
    await world.api.make("budgets", organization_id=own, **budget)
    await world.let_in(role="member", organization_id=own)
    browser = Browser.at(world)
    await browser.sign_in()
    person = browser.person
    for address in ("/", "/usage", "/calls", "/budgets", "/invoices", "/api-keys", f"/tenants/{tenant_id}"):
        page = await person.open(address)
        assert (page.status, "bravo" in page.text) == (200, False), address
    budgets = await person.open("/budgets")
    assert ("acme&#39;s" in budgets.text, 'name="organization_id"' in budgets.text) == (True, False)
    made = await person.fill("/api-keys/new", "/api-keys", tenant_id=str(tenant_id), name="2026")
    assert (made.status, "tk_" in made.text) == (201, True)
    await person.fill("/api-keys/new", "/api-keys", tenant_id=str(tenant_id), name="2027")
    [old, new] = (await world.api.get("api-keys")).json["items"]
    # The earlier key ends by itself, once everybody has the new one.
    one = f"/api-keys/{old['id']}"
    assert (await person.fill(one, f"{one}/change", expires_at="2099-01-01T00:00:00Z")).status == 303
    assert (await world.api.get(f"api-keys/{old['id']}")).json["expires_at"] == "2099-01-01T00:00:00Z"
    assert (await person.fill(one, f"{one}/revoke")).status == 303
    assert (await world.api.get(f"api-keys/{new['id']}")).json["revoked_at"] is None
    token = {"form_token": (await person.open("/")).form_token}
    assert (await person.open(f"/tenants/{other['id']}")).status == 404
    assert (await person.open("/credit-additions/new")).status == 404
    for address, sent in ((f"/tenants/{tenant_id}/recharge", {"amount": "5"}), ("/credit-additions", {})):
        assert (await person.post(address, token | sent)).status == 403
    entries = (await world.api.get("audit-log?resource=api-keys&person=Kim")).json["items"]
    assert sorted(entry["action"] for entry in entries) == ["change", "create", "create", "revoke"]


# --- roles ------------------------------------------------------------------------------
# The console as each role has it: what is offered can be done, and what cannot be done is not offered.


ALWAYS = {"/search", "/sign-out"}
# What writes nothing that is an organization's: questions; a link in a mail, and Stripe by its secret.
QUESTIONS = {f"/{name}/{question.name}" for name, one in RESOURCES.items() for question in one.questions}
NO_WRITES = {
    "/sign-in", "/sign-out", "/search", "/mail/{token}", "/raise/{token}", "/stripe/events",
    *QUESTIONS, *(ROOT + question for question in QUESTIONS),
}  # fmt: skip
OF_VENDORS = "/v1/"  # views of resources: tests/features/vendor_admin
VERBS = {"POST": "create", "PATCH": "change", "DELETE": "delete"}
PART_VERBS = {
    (resource.name, method, f"{part.name}/{{{part.key}}}"): action.name
    for resource in RESOURCES.values()
    for part in resource.parts
    for method, action in part.writes
}
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
async def test_every_form_the_console_offers_to_a_role_is_allowed_for_that_role(api: Api, whose: str) -> None:
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


async def test_organization_admin_is_refused_every_write_not_allowed_to_organizations(api: Api) -> None:
    """Those of the API and of the console, asked by an organization's own administrator."""
    own = (await api.make("organizations", name="x"))["id"]
    token = (await api.make("admin-tokens", name="t", role="admin", organization_id=own))["token"]
    admin, person = api.acting_as(token), Person(api.client)
    await person.sign_in(token)
    form = {"form_token": (await person.open("/")).form_token}
    wrong, seen = [], set[str]()
    for route in app_of(api.client).router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if route.method in {"GET", "HEAD"} or path in NO_WRITES or path.startswith(OF_VENDORS):
            continue
        address = re.sub(r"\{id[^}]*\}+", "999999", path)
        in_api = address.startswith(ROOT)
        name, _, verb = address.removeprefix(ROOT).strip("/").replace("/999999", "").partition("/")
        verb = PART_VERBS.get((name, route.method, verb)) or VERBS.get(verb or route.method, verb)
        theirs = verb in THEIRS.get(name, "").split() or name == "configuration"
        answer = await (admin.call(route.method, address, {}) if in_api else person.post(address, form))
        if (answer.status == 403) == theirs:
            wrong.append((route.method, path, answer.status))
        seen.add(name)
    assert wrong == []
    assert {"invoices", "payments", "events", "letters", "configuration", "credit-additions"} <= seen


async def test_forms_of_an_organization_admin_have_only_fields_that_admin_may_set(api: Api) -> None:
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


async def test_console_menu_links_only_pages_the_role_may_read(api: Api) -> None:
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
