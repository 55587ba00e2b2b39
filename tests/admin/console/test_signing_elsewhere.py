"""Signing in at a provider of identities: who is let in, as whom, and what nobody can make of the way."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Callable
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from gateway.admin.console.sign_in import PendingSignIn, read_begun
from gateway.core.accounts.definitions import OrganizationDefinition
from gateway.core.accounts.groups import Groups
from gateway.core.credentials import Peppers
from gateway.core.issuers import SignIn
from gateway.core.model import Caller
from gateway.issuers.sign_in import HINT_BYTES_MAX, SignIns
from persistence import engine as engines
from persistence.keeper.definitions import of_accounts
from persistence.resources.sessions import USED_MAX
from tests.admin.conftest import ADMIN, PEPPERS
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
from tests.identity_provider import CLIENT, SECRET
from tests.signing import Json, rsa_key, token


@pytest.fixture
async def world(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        yield made


async def test_person_signed_in_at_an_identity_provider_is_named_in_the_audit_log(world: World) -> None:
    made = await world.let_in()
    assert "token" not in made
    browser = Browser.at(world)
    door = await browser.person.open("/sign-in?next=%2Ftenants%3Fsearch%3Da")
    [address] = re.findall(r'href="(/sign-in/example[^"]*)"', door.text)
    landed = await browser.sign_in(unescape(address))
    # The browser keeps a Strict cookie to itself until a page of ours asks for the next one.
    assert landed.status == 200
    assert '<meta http-equiv="refresh" content="0;url=/tenants?search=a">' in landed.text
    page = await browser.person.open("/tenants?search=a")
    assert (page.status, ">Kim<" in page.text) == (200, True)
    acted = await browser.person.fill("/tenants/new", "/tenants", name="of-kim")
    assert acted.status == 303
    entry = (await world.api.get("audit-log?resource=tenants&action=create")).json["items"][0]
    assert (entry["person"], entry["actor"], entry["token"]) == ("Kim", f"token:{made['id']}", made["name"])
    [begun] = (await world.api.get("audit-log?resource=console-sessions&person=Kim")).json["items"]
    assert {name: begun["after"][name] for name in ("issuer", "identity", "person")} == {
        "issuer": world.provider.url, "identity": "u-1", "person": "Kim",
    }  # fmt: skip
    assert ">Kim<" in (await browser.person.open("/audit-log")).text


async def test_sign_in_and_session_cookies_are_httponly_secure_and_same_site(world: World) -> None:
    await world.let_in()
    person = Person(world.api.client)  # no proxy says so: the console's own address does
    left = await person.open("/sign-in/example")
    signing = left.headers["Set-Cookie"]
    assert signing.startswith("__Host-tollkeeper_signing=")
    for part in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=600"):
        assert part in signing
    back = urlsplit(at_provider(left.headers["Location"]))
    person.cookie = signing.split(";")[0]
    landed = await person.open(f"{back.path}?{back.query}")
    session, gone = sorted(landed.headers.getall("Set-Cookie"))  # type: ignore[attr-defined]  # a multidict
    assert session.startswith("__Host-tollkeeper_session=")
    for part in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/", "Max-Age=3600"):
        assert part in session
    assert gone.startswith('__Host-tollkeeper_signing=""')
    assert landed.headers["Referrer-Policy"] == "no-referrer"
    assert landed.headers["Cache-Control"] == "no-store"


async def test_redirect_to_the_identity_provider_contains_no_secret(world: World) -> None:
    left = await Person(world.api.client).open("/sign-in/example")
    asked = parse_qs(urlsplit(left.headers["Location"]).query)
    assert asked["redirect_uri"] == [f"{CONSOLE}/sign-in/example/back"]
    assert asked["scope"] == ["openid email profile"]
    cookie = left.headers["Set-Cookie"].split(";")[0].partition("=")[2]
    begun = read_begun(cookie, PEPPERS.digests, time.time())
    assert begun is not None
    assert begun.verifier not in left.headers["Location"]
    assert SECRET not in left.headers["Location"]
    assert begun.seed not in left.headers["Location"]


async def test_sign_in_of_a_person_without_access_is_403_and_counted_as_a_failed_attempt(
    world: World,
) -> None:
    browser = Browser.at(world)
    answer = await browser.sign_in()
    assert (answer.status, browser.session) == (403, "")
    assert "You are known as Kim, and nobody has given you access" in answer.text
    assert "staff" not in answer.text
    assert world.api.rows("select count(*) from console_session") == [(0,)]
    assert world.api.failures.counts["token_subject"] == 1


async def test_sign_in_gives_the_role_of_the_first_of_several_groups_that_have_access(world: World) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own = tenant["organization_id"]
    await world.let_in("acme-billing", role="billing", organization_id=own)
    await world.let_in("acme-people", role="readonly", organization_id=own)
    world.provider.person = {"sub": "u-2", "name": "Ada", "groups": ["x", "acme-billing", "acme-people"]}
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    page = await browser.person.open("/invoices")
    assert (page.status, ">billing<" in page.text) == (200, True)
    assert (await browser.person.open(f"/organizations/{own + 1}")).status == 404


async def test_sign_in_with_a_claim_of_a_group_makes_own_keys_of_its_user_members_until_a_sign_in_without(
    world: World, admin_database: str
) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own = tenant["organization_id"]
    group = await world.api.make("groups", organization_id=own, name="g", kind="user", claim="platform")
    await world.let_in("acme-people", role="readonly", organization_id=own)

    async def groups_of(caller: Caller) -> tuple[int, ...]:
        """The groups of a call that names Ada, as gateways are told of them."""
        engine = engines.create(admin_database)
        async with engine.connect() as connection:
            [definition] = (await of_accounts(connection, [f"organization:{own}"]))[f"organization:{own}"]
        await engine.dispose()
        assert isinstance(definition, OrganizationDefinition)
        return Groups(definition.terms.groups).of(caller, "Ada", None)

    for claims, wanted in (["platform"], (group["id"],)), ([], ()), (["platform", "x"], (group["id"],)):
        world.provider.person = {"sub": "u-2", "name": "Ada", "groups": ["acme-people", *claims]}
        before = world.api.rows("select count(*) from control_write")[0][0]
        for _ in range(2):
            assert (await Browser.at(world).sign_in()).status == 200
        assert await groups_of(Caller(own, tenant["id"], 1, 0, user="Ada")) == wanted
        assert await groups_of(Caller(own, tenant["id"], 2, 0)) == ()
        assert world.api.rows("select count(*) from control_write") == [(before + 1,)]


async def test_session_ends_when_access_of_the_group_of_the_person_is_revoked(world: World) -> None:
    made = await world.let_in()
    browser = Browser.at(world)
    await browser.sign_in()
    assert (await browser.person.open("/")).status == 200
    await world.api.post(f"admin-tokens/{made['id']}/revoke")
    assert (await browser.person.open("/")).status == 303
    assert (await Browser.at(world).sign_in()).status == 403
    assert (await world.api.delete(f"admin-tokens/{made['id']}")).status == 204
    await world.let_in()
    assert (await Browser.at(world).sign_in()).status == 200


async def test_sign_in_starts_a_new_session_and_ignores_a_planted_cookie(world: World) -> None:
    await world.let_in()
    browser = Browser.at(world)
    back = await browser.leave()
    planted = "tollkeeper_session=" + "A" * 43
    browser.signing = f"{planted}; {browser.signing}"
    await browser.arrive(back)
    assert browser.session not in {"", planted}
    assert (await browser.person.open("/")).status == 200
    browser.person.cookie = planted
    assert (await browser.person.open("/")).status == 303


async def test_sign_in_callback_is_accepted_once(world: World) -> None:
    await world.let_in()
    browser = Browser.at(world)
    back = await browser.leave()
    assert (await browser.arrive(back)).status == 200
    # With the cookie that a browser has dropped by now; the provider is not even asked.
    again = await browser.arrive(back)
    assert (again.status, "was used before" in again.text, CONSOLE in again.text) == (403, True, True)
    browser.signing = ""
    assert (await browser.arrive(back)).status == 403
    assert world.api.rows("select count(*) from console_session") == [(1,)]
    assert world.held.times == 1


async def test_only_the_first_of_concurrent_callbacks_of_the_same_sign_in_succeeds(world: World) -> None:
    await world.let_in()
    browsers = [Browser.at(world) for _ in range(6)]
    back = await browsers[0].leave()
    for one in browsers:
        one.signing = browsers[0].signing
    answers = await asyncio.gather(*(one.arrive(back) for one in browsers))
    assert sorted(one.status for one in answers) == [200] + [403] * 5
    assert world.held.times == 1
    # What it came to does not matter, and none of it is remembered for longer than it could be used.
    denied = await browsers[0].leave()
    assert (await browsers[0].arrive(changed(denied, code=None, error="access_denied"))).status == 403
    assert "was used before" in (await browsers[0].arrive(denied)).text
    assert world.held.times == 1
    world.api.rows("update used_sign_in set created_at = now() - interval '1 hour' returning state")
    await Browser.at(world).sign_in()
    assert world.api.rows("select count(*) from used_sign_in") == [(1,)]


async def test_number_of_remembered_completed_sign_ins_is_limited(world: World) -> None:
    await world.let_in()
    world.api.rows(
        "insert into used_sign_in (state, created_at) select 's' || n, now() - interval '1 minute'"
        " from generate_series(1, %s) as n returning state", USED_MAX + 50,
    )  # fmt: skip
    browser = Browser.at(world)
    back = await browser.leave()
    assert (await browser.arrive(back)).status == 200
    assert "was used before" in (await browser.arrive(back)).text
    [(many,)] = world.api.rows("select count(*) from used_sign_in")
    assert many <= USED_MAX + 1


async def test_revoked_token_of_the_first_group_refuses_the_person_even_if_a_second_group_has_access(
    world: World,
) -> None:
    first = await world.let_in("first", role="billing")
    await world.let_in("second")
    world.provider.person |= {"groups": ["first", "second"]}
    assert (await Browser.at(world).sign_in()).status == 200
    await world.api.post(f"admin-tokens/{first['id']}/revoke")
    assert (await Browser.at(world).sign_in()).status == 403
    again = await world.let_in("first", name="again", role="billing")
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    assert ">billing<" in (await browser.person.open("/invoices")).text
    await world.api.patch(f"admin-tokens/{again['id']}", {"expires_at": "2020-01-01T00:00:00Z"})
    assert (await Browser.at(world).sign_in()).status == 403
    await world.api.post(f"admin-tokens/{again['id']}/revoke")
    assert (await world.api.delete(f"admin-tokens/{again['id']}")).status == 204
    assert (await Browser.at(world).sign_in()).status == 200


async def test_sign_in_callback_is_refused_in_a_browser_that_did_not_begin_the_sign_in(world: World) -> None:
    await world.let_in()
    theirs, mine = Browser.at(world), Browser.at(world)
    back = await theirs.leave()
    await mine.leave()
    asked = len(world.provider.asked)
    for cookie in ("", mine.signing, "tollkeeper_signing=made.up", theirs.signing[:-1] + "x"):
        mine.signing = cookie
        answer = await mine.arrive(back)
        assert (answer.status, "was not begun in this browser" in answer.text) == (403, True)
        assert (CONSOLE in answer.text, mine.session) == (True, "")
    for state in (None, "", "x", "ü" * 43):
        assert (await theirs.arrive(changed(back, state=state))).status == 403
    assert (await theirs.arrive(changed(back) + "&state=x")).status == 403
    assert len(world.provider.asked) == asked  # nobody was asked for any of these
    assert (await theirs.arrive(back)).status == 200


async def test_pending_sign_in_expires_after_ten_minutes_and_is_refused_if_forged(world: World) -> None:
    begun = PendingSignIn.now("example", "/", 1_000.0)
    written = begun.written(PEPPERS.digest)
    assert read_begun(written, PEPPERS.digests, 1_599.0) == begun
    assert read_begun(written, PEPPERS.digests, 1_600.0) is None
    assert read_begun(written, Peppers(b"other").digests, 1_000.0) is None
    assert read_begun(written, Peppers(b"other", (b"pepper",)).digests, 1_000.0) == begun
    text, _, proof = written.partition(".")
    assert b"example" in urlsafe_b64decode(text + "==")
    other = PendingSignIn.now("example", "/", 1_000.0).written(PEPPERS.digest).partition(".")[0]
    assert read_begun(f"{other}.{proof}", PEPPERS.digests, 1_000.0) is None


async def test_sign_in_callback_from_another_identity_provider_is_refused(world: World) -> None:
    """Mix-up: what one provider answered is never sent to another (RFC 9700, 4.4)."""
    await world.let_in()
    browser = Browser.at(world)
    at_other = await browser.leave("/sign-in/other")
    signing = browser.signing
    asked = len(world.provider.asked)
    moved = at_other.replace("/sign-in/other/", "/sign-in/example/")
    assert (await browser.arrive(moved)).status == 403
    known = len(world.other.asked)
    for issuer in (world.other.url, None, "", world.provider.url + "/"):
        back = await browser.leave()
        answer = await browser.arrive(changed(back, iss=issuer))
        assert (answer.status, "of another provider" in answer.text) == (403, True)
    browser.signing = signing
    assert (await browser.arrive(changed(at_other, iss=world.provider.url))).status == 403
    assert [path for path in world.provider.asked[asked:] if path == "/token"] == []
    assert "/token" not in world.other.asked[known:]


async def test_sign_in_callback_without_issuer_is_accepted_if_the_provider_never_sends_an_issuer(
    world: World,
) -> None:
    await world.let_in()
    world.provider.names_itself = False
    world.provider.sends_post = True
    assert (await Browser.at(world).sign_in()).status == 200


def without(name: str) -> Callable[[Json], Json]:
    return lambda claims: {key: value for key, value in claims.items() if key != name}


def with_(**more: object) -> Callable[[Json], Json]:
    return lambda claims: claims | more


# What this console asks for; the rules of all tokens are in tests/core/test_issuer_claims.py.
BENT: list[tuple[Callable[[Json], Json | None], str]] = [
    (with_(nonce="of-another-sign-in"), "of another sign-in"), (without("nonce"), "of another sign-in"),
    (with_(aud="somebody-else"), "not meant for this gateway"),
    (with_(aud=[CLIENT, "somebody-else"]), "made for somebody else"),
    (with_(iss="https://evil.example"), "of another provider"), (with_(exp=1), "has expired"),
    (without("name"), "must be one printable text"), (lambda _: None, "malformed"),
]  # fmt: skip


async def test_id_token_with_wrong_or_missing_claims_is_refused(world: World) -> None:
    await world.let_in()
    for bent, why in BENT:
        world.provider.bent = bent
        browser = Browser.at(world)
        answer = await browser.sign_in()
        assert (answer.status, browser.session) == (403, "")
        assert why in unescape(answer.text)
        assert world.said[-1]["event"] == "sign_in_failed"


async def test_an_id_token_that_the_provider_did_not_sign_is_refused(world: World) -> None:
    await world.let_in()
    signed: list[Callable[[Json], bytes]] = [
        lambda claims: token(claims, key=rsa_key(1)),
        lambda claims: token(claims, algorithm="HS256", key=SECRET.encode()),
        lambda claims: token(claims, key=rsa_key(), alg="none"),
    ]
    for signs in signed:
        world.provider.signs = signs
        browser = Browser.at(world)
        assert ((await browser.sign_in()).status, browser.session) == (403, "")
    assert world.api.rows("select count(*) from console_session") == [(0,)]


async def test_sign_in_through_a_provider_redirects_only_to_console_pages(world: World) -> None:
    await world.let_in()
    for wanted in ("//evil.example", "https://evil.example", "/\\evil.example", "/%09/evil.example", "x"):
        landed = await Browser.at(world).sign_in(f"/sign-in/example?next={wanted}")
        assert 'content="0;url=/">' in landed.text
    odd = '/tenants?search="><script>;url=//evil.example'
    landed = await Browser.at(world).sign_in("/sign-in/example?" + urlencode({"next": odd}))
    [goes] = re.findall(r'http-equiv="refresh" content="([^"]*)"', landed.text)
    assert unescape(goes) == f"0;url={odd}"
    assert "<script>;" not in landed.text


async def test_failed_provider_sign_in_shows_the_error_code_but_not_the_description(world: World) -> None:
    browser = Browser.at(world)
    back = changed(await browser.leave(), code=None, error="access_denied", error_description="<b>call me")
    answer = await browser.arrive(back)
    assert (answer.status, "access_denied" in answer.text, "call me" in answer.text) == (403, True, False)
    answer = await browser.arrive(changed(await browser.leave(), error="<b>"))
    assert "The provider has not signed you in." in answer.text
    answer = await browser.arrive(changed(await browser.leave(), code=None))
    assert "The provider has sent no code." in answer.text


async def test_sign_in_is_503_while_the_identity_provider_is_away_and_admin_tokens_still_sign_in(
    world: World,
) -> None:
    browser = Browser.at(world)
    back = await browser.leave()
    world.provider.is_away = world.other.is_away = True
    answer = await browser.arrive(back)
    assert (answer.status, "does not answer" in answer.text) == (503, True)
    assert (await browser.person.open("/sign-in/other")).status == 503
    assert world.said[-1]["event"] == "issuer_unread"
    assert (await browser.person.sign_in(ADMIN)).status == 303


async def test_sign_in_with_a_wrong_or_missing_client_secret_fails_at_the_identity_provider(
    world: World, tmp_path: Any
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    provider = configured("example", world.provider, client_secret="", client_secret_file=str(secret))
    said: list[str] = []
    sign_ins = SignIns(
        SignIn(CONSOLE, (provider,)), time.monotonic, time.time, lambda _, **more: said.append(str(more))
    )
    asked = {"state": "s", "nonce": "n", "challenge": "c"}
    redeemed = {"code": "c", "issuer": world.provider.url, "verifier": "v", "nonce": "n", "address": ""}
    assert "client_id=console" in await sign_ins.address("example", **asked)
    with pytest.raises(Exception, match="invalid_client"):
        await sign_ins.redeem("example", **redeemed)
    secret.write_text(SECRET + "\n")  # it is read each time
    with pytest.raises(Exception, match="invalid_grant"):
        await sign_ins.redeem("example", **redeemed)
    secret.unlink()
    with pytest.raises(Exception, match="does not answer"):
        await sign_ins.redeem("example", **redeemed)
    assert "cannot be read" in said[-1]


async def test_head_request_to_start_or_finish_a_sign_in_is_405(world: World) -> None:
    await world.let_in()
    browser = Browser.at(world)
    assert (await browser.person.send("HEAD", "/sign-in/example")).status == 405
    back = urlsplit(await browser.leave())
    browser.person.cookie = browser.signing
    assert (await browser.person.send("HEAD", f"{back.path}?{back.query}")).status == 405
    assert (await browser.person.open("/sign-in/nobody")).status == 404


async def test_organization_admin_may_not_give_access_to_a_group_of_an_identity_provider(
    world: World,
) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own = tenant["organization_id"]
    token_ = await world.api.make("admin-tokens", name="own", role="admin", organization_id=own)
    theirs = world.api.acting_as(token_["token"])
    named = {"name": "p", "role": "admin", "issuer": world.provider.url, "subject": "staff"}
    refused = await theirs.post("admin-tokens", named)
    assert (refused.status, "of all organizations" in str(refused.json)) == (403, True)
    await world.let_in()
    assert (await world.api.post("admin-tokens", named)).status == 409
    for wrong in ({"issuer": world.provider.url}, {"subject": "staff"}):
        assert (await world.api.post("admin-tokens", {"name": "p", "role": "admin"} | wrong)).status == 422


async def test_audit_log_filters_do_not_let_an_organization_identify_staff(world: World) -> None:
    tenant = await world.api.make("tenants", name="acme")
    own, staff = tenant["organization_id"], await world.let_in()
    browser = Browser.at(world)
    await browser.sign_in()
    one = f"/tenants/{tenant['id']}"
    page = await browser.person.open(one)
    await browser.person.post(f"{one}/change", [*page.fields(f"{one}/change"), ("name", "b")])
    token_ = await world.api.make("admin-tokens", name="own", role="admin", organization_id=own)
    theirs = world.api.acting_as(token_["token"])
    assert (await theirs.patch(f"tenants/{tenant['id']}", {"name": "c"})).status == 200
    for api, by, found in (
        (world.api, "person=Kim", 1),
        (world.api, f"actor=token:{staff['id']}", 1),
        (world.api, f"issuer={world.provider.url}&identity=u-1", 1),
        (theirs, "person=Kim", 0),
        (theirs, f"issuer={world.provider.url}", 0),
        (theirs, "identity=u-1", 0),
        (theirs, f"admin_token_id={staff['id']}", 0),
        (theirs, f"actor=token:{staff['id']}", 0),
        (theirs, "actor=builtin:admin", 0),
        (theirs, f"admin_token_id={token_['id']}", 1),
        (theirs, f"actor=token:{token_['id']}", 1),
    ):
        entries = (await api.get(f"audit-log?resource=tenants&action=change&{by}")).json["items"]
        assert len(entries) == found, by


# --- signing out ------------------------------------------------------------------------
# Signing out: here, then at the provider of identities.


HERE, THERE = "/sign-in?done=signed-out", "/sign-in?done=signed-out-there"
OUT = "/sign-out/example"
SESSIONS = "select count(*) from console_session"


@pytest.fixture
async def house(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        made.provider.out = f"{CONSOLE}{OUT}/back"
        yield made


async def signed_in(house: World, **person: str) -> Browser:
    house.provider.person |= person
    browser = Browser.at(house)
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


async def test_sign_out_ends_the_console_session_before_redirecting_to_the_identity_provider(
    house: World,
) -> None:
    await house.let_in()
    browser = await signed_in(house)
    left = await sign_out(browser)
    assert (left.status, house.api.rows(SESSIONS)) == (200, [(0,)])
    assert not await is_inside(browser)
    address = goes_on_to(left)
    assert address.startswith(f"{house.provider.url}/end?tenant=1&")
    asked = {name: value for name, [value] in parse_qs(urlsplit(address).query).items()}
    state = asked.pop("state")
    assert asked == {
        "tenant": "1", "client_id": CLIENT, "id_token_hint": house.provider.given[0],
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
    assert house.provider.ended == [house.provider.given[0]]
    browser.person.cookie = leaving.split(";")[0]
    came = await browser.person.open(back.removeprefix(CONSOLE))
    assert (came.status, came.headers["Location"]) == (303, THERE)
    assert cookies(came)[0].startswith('__Host-tollkeeper_leaving=""')
    assert "You are signed out, here and where you had signed in." in (await browser.person.open(THERE)).text
    entries = (await house.api.get("audit-log?resource=console-sessions&action=end")).json["items"]
    assert [(entry["person"], entry["issuer"]) for entry in entries] == [("Kim", house.provider.url)]


async def test_id_token_appears_in_no_database_row_log_or_console_url(house: World) -> None:
    await house.let_in()
    browser = await signed_in(house)
    [id_token] = house.provider.given
    [(sealed, row)] = house.api.rows("select id_token, s::text from console_session as s")
    assert sealed
    assert id_token not in row
    left = await sign_out(browser)
    assert id_token in left.text  # this page alone has it, and no browser keeps that
    for page in (await browser.person.open(HERE), await browser.person.open("/sign-in")):
        assert id_token not in page.text
    assert id_token not in str((left.headers, house.said))
    assert id_token not in str((await house.api.get("audit-log?limit=100")).json)


async def test_invalid_callback_after_sign_out_ends_no_session(house: World) -> None:
    await house.let_in()
    browser, other = await signed_in(house), await signed_in(house)
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


async def test_forged_sign_out_request_is_403_and_ends_no_session(house: World) -> None:
    await house.let_in()
    browser, other = await signed_in(house), await signed_in(house)
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
    assert house.api.rows(SESSIONS) == [(2,)]


async def test_sign_out_stays_in_the_console_if_the_provider_has_no_sign_out_address(house: World) -> None:
    await house.let_in()
    await house.let_in(name="others", issuer=house.other.url)
    other = Browser.at(house)
    await other.sign_in("/sign-in/other")
    assert is_over_here(await sign_out(other))
    browser, kept = await signed_in(house), await signed_in(house)
    stays = configured("example", house.provider, end_session=False)
    house.sign_ins.renew_providers(SignIn(CONSOLE, (stays,)))
    assert is_over_here(await sign_out(browser))
    again = await signed_in(house)
    assert house.api.rows("select count(id_token) from console_session") == [(1,)]  # of who came before
    house.sign_ins.renew_providers(SignIn(CONSOLE, ()))
    assert [is_over_here(await sign_out(one)) for one in (kept, again)] == [True, True]
    holder = Browser(Person(house.api.client))
    await holder.person.sign_in(ADMIN)
    assert is_over_here(await sign_out(holder))
    assert house.api.rows(SESSIONS) == [(0,)]


async def test_sign_out_omits_an_overlong_id_token_and_sends_the_client_id(
    house: World,
) -> None:
    await house.let_in()
    browser = await signed_in(house, more="x" * HINT_BYTES_MAX)
    asked = parse_qs(urlsplit(goes_on_to(await sign_out(browser))).query)
    assert (asked["client_id"], "id_token_hint" in asked) == ([CLIENT], False)


async def test_sign_out_ignores_an_unsafe_sign_out_address_published_by_the_provider(house: World) -> None:
    await house.let_in()
    for odd in ("http://a.example/", "javascript:alert(1)", "https://a.example/ x", "https://[", 7, None):
        house.provider.published = {"end_session_endpoint": odd}
        house.sign_ins.renew_providers(SignIn(CONSOLE, ()))  # what was read of it is forgotten
        house.sign_ins.renew_providers(SignIn(CONSOLE, (configured("example", house.provider),)))
        assert is_over_here(await sign_out(await signed_in(house))), odd
