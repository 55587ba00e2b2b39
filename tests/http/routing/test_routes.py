"""What a path was probably meant to be, where nobody serves it."""

from __future__ import annotations

import json

import pytest

from gateway.core.calls.routes import Route
from gateway.core.http_limits import HttpLimits
from gateway.http.routing.routed_head import HeadRouter
from gateway.http.routing.routes import RouteTable
from gateway.http.routing.worker_bindings import WorkerBindings
from gateway.settings.settings import load
from tests.http.fakes import FakeDirectory, get, post
from tests.http.stage import Stage

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("//v1//chat/completions", CHAT),
        ("/V1/Chat/Completions", CHAT),
        ("/v1/chat/completion", CHAT),
        ("/{model}:countTokens", "/v1beta/models/{model}:countTokens"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/message", "/v1/messages"),
        ("/", ""),
        ("/favicon.ico", ""),
        ("/v1/nothing/like/it", ""),
        ("/" + "a/" * 4000, ""),
    ],
)
def test_the_nearest_path_of_the_list(path: str, meant: str) -> None:
    assert RouteTable(load({}).routes).nearest(path) == meant


def route(path: str, **more: str) -> Route:
    return Route(("GET", "POST"), path, "up", **more)


@pytest.mark.parametrize(
    ("path", "templates", "template"),
    [
        ("/api/a%2Fb", ["/api/{+name}"], "/api/{+name}"),
        ("/api/a%2Fb/c%2fd", ["/api/{+name}"], "/api/{+name}"),
        ("/api/a%2Fb", ["/api/{name}", "/api/{+name}"], "/api/{+name}"),
        ("/api/a%2Fb:act", ["/api/{+name}:act"], "/api/{+name}:act"),
        ("/api/a%2Fb", ["/api/{name}"], None),  # whoever decodes it knows no such path
        ("/api%2Fa", ["/api/{+name}"], None),  # and here nobody else does
        ("/api/a%2Fb", ["/api/{one}/{two}", "/api/{+name}"], None),  # another call, to whoever decodes it
        ("/api/a%2Fb", ["/api/{+other}", "/api/{+name}"], "/api/{+other}"),
        ("/api/a%2Fb", ["/api/{rest...}"], None),
        ("/services/a/b%2Fc", ["/services/{service_key}/{rest...}"], None),
    ],
)
def test_an_encoded_slash_is_taken_where_both_readings_are_one_call(
    path: str, templates: list[str], template: str | None
) -> None:
    found = RouteTable(tuple(route(one) for one in templates)).match("GET", path)
    assert (found.route.path if found is not None and found.route is not None else None) == template
    if found is not None:
        assert set(found.params.values()) <= {"a/b", "a/b/c/d"}


def test_a_path_that_costs_is_not_had_by_another_spelling_of_it() -> None:
    """Whoever decodes `%2F` would take it for the route that is metered."""
    free, metered = route("/api/{+name}"), route("/api/chat/completions", meter="openai_chat")
    for routes in ((free, metered), (metered, free)):
        table = RouteTable(routes)
        assert table.match("POST", "/api/chat%2Fcompletions") is None
        plain = table.match("POST", "/api/chat/completions")
        assert plain is not None
        assert plain.route is metered


async def test_a_404_names_the_path_and_the_nearest_one(stage: Stage) -> None:
    got = await stage.ask(post(b"{}", b"/chat/completions?key=x"))
    assert (got.status, got.reason) == (404, "unknown_route")
    told = json.loads(got.body)["detail"]
    assert told == "No route is configured for /chat/completions. Did you mean /v1/chat/completions?"
    long = await stage.ask(get(b"/v1/" + b"x" * 5000), "GET")
    assert len(json.loads(long.body)["error"]["message"]) < 300


# What google-genai 3.6.1 asks for by default, and the path that the route of Gemini's API has.
GENAI = {
    "POST /v1/models/m:generateContent": "/v1/models/m:generateContent",
    "GET /v1/models": "/v1/models",
    "GET /v1/models/m": "/v1/models/m",
    "POST /v1/cachedContents": "/v1/cachedContents",
    "GET /v1/files": "/v1beta/files",
    "DELETE /v1/files/x": "/v1beta/files/x",
    "GET /v1/files/x:download?alt=media": "/v1beta/files/x:download",
    "POST /upload/v1/files": "/upload/v1beta/files",
    "POST /v1/models/m:batchGenerateContent": "/v1beta/models/m:batchGenerateContent",
    "GET /v1/batches": "/v1beta/batches",
    "POST /v1/batches/x:cancel": "/v1beta/batches/x:cancel",
    "POST /v1/models/m:predictLongRunning": "/v1beta/models/m:predictLongRunning",
    "GET /v1/models/m/operations/x": "/v1beta/models/m/operations/x",
}


@pytest.mark.parametrize("asked", GENAI)
def test_googles_sdk_may_say_its_first_version_everywhere(asked: str) -> None:
    settings = load({})
    targets = {one.name: one for one in settings.upstreams}
    bindings = WorkerBindings(
        settings.routes, targets, settings.services, FakeDirectory(), lambda event, **facts: None
    )
    router = HeadRouter(settings.routes, targets, bindings, HttpLimits())
    fields = "host: g\r\nx-goog-api-key: k\r\nx-goog-api-client: google-genai-sdk/3.6.1\r\n"
    routed = router.route(f"{asked} HTTP/1.1\r\n{fields}\r\n".encode())
    assert (routed.refusal, routed.query_refusal, routed.field_refusal) == (None, None, None)
    assert (routed.upstream, routed.family, routed.sent) == ("gemini", "gemini", GENAI[asked])
