"""`/v1/models` as the key that asks may use them: by its list, its services and their prices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest

from gateway.core.billing.vector import Vector
from gateway.core.calls.routes import Route, ServiceRules, UpstreamTarget
from gateway.core.families.family import AT_ONCE_MODELS_MAX, MODELS_MAX
from gateway.core.http_limits import HttpLimits
from gateway.core.metering.meters import LISTED_BYTES_MAX
from gateway.core.model import Family, Service
from gateway.errors import ServiceNotIncluded
from gateway.http.routing.routed_head import HeadRouter
from gateway.http.routing.worker_bindings import WorkerBindings
from tests.http.fakes import AUTH, CALLER, ROUTES, FakeDirectory, answer, get, post
from tests.http.stage import Answer, Stage, staged
from tests.http.test_budget_hold import BUDGET
from tests.http.test_costs import OPUS

OPENAI = Family("openai")
SLASHES = Route(("GET",), "/v1/models/{+id}", "up", "", OPENAI)
GEMINI = Route(("GET",), "/v1beta/models", "up", "", Family("gemini"))
WITH_SLASHES = (*ROUTES, SLASHES, GEMINI)


def listed(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "owned_by": "x"} for name in names]}).encode()


async def asked(stage: Stage, document: bytes, path: bytes = b"/v1/models", fields: bytes = b"") -> Answer:
    stage.upstream.scripts.append([answer(document, fields)])
    return await stage.ask(get(path), "GET")


def names_in(got: Answer, field: str = "data", name: str = "id") -> list[str]:
    assert got.status == 200, got.body
    return [model[name] for model in json.loads(got.body)[field]]


async def test_a_key_with_a_list_sees_what_is_on_it_and_by_its_patterns() -> None:
    async with staged(routes=WITH_SLASHES) as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"gpt-5", "meta/*", "o*-mini"}))
        got = await asked(stage, listed("gpt-5", "gpt-5-pro", "meta/llama-4/scout", "o4-mini", "o4,x-mini"))
        assert names_in(got) == ["gpt-5", "meta/llama-4/scout", "o4-mini"]
        assert json.loads(got.body)["object"] == "list"
        sent = stage.upstream.received[0]
        assert sent.all(b"accept-encoding") == [b"identity"]


async def test_a_key_without_a_list_sees_the_upstreams_own_bytes() -> None:
    odd = b'{ "data" : [ {"id":"a" } ] , "object":"list"}'
    async with staged() as stage:
        assert (await asked(stage, odd)).body == odd


@pytest.mark.parametrize("family", ["openai", "generic"])
async def test_a_key_with_a_list_calls_nothing_of_models_that_is_not_read(family: str) -> None:
    images = replace(ROUTES[0], path="/v1/images/generations", meter="generic", family=Family(family))
    open_ = replace(images, path="/v1/images/edits", models="unread")
    paths = {b"/v1/images/generations": 403, b"/services/search/images": 403, b"/v1/images/edits": 200}
    async with staged(routes=(*ROUTES, images, open_)) as stage:
        for models in (frozenset({"gpt-5", "dall-e-*"}), frozenset[str](), None):
            stage.directory.caller = replace(CALLER, models=models)
            for path, status in paths.items():
                got = await stage.ask(post(b'{"model":"gpt-5"}', path))
                assert got.status == (200 if models is None else status)
                assert got.status == 200 or got.reason == "model_not_allowed"


def test_a_service_where_no_models_are_asks_for_no_list() -> None:
    routes = (*ROUTES, replace(ROUTES[-2], path="/sms/{service_key}/{path…}"))
    targets = {
        "up": UpstreamTarget("up", "http://up.test/v1"),
        "sms": UpstreamTarget("sms", "http://sms.test"),
    }
    targets["beside"] = UpstreamTarget("beside", "http://up.test/images")
    directory = FakeDirectory()
    for name in ("sms", "beside", "allowed"):
        directory.services[name] = Service(9, name, "consumption")
    rules = ServiceRules(
        (("sms", "sms"), ("beside", "beside"), ("allowed", "beside")), unread=frozenset({"allowed"})
    )
    bindings = WorkerBindings(routes, targets, rules, directory, lambda event, **facts: None)
    router = HeadRouter(routes, targets, bindings, HttpLimits())
    found = {
        name: router.route(post(b"{}", b"/services/%b/x" % name.encode())).any_model
        for name in ("sms", "beside", "allowed")
    }
    assert found == {"sms": False, "beside": True, "allowed": False}


async def test_gemini_names_its_models_behind_a_word() -> None:
    document = json.dumps(
        {"models": [{"name": "models/gemini-3"}, {"name": "models/other"}], "nextPageToken": "n"}
    ).encode()
    async with staged(routes=WITH_SLASHES) as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"gemini-*"}))
        got = await asked(stage, document, b"/v1beta/models")
        assert names_in(got, "models", "name") == ["models/gemini-3"]
        assert json.loads(got.body)["nextPageToken"] == "n"


@pytest.mark.parametrize("slash", ["/", "%2F", "%2f"])
@pytest.mark.parametrize("name", ["gpt-5", "meta-llama/Llama-3.1-8B", "accounts/fireworks/models/x"])
async def test_one_model_is_told_of_by_its_name_with_slashes_too(name: str, slash: str) -> None:
    """SDKs send a slash of a name as `%2F`; the upstream gets it as it was sent."""
    async with staged(routes=WITH_SLASHES) as stage:
        path = f"/v1/models/{name.replace('/', slash)}".encode()
        stage.directory.caller = replace(CALLER, models=frozenset({name}))
        assert (await asked(stage, b'{"id":"x"}', path)).status == 200
        assert stage.upstream.received[0].target == path
        stage.directory.caller = replace(CALLER, key_id=9, models=frozenset({"another"}))
        got = await stage.ask(get(path), "GET")
        assert (got.status, got.reason) == (403, "model_not_allowed")
        assert len(stage.upstream.received) == 1


async def test_who_may_use_none_of_the_services_sees_no_model(stage: Stage) -> None:
    stage.directory.terms = {key: ServiceNotIncluded() for key in stage.directory.services}
    assert names_in(await asked(stage, listed("a", "b"))) == []
    stage.directory.terms.pop("chat")
    assert names_in(await asked(stage, listed("a", "b"))) == ["a", "b"]


async def test_models_without_a_price_are_not_shown_where_calls_of_them_are_refused() -> None:
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices = {"priced": OPUS}
        assert names_in(await asked(stage, listed("priced", "free"))) == ["priced"]


async def test_a_service_not_in_force_does_not_hide_what_another_one_serves(stage: Stage) -> None:
    stage.directory.terms = {"messages": ServiceNotIncluded()}
    stage.directory.services["chat"] = Service(1, "chat")
    assert names_in(await asked(stage, listed("a"))) == ["a"]


NO_LISTS = [b"no json", b'data: {"data":[{"id":"b"}]}', b'{"data":{}}', b'{"error":1}', b'{"models":[]}', b""]


@pytest.mark.parametrize("document", NO_LISTS)
async def test_what_lists_no_models_is_not_passed(stage: Stage, document: bytes) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
    got = await asked(stage, document)
    assert (got.status, got.reason) == (502, "upstream_unreachable")


async def test_a_list_may_be_the_whole_document(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
    assert (await asked(stage, b'[{"id":"a"},{"id":"b"},"b"]')).body == b'[{"id":"a"}]'
    assert (await asked(stage, b"[]")).body == b"[]"


async def test_beside_the_list_no_other_one_passes() -> None:
    document = b'{"object":"list","models":[{"name":"b"}],"by":{"b":1},"data":[{"id":"a"},{"id":"b"}]}'
    async with staged() as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
        assert (await asked(stage, document)).body == b'{"object":"list","data":[{"id":"a"}]}'


@pytest.mark.parametrize("query", [b"alt=sse&pageSize=5", b"pageSize=5&alt=sse"])
async def test_a_list_that_is_looked_through_is_asked_for_as_json(query: bytes) -> None:
    async with staged(routes=WITH_SLASHES) as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
        path = b"/v1beta/models?" + query
        stage.upstream.scripts += [[answer(b'{"models":[{"name":"models/a"}]}')], [answer(b"{}")]]
        fields = AUTH + b"Accept: text/event-stream\r\nx-mine: accept: it\r\n"
        got = await stage.ask(get(path, fields), "GET")
        assert names_in(got, "models", "name") == ["models/a"]
        stage.directory.caller = replace(CALLER, key_id=9, models=None)
        await stage.ask(get(path, fields), "GET")
        looked, passed = stage.upstream.received
        assert (looked.target, looked.all(b"accept")) == (
            b"/v1beta/models?pageSize=5", [b"application/json"],
        )  # fmt: skip
        assert looked.all(b"x-mine") == [b"accept: it"]
        assert (passed.target, passed.all(b"accept")) == (path, [b"text/event-stream"])


class PricedByTurn(dict[str, Vector]):
    """Every model that begins with `model` has a price; notes in which turn of the loop it was asked for."""

    def __init__(self) -> None:
        self.turn = 0
        self.asked: Counter[int] = Counter()

    def get(self, model: str, default: object = None) -> Vector | None:  # type: ignore[override]  # as asked
        self.asked[self.turn] += 1
        return OPUS if model.startswith("model") else None

    async def count(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def test_others_have_turns_while_a_long_list_is_looked_through_and_nothing_of_it_is_remembered() -> (
    None
):
    names = [f"model-{number}" for number in range(1_000)]
    async with staged(refuses_unpriced=True) as stage:
        priced = stage.directory.prices = PricedByTurn()
        stage.directory.budgets_there = [BUDGET]
        stage.directory.services = {"chat": Service(1, "chat")}
        stage.directory.caller = replace(
            CALLER, models=frozenset({"model-*", *(f"x{n}*" for n in range(99))})
        )
        counting = asyncio.create_task(priced.count())
        try:
            got = await asked(stage, listed(*names, "other"))
        finally:
            counting.cancel()
        assert names_in(got) == names
        assert priced.asked.total() >= len(names)
        assert max(priced.asked.values()) <= AT_ONCE_MODELS_MAX
        assert not stage.directory.remembered


async def test_a_list_that_cannot_be_looked_through_is_not_passed(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
    many = json.dumps({"data": [{"id": "a"}] * (MODELS_MAX + 1)}).encode()
    long = b'{"data":["' + b"x" * LISTED_BYTES_MAX + b'"]}'
    for document, fields in ((many, b""), (long, b""), (b"\x1f\x8b", b"content-encoding: gzip\r\n")):
        got = await asked(stage, document, fields=fields)
        assert (got.status, got.reason) == (502, "upstream_unreachable")


async def test_an_upstreams_refusal_passes_and_a_head_has_no_body(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"a"}))
    stage.upstream.scripts.append([answer(b'{"error":"x"}', status=b"404 Not Found")])
    got = await stage.ask(get(b"/v1/models"), "GET")
    assert (got.status, got.body) == (404, b'{"error":"x"}')
    head = answer(listed("a"))
    stage.upstream.scripts.append([head[: head.index(b"\r\n\r\n") + 4]])
    got = await stage.ask(get(b"/v1/models", method=b"HEAD"), "HEAD")
    assert (got.status, got.body) == (200, b"")
