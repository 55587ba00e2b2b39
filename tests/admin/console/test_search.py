"""The search of every page: where it leads, and what it never keeps."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import pytest

from gateway.admin.console.lists import reduced
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import call


async def search(person: Person, text: str) -> Page:
    page = await person.open("/tenants")
    return await person.post("/search", {"form_token": page.form_token, "q": text})


@pytest.fixture
async def made(api: Api) -> dict[str, Any]:
    organization = await api.make("organizations", name="Acme Robotics")
    tenant = await api.make("tenants", name="Search team", organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name=HOSTILE)
    user = await api.make("users", external_id="ada@example.com", organization_id=organization["id"])
    return {"organizations": organization, "tenants": tenant, "api-keys": key, "users": user}


async def test_the_only_hit_is_led_to(api: Api, reader: Person, made: dict[str, Any]) -> None:
    request_id = str(uuid4())
    number = call(api, request_id, organization=made["organizations"]["id"], tenant=made["tenants"]["id"])
    key = made["api-keys"]
    wanted = {
        "robot": f"/organizations/{made['organizations']['id']}",
        "  Team ": f"/tenants/{made['tenants']['id']}",
        "ada@example.com": f"/users/{made['users']['id']}",
        key["prefix"]: f"/api-keys/{key['id']}",
        key["prefix"][:6]: f"/api-keys/{key['id']}",
        key["key"]: f"/api-keys/{key['id']}",
        f"Authorization: Bearer {key['key']}": f"/api-keys/{key['id']}",
        request_id: f"/calls/{number}",
        request_id.upper(): f"/calls/{number}",
    }
    for text, address in wanted.items():
        answer = await search(reader, text)
        assert (answer.status, answer.headers["Location"]) == (303, address), text
        assert (await reader.open(address)).status == 200


async def test_several_are_listed_and_none_is_said(api: Api, reader: Person, made: dict[str, Any]) -> None:
    await api.make("tenants", name="Acme two")
    page = await search(reader, "acme")
    well_formed(page)
    assert page.text.count('<ul class="hits">') == 2
    assert "Acme Robotics" in page.text
    for text in ("nobody", HOSTILE[:40], "%", "x" * 300, "\x00", str(uuid4()), "'; --"):
        page = await search(reader, text)
        assert (page.status, "Nothing was found" in page.text) == (200, True), text
        well_formed(page)
    assert "Nothing is looked for yet" in (await reader.open("/search")).text


async def test_a_request_that_left_the_journal_leads_to_what_it_moved(
    api: Api, reader: Person, made: dict[str, Any]
) -> None:
    request_id, tenant = str(uuid4()), made["tenants"]["id"]
    api.rows(
        "insert into token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
        " created_at, epoch, seq, cycle, request_id) values (%s, 'consume', 1, 0, 'OUT', now(), 1, 1, 1, %s)",
        tenant, request_id,
    )  # fmt: skip
    answer = await search(reader, request_id)
    assert answer.headers["Location"] == f"/tenants/{tenant}?request_id={request_id}#ledger"


async def test_a_whole_key_is_in_no_address_no_page_and_no_log(
    api: Api, reader: Person, made: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    secret = made["api-keys"]["key"]
    with caplog.at_level(logging.DEBUG):
        unknown = await search(reader, secret[:-3] + "xyz" + " and more")
        other = await search(reader, "tka_" + secret[3:])
        typed = await reader.open(f"/search?q={secret}")
    assert (other.status, f"tka_{secret[3:8]}" in other.text) == (200, True)
    assert typed.headers["Location"] == f"/search?q={secret[:8]}"
    listed = await reader.open(typed.headers["Location"])
    for text in (
        str(unknown.headers),
        unknown.text,
        other.text,
        str(other.headers),
        str(typed.headers),
        typed.text,
        listed.text,
        caplog.text,
    ):
        assert secret[8:20] not in text


@pytest.mark.parametrize("pasted", ["sk-proj-abcdefghijklmnop", "the operator's own, of any shape", "acme"])
async def test_what_is_pasted_is_in_no_address(
    api: Api, reader: Person, made: dict[str, Any], pasted: str
) -> None:
    await api.make("tenants", name="Acme two")
    answer = await search(reader, pasted)
    assert (answer.status, "Location" in answer.headers) == (200, False)
    assert pasted not in str(answer.headers)
    assert f"?q={pasted}" not in answer.text


def test_what_only_looks_like_a_key_is_looked_for_as_it_is() -> None:
    for text in ("tk_", "tk_ab", "tk_abcde", "network", "tk-abcdefgh", ""):
        assert reduced(text) == text
    assert reduced("tk_abcdefghi") == "tk_abcde"
    assert reduced("x tka_0123456 y tk_abcdefgh") == "tka_01234"


async def test_it_needs_a_session_and_the_form_of_a_page(reader: Person, nobody: Person) -> None:
    assert (await nobody.open("/search?q=a")).headers["Location"].startswith("/sign-in")
    assert (await reader.post("/search", {"q": "a"})).status == 403
    token = (await reader.open("/")).form_token
    forged = await reader.post("/search", {"form_token": token, "q": "a"}, Origin="https://elsewhere.example")
    assert forged.status == 403
