"""Stored things of OpenAI, Anthropic and Gemini by their default routes: each is its organization's alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import anthropic as anthropic_sdk
import openai
import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.billing.price_book import read_price
from gateway.core.calls.routes import Route, UpstreamTarget
from gateway.core.families import anthropic, gemini
from gateway.core.families import openai as family
from gateway.core.model import Service
from gateway.http.ports import JobsPort
from tests.core.billing.prices import price_row
from tests.http.fakes import CALLER, KEY, answer, get, post
from tests.http.stage import Stage, staged

ROUTES: tuple[Route, ...] = tuple(
    replace(route, upstream="up" if route.family != anthropic.NAME else "anthropic")
    for one in (family.FAMILY, anthropic.FAMILY, gemini.FAMILY)
    for route in one.routes
)
HERE = tuple(replace(route, upstream="up") for route in ROUTES)
OTHERS = replace(CALLER, organization_id=99)
JSON = b"content-type: application/json\r\n"
MONEY = Budget(1, "money", "money", 10**12, "day")
TYPE = {"content-type": "application/json"}
SPEAKS = b"authorization: Bearer %b\r\nanthropic-version: 2023-06-01\r\n" % KEY.encode()
UNITS = ("vector_stores", "containers", "fine_tuning", "evals")


class Pages:
    """What an account has, in pages of two: a list goes on behind an id, or by a token."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.asked: list[tuple[str, str, dict[str, list[str]]]] = []

    async def ask(self, upstream: str, path: str, headers: tuple[tuple[str, str], ...]) -> tuple[int, bytes]:
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        self.asked.append((upstream, parts.path, query))
        place = query.get("after") or query.get("after_id") or query.get("pageToken") or [""]
        by_token = "pageSize" in query
        at = int(place[0] or 0) if by_token else self.ids.index(place[0]) + 1 if place[0] else 0
        page, more = self.ids[at : at + 2], at + 2 < len(self.ids)
        if by_token:
            token = {"nextPageToken": str(at + 2)} if more else {}
            return 200, json.dumps({"cachedContents": [{"name": one} for one in page], **token}).encode()
        listed = [{"id": one} for one in page]
        return 200, json.dumps({"object": "list", "data": listed, "has_more": more}).encode()


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
async def stage(pages: Pages) -> AsyncIterator[Stage]:
    other = (UpstreamTarget("anthropic", "http://127.0.0.1:9"),)
    async with staged(ROUTES, jobs=cast("JobsPort", pages), others=other) as made:
        for number, key in enumerate(UNITS, 91):
            made.directory.services[key] = Service(number, key, "subscription")
        yield made


def sdk(stage: Stage) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key=KEY, max_retries=0)


def mine(stage: Stage, *ids: str) -> None:
    stage.objects.kept |= {(CALLER.organization_id, one) for one in ids}


async def test_the_sdk_gets_at_its_own_and_others_at_nothing(stage: Stage) -> None:
    ask = sdk(stage)
    mine(stage, "vs_1", "conv_1", "cntr_1", "upload_1", "eval_1", "chat_1", "file_1", "part_1", "skill_1")
    mine(stage, "ftjob_1")
    calls = [
        lambda: ask.vector_stores.retrieve("vs_1"),
        lambda: ask.vector_stores.delete("vs_1"),
        lambda: ask.vector_stores.files.retrieve("file_9", vector_store_id="vs_1"),
        lambda: ask.vector_stores.files.update("file_9", vector_store_id="vs_1", attributes={}),
        lambda: ask.vector_stores.files.content("file_9", vector_store_id="vs_1"),
        lambda: ask.vector_stores.file_batches.retrieve("b_9", vector_store_id="vs_1"),
        lambda: ask.vector_stores.file_batches.cancel("b_9", vector_store_id="vs_1"),
        lambda: ask.conversations.retrieve("conv_1"),
        lambda: ask.conversations.update("conv_1", metadata={}),
        lambda: ask.conversations.items.create(
            "conv_1", items=[{"type": "message", "role": "user", "content": "hi"}]
        ),
        lambda: ask.conversations.items.retrieve("msg_9", conversation_id="conv_1"),
        lambda: ask.containers.retrieve("cntr_1"),
        lambda: ask.containers.files.create("cntr_1", file_id="file_1", extra_headers=TYPE),
        lambda: ask.containers.files.content.retrieve("cfile_9", container_id="cntr_1"),
        lambda: ask.uploads.parts.create("upload_1", data=b"x"),
        lambda: ask.uploads.complete("upload_1", part_ids=["part_1"]),
        lambda: ask.evals.retrieve("eval_1"),
        lambda: ask.evals.runs.retrieve("run_9", eval_id="eval_1"),
        lambda: ask.evals.runs.cancel("run_9", eval_id="eval_1"),
        lambda: ask.fine_tuning.jobs.retrieve("ftjob_1"),
        lambda: ask.fine_tuning.jobs.pause("ftjob_1"),
        lambda: ask.fine_tuning.jobs.list_events("ftjob_1"),
        lambda: ask.skills.retrieve("skill_1"),
        lambda: ask.chat.completions.update("chat_1", metadata={}),
    ]  # fmt: skip
    for call in calls:
        await call()
    sent = len(stage.upstream.received)
    assert sent == len(calls)
    assert not stage.counters.charges
    stage.directory.caller = OTHERS
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            await call()
    assert len(stage.upstream.received) == sent


@pytest.mark.parametrize(
    ("path", "body", "service", "unit"),
    [
        ("/v1/containers", {"name": "c", "file_ids": ["file_1"]}, "containers", "container"),
        ("/v1/vector_stores", {"file_ids": ["file_1"]}, "vector_stores", "gigabyte_day"),
        ("/v1/vector_stores/vs_1/files", {"file_id": "file_1"}, "vector_stores", "gigabyte_day"),
        (
            "/v1/vector_stores/vs_1/file_batches",
            {"files": [{"file_id": "file_1"}]},
            "vector_stores",
            "gigabyte_day",
        ),
        ("/v1/vector_stores/vs_1/search", {"query": "file_1"}, "vector_stores", "file_search"),
        (
            "/v1/vector_stores/vs_1",
            {"expires_after": {"anchor": "last_active_at", "days": 99}},
            "vector_stores",
            "gigabyte_day",
        ),
        ("/v1/fine_tuning/jobs", {"model": "m", "training_file": "file_1"}, "fine_tuning", "fine_tuning_job"),
        (
            "/v1/evals/vs_1/runs",
            {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "file_1"}, "model": "m"}},
            "evals",
            "eval_run",
        ),
    ],
)
async def test_what_its_provider_bills_beside_tokens_counts_a_unit(
    stage: Stage, path: str, body: dict[str, Any], service: str, unit: str
) -> None:
    request = post(json.dumps(body).encode(), path.encode(), JSON)
    mine(stage, "vs_1")
    if "query" not in body and "expires_after" not in body:
        assert (await stage.ask(request)).reason == "object_not_found"
    mine(stage, "file_1")
    stage.upstream.scripts = [[answer(b'{"id":"made_1","usage_bytes":0}')], [answer(b"{}", status=b"500 x")]]
    assert (await stage.ask(request)).status == 200
    charge = stage.counters.charges[-1]
    assert (charge.service.key, charge.units, charge.tokens) == (service, 1, 0)
    assert (stage.facts().tools, stage.facts().unpriced) == ({unit: 1}, unit)
    assert (CALLER.organization_id, "made_1") in stage.objects.kept
    assert (await stage.ask(request)).status == 500
    assert len(stage.counters.charges) == 1
    stage.directory.budgets_there = [MONEY]
    refused = await stage.ask(request)
    assert (refused.status, refused.reason) == (403, "model_not_priced")
    assert ("the model m" if "model" in body else unit).encode() in refused.body
    stage.directory.budgets_there = []
    del stage.directory.services[service]
    assert (await stage.ask(request)).reason == "service_not_included"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        # Mistral would run a model.
        ("/v1/conversations", {"model": "m", "inputs": "hi"}, "invalid_request"),
        ("/v1/conversations/conv_1", {"inputs": "hi"}, "invalid_request"),
        ("/v1/conversations/conv_1/items", {"items": [{"type": "item_reference", "id": "msg_of_another"}]},
         "object_not_found"),
        ("/v1/chat/completions/chat_1", {"metadata": {}, "messages": []}, "invalid_request"),
        ("/v1/chat/completions/batch", {"metadata": {}}, "object_not_found"),
        ("/v1/uploads/upload_1/complete", {"part_ids": ["part_of_another"]}, "object_not_found"),
        ("/v1/vector_stores/vs_1%2F../vs_9/files/x", {"attributes": {}}, "invalid_request"),
        ("/v1/vector_stores/vs_9;vs_1", {"name": "x"}, "invalid_request"),
        ("/v1/containers/cntr_1/files", {"file_id": "file_of_another"}, "object_not_found"),
        ("/v1/evals/eval_2/runs", {}, "object_not_found"),
        ("/v1/fine_tuning/jobs", {"model": "m", "training_file": "file_of_another"}, "object_not_found"),
        ("/v1/fine_tuning/jobs", {"training_file": "file_1"}, "invalid_request"),
        ("/v1/sessions", {"agent": "agent_1"}, "unknown_route"),
        ("/v1beta/cachedContents", {"model": "models/m", "name": "cachedContents/theirs"}, "invalid_request"),
        ("/v1beta/cachedContents", {"model": "m"}, "invalid_request"),
    ],
)  # fmt: skip
async def test_what_others_own_or_runs_a_model_unseen_is_refused(
    stage: Stage, path: str, body: dict[str, Any], reason: str
) -> None:
    mine(stage, "vs_1", "conv_1", "cntr_1", "upload_1", "eval_1", "chat_1", "file_1")
    got = await stage.ask(post(json.dumps(body).encode(), path.encode(), JSON))
    assert got.reason == reason
    assert not stage.upstream.received


async def test_parts_of_an_upload_and_its_file_are_its_organizations(stage: Stage) -> None:
    mine(stage, "upload_1")
    stage.upstream.scripts = [
        [answer(b'{"id":"part_2","upload_id":"upload_9"}')],
        [answer(b'{"id":"upload_1","status":"completed","file":{"id":"file_2"}}')],
        [answer(b'{"id":"vs_2"}')],
    ]
    form = b"content-type: multipart/form-data; boundary=b\r\n"
    assert (await stage.ask(post(b"--b--", b"/v1/uploads/upload_1/parts", form))).status == 200
    complete = post(b'{"part_ids":["part_2"]}', b"/v1/uploads/upload_1/complete", JSON)
    assert (await stage.ask(complete)).status == 200
    assert {one for _, one in stage.objects.kept} == {"upload_1", "part_2", "file_2"}


async def test_kept_contents_are_a_call_of_their_model(stage: Stage) -> None:
    said = b'{"name":"cachedContents/c1","usageMetadata":{"totalTokenCount":700}}'
    body = b'{"model":"models/gemini-x","contents":[{"parts":[{"text":"hi"}]}],"ttl":"60s"}'
    stage.upstream.scripts = [[answer(said)]]
    kept = post(body, b"/v1beta/cachedContents", JSON)
    assert (await stage.ask(kept)).status == 200
    assert stage.counters.charges[-1].tokens == 700
    assert (CALLER.organization_id, "cachedContents/c1") in stage.objects.kept
    stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    assert (await stage.ask(kept)).reason == "model_not_allowed"
    stage.directory.caller = OTHERS
    assert (await stage.ask(get(b"/v1beta/cachedContents/c1"), "GET")).reason == "object_not_found"


async def test_a_list_shows_ones_own_from_all_pages_of_the_account(stage: Stage, pages: Pages) -> None:
    pages.ids = ["vs_1", "vs_of_another", "vs_2", "vs_3", "vs_last"]
    mine(stage, "vs_1", "vs_2", "vs_3")
    found = await sdk(stage).vector_stores.list(limit=2)
    assert ([one.id for one in found.data], found.has_more, found.last_id) == (["vs_1", "vs_2"], True, "vs_2")
    following = await found.get_next_page()
    assert ([one.id for one in following.data], following.has_more) == (["vs_3"], False)
    with pytest.raises(openai.NotFoundError):
        await sdk(stage).vector_stores.list(after="vs_of_another")


async def test_a_list_that_goes_on_by_tokens_tells_none_of_the_accounts(stage: Stage, pages: Pages) -> None:
    pages.ids = [f"cachedContents/{one}" for one in ("a", "theirs", "b", "c", "last")]
    mine(stage, *(f"cachedContents/{one}" for one in "abc"))
    got = await stage.ask(get(b"/v1beta/cachedContents?pageSize=2"), "GET")
    listed = [{"name": "cachedContents/a"}, {"name": "cachedContents/b"}]
    assert json.loads(got.body) == {"cachedContents": listed, "nextPageToken": "cachedContents/b"}
    got = await stage.ask(get(b"/v1beta/cachedContents?pageToken=cachedContents%2Fb"), "GET")
    assert json.loads(got.body) == {"cachedContents": [{"name": "cachedContents/c"}]}
    got = await stage.ask(get(b"/v1beta/cachedContents?pageToken=cachedContents%2Ftheirs"), "GET")
    assert got.reason == "object_not_found"


async def test_files_are_of_the_api_that_its_client_speaks(stage: Stage, pages: Pages) -> None:
    pages.ids = ["file_1", "file_of_another"]
    mine(stage, "file_1")
    for fields, upstream in ((SPEAKS, "anthropic"), (b"authorization: Bearer %b\r\n" % KEY.encode(), "up")):
        got = await stage.ask(get(b"/v1/files", fields), "GET")
        assert [one["id"] for one in json.loads(got.body)["data"]] == ["file_1"]
        assert pages.asked[-1][0] == upstream
    got = await stage.ask(get(b"/v1/files/file_of_another/content", SPEAKS), "GET")
    assert (got.status, json.loads(got.body)["type"]) == (404, "error")
    google = SPEAKS.replace(b"anthropic-version: 2023-06-01", b"x-goog-api-client: x")
    assert (await stage.ask(get(b"/v1/evals/eval_1", google), "GET")).reason == "unknown_route"
    assert (await stage.ask(get(b"/v1/files/file_1", google), "GET")).reason == "object_not_found"
    assert not stage.upstream.received


TRAINS = post(b'{"model":"m","training_file":"file_1"}', b"/v1/fine_tuning/jobs", JSON)
RUNS = post(b'{"data_source":{"type":"jsonl","model":"m"}}', b"/v1/evals/eval_1/runs", JSON)


@pytest.mark.parametrize(("request_", "unit"), [(TRAINS, "fine_tuning_job"), (RUNS, "eval_run")])
async def test_what_is_worked_off_by_models_says_that_it_has_no_price(
    stage: Stage, request_: bytes, unit: str
) -> None:
    """Nobody knows at its beginning how many tokens it takes: where money decides only a price lets it in."""
    mine(stage, "file_1", "eval_1")
    assert (await stage.ask(request_)).status == 200
    found = stage.facts()
    assert (found.tools, found.cost) == ({unit: 1}, None)
    assert sum(dict(stage.tally.snapshot()["unpriced_calls"]).values()) == 1
    vector = read_price(price_row(id=5, model="m", input="1")).vector
    for prices, status in (({}, 403), ({"m": vector}, 403), ({"m": vector._replace(tools={unit: 5})}, 200)):
        stage.directory.prices, stage.directory.budgets_there = prices, [MONEY]
        got = await stage.ask(request_)
        assert got.status == (403 if unit == "eval_run" else status), got.body
    stage.directory.budgets_there = []
    stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    assert (await stage.ask(request_)).reason == "model_not_allowed"
    stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
    assert (await stage.ask(request_)).status == (403 if unit == "eval_run" else 200)


@pytest.mark.parametrize("unit", [TRAINS, RUNS])
async def test_where_calls_without_a_price_are_refused_so_are_these(unit: bytes) -> None:
    async with staged(HERE, refuses_unpriced=True) as stage:
        mine(stage, "file_1", "eval_1")
        for key in UNITS:
            stage.directory.services[key] = Service(91, key, "subscription")
        assert (await stage.ask(unit)).reason == "model_not_priced"
        assert not stage.upstream.received


async def test_a_job_of_training_tells_of_its_files(stage: Stage) -> None:
    mine(stage, "ftjob_1")
    stage.upstream.scripts = [[answer(b'{"id":"ftjob_1","result_files":["file_r"],"status":"succeeded"}')]]
    await sdk(stage).fine_tuning.jobs.retrieve("ftjob_1")
    assert (CALLER.organization_id, "file_r") in stage.objects.kept


@pytest.mark.parametrize("kind", ["agents", "environments", "vaults", "memory_stores"])
async def test_stored_things_of_agents_are_their_organizations(pages: Pages, kind: str) -> None:
    path = f"/v1/{kind}".encode()
    async with staged(HERE, jobs=cast("JobsPort", pages)) as stage:
        stage.upstream.scripts = [[answer(b'{"id":"made_1","type":"thing"}')]]
        made = b'{"display_name":"x"}' if kind == "vaults" else b'{"name":"x"}'
        assert (await stage.ask(post(made, path, JSON))).status == 200
        assert (CALLER.organization_id, "made_1") in stage.objects.kept
        base = f"http://127.0.0.1:{stage.port}"
        client = anthropic_sdk.AsyncAnthropic(base_url=base, api_key=KEY, max_retries=0)
        await getattr(client.beta, kind).retrieve("made_1")
        assert stage.upstream.received[-1].target.partition(b"?")[0] == path + b"/made_1"
        pages.ids = ["made_1", "made_of_another"]
        got = await stage.ask(get(path), "GET")
        assert [one["id"] for one in json.loads(got.body)["data"]] == ["made_1"]
        assert (await stage.ask(get(path + b"/made_of_another"), "GET")).reason == "object_not_found"
