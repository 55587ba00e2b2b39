"""Objects have owners: nobody names, reads, lists or continues what another organization's call made."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from openai import AsyncOpenAI, NotFoundError

from gateway.core.accounts.budgets import MAXIMUM, MONEY, Budget
from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.routes import Route
from gateway.core.families.openai import FAMILY
from gateway.core.model import Family
from gateway.counters.admission.objects import ObjectOwners
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from tests.http.fakes import (
    AUTH,
    CALLER,
    DONE_EVENT,
    KEY,
    ROUTES,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
)  # fmt: skip
from tests.http.stage import Close, Stage, staged
from tests.waiting import eventually

JSON = b"content-type: application/json\r\n"
RESPONSES = b"/v1/responses"
OTHERS = replace(CALLER, organization_id=99)
MADE = json.dumps(
    {"id": "resp_1", "output": [{"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_1"}],
     "usage": {"input_tokens": 2, "output_tokens": 3}}
).encode()  # fmt: skip


OPENAI = Family("openai")


def free(path: str, *methods: str, family: Family = OPENAI, objects: str = "owned") -> Route:
    return Route(methods, path, "up", "", family, objects=objects)


OBJECT_ROUTES = (
    Route(("POST",), "/v1/responses", "up", "chat", Family("openai"), "openai_responses"),
    Route(("POST",), "/v1/shared", "up", "chat", Family("openai"), "openai_responses", objects="shared"),
    free("/v1/responses/{id}", "GET", "DELETE"),
    free("/v1/files", "GET", "POST"),
    free("/v1/files/{id}/content", "GET"),
    free("/v1/files/{id}", "DELETE"),
    free("/v1/vector_stores", "POST"),
    free("/v1/conversations", "POST"),
    free("/v1/conversations/{id}", "GET"),
    free("/v1/conversations/{id}/items", "POST"),
    free("/v1/batches/{id}", "GET"),
    free("/all/{+path}", "GET", "POST", "PUT"),
    free("/v1/open/files/{id}", "GET", objects="shared"),
    free("/v1/messages/count_tokens", "POST", family=Family("anthropic")),
    free("/v1beta/models/{model}:countTokens", "POST", family=Family("gemini")),
    free("/v1beta/cachedContents", "GET", "POST", family=Family("gemini")),
    free("/v1beta/cachedContents/{id}", "GET", family=Family("gemini")),
    *ROUTES,
)


@asynccontextmanager
async def objects() -> AsyncIterator[Stage]:
    async with staged(routes=OBJECT_ROUTES) as stage:
        yield stage


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "input": "hi", "max_output_tokens": 9, **more}).encode()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"conversation": {"id": "conv_1"}}),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}),
        (RESPONSES, {"input": [{"id": "msg_1"}]}),
        (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
        (RESPONSES, {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}),
        (b"/v1/chat/completions", {"messages": [{"content": [{"file": {"file_id": "file-1"}}]}]}),
        (b"/v1/messages", {"container": "container_1", "messages": [], "max_tokens": 5}),
        (b"/v1beta/models/m:generateContent", {"cachedContent": "cachedContents/c1"}),
        (b"/v1/vector_stores", {"file_ids": ["file-1"]}),
    ],
)
async def test_what_is_not_the_organizations_is_not_found(path: bytes, named: dict[str, object]) -> None:
    sent = post(json.dumps(named).encode() if path.endswith(b"stores") else body(**named), path, JSON)
    async with objects() as stage:
        got = await stage.ask(sent)
        assert (got.status, got.reason) == (404, "object_not_found")
        assert b"resp_1" not in got.body
        assert not stage.upstream.received
        assert not stage.counters.charges
        (ids,) = stage.objects.asked
        stage.objects.kept |= {(OTHERS.organization_id, one) for one in ids}
        assert (await stage.ask(sent)).status == 404
        stage.objects.kept |= {(CALLER.organization_id, one) for one in ids}
        assert (await stage.ask(sent)).status == 200


LONG_ANSWER: dict[str, object] = {
    "id": "resp_1", "status": "completed", "output": [],
    "usage": {"input_tokens": 3_000, "input_tokens_details": {"cached_tokens": 1_000}, "output_tokens": 500,
              "output_tokens_details": {"reasoning_tokens": 200}, "total_tokens": 3_500},
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_names_an_answer_is_held_with_its_text(streamed: bool) -> None:
    """3,000 that were read, cached or not, and 500 written without 200 of reasoning, which is not sent again."""
    said = {**LONG_ANSWER, "conversation": {"id": "conv_1"}}
    async with objects() as stage:
        stage.objects.kept |= {(CALLER.organization_id, id_) for id_ in ("conv_1", "resp_0")}
        answered: list[object] = [answer(json.dumps(said).encode())]
        if streamed:
            events = [b'data: {"type":"response.created","response":{"id":"resp_1","conversation":{"id":"conv_1"}}}\n\n',
                      b'data: {"type":"response.completed","response":%b}\n\n' % json.dumps(said).encode()]  # fmt: skip
            answered = [STREAM_HEAD, chunks(*events)]
        stage.upstream.scripts.append(answered)
        made = body(conversation={"id": "conv_1"}, stream=streamed)
        assert (await stage.ask(post(made, RESPONSES, JSON))).status == 200
        assert stage.objects.sized == {(CALLER.organization_id, id_): 3_300 for id_ in ("resp_1", "conv_1")}
        for named in ({"previous_response_id": "resp_0"}, {"previous_response_id": "resp_1"},
                      {"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}):  # fmt: skip
            assert (await stage.ask(post(body(**named), RESPONSES, JSON))).status == 200
        _, without, *holds = stage.counters.holds
        assert all(3_300 <= hold.need - without.need + 10 < 3_400 for hold in holds), "and a few by its text"
        assert all(hold.read - hold.read_likely < 100 for hold in holds), "it is input"
        assert all(3_300 < hold.read < 3_400 and hold.ceiling == hold.read + 9 for hold in holds)


async def test_an_answer_that_broke_off_stands_for_the_text_that_was_charged() -> None:
    """Its id came first; what is charged for it is counted from the bytes: 3,000 of body are 1,000 tokens."""
    async with objects() as stage:
        event = b'data: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
        said = b'data: {"type":"response.output_text.delta","delta":"hello there"}\n\n'
        stage.upstream.scripts.append([STREAM_HEAD, chunks(event, said, end=False), Close()])
        asked = post(body(stream=True, input="a b c " * 500), RESPONSES, JSON)
        assert (await stage.ask(asked)).status == 200
        await eventually(lambda: (CALLER.organization_id, "resp_1") in stage.objects.sized)
        (settlement,) = stage.counters.settlements
        assert stage.objects.sized[CALLER.organization_id, "resp_1"] == settlement.tokens > 1_000


async def test_a_chain_is_held_with_all_of_its_answers() -> None:
    """Each answer's own input was the text before, so the last one stands for all, also without a report."""
    async with objects() as stage:
        second = {"id": "resp_2", "output": [], "usage": {"input_tokens": 3_310, "output_tokens": 90}}
        for script in (LONG_ANSWER, second, {"id": "resp_3", "output": []}):
            stage.upstream.scripts.append([answer(json.dumps(script).encode())])
        for named in ({}, {"previous_response_id": "resp_1"}, {"previous_response_id": "resp_2"}):
            assert (await stage.ask(post(body(**named), RESPONSES, JSON))).status == 200
        found = {id_: tokens for (_, id_), tokens in stage.objects.sized.items()}
        assert (found["resp_1"], found["resp_2"]) == (3_300, 3_400)
        assert 3_400 < found["resp_3"] < 3_500


INTERACTION: dict[str, object] = {
    "id": "i1", "status": "completed", "usage": {"total_input_tokens": 900, "total_output_tokens": 50, "total_tokens": 950},
}  # fmt: skip
CONVERSED: dict[str, object] = {
    "conversation_id": "conv_1", "outputs": [],
    "usage": {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 950},
}  # fmt: skip
CACHED: dict[str, object] = {
    "name": "cachedContents/c1", "model": "models/m", "usageMetadata": {"totalTokenCount": 950},
}  # fmt: skip
SAID = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 10}}


@pytest.mark.parametrize(
    ("made_at", "made", "told", "named_at", "named"),
    [
        ("/v1beta/interactions", {"model": "m", "input": "hi"}, INTERACTION,
         "/v1beta/interactions", {"model": "m", "input": "go", "previous_interaction_id": "i1"}),
        ("/v1/conversations", {"model": "m", "inputs": "hi"}, CONVERSED, "/v1/conversations/conv_1", {"model": "m", "inputs": "go"}),
        ("/v1beta/cachedContents", {"model": "models/m", "contents": SAID["contents"], "ttl": "60s"}, CACHED,
         "/v1beta/models/m:generateContent", {**SAID, "cachedContent": "cachedContents/c1"}),
    ],
)  # fmt: skip
async def test_each_api_that_keeps_text_has_its_length(
    made_at: str, made: dict[str, object], told: dict[str, object], named_at: str, named: dict[str, object]
) -> None:
    gemini, openai = Family("gemini"), Family("openai")
    routes = [
        Route(("POST",), "/v1beta/interactions", "up", "chat", gemini, "gemini_interactions"),
        Route(("POST",), "/v1beta/cachedContents", "up", "chat", gemini, "gemini_cache"),
        Route(("POST",), "/v1/conversations", "up", "chat", openai, "mistral_conversations"),
        Route(("POST",), "/v1/conversations/{id}", "up", "chat", openai, "mistral_conversations"),
        *ROUTES,
    ]
    async with staged(routes=tuple(routes)) as stage:
        for path, said in ((made_at, made), (named_at, named)):
            stage.upstream.scripts = [[answer(json.dumps(told).encode())]]
            got = await stage.ask(post(json.dumps(said).encode(), path.encode(), JSON))
            assert got.status == 200, got.body
        made_with, held = stage.counters.holds
        assert 950 <= held.read_likely < 1_050
        assert made_with.read_likely < 100


GENERATE = b"/v1beta/models/m:generateContent"


def go_on(token: object, **more: object) -> bytes:
    parts = [{"role": "user", "parts": [{"text": "hi"}]}]
    said = {
        "contents": parts,
        "generationConfig": {"maxOutputTokens": 600},
        "continuationToken": token,
        **more,
    }
    return post(json.dumps(said).encode(), GENERATE, JSON)


@pytest.mark.parametrize("coding", [b"", b"gzip"])
async def test_a_token_is_held_as_the_answer_before(coding: bytes) -> None:
    usage = {
        "promptTokenCount": 2_000,
        "candidatesTokenCount": 500,
        "thoughtsTokenCount": 100,
        "totalTokenCount": 2_600,
    }
    said = json.dumps({"candidates": [], "usageMetadata": usage, "continuationToken": "t1"}).encode()
    async with objects() as stage:
        head = b"content-encoding: gzip\r\n" if coding else b""
        stage.upstream.scripts.append([answer(gzip.compress(said) if coding else said, head)])
        for token in (None, "t1", "t2"):
            assert (await stage.ask(go_on(token))).status == 200
        stage.directory.caller = OTHERS
        assert (await stage.ask(go_on("t1"))).status == 200, "it is no object: nobody here has seen it"
        plain, known, unseen, others = stage.counters.holds
        assert 2_500 <= known.need - plain.need < 2_600
        assert unseen.need - plain.need < 100
        assert others.need <= unseen.need


@pytest.mark.parametrize(
    ("named", "most"),
    [({"continuationToken": "t1"}, True), ({"continuation_token": "t1"}, True), ({}, False),
     ({"continuationToken": "t1", "hold": ""}, False)],
)  # fmt: skip
async def test_an_unseen_token_is_held_as_all_that_its_model_reads_where_no_limit_may_be_passed(
    named: dict[str, str], most: bool
) -> None:
    """Gemini 2.5 reads 1,048,576 tokens at most. Elsewhere a call holds what is likely."""
    async with staged(routes=OBJECT_ROUTES) as stage:
        held = MAXIMUM if "hold" not in named else "likely"
        stage.directory.prices["gemini-2.5-pro"] = Vector(7, "USD", (2_000_000,) * len(KINDS))
        stage.directory.budgets_there = [Budget(1, "all", MONEY, 10**15, "month", hold=held)]
        said = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 10},
                **{name: value for name, value in named.items() if name != "hold"}}  # fmt: skip
        path = b"/v1beta/models/gemini-2.5-pro:generateContent"
        assert (await stage.ask(post(json.dumps(said).encode(), path, JSON))).status == 200
        (hold,) = stage.counters.holds
        assert (hold.money >= 2 * 1_048_576) is most
        assert hold.money < 2 * 1_048_576 + 2_000


def item(tokens: int) -> dict[str, object]:
    """An item of so many tokens in OpenAI's tables, where each word and point is one."""
    text = "The quick brown fox jumps over the lazy dog. " * (tokens // 10)
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


CONVERSATIONS, ITEMS = b"/v1/conversations", b"/v1/conversations/conv_1/items"
CONVERSATION = answer(b'{"id":"conv_1","object":"conversation"}')


def put(*items: dict[str, object], path: bytes = ITEMS) -> bytes:
    return post(json.dumps({"items": items}).encode(), path, JSON)


async def named_conversation(stage: Stage) -> int:
    """Return the likely input of a call that names the conversation."""
    assert (await stage.ask(post(body(conversation="conv_1"), RESPONSES, JSON))).status == 200
    return stage.counters.holds[-1].read_likely


async def test_items_of_a_free_call_are_held_with_each_call_that_names_their_conversation() -> None:
    """4,000 tokens as it is made, 6,000 later, of which the provider tells none. Three times as many would be too many."""
    async with objects() as stage:
        stage.upstream.scripts.append([CONVERSATION])
        assert (await stage.ask(put(item(4_000), path=CONVERSATIONS))).status == 200
        assert 4_000 <= await named_conversation(stage) < 12_000
        assert (await stage.ask(put(item(6_000)))).status == 200
        held = await named_conversation(stage)
        assert 10_000 <= held < 30_000
        stage.upstream.scripts.append([answer(b"{}", status=b"400 Bad Request")])
        assert (await stage.ask(put(item(9)))).status == 400
        assert await named_conversation(stage) >= held, (
            "whether its upstream took it is not known before the call"
        )


async def test_an_answer_replaces_the_estimate_of_items_unless_others_come_meanwhile() -> None:
    """Items that come while an answer is made are not in its report, so they are added to what it reports."""
    reported = {**LONG_ANSWER, "conversation": {"id": "conv_1"}}
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "conv_1"))
        assert (await stage.ask(put(item(4_000)))).status == 200
        stage.upstream.scripts.append([answer(json.dumps(reported).encode())])
        await named_conversation(stage)
        assert stage.objects.sized[CALLER.organization_id, "conv_1"] == 3_300, "the provider counted them"

        goes_on, before = asyncio.Event(), len(stage.upstream.received)
        stage.upstream.scripts.append([goes_on, answer(json.dumps({**reported, "id": "resp_2"}).encode())])
        asked = asyncio.create_task(named_conversation(stage))
        await eventually(lambda: len(stage.upstream.received) > before)
        assert (await stage.ask(put(item(4_000)))).status == 200
        goes_on.set()
        await asked
        assert stage.objects.sized[CALLER.organization_id, "conv_1"] >= 3_300 + 4_000


async def test_items_that_come_to_their_upstream_after_an_answer_are_still_held() -> None:
    """They were counted before, and the answer that was made meanwhile has not read them."""
    reported = {**LONG_ANSWER, "conversation": {"id": "conv_1"}}
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "conv_1"))
        goes_on, before = asyncio.Event(), len(stage.upstream.received)
        stage.upstream.scripts += [[goes_on, answer(b"{}")], [answer(json.dumps(reported).encode())]]
        posted = asyncio.create_task(stage.ask(put(item(40_000))))
        await eventually(lambda: len(stage.upstream.received) > before)
        await named_conversation(stage)
        assert stage.objects.sized[CALLER.organization_id, "conv_1"] == 3_300
        goes_on.set()
        assert (await posted).status == 200
        assert stage.objects.sized[CALLER.organization_id, "conv_1"] >= 3_300 + 40_000


@pytest.mark.parametrize("cuts", [{"truncation": "auto"}, {"context_management": [{"type": "compaction"}]}])
async def test_an_answer_to_a_shortened_text_leaves_its_conversation_as_long_as_before(
    cuts: dict[str, object],
) -> None:
    reported = {**LONG_ANSWER, "conversation": {"id": "conv_1"}}
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "conv_1"))
        assert (await stage.ask(put(item(40_000)))).status == 200
        before = stage.objects.sized[CALLER.organization_id, "conv_1"]
        for more, least in ((cuts, before), ({"truncation": "disabled"}, 0)):
            stage.upstream.scripts.append([answer(json.dumps(reported).encode())])
            assert (
                await stage.ask(post(body(model="gpt-5.4", conversation="conv_1", **more), RESPONSES, JSON))
            ).status == 200
            assert stage.objects.sized[CALLER.organization_id, "conv_1"] >= least
        assert stage.objects.sized[CALLER.organization_id, "conv_1"] == 3_300
        assert stage.objects.sized[CALLER.organization_id, reported["id"]] >= 3_300


@pytest.mark.parametrize(
    ("part", "tokens"),
    [({"type": "input_file", "file_id": "file-1"}, 1_050_000), ({"type": "input_image", "image_url": "https://x/y.png"}, 1_600)],
)  # fmt: skip
async def test_media_in_items_are_held_as_in_a_call(part: dict[str, object], tokens: int) -> None:
    """Of a file by its id nobody knows the length: a GPT-5 reads 1,050,000 tokens at most. A picture has 1,600 at least."""
    async with objects() as stage:
        stage.objects.kept |= {(CALLER.organization_id, id_) for id_ in ("conv_1", "file-1")}
        stage.directory.prices["gpt-5.4"] = Vector(7, "USD", (2_000_000,) * len(KINDS))
        stage.directory.budgets_there = [Budget(1, "all", MONEY, 10**15, "month", hold=MAXIMUM)]
        assert (await stage.ask(put({"type": "message", "role": "user", "content": [part]}))).status == 200
        named = body(model="gpt-5.4", conversation="conv_1")
        assert (await stage.ask(post(named, RESPONSES, JSON))).status == 200
        assert tokens <= stage.counters.holds[-1].money / 2 < 1_051_000


async def test_items_for_the_conversation_of_others_are_refused_and_counted_nowhere() -> None:
    async with objects() as stage:
        stage.objects.kept.add((99, "conv_1"))
        assert (await stage.ask(put(item(9)))).status == 404
        assert not stage.objects.sized


async def test_a_call_is_not_refused_while_the_length_of_a_kept_text_cannot_be_read() -> None:
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "resp_1"))
        stage.objects.unsized = True
        assert (await stage.ask(post(body(previous_response_id="resp_1"), RESPONSES, JSON))).status == 200
        assert (await stage.ask(go_on("t1"))).status == 200


async def test_escapes_in_names_hide_nothing() -> None:
    async with objects() as stage:
        hidden = b'{"model":"m","input":"hi","max_output_tokens":9,"previous\\u005fresponse_id":"resp_1"}'
        assert (await stage.ask(post(hidden, RESPONSES, JSON))).status == 404


async def test_what_a_call_makes_is_its_organizations() -> None:
    async with objects() as stage:
        stage.upstream.scripts = [[answer(MADE)]]
        assert (await stage.ask(post(body(), RESPONSES, JSON))).status == 200
        assert {one for _, one in stage.objects.kept} == {"resp_1", "ci_1", "cntr_1"}
        again = body(previous_response_id="resp_1", tools=[{"container": "cntr_1"}])
        assert (await stage.ask(post(again, RESPONSES, JSON))).status == 200
        assert (await stage.ask(get(b"/v1/responses/resp_1"), "GET")).status == 200
        stage.directory.caller = OTHERS
        assert (await stage.ask(post(again, RESPONSES, JSON))).reason == "object_not_found"
        assert (await stage.ask(get(b"/v1/responses/resp_1"), "GET")).reason == "object_not_found"
        assert (await stage.ask(get(b"/v1/responses/resp%5F1"), "GET")).reason == "object_not_found"


async def test_stored_chats_and_the_input_of_responses_are_their_organizations_by_default() -> None:
    routes = tuple(replace(one, upstream="up") for one in FAMILY.routes)
    async with staged(routes=routes) as stage:
        client = AsyncOpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key=KEY, max_retries=0)
        stage.objects.kept |= {(CALLER.organization_id, one) for one in ("resp_1", "chat_1")}
        asks = (
            lambda: client.responses.input_items.list("resp_1"),
            lambda: client.chat.completions.retrieve("chat_1"),
            lambda: client.chat.completions.messages.list("chat_1"),
            lambda: client.chat.completions.delete("chat_1"),
            lambda: client.responses.input_tokens.count(model="m", previous_response_id="resp_1"),
        )
        for ask in asks:
            await ask()
        assert len(stage.upstream.received) == len(asks)
        stage.directory.caller = OTHERS
        for ask in asks:
            with pytest.raises(NotFoundError):
                await ask()
        assert len(stage.upstream.received) == len(asks)
        assert not stage.counters.charges


async def test_an_object_made_by_a_free_route_has_an_owner() -> None:
    async with objects() as stage:
        stage.upstream.scripts = [[answer(b'{"id":"file-7","object":"file"}')], [answer(b'{"id":"conv_7"}')]]
        form = b"content-type: multipart/form-data; boundary=b\r\n"
        assert (await stage.ask(post(b"--b--", b"/v1/files", form))).status == 200
        assert (await stage.ask(post(b"{}", b"/v1/conversations", JSON))).status == 200
        assert {one for _, one in stage.objects.kept} == {"file-7", "conv_7"}
        assert (await stage.ask(get(b"/v1/files/file-7/content"), "GET")).status == 200
        assert (await stage.ask(get(b"/v1/files/file-8/content"), "GET")).reason == "object_not_found"


async def test_a_list_of_all_objects_is_found_by_nobody() -> None:
    async with objects() as stage:
        for path in (b"/all/files", b"/all/responses"):
            got = await stage.ask(get(path), "GET")
            assert (got.status, got.reason) == (404, "object_not_found")
        assert not stage.upstream.received


async def test_a_body_that_could_name_objects_unread_is_refused() -> None:
    async with objects() as stage:
        plain = b"content-type: text/plain\r\n"
        got = await stage.ask(post(b'{"file_ids":["file-1"]}', b"/v1/vector_stores", plain))
        assert (got.status, got.reason) == (400, "invalid_request")
        twice = b'{"file_ids":["file-1"],"file_ids":[]}'
        assert (await stage.ask(post(twice, b"/v1/vector_stores", JSON))).status == 400
        assert not stage.upstream.received


async def test_shared_objects_are_nobodys_business() -> None:
    async with objects() as stage:
        assert (await stage.ask(post(body(previous_response_id="x"), b"/v1/shared", JSON))).status == 200
        assert (await stage.ask(get(b"/v1/open/files/file-1"), "GET")).status == 200
        assert not stage.objects.asked


async def test_without_the_counters_nobody_knows_whose_it_is() -> None:
    async with objects() as stage:
        stage.objects.down = True
        got = await stage.ask(post(body(previous_response_id="resp_1"), RESPONSES, JSON))
        assert (got.status, got.reason) == (503, "counters_unavailable")
        assert not stage.upstream.received


async def test_most_calls_ask_nothing() -> None:
    async with objects() as stage:
        metadata = {"conversation_id": "mine"}
        assert (await stage.ask(post(body(metadata=metadata), RESPONSES, JSON))).status == 200
        assert not stage.objects.asked


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (b"/v1/messages/count_tokens", {"messages": [{"content": [{"source": {"file_id": "file_1"}}]}]}),
        (b"/v1beta/models/m:countTokens", {"generateContentRequest": {"cachedContent": "cachedContents/c"}}),
        (b"/all/vector_stores", {"FILE_IDS": ["file-1"]}),
    ],
)  # fmt: skip
async def test_bodies_of_free_routes_name_objects_too(path: bytes, sent: dict[str, object]) -> None:
    async with objects() as stage:
        got = await stage.ask(post(json.dumps(sent).encode(), path, JSON))
        assert (got.status, got.reason) == (404, "object_not_found")
        assert not stage.upstream.received


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data; boundary=x", b"text/plain", b"application/json, a/b"]
)
async def test_a_form_is_taken_only_where_files_are(kind: bytes) -> None:
    async with objects() as stage:
        form = b'--x\r\ncontent-disposition: form-data; name="file_id"\r\n\r\nfile-1\r\n--x--\r\n'
        got = await stage.ask(post(form, b"/v1/vector_stores", b"content-type: %b\r\n" % kind))
        assert (got.status, got.reason) == (400, "invalid_request")
        assert b"content-type" in got.body
        assert not stage.upstream.received
        got = await stage.ask(post(form, b"/v1/files", b"content-type: multipart/form-data; boundary=x\r\n"))
        assert got.status == 200


@pytest.mark.parametrize(
    "framing", [b'content-length: 20\r\n\r\n{"file_id":"file-1"}', b"transfer-encoding: chunked\r\n\r\n"]
)
async def test_what_takes_no_body_is_sent_with_none(framing: bytes) -> None:
    async with objects() as stage:
        got = await stage.ask(get(b"/v1/models", AUTH + JSON)[:-2] + framing)
        assert (got.status, got.reason) == (400, "invalid_request")
        assert not stage.upstream.received


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, set()),
        ({"store": False}, set()),
        ({"store": True}, {"chatcmpl-1", "audio_1"}),
        ({"modalities": ["text", "audio"]}, {"chatcmpl-1", "audio_1"}),
    ],
)
async def test_a_chat_that_is_not_stored_leaves_no_object(asked: dict[str, object], kept: set[str]) -> None:
    """An organization has room for so many: answers nobody can ask for push out nothing."""
    made = {"id": "chatcmpl-1", "choices": [{"message": {"content": "x", "audio": {"id": "audio_1"}}}]}
    async with objects() as stage:
        stage.upstream.scripts.append([answer(json.dumps(made).encode())])
        chat = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **asked})
        assert (await stage.ask(post(chat.encode()))).status == 200
        assert {one for _, one in stage.objects.kept} == kept


@pytest.mark.parametrize("sent", [{"name": "cachedContents/mine"}, {"file": {"name": "files/mine"}}])
async def test_nobody_chooses_the_name_of_what_is_kept(sent: dict[str, object]) -> None:
    async with objects() as stage:
        got = await stage.ask(post(json.dumps(sent).encode(), b"/v1beta/cachedContents", JSON))
        assert (got.status, got.reason) == (400, "invalid_request")
        assert b"name" in got.body
        assert not stage.upstream.received


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/v1/files/mine/content"),
        ("GET", b"/v1/responses/mine"),
        ("POST", b"/all/conversations/mine/items"),
        ("POST", b"/all/responses/compact"),
        ("GET", b"/all/batches/mine/x"),
        ("PUT", b"/all/files"),
    ],
)
async def test_only_what_makes_an_object_gives_it_an_owner(method: str, path: bytes) -> None:
    said = {"id": "theirs", "output_file_id": "theirs", "data": [{"id": "theirs"}]}
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "mine"))
        stage.upstream.scripts.append([answer(json.dumps(said).encode())])
        sent = get(path) if method == "GET" else post(b"{}", path, JSON).replace(b"POST", method.encode(), 1)
        assert (await stage.ask(sent, method)).status == 200
        assert {one for _, one in stage.objects.kept} == {"mine"}


async def test_what_was_made_of_a_batch_is_told_by_it() -> None:
    async with objects() as stage:
        stage.objects.kept.add((CALLER.organization_id, "batch_1"))
        stage.upstream.scripts.append([answer(b'{"id":"batch_1","output_file_id":"file-2"}')])
        assert (await stage.ask(get(b"/v1/batches/batch_1"), "GET")).status == 200
        assert {one for _, one in stage.objects.kept} == {"batch_1", "file-2"}


async def test_what_a_request_brought_is_nobodys_by_its_answer() -> None:
    async with objects() as stage:
        brought = {"type": "message", "id": "resp_9", "role": "user", "content": "x"}
        made = {"id": "resp_1", "output": [brought], "usage": {"input_tokens": 2, "output_tokens": 3}}
        stage.upstream.scripts.append([answer(json.dumps(made).encode())])
        assert (await stage.ask(post(body(input=[brought]), RESPONSES, JSON))).status == 200
        assert {one for _, one in stage.objects.kept} == {"resp_1"}


async def test_what_a_stream_tells_in_each_event_is_noted_once() -> None:
    said = b'{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}'
    event, seen = chunks(b"data: %b\n\n" % said, end=False), asyncio.Event()
    async with objects() as stage:
        stage.upstream.scripts.append([STREAM_HEAD, event, seen, event, chunks(USAGE_EVENT, DONE_EVENT)])
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "store": True, "stream": True}
        client = await stage.client()
        client.writer.write(post(json.dumps(chat).encode()))
        await client.read_until(b"word")
        seen.set()
        await client.read_until(b"[DONE]")
        assert stage.objects.noted_ids == [["chatcmpl-1"]]


async def test_an_item_is_its_organizations_once_it_is_done_and_its_stream_breaks_off() -> None:
    item = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    async with objects() as stage:
        stage.upstream.scripts.append(
            [STREAM_HEAD, chunks(b"data: %b\n\n" % json.dumps(done).encode(), end=False), Close()]
        )
        await stage.ask(post(body(stream=True, store=False), RESPONSES, JSON))
        assert {one for _, one in stage.objects.kept} == {"ws_1"}
        reference = body(input=[{"type": "item_reference", "id": "ws_1"}])
        assert (await stage.ask(post(reference, RESPONSES, JSON))).status == 200


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "linked",
    [{"diagnostics": {"previous_message_id": None}}, {"thread": {"type": "new"}}, {"diagnostics": None}, {}],
)
async def test_a_message_is_remembered_where_the_next_one_may_name_it(
    linked: dict[str, object], streamed: bool
) -> None:
    usage = {"input_tokens": 2, "output_tokens": 3}
    made = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage}
    events = [{"type": "message_start", "message": made}, {"type": "message_stop"}]
    said = b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in events])
    asked = {"model": "m", "max_tokens": 5, "messages": [], "stream": streamed}
    async with objects() as stage:
        stage.upstream.scripts.append(
            [STREAM_HEAD, chunks(said)] if streamed else [answer(json.dumps(made).encode())]
        )
        assert (
            await stage.ask(post(json.dumps({**asked, **linked}).encode(), b"/v1/messages"))
        ).status == 200
        named = {**asked, "stream": False, "diagnostics": {"previous_message_id": "msg_1"}}
        again = post(json.dumps(named).encode(), b"/v1/messages")
        remembered = any(linked.values())
        assert (await stage.ask(again)).status == (200 if remembered else 404)
        stage.directory.caller = OTHERS
        assert (await stage.ask(again)).reason == "object_not_found"


@pytest.mark.parametrize("path", [b"/all/FILES/theirs", b"/all/Files/theirs", b"/all/%46iles/theirs"])
async def test_a_path_is_read_as_an_upstream_may_read_it(path: bytes) -> None:
    async with objects() as stage:
        assert (await stage.ask(get(path), "GET")).reason == "object_not_found"
        assert not stage.upstream.received


# --- two organizations and a real Redis -----------------------------------------------------

MINE = replace(CALLER, partition=keys.partition_of(CALLER.organization_id))
THIEF = replace(OTHERS, partition=keys.partition_of(OTHERS.organization_id))
FORM = b"content-type: multipart/form-data; boundary=b\r\n"
# What makes an object, what it is called, its answer, and how it is read.
MADE_BY = {
    "response": (post(body(), RESPONSES, JSON), MADE, b"/v1/responses/resp_1"),
    "file": (post(b"--b--", b"/v1/files", FORM), b'{"id":"file-7"}', b"/v1/files/file-7/content"),
    "conversation": (post(b"{}", b"/v1/conversations", JSON), b'{"id":"conv_7"}',
                     b"/v1/conversations/conv_7"),
    "cached content": (
        post(b"{}", b"/v1beta/cachedContents", JSON), b'{"name":"cachedContents/c7"}',
        b"/v1beta/cachedContents/c7",
    ),
    "output of a batch": (
        get(b"/v1/batches/batch_1"), b'{"id":"batch_1","output_file_id":"file-8"}',
        b"/v1/files/file-8/content",
    ),
}  # fmt: skip


@asynccontextmanager
async def workers(valkey: str) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two gateways share one Redis. Each serves one organization."""
    wires = [RedisConnection(parse_url(valkey), time.monotonic) for _ in range(2)]
    for one in wires:
        await one.open()
    stored = [ObjectOwners(one, time.time, 600.0, 100) for one in wires]
    async with (
        staged(routes=OBJECT_ROUTES, stored=stored[0]) as first,
        staged(routes=OBJECT_ROUTES, stored=stored[1]) as second,
    ):
        first.directory.caller, second.directory.caller = MINE, THIEF
        yield first, second
    for one in wires:
        await one.close()


async def said(stage: Stage, sent: bytes, answered: bytes = b"{}") -> tuple[int, bytes]:
    """What a request gets whose upstream answers so."""
    stage.upstream.scripts = [[answer(answered)]]
    got = await stage.ask(sent, sent.partition(b" ")[0].decode())
    return got.status, got.body


@pytest.mark.parametrize("path", [b"/v1/chat/completions", RESPONSES, b"/v1/messages"])
async def test_an_id_in_a_field_that_no_table_has_passes_unless_another_organization_owns_it(
    valkey: str, path: bytes
) -> None:
    """As Hermes by OpenRouter, LiteLLM and vLLM have such fields; one that a table has must be one's own."""
    more = {"max_tokens": 5, "messages": []}
    unknown = {
        "session_id": "s", "trace": {"trace_id": "t", "parent_span_id": "p"}, "litellm_session_id": "l",
        "kv_transfer_params": {"remote_engine_id": "e"},
    }  # fmt: skip
    async with workers(valkey) as (owner, thief):
        assert (await said(owner, post(b"{}", b"/v1/conversations", JSON), b'{"id":"conv_9"}'))[0] == 200
        assert (await said(thief, post(body(**more, **unknown), path, JSON)))[0] == 200
        hidden = post(body(**more, trace={"deep": [{"parent_span_id": ["p", ["conv_9"]]}]}), path, JSON)
        assert (await said(owner, hidden))[0] == 200
        status, told = await said(thief, hidden)
        assert (status, b"parent_span_id" in told, b"conv_9" in told) == (404, True, False)
        for stage in (owner, thief):
            status, told = await said(stage, post(body(**more, file_id="nobodys"), path, JSON))
            assert (status, b"The field is file_id." in told) == (404, True)


@pytest.mark.parametrize(
    "more",
    [
        {"foo_id": "cachedContents/c7"}, {"foo_ids": ["cachedContents/c7"]}, {"id": "cachedContents/c7"},
        {"contents": [{"parts": [{"thing": {"cache_id": "cachedContents/c7"}}]}]},
    ],
)  # fmt: skip
async def test_gemini_does_not_read_what_another_organization_caches_by_a_new_field(
    valkey: str, more: dict[str, object]
) -> None:
    makes, made, _ = MADE_BY["cached content"]
    sent = post(json.dumps({"contents": [], **more}).encode(), b"/v1beta/models/m:generateContent", JSON)
    async with workers(valkey) as (owner, thief):
        assert (await said(owner, makes, made))[0] == 200
        assert (await said(owner, sent))[0] == 200
        status, told = await said(thief, sent)
        assert (status, b"The field is" in told, b"/c7" in told) == (404, True, False)
        assert len(thief.upstream.received) == 0


@pytest.mark.parametrize("kind", MADE_BY)
async def test_an_answer_that_repeats_anothers_id_gives_it_to_nobody(valkey: str, kind: str) -> None:
    makes, made, path = MADE_BY[kind]
    async with workers(valkey) as (owner, thief):
        if kind == "output of a batch":
            batches = post(b"{}", b"/all/batches", JSON)
            assert (await said(owner, batches, b'{"id":"batch_1"}'))[0] == 200
            assert (await said(thief, batches, b'{"id":"batch_2"}'))[0] == 200
        asked = get(path)
        assert [(await said(one, asked))[0] for one in (owner, thief)] == [404, 404]
        assert (await said(owner, makes, made))[0] == 200
        assert [(await said(one, asked))[0] for one in (owner, thief)] == [200, 404]
        stolen = makes.replace(b"batch_1", b"batch_2")
        for _ in range(2):
            assert await said(thief, stolen, made) == (200, made), "it passes as it is"
            assert [(await said(one, asked))[0] for one in (owner, thief)] == [200, 404]


async def test_of_two_workers_whose_upstreams_say_one_id_at_once_one_owns_it(valkey: str) -> None:
    async with workers(valkey) as (one, other):
        for number in range(20):
            made = b'{"id":"file-%d"}' % number
            makes, asked = MADE_BY["file"][0], get(b"/v1/files/file-%d/content" % number)
            got = await asyncio.gather(said(one, makes, made), said(other, makes, made))
            assert got == [(200, made)] * 2
            assert sorted([(await said(each, asked))[0] for each in (one, other)]) == [200, 404]


async def test_an_object_that_was_deleted_is_free_for_nobody(valkey: str) -> None:
    makes, made, path = MADE_BY["file"]
    async with workers(valkey) as (owner, thief):
        await said(owner, makes, made)
        delete = get(b"/v1/files/file-7").replace(b"GET", b"DELETE", 1)
        assert (await said(owner, delete, b'{"id":"file-7","deleted":true}'))[0] == 200
        await said(thief, makes, made)
        assert [(await said(one, get(path)))[0] for one in (owner, thief)] == [200, 404]


async def test_what_a_shared_route_makes_has_no_owner(valkey: str) -> None:
    async with workers(valkey) as (one, other):
        for each in (one, other):
            assert (await said(each, post(body(), b"/v1/shared", JSON), MADE))[0] == 200
            assert (await said(each, get(b"/v1/responses/resp_1")))[0] == 404
