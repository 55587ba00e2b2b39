"""Whoever plans takes their own share of turns, of memory and of time, and no more than that."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.admin.api import turns
from gateway.admin.api.turns import ORGANIZATION, ORGANIZATIONS_AT_ONCE_MAX, STAFF, Turns
from gateway.admin.configuration import objects
from gateway.admin.configuration.words import KINDS
from gateway.admin.http import body
from gateway.core.accounts.administration import Actor
from gateway.errors import Overloaded, Unprocessable
from tests.admin.configuration.world import plan
from tests.admin.conftest import Api
from tests.waiting import eventually

BUSY = "under way already"


def somebody(organization: int | None) -> Actor:
    return Actor("somebody", "readonly", organization_id=organization)


async def test_no_organization_takes_the_turns_of_another_nor_all_of_them_those_of_staff() -> None:
    free = Turns()
    held = [free.taken(somebody(number)) for number in range(1, 1 + ORGANIZATIONS_AT_ONCE_MAX)]
    assert [await each.__aenter__() for each in held] == [ORGANIZATION] * ORGANIZATIONS_AT_ONCE_MAX
    for organization, whose in ((1, "for this organization"), (99, "for other organizations")):
        with pytest.raises(Overloaded, match=f"{BUSY} {whose}"):
            await free.taken(somebody(organization)).__aenter__()
    staff = [free.taken(somebody(None)) for _ in range(STAFF.at_once_max)]
    assert [await each.__aenter__() for each in staff] == [STAFF] * STAFF.at_once_max
    with pytest.raises(Overloaded, match=BUSY):
        await free.taken(somebody(None)).__aenter__()
    await held[0].__aexit__(None, None, None)
    async with free.taken(somebody(99)) as share:
        assert share is ORGANIZATION


async def test_the_administrator_plans_while_an_organization_does_until_it_hangs_up(api: Api) -> None:
    """Theirs waits for its body here, so that it is under way for as long as the test likes."""
    acme = await api.make("organizations", name="Acme")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    _, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
    head = (
        "POST /admin/v1/configuration HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token['token']}\r\nContent-Length: 100\r\n\r\n{{"
    )
    writer.write(head.encode())
    await writer.drain()

    async def status() -> int:
        return (await theirs.post("configuration", {"objects": {}})).status

    await _until(status, 503)
    assert (await plan(api, {"token-plans": [{"name": "Pro"}]}))["changes"]
    writer.close()
    await _until(status, 200)


async def _until(ask: Any, wanted: int) -> None:
    for _ in range(1_000):
        if await ask() == wanted:
            return
    raise AssertionError(f"never {wanted}")


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
        await turns.while_asked(Gone(), work())  # type: ignore[arg-type]  # all that is asked of it
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
    usual = b'{"name":[' + b"[]," * (body.VALUES_MAX // 2) + b"[]]}"
    with pytest.raises(Unprocessable) as refused:
        body.parse(usual)
    assert f"more than {body.VALUES_MAX} values" in refused.value.errors[0][1]


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
