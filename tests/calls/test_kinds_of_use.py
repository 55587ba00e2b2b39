"""One use, told in every way there is: a row a kind of use, a column a field of what it leaves behind.

The same answer of a provider is charged as a call, a job, a line of a batch, a hold by its answer; and the
same numbers as a hold by its usage and as an event. What they come to is calculated from the texts of prices.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import asdict

from gateway.calls.event_use import use_of
from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import CallFacts
from gateway.core.accounts.upstream_jobs import BATCH, RESPONSE, RUNNING, VIDEO, Job
from gateway.core.billing.events import EventUsage
from gateway.core.billing.money import CostMarkup, ServicePricing
from gateway.core.billing.price_book import KINDS, read_price
from gateway.core.families import openai
from gateway.core.model import Service
from gateway.features.jobs.polling import Jobs
from gateway.http.ports import JobsPort
from gateway.settings.settings import Settings
from tests.core.billing.prices import price_row
from tests.features.caller_holds.test_authorized import Holds
from tests.features.jobs.test_gateway import FakeJobs
from tests.http.fakes import answer, post
from tests.http.stage import Stage, staged

INPUT, OUTPUT, HALF, MARKUP = "1", "2", "0.5", "1.5"
PRICE = read_price(
    price_row(id=9, input=INPUT, output=OUTPUT, video_second="0.1", service_tiers={"batch": HALF})
).vector
AT_COST = ServicePricing(at_cost=CostMarkup(Decimal(MARKUP)))
SERVICE = Service(91, "responses", "pay_per_use", counts_tokens=True, pricing=AT_COST)
ROUTES = tuple(replace(route, upstream="up") for route in openai.FAMILY.routes)
MONEY = Budget(1, "money", "money", 10**12, "day")
PATH, SAID = b"/v1/responses", b'{"team":"a"}'
USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "brand_new_tokens": 7}
RESULT: dict[str, Any] = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m-1", "usage": USAGE,
    "output": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}],
}  # fmt: skip
ASKED = json.dumps({"model": "m", "input": "hi"}).encode()
HEADERS = b"x-tollkeeper-session: s1\r\nx-tollkeeper-metadata: " + SAID + b"\r\n"
USED = {"input": 10, "output": 5, "tools": {"web_search": 1}}
HOLDS = b"/.tollkeeper/holds"


def nano(times: str = "1", seconds: int = 0) -> int:
    """What 10 tokens read and 5 produced cost, or seconds of video, in nano-units."""
    tokens = (10 * Fraction(INPUT) + 5 * Fraction(OUTPUT)) / 10**6
    return int((Fraction(seconds, 10) if seconds else tokens) * Fraction(times) * 10**9)


def expected(cost: int | None, **over: Any) -> dict[str, dict[str, Any]]:
    """Every column of a use of these tokens that a provider told; `over` are facts that a kind has others."""
    facts: dict[str, Any] = asdict(CallFacts()) | {
        "model": "m", "response_model": "m-1", "status": 200, "total": 15, "units": 1,
        "counts": (10, 0, 0, 0, 5, 0, 0, 0, 0, 0), "tools": {"web_search": 1}, "cost": cost, "currency": "USD",
        "price_id": 9, "route": "/v1/responses", "session": "s1", "metadata": json.loads(SAID), "unknown": USAGE,
        "unpriced": "web_search", "groups": (5, 9),
    } | over  # fmt: skip
    del facts["duration_ms"]
    paid, counts, total = facts["cost"] or 0, facts["counts"], facts["total"]
    settlement = {
        "charge": True, "tokens": total, "quota_tokens": None, "credits": 0, "over": 0,
        "units": int(paid * Fraction(MARKUP)), "money": paid, "budget_tokens": total, "attribution": "",
    }  # fmt: skip
    counted = {
        "tokens": [
            ("responses", "input", sum(counts[:4])), ("responses", "output", counts[4]),
            ("responses", "total", total),
        ],
        "units": [("responses", facts["units"])], "credits": [],
        "cost": [("responses", "m", facts["currency"], paid / 10**9)],
        "unpriced_calls": [("responses", 1)] if facts["unpriced"] else [],
        "unknown_usage": 1 if facts["unknown"] else 0,
        "settlements_estimated": int(facts["estimated"]),
        "busy": {(2, "requests"): 1} | ({(2, "tokens"): total} if total else {}),
    }  # fmt: skip
    return {"facts": facts, "settlement": settlement, "counted": counted}


class LookedAt(Jobs):
    """The jobs of a worker whose upstream tells these answers, by their paths' last names."""

    def __init__(self, stage: Stage, told: dict[str, Any]) -> None:
        stored = SimpleNamespace(
            now_ms=lambda _: later(11_000), keep=lambda _: later(None), place=lambda _: later("0-1"),
            waits=lambda _: later(False),
        )  # fmt: skip
        super().__init__(cast("Any", stored), Settings(key_pepper="x" * 32), lambda *_, **__: None)
        self.serve(stage.plane, stage.plane._ports)
        self.told = told

    async def _ask(self, upstream: str, path: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        said = self.told[path.rpartition("/")[2].partition("?")[0]]
        return 200, said if isinstance(said, bytes) else json.dumps(said).encode()


async def later(value: Any) -> Any:
    return value


async def looked(stage: Stage, told: dict[str, Any], job: Job) -> None:
    """Have a worker look at a job, whose hold another one took."""
    assert await LookedAt(stage, told)._look(job)
    ids = {one.request_id for one in stage.counters.settlements}
    stage.counters.holds += [cast("Any", SimpleNamespace(request_id=one, raises=False)) for one in ids]


def job(kind: str, id_: str, **over: Any) -> Job:
    """A job that was made ten seconds ago and runs."""
    made = Job(
        "00000000-0000-4000-8000-000000000001", 1, 2, 3, 4, "", "responses", "up", "/v1/responses", "m", "",
        1, 1_000, 90_000_000, id=id_, status=RUNNING, kind=kind, currency="USD", accounts=("money",),
        session="s1", metadata=SAID.decode(), groups=(5, 9),
    )  # fmt: skip
    for name, value in over.items():
        setattr(made, name, value)
    return made


async def as_call(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(json.dumps(RESULT).encode(), b"x-request-id: up-1\r\n")])
    assert (await stage.ask(post(ASKED, PATH, HEADERS))).status == 200


async def as_response(stage: Stage) -> None:
    await looked(stage, {"resp_1": RESULT}, job(RESPONSE, "resp_1"))


async def as_line(stage: Stage) -> None:
    line = {"custom_id": "a", "response": {"status_code": 200, "request_id": "up-1", "body": RESULT}}
    told = {
        "batch_1": {"id": "batch_1", "status": "completed", "output_file_id": "file-1"},
        "content": json.dumps(line).encode(),
    }
    await looked(stage, told, job(BATCH, "batch_1", batches="/v1/batches"))


async def as_lost_line(stage: Stage) -> None:
    """A line whose answer nobody can read costs what was held for it."""
    line = {"custom_id": "a", "response": {"status_code": 200, "request_id": "up-1", "body": {}}}
    told = {
        "batch_1": {"id": "batch_1", "status": "completed", "output_file_id": "file-1"},
        "content": json.dumps(line).encode(),
    }
    held = {"tokens": 15, "budget_tokens": 15, "held": nano(), "money": nano(), "units": nano(MARKUP)}
    await looked(stage, told, job(BATCH, "batch_1", batches="/v1/batches", **held))


async def as_video(stage: Stage) -> None:
    made = {"id": "video_1", "object": "video", "status": "completed", "model": "m-1", "seconds": "6"}
    one = job(VIDEO, "video_1", endpoint="/v1/videos", seconds=6)
    await looked(stage, {"video_1": made}, one)


async def held(stage: Stage, **asked: Any) -> bytes:
    body = json.dumps({"service": "responses", "model": "m", **asked}).encode()
    got = await stage.ask(post(body, HOLDS, HEADERS))
    assert got.status == 201, got.body
    return bytes(json.loads(got.body)["id"].encode())


async def as_hold_by_answer(stage: Stage) -> None:
    id_ = await held(stage, request=json.loads(ASKED))
    path = b"%b/%b/answers/200" % (HOLDS, id_)
    got = await stage.ask(post(json.dumps(RESULT).encode(), path, b"content-type: application/json\r\n"))
    assert got.status == 200, got.body


async def as_hold(stage: Stage, **said: Any) -> None:
    id_ = await held(stage, max_tokens=100)
    got = await stage.ask(post(json.dumps(said).encode(), b"%b/%b/settle" % (HOLDS, id_)))
    assert got.status == 200, got.body


async def as_hold_by_usage(stage: Stage) -> None:
    await as_hold(stage, usage=USED)


async def as_hold_by_cost(stage: Stage) -> None:
    await as_hold(stage, usage=USED, cost="0.5")


OF_LINE = {"upstream_request_id": "up-1", "service_tier": "batch"}
BY_HAND = {"response_model": "", "unknown": None, "route": "/.tollkeeper/holds/{id}/settle"}
NO_TOKENS = {"counts": (0,) * 10, "unpriced": "", "unknown": None}
KINDS_OF_USE: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "call": (as_call, expected(nano(), upstream_request_id="up-1")),
    "background response": (as_response, expected(nano())),
    "line of a batch": (as_line, expected(nano(HALF), **OF_LINE)),
    "line that nobody can read": (
        as_lost_line,
        expected(nano(), **OF_LINE, **NO_TOKENS, response_model="", tools={}, estimated=True, price_id=0,
                 units=nano(MARKUP)),
    ),
    "video": (
        as_video,
        expected(nano(seconds=6), **NO_TOKENS, total=0, tools={"video_second": 6}, route="/v1/videos"),
    ),
    "hold by its answer": (as_hold_by_answer, expected(nano())),
    "hold by its usage": (as_hold_by_usage, expected(nano(), **BY_HAND)),
    "hold by its cost": (as_hold_by_cost, expected(500_000_000, **BY_HAND, price_id=0, unpriced="")),
}  # fmt: skip


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES, jobs=cast("JobsPort", FakeJobs()), holds=cast("Any", Holds())) as made:
        made.directory.services["responses"] = SERVICE
        made.directory.prices["m"] = PRICE
        made.directory.budgets_there = [MONEY]
        made.directory.groups_there = (5, 9)
        yield made


@pytest.mark.parametrize("kind", KINDS_OF_USE)
async def test_every_kind_of_use_leaves_the_same_behind(stage: Stage, kind: str) -> None:
    tell, wanted = KINDS_OF_USE[kind]
    await tell(stage)
    await stage.settled()
    [settlement] = stage.counters.charges
    facts = {name: getattr(stage.facts(), name) for name in CallFacts.__struct_fields__}
    assert facts.pop("duration_ms") >= (10_000 if "hold" not in kind and kind != "call" else 0)
    for name in ("metadata", "unknown"):
        facts[name] = json.loads(bytes(facts[name]))
    assert facts == wanted["facts"]
    assert {name: getattr(settlement, name) for name in wanted["settlement"]} == wanted["settlement"]
    told: Any = stage.tally.snapshot()
    told |= {"busy": stage.tally.take_busy(), "unknown_usage": sum(n for _, n in told["unknown_usage"])}
    assert {name: told[name] for name in wanted["counted"]} == wanted["counted"]


def test_an_event_leaves_the_same_behind() -> None:
    """The keeper charges it, which counts nothing: it is no call of a worker."""
    counts = tuple({"input": 10, "output": 5}.get(kind, 0) for kind in KINDS)
    told = EventUsage(5, "m", "", None, 1, counts, {"web_search": 1}, "", is_counted=True)
    for price, cost in ((PRICE, nano()), (None, None)):
        service = SERVICE if price is not None else replace(SERVICE, meter="subscription")
        use = use_of(told, 2, service, price, None, in_cycle=True)
        over: dict[str, Any] = {} if price is not None else {"price_id": 0, "currency": ""}
        over |= {"response_model": "", "session": "", "unknown": None, "metadata": None}
        wanted = expected(cost, **over, used_ms=5, route="events", groups=())
        facts = {name: getattr(use.facts, name) for name in wanted["facts"]}
        assert facts | {"metadata": None, "unknown": None} == wanted["facts"]
        units = 0 if price is None else wanted["settlement"]["units"]
        assert (use.tokens, use.units, use.money) == (15, units, cost or 0)
