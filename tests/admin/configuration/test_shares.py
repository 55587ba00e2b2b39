"""Whoever plans takes their own share of turns, of memory and of time, and no more than that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.admin.api import views
from gateway.admin.api.views import (
    ORGANIZATION,
    ORGANIZATIONS_AT_ONCE_MAX,
    ORGANIZATIONS_THERE_MAX,
    READER,
    STAFF,
    UploadSlots,
)
from gateway.admin.configuration import objects
from gateway.admin.configuration.words import KINDS
from gateway.admin.http import requests
from gateway.core.accounts.administration import Actor
from gateway.errors import Overloaded, TooManyRequests, Unprocessable
from persistence.engine import ORGANIZATIONS_CONNECTIONS_MAX, STAFF_CONNECTIONS_MAX
from persistence.keeper.definitions import PUSHES_AT_ONCE_MAX
from tests.admin.configuration.world import plan
from tests.admin.conftest import Api
from tests.waiting import eventually

BUSY = "under way already"


def somebody(organization: int | None) -> Actor:
    return Actor("somebody", "readonly", organization_id=organization)


async def test_no_organization_takes_the_turns_of_another_nor_those_of_staff() -> None:
    free = UploadSlots()
    async with AsyncExitStack() as held:
        for number in range(1, 1 + ORGANIZATIONS_THERE_MAX):
            assert await held.enter_async_context(free.taken(somebody(number))) is READER
        for number in range(1, 1 + ORGANIZATIONS_AT_ONCE_MAX):
            await held.enter_async_context(free.working(somebody(number)))
        for full, one, whose in (
            (free.taken, 1, "for this organization"),
            (free.taken, 99, "for other organizations"),
            (free.working, 99, "for other organizations"),
        ):
            with pytest.raises((Overloaded, TooManyRequests), match=f"{BUSY} {whose}"):
                await full(somebody(one)).__aenter__()
        async with free.taken(somebody(None)) as share, free.working(somebody(None)):
            assert share is STAFF


@pytest.mark.parametrize(
    ("role", "most"), [("readonly", READER.objects_max), ("admin", ORGANIZATION.objects_max)]
)
async def test_an_organization_plans_fewer_objects_at_once_than_staff(api: Api, role: str, most: int) -> None:
    owner = await api.make("organizations", name="Many")
    token = await api.make("admin-tokens", name="t", role=role, organization_id=owner["id"])
    asked = {"objects": {"tenants": [{"name": "t"}] * (most + 1)}}
    refused = await api.acting_as(token["token"]).post("configuration", asked)
    assert refused.status == 422
    assert f"at most {most} at once" in refused.json["errors"][0]["message"]


def test_who_plans_or_pushes_leaves_connections_to_others() -> None:
    assert STAFF.at_once_max + PUSHES_AT_ONCE_MAX + 1 < STAFF_CONNECTIONS_MAX
    assert ORGANIZATIONS_AT_ONCE_MAX + 1 < ORGANIZATIONS_CONNECTIONS_MAX


async def sending(api: Api, token: str) -> asyncio.StreamWriter:
    """Begin a plan, and stay in the middle of its body."""
    _, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
    head = (
        "POST /admin/v1/configuration HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
    )
    writer.write(head.encode())
    await writer.drain()
    return writer


async def test_who_is_still_sending_takes_no_place_of_other_organizations(api: Api) -> None:
    tokens = []
    for number in range(ORGANIZATIONS_AT_ONCE_MAX + 1):
        owner = await api.make("organizations", name=f"Slow {number}")
        token = await api.make("admin-tokens", name="t", role="readonly", organization_id=owner["id"])
        tokens.append(token["token"])
    writers = [await sending(api, token) for token in tokens[1:]]
    for token in tokens[1:]:
        await eventually(_answers(api.acting_as(token), 429))
    assert (await api.acting_as(tokens[0]).post("configuration", {"objects": {}})).status == 200
    for writer in writers:
        writer.close()


async def test_the_administrator_plans_while_an_organization_does_until_it_hangs_up(api: Api) -> None:
    """Theirs waits for its body here, so that it is under way for as long as the test likes."""
    acme = await api.make("organizations", name="Acme")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    writer = await sending(api, token["token"])
    await eventually(_answers(theirs, 429))
    assert (await plan(api, {"token-plans": [{"name": "Pro"}]}))["changes"]
    writer.close()
    await eventually(_answers(theirs, 200))


def _answers(api: Api, wanted: int) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return bool((await api.post("configuration", {"objects": {}})).status == wanted)

    return ask


async def test_what_only_reads_ends_with_whoever_asked() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Gone:
        transport = None

    with pytest.raises(ConnectionResetError):
        await views.while_asked(Gone(), work())  # type: ignore[arg-type]  # all that is asked of it
    await eventually(ended.is_set)


async def test_a_share_has_so_many_bytes_and_values(api: Api) -> None:
    acme = await api.make("organizations", name="Acme")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    large = b'{"objects":{"tenants":["' + b"x" * ORGANIZATION.bytes_max + b'"]}}'
    assert (await theirs.call("POST", "configuration", data=large)).status == 413
    many = b'{"objects":{"tenants":[' + b"[]," * (ORGANIZATION.values_max // 2) + b"[]]}}"
    assert len(many) < ORGANIZATION.bytes_max
    answer = await theirs.call("POST", "configuration", data=many)
    assert answer.status == 422
    assert f"more than {ORGANIZATION.values_max} values" in answer.json["errors"][0]["message"]
    assert (await api.call("POST", "configuration", data=many)).status == 422, (
        "of staff it is read: no objects"
    )
    usual = b'{"name":[' + b"[]," * (requests.VALUES_MAX // 2) + b"[]]}"
    with pytest.raises(Unprocessable) as refused:
        requests.parse_body(usual)
    assert f"more than {requests.VALUES_MAX} values" in refused.value.errors[0][1]


def errors_of(sent: Any) -> list[tuple[str, str]]:
    with pytest.raises(Unprocessable) as refused:
        objects.read(sent)
    return [*refused.value.errors]


def test_of_what_is_unknown_the_first_few_are_told_and_nothing_else_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    near = objects.near
    monkeypatch.setattr(objects, "near", lambda said, known: asked.append(said) or near(said, known))
    kinds = {f"k{number}": [] for number in range(100_000)}
    assert [name for name, _ in errors_of({**kinds, "tenants": 3})] == [f"k{number}" for number in range(5)]
    assert len(asked) == objects.UNKNOWN_KINDS_MAX
    asked.clear()
    fields = {f"f{number}": 1 for number in range(1_000)}
    assert len(errors_of({"tenants": [fields, {"organization": "A", "name": "B"}]})) == objects.ERRORS_MAX
    assert len(asked) == objects.ERRORS_MAX
    asked.clear()
    assert len(errors_of({kind: [{"wrong": 1}] * 1_000 for kind in KINDS})) == objects.ERRORS_MAX
    assert len(asked) < 2 * objects.ERRORS_MAX
    [(name, message)] = errors_of({"x" * 100_000: []})
    assert max(len(name), len(message)) < 1_000


def test_an_object_holds_so_much() -> None:
    deep = json.loads("[" * 50 + "1" + "]" * 50)
    for value in ([[]] * 5_001, {str(number): 1 for number in range(5_001)}, [deep] * 150):
        [(name, message)] = errors_of({"webhooks": [{"url": "https://x.example", "events": value}]})
        assert (name, message) == ("webhooks.0", "holds more than 5000 values")
