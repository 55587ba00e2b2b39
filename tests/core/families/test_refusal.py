"""Each refusal says which limit, how much and until when, and each SDK raises its own error."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace

import httpx2
import openai
import pytest

from gateway import errors
from gateway.core.accounts.runs import BUDGET_ID_MIN
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.families.refusal import from_refused, refused_by, render
from gateway.core.families.registry import FAMILIES
from gateway.core.model import BlockCause, BudgetWindow, Family, LimitKind, Refused, Scope, Verdict
from gateway.errors import Refusal

NOW = 1_700_000_000_000
ID = "0b0f6f5e-5f0e-4b5e-9d6e-0d6c7a0c9b1a"
REFUSALS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Refusal) and kind is not Refusal
]


def refused(
    verdict: Verdict,
    scope: int = 3,
    kind: int = 4,
    *,
    used: int = 12,
    limit: int = 10,
    wait_ms: int | None = 90_000,
) -> Refusal:
    until = 0 if wait_ms is None else NOW + wait_ms
    return from_refused(Refused(verdict, scope, kind, used, limit, until, NOW))


def test_what_refused_has_a_row_where_it_is_a_budget_a_run_or_a_plan() -> None:
    def by(verdict: Verdict, kind: LimitKind, budget_id: int = 0) -> tuple[str, int]:
        window = BudgetWindow(budget_id, 10, 10, 0, 1) if budget_id else None
        return refused_by(from_refused(Refused(verdict, 3, kind, 10, 10, 0, NOW, budget=window)))

    exceeded, run = Verdict.BUDGET_EXCEEDED, BUDGET_ID_MIN + 6
    assert by(exceeded, LimitKind.BUDGET, 7) == ("budget", 7)
    assert by(Verdict.QUOTA_HELD, LimitKind.BUDGET, 7) == ("budget", 7)
    assert by(exceeded, LimitKind.BUDGET, run) == by(exceeded, LimitKind.BUDGET, run + 1) == ("run", run)
    assert refused_by(errors.RunEnded()) == ("run", 0)
    assert by(Verdict.QUOTA_EXCEEDED, LimitKind.QUOTA) == ("plan", 0)
    assert by(Verdict.QUOTA_HELD, LimitKind.QUOTA) == ("plan", 0)
    assert by(Verdict.QUOTA_HELD, LimitKind.CREDITS) == by(Verdict.RATE_LIMITED, LimitKind.TOKENS) == ("", 0)
    assert refused_by(errors.ModelNotPriced()) == ("", 0)


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.UNVERIFIED, errors.CountersUnavailable),
        (Verdict.STALE, errors.CountersUnavailable),
        (Verdict.UNKNOWN_ACCOUNT, errors.CountersUnavailable),
        (Verdict.REVOKED, errors.InvalidApiKey),
        (Verdict.TENANT_BLOCKED, errors.TenantBlocked),
        (Verdict.NOT_INCLUDED, errors.ServiceNotIncluded),
        (Verdict.RATE_LIMITED, errors.RateLimited),
        (Verdict.CONCURRENCY_LIMITED, errors.ConcurrencyLimited),
        (Verdict.QUOTA_EXCEEDED, errors.QuotaExceeded),
        (Verdict.QUOTA_HELD, errors.QuotaHeld),
        (Verdict.INSUFFICIENT_CREDITS, errors.InsufficientCredits),
        (Verdict.SPEND_CAP_REACHED, errors.SpendCapReached),
        (Verdict.BUDGET_EXCEEDED, errors.BudgetExceeded),
    ],
)
def test_every_verdict_has_its_refusal(verdict: Verdict, error: type[Refusal]) -> None:
    for kind in range(8):
        for scope in range(6):
            assert type(refused(verdict, scope, kind)) is error


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (BlockCause.MANUAL, "This tenant was blocked by an administrator."),
        (BlockCause.DUNNING, "This tenant is blocked because an invoice of its organization is not paid."),
        (BlockCause.BACKLOG, "This tenant is blocked because too much of its use waits to be stored."),
    ],
)
def test_refusal_of_a_blocked_tenant_names_the_cause_of_the_block(cause: BlockCause, message: str) -> None:
    refusal = from_refused(Refused(Verdict.TENANT_BLOCKED, scope=int(Scope.TENANT), used=cause))
    headers, body = render(refusal, Family("openai"), ID)
    assert (refusal.status, dict(headers)[b"x-tollkeeper-reason"]) == (403, b"tenant_blocked")
    assert json.loads(body)["error"]["message"] == message


@pytest.mark.parametrize("verdict", [Verdict.QUOTA_EXCEEDED, Verdict.BUDGET_EXCEEDED])
@pytest.mark.parametrize(
    ("said", "status", "wait_s"),
    [
        (SpentAnswer(), 429, 90),
        (SpentAnswer(402), 402, 90),
        (SpentAnswer(429, 60), 429, 60),
        (SpentAnswer(0, 300), 429, 90),
    ],
)
def test_a_spent_amount_is_told_as_its_caller_wants(
    verdict: Verdict, said: SpentAnswer, status: int, wait_s: int
) -> None:
    refusal = from_refused(Refused(verdict, 3, 4, 12, 10, NOW + 90_000, NOW), lambda: said)
    headers = dict(render(refusal, Family("gemini"), ID)[0])
    assert (refusal.status, headers[b"retry-after"], headers[b"x-tollkeeper-refused-by"]) == (
        status, b"%d" % wait_s, b"tenant",
    )  # fmt: skip
    assert headers[b"x-should-retry"] == b"false"


def test_who_says_nothing_of_spent_amounts_is_told_as_those_above_say() -> None:
    assert SpentAnswer(0, 60).else_of(SpentAnswer(402, 5)).else_of(SpentAnswer(429)) == SpentAnswer(402, 60)
    limited = Refused(Verdict.RATE_LIMITED, 1, 1, 12, 10, NOW + 1, NOW)
    assert from_refused(limited, lambda: SpentAnswer(402)).status == 429


def test_gemini_names_a_quota_that_waiting_does_not_help() -> None:
    refusal = refused(Verdict.QUOTA_EXCEEDED, kind=int(LimitKind.QUOTA))
    details = json.loads(render(refusal, Family("gemini"), ID)[1])["error"]["details"]
    [violation] = [one["violations"][0] for one in details if "violations" in one]
    assert violation["quotaId"] == "TollkeeperSpentPerDay"


def test_who_waits_is_told_by_whom() -> None:
    def refused_by(refusal: Refusal) -> list[bytes]:
        headers = render(refusal, Family("openai"), ID)[0]
        return [value for name, value in headers if name == b"x-tollkeeper-refused-by"]

    scopes = {1: b"key", 2: b"user", 3: b"tenant", 4: b"organization", 5: b"budget"}
    for scope, name in scopes.items():
        assert refused_by(refused(Verdict.RATE_LIMITED, scope, 1)) == [name]
    assert refused_by(errors.Overloaded()) == [b"gateway"]
    assert refused_by(refused(Verdict.UNVERIFIED, 0, 0)) == [b"gateway"]
    assert refused_by(refused(Verdict.INSUFFICIENT_CREDITS)) == []


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_refusal_after_which_a_client_waits_says_whose_it_is(
    error: type[Refusal], family: Family
) -> None:
    told = [value for name, value in render(error(), family, ID)[0] if name == b"x-tollkeeper-refused-by"]
    expected = [error.scope.encode()] if error.status in {429, 503, 529} else []
    assert told == expected
    assert error.scope in {"gateway", "upstream"}  # whose limit it is else says what refused


def test_a_rate_limit_says_which_how_much_and_until_when() -> None:
    refusal = refused(Verdict.RATE_LIMITED, Scope.KEY, LimitKind.REQUESTS, used=10, wait_ms=5_500)
    assert "this API key" in refusal.message
    assert "10 of 10 requests a minute" in refusal.message
    assert "2023-11-14T22:13:26Z" in refusal.message
    assert (refusal.retry_after_s, refusal.retry_helps) == (6, True)
    refusal = refused(
        Verdict.RATE_LIMITED, Scope.USER, LimitKind.TOKENS, used=950, limit=100, wait_ms=510_000
    )
    assert "950 of 100 tokens a minute" in refusal.message
    assert (refusal.retry_after_s, refusal.retry_helps) == (510, False)


def test_a_quota_without_a_reset_has_no_retry_after() -> None:
    refusal = refused(Verdict.QUOTA_EXCEEDED, wait_ms=None)
    assert (refusal.retry_after_s, refusal.retry_helps) == (None, False)
    assert "12 of 10 tokens" in refusal.message
    refusal = refused(Verdict.QUOTA_EXCEEDED, wait_ms=86_400_000)
    assert (refusal.retry_after_s, refusal.retry_helps) == (86_400, False)
    assert "It will reset at 2023-11-15T22:13:20Z" in refusal.message
    assert refused(Verdict.QUOTA_EXCEEDED, wait_ms=-5).retry_after_s == 1


def test_a_quota_that_is_not_used_up_blocks_nobody_but_is_too_little() -> None:
    assert "are used. It will reset at" in refused(Verdict.QUOTA_EXCEEDED, used=10).message
    few = refused(Verdict.QUOTA_EXCEEDED, used=9).message
    assert "Too few are left for this request. It will reset at" in few


@pytest.mark.parametrize(
    ("kind", "what", "counted"),
    [
        (4, "tenant's tokens", "12 of 10 are used."),
        (5, "organization's credits", "12 of 10 are held."),
        (6, "spend cap", "are used."),
    ],
)
def test_what_is_held_may_be_retried_in_a_second(kind: int, what: str, counted: str) -> None:
    refusal = refused(Verdict.QUOTA_HELD, kind=kind)
    assert what in refusal.message
    assert counted in refusal.message
    assert (refusal.retry_after_s, refusal.retry_helps) == (1, True)


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_reason_is_the_same_for_every_api(error: type[Refusal], family: Family) -> None:
    fields, written = render(error(retry_after_s=7, retry_helps=False, param="p"), family, ID)
    headers = dict(fields)
    assert headers[b"x-tollkeeper-reason"] == error.reason.encode()
    assert headers[b"retry-after"] == b"7"
    assert headers[b"x-should-retry"] == b"false"
    assert headers[b"content-type"].endswith(b"json")
    body = json.loads(written)
    assert error().told in json.dumps(body)
    assert "p" in json.dumps(body)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_401_says_what_to_send_and_a_429_what_is_left(family: Family) -> None:
    unknown = dict(render(errors.InvalidApiKey(), family, ID)[0])
    assert unknown[b"www-authenticate"] == b'Bearer realm="tollkeeper"'
    limited = dict(render(refused(Verdict.RATE_LIMITED, kind=LimitKind.REQUESTS), family, ID)[0])
    assert limited[b"x-ratelimit-remaining-requests"] == b"0"
    assert b"www-authenticate" not in limited


def test_fields_without_a_value_are_not_sent() -> None:
    assert [name for name, _ in render(errors.InternalError(), Family("openai"), ID)[0]] == [
        b"content-type",
        b"x-tollkeeper-reason",
    ]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
def test_a_client_is_told_that_its_own_fault_is_final(error: type[Refusal]) -> None:
    fields = dict(render(error(), Family("openai"), ID)[0])
    final = 400 <= error.status < 500 and error.status not in {408, 425}
    assert fields.get(b"x-should-retry") == (b"false" if final else None)
    waits = dict(render(error(retry_after_s=1), Family("openai"), ID)[0])
    assert b"x-should-retry" not in waits


def test_problem_json() -> None:
    fields, body = render(errors.InvalidRequest("n must be 1.", param="n"), Family("generic"), ID)
    assert dict(fields)[b"content-type"] == b"application/problem+json"
    assert json.loads(body) == {
        "type": "urn:tollkeeper:invalid_request",
        "title": "Bad Request",
        "status": 400,
        "detail": "n must be 1.",
        "instance": f"urn:uuid:{ID}",
        "reason": "invalid_request",
        "param": "n",
    }


DAY = BudgetWindow(7, 3 * 10**9, 2_950_000_000, NOW + 37_800_000, 1, "mine", "USD", "day", 10**7, 60_000_000)


def spent(verdict: Verdict = Verdict.BUDGET_EXCEEDED, window: BudgetWindow = DAY) -> Refusal:
    return from_refused(
        Refused(verdict, 5, LimitKind.BUDGET, window.used, window.limit, window.reset_ms, NOW, budget=window)
    )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_budget_says_what_was_needed_and_what_is_left(family: Family) -> None:
    for verdict, retry in ((Verdict.BUDGET_EXCEEDED, b"false"), (Verdict.QUOTA_HELD, b"true")):
        fields, body = render(spent(verdict), family, ID)
        told = dict(fields)
        assert (told[b"x-tollkeeper-needed"], told[b"x-tollkeeper-left"]) == (b"0.06", b"0.04")
        assert told[b"x-should-retry"] == retry
        assert b"$0.04 of $3 left; this request may need $0.06." in body


@pytest.mark.parametrize(
    ("currency", "said"),
    [
        ("EUR", "€0.04 of €3 left; this request may need €0.06."),
        ("SEK", "0.04 of 3 SEK left; this request may need 0.06 SEK."),
    ],
)
def test_money_is_told_by_its_sign_or_its_code(currency: str, said: str) -> None:
    assert said in spent(window=replace(DAY, currency=currency)).message


UNIFIED = "anthropic-ratelimit-unified-"


def unified(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {
        name.decode().removeprefix(UNIFIED): value.decode()
        for name, value in fields
        if name.startswith(UNIFIED.encode())
    }


def test_claude_code_reads_that_money_is_spent() -> None:
    """The fields of a 429 in the gateway protocol of its binary."""
    fields, body = render(spent(), Family("anthropic"), ID)
    assert json.loads(body)["error"] | {"message": ""} == {
        "type": "billing_error", "message": "", "details": {"error_code": "enforced_spend_limit_reached"},
    }  # fmt: skip
    reset = str((NOW + 37_800_000) // 1000)
    assert unified(fields) == {
        "status": "rejected", "reset": reset, "overage-reset": reset, "overage-utilization": "0.98",
        "overage-surpassed-threshold": "1", "overage-period": "daily",
        "overage-disabled-reason": "org_spend_cap_reached",
    }  # fmt: skip
    for other in (spent(Verdict.QUOTA_HELD), spent(window=replace(DAY, unit=2))):
        fields, body = render(other, Family("anthropic"), ID)
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
        assert not unified(fields)


@pytest.mark.parametrize(
    ("used", "utilization", "threshold"),
    [
        (0, "0.00", None),
        (74, "0.74", None),
        (75, "0.75", "0.75"),
        (95, "0.95", "0.95"),
        (120, "0.99", "0.95"),
    ],
)
def test_claude_code_reads_how_much_is_used(used: int, utilization: str, threshold: str | None) -> None:
    tells = FAMILIES[Family("anthropic")].budget_fields
    assert tells is not None
    found = unified(tells(replace(DAY, used=used * 3 * 10**7, interval="month"), None))
    status = "allowed" if threshold is None else "allowed_warning"
    assert (found["status"], found["overage-status"], found["representative-claim"]) == (
        status, status, "overage",
    )  # fmt: skip
    assert (found["overage-utilization"], found["overage-period"]) == (utilization, "monthly")
    assert found.get("overage-surpassed-threshold") == threshold
    assert tells(replace(DAY, unit=2), None) == []
    assert "reset" not in unified(tells(replace(DAY, reset_ms=0, interval="total"), None))


def test_problem_types_are_the_drafts_and_name_the_policy() -> None:
    """draft-ietf-httpapi-ratelimit-headers-10, 6."""
    for refusal, kind, policy in (
        (spent(), "quota-exceeded", "budget"),
        (spent(Verdict.QUOTA_HELD), "temporary-reduced-capacity", "budget"),
        (refused(Verdict.QUOTA_EXCEEDED, kind=LimitKind.QUOTA), "quota-exceeded", "quota"),
        (refused(Verdict.RATE_LIMITED, kind=LimitKind.TOKENS), "quota-exceeded", "tokens"),
    ):
        problem = json.loads(render(refusal, Family("generic"), ID)[1])
        assert problem["type"] == f"https://iana.org/assignments/http-problem-types#{kind}"
        assert problem["violated-policies"] == [policy]
    other = json.loads(render(errors.InsufficientCredits(), Family("generic"), ID)[1])
    assert (other["type"], "violated-policies" in other) == ("urn:tollkeeper:insufficient_credits", False)


def test_gemini_says_which_quota_failed() -> None:
    details = json.loads(render(spent(), Family("gemini"), ID)[1])["error"]["details"]
    (failure,) = (one for one in details if one["@type"].endswith("QuotaFailure"))
    assert failure["violations"][0]["subject"] == "budget:budget"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest, "invalid_request_error"),
        (errors.InvalidApiKey, "authentication_error"),
        (errors.InsufficientCredits, "billing_error"),
        (errors.ModelNotAllowed, "permission_error"),
        (errors.UnknownRoute, "not_found_error"),
        (errors.RequestTooLarge, "request_too_large"),
        (errors.QuotaExceeded, "rate_limit_error"),
        (errors.UpstreamUnreachable, "api_error"),
        (errors.UpstreamTimeout, "timeout_error"),
        (errors.Overloaded, "overloaded_error"),
    ],
)
def test_anthropic(error: type[Refusal], kind: str) -> None:
    body = json.loads(render(error(), Family("anthropic"), ID)[1])
    assert body == {"type": "error", "error": {"type": kind, "message": error().message}, "request_id": ID}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest, "INVALID_ARGUMENT"),
        (errors.InvalidApiKey, "UNAUTHENTICATED"),
        (errors.SpendCapReached, "FAILED_PRECONDITION"),
        (errors.TenantBlocked, "PERMISSION_DENIED"),
        (errors.UnknownRoute, "NOT_FOUND"),
        (errors.RateLimited, "RESOURCE_EXHAUSTED"),
        (errors.CountersUnavailable, "UNAVAILABLE"),
        (errors.UpstreamTimeout, "DEADLINE_EXCEEDED"),
    ],
)
def test_gemini(error: type[Refusal], status: str) -> None:
    body = json.loads(render(error(retry_after_s=3), Family("gemini"), ID)[1])["error"]
    assert (body["code"], body["status"], body["message"]) == (error.status, status, error().message)
    assert body["details"][0]["reason"] == error.reason.upper()
    assert body["details"][-1]["retryDelay"] == "3s"


# --- the official SDK -------------------------------------------------------------------


def asked(refusal: Refusal) -> openai.APIStatusError:
    """What the SDK raises for the answer."""
    fields, body = render(refusal, Family("openai"), ID)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(refusal.status, headers=fields, content=body)

    transport = httpx2.MockTransport(answer)
    with openai.OpenAI(
        api_key="k", base_url="http://x/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    ) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="m", messages=[])
        return caught.value


@pytest.mark.parametrize(
    ("error", "raised", "code", "kind"),
    [
        (errors.InvalidRequest, openai.BadRequestError, "invalid_request", "invalid_request_error"),
        (errors.InvalidApiKey, openai.AuthenticationError, "invalid_api_key", "invalid_request_error"),
        (errors.InsufficientCredits, openai.APIStatusError, "insufficient_credits", "billing_error"),
        (errors.SpendCapReached, openai.APIStatusError, "spend_cap_reached", "billing_error"),
        (errors.TenantBlocked, openai.PermissionDeniedError, "tenant_blocked", "permission_error"),
        (errors.UnknownRoute, openai.NotFoundError, "unknown_route", "invalid_request_error"),
        (errors.QuotaExceeded, openai.RateLimitError, "insufficient_quota", "insufficient_quota"),
        (errors.QuotaHeld, openai.RateLimitError, "quota_held", "rate_limit_error"),
        (errors.RateLimited, openai.RateLimitError, "rate_limit_exceeded", "rate_limit_error"),
        (errors.CountersUnavailable, openai.InternalServerError, "counters_unavailable", "server_error"),
    ],
)
def test_the_openai_sdk_raises_its_own_error(
    error: type[Refusal], raised: type[openai.APIStatusError], code: str, kind: str
) -> None:
    caught = asked(error(param="field"))
    assert type(caught) is raised
    assert (caught.code, caught.type, caught.param) == (code, kind, "field")
    assert error().message in caught.message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "kind",
    [errors.CountersUnavailable, errors.CountersRefused, errors.NewerLayout],
    ids=lambda one: one.__name__,
)
def test_a_caller_is_told_nothing_of_the_insides_of_redis(family: Family, kind: type[Refusal]) -> None:
    said = "Redis refused: ERR user_function:575: bad argument script: on @user_function:575."
    _, body = render(kind(said), family, ID)
    assert body == render(errors.CountersUnavailable(), family, ID)[1]
    assert b"The counters cannot be reached or are not verified yet." in body


def by_402(verdict: Verdict, name: str, limit: int) -> Refusal:
    """Return the refusal by a budget of tokens, or by what an organization owns, of which nothing is left."""
    window = BudgetWindow(7, limit, limit, 0, 2, name) if name else None
    kind = LimitKind.BUDGET if name else LimitKind.CREDITS
    decision = Refused(verdict, 5, kind, limit, limit, 0, NOW, budget=window)
    return from_refused(decision, lambda: SpentAnswer(402))


NEVER = " Quota exceeded; no interval will reset it."
BUDGET = Verdict.BUDGET_EXCEEDED


@pytest.mark.parametrize(
    ("verdict", "name", "limit", "said"),
    [
        (BUDGET, "mine", 600, f'Budget "mine": 0 of 600 tokens left.{NEVER}'),
        (BUDGET, "mine", 5_004, f'Budget "mine": too little is left for this request.{NEVER}'),
        (BUDGET, "of 500", 600, f"A budget's amount is used up.{NEVER}"),
        (Verdict.INSUFFICIENT_CREDITS, "", 24_290, errors.InsufficientCredits.__doc__),
        (Verdict.SPEND_CAP_REACHED, "", 502_000_000, errors.SpendCapReached.__doc__),
    ],
)
@pytest.mark.parametrize("family", ["anthropic", "gemini", "openai"])
def test_no_final_refusal_has_digits_that_an_agent_reads_as_a_status(
    verdict: Verdict, name: str, limit: int, said: str, family: str
) -> None:
    refusal = by_402(verdict, name, limit)
    assert refusal.message == said
    for request_id in (ID, ID.replace("9d6e", "5024")):
        body = render(refusal, Family(family), request_id)[1].decode()
        assert not re.search("429|500|502|503|504|524", body)
    assert (
        "5024"
        in render(errors.ModelNotAllowed(), Family("anthropic"), ID.replace("9d6e", "5024"))[1].decode()
    )


def test_agents_read_in_the_sentence_that_waiting_is_no_use() -> None:
    """Words of pi 1.6.0 and qwen-code 0.24.4."""
    for refusal in (spent(), spent(window=replace(DAY, reset_ms=0)), refused(Verdict.QUOTA_EXCEEDED)):
        assert "quota exceeded" in refusal.message.lower()
        assert "will reset" in refusal.message
