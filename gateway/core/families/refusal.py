"""The refusals that clients get: the message, the headers, and the shape of each API family.

The status and `x-tollkeeper-reason` are the same for every API. Only the body differs, so that each official
SDK raises its own error.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus

import msgspec

from gateway import errors
from gateway.core.accounts.budget_amounts import format_amount, format_number
from gateway.core.accounts.budgets import MONEY, REQUESTS, UNIT_OF
from gateway.core.accounts.limits import Header, budget_headers, refusal_headers
from gateway.core.accounts.refusals import RefusingLimit
from gateway.core.accounts.runs import ENDED_CALLS, counts_calls, is_run, run_of
from gateway.core.accounts.spent_answers import SPENT, UNSAID, SpentAnswer, is_read_as_status
from gateway.core.accounts.windows import ROLLING
from gateway.core.families.registry import FAMILIES
from gateway.core.model import BlockCause, BudgetWindow, Family, LimitKind, Refused, Scope, Verdict
from gateway.errors import Refusal

RETRY_HELPS_S = 60
# Statuses that make a client wait. The answer names what refused: a scope of limits, gateway or upstream.
HELD_OFF = frozenset({429, 503, 529})

# Statuses that depend on the time, not on the request.
_IN_TIME = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
# Names of limits in `RateLimit-Policy`. The limit of concurrent calls is not published.
_POLICIES = {
    int(LimitKind.REQUESTS): "requests", int(LimitKind.TOKENS): "tokens", int(LimitKind.QUOTA): "quota",
    int(LimitKind.BUDGET): "budget",
}  # fmt: skip
# Currencies with a known sign. Others are shown by their code.
SIGNS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
_HELD = {int(LimitKind.CREDITS): "organization's credits", int(LimitKind.SPEND): "organization's spend cap"}


def from_refused(refused: Refused, spent: Callable[[], SpentAnswer] = lambda: UNSAID) -> Refusal:
    """Return the refusal for a call that admission did not admit: with the limit, its use and its reset.

    `spent` returns the configured status and longest `Retry-After` for a used up amount.
    """
    refusal = _MAKERS[refused.verdict](refused)
    if refusal.reason in SPENT:
        _tell_as(refusal, spent())
    if is_read_as_status(refusal.status, refusal.message):
        refusal.args = (_without_amounts(refusal, refused),)
    refusal.fields = (*refusal_headers(refused), *budget_headers(refused))
    refusal.budget = refused.budget
    refusal.policy = _POLICIES.get(refused.kind, "")
    if refused.scope:
        refusal.scope = Scope(refused.scope).name.lower()
    return refusal


def _tell_as(refusal: Refusal, answer: SpentAnswer) -> None:
    """Set the status and the longest `retry_after_s` of a refusal to those configured in `answer`."""
    if refusal.retry_after_s is not None and answer.retry_after_max_s:
        refusal.retry_after_s = min(refusal.retry_after_s, answer.retry_after_max_s)
    if answer.status == HTTPStatus.PAYMENT_REQUIRED:
        setattr(refusal, "status", answer.status)  # noqa: B010  # of this one, whose class has another
        refusal.retry_helps = False


def _without_amounts(refusal: Refusal, refused: Refused) -> str:
    """Return the message of a refusal without amounts, because agents mistake some for HTTP statuses."""
    said = (type(refusal).__doc__ or "").strip()
    window = refused.budget
    if window is not None and not is_read_as_status(refusal.status, window.name):
        said = f"{_named_budget(window)}: too little is left for this request."
    return f"{said} {_resets(refused)}" if refusal.reason in SPENT else said


def render(refusal: Refusal, family: Family, request_id: str) -> tuple[list[Header], bytes]:
    """Return the headers and the body of a refusal, in the form in which the API `family` states errors."""
    headers, document = describe_refusal(refusal, family, request_id)
    return headers, msgspec.json.encode(document)


def describe_refusal(
    refusal: Refusal, family: Family, request_id: str
) -> tuple[list[Header], dict[str, object]]:
    """Return the headers and the document of a refusal, as `render`."""
    shape = FAMILIES[family]
    headers = [(b"content-type", shape.content_type), (b"x-tollkeeper-reason", refusal.reason.encode())]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    helps = refusal.retry_helps
    if helps is None and is_final(refusal):
        helps = False
    if helps is not None:
        headers.append((b"x-should-retry", b"true" if helps else b"false"))
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="tollkeeper"'))  # RFC 9110, 15.5.2
    if refusal.status in HELD_OFF or refusal.reason in SPENT:
        headers.append((b"x-tollkeeper-refused-by", refusal.scope.encode()))
    headers += refusal.fields
    if isinstance(refusal.budget, BudgetWindow) and shape.budget_fields is not None:
        headers += shape.budget_fields(refusal.budget, refusal)
    body = shape.refusal(refusal, request_id)
    if refusal.reply_to is not None and "id" in body:
        body["id"] = refusal.reply_to
    return headers, body


def is_final(refusal: Refusal) -> bool:
    """Return whether the same request will be refused again, whenever it is sent, unless it is changed.

    408 and 425 depend on the time, so they are not final. A 409 is, though SDKs would retry it as a lock
    timeout.
    """
    client = HTTPStatus.BAD_REQUEST <= refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR
    return client and refusal.status not in _IN_TIME and refusal.retry_after_s is None


def refused_by(refusal: Refusal) -> tuple[str, int]:
    """Return the kind and the id of the budget, run or plan that refused a call; an empty kind if none did.

    The id is 0 if the refusal does not contain it.
    """
    window = refusal.budget
    if isinstance(window, BudgetWindow):
        if is_run(window.budget_id):
            return RefusingLimit.RUN.value, run_of(window.budget_id)
        return RefusingLimit.BUDGET.value, window.budget_id
    if isinstance(refusal, errors.RunEnded | errors.RunExceeded):
        return RefusingLimit.RUN.value, 0
    return (RefusingLimit.PLAN.value if refusal.policy == _POLICIES[LimitKind.QUOTA] else ""), 0


def _wait_s(refused: Refused) -> int | None:
    """Return the whole seconds until the limit resets, at least 1; None if that time is unknown."""
    if refused.until_ms <= 0:
        return None
    return max(1, -(-(refused.until_ms - refused.now_ms) // 1000))


def _until(refused: Refused) -> str:
    if refused.until_ms <= 0:
        return ""
    at = datetime.fromtimestamp(-(-refused.until_ms // 1000), UTC)
    return f" until {at:%Y-%m-%dT%H:%M:%SZ}"


def _resets(refused: Refused) -> str:
    """Return a sentence about the reset of a used up limit, in words that make agents stop retrying."""
    rolls = refused.budget is not None and refused.budget.kind == ROLLING
    if refused.until_ms <= 0:
        return (
            f"Quota exceeded; {'this request is larger than it' if rolls else 'no interval will reset it'}."
        )
    if rolls:
        return f"Quota exceeded; this request fits at{_until(refused).removeprefix(' until')}."
    return f"Quota exceeded; it will reset at{_until(refused).removeprefix(' until')}."


def _scope(refused: Refused) -> str:
    scope = Scope(refused.scope or Scope.KEY)
    return "this API key" if scope is Scope.KEY else f"this {scope.name.lower()}"


def _amount(refused: Refused, count: int) -> str:
    """Return a number of the limit's unit as text; a spend cap counts millionths of a currency."""
    return f"{Decimal(count).scaleb(-6).normalize():f}" if refused.kind == LimitKind.SPEND else str(count)


def _rate_limited(refused: Refused) -> Refusal:
    wait = _wait_s(refused) or 1
    unit = "tokens" if refused.kind == LimitKind.TOKENS else "requests"
    return errors.RateLimited(
        f"Rate limit of {_scope(refused)}: {refused.used} of {refused.limit} {unit} a minute "
        f"are used{_until(refused)}. Try again in {wait} s.",
        retry_after_s=wait,
        retry_helps=wait <= RETRY_HELPS_S,
    )


def _quota_exceeded(refused: Refused) -> Refusal:
    """Return the refusal of a call for which a tenant's cycle has too few tokens."""
    wait = _wait_s(refused)
    # Not all is used: the plan admits strictly, or the cycle before left a debt.
    few = "" if refused.used >= refused.limit else "Too few are left for this request. "
    resets = _until(refused).replace(" until", "It will reset at") + ", when the next cycle begins."
    return errors.QuotaExceeded(
        f"Token quota exceeded: {refused.used} of {refused.limit} tokens of this tenant's cycle are used. "
        f"{few}{resets if wait else 'No cycle will reset it.'}",
        retry_after_s=wait,
        retry_helps=wait is not None and wait < RETRY_HELPS_S,
    )


def _budget_exceeded(refused: Refused) -> Refusal:
    """Return the refusal of a call whose budget or run is used up or has ended."""
    window = refused.budget
    if window is not None and is_run(window.budget_id):
        if counts_calls(window.budget_id) and refused.used >= ENDED_CALLS:
            return errors.RunEnded(f"The run {window.name} has ended.", retry_helps=False)
        message = f"{_describe_budget(refused)}. {_resets(refused)}"
        return errors.RunExceeded(message, retry_helps=False)
    wait = _wait_s(refused)
    return errors.BudgetExceeded(
        f"{_describe_budget(refused)}. {_resets(refused)}",
        retry_after_s=wait,
        retry_helps=wait is not None and wait < RETRY_HELPS_S,
    )


def _describe_budget(refused: Refused) -> str:
    """Return what is left of a budget and what a request needs: `Budget "x": $0.0043 of $0.01 left; …`."""
    window = refused.budget
    if window is None:
        return f"Budget: {max(0, refused.limit - refused.used)} of {refused.limit} left"
    unit = UNIT_OF[window.unit]
    left, limit = (_render_amount(unit, amount, window.currency) for amount in (window.left, window.limit))
    left = left.removesuffix(f" {unit}").removesuffix(f" {window.currency}")
    message = f"{_named_budget(window)}: {left} of {limit} left"
    if window.need and unit != REQUESTS:  # a request needs one
        message += f"; this request may need {_render_amount(unit, window.need, window.currency)}"
    return message


def _named_budget(window: BudgetWindow) -> str:
    return f'{"Run" if is_run(window.budget_id) else "Budget"} "{window.name}"'


def _render_amount(unit: str, amount: int, currency: str) -> str:
    """Return an amount of a budget as text for people: `$12.50`, `12.50 SEK`, `3000 tokens`."""
    if unit != MONEY:
        return format_amount(unit, amount, currency)
    whole, _, part = format_number(unit, amount).partition(".")
    number = f"{whole}.{part:0<2}" if part else whole
    sign = SIGNS.get(currency)
    return f"{number} {currency}" if sign is None else f"{sign}{number}"


def _quota_held(refused: Refused) -> Refusal:
    """Return the refusal of a call for which held amounts leave too little."""
    if refused.kind == LimitKind.BUDGET:
        return errors.QuotaHeld(
            f"{_describe_budget(refused)}. Calls in flight hold the rest until they end. Try again in 1 s.",
            retry_after_s=1,
            retry_helps=True,
        )
    what = _HELD.get(refused.kind, "tenant's tokens")
    counted = "held" if refused.kind == LimitKind.CREDITS else "used"
    used, limit = _amount(refused, refused.used), _amount(refused, refused.limit)
    return errors.QuotaHeld(
        f"Of this {what}, {used} of {limit} are {counted}. "
        "Calls in flight hold what remains until they end. Try again in 1 s.",
        retry_after_s=1,
        retry_helps=True,
    )


def _spend_cap_reached(refused: Refused) -> Refusal:
    left, until = _amount(refused, max(0, refused.limit - refused.used)), _until(refused)
    resets = until.replace(" until", " It resets at") + "." if until else ""
    return errors.SpendCapReached(
        f"Spend cap of this organization: {left} of {_amount(refused, refused.limit)} left. "
        f"This request may need more.{resets}",
        retry_helps=False,
    )


# What a blocked tenant's callers are told, by the number of a cause.
_BLOCKED: dict[int, str] = {
    BlockCause.MANUAL: "This tenant was blocked by an administrator.",
    BlockCause.DUNNING: "This tenant is blocked because an invoice of its organization is not paid.",
    BlockCause.BACKLOG: "This tenant is blocked because too much of its use waits to be stored.",
}


def _revoked(refused: Refused) -> Refusal:
    refusal = errors.InvalidApiKey()
    refusal.failure = "revoked"
    return refusal


_MAKERS: dict[Verdict, Callable[[Refused], Refusal]] = {
    **dict.fromkeys(
        (Verdict.UNVERIFIED, Verdict.STALE, Verdict.UNKNOWN_ACCOUNT),
        lambda refused: errors.CountersUnavailable(retry_after_s=1),
    ),
    Verdict.REVOKED: _revoked,
    Verdict.TENANT_BLOCKED: lambda refused: errors.TenantBlocked(
        _BLOCKED.get(refused.used), retry_helps=False
    ),
    Verdict.NOT_INCLUDED: lambda refused: errors.ServiceNotIncluded(retry_helps=False),
    Verdict.RATE_LIMITED: _rate_limited,
    Verdict.CONCURRENCY_LIMITED: lambda refused: errors.ConcurrencyLimited(
        f"Concurrency limit of {_scope(refused)}: {refused.used} of {refused.limit} requests "
        "at once are in flight. Try again when one of them has ended.",
        retry_after_s=1,
        retry_helps=True,
    ),
    Verdict.QUOTA_EXCEEDED: _quota_exceeded,
    Verdict.QUOTA_HELD: _quota_held,
    Verdict.INSUFFICIENT_CREDITS: lambda refused: errors.InsufficientCredits(
        f"Credits of this organization: {refused.limit} remain ({refused.used} of them held). "
        "They do not cover this request until credits are added.",
        retry_helps=False,
    ),
    Verdict.SPEND_CAP_REACHED: _spend_cap_reached,
    Verdict.BUDGET_EXCEEDED: _budget_exceeded,
}
