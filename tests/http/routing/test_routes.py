"""What a path was probably meant to be, where nobody serves it."""

from __future__ import annotations

import json

import pytest

from gateway.core.calls.routes import Route
from gateway.http.routing.routes import RouteTable
from gateway.settings.settings import load
from tests.http.fakes import get, post
from tests.http.stage import staged

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


async def test_a_404_names_the_path_and_the_nearest_one() -> None:
    async with staged() as stage:
        got = await stage.ask(post(b"{}", b"/chat/completions?key=x"))
        assert (got.status, got.reason) == (404, "unknown_route")
        told = json.loads(got.body)["detail"]
        assert told == "No route is configured for /chat/completions. Did you mean /v1/chat/completions?"
        long = await stage.ask(get(b"/v1/" + b"x" * 5000), "GET")
        assert len(json.loads(long.body)["error"]["message"]) < 300
