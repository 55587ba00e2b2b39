"""Jobs through a worker: what is held for a video and for batches, against a table by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from gateway.calls.charge import ChargedUse
from gateway.core.accounts.batch_lines import BatchResult
from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import read_facts
from gateway.core.accounts.upstream_jobs import HOLD_S_MAX, JOB_S_MAX, OPENING, RUNNING, Job
from gateway.core.billing.price_book import read_price
from gateway.core.calls.call import DEFAULT_BOUNDS
from gateway.core.calls.routes import (
    ModelRule,
    ModelTarget,
    Route,
    TokenCounts,
    UpstreamFacts,
    UpstreamTarget,
)
from gateway.core.families import gemini, openai
from gateway.core.model import Caller, Service
from gateway.errors import CountersUnavailable, InvalidRequest
from gateway.features.jobs.gateway import call_charge, line_charges
from gateway.features.jobs.polling import Jobs
from gateway.http.ports import JobsPort
from gateway.http.server.buffers import FILES_EACH_MAX
from gateway.settings.settings import Settings
from tests.core.billing.prices import price_row
from tests.http.fakes import FakeObjects, answer, get, post
from tests.http.stage import Close, FakeUpstream, Stage, Step, staged
from tests.waiting import eventually

AZURE = tuple(
    Route(("POST",), path, "up", family=openai.NAME) for path in ("/openai/v1/batches", "/openai/v1/files")
)
ROUTES = (
    *(replace(route, upstream="up") for one in (openai.FAMILY, gemini.FAMILY) for route in one.routes),
    *AZURE,
)
MONEY = Budget(1, "money", "money", 10**12, "day")
VEO = b"/v1beta/models/draw:predictLongRunning"
BATCH = b"/v1beta/models/draw:batchGenerateContent"


class FakeJobs:
    """Jobs that are kept as they were when they were kept last."""

    def __init__(self) -> None:
        self.kept: list[Job] = []
        self.objects = FakeObjects()
        self.file = b""

    async def open(self, job: Job) -> None:
        await self.keep(job)

    async def keep(self, job: Job) -> None:
        self.kept = [one for one in self.kept if one.hold_id != job.hold_id] + [job]

    async def drop(self, job: Job) -> None:
        self.kept = [one for one in self.kept if one.hold_id != job.hold_id]

    async def begun(self, job: Job) -> bool:
        await self.keep(job)
        self.objects.kept.add((job.organization_id, job.id))
        return True

    async def find(self, caller: Caller, id_: str) -> Job | None:
        return next((one for one in self.kept if one.id == id_), None)

    async def look(self, job: Job) -> bool:
        return False

    async def fetch(self, upstream: str, path: str, bytes_max: int, arrive: Callable[[int], None]) -> bytes:
        return self.file


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES, jobs=cast("JobsPort", FakeJobs())) as made:
        for number, key in enumerate(("videos", "gemini", "chat"), 91):
            made.directory.services[key] = Service(number, key, "subscription")
        price = price_row(id=5, model="draw", video_second="0.1", input="1", output="2")
        made.directory.prices["draw"] = read_price(price).vector
        made.directory.budgets_there = [MONEY]
        jobs(made).objects = made.objects
        yield made


def jobs(stage: Stage) -> FakeJobs:
    return cast("FakeJobs", stage.ports().jobs or stage.plane._ports.jobs)


async def asked(stage: Stage, path: bytes, said: dict[str, Any], told: dict[str, Any]) -> Job:
    stage.upstream.scripts.append([answer(json.dumps(told).encode())])
    got = await stage.ask(post(json.dumps(said).encode(), path))
    assert got.status == 200, got.body
    return jobs(stage).kept[-1]


async def test_job_status_is_requested_from_the_upstream_that_accepted_the_job() -> None:
    other = FakeUpstream()
    await other.start()
    target = UpstreamTarget("other", f"http://127.0.0.1:{other.port}", (("authorization", "Bearer theirs"),))
    rule = ModelRule("film", False, (ModelTarget("other", "draw"), ModelTarget("up", "draw")))
    async with staged(ROUTES, jobs=cast("JobsPort", FakeJobs()), others=(target,), models=(rule,)) as stage:
        stage.directory.services["videos"] = Service(91, "videos", "subscription")
        jobs(stage).objects = stage.objects
        told = json.dumps({"id": "video_1", "status": "queued"}).encode()
        other.scripts += [
            [answer(b"{}", status=b"500 Internal Server Error")],
            [answer(told)],
            [answer(told)],
        ]
        asked = post(b'{"model": "film", "prompt": "a"}', b"/v1/videos")
        assert (await stage.ask(asked)).status == 500, "it may have been begun, so nobody else is asked"
        assert [(one.status, one.upstream) for one in jobs(stage).kept] == [(OPENING, "other")]
        assert not stage.counters.settlements, "its hold stays until it is known what came of it"
        assert (await stage.ask(asked)).status == 200
        assert (jobs(stage).kept[-1].upstream, jobs(stage).kept[-1].sent) == ("other", "draw")
        assert (await stage.ask(get(b"/v1/videos/video_1"), "GET")).status == 200
        assert other.received[-1].all(b"authorization") == [b"Bearer theirs"]
        assert not stage.upstream.received
    await other.stop()


async def test_a_job_goes_on_from_an_empty_account_and_stays_at_its_upstream() -> None:
    other = FakeUpstream()
    await other.start()
    target = UpstreamTarget("other", f"http://127.0.0.1:{other.port}", (("authorization", "Bearer theirs"),))
    rule = ModelRule("film", False, (ModelTarget("up", "draw"), ModelTarget("other", "paint")))
    async with staged(ROUTES, jobs=cast("JobsPort", FakeJobs()), others=(target,), models=(rule,)) as stage:
        stage.directory.services["videos"] = Service(91, "videos", "subscription")
        jobs(stage).objects = stage.objects
        stage.upstream.scripts.append([answer(b'{"error":{}}', status=b"402 Payment Required")])
        made = json.dumps({"id": "video_1", "status": "queued"}).encode()
        other.scripts += [[answer(made)], [answer(made)]]
        assert (await stage.ask(post(b'{"model": "film", "prompt": "a"}', b"/v1/videos"))).status == 200
        assert (jobs(stage).kept[-1].upstream, jobs(stage).kept[-1].sent) == ("other", "paint")
        assert (await stage.ask(get(b"/v1/videos/video_1"), "GET")).status == 200
        assert (len(stage.upstream.received), len(other.received)) == (1, 2)
    await other.stop()


async def test_video_cost_is_held_by_requested_seconds_and_not_charged_before_completion(
    stage: Stage,
) -> None:
    told = {"id": "video_1", "object": "video", "status": "queued", "model": "draw", "seconds": "8"}
    job = await asked(stage, b"/v1/videos", {"model": "draw", "prompt": "a", "seconds": 8}, told)
    assert (job.id, job.status, job.seconds, job.endpoint) == ("video_1", RUNNING, 8, "/v1/videos")
    # 8 s × 0.1, and a token or two of the prompt at a millionth
    assert 800_000_000 <= stage.counters.holds[-1].money <= 800_100_000
    assert not stage.counters.charges
    again = await asked(stage, b"/v1/videos/video_1/remix", {"prompt": "b"}, told | {"id": "video_2"})
    assert (again.id, again.model, again.seconds) == ("video_2", "draw", 8)


async def test_job_is_charged_with_the_declared_tags_of_its_request(stage: Stage) -> None:
    """They are those that were declared then."""
    stage.directory.tag_names = ("feature",)
    stage.upstream.scripts.append([answer(b'{"id": "video_1", "status": "queued", "seconds": "8"}')])
    said = b'x-tollkeeper-metadata: {"feature": "search", "team": "red"}\r\n'
    request = post(b'{"model": "draw", "prompt": "a", "seconds": 8}', b"/v1/videos", said)
    assert (await stage.ask(request)).status == 200
    stage.directory.tag_names = ("feature", "team")
    route = next(route for route in ROUTES if route.meter == "openai_videos")
    made = call_charge(
        stage.plane._ports, jobs(stage).kept[-1], stage.directory.services["videos"], route,
        b'{"id": "video_1", "status": "completed"}', False, DEFAULT_BOUNDS, 0.0,
    )  # fmt: skip
    assert made is not None
    facts = read_facts(made.settlement.metadata)
    assert facts is not None
    assert facts.tags == {"feature": "search"}


@pytest.mark.parametrize(
    ("said", "nano"),
    [
        ({"status": "completed", "seconds": "6"}, 600_000_000),
        ({"status": "completed", "seconds": 12}, 1_200_000_000),
        ({"status": "completed"}, 800_000_000),
        ({"status": "expired", "completed_at": 5, "seconds": "4"}, 400_000_000),
        ({"status": "failed", "seconds": "4"}, 0),
    ],
)
async def test_video_is_charged_by_the_seconds_generated(
    stage: Stage, said: dict[str, Any], nano: int
) -> None:
    told = {"id": "video_1", "status": "queued"}
    job = await asked(stage, b"/v1/videos", {"model": "draw", "prompt": "a", "seconds": "8"}, told)
    await charges(stage, job, "openai_videos", said, nano)


@pytest.mark.parametrize(
    ("response", "nano"),
    [
        ({"generateVideoResponse": {"generatedSamples": [{}, {}]}}, 1_200_000_000),
        ({"generateVideoResponse": {"generatedSamples": [{}], "raiMediaFilteredCount": 1}}, 600_000_000),
        ({"generateVideoResponse": {"raiMediaFilteredCount": 2}}, 0),
        ({}, 1_200_000_000),
    ],
)
async def test_gemini_videos_are_charged_by_the_number_generated(
    stage: Stage, response: dict[str, Any], nano: int
) -> None:
    said = {"instances": [{"prompt": "a"}], "parameters": {"sampleCount": 2, "durationSeconds": 6}}
    job = await asked(stage, VEO, said, {"name": "models/draw/operations/op"})
    assert (job.id, job.videos, job.seconds) == ("operations/op", 2, 12)
    over = {"name": "x", "done": True, "response": response}
    await charges(stage, job, "gemini_videos", over, nano)


@pytest.mark.parametrize(
    ("parameters", "instance"),
    [
        ({"durationSeconds": 4, "duration_seconds": 8}, {}),
        ({"sample_count": 4}, {}),
        ({"number_of_videos": 4}, {}),
        ({"storage_uri": "gs://b"}, {}),
        ({}, {"image": {"gcs_uri": "gs://b/x"}}),
    ],
)
async def test_gemini_video_parameter_in_an_alternative_spelling_is_refused(
    stage: Stage, parameters: dict[str, Any], instance: dict[str, Any]
) -> None:
    said = json.dumps({"instances": [{"prompt": "a", **instance}], "parameters": parameters}).encode()
    for path in (VEO, b"/v1beta/models/draw:predict"):
        if path == VEO or not parameters.keys() & {"durationSeconds", "number_of_videos"}:
            assert (await stage.ask(post(said, path))).reason == "invalid_request"
    assert not stage.upstream.received


RUNNING_RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "status": "in_progress", "created_at": 7, "model": "draw",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Tolls are due. " * 2_000}]}],
}  # fmt: skip


async def test_background_response_is_shown_without_output_until_charged(stage: Stage) -> None:
    stage.directory.services["responses"] = Service(95, "responses", "subscription")
    said = {"model": "draw", "input": "x", "background": True}
    await asked(stage, b"/v1/responses", said, {"id": "resp_1", "status": "queued"})
    for request, method, status, shown in (
        (get(b"/v1/responses/resp_1"), "GET", "in_progress", "in_progress"),
        (get(b"/v1/responses/resp_1"), "GET", "completed", "in_progress"),
        (post(b"", b"/v1/responses/resp_1/cancel"), "POST", "cancelled", "cancelled"),
    ):
        stage.upstream.scripts.append([answer(json.dumps({**RUNNING_RESPONSE, "status": status}).encode())])
        got = await stage.ask(request, method)
        told = json.loads(got.body)
        assert (told["status"], told["output"], told["id"]) == (shown, [], "resp_1")
        assert b"Tolls" not in got.body
    got = await stage.ask(get(b"/v1/responses/resp_1?stream=true"), "GET")
    assert (got.status, b"stream" in got.body) == (400, True)
    job = jobs(stage).kept[-1]
    job.settled_ms = 1
    stage.upstream.scripts.append([answer(json.dumps(RUNNING_RESPONSE).encode())])
    assert json.loads((await stage.ask(get(b"/v1/responses/resp_1"), "GET")).body) == RUNNING_RESPONSE


@pytest.mark.parametrize(
    ("letters", "most", "tokens"),
    [(15, None, 1_000), (6_000, None, 1_500), (6_000, 1_200, 1_200), (6_000, 900, 1_000)],
)
async def test_cancelled_background_response_is_charged_the_hold_or_the_text_within_the_maximum(
    stage: Stage, letters: int, most: int | None, tokens: int
) -> None:
    stage.directory.services["responses"] = Service(95, "responses", "subscription", counts_tokens=True)
    said = {"model": "draw", "input": "x", "background": True, "max_output_tokens": most}
    job = await asked(stage, b"/v1/responses", said, {"id": "resp_1", "status": "queued"})
    assert job.output_max == (most or 1)  # what the hold covers
    job.tokens, job.budget_tokens, job.output_max = 1_000, 1_000, most or 0
    route = next(one for one in ROUTES if one.meter == "openai_responses")
    content = [{"type": "output_text", "text": "x" * letters}]
    body = json.dumps({"id": "resp_1", "status": "cancelled", "output": [{"content": content}]}).encode()
    service = stage.directory.services["responses"]
    made = call_charge(stage.plane._ports, job, service, route, body, False, DEFAULT_BOUNDS, 0.0)
    assert made is not None
    facts = read_facts(made.settlement.metadata)
    assert facts is not None
    assert (made.settlement.tokens, facts.total, facts.estimated) == (tokens, tokens, True)


async def charges(stage: Stage, job: Job, meter: str, said: dict[str, Any], nano: int) -> None:
    """What a result is charged, by the table."""
    route = next(one for one in ROUTES if one.meter == meter)
    service, free = stage.directory.services["videos"], said.get("status") == "failed"
    body = json.dumps(said).encode()
    made = call_charge(stage.plane._ports, job, service, route, body, free, DEFAULT_BOUNDS, 0.0)
    assert made is not None or free
    if made is not None:
        charge = made.settlement
        assert (charge.money, made.cost, charge.request_id) == (nano, nano, job.hold_id)
    if made is not None and nano:
        facts = read_facts(charge.metadata)
        assert facts is not None
        assert (facts.tools, facts.estimated) == ({"video_second": nano // 10**8}, False)


@pytest.mark.parametrize(
    ("step", "status", "units"),
    [
        (answer(b'{"id": "ftjob-1"}'), 200, 1),
        (Close(reset=True), 502, 1),
        (answer(b"{}", status=b"500 Failed"), 500, 0),
        (answer(b"{}", status=b"400 Wrong"), 400, 0),
    ],
)
async def test_fine_tuning_job_is_charged_after_a_lost_upstream_answer_but_not_after_a_refusal(
    stage: Stage, step: Step, status: int, units: int
) -> None:
    stage.directory.services["fine_tuning"] = Service(94, "fine_tuning", "subscription")
    stage.directory.budgets_there = []
    stage.upstream.scripts.append([step])
    asked = post(b'{"model": "draw", "training_file": "file-1"}', b"/v1/fine_tuning/jobs")
    stage.objects.kept.add((stage.directory.caller.organization_id, "file-1"))
    assert (await stage.ask(asked)).status == status
    await stage.settled()
    (settlement,) = stage.counters.settlements
    assert (settlement.charge, settlement.units * settlement.charge) == (units > 0, units)
    facts = read_facts(settlement.metadata)
    assert facts is not None
    assert facts.estimated is (units > 0 and status == 502)
    assert facts.tools == ({"fine_tuning_job": 1} if units else {})


async def test_gemini_batch_holds_the_sum_of_the_holds_of_the_batched_calls(stage: Stage) -> None:
    call = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 100}}
    calls = {"requests": [{"request": call}] * 3}
    said = {"batch": {"displayName": "x", "input_config": {"requests": calls}}}
    job = await asked(stage, BATCH, said, {"name": "batches/b1", "metadata": {}})
    assert (job.id, job.status, job.lines, job.model) == ("batches/b1", RUNNING, 3, "draw")
    assert job.endpoint == "/v1beta/models/{model}:generateContent"
    # three times at most 100 tokens at 2 millionths, and what is read
    assert 0 < job.held <= 3 * 300_000
    for wrong in ({"model": "models/dear"}, {"inputConfig": {"requests": calls}}):
        got = await stage.ask(post(json.dumps({"batch": said["batch"] | wrong}).encode(), BATCH))
        assert (got.status, got.reason) == (400, "invalid_request")


@pytest.mark.parametrize(("stated", "each"), [(100, 50), (5, 16), (None, 30)])
async def test_batch_line_holds_output_tokens_within_the_minimum_and_maximum_of_the_upstream(
    stated: int | None, each: int
) -> None:
    facts = UpstreamFacts(output_max=50, output_min=TokenCounts(16), output_default=TokenCounts(30))
    async with staged(ROUTES, jobs=cast("JobsPort", FakeJobs()), of_target={"facts": facts}) as made:
        made.directory.services["gemini"] = Service(92, "gemini", "subscription")
        call: dict[str, Any] = {"contents": [{"parts": [{"text": "hi"}]}]}
        call |= {} if stated is None else {"generationConfig": {"maxOutputTokens": stated}}
        calls = {"requests": [{"request": call}] * 3}
        said = {"batch": {"displayName": "x", "input_config": {"requests": calls}}}
        await asked(made, BATCH, said, {"name": "batches/b1", "metadata": {}})
        hold = made.counters.holds[-1]
        assert hold.ceiling - hold.read == 3 * each
        made.counters.holds.clear()


async def test_batch_line_answered_twice_is_charged_once_and_a_missing_line_a_share_of_the_hold(
    stage: Stage,
) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
    body = json.dumps({"model": "draw", "choices": [], "usage": usage}).encode()
    job = Job("hold", 1, 2, 3, 0, "", "chat", "up", "/v1/chat/completions", "draw", "", 3, 0, 0, id="b")
    job.held, job.currency, job.budget_tokens = 3_000, "USD", 300
    route = next(one for one in ROUTES if one.path == job.endpoint)
    ports, service = stage.plane._ports, stage.directory.services["chat"]
    free, used = BatchResult("a", 500, "", b"", True), BatchResult("a", 200, "", body, False)

    def charged(found: list[BatchResult], answered: int) -> list[ChargedUse]:
        made = line_charges(ports, job, service, route, found, answered, DEFAULT_BOUNDS, 0.0)
        return [one for one in made if one is not None]

    (once,) = charged([used], 1)
    again = charged([free, used, used, used, free], 2)
    assert again[0].settlement.request_id == once.settlement.request_id
    assert sum(one.cost for one in again) == once.cost + 1_000  # the other of two answered is its share
    assert len({one.settlement.request_id for one in again}) == len(again) == 2


# Of the hold of 234 tokens each of three lines has 78: an absent prompt is no report, as over HTTP.
@pytest.mark.parametrize(
    ("usage", "total"),
    [
        (None, 78),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, 78),
        ({"prompt_tokens": 0, "completion_tokens": 30, "total_tokens": 30}, 78),
        ({"prompt_tokens": 0, "completion_tokens": 90, "total_tokens": 90}, 91),
        ({"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}, 47),
    ],
)
async def test_batch_line_without_reported_prompt_tokens_costs_at_least_a_share_of_the_hold(
    stage: Stage, usage: dict[str, int] | None, total: int
) -> None:
    choices = [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]
    body = json.dumps({"model": "draw", "choices": choices, "usage": usage}).encode()
    job = Job("hold", 1, 2, 3, 0, "", "chat", "up", "/v1/chat/completions", "draw", "", 3, 0, 0, id="b")
    job.budget_tokens = 234
    route = next(one for one in ROUTES if one.path == job.endpoint)
    ports, service = stage.plane._ports, stage.directory.services["chat"]
    line = BatchResult("a", 200, "", body, False)
    (made,) = line_charges(ports, job, service, route, [line], 1, DEFAULT_BOUNDS, 0.0)
    assert made is not None
    assert (made.counted.total, made.counted.estimated) == (total, total != 47)


@pytest.mark.parametrize("each", [False, True])
async def test_batch_line_with_usage_of_a_single_choice_is_charged_an_estimate_for_all_choices(
    stage: Stage, each: bool
) -> None:
    choices = [{"index": at, "message": {"content": "word " * 10}, "finish_reason": "stop"} for at in (0, 1)]
    usage = {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
    body = json.dumps({"model": "draw", "choices": choices, "usage": usage}).encode()
    job = Job("hold", 1, 2, 3, 0, "", "chat", "up", "/v1/chat/completions", "draw", "", 1, 0, 0, id="b")
    route = next(one for one in ROUTES if one.path == job.endpoint)
    line = BatchResult("a", 200, "", body, False)
    ports, service = stage.plane._ports, stage.directory.services["chat"]
    (made,) = line_charges(ports, job, service, route, [line], 1, DEFAULT_BOUNDS, 0.0, each)
    assert made is not None
    assert (made.counted.output > 80, made.counted.estimated) == (each, each)
    assert each or made.counted.output == 40


@pytest.mark.parametrize(("category", "cost"), [("cyber", None), ("bio", 47)])
async def test_refused_batch_line_is_charged_the_reported_use_or_zero_but_never_a_share_of_the_hold(
    stage: Stage, category: str, cost: int | None
) -> None:
    """A job of 26 November 2026. Of the hold its line has 3,000, and a token of it costs a billionth."""
    price = price_row(model="draw", input="0.002", output="0.002", service_tiers={"batch": "0.5"})
    stage.directory.prices["draw"] = read_price(price).vector
    refused = {"index": 0, "message": {"content": None}, "finish_reason": "refusal",
               "stop_details": {"category": category}}  # fmt: skip
    usage = {"prompt_tokens": 47, "completion_tokens": 0, "total_tokens": 47}
    body = json.dumps({"model": "draw", "choices": [refused], "usage": usage}).encode()
    job = Job("hold", 1, 2, 3, 0, "", "chat", "up", "/v1/chat/completions", "draw", "", 1, 0, 0, id="b")
    job.held, job.currency, job.created_ms = 3_000, "USD", 1_795_700_000_000
    route = next(one for one in ROUTES if one.path == job.endpoint)
    line = BatchResult("a", 200, "", body, False)
    ports, service = stage.plane._ports, stage.directory.services["chat"]
    (made,) = line_charges(ports, job, service, route, [line], 1, DEFAULT_BOUNDS, 0.0)
    assert (None if made is None else made.cost) == cost


async def test_slow_batch_file_downloads_block_no_other_call_and_are_limited_per_organization(
    stage: Stage,
) -> None:
    """Batches of two organizations, whose files come slowly; one more of the first is too many."""
    read = Jobs(cast("Any", None), Settings(key_pepper="x" * 32), lambda *_, **__: None)
    read.serve(stage.plane, stage.plane._ports)
    cast("Any", jobs(stage)).fetch = read.fetch
    body = {"model": "draw", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file, goes_on, caller = json.dumps(line).encode(), asyncio.Event(), stage.directory.caller
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(file)
    said = json.dumps({"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}).encode()
    batch, call = post(said, b"/v1/batches"), post(json.dumps(body).encode())
    batches = []
    for organization_id in (1,) * FILES_EACH_MAX + (2,):
        stage.directory.caller = replace(caller, organization_id=organization_id, key_id=organization_id)
        stage.objects.kept.add((organization_id, "file-1"))
        stage.upstream.scripts.append([head, file[:50], goes_on, file[50:]])
        batches.append(asyncio.ensure_future(stage.ask(batch)))
        await eventually(lambda: len(stage.upstream.received) == len(batches))
    for organization_id in (1, 2, 3):
        stage.directory.caller = replace(caller, organization_id=organization_id, key_id=organization_id)
        assert (await stage.ask(call)).status == 200
    stage.directory.caller = replace(caller, organization_id=1, key_id=1)
    assert (await stage.ask(batch)).reason == "overloaded"
    told = json.dumps({"id": "batch_1", "status": "validating"}).encode()
    stage.upstream.scripts += [[answer(told)]] * len(batches)
    goes_on.set()
    assert {(await one).status for one in batches} == {200}
    files = stage.plane.buffers.files
    assert (files._bytes.used, files._count.used) == (0, 0)
    files.renew(len(file) - 1)
    stage.upstream.scripts.append([head, file])
    assert (await stage.ask(batch)).reason == "overloaded"
    assert (files._bytes.used, files._count.used) == (0, 0)


async def test_the_first_hold_of_a_batch_is_renewed_while_lines_are_read(stage: Stage) -> None:
    ticks = iter(range(0, 10**6, 10))
    stage.seconds = lambda: next(ticks) if stage.counters.holds else 0
    has_lines(stage, 300)
    said = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
    await asked(stage, b"/v1/batches", said, {"id": "batch_1", "status": "validating"})
    least, *renewed, whole, _ = stage.counters.holds
    assert renewed
    assert all(hold == replace(least, raises=True) for hold in renewed)
    assert (whole.raises, whole.need > least.need) == (True, True)


async def test_lines_of_a_large_batch_are_checked_in_small_steps_that_let_other_calls_run(
    stage: Stage,
) -> None:
    has_lines(stage, 300)
    turns = stage.plane.bodies.turns
    said = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
    job = await asked(stage, b"/v1/batches", said, {"id": "batch_1", "status": "validating"})
    assert job.lines == 300
    assert stage.plane.bodies.turns - turns > 5
    least, whole, lasting = stage.counters.holds[-3:]
    assert (least.need, least.raises, whole.raises) == (300, False, True)
    assert whole.request_id == least.request_id
    assert lasting == replace(whole, ttl_ms=1000 * HOLD_S_MAX)


async def test_hold_of_a_job_expires_soon_while_the_job_is_not_stored(stage: Stage) -> None:
    has_lines(stage, 1)

    async def fail(job: Job) -> None:
        raise CountersUnavailable

    jobs(stage).open = fail  # type: ignore[method-assign]  # as where a worker ends there
    batch = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
    for path, said in ((b"/v1/videos", {"model": "draw", "prompt": "a"}), (b"/v1/batches", batch)):
        got = await stage.ask(post(json.dumps(said).encode(), path))
        assert (got.status, got.reason) == (503, "counters_unavailable")
    assert max(hold.ttl_ms for hold in stage.counters.holds) < 1000 * JOB_S_MAX


def has_lines(stage: Stage, count: int, last: object = "hi") -> None:
    """Set the upstream's file to a batch of `count` calls; the last call's content is `last`."""
    body = {"model": "draw", "max_tokens": 10}
    said = [{"messages": [{"role": "user", "content": one}]} for one in ["hi"] * (count - 1) + [last]]
    line = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [line | {"custom_id": str(number), "body": body | one} for number, one in enumerate(said)]
    jobs(stage).file = b"\n".join(json.dumps(one).encode() for one in lines)
    stage.objects.kept.add((stage.directory.caller.organization_id, "file-1"))


@pytest.mark.parametrize(
    ("part", "status"),
    [({"type": "thing", "thing": "https://x/a.mp3"}, 403), ({"type": "text", "text": "a"}, 200)],
)
async def test_batch_line_that_may_contain_audio_is_refused_for_a_model_without_an_audio_price(
    stage: Stage, part: dict[str, str], status: int
) -> None:
    has_lines(stage, 3, [part])
    stage.upstream.scripts.append([answer(b'{"id": "batch_1", "status": "validating"}')])
    said = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
    got = await stage.ask(post(json.dumps(said).encode(), b"/v1/batches"))
    assert got.status == status
    assert got.all(b"x-tollkeeper-reason") == ([b"model_not_priced"] if status == 403 else [])
    assert (b"Line 3: " in got.body) is (status == 403)


async def test_batch_is_looked_up_under_the_same_path_used_to_create_the_batch(stage: Stage) -> None:
    has_lines(stage, 1)
    said = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
    job = await asked(stage, b"/openai/v1/batches", said, {"id": "batch_1", "status": "validating"})
    assert (job.id, job.batches, job.lines) == ("batch_1", "/openai/v1/batches", 1)
    assert OPENING not in job.status


OPUS: dict[str, Any] = {"fallbacks": [{"model": "opus"}]}


def has_chats(stage: Stage, *fields: dict[str, Any]) -> dict[str, Any]:
    """Store a file of a line for each of these `fields`; return the body that makes a batch of it."""
    body = {"model": "draw", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    line = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [json.dumps(line | {"custom_id": str(at), "body": body | more}) for at, more in enumerate(fields)]
    jobs(stage).file = "\n".join(lines).encode()
    stage.objects.kept.add((stage.directory.caller.organization_id, "file-1"))
    price = price_row(id=6, model="opus", input="10", output="20")
    stage.directory.prices["opus"] = read_price(price).vector
    return {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}


@pytest.mark.parametrize("fields", [({}, OPUS), (OPUS, {})])
async def test_batch_line_that_names_other_models_than_the_first_line_is_refused(
    stage: Stage, fields: tuple[dict[str, Any], ...]
) -> None:
    """Its budgets and prices would not be those of the batch."""
    stage.directory.budgets_there.append(Budget(2, "opus", "money", 1, "day", model="opus"))
    batch = has_chats(stage, *fields)
    got = await stage.ask(post(json.dumps(batch).encode(), b"/v1/batches"))
    assert (got.status, got.reason) == (400, "invalid_request")
    assert b"Line 2: it must name the same other models as the first line" in got.body
    assert not jobs(stage).kept
    await eventually(lambda: len(stage.counters.releases) == 1)


async def test_batch_holds_the_budgets_of_all_models_that_the_lines_name(stage: Stage) -> None:
    stage.directory.budgets_there.append(Budget(2, "opus", "money", 10**12, "day", model="opus"))
    job = await asked(
        stage, b"/v1/batches", has_chats(stage, OPUS, OPUS), {"id": "b", "status": "validating"}
    )
    assert (job.lines, len(job.accounts), job.beside) == (2, 2, ("opus",))


# 7 tokens read and 40 written: at 1 and 2 millionths a token, or ten times as much.
ANSWERED_BY = [("draw", 87_000), ("opus", 870_000), ("else", 870_000)]


@pytest.mark.parametrize(("model", "cost"), ANSWERED_BY)
async def test_batch_line_is_charged_the_price_of_the_named_model_that_answered(
    stage: Stage, model: str, cost: int
) -> None:
    job = await asked(stage, b"/v1/batches", has_chats(stage, OPUS), {"id": "b", "status": "validating"})
    usage = {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
    body = json.dumps({"model": model, "choices": [], "usage": usage}).encode()
    route = next(one for one in ROUTES if one.path == job.endpoint)
    ports, service = stage.plane._ports, stage.directory.services["chat"]
    line = BatchResult("0", 200, "", body, False)
    (made,) = line_charges(ports, job, service, route, [line], 1, DEFAULT_BOUNDS, 0.0)
    assert made is not None
    assert made.cost == cost


@pytest.mark.parametrize(("model", "cost"), ANSWERED_BY)
async def test_background_response_is_charged_the_price_of_the_named_model_that_answered(
    stage: Stage, model: str, cost: int
) -> None:
    has_chats(stage)
    stage.directory.services["responses"] = Service(95, "responses", "subscription")
    said = {"model": "draw", "input": "x", "background": True, "models": ["opus"]}
    job = await asked(stage, b"/v1/responses", said, {"id": "resp_1", "status": "queued"})
    usage = {"input_tokens": 7, "output_tokens": 40, "total_tokens": 47}
    body = json.dumps({"id": "resp_1", "status": "completed", "model": model, "output": [], "usage": usage})
    route = next(one for one in ROUTES if one.meter == "openai_responses")
    service = stage.directory.services["responses"]
    made = call_charge(stage.plane._ports, job, service, route, body.encode(), False, DEFAULT_BOUNDS, 0.0)
    assert made is not None
    assert made.cost == cost


async def test_batch_refused_for_the_head_of_its_request_names_no_line(stage: Stage) -> None:
    batch = json.dumps(has_chats(stage, {})).encode()
    stage.runs.refusal = InvalidRequest("x-tollkeeper-run has max=5, at most 1.", param="x-tollkeeper-run")
    got = await stage.ask(post(batch, b"/v1/batches", b"x-tollkeeper-run: night\r\n"))
    assert (got.status, json.loads(got.body)["error"]["param"]) == (400, "x-tollkeeper-run")
    assert b"Line" not in got.body
