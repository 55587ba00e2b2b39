"""Signing in and out: what the cookie is, who is let in, how often one may try."""

from __future__ import annotations

import asyncio

from gateway.admin import credentials
from gateway.core.failures import FREE_MAX
from tests.admin.conftest import ADMIN, Api
from tests.admin.console.conftest import Person
from tests.in_turn import in_turn
from tests.waiting import eventually


async def test_session_cookie_holds_no_token_and_no_stored_digest(nobody: Person, api: Api) -> None:
    answer = await nobody.sign_in(ADMIN)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert part in cookie
    assert "Secure" not in cookie
    assert ADMIN not in cookie
    [(digest, token_digest)] = api.rows("select digest, token_digest from console_session")
    assert digest not in cookie
    assert ADMIN not in token_digest
    assert (await nobody.open("/")).status == 200


async def test_session_cookie_is_marked_secure_behind_tls(nobody: Person) -> None:
    answer = await nobody.post("/sign-in", {"token": ADMIN}, X_Forwarded_Proto="https")
    assert "Secure" in answer.headers["Set-Cookie"]


async def test_console_behind_tls_sets_and_accepts_only_a_host_prefixed_session_cookie(
    nobody: Person, admin: Person
) -> None:
    """`__Host-` cookies have no domain, the path / and TLS, else no browser takes them."""
    for person in (nobody, admin):
        person.headers = {"X-Forwarded-Proto": "https"}
    answer = await nobody.post("/sign-in", {"token": ADMIN})
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-tollkeeper_session=")
    assert "Path=/" in cookie
    assert "Domain" not in cookie
    nobody.cookie = cookie.split(";")[0]
    page = await nobody.open("/")
    assert page.status == 200
    assert (await admin.open("/")).status == 303  # a plain one may be anybody's there
    left = await nobody.post("/sign-out", {"form_token": page.form_token})
    assert left.headers["Set-Cookie"].startswith('__Host-tollkeeper_session=""')
    assert "Secure" in left.headers["Set-Cookie"]


@in_turn("token", ["", "wrong-token-of-nobody", "x" * 600, "\x00", "töken"])
async def test_sign_in_with_an_unknown_token_is_401(nobody: Person, token: str) -> None:
    answer = await nobody.sign_in(token)
    assert (answer.status, nobody.cookie) == (401, "")
    assert "not known" in answer.text


async def test_request_without_a_session_is_redirected_to_sign_in(nobody: Person) -> None:
    answer = await nobody.open("/tenants?search=acme")
    assert answer.status == 303
    assert answer.headers["Location"] == "/sign-in?next=%2Ftenants%3Fsearch%3Dacme"
    assert (await nobody.post("/tenants", {"name": "x"})).headers["Location"] == "/sign-in"
    polled = await nobody.send("GET", "/live", HX_Request="true")
    assert (polled.status, polled.headers["HX-Redirect"]) == (401, "/sign-in")


@in_turn(
    ("wanted", "sent_to"),
    [
        ("/tenants?search=a", "/tenants?search=a"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
    ],
)
async def test_sign_in_with_a_token_redirects_only_to_console_pages(
    nobody: Person, wanted: str, sent_to: str
) -> None:
    answer = await nobody.post(f"/sign-in?next={wanted}", {"token": ADMIN})
    assert answer.headers["Location"] == sent_to


async def test_sign_ins_with_wrong_tokens_are_delayed_without_delaying_a_right_token(
    nobody: Person, api: Api
) -> None:
    api.failures.free_max = FREE_MAX
    wrong = credentials.mint_credential(credentials.ADMIN_TOKEN).secret
    slow = [asyncio.create_task(nobody.sign_in(wrong)) for _ in range(20)]
    await eventually(lambda: api.failures.delayed >= 3)
    assert (await nobody.sign_in(ADMIN)).status == 303
    assert {answer.status for answer in await asyncio.gather(*slow)} == {401}
    assert sum(api.failures.counts.values()) == api.failures.counts["unknown"] == 20
    assert api.failures.delayed == 0


async def test_signing_out_ends_the_session(admin: Person, api: Api) -> None:
    old = admin.cookie
    answer = await admin.post("/sign-out", {"form_token": (await admin.open("/")).form_token})
    assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?done=signed-out")
    admin.cookie = old
    assert (await admin.open("/")).status == 303
    assert api.rows("select count(*) from console_session") == [(0,)]
    said = api.rows("select action, actor from audit_log where resource = 'console-sessions' order by id")
    assert said == [("create", "builtin:admin"), ("end", "builtin:admin")]


async def test_session_ends_when_the_token_is_revoked(nobody: Person, api: Api) -> None:
    token = await api.make("admin-tokens", name="ops", role="admin")
    assert (await nobody.sign_in(token["token"])).status == 303
    assert (await nobody.open("/")).status == 200
    await api.post(f"admin-tokens/{token['id']}/revoke")
    assert (await nobody.open("/")).status == 303


async def test_session_past_the_expiry_time_is_refused(admin: Person, api: Api) -> None:
    api.rows("update console_session set expires_at = now() - interval '1 second'")
    assert (await admin.open("/")).status == 303


@in_turn("cookie", ["tollkeeper_session=", "tollkeeper_session=" + "A" * 43, "tollkeeper_session=../x"])
async def test_forged_session_cookie_is_refused(nobody: Person, cookie: str) -> None:
    nobody.cookie = cookie
    assert (await nobody.open("/")).status == 303


async def test_sign_in_keeps_at_most_1000_sessions(nobody: Person, api: Api) -> None:
    api.rows(
        "insert into console_session (digest, token_digest, expires_at)"
        " select 'd' || n, 't', now() + interval '1 hour' from generate_series(1, 1100) as n"
    )
    await nobody.sign_in(ADMIN)
    assert api.rows("select count(*) from console_session") == [(1000,)]
    assert (await nobody.open("/")).status == 200
