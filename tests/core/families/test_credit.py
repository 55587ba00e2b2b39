"""Answers that say that an account is out of money, and bodies that only its account may take."""

from __future__ import annotations

import json

import pytest

from gateway.core.families.credit import (
    ACCOUNT,
    CALL,
    CREDIT_STATUSES,
    PAYMENT_REQUIRED,
    may_show_credit,
    read_credit,
)
from gateway.core.families.registry import ALL, FAMILIES
from gateway.core.families.seals import can_open
from gateway.core.model import Family

TEAM = "Your team 8c268de0-42ec has either used all available credits or reached its monthly spending limit."
CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."


def error(**members: object) -> bytes:
    return json.dumps({"error": members}).encode()


@pytest.mark.parametrize(
    ("family", "status", "body"),
    [
        ("openai", 402, error(message="Insufficient Balance")),
        ("cohere", 402, b'{"message":"payment required"}'),
        ("openai", 429, error(message="You exceeded", type="insufficient_quota", code="insufficient_quota")),
        ("openai", 429, error(type="insufficient_quota", code=None)),
        ("openai", 429, error(type="requests", code="insufficient_quota")),
        ("bedrock", 429, error(code="insufficient_quota")),
        ("openai", 429, error(type="insufficient_quota", code="credit_balance_exhausted")),
        ("openai", 429, error(code="project_spend_limit_exceeded")),
        ("openai", 429, error(code="billing_not_active", message="Your account is not active")),
        ("openai", 400, error(code="billing_hard_limit_reached")),
        ("openai", 400, error(code="blocked_api_access")),
        ("openai", 429, error(type="exceeded_current_quota_error", message="Your account org-1 is suspended")),
        ("openai", 403, json.dumps({"code": "x", "error": TEAM}).encode()),
        ("openai", 429, json.dumps({"error": TEAM}).encode()),
        ("openai", 403, b'{"error":"Your newly created team doesn\'t have any credits or licenses yet."}'),
        ("openai", 429, error(message="Your prepayment credits are depleted. Please go to AI Studio")),
        ("anthropic", 400, error(type="invalid_request_error", message=CREDIT)),
        ("anthropic", 400, error(message="Your credit balance is too low")),
        ("anthropic", 400, error(message="Your credit balance is too low to access the Claude API.")),
        ("anthropic", 400, error(message="Your credit balance is too low for this request.")),
        ("anthropic", 400, error(message="You have reached your specified API usage limits. You will regain access "
                                         "on 2026-12-01 at 00:00 UTC.")),
        ("anthropic", 400, error(message="You have reached your specified workspace API usage limits.")),
        ("anthropic", 429, error(type="rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})),
        ("gemini", 429, error(code=429, message="Your prepayment credits are depleted.", status="RESOURCE_EXHAUSTED")),
        ("gemini", 429, b"[" + error(message="Your prepayment credits are depleted.") + b"]"),
    ],
)  # fmt: skip
def test_answers_with_a_sign_are_about_the_account(family: Family, status: int, body: bytes) -> None:
    signs = FAMILIES[family].credit
    assert may_show_credit(signs, status)
    assert read_credit(signs, status, body) == ACCOUNT


@pytest.mark.parametrize(
    ("family", "status", "body"),
    [
        ("anthropic", 400, error(message=f"messages.0: {CREDIT}")),
        *(
            ("anthropic", 400, error(type="invalid_request_error", message=f"{member}: Extra inputs are not permitted"))
            for member in (
                CREDIT, "Your credit balance is too low", "Your credit balance is too low to access it",
                "You have reached your specified API usage limits",
                "You have reached your specified workspace API usage limits. You will",
            )
        ),
        ("anthropic", 400, error(message="Your credit balance is too low` is no member")),
        ("anthropic", 400, error(message="You have reached your specified API usage limits of")),
        ("openai", 403, json.dumps({"error": f"{TEAM}: unknown member"}).encode()),
        ("gemini", 429, error(message="Your prepayment credits are depleted: unknown member")),
        ("anthropic", 400, error(type="invalid_request_error", message="prompt is too long", quoted=CREDIT)),
        ("anthropic", 400, json.dumps({"message": CREDIT}).encode()),
        ("anthropic", 400, json.dumps({"error": CREDIT}).encode()),
        ("anthropic", 400, json.dumps({"error": {"error": {"message": CREDIT}}}).encode()),
        ("anthropic", 429, error(type="rate_limit_error", message=CREDIT)),
        ("openai", 400, error(message=CREDIT)),
        ("openai", 400, error(code="invalid_value", message="insufficient_quota")),
        ("openai", 429, error(code="rate_limit_exceeded", message="insufficient_quota")),
        ("openai", 429, error(code=["insufficient_quota"])),
        ("openai", 429, b'{"code":"insufficient_quota"}'),
        ("openai", 403, json.dumps({"error": f"Forbidden: {TEAM}"}).encode()),
        ("openai", 403, json.dumps({"error": "Your team may not. It has used all available credits"}).encode()),
        ("openai", 403, error(message=TEAM)),
        ("openai", 429, b""),
        ("openai", 429, b"not JSON"),
        ("openai", 429, b"[" * 100_000),
        ("openai", 429, b"[]"),
        ("gemini", 429, error(message="You exceeded your current quota, please check your plan and billing")),
        ("gemini", 429, error(message="Resource has been exhausted (e.g. check quota).")),
    ],
)  # fmt: skip
def test_errors_with_the_words_elsewhere_are_not_about_the_account(
    family: Family, status: int, body: bytes
) -> None:
    assert read_credit(FAMILIES[family].credit, status, body) == ""


@pytest.mark.parametrize(
    "body",
    [
        error(code=402, message="This request requires more credits, or fewer max_tokens. You requested up to 65536"),
        error(code=402, message="Prompt tokens limit exceeded: 230799 > 91442. To increase, visit"),
        error(code=402, metadata={"limit_source": "openrouter_in_flight_budget"}),
        error(code=402, message="x", metadata={"error_type": "weight_exceeds_budget"}),
    ],
)  # fmt: skip
def test_a_402_about_the_size_of_a_call_is_about_that_call(body: bytes) -> None:
    assert read_credit(FAMILIES["openai"].credit, 402, body) == CALL


@pytest.mark.parametrize("family", ["generic", "mcp"])
def test_a_402_of_a_path_that_the_caller_chooses_is_about_the_call(family: Family) -> None:
    assert may_show_credit(FAMILIES[family].credit, 402)
    assert read_credit(FAMILIES[family].credit, 402, b"") == CALL


@pytest.mark.parametrize("family", ["openai", "anthropic"])
@pytest.mark.parametrize("member", ["code", "type"])
def test_an_answer_about_the_package_of_a_model_is_about_the_call(family: Family, member: str) -> None:
    body = error(**{member: "1113", "message": "Insufficient balance or no resource package."})
    assert read_credit(FAMILIES[family].credit, 429, body) == CALL


def test_credit_statuses_are_the_statuses_of_all_signs() -> None:
    assert {sign.status for family in ALL for sign in family.credit} | {PAYMENT_REQUIRED} == CREDIT_STATUSES
    assert not may_show_credit(FAMILIES[Family("gemini")].credit, 400)
    assert not may_show_credit(FAMILIES[Family("anthropic")].credit, 403)


CLAUDES = "claude-sonnet-5", "anthropic.claude-sonnet-5-v1:0"
THINKING = b'{"type":"thinking","thinking":"x","signature":"EvgB"}'


@pytest.mark.parametrize(
    ("family", "body", "models", "opens"),
    [
        ("openai", b'{"input":[{"type":"reasoning","encrypted_content":"gAAA"}]}', ("a", "b"), False),
        ("openai", b'{"input":[{"type":"reasoning","encrypted_content" : "gAAA"}]}', ("a", "b"), False),
        ("openai", b'{"input":[{"type":"reasoning","encrypted_content":""}]}', ("a", "b"), True),
        ("openai", b'{"input":[{"type":"reasoning","encrypted_content":null}]}', ("a", "b"), True),
        ("openai", b'{"reasoning_details":[{"type":"reasoning.encrypted","data":"x"}]}', ("a", "b"), False),
        ("openai", rb'{"input":"a \"encrypted_content\": \"gAAA\" in a text"}', ("a", "b"), True),
        ("openai", b'{"include":["reasoning.encrypted_content"]}', ("a", "b"), True),
        ("openai", b'{"thinking_blocks":[{"type":"redacted_thinking","data":"x"}]}', ("a", "b"), False),
        ("openai", b'{"messages":[{"role":"assistant","reasoning_opaque":"x"}]}', ("a", "b"), False),
        ("openai", b'{"metadata":{"signature":"mine"}}', ("a", "b"), True),
        ("openai", b'{"tools":[{"type":"function","parameters":{"signature":"x"}}]}', ("a", "b"), True),
        ("openai", b'{"encrypted_content":"x"', ("a", "b"), False),
        ("openai", b'{"encrypted_content":' + b"[" * 100_000, ("a", "b"), False),
        ("anthropic", b'{"type":"tool_use","input":{"type":"redacted_thinking","signature":"x"}}', ("a", "b"), True),
        ("bedrock", b'{"toolUse":{"input":{"signature":"x"}}}', ("a", "b"), True),
        ("bedrock", b'{"toolResult":{"content":[{"json":{"signature":"x"}}]}}', ("a", "b"), True),
        ("gemini", b'{"functionCall":{"args":{"signature":"x"}}}', ("gemini-4", "gemini-4"), True),
        ("gemini", b'{"functionResponse":{"response":{"signature":"x"}}}', ("gemini-4", "gemini-4"), True),
        ("gemini", b'{"functionCall":{"args":{}},"thoughtSignature":"x"}', ("gemini-4", "gemini-4"), False),
        ("openai", b'{"tools":[{"parameters":{}}],"x":[{"type":["signature","null"]}]}', ("a", "b"), True),
        ("anthropic", THINKING, CLAUDES, True),
        ("anthropic", THINKING, ("claude-sonnet-5", "deepseek-v4"), False),
        ("anthropic", THINKING, ("glm-5", "claude-sonnet-5"), False),
        ("anthropic", b'{"type":"redacted_thinking","data":"x"}', CLAUDES, False),
        ("anthropic", b"[%b,%b]" % (THINKING, b'{"type":"web_search_result","encrypted_content":"x"}'), CLAUDES, False),
        ("bedrock", b'{"reasoningText":{"text":"x","signature":"Ev"}}', CLAUDES, True),
        ("bedrock", b'{"reasoningContent":{"redactedContent":"eA=="}}', CLAUDES, False),
        ("gemini", b'{"functionCall":{},"thoughtSignature":"x"}', ("gemini-4", "gemini-4"), False),
        ("gemini", b'{"thought_signature":"x"}', ("gemini-4", "gemini-4"), False),
        ("gemini", b'{"contents":[]}', ("gemini-4", "gemini-4"), True),
        ("cohere", b'{"signature":"x"}', ("a", "b"), True),
    ],
)  # fmt: skip
def test_seals_open_at_another_account_by_a_source_alone(
    family: Family, body: bytes, models: tuple[str, str], opens: bool
) -> None:
    assert can_open(FAMILIES[family].seals, body, models) == opens
