"""People who are signed in: as long as their provider vouches for them, and as an organization's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.issuers.sealing import opened
from tests.admin.console.elsewhere import Browser, World, console_of_people


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


async def test_whom_the_provider_knows_no_more_is_out_with_the_next_request(world: World) -> None:
    browser = await renewed(world)
    assert (await browser.person.open("/")).status == 200
    world.provider.is_gone = True
    assert (await browser.person.open("/")).status == 200  # it was asked a moment ago
    make_due(world)
    assert (await browser.person.open("/")).status == 303
    assert world.api.rows("select count(*) from console_session") == [(0,)]
    entries = (await world.api.get("audit-log?resource=console-sessions&action=end")).json["items"]
    assert [entry["person"] for entry in entries] == ["Kim"]


async def test_who_leaves_the_group_they_came_in_by_is_out(world: World) -> None:
    await world.let_in("others")
    browser = await renewed(world)
    world.provider.person |= {"groups": ["others"]}
    assert (await browser.person.open("/")).status == 303
    assert (await Browser.at(world).sign_in()).status == 200


async def test_a_renewal_is_of_the_same_person_or_the_end(world: World) -> None:
    browser = await renewed(world)
    world.provider.person |= {"sub": "u-9"}
    assert (await browser.person.open("/")).status == 303


async def test_a_provider_is_asked_by_one_request_of_many_and_need_not_say_again_who_it_is(
    world: World,
) -> None:
    browser = await renewed(world)
    world.provider.bent = lambda _: None
    for times in (2, 3):  # a code was redeemed before
        answers = await asyncio.gather(*(browser.person.open("/tenants") for _ in range(8)))
        assert {answer.status for answer in answers} == {200}
        assert asked(world) == times
        make_due(world)


async def test_while_the_provider_is_away_a_session_runs_out_by_itself(world: World) -> None:
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


async def test_what_a_provider_is_asked_with_is_of_no_use_to_who_reads_the_database(world: World) -> None:
    browser = await renewed(world)
    [renewal] = world.provider.renewals
    [(sealed, row)] = world.api.rows("select renewal, s::text from console_session as s")
    assert renewal not in row
    assert opened(sealed, browser.session.partition("=")[2]) == renewal
    for cookie in ("", "A" * 43):
        with pytest.raises(ValueError, match="another cookie"):
            opened(sealed, cookie)
    assert "renewal" not in str((await world.api.get("audit-log?resource=console-sessions")).json)


async def test_a_customers_own_person_sees_what_is_theirs_and_looks_after_its_keys(world: World) -> None:
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
    assert "acme&#39;s" in (await person.open("/budgets")).text
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
