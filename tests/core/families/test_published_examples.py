"""Examples of other gateways: bodies pass or are refused by name, fields have a counterpart."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.families.controlled import models_beside
from tests.core.calls.test_parsing import read, refused
from tests.tree import ROOT

ASKED = {"messages": [{"role": "user", "content": "What is the meaning of life?"}]}
SONNET, MYTHO, LLAMA = (
    "anthropic/claude-sonnet-4.6", "gryphe/mythomax-l2-13b", "meta-llama/llama-3.3-70b-instruct",
)  # fmt: skip
# A body beside its messages, and the models that may answer besides the one that it asks for.
TAKEN: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"model": SONNET, "models": [MYTHO], "route": "fallback"}, (MYTHO,)),
    ({"model": LLAMA, "provider": {"order": ["deepinfra/turbo"], "allow_fallbacks": False}}, ()),
    ({"model": LLAMA, "provider": {"sort": "throughput", "max_price": {"prompt": 1}}}, ()),
    ({"model": LLAMA, "provider": {"data_collection": "deny", "require_parameters": True}}, ()),
    ({"model": f"{LLAMA}:nitro"}, ()),
    ({"model": "openai/gpt-4o:online"}, ()),
    ({"model": "openrouter/auto"}, ()),
    ({"model": SONNET, "plugins": [{"id": "web", "max_results": 3}]}, ()),
    ({"model": SONNET, "transforms": ["middle-out"]}, ()),
    ({"model": SONNET, "usage": {"include": True}, "stream": True}, ()),
    ({"model": SONNET, "reasoning": {"effort": "high"}}, ()),
    ({"model": SONNET, "reasoning": {"max_tokens": 2000}, "user": "user-1"}, ()),
    ({"model": SONNET, "min_p": 0.1, "top_a": 0.1, "top_k": 5, "repetition_penalty": 1.1}, ()),
)
REFUSED = ({"models": [SONNET, MYTHO]}, {"model": "@preset/email-copywriter"}, {"model": f"{SONNET},{MYTHO}"})


@pytest.mark.parametrize(("body", "others"), TAKEN)
def test_it_is_taken_with_every_model_that_may_answer(body: dict[str, Any], others: tuple[str, ...]) -> None:
    assert read("openai_chat", body | ASKED).spec.model == body["model"]
    assert models_beside(body | ASKED) == others


@pytest.mark.parametrize("body", REFUSED)
def test_a_body_that_hides_its_model_is_refused_by_that_name(body: dict[str, Any]) -> None:
    assert refused("openai_chat", body | ASKED) == "model"


# Fields of the configs that Portkey's pages publish, and of the bodies of OpenRouter's; of the policies of Kong's
# AI Rate Limiting Advanced; of the caps of Claude apps gateway; of LiteLLM's keys.
FIELDS = {
    "from-portkey.md": (
        "strategy", "mode: fallback", "mode: loadbalance", "on_status_codes", "targets", "weights",
        "provider", "custom_host", "api_key", "virtual key", "override_params", "retry", "request_timeout",
        "cache", "input_guardrails", "output_guardrails", "conditions", "forward_headers",
        "x-portkey-metadata", "x-portkey-trace-id", "credit_limit", "type: cost", "group_by", "workspace_id",
        "metadata._user", "periodic_reset: weekly", "alert_threshold", "reset_usage_for_value",
    ),
    "from-openrouter.md": (
        "models: [a, b]", "fallbacks", "route", "provider: {order", "plugins", "transforms", "reasoning",
        "usage", "@preset/", ":nitro", "limit_reset", "HTTP-Referer", "X-Title",
        "limit_usd", "reset_interval", "allowed_models", "include_byok_in_budgets", "workspace",
    ),
    "from-kong.md": (
        "match: consumer`", "consumer_group", "match: model", "match: provider", "match: header", "match: ip",
        "match: path", "partition_by", "values", "limits", "window_size", "window_type: sliding",
        "tokens_count_strategy", "prompt_tokens", "completion_tokens", "input_cost", "output_cost", "requestPrompt",
        "strategy: local", "sync_rate",
    ),
    "from-claude-gateway.md": (
        "`organization`", "rbac_group", "`user`", "amount: null", "daily", "weekly", "monthly", "429",
    ),
    "from-litellm-budgets.md": ("model_max_budget", "budget_limit", "time_period", "max_budget", "budget_duration",
                                "budget_fallbacks", "fallbacks"),
}  # fmt: skip


@pytest.mark.parametrize("page", FIELDS)
def test_each_published_field_has_a_row_of_what_becomes_of_it(page: str) -> None:
    table = (ROOT / "docs/howto" / page).read_text().partition("## What becomes what")[2]
    assert [field for field in FIELDS[page] if field not in table] == []
