"""A call that another gateway asks for is judged and charged as one that passes here."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.core.accounts.call_facts import CallFacts
from gateway.core.accounts.caller_holds import CallerHold, HeldAmounts, HoldEnd
from gateway.core.accounts.run_policies import RunPolicy
from gateway.core.calls.routes import Route
from gateway.core.families.mcp import routes_of
from gateway.core.families.registry import ALL
from gateway.core.model import USER_REQUIRED, Caller, Family, Service
from gateway.errors import HoldNotFound
from tests.http.fakes import CALLER, ROUTES, answer, get, post
from tests.http.stage import Answer, Stage, staged
from tests.http.test_costs import DEAR, OPUS
from tests.http.test_models import chat, rule
from tests.http.test_pictures import DRAWN, IMAGES, PICTURES, SPEECH, opened
from tests.http.test_pictures import ROUTES as OF_MEDIA

AUTHORIZE = b"/.tollkeeper/authorize/600"
OPENAI, OPENAI_FAMILY = "/v1/chat/completions", Family("openai")
RESPONSES = b"/v1/responses"
GEMINI = b"/v1beta/models/g:generateContent"
_FOUND = [route for family in ALL for route in family.routes if route.path in {"/v1/responses", "/v1/files"}]
THERE = (*ROUTES, *OF_MEDIA, *routes_of("up"), *[replace(route, upstream="up") for route in _FOUND])
DRAWS = {"model": "draw", "prompt": "a cat", "n": 2, "size": "1024x1024", "quality": "high"}
ONLY_A = rule("own-model", ("up", "own-model"), organization_id=77)


class Holds:
    """Keeps holds as they are stored; where budgets are `short`, none has more money than before."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.short = False

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    async def begin(self, caller: Caller, key: str, body: bytes, id_: str) -> tuple[str, bytes]:
        return id_, b""

    async def forget(self, caller: Caller, key: str) -> None:
        raise AssertionError(key)

    async def enter(self, caller: Caller, id_: str) -> None:
        pass

    def leave(self, caller: Caller, id_: str) -> None:
        pass

    async def keep(self, hold: CallerHold, key: str = "", body: bytes = b"", answer: bytes = b"") -> None:
        self.kept[hold.id] = msgspec.json.encode(hold)

    async def find(self, caller: Caller, id_: str) -> CallerHold:
        if id_ not in self.kept:
            raise HoldNotFound
        return msgspec.json.decode(self.kept[id_], type=CallerHold)

    async def end_of(self, hold: CallerHold) -> HoldEnd | None:
        return None

    async def decide(self, hold: CallerHold, end: HoldEnd) -> HoldEnd:
        return end

    async def ended(self, hold: CallerHold, end: HoldEnd) -> None:
        end.applied = True

    async def is_gone(self, hold: CallerHold) -> bool:
        return False

    async def undecide(self, hold: CallerHold) -> None:
        raise AssertionError(hold)

    async def extend(
        self, hold: CallerHold, ttl_ms: int, wanted: HeldAmounts, definitions: tuple[bytes, ...] = ()
    ) -> HeldAmounts:
        return msgspec.structs.replace(wanted, money=hold.held.money) if self.short else wanted


async def cost_here(stage: Stage, path: bytes, body: bytes, told: bytes) -> CallFacts:
    stage.upstream.scripts.append([answer(told)])
    assert (await stage.ask(post(body, path))).status == 200
    return charged(stage)


async def cost_elsewhere(stage: Stage, asked: bytes, told: bytes) -> CallFacts:
    """What the same costs that another gateway asks for and tells."""
    got = await stage.ask(asked)
    assert got.status in {200, 201}, got.body
    taken = json.loads(got.body)["id"].encode() if got.body else got.one(b"x-tollkeeper-hold")
    path = b"/.tollkeeper/holds/%b/answers/200" % taken
    settled = await stage.ask(post(told, path, b"content-type: application/json\r\n"))
    assert settled.status == 200, settled.body
    return charged(stage)


def charged(stage: Stage) -> CallFacts:
    return stage.facts()


def said(**document: Any) -> bytes:
    return json.dumps(document).encode()


USED = {"prompt_tokens": 70, "completion_tokens": 50, "total_tokens": 120}
CHAT_ANSWER = {"id": "c", "object": "chat.completion", "choices": [], "usage": USED}
BESIDE = chat("cheap", models=["dear"])


@pytest.mark.parametrize(
    ("path", "service", "body", "told"),
    [
        (OPENAI, "chat", BESIDE, CHAT_ANSWER | {"model": "dear"}),
        (OPENAI, "chat", BESIDE, CHAT_ANSWER | {"model": "cheap"}),
        (OPENAI, "chat", BESIDE, CHAT_ANSWER),  # it does not tell which one
        (OPENAI, "chat", chat("fast"), CHAT_ANSWER | {"model": "dear"}),  # a name of one's own
        (PICTURES.decode(), "images", said(**DRAWS), DRAWN),
        (SPEECH.decode(), "speech", said(model="voice", input="hello", voice="alloy"), {}),
        # This API always tells its use: what does not costs all that it may.
        ("/v1/messages", "messages", chat("cheap", max_tokens=900), {"type": "message", "model": "cheap"}),
    ],
)  # fmt: skip
async def test_call_costs_the_same_when_proxied_as_when_authorized_or_held_for_another_gateway(
    path: str, service: str, body: bytes, told: Any
) -> None:
    models = (rule("fast", ("up", "dear")),)
    async with staged(THERE, holds=Holds(), models=models) as stage:
        opened(stage, images=IMAGES)
        opened(stage, model="voice", character="0.000015")
        stage.directory.prices |= {"cheap": OPUS, "dear": DEAR}
        here = await cost_here(stage, path.encode(), body, said(**told))
        assert here.cost
        request = said(service=service, request=json.loads(body))
        for asked in (post(body, AUTHORIZE + path.encode()), post(request, b"/.tollkeeper/holds")):
            there = await cost_elsewhere(stage, asked, said(**told))
            assert (there.cost, there.counts, there.tools) == (here.cost, here.counts, here.tools)
            assert (there.estimated, there.response_model) == (here.estimated, here.response_model)


async def refused(stage: Stage, asked: bytes, method: str = "POST") -> tuple[int, str]:
    got: Answer = await stage.ask(asked, method)
    assert not got.all(b"x-tollkeeper-hold")
    return got.status, got.reason


@pytest.mark.parametrize("door", [b"", AUTHORIZE, b"/.tollkeeper/holds"])
async def test_model_object_user_and_run_rules_apply_to_proxied_authorized_and_held_calls(
    door: bytes,
) -> None:
    def ask(path: bytes, service: str, body: bytes) -> bytes:
        if door.endswith(b"holds"):
            return post(said(service=service, request=json.loads(body)), door)
        return post(body, door + path)

    async with staged(THERE, holds=Holds(), models=(ONLY_A,)) as stage:
        stage.directory.services["responses"] = Service(95, "responses")
        for model in ({"model": "own-model"}, {"model": "m", "models": ["own-model"]}):
            body = chat(**model)  # type: ignore[arg-type]  # a name, and names
            assert await refused(stage, ask(OPENAI.encode(), "chat", body)) == (403, "model_not_allowed")
        answered = said(model="m", input="hi", max_output_tokens=9, previous_response_id="resp_1")
        assert await refused(stage, ask(RESPONSES, "responses", answered)) == (404, "object_not_found")
        stage.objects.kept.add((CALLER.organization_id, "resp_1"))
        assert (await stage.ask(ask(RESPONSES, "responses", answered))).status in {200, 201}
        stage.directory.caller = replace(CALLER, user_header=USER_REQUIRED)
        assert (await refused(stage, ask(OPENAI.encode(), "chat", chat("m")))) == (400, "user_required")
        stage.directory.caller = CALLER
        stage.directory.policies = (("tenant", RunPolicy(required=True)),)
        assert (await refused(stage, ask(OPENAI.encode(), "chat", chat("m")))) == (400, "run_required")
        assert (await stage.ask(get(b"/v1/models"))).reason != "run_required"


async def test_batch_file_line_naming_a_model_of_another_organization_is_refused() -> None:
    line = said(custom_id="1", method="POST", url=OPENAI, body=json.loads(chat("own-model")))
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    head += b'content-disposition: form-data; name="file"; filename="b.jsonl"\r\n\r\n'
    fields = b"content-type: multipart/form-data; boundary=b\r\n"
    async with staged(THERE, models=(ONLY_A,)) as stage:
        got = await stage.ask(post(head + line + b"\r\n--b--\r\n", b"/v1/files", fields))
        assert (got.status, got.reason, b"Line 1" in got.body) == (403, "model_not_allowed", True)


async def test_authorization_refuses_a_call_with_query_or_headers_the_gateway_would_remove() -> None:
    body = said(contents=[{"parts": [{"text": "hi"}]}], generationConfig={"maxOutputTokens": 9})
    async with staged(THERE, holds=Holds()) as stage:
        assert (await stage.ask(post(body, AUTHORIZE + GEMINI))).status == 200
        for query in (b"?fields=candidates.content", b"?%24fields=usageMetadata", b"?alt=media"):
            assert (await refused(stage, post(body, AUTHORIZE + GEMINI + query)))[0] == 400
        for field in (
            b"x-goog-fieldmask", b"X-Goog-FieldMask", b"range", b"x-request-timeout", b"if-match",
            b"X-Vertex-AI-LLM-Request-Type", b"azureml-model-deployment",
        ):  # fmt: skip
            asked = post(body, AUTHORIZE + GEMINI, field + b": 1\r\n")
            assert await refused(stage, asked) == (400, "invalid_request"), field


async def test_authorization_of_mcp_tool_calls_is_refused() -> None:
    async with staged(THERE, holds=Holds()) as stage:
        call = said(jsonrpc="2.0", id=1, method="tools/call", params={"name": "find"})
        got = await stage.ask(post(call, AUTHORIZE + b"/mcp/up"))
        assert (got.status, b"are not authorized" in got.body) == (404, True)


async def test_authorization_of_a_model_list_is_refused_if_some_models_must_be_hidden() -> None:
    """Nobody here sees what is in it, so it is told where no model can be another organization's own."""
    listed = AUTHORIZE + b"/v1/models"
    async with staged(holds=Holds()) as stage:
        assert await refused(stage, get(listed), "GET") == (403, "model_not_allowed")
    shared = tuple([replace(one, objects="shared") for one in ROUTES])
    async with staged(shared, holds=Holds()) as stage:
        assert (await stage.ask(get(listed), "GET")).status == 200
        stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
        assert await refused(stage, get(listed), "GET") == (403, "model_not_allowed")
        assert (await stage.ask(get(listed + b"/m"), "GET")).status == 200
        assert await refused(stage, get(listed + b"/other"), "GET") == (403, "model_not_allowed")


async def test_authorization_of_a_route_without_a_model_refuses_a_key_limited_to_some_models() -> None:
    route = Route(("POST",), "/v1/units", "up", "search", OPENAI_FAMILY, "generic")
    async with staged((*THERE, route), holds=Holds()) as stage:
        asked = post(b"", AUTHORIZE + b"/v1/units")
        assert (await stage.ask(asked)).status == 200
        stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
        assert await refused(stage, asked) == (403, "model_not_allowed")


@pytest.mark.parametrize("door", [b"", AUTHORIZE, b"/.tollkeeper/holds"])
async def test_unknown_numeric_field_is_refused_in_a_call_with_limited_output_on_every_path(
    door: bytes,
) -> None:
    def ask(**fields: Any) -> bytes:
        body = chat("m", max_tokens=9, **fields)
        if door.endswith(b"holds"):
            return post(said(service="chat", request=json.loads(body)), door)
        return post(body, door + OPENAI.encode())

    async with staged(THERE, holds=Holds()) as stage:
        assert (await stage.ask(ask(n_predict=20_000))).status in {200, 201}
        assert stage.counters.decision is not None
        stage.counters.decision = replace(stage.counters.decision, bounded=True)
        assert await refused(stage, ask(n_predict=20_000)) == (400, "invalid_request")
        assert not stage.counters.settlements[-1].charge
        assert (await stage.ask(ask(temperature=1))).status in {200, 201}
        assert await refused(stage, ask(n_predict=77777).replace(b"77777", b"1e400")) == (
            400,
            "invalid_request",
        )


MADE = {"id": "resp_new", "object": "response", "model": "m", "status": "completed", "output": [],
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}  # fmt: skip


@pytest.mark.parametrize("door", [AUTHORIZE + RESPONSES, b"/.tollkeeper/holds"])
@pytest.mark.parametrize(
    ("objects", "fields", "told", "kept"),
    [
        ("told", {}, MADE, {"resp_new"}),
        ("owned", {}, MADE, set()),
        ("told", {}, MADE | {"id": "resp_others"}, set()),  # another organization's stays so
        ("told", {"input": [{"type": "reasoning", "id": "resp_new", "encrypted_content": "x"}]}, MADE, set()),
        ("told", {"input": [{"type": "reasoning", "id": f"rs_{at:060}", "encrypted_content": "x"}
                            for at in range(200)]}, MADE, set()),
    ],
)  # fmt: skip
async def test_objects_in_a_reported_answer_are_registered_only_if_the_route_allows(
    door: bytes, objects: str, fields: dict[str, Any], told: dict[str, Any], kept: set[str]
) -> None:
    routes = [replace(one, objects=objects) if one.path == "/v1/responses" else one for one in THERE]
    body = {"model": "m", "input": "hi", "max_output_tokens": 9} | fields
    asked = said(service="responses", request=body) if door.endswith(b"holds") else said(**body)
    async with staged(tuple(routes), holds=Holds()) as stage:
        stage.directory.services["responses"] = Service(95, "responses")
        stage.objects.kept.add((1 + CALLER.organization_id, "resp_others"))
        await cost_elsewhere(stage, post(asked, door), said(**told))
        assert {one for whose, one in stage.objects.kept if whose == CALLER.organization_id} == kept
        tokens = stage.objects.sized.get((CALLER.organization_id, "resp_new"))
        assert not kept or tokens == 7, "3 read and 4 written"
