"""Contents that Gemini stores by the hour: what a call for them holds and costs, and which is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.cache_payment import CachePayment, read_payment, write_payment
from gateway.core.billing.price_book import read_price
from gateway.core.families.gemini import FAMILY
from gateway.core.wait import in_task
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from tests.core.billing.prices import price_row
from tests.http.fakes import CALLER, answer, post
from tests.http.stage import Answer, Stage, staged
from tests.waiting import eventually

ROUTES = tuple(replace(route, upstream="up") for route in FAMILY.routes)
JSON = b"content-type: application/json\r\n"
MONEY = Budget(1, "money", "money", 10**12, "day")
YEAR_S = 31_536_000  # 8,760 hours
NAME = "cachedContents/c1"
SAID = {"name": NAME, "model": "models/flash", "usageMetadata": {"totalTokenCount": 900_000}}
TEXT = [{"parts": [{"text": "x" * 3_000}]}]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES) as made:
        yield made


def priced(stage: Stage, **more: str) -> None:
    price = price_row(id=5, model="flash", input="0.3", output="2.5", **more)
    stage.directory.prices["flash"] = read_price(price).vector


async def make(stage: Stage, version: str = "v1beta", **said: Any) -> Answer:
    stage.upstream.scripts.append([answer(json.dumps(SAID).encode())])
    body = json.dumps({"model": "models/flash", "contents": TEXT, **said}).encode()
    return await stage.ask(post(body, f"/{version}/cachedContents".encode(), JSON))


async def extend(stage: Stage, query: str = "", **said: Any) -> Answer:
    stage.upstream.scripts.append([answer(json.dumps(SAID).encode())])
    return await stage.ask(extension(query, **said))


def extension(query: str = "", **said: Any) -> bytes:
    sent = post(json.dumps(said).encode(), f"/v1beta/{NAME}{query}".encode(), JSON)
    return sent.replace(b"POST", b"PATCH", 1)


def end_of(until_s: int) -> dict[str, str]:
    return {"expireTime": f"{datetime.fromtimestamp(until_s, UTC):%Y-%m-%dT%H:%M:%SZ}"}


def paid(stage: Stage, until_s: int, organization_id: int = CALLER.organization_id) -> None:
    """The caller owns contents of 900,000 tokens, which an organization has paid until then."""
    stage.objects.kept.add((CALLER.organization_id, NAME))
    stage.objects.notes[NAME] = write_payment(CachePayment(organization_id, "flash", 900_000, until_s))


@pytest.mark.parametrize(
    ("version", "said", "hours", "nano"),
    [
        # 0.9 * 0.30 for reading, and 0.9 * 8,760 for keeping.
        ("v1beta", {"ttl": f"{YEAR_S}s"}, 7_884_000_000, 7_884_270_000_000),
        ("v1", {"ttl": "300s"}, 75_000, 345_000_000),  # a twelfth of an hour: 0.27 + 0.075
        ("v1beta", {}, 900_000, 1_170_000_000),  # the hour that Google keeps them for by default
        ("v1beta", {"ttl": None}, 900_000, 1_170_000_000),
        ("v1beta", {"ttl": "3.5s"}, 1_000, 271_000_000),  # 4 seconds
    ],
)
async def test_contents_cost_all_of_their_time_when_they_are_made(
    stage: Stage, version: str, said: dict[str, Any], hours: int, nano: int
) -> None:
    priced(stage, cache_hour="1")
    assert (await make(stage, version, **said)).status == 200
    found = stage.facts()
    assert (found.tools, found.cost, found.unpriced) == ({"cache_hour": hours}, nano, "")
    assert (found.counts[0], found.total) == (900_000, 900_000)


async def test_a_call_holds_money_for_all_of_the_time(stage: Stage) -> None:
    stage.directory.budgets_there = [MONEY]
    priced(stage, cache_hour="4.5")
    await make(stage, ttl=f"{YEAR_S}s")
    # The text has 1,000 tokens or more: each 8,760 hours at 4.5 of a million.
    assert stage.counters.holds[-1].money >= 1_000 * 8_760 * 4_500
    await make(stage, ttl="3600s")
    assert 1_000 * 4_500 <= stage.counters.holds[-1].money < 3_000 * (4_500 + 300)


@pytest.mark.parametrize("hold", ["", "likely", "maximum"])
async def test_contents_with_a_file_of_unknown_length_hold_the_most_that_a_model_keeps(
    stage: Stage, hold: str
) -> None:
    stage.directory.budgets_there = [replace(MONEY, hold=hold)]
    priced(stage, cache_hour="1", audio_input="0.3")  # the file may be sound
    stage.objects.kept.add((CALLER.organization_id, "files/f1"))
    own = {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/f1"}}
    public = {"fileData": {"fileUri": "https://example.com/a.mp4", "mimeType": "video/mp4"}}
    broken = {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0xLjcKJSVFT0Y="}}  # has no page
    most = 10 * 1_048_576
    for parts, held in ((TEXT[0]["parts"], 10 * 1_000), ([own], most), ([public], most), ([broken], most)):
        await make(stage, contents=[{"parts": parts}], ttl="36000s")
        money = stage.counters.holds[-1].money
        assert held * 1_000 <= money < 3 * held * 1_000, "ten hours at a thousand billionths a token"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"ttl": "-1s"}, "ttl"), ({"ttl": "0s"}, "ttl"), ({"ttl": "300"}, "ttl"), ({"ttl": 300}, "ttl"),
        ({"ttl": "1e9s"}, "ttl"), ({"ttl": " 5s"}, "ttl"), ({"ttl": "٣s"}, "ttl"), ({"ttl": "NaNs"}, "ttl"),
        ({"ttl": {"seconds": 5}}, "ttl"), ({"ttl": "31622401s"}, "ttl"), ({"ttl": "999999999s"}, "ttl"),
        ({"expireTime": "2020-01-01T00:00:00Z"}, "expireTime"),
        ({"expireTime": "9999-12-31T23:59:59Z"}, "expireTime"),
        ({"expireTime": "0001-01-01T00:00:00+14:00"}, "expireTime"),
        ({"expireTime": "2030-13-01T00:00:00Z"}, "expireTime"),
        ({"expireTime": "2030-01-01 00:00:00Z"}, "expireTime"),
        ({"expireTime": "2030-01-01T00:00:00"}, "expireTime"), ({"expireTime": 4_102_444_800}, "expireTime"),
        ({"expire_time": "soon"}, "expire_time"),
        ({"ttl": "5s", "expireTime": "2030-01-01T00:00:00Z"}, "expireTime"),
        ({"expireTime": "2030-01-01T00:00:00Z", "expire_time": "2030-01-01T00:00:00Z"}, "expire_time"),
    ],
)  # fmt: skip
async def test_a_time_that_is_unreadable_or_unbounded_is_refused(
    stage: Stage, said: dict[str, Any], field: str
) -> None:
    priced(stage, cache_hour="1")
    paid(stage, 0)
    for got in (await make(stage, **said), await extend(stage, **said)):
        assert (got.status, got.reason) == (400, "invalid_request")
        details = json.loads(got.body)["error"]["details"]
        assert field in {one["field"] for each in details for one in each.get("fieldViolations", ())}
    assert not stage.upstream.received


async def test_contents_without_a_price_are_refused_where_money_decides(stage: Stage) -> None:
    priced(stage)
    assert (await make(stage)).status == 200
    assert (stage.facts().cost, stage.facts().unpriced) == (270_000_000, "cache_hour")
    stage.directory.budgets_there = [MONEY]
    got = await make(stage)
    assert (got.status, got.reason) == (403, "model_not_priced")
    assert b"cache_hour" in got.body
    assert len(stage.upstream.received) == 1


async def test_contents_with_a_tool_or_sound_without_a_price_are_refused_where_money_decides(
    stage: Stage,
) -> None:
    priced(stage, cache_hour="1")
    stage.directory.budgets_there = [MONEY]
    sound = [{"parts": [{"inlineData": {"mimeType": "audio/mp3", "data": "SUQz"}}]}]
    for said, named in (({"tools": [{"googleMaps": {}}]}, b"googleMaps"), ({"contents": sound}, b"sound")):
        got = await make(stage, **said)
        assert (got.status, named in got.body) == (403, True)


async def test_a_longer_time_costs_what_it_adds(stage: Stage) -> None:
    stage.directory.budgets_there = [MONEY]
    priced(stage, cache_hour="1")
    before_s = int(time.time()) + 3_600
    end_s = before_s + 9_000  # two and a half hours later
    until = end_of(end_s)
    paid(stage, before_s)
    assert (await extend(stage, **until)).status == 200
    found = stage.facts()
    assert (found.tools, found.cost, found.model) == ({"cache_hour": 2_250_000}, 2_250_000_000, "flash")
    assert 2_250_000_000 <= stage.counters.holds[-1].money < 2_250_100_000  # and its few bytes
    payment = CachePayment(CALLER.organization_id, "flash", 900_000, end_s)
    assert read_payment(stage.objects.notes[NAME]) == payment
    for said in (until, {"ttl": "60s"}, {}):  # the same end, an earlier one, none
        assert (await extend(stage, **said)).status == 200
        assert (stage.facts().tools, stage.facts().cost) == ({}, 0)
    assert read_payment(stage.objects.notes[NAME]) == payment


@pytest.mark.parametrize("mask", ["ttl", "expireTime", "ttl,expireTime"])
async def test_an_update_mask_reaches_the_upstream_and_a_masked_end_that_is_not_stated_costs_an_hour(
    stage: Stage, mask: str
) -> None:
    priced(stage, cache_hour="1")
    stage.objects.kept.add((CALLER.organization_id, NAME))
    for said, hours in (({"ttl": "7200s"}, 2), ({}, 1)):
        stage.objects.notes.clear()
        assert (await extend(stage, f"?updateMask={mask}", **said)).status == 200
        assert stage.facts().tools == {"cache_hour": hours * 900_000}
        assert stage.upstream.received[-1].target.endswith(f"?updateMask={mask}".encode())
    other = await extend(stage, "?fields=usageMetadata", ttl="7200s")
    assert (other.status, other.reason) == (400, "invalid_request")


@pytest.mark.parametrize("ends", [range(1, 11), range(10, 0, -1), [1] * 10])
async def test_extensions_that_overlap_cost_each_hour_once(valkey: str, ends: Sequence[int]) -> None:
    """All have read the same payment before any of them is charged."""
    wire = RedisConnection(parse_url(valkey), time.monotonic)
    await wire.open()
    objects, before_s = ObjectOwners(wire, time.time, 86_400, 100), int(time.time()) + 3_600
    async with staged(ROUTES, stored=objects) as stage:
        priced(stage, cache_hour="1")
        await in_task(objects.keep(CALLER, [NAME]))
        await in_task(
            objects.note(
                NAME, write_payment(CachePayment(CALLER.organization_id, "flash", 900_000, before_s))
            )
        )
        goes_on = [asyncio.Event() for _ in ends]
        stage.upstream.scripts = [[one, answer(json.dumps(SAID).encode())] for one in goes_on]
        waiting: list[asyncio.Task[Answer]] = []
        for hours in ends:
            sent = extension(**end_of(before_s + hours * 3_600))
            waiting.append(asyncio.create_task(stage.ask(sent)))
            await eventually(lambda: len(stage.upstream.received) == len(waiting))
        for event, one in zip(goes_on, waiting, strict=True):
            event.set()
            assert (await one).status == 200
        # An hour of 900,000 tokens costs 0.9.
        charged = [stage.facts(number).cost for number in range(len(ends))]
        assert sum(charged) == max(ends) * 900_000_000
        payment = read_payment(await in_task(objects.noted(NAME)))
        assert payment is not None
        assert payment.until_s == before_s + max(ends) * 3_600
    await wire.close()


async def test_a_longer_time_of_unknown_contents_costs_all_of_it(stage: Stage) -> None:
    priced(stage, cache_hour="1")
    stage.objects.kept.add((CALLER.organization_id, NAME))
    assert (await extend(stage, ttl="7200s")).status == 200
    found = stage.facts()
    assert (found.tools, found.unpriced, found.units) == ({"cache_hour": 1_800_000}, "cache_hour", 1)
    stage.directory.budgets_there = [MONEY]
    got = await extend(stage, ttl="7200s")
    assert (got.status, got.reason) == (403, "model_not_priced")
    assert len(stage.upstream.received) == 1


async def test_contents_that_are_made_are_known_when_they_are_extended(stage: Stage) -> None:
    stage.directory.budgets_there = [MONEY]
    priced(stage, cache_hour="1")
    earliest_s = int(time.time()) + YEAR_S
    await make(stage, ttl=f"{YEAR_S}s")
    payment = read_payment(stage.objects.notes[NAME])
    assert payment is not None
    assert (payment.organization_id, payment.model, payment.tokens) == (
        CALLER.organization_id,
        "flash",
        900_000,
    )
    assert payment.until_s >= earliest_s
    await extend(stage, ttl="3600s")
    assert (stage.facts().cost, stage.facts().model) == (0, "flash")


async def test_contents_of_another_organization_are_unknown(stage: Stage) -> None:
    priced(stage, cache_hour="1")
    stage.directory.budgets_there = [MONEY]
    paid(stage, int(time.time()) + YEAR_S, organization_id=99)
    assert (await extend(stage, ttl="60s")).reason == "model_not_priced"
    stage.directory.budgets_there = []
    stage.objects.kept.clear()
    for budgets in ([], [MONEY]):
        stage.directory.budgets_there = budgets
        for said in ({"ttl": "60s"}, {}):
            got = await extend(stage, **said)
            assert (got.status, got.reason) == (404, "object_not_found")
    assert not stage.upstream.received


async def test_contents_that_their_upstream_refuses_cost_nothing(stage: Stage) -> None:
    priced(stage, cache_hour="1")
    for status in (b"400 Bad Request", b"503 Unavailable"):
        stage.upstream.scripts.append([answer(b"{}", status=status)])
        body = json.dumps({"model": "models/flash", "contents": TEXT, "ttl": f"{YEAR_S}s"}).encode()
        assert (await stage.ask(post(body, b"/v1beta/cachedContents", JSON))).status == int(status[:3])
    assert not stage.counters.charges
    assert not stage.objects.notes


async def test_contents_whose_size_nobody_reports_cost_their_estimate(stage: Stage) -> None:
    priced(stage, cache_hour="1")
    stage.upstream.scripts.append([answer(b'{"name":"cachedContents/c1"}')])
    body = json.dumps({"model": "models/flash", "contents": TEXT, "ttl": "36000s"}).encode()
    assert (await stage.ask(post(body, b"/v1beta/cachedContents", JSON))).status == 200
    found = stage.facts()
    assert found.estimated
    assert found.counts[0] >= 1_000  # of 3,000 letters
    assert found.tools == {"cache_hour": 10 * found.counts[0]}


async def test_a_call_for_contents_is_not_authorized_for_another_gateway(stage: Stage) -> None:
    got = await stage.ask(post(b"{}", b"/.tollkeeper/authorize/60/v1beta/cachedContents", JSON))
    assert (got.status, b"send them here" in got.body) == (404, True)
