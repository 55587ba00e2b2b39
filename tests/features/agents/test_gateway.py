"""Agents at the gateway's own port: a fixed list of paths goes on to a keeper, bounded, and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast
from urllib.parse import urlencode

from gateway.core.calls.routes import Route
from gateway.core.credentials import Peppers
from gateway.features.agents.api import DEVICE_GRANT
from gateway.features.agents.gateway import TELEMETRY_BYTES_MAX, OneOrigin, answers, usage_of
from gateway.features.agents.origin import (
    APART_S_MAX,
    DEVICE_PATH,
    FORM_BYTES_MAX,
    METADATA_PATH,
    REVOKE_PATH,
    SENDER_FIELD,
    SETTINGS_PATH,
    TOKEN_PATH,
    USAGE_PATH,
    sender_of,
    told_sender,
)
from gateway.settings.settings import Settings
from tests.admin.conftest import PEPPERS
from tests.admin.console.elsewhere import World
from tests.features.agents.test_agents import decided, engineer, key_of, world
from tests.http.fakes import AUTH, answer, get, post
from tests.http.stage import Answer, staged
from tests.waiting import eventually

__all__ = ["world"]


def in_front(world: World) -> dict[Route, object]:
    """What a gateway answers that passes on to this keeper."""
    url = str(world.api.client.make_url("")).rstrip("/")
    settings = Settings().with_values(agents_keeper_url=url, key_pepper=PEPPERS.current.decode())
    return dict(answers(settings, lambda *_, **__: None))


def form(path: str, more: bytes = b"", **fields: str) -> bytes:
    body = urlencode(fields).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nuser-agent: claude-cli/2.1 (external)\r\n%b" % (
        path.encode(),
        more,
    )
    kind = b"content-type: application/x-www-form-urlencoded\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + kind + body


def fetching(path: str, fields: bytes = b"") -> bytes:
    return get(path.encode(), fields)


def said(answer: Answer, status: int = 200) -> dict[str, str]:
    assert answer.status == status, answer.body
    found: dict[str, str] = json.loads(answer.body)
    return found


def bearer(key: str) -> bytes:
    return b"authorization: Bearer " + key.encode() + b"\r\n"


async def test_agent_signs_in_reads_settings_and_signs_out_through_the_gateway_alone(world: World) -> None:
    async with staged(answers=in_front(world)) as stage:
        assert said(await stage.ask(fetching(METADATA_PATH), "GET"))["token_endpoint"].endswith(TOKEN_PATH)
        device = said(await stage.ask(form(DEVICE_PATH)))
        poll = form(TOKEN_PATH, grant_type=DEVICE_GRANT, device_code=device["device_code"])
        assert said(await stage.ask(poll), 400) == {"error": "authorization_pending"}
        assert (await decided(await engineer(world), device["user_code"])).status == 303
        tokens = said(await stage.ask(poll))
        key = bearer(tokens["access_token"])
        told = await stage.ask(fetching(SETTINGS_PATH, key), "GET")
        assert json.loads(told.body)["settings"] == {"model": "claude-opus-4-8"}
        tag = told.one(b"etag")
        for _ in range(2):  # also where its lines have come before
            again = await stage.ask(fetching(SETTINGS_PATH, key + b"if-none-match: " + tag + b"\r\n"), "GET")
            assert (again.status, again.body) == (304, b"")
        for wrong in (b"", bearer("tk_" + "1" * 32)):
            assert (await stage.ask(fetching(SETTINGS_PATH, wrong), "GET")).status == 401
        renewed = form(TOKEN_PATH, grant_type="refresh_token", refresh_token=tokens["refresh_token"])
        second = said(await stage.ask(renewed))
        assert said(await stage.ask(form(REVOKE_PATH, token=second["refresh_token"]))) == {}
        assert not key_of(world, second)[0]
        assert not stage.upstream.received


async def test_keeper_accepts_a_client_address_only_when_signed_by_a_gateway(world: World) -> None:
    forged = b"%b: 1 203.0.113.9 0\r\nx-forwarded-for: 203.0.113.9\r\n" % SENDER_FIELD.encode()
    async with staged(answers=in_front(world)) as stage:
        assert (await stage.ask(form(DEVICE_PATH, forged))).status == 200
    told = told_sender(PEPPERS, DEVICE_PATH, "203.0.113.7", time.time())
    for field in (
        told,
        told.replace(".7", ".9"),
        told_sender(Peppers(b"another"), DEVICE_PATH, "203.0.113.9", time.time()),
    ):
        async with world.api.client.post(DEVICE_PATH, headers={SENDER_FIELD: field}) as answer:
            assert answer.status == 200 or field != told
    sites = world.api.rows("select site from agent_sign_in order by id")
    assert sites == [("203.0.113.7",), ("127.0.0.1",), ("127.0.0.1",)]


def test_signed_client_address_is_rejected_on_another_path_or_when_too_old() -> None:
    told = told_sender(PEPPERS, TOKEN_PATH, "::1", 1000)
    assert sender_of(PEPPERS, TOKEN_PATH, told, 1001) == "::1"
    assert not sender_of(PEPPERS, DEVICE_PATH, told, 1001)
    assert not sender_of(PEPPERS, TOKEN_PATH, told, 1001 + APART_S_MAX)
    assert not any(sender_of(PEPPERS, TOKEN_PATH, one, 1) for one in ("", "1", "x ::1 y", "9" * 13 + " a é"))


def passing_to(stage_url: str, each: int = 16) -> dict[Route, object]:
    origin = OneOrigin(stage_url, PEPPERS, lambda *_, **__: None, each)
    return {
        Route(("POST",), TOKEN_PATH, ""): origin.pass_on,
        Route(("GET",), SETTINGS_PATH, ""): origin.pass_key_on,
    }


async def test_gateway_forwards_to_the_keeper_only_listed_agent_paths_and_headers() -> None:
    async with (
        staged() as keeper,
        staged(answers=passing_to(f"http://127.0.0.1:{keeper.upstream.port}")) as stage,
    ):
        for path in ("/admin/v1/organizations", "/oauth/token/", "/oauth/token/x", "/device", DEVICE_PATH):
            assert (await stage.ask(form(path))).status == 404
        assert (await stage.ask(fetching(TOKEN_PATH), "GET")).status == 405
        long = form(TOKEN_PATH, token="x" * FORM_BYTES_MAX)
        client = await stage.client()
        await client.send(long[:200])
        await client.send(long[200:])
        assert (await client.answer()).status == 413
        assert not keeper.upstream.received
        keeper.upstream.scripts = [[answer(b"{}", b'etag: "1"\r\nset-cookie: a=b\r\nx-other: 1\r\n')]]
        got = await stage.ask(
            form(TOKEN_PATH, AUTH + b"cookie: c=d\r\nx-y: 1\r\nx-forwarded-for: 1.2.3.4\r\n", a="b")
        )
        assert (got.status, got.one(b"etag")) == (200, b'"1"')
        assert not got.all(b"set-cookie")
        assert not got.all(b"x-other")
        [sent] = keeper.upstream.received
        assert (sent.method, sent.target, sent.body) == (b"POST", TOKEN_PATH.encode(), b"a=b")
        names = {name.lower() for name, _ in sent.headers}
        assert names.isdisjoint({b"authorization", b"cookie", b"x-y", b"x-forwarded-for"})
        for fields in (b"", b"authorization: Basic YQ==\r\n"):
            assert (await stage.ask(fetching(SETTINGS_PATH, fields), "GET")).status == 401
        assert len(keeper.upstream.received) == 1


async def test_gateway_answers_503_to_too_many_agent_requests_at_once_or_if_the_keeper_is_down() -> None:
    async with staged() as keeper:
        goes_on = asyncio.Event()
        keeper.upstream.scripts = [[goes_on, answer(b"{}")] for _ in range(2)]
        async with staged(answers=passing_to(f"http://127.0.0.1:{keeper.upstream.port}", 2)) as stage:
            waiting = [await stage.client() for _ in range(2)]
            for client in waiting:
                await client.send(form(TOKEN_PATH, a="b"))
            await eventually(lambda: len(keeper.upstream.received) == 2)
            refused = await stage.ask(form(TOKEN_PATH, a="b"))
            assert (refused.status, refused.reason, refused.one(b"retry-after")) == (503, "overloaded", b"1")
            goes_on.set()
            assert [(await client.answer()).status for client in waiting] == [200, 200]
            assert (await stage.ask(form(TOKEN_PATH, a="b"))).status == 200
    async with staged(answers=passing_to("http://127.0.0.1:1")) as stage:
        away = await stage.ask(form(TOKEN_PATH, a="b"))
        assert (away.status, away.reason) == (503, "issuer_unavailable")


def budget(unit: str, limit: object, used: object, reset: str | None, interval: str) -> dict[str, object]:
    row = {"scope": "budget", "name": interval, "unit": unit, "limit": limit, "used": used}
    return row | {"remaining": 0, "reset_at": reset, "interval": interval}


def test_agent_usage_answer_shows_budgets_in_the_format_agents_expect() -> None:
    day, month = "2026-11-28T00:00:00.000Z", "2026-12-01T00:00:00.000Z"
    rows = [
        {"scope": "key", "name": "requests_per_minute", "limit": 60, "used": 1, "reset_at": day},
        budget("money", "500", "271.4049", month, "month"),
        budget("money", "20", "10", day, "day"),
        budget("tokens", 1000, 960, None, "total"),
        budget("requests", 10, 1, None, "5h") | {"interval": None, "window": "rolling", "length": "5h"},
    ]
    told = usage_of({"limits": rows}, "USD")
    amounts = {"monthly_limit": 50000, "used_credits": 27140, "utilization": 54}
    assert told["extra_usage"] == {"is_enabled": True, "currency": "USD"} | amounts
    assert told["limits"] == [
        {"kind": "spend", "group": "monthly", "percent": 54, "resets_at": month, "severity": "normal",
         "is_active": True},
        {"kind": "spend", "group": "daily", "percent": 50, "resets_at": day, "severity": "normal",
         "is_active": False},
        {"kind": "tokens", "group": "total", "percent": 96, "resets_at": None, "severity": "critical",
         "is_active": False},
        {"kind": "requests", "group": "rolling 5h", "percent": 10, "resets_at": None, "severity": "normal",
         "is_active": False},
    ]  # fmt: skip
    # Of what is used up the last to reset is told, however far over another one is.
    rows[1:3] = [budget("money", "5", "5", month, "month"), budget("money", "1", "2", day, "day")]
    told = usage_of({"limits": rows}, "USD")
    assert [one["is_active"] for one in cast("list[dict[str, object]]", told["limits"])] == [
        True,
        False,
        False,
        False,
    ]
    assert usage_of({"limits": []}, "USD") == {"limits": []}


async def test_agent_usage_path_shows_the_usage_of_the_caller_and_is_401_without_a_key() -> None:
    async with staged(
        answers=answers(Settings().with_values(agents_keeper_url="http://127.0.0.1:1"), print)
    ) as stage:
        stage.usage_said = json.dumps({"limits": [budget("money", "2", "1", None, "total")]}).encode()
        told = json.loads((await stage.ask(fetching(USAGE_PATH, AUTH), "GET")).body)
        assert (told["extra_usage"]["used_credits"], told["extra_usage"]["currency"]) == (100, "USD")
        assert (await stage.ask(fetching(USAGE_PATH), "GET")).status == 401


async def test_agent_telemetry_goes_to_the_collector_without_delaying_the_answer() -> None:
    async with staged() as there:
        said = list[str]()
        settings = Settings().with_values(
            agents_keeper_url="http://127.0.0.1:1",
            agents_collector_url=f"http://127.0.0.1:{there.upstream.port}",
        )
        goes_on = asyncio.Event()
        there.upstream.scripts = [
            [goes_on, answer(b"{}")],
            *([answer(b"{}", status=b"500 No")] for _ in range(5)),
        ]
        async with staged(answers=answers(settings, lambda event, **_: said.append(event))) as stage:
            measured = post(b'{"resourceMetrics":[]}', b"/v1/metrics", b"content-type: application/json\r\n")
            got = await stage.ask(measured)
            assert (got.status, got.body) == (200, b"{}")
            await eventually(lambda: len(there.upstream.received) == 1)
            [sent] = there.upstream.received
            assert (sent.target, sent.body) == (b"/v1/metrics", b'{"resourceMetrics":[]}')
            assert sent.all(b"x-tollkeeper-tenant-id") == [b"2"]
            assert not sent.all(b"authorization")
            goes_on.set()
            large = post(b"x" * (TELEMETRY_BYTES_MAX + 1), b"/v1/logs")
            assert (await stage.ask(large)).status == 413
            assert (await stage.ask(measured.replace(AUTH, b""))).status == 401
            # After failures in a row it is left alone for a while.
            for number in range(2, 7):
                assert (await stage.ask(measured)).status == 200
                await eventually(lambda number=number: len(there.upstream.received) == number)
            await eventually(lambda: said == ["agents_telemetry_dropped"])
            assert (await stage.ask(measured)).status == 200
            assert len(there.upstream.received) == 6


def test_gateway_serves_no_agent_path_when_no_keeper_is_configured() -> None:
    assert not answers(Settings(), lambda *_, **__: None)
