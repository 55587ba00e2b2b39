"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.accounts.budgets import FLAG_MONEY
from gateway.core.accounts.intervals import INTERVALS
from gateway.core.accounts.spent_answers import show_id
from gateway.core.calls.call import CallRequest, MediaPart, MediaPlaces
from gateway.core.calls.routes import Route
from gateway.core.families.anthropic import calls, messages
from gateway.core.families.anthropic.calls import EXCLUSIONS, OBJECTS, OF_AGENTS
from gateway.core.families.anthropic.fallbacks import FALLBACKS, read_fallbacks
from gateway.core.families.controlled import elements
from gateway.core.families.costs import UNKNOWN, names_of
from gateway.core.families.credit import OF_ALL, RECHARGE, begins, equals
from gateway.core.families.family import ApiFamily, BatchPaths, CallKind, Listing, SdkExample, target
from gateway.core.families.model_differences import Difference, levels_refused
from gateway.core.families.seals import CLAUDE, NOBODY
from gateway.core.model import BudgetWindow, Family
from gateway.errors import BudgetExceeded, Refusal

NAME = Family("anthropic")

ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_BASE64 = MediaPart(("source", "data"), "image", ("media_type",), "base64")
_DOCUMENT = MediaPart(
    ("source", "data"),
    "application/pdf",
    ("media_type",),
    "base64",
    (("source", "url"), ("source", "file_id")),
)


# Headers of budgets for Claude Code, by the gateway protocol in its binary (`GET /protocol`, Usage-limit
# headers): the overage is a calendar budget; the client's notices are shown at these thresholds.
_UNIFIED: Final = b"anthropic-ratelimit-unified-"
_THRESHOLDS: Final = (95, 75)
_PERIODS: Final = {
    interval.name: interval.period.encode() for interval in INTERVALS.values() if interval.period
}
_SPENT: Final = {"error_code": "enforced_spend_limit_reached"}


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    other = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = ERROR_TYPES.get(refusal.status, other)
    error: dict[str, object] = {"type": kind, "message": refusal.told_of_field}
    if _is_spent(refusal):
        error |= {"type": "billing_error", "details": _SPENT}
    return {"type": "error", "error": error, **show_id(refusal.status, request_id)}


def _is_spent(refusal: Refusal) -> bool:
    """Return whether a refusal says that a budget of money is used up.

    Use counts, and not amounts held for running calls: waiting for these does not help.
    """
    budget = refusal.budget
    money = isinstance(budget, BudgetWindow) and budget.unit == FLAG_MONEY
    return money and isinstance(refusal, BudgetExceeded)


def _budget_fields(window: BudgetWindow, refusal: Refusal | None) -> list[tuple[bytes, bytes]]:
    """Return header fields by which Anthropic's clients show how much of a money budget is used.

    The part is from 0 to 1, at most 0.99 for an admitted call (`refusal` is None). Empty for a budget in
    other units, and for another refusal.
    """
    if window.unit != FLAG_MONEY or (refusal is not None and not _is_spent(refusal)):
        return []
    percent = min(window.used * 100 // max(window.limit, 1), 100)
    if refusal is None:
        percent = min(percent, 99)
        threshold = next((threshold for threshold in _THRESHOLDS if percent >= threshold), 0)
        status = b"allowed_warning" if threshold else b"allowed"
        fields = [(b"representative-claim", b"overage"), (b"overage-status", status)]
    else:
        threshold, status = 100, b"rejected"
        fields = [(b"overage-disabled-reason", b"org_spend_cap_reached")]
    fields += [(b"status", status), (b"overage-utilization", _hundredths(percent))]
    if threshold:
        fields.append((b"overage-surpassed-threshold", _hundredths(threshold)))
    if window.reset_ms:
        reset = b"%d" % -(-window.reset_ms // 1000)
        fields += [(b"reset", reset), (b"overage-reset", reset)]
    if window.interval in _PERIODS:
        fields.append((b"overage-period", _PERIODS[window.interval]))
    return [(_UNIFIED + name, value) for name, value in fields]


def _hundredths(percent: int) -> bytes:
    return b"1" if percent == 100 else b"0.%02d" % percent


BATCHES = BatchPaths(
    "", "/v1/messages/batches", {"/v1/messages": "anthropic_messages"}, "requests",
    (("anthropic-version", "2023-06-01"),),
    after="after_id",
)  # fmt: skip
# Stored objects of agents. Sessions of agents are no routes: no answer reports the usage of their models.
_STORED = (
    ("agents", "GET POST"), ("agents/{id}", "GET POST"), ("agents/{id}/versions", "GET"),
    ("vaults/{id}/credentials", "GET POST"), ("vaults/{id}/credentials/{credential}", "GET POST DELETE"),
    ("memory_stores/{id}/memories", "GET POST"), ("memory_stores/{id}/memories/{memory}", "GET POST DELETE"),
    *((name, "GET POST") for name in OF_AGENTS),
    *((f"{name}/{{id}}", "GET POST DELETE") for name in OF_AGENTS),
    *((f"{name}/{{id}}/archive", "POST") for name in ("agents", *OF_AGENTS)),
)  # fmt: skip
# "`signature` values are compatible across platforms (the Claude API, Amazon Bedrock, and Google Cloud). Values
# generated on one platform work on another": platform.claude.com/docs, extended thinking, 2026-11-30. The page says it
# of no other member (anthropic 2.10.0).
SEALS: Final[Mapping[str, str]] = {
    "signature": CLAUDE, "redacted_thinking": NOBODY, "encrypted_content": NOBODY, "encrypted_index": NOBODY,
    "encrypted_stdout": NOBODY, "fallback_credit_token": NOBODY,
}  # fmt: skip

# What models refuse, by LiteLLM's model_prices_and_context_window.json (2026-07-24: `supports_adaptive_thinking`, `_output_config`,
# `_max_reasoning_effort`, `_xhigh_…`, `_sampling_params`, `_speed`, `_assistant_prefill`) and models.dev (f3fc6922, 2026-07-02).
_UNTHINKING: Final = ("claude-3-haiku*", "claude-3-opus*", "claude-3-sonnet*", "claude-3-5-*")
_BUDGETED: Final = (
    "claude-3-7-*", "claude-haiku-4-5*", "claude-opus-4-0*", "claude-opus-4-1*", "claude-opus-4-2*", "claude-opus-4-5*",
    "claude-sonnet-4-0*", "claude-sonnet-4-2*", "claude-sonnet-4-5*",
)  # fmt: skip
_EFFORTLESS: Final = (*_UNTHINKING, *[name for name in _BUDGETED if name != "claude-opus-4-5*"])
_ALWAYS_THINKING: Final = ("claude-opus-4-7*", "claude-fable*", "claude-mythos*")
# Haiku 5.5: platform.claude.com/docs, its guide to the migration to Haiku 5.5, 2026-12-01: samplings, thinking of type `enabled`
# and prefill each return an error.
SINCE_4_7: Final = (
    *_ALWAYS_THINKING,
    "claude-opus-4-8*",
    "claude-opus-5*",
    "claude-sonnet-5*",
    "claude-haiku-5*",
)
# Models before Opus 4.6 and Sonnet 4.6, whose release notes (2026-01-12) name compaction.
_BEFORE_4_6: Final = (*_UNTHINKING, *_BUDGETED)
# Models without the context of a million tokens (OmniRoute PR10481, 2026-08-15; docs of `context-1m-2025-08-07`).
_SHORT: Final = tuple([name for name in _BEFORE_4_6 if not name.startswith("claude-sonnet-4")])
_EFFORTS: Final = {
    "low medium high": "claude-opus-4-5*", "low medium high max": "claude-opus-4-6* claude-sonnet-4-6*",
}  # fmt: skip


def _has_prefill(call: CallRequest) -> bool:
    """Return whether the last message of a call is the model's, which its answer goes on from."""
    said = elements(call.body.document or {}, "messages")
    return bool(said) and said[-1].get("role") == "assistant"


DIFFERENCES: Final = (
    # "Claude 4.7 and later models … reject requests that use it": platform.claude.com, extended thinking; that some
    # cannot do without: docs.aws.amazon.com/bedrock, claude-messages-adaptive-thinking, 2026-11-30.
    *levels_refused(
        "thinking of type", ("thinking.type",), "adaptive enabled disabled",
        {
            "disabled": " ".join(_UNTHINKING), "enabled disabled": " ".join(_BUDGETED),
            "adaptive disabled": "claude-opus-4-8* claude-opus-5* claude-sonnet-5* claude-haiku-5*",
            "adaptive": " ".join(_ALWAYS_THINKING),
        },
    ),
    Difference("output_config.effort", ("output_config", "effort"), _EFFORTLESS),
    *levels_refused("the effort", ("output_config.effort",), "low medium high xhigh max", _EFFORTS),
    *[
        Difference(name, (name,), SINCE_4_7, plain=plain)
        for name, plain in (("temperature", 1), ("top_p", 1), ("top_k", None))
    ],
    Difference(
        "speed", ("speed",), (*_UNTHINKING, *_BUDGETED, "claude-sonnet*", "claude-haiku*", "claude-fable*", "claude-mythos*"),
        frozenset({"fast"}),
    ),
    *[
        Difference("the beta", path, models, frozenset({word}), header=header)
        for path, header in (((), b"anthropic-beta"), (("anthropic_beta",), b""))  # at Bedrock in the body
        for word, models in (("context-1m-2025-08-07", _SHORT), ("compact-2026-01-12", _BEFORE_4_6))
    ],
    Difference("the edit of its context", ("context_management", "edits", "type"), _BEFORE_4_6, frozenset({"compact_20260112"})),
    # platform.claude.com/docs/en/api/errors, "Prefill not supported", by anthropic 2.10.0.
    Difference("the beginning of its answer", (), ("claude-opus-4-6*", *SINCE_4_7), carries=_has_prefill),
)  # fmt: skip


FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes={
        "anthropic_messages": CallKind(
            calls.read_messages, messages.DIALECT, "max_tokens",
            always_reports=True, keeps=calls.keeps,
            numbers=frozenset({"max_tokens"}),
            tool_uses="max_uses", limited_tools=names_of("limits", "tool", UNKNOWN),
            # A page is 1,500 to 3,000 tokens of text, and an image (Anthropic's page on PDFs, 2026-11-30).
            media=MediaPlaces(
                "messages", {"image": _BASE64, "document": _DOCUMENT},
                inside=frozenset({"content", "source"}), page=3_000,
            ),
            skips_texts=True,
        )
    },
    routes=(
        Route(("POST",), "/v1/messages", NAME, "messages", NAME, "anthropic_messages"),
        Route(("POST",), "/v1/messages/count_tokens", NAME, family=NAME),
        Route(("GET", "POST"), BATCHES.batches, NAME, family=NAME),
        Route(("GET", "DELETE"), BATCHES.one, NAME, family=NAME),
        Route(("POST",), BATCHES.cancel, NAME, family=NAME),
        Route(("GET",), BATCHES.results, NAME, family=NAME),
        *(Route(tuple(methods.split()), f"/v1/{path}", NAME, family=NAME) for path, methods in _STORED),
    ),
    key_field=("x-api-key", ""),
    target=target(NAME, "https://api.anthropic.com", "ANTHROPIC_API_KEY", "x-api-key"),
    prefixes=("/v1/messages",),
    spoken_by=b"anthropic-version",
    also=("/v1/models/", "/v1/files/", "/v1/skills/"),
    credentials=(b"x-api-key",),
    limits_prefix=b"anthropic-ratelimit-",
    queries={b"api-version": None, b"beta": frozenset({b"true"})},
    # anthropic 2.10.0, its SDK for JavaScript, and Claude Code 2.1.
    headers=frozenset(
        b"anthropic-version anthropic-beta anthropic-dangerous-direct-browser-access anthropic-worker-id "
        b"x-app x-client-app x-anthropic-additional-protection x-claude-remote-container-id "
        b"x-claude-remote-session-id x-claude-code-agent-id x-claude-code-parent-agent-id "
        b"x-claude-code-agent-type x-claude-code-prompt-id x-claude-code-request-class".split()
    ),
    withheld_prefixes=(b"anthropic-workspace-id", b"anthropic-organization", b"anthropic-user-profile-id"),
    names_requests=True,
    names_session=b"x-claude-code-session-id",
    objects=OBJECTS,
    batches=(BATCHES,),
    # platform.claude.com, errors and rate limits, 2026-11-30; the first message recorded 2026-04-10.
    credit=(
        *OF_ALL, *RECHARGE,
        # Recorded at api.anthropic.com from 2025-07-23 to 2026-09-14: the first one continues " to access the Anthropic
        # API. Please go to …", the second one ". You will regain access on …".
        begins(
            400, "message", r"Your credit balance is too low(?=[ .]|\Z)",
            r"You have reached your specified (?:workspace )?API usage limits(?=\.|\Z)",
        ),
        *equals(429, "details.error_code", "enforced_spend_limit_reached"),
    ),
    differences=DIFFERENCES,
    seals=SEALS,
    exclusions=EXCLUSIONS,
    model_lists={FALLBACKS: read_fallbacks},
    models_at="/v1/models",
    lists=Listing(
        each=(("type", "model"), ("created_at", "1970-01-01T00:00:00Z")), shown="display_name",
        around=(("has_more", False),), ends=("first_id", "last_id"),
    ),
    provider="anthropic",
    example=SdkExample(
        "anthropic", "claude-sonnet-4-5", ("claude",),
        """\
from anthropic import Anthropic

client = Anthropic(base_url="{base}", api_key="tk_…")
answer = client.messages.create(
    model="{model}",
    max_tokens=256,
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.content[0].text)
""",
        "/v1/messages",
        '{"model": "{model}", "max_tokens": 256, "messages": [{"role": "user", "content": "Hello"}]}',
    ),
    budget_fields=_budget_fields,
    # Anthropic's page on pricing, 2026-11-30: with the tool choice `auto` or `any`, whichever has more.
    tool_prompts={
        "claude": 804, "claude-3": 589, "claude-haiku-4": 589, "claude-sonnet-4": 589, "claude-opus-4-5": 589,
        "claude-opus-4-6": 589,
    },
    # Of 28 x 28 pixels each: 4,784 since Opus 4.7, 1,568 before (Anthropic's page on vision, 2026-11-30).
    pictures={
        "claude": 4_784, "claude-opus-4-0": 1_600, "claude-opus-4-1": 1_600, "claude-opus-4-2": 1_600,
        "claude-opus-4-5": 1_600, "claude-opus-4-6": 1_600, "claude-2": 1_600, "claude-3": 1_600,
        "claude-sonnet-4": 1_600, "claude-haiku-4": 1_600,
    },
    patches={"claude": (28, 100)},
    # 600 pages, or 100 at a smaller model, may have more: no model reads that (Anthropic's page on PDFs, 2026-11-30).
    contexts={"claude": 1_000_000, "claude-2": 200_000, "claude-3": 200_000, "claude-haiku-4": 200_000},
    ceilings={
        "claude-3": 8_192, "claude-3-7": 128_000, "claude-opus-4": 128_000, "claude-sonnet-4": 128_000,
        "claude-haiku-4": 64_000,
    },
)  # fmt: skip
