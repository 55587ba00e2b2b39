"""Anthropic's API of messages."""

from __future__ import annotations

from gateway.core.calls.route import Route
from gateway.core.families.anthropic import calls, messages
from gateway.core.families.anthropic.objects import OBJECTS
from gateway.core.families.anthropic.refusals import refusal_of
from gateway.core.families.family import ApiFamily, Shape, target
from gateway.core.model import Family

NAME = Family("anthropic")

FAMILY = ApiFamily(
    NAME,
    refusal_of,
    shapes={
        "anthropic_messages": Shape(
            calls.read_messages, messages.DIALECT, "max_tokens",
            always_reports=True, keeps=lambda document: True,
        )
    },
    routes=(
        Route(("POST",), "/v1/messages", NAME, "messages", NAME, "anthropic_messages"),
        Route(("POST",), "/v1/messages/count_tokens", NAME, family=NAME),
    ),
    target=target(NAME, "https://api.anthropic.com", "ANTHROPIC_API_KEY", "x-api-key"),
    prefixes=("/v1/messages",),
    spoken_by=b"anthropic-version",
    credentials=(b"x-api-key",),
    limits_prefix=b"anthropic-ratelimit-",
    queries={b"api-version": None, b"beta": None},
    names_requests=True,
    objects=OBJECTS,
    ceilings={
        "claude-3": 8_192, "claude-3-7": 128_000, "claude-opus-4": 128_000, "claude-sonnet-4": 128_000,
        "claude-haiku-4": 64_000,
    },
)  # fmt: skip
