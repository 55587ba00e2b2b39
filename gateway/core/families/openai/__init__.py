"""OpenAI's API, which many servers speak."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.calls.route import Route
from gateway.core.families.family import ApiFamily, Shape, target
from gateway.core.families.openai import calls, chat, responses
from gateway.core.families.openai.objects import OBJECTS, keeps_chat
from gateway.core.families.openai.refusals import refusal_of
from gateway.core.model import Family

NAME = Family("openai")

_SHAPES = {
    "openai_chat": Shape(
        calls.read_chat, chat.DIALECT, "max_completion_tokens", asks_for_usage=True, keeps=keeps_chat
    ),
    "openai_completions": Shape(calls.read_completions, chat.DIALECT, "max_tokens", asks_for_usage=True),
    "openai_responses": Shape(
        calls.read_responses, responses.DIALECT, "max_output_tokens", keeps=lambda document: True
    ),
    "openai_embeddings": Shape(calls.read_embeddings, chat.DIALECT),
}


def _routes() -> Iterator[Route]:
    for path, service in (
        ("chat/completions", "chat"), ("completions",) * 2, ("responses",) * 2, ("embeddings",) * 2,
    ):  # fmt: skip
        yield Route(("POST",), f"/v1/{path}", NAME, service, NAME, f"openai_{service}")
    for path in ("models", "models/{id}"):
        yield Route(("GET",), f"/v1/{path}", NAME, family=NAME)


FAMILY = ApiFamily(
    NAME,
    refusal_of,
    shapes=_SHAPES,
    routes=tuple(_routes()),
    target=target(NAME, "https://api.openai.com", "OPENAI_API_KEY", "authorization", "Bearer "),
    prefixes=("/v1/",),
    shares_paths=True,
    credentials=(b"authorization", b"api-key"),
    queries={b"api-version": None},
    objects=OBJECTS,
    ceilings={
        "gpt-3.5": 4_096, "gpt-4": 8_192, "gpt-4-turbo": 4_096, "gpt-4o": 16_384, "gpt-4.1": 32_768,
        "gpt-5": 128_000, "o1": 100_000, "o3": 100_000, "o4": 100_000, "text-embedding": 0,
    },
)  # fmt: skip
