"""The rest of limits, as response fields.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-10 (structured
fields, RFC 9651); the `x-ratelimit-*` fields are written as OpenAI writes them. Values are
those after this call's hold. Of budgets the tightest is told, money in millionths: a structured
field has no larger numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import quote

from gateway.core.accounts.budgets import FLAG_MONEY, UNIT_OF, shown_amount
from gateway.core.model import BudgetWindow, Decision, LimitKind, Verdict, Window

WINDOW_S = 60
CACHED_MAX = 4096
NANO_A_MICRO = 1_000
FIELD_INTEGER_MAX = 10**15 - 1  # of a structured field: RFC 9651, 3.3.1

_VISIBLE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")

Header = tuple[bytes, bytes]


def limit_headers(decision: Decision) -> list[Header]:
    """Return the fields for an admitted call; empty where nothing limits it."""
    fields = [line.partition(b": ") for line in limit_lines(decision).split(b"\r\n") if line]
    return [(name, value) for name, _, value in fields]


def refusal_headers(decision: Decision) -> list[Header]:
    """Return the fields for a call a limit refused: that limit alone, where its rest is known."""
    limit, used, kind = decision.limit, decision.used, decision.kind
    told = Decision(Verdict.ADMITTED)
    if decision.verdict is Verdict.RATE_LIMITED and limit:
        window = Window(decision.scope, limit, used, used * WINDOW_S * 1000 // limit)
        if kind == LimitKind.TOKENS:
            told.tokens = window
        else:
            told.requests = window
    elif decision.verdict is Verdict.QUOTA_EXCEEDED and used >= limit:
        told.limit, told.until_ms, told.now_ms = limit, decision.until_ms, decision.now_ms
        told.tokens_remaining = 0
    elif kind == LimitKind.CREDITS:
        told.credits_remaining = limit - used
    return limit_headers(told)


def budget_headers(decision: Decision) -> list[Header]:
    """Return the fields of the budget which refused a call, its need, and its rest.

    Empty where none did. Amounts are decimals in the budget's unit.
    """
    window = decision.budget
    if window is None:
        return []
    unit = UNIT_OF[window.unit]
    fields = [
        (b"x-tollkeeper-budget", _name(window.name)),
        (b"x-tollkeeper-needed", shown_amount(unit, window.need).encode()),
        (b"x-tollkeeper-left", shown_amount(unit, window.left).encode()),
    ]
    if decision.verdict is Verdict.BUDGET_EXCEEDED:
        policy = _budget_policy(window.limit, window.unit, window.currency)
        item = _budget_item(window, window.reset_ms - decision.now_ms)
        fields += [(b"ratelimit-policy", policy.encode()), (b"ratelimit", item)]
    return fields


def limit_lines(decision: Decision) -> bytes:
    """Return the fields for an admitted call as lines joined by CRLF; empty where nothing limits it."""
    requests, tokens = decision.requests, decision.tokens
    quota, remaining = decision.limit, decision.tokens_remaining
    budget = decision.budget
    of_requests = of_tokens = of_quota = of_budget = comma = requests_lines = tokens_lines = rest = last = b""
    most, unit, currency = -1, 0, ""
    if budget is not None:
        most, unit, currency = budget.limit, budget.unit, budget.currency
        of_budget = _budget_item(budget, budget.reset_ms - decision.now_ms)
        last = b"\r\nx-tollkeeper-budget: %b" % _name(budget.name)
    policy, requests_limit, tokens_limit = _limits(
        -1 if requests is None else requests.limit,
        -1 if tokens is None else tokens.limit,
        quota,
        most,
        unit,
        currency,
    )
    if requests is not None:
        left, ms = b"%d" % _left(requests.limit, requests.used), requests.reset_ms
        of_requests, comma = b'"requests";r=%b;t=%d' % (left, _seconds(ms)), b", "
        requests_lines = b"%b%b\r\nx-ratelimit-reset-requests: %b" % (requests_limit, left, _told(ms))
    if tokens is not None:
        left, ms = b"%d" % _left(tokens.limit, tokens.used), tokens.reset_ms
        of_tokens, comma = b'%b"tokens";r=%b;t=%d' % (comma, left, _seconds(ms)), b", "
        tokens_lines = b"%b%b\r\nx-ratelimit-reset-tokens: %b" % (tokens_limit, left, _told(ms))
    if remaining is not None:
        left = b"%d" % remaining
        if quota:
            ms = decision.until_ms - decision.now_ms
            of_quota, comma = b'%b"quota";r=%b%b' % (comma, left, _until(ms)), b", "
            if tokens is None:  # no tokens a minute: the cycle's quota is the limit on tokens that there is
                tokens_lines = b"%b%b\r\nx-ratelimit-reset-tokens: %b" % (tokens_limit, left, _told(ms))
        rest = b"\r\nx-tollkeeper-tokens-remaining: %b" % left
    credits_ = decision.credits_remaining
    if credits_ is not None:
        last = b"%b\r\nx-tollkeeper-credits-remaining: %d" % (last, credits_)
    if of_budget:
        of_budget, comma = comma + of_budget, b", "
    if not comma:
        return (rest + last)[2:]
    return b"%b%b%b%b%b%b%b%b%b" % (
        policy, of_requests, of_tokens, of_quota, of_budget, requests_lines, tokens_lines, rest, last,
    )  # fmt: skip


def duration(ms: int) -> str:
    """Write milliseconds as OpenAI does: `120ms`, `1s`, `1.5s`, `6m0s`, `1h0m0s`."""
    if ms <= 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = ms // 1000, ms % 1000
    fraction = f".{str(1000 + rest)[1:]}".rstrip("0") if rest else ""
    if seconds < 60:
        return f"{seconds}{fraction}s"
    minutes, seconds = seconds // 60, seconds % 60
    if minutes < 60:
        return f"{minutes}m{seconds}{fraction}s"
    return f"{minutes // 60}h{minutes % 60}m{seconds}{fraction}s"


def _told(ms: int) -> bytes:
    return duration(ms).encode()


def _until(ms: int) -> bytes:
    """When a window ends, as a parameter of its item; nothing where nobody knows."""
    return b";t=%d" % _seconds(ms) if ms > 0 else b""


def _left(limit: int, used: int) -> int:
    return limit - used if used < limit else 0


def _seconds(ms: int) -> int:
    """Whole seconds, the next above."""
    return -(-ms // 1000)


@lru_cache(CACHED_MAX)
def _name(name: str) -> bytes:
    """A budget's name as a field has it: what is no visible ASCII, and `%`, percent-encoded."""
    return quote(name, safe=_VISIBLE).encode()


def _budget_policy(limit: int, unit: int, currency: str) -> str:
    if unit == FLAG_MONEY:
        return f'"budget";q={min(limit // NANO_A_MICRO, FIELD_INTEGER_MAX)};qu="micro-{currency}"'
    return f'"budget";q={min(limit, FIELD_INTEGER_MAX)};qu="{UNIT_OF[unit]}"'


def _budget_item(window: BudgetWindow, ms: int) -> bytes:
    left = _left(window.limit, window.used)
    if window.unit == FLAG_MONEY:
        left //= NANO_A_MICRO
    until = _until(ms) if window.reset_ms else b""
    return b'"budget";r=%d%b' % (min(left, FIELD_INTEGER_MAX), until)


@lru_cache(CACHED_MAX)
def _limits(  # noqa: PLR0917  # each limit there is
    requests: int, tokens: int, quota: int, budget: int, unit: int, currency: str
) -> tuple[bytes, bytes, bytes]:
    """The fields of the limits themselves: the bytes before the first item, and around the rest.

    One below 0 is none, and so is a quota of 0. An item of the policy is a quota, its unit unless it is
    requests, and its window in seconds.
    """
    items = []
    if requests >= 0:
        items.append(f'"requests";q={requests};w={WINDOW_S}')
    if tokens >= 0:
        items.append(f'"tokens";q={tokens};qu="tokens";w={WINDOW_S}')
    if quota:
        items.append(f'"quota";q={quota};qu="tokens"')
    if budget >= 0:
        items.append(_budget_policy(budget, unit, currency))
    of_tokens = tokens if tokens >= 0 else quota
    return (
        f"ratelimit-policy: {', '.join(items)}\r\nratelimit: ".encode(),
        f"\r\nx-ratelimit-limit-requests: {requests}\r\nx-ratelimit-remaining-requests: ".encode(),
        f"\r\nx-ratelimit-limit-tokens: {of_tokens}\r\nx-ratelimit-remaining-tokens: ".encode(),
    )
