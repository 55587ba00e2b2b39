"""What a path was probably meant to be, where nobody serves it."""

from __future__ import annotations

import json

import pytest

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


async def test_a_404_names_the_path_and_the_nearest_one() -> None:
    async with staged() as stage:
        got = await stage.ask(post(b"{}", b"/chat/completions?key=x"))
        assert (got.status, got.reason) == (404, "unknown_route")
        told = json.loads(got.body)["detail"]
        assert told == "No route is configured for /chat/completions. Did you mean /v1/chat/completions?"
        long = await stage.ask(get(b"/v1/" + b"x" * 5000), "GET")
        assert len(json.loads(long.body)["error"]["message"]) < 300
