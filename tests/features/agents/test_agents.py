"""Agents sign in: a device asks, a person decides; tokens are exchanged, replayed, guessed and revoked."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.features.agents.api import (
    DEVICE_GRANT,
    DEVICE_PATH,
    METADATA_PATH,
    PAGE,
    REVOKE_PATH,
    SETTINGS_PATH,
    TOKEN_PATH,
    AgentLimits,
    mount_agents,
)
from gateway.features.agents.origin import SENDER_FIELD, told_sender
from tests.admin.conftest import PEPPERS
from tests.admin.console.conftest import Person
from tests.admin.console.elsewhere import Browser, World, console_of_people
from tests.waiting import eventually

GATEWAY, CONSOLE = "https://gateway.example", "https://console.example"


def of(limits: AgentLimits) -> Any:
    return pytest.mark.parametrize("world", [limits], indirect=True)


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, admin_database: str, keeper_database: str, tmp_path: Path
) -> AsyncIterator[World]:
    policy = tmp_path / "settings.json"
    policy.write_text('{"model": "claude-opus-4-8"}', encoding="utf-8")
    limits = getattr(request, "param", AgentLimits(asking_max=3, renewal_s_min=0))
    mount = partial(mount_agents, calls=GATEWAY, console=CONSOLE, policy=str(policy), limits=limits)
    async with console_of_people(admin_database, keeper_database, routes=[mount]) as made:
        yield made


async def asked(world: World, path: str, **form: str) -> tuple[int, Any]:
    """What an agent is answered; it has no credential of its own."""
    headers = {"User-Agent": "claude-cli/2.1 (external)"}
    async with world.api.client.post(path, data=form, headers=headers) as answer:
        return answer.status, await answer.json()


async def engineer(world: World) -> Person:
    """An engineer of one tenant, at the console by the provider of identities."""
    organization = (await world.api.make("organizations", name="acme"))["id"]
    tenant = (await world.api.make("tenants", name="search", organization_id=organization))["id"]
    await world.let_in(role="member", tenant_id=tenant)
    browser = Browser.at(world)
    assert (await browser.sign_in()).status == 200
    browser.person.headers = {"X-Forwarded-Proto": "https"}
    return browser.person


async def decided(person: Person, code: str, decision: str = "approve") -> Any:
    page = await person.open(f"{PAGE}?user_code={code}")
    assert page.status == 200
    assert "claude-cli/2.1 (external)" in page.text
    sent = {"form_token": page.form_token, "user_code": code, "decision": decision}
    return await person.post(PAGE, sent)


async def signed_in(world: World, person: Person) -> dict[str, Any]:
    """The tokens of an agent that this person has signed in."""
    _, device = await asked(world, DEVICE_PATH)
    assert (await decided(person, device["user_code"])).status == 303
    return await given(world, device)


async def given(world: World, device: dict[str, Any]) -> Any:
    status, tokens = await asked(
        world, TOKEN_PATH, grant_type=DEVICE_GRANT, device_code=device["device_code"]
    )
    assert status == 200, tokens
    return tokens


async def refreshed(world: World, tokens: dict[str, Any]) -> tuple[int, Any]:
    return await asked(world, TOKEN_PATH, grant_type="refresh_token", refresh_token=tokens["refresh_token"])


def key_of(world: World, tokens: dict[str, Any]) -> tuple[Any, ...]:
    """The row of an access token: whether it is good now, its user, its tenant's name."""
    [row] = world.api.rows(
        "select k.revoked_at is null and k.expires_at > now(), k.user, t.name from api_key k"
        " join tenant t on t.id = k.tenant_id where k.digest = %s",
        PEPPERS.digest(tokens["access_token"]),
    )  # fmt: skip
    return row


async def test_agent_receives_a_key_only_after_a_person_approves_and_in_the_name_of_that_person(
    world: World,
) -> None:
    async with world.api.client.get(METADATA_PATH) as answer:
        said = await answer.json()
    assert said["token_endpoint"] == GATEWAY + TOKEN_PATH
    assert said["device_authorization_endpoint"] == GATEWAY + DEVICE_PATH
    _, device = await asked(world, DEVICE_PATH)
    assert device["verification_uri_complete"] == f"{CONSOLE}{PAGE}?user_code={device['user_code']}"
    poll = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    assert await asked(world, TOKEN_PATH, **poll) == (400, {"error": "authorization_pending"})
    person = await engineer(world)
    forged = await person.post(PAGE, {"user_code": device["user_code"], "decision": "approve"})
    assert forged.status == 403
    assert await asked(world, TOKEN_PATH, **poll) == (400, {"error": "authorization_pending"})
    assert (await decided(person, device["user_code"].lower())).status == 303
    tokens = await given(world, device)
    assert re.fullmatch(r"tk_\w{32}", tokens["access_token"])
    assert key_of(world, tokens) == (True, "Kim", "search")
    # A code is good once.
    assert await asked(world, TOKEN_PATH, **poll) == (400, {"error": "expired_token"})
    assert (await person.open(f"{PAGE}?user_code={device['user_code']}")).status == 404
    stored = str(world.api.rows("select * from agent_sign_in"))
    secrets = (tokens["access_token"], tokens["refresh_token"], device["device_code"], device["user_code"])
    assert not [one for one in secrets if one in stored]


async def test_agent_device_code_expires_after_the_announced_lifetime(world: World) -> None:
    _, device = await asked(world, DEVICE_PATH)
    lasts = "select extract(epoch from expires_at - created_at)::int from agent_sign_in"
    [(lasts_s,)] = world.api.rows(lasts)
    assert lasts_s == device["expires_in"]
    world.api.rows("update agent_sign_in set expires_at = now()")
    person = await engineer(world)
    assert (await person.open(f"{PAGE}?user_code={device['user_code']}")).status == 404
    poll = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    assert await asked(world, TOKEN_PATH, **poll) == (400, {"error": "expired_token"})


async def test_agent_is_not_signed_in_by_a_denied_or_guessed_device_code(world: World) -> None:
    _, device = await asked(world, DEVICE_PATH)
    anonymous = await Person(world.api.client).open(f"{PAGE}?user_code={device['user_code']}")
    assert (anonymous.status, anonymous.headers["Location"].split("?")[0]) == (303, "/sign-in")
    person = await engineer(world)
    for wrong in ("BCDF-GHJK", "tka_1", "%00"):
        assert (await person.open(f"{PAGE}?user_code={wrong}")).status == 404
    assert (await decided(person, device["user_code"], "deny")).status == 303
    poll = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    assert await asked(world, TOKEN_PATH, **poll) == (400, {"error": "access_denied"})
    number = device["device_code"].split("_")[1]
    for code in (f"tkd_{number}_{'0' * 64}", "tkd_99_" + "0" * 64, "", "x"):
        answer = await asked(world, TOKEN_PATH, grant_type=DEVICE_GRANT, device_code=code)
        assert answer == (400, {"error": "expired_token"})
    assert (await asked(world, TOKEN_PATH, grant_type="password"))[1] == {"error": "unsupported_grant_type"}


async def test_staff_member_without_a_tenant_cannot_approve_an_agent_sign_in(world: World) -> None:
    await world.let_in()
    staff = Browser.at(world)
    await staff.sign_in()
    staff.person.headers = {"X-Forwarded-Proto": "https"}
    _, device = await asked(world, DEVICE_PATH)
    assert (await decided(staff.person, device["user_code"])).status == 403
    assert world.api.rows("select count(*) from api_key") == [(0,)]


async def test_new_agent_sign_in_beyond_the_limit_drops_the_oldest_code_no_person_has_entered(
    world: World,
) -> None:
    person = await engineer(world)
    devices = [(await asked(world, DEVICE_PATH))[1] for _ in range(3)]
    assert (await person.open(f"{PAGE}?user_code={devices[0]['user_code']}")).status == 200
    for _ in range(5):
        assert (await asked(world, DEVICE_PATH))[0] == 200
    assert (await person.open(f"{PAGE}?user_code={devices[1]['user_code']}")).status == 404
    assert (await decided(person, devices[0]["user_code"])).status == 303
    await given(world, devices[0])


async def test_new_agent_sign_in_is_429_while_persons_have_entered_all_pending_codes(world: World) -> None:
    person = await engineer(world)
    for _ in range(3):
        _, device = await asked(world, DEVICE_PATH)
        assert (await person.open(f"{PAGE}?user_code={device['user_code']}")).status == 200
    assert await asked(world, DEVICE_PATH) == (429, {"error": "slow_down"})


@of(AgentLimits(asking_max=4, asking_each_max=3))
async def test_many_sign_ins_from_the_same_address_do_not_drop_the_code_of_another_address(
    world: World,
) -> None:
    person = await engineer(world)
    told = {SENDER_FIELD: told_sender(PEPPERS, DEVICE_PATH, "203.0.113.7", time.time())}
    async with world.api.client.post(DEVICE_PATH, headers=told) as answer:
        other = await answer.json()
    for _ in range(6):
        assert (await asked(world, DEVICE_PATH))[0] == 200
    async with world.api.client.post(DEVICE_PATH, headers=told) as answer:
        assert answer.status == 200
    assert (await person.open(f"{PAGE}?user_code={other['user_code']}")).status == 200


async def test_agent_refresh_repeated_within_the_grace_period_returns_the_same_new_token(
    world: World,
) -> None:
    first = await signed_in(world, await engineer(world))
    status, second = await refreshed(world, first)
    assert status == 200
    assert second["access_token"] != first["access_token"]
    _, twin = await refreshed(world, first)
    assert {**twin, "expires_in": second["expires_in"]} == second
    # The predecessor lasts a while, so calls that are on their way pass.
    assert [key_of(world, one)[0] for one in (first, second)] == [True, True]
    status, third = await refreshed(world, second)
    assert status == 200
    assert [key_of(world, one)[0] for one in (first, second, third)] == [False, True, True]


async def test_agent_refresh_retried_after_an_interruption_returns_the_key_already_created(
    world: World,
) -> None:
    first = await signed_in(world, await engineer(world))
    _, second = await refreshed(world, first)
    world.api.rows(
        "update agent_sign_in set generation = 0, api_key_id = earlier_key_id, earlier_key_id = null,"
        " renewed_at = null"
    )
    _, again = await refreshed(world, first)
    assert again == second


@of(AgentLimits(grace_s=0, renewal_s_min=0))
async def test_reuse_of_an_old_refresh_token_revokes_all_tokens_of_that_sign_in(world: World) -> None:
    first = await signed_in(world, await engineer(world))
    _, second = await refreshed(world, first)
    number = second["refresh_token"].split("_")[1]
    guessed = {"refresh_token": f"tkr_{number}_1_{'0' * 64}"}
    assert (await refreshed(world, guessed))[0] == 401
    assert key_of(world, second)[0]  # who guesses ends nobody's
    assert await refreshed(world, first) == (401, {"error": "invalid_grant"})
    assert await refreshed(world, second) == (401, {"error": "invalid_grant"})
    assert [key_of(world, one)[0] for one in (first, second)] == [False, False]


@of(AgentLimits(renewal_s_min=600))
async def test_agent_refresh_too_soon_after_the_last_refresh_is_429(world: World) -> None:
    first = await signed_in(world, await engineer(world))
    _, second = await refreshed(world, first)
    assert await refreshed(world, second) == (429, {"error": "slow_down"})


@pytest.mark.parametrize("by", ["access_token", "refresh_token"])
async def test_agent_sign_out_with_either_token_revokes_access_key_and_refresh_token(
    world: World, by: str
) -> None:
    tokens = await signed_in(world, await engineer(world))
    assert await asked(world, REVOKE_PATH, token="tk_" + "0" * 32) == (200, {})
    assert key_of(world, tokens)[0]
    assert await asked(world, REVOKE_PATH, token=tokens[by]) == (200, {})
    assert not key_of(world, tokens)[0]
    assert (await refreshed(world, tokens))[0] == 401


@of(AgentLimits(sweep_s=0.05))
async def test_agent_key_is_revoked_soon_after_the_admin_token_of_the_person_is_revoked(world: World) -> None:
    tokens = await signed_in(world, await engineer(world))
    [token] = (await world.api.get("admin-tokens")).json["items"]
    assert (await world.api.post(f"admin-tokens/{token['id']}/revoke")).status == 200
    await eventually(lambda: not key_of(world, tokens)[0])
    assert await refreshed(world, tokens) == (401, {"error": "invalid_grant"})


@of(AgentLimits(sweep_s=0.05, asked_each_s=0))
async def test_agent_key_ends_when_the_person_leaves_the_group_but_not_while_the_provider_is_down(
    world: World,
) -> None:
    provider = world.provider
    provider.renews = True
    person = await engineer(world)
    tokens = await signed_in(world, person)
    asked_before = provider.asked.count("/token")
    await eventually(lambda: provider.asked.count("/token") > asked_before + 2)
    assert key_of(world, tokens)[0]
    provider.is_away = True
    asked_before = len(provider.asked)
    await eventually(lambda: len(provider.asked) > asked_before + 2)
    assert key_of(world, tokens)[0]
    # What it is asked with is the agent's now: the console asks with it no more, and goes on.
    assert (await person.open(PAGE)).status == 200
    assert world.api.rows("select renewal from console_session") == [(None,)]
    provider.is_away = False
    provider.person["groups"] = ["somebody else's"]
    await eventually(lambda: not key_of(world, tokens)[0])
    assert await refreshed(world, tokens) == (401, {"error": "invalid_grant"})


async def test_agent_refresh_by_a_former_member_is_refused_and_revokes_the_key(world: World) -> None:
    tokens = await signed_in(world, await engineer(world))
    world.api.rows("update admin_token set revoked_at = now()")
    assert await refreshed(world, tokens) == (401, {"error": "invalid_grant"})
    assert not key_of(world, tokens)[0]


async def test_agent_settings_are_304_for_a_known_etag_and_agent_metrics_are_accepted(world: World) -> None:
    key = (await signed_in(world, await engineer(world)))["access_token"]
    bearer = {"Authorization": f"Bearer {key}"}
    answer = await world.api.call("GET", SETTINGS_PATH, headers=bearer)
    assert (answer.status, answer.json["settings"]) == (200, {"model": "claude-opus-4-8"})
    # As the agent digests what it was told: its keys in order, without a space.
    digest = sha256(b'{"model":"claude-opus-4-8"}').hexdigest()
    assert answer.headers["ETag"] == f'"{answer.json["checksum"]}"' == f'"sha256:{digest}"'
    again = {**bearer, "If-None-Match": answer.headers["ETag"]}
    assert (await world.api.call("GET", SETTINGS_PATH, headers=again)).status == 304
    assert (await world.api.call("POST", "/v1/metrics", data=b"{}", headers=bearer)).status == 200
    for path, method in ((SETTINGS_PATH, "GET"), ("/v1/logs", "POST")):
        assert (await world.api.call(method, path, headers={"Authorization": "Bearer tk_1"})).status == 401
