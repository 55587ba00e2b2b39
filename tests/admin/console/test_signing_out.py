"""Signing out: here, then at the provider of identities."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.core.issuers import SignIn
from gateway.issuers.sign_in import HINT_BYTES_MAX
from tests.admin.conftest import ADMIN
from tests.admin.console.conftest import Page, Person
from tests.admin.console.elsewhere import (
    CONSOLE,
    Browser,
    World,
    at_provider,
    changed,
    configured,
    console_of_people,
)
from tests.identity_provider import CLIENT

HERE, THERE = "/sign-in?done=signed-out", "/sign-in?done=signed-out-there"
OUT = "/sign-out/example"
SESSIONS = "select count(*) from console_session"


@pytest.fixture
async def world(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        made.provider.out = f"{CONSOLE}{OUT}/back"
        yield made


async def signed_in(world: World, **person: str) -> Browser:
    world.provider.person |= person
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    return browser


async def sign_out(browser: Browser) -> Page:
    page = await browser.person.open("/")
    return await browser.person.post("/sign-out", {"form_token": page.form_token})


async def is_inside(browser: Browser) -> bool:
    return (await browser.person.open("/")).status == 200


def goes_on_to(page: Page) -> str:
    [goes] = re.findall(r'http-equiv="refresh" content="0;url=([^"]*)"', page.text)
    return unescape(goes)


def cookies(page: Page) -> list[str]:
    return list(page.headers.getall("Set-Cookie", []))  # type: ignore[attr-defined]  # a multidict


def is_over_here(page: Page) -> bool:
    return (page.status, page.headers["Location"]) == (303, HERE)


async def test_who_signs_out_does_so_here_first_and_then_at_the_provider(world: World) -> None:
    await world.let_in()
    browser = await signed_in(world)
    left = await sign_out(browser)
    assert (left.status, world.api.rows(SESSIONS)) == (200, [(0,)])
    assert not await is_inside(browser)
    address = goes_on_to(left)
    assert address.startswith(f"{world.provider.url}/end?tenant=1&")
    asked = {name: value for name, [value] in parse_qs(urlsplit(address).query).items()}
    state = asked.pop("state")
    assert asked == {
        "tenant": "1", "client_id": CLIENT, "id_token_hint": world.provider.given[0],
        "post_logout_redirect_uri": f"{CONSOLE}/sign-out/example/back",
    }  # fmt: skip
    assert left.headers["Referrer-Policy"] == "no-referrer"
    assert left.headers["Cache-Control"] == "no-store"
    leaving, session = sorted(cookies(left))
    assert session.startswith('__Host-tollkeeper_session=""')
    assert leaving.startswith("__Host-tollkeeper_leaving=")
    for part in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=600"):
        assert part in leaving
    assert state not in leaving
    back = at_provider(address)
    assert world.provider.ended == [world.provider.given[0]]
    browser.person.cookie = leaving.split(";")[0]
    came = await browser.person.open(back.removeprefix(CONSOLE))
    assert (came.status, came.headers["Location"]) == (303, THERE)
    assert cookies(came)[0].startswith('__Host-tollkeeper_leaving=""')
    assert "You are signed out, here and where you had signed in." in (await browser.person.open(THERE)).text
    entries = (await world.api.get("audit-log?resource=console-sessions&action=end")).json["items"]
    assert [(entry["person"], entry["issuer"]) for entry in entries] == [("Kim", world.provider.url)]


async def test_the_id_token_is_in_no_row_no_log_and_no_address_of_ours(world: World) -> None:
    await world.let_in()
    browser = await signed_in(world)
    [id_token] = world.provider.given
    [(sealed, row)] = world.api.rows("select id_token, s::text from console_session as s")
    assert sealed
    assert id_token not in row
    left = await sign_out(browser)
    assert id_token in left.text  # this page alone has it, and no browser keeps that
    for page in (await browser.person.open(HERE), await browser.person.open("/sign-in")):
        assert id_token not in page.text
    assert id_token not in str((left.headers, world.said))
    assert id_token not in str((await world.api.get("audit-log?limit=100")).json)


async def test_who_is_sent_to_the_way_back_is_told_nothing_and_loses_nothing(world: World) -> None:
    await world.let_in()
    browser, other = await signed_in(world), await signed_in(world)
    left = await sign_out(browser)
    back = at_provider(goes_on_to(left)).removeprefix(CONSOLE)
    leaving = next(one.split(";")[0] for one in cookies(left) if "leaving" in one)
    moved = back.replace("/example/", "/other/")
    for address, cookie in (
        (back, ""), (back, leaving[:-1] + "x"), (back, "__Host-tollkeeper_leaving=made.up"), (moved, leaving),
        (changed(back, state=None), leaving), (changed(back, state="x"), leaving),
        (changed(back, state="\u00fc" * 43), leaving), (back, other.session),
    ):  # fmt: skip
        browser.person.cookie = cookie
        answer = await browser.person.open(address)
        assert (answer.status, answer.headers["Location"]) == (303, "/sign-in"), (address, cookie)
    assert await is_inside(other)
    browser.person.cookie = leaving
    assert (await browser.person.send("HEAD", back)).status == 405
    assert (await browser.person.send("POST", back)).status == 405
    # What proves a sign-out begins no sign-in.
    browser.signing = leaving.replace("leaving", "signing")
    assert (await browser.arrive(back.replace("/sign-out/", "/sign-in/") + "&code=c")).status == 403


async def test_another_site_signs_nobody_out_and_leads_nobody_away(world: World) -> None:
    await world.let_in()
    browser, other = await signed_in(world), await signed_in(world)
    own, others = [(await one.person.open("/")).form_token for one in (browser, other)]
    forms: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({"form_token": "0" * 64}, {}),
        ({"form_token": others}, {}),
        ({"form_token": own}, {"Origin": "https://evil.example"}),
        ({"form_token": own}, {"Sec-Fetch-Site": "cross-site"}),
    ]
    for sent, headers in forms:
        answer = await browser.person.post("/sign-out", sent, **headers)
        assert (answer.status, "http-equiv" in answer.text, cookies(answer)) == (403, False, [])
    assert (await browser.person.open("/sign-out")).status in {404, 405}
    assert world.api.rows(SESSIONS) == [(2,)]


async def test_where_a_provider_names_no_place_or_is_not_to_be_left_it_ends_here(world: World) -> None:
    await world.let_in()
    await world.let_in(name="others", issuer=world.other.url)
    other = Browser.at(world)
    await other.sign_in("/sign-in/other")
    assert is_over_here(await sign_out(other))
    browser, kept = await signed_in(world), await signed_in(world)
    stays = configured("example", world.provider, end_session=False)
    world.sign_ins.renew_providers(SignIn(CONSOLE, (stays,)))
    assert is_over_here(await sign_out(browser))
    again = await signed_in(world)
    assert world.api.rows("select count(id_token) from console_session") == [(1,)]  # of who came before
    world.sign_ins.renew_providers(SignIn(CONSOLE, ()))
    assert [is_over_here(await sign_out(one)) for one in (kept, again)] == [True, True]
    holder = Browser(Person(world.api.client))
    await holder.person.sign_in(ADMIN)
    assert is_over_here(await sign_out(holder))
    assert world.api.rows(SESSIONS) == [(0,)]


async def test_a_token_too_long_for_an_address_is_left_out_and_the_client_says_who_asks(world: World) -> None:
    await world.let_in()
    browser = await signed_in(world, more="x" * HINT_BYTES_MAX)
    asked = parse_qs(urlsplit(goes_on_to(await sign_out(browser))).query)
    assert (asked["client_id"], "id_token_hint" in asked) == ([CLIENT], False)


async def test_an_address_nobody_may_be_led_to_is_none_and_keeps_nobody_outside(world: World) -> None:
    await world.let_in()
    for odd in ("http://a.example/", "javascript:alert(1)", "https://a.example/ x", "https://[", 7, None):
        world.provider.published = {"end_session_endpoint": odd}
        world.sign_ins.renew_providers(SignIn(CONSOLE, ()))  # what was read of it is forgotten
        world.sign_ins.renew_providers(SignIn(CONSOLE, (configured("example", world.provider),)))
        assert is_over_here(await sign_out(await signed_in(world))), odd
