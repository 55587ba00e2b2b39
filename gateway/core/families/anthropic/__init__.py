"""Anthropic's API of messages."""

from __future__ import annotations

from gateway.core.calls.call import MediaPart, MediaPlaces
from gateway.core.calls.routes import Route
from gateway.core.families.anthropic import calls, messages
from gateway.core.families.anthropic.calls import EXCLUSIONS, OBJECTS
from gateway.core.families.family import ApiFamily, CallKind, Listing, target
from gateway.core.model import Family
from gateway.errors import Refusal

NAME = Family("anthropic")

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_BASE64 = MediaPart(("source", "data"), states=("media_type",), only="base64")


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    """The body of a refusal as Anthropic's clients expect it."""
    other = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _TYPES.get(refusal.status, other)
    message = f"{refusal.param}: {refusal.told}" if refusal.param else refusal.told
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes={
        "anthropic_messages": CallKind(
            calls.read_messages, messages.DIALECT, "max_tokens",
            always_reports=True, keeps=lambda document: True,
            numbers=frozenset({"max_tokens"}),
            tool_uses="max_uses", limited_tools=("web_search_", "web_fetch_"),
            media=MediaPlaces("messages", {"image": _BASE64, "document": _BASE64}),
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
    names_session=b"x-claude-code-session-id",
    objects=OBJECTS,
    exclusions=EXCLUSIONS,
    # The first five its clients run; an advisor is charged by its tokens.
    free_tools=frozenset(
        {
            "custom", "bash", "texteditor", "computer", "memory", "mcptoolset", "webfetch",
            "toolsearchtoolregex", "toolsearchtoolbm", "advisor",
        }
    ),
    lists=Listing(),
    provider="anthropic",
    ceilings={
        "claude-3": 8_192, "claude-3-7": 128_000, "claude-opus-4": 128_000, "claude-sonnet-4": 128_000,
        "claude-haiku-4": 64_000,
    },
)  # fmt: skip
