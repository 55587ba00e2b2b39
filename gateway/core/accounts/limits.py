"""What is left, as response fields.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-10 (structured
fields, RFC 9651); the `x-ratelimit-*` fields are written as OpenAI writes them. Values are
those after this call's hold.
"""

from __future__ import annotations

from functools import lru_cache

from gateway.core.model import Decision, LimitKind, Verdict, Window

WINDOW_S = 60
CACHED_MAX = 4096

Header = tuple[bytes, bytes]


def limit_headers(decision: Decision) -> list[Header]:
    """Return the fields for an admitted call; empty where nothing limits it."""
    fields = [line.partition(b": ") for line in limit_lines(decision).split(b"\r\n") if line]
    return [(name, value) for name, _, value in fields]


def refusal_headers(decision: Decision) -> list[Header]:
    """Return the fields for a call a limit refused: that limit alone, where what is left of it is known."""
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


def limit_lines(decision: Decision) -> bytes:
    """Return the fields for an admitted call as lines joined by CRLF; empty where nothing limits it."""
    requests, tokens = decision.requests, decision.tokens
    quota, remaining = decision.limit, decision.tokens_remaining
    policy, requests_limit, tokens_limit = _limits(
        -1 if requests is None else requests.limit, -1 if tokens is None else tokens.limit, quota
    )
    of_requests = of_tokens = of_quota = comma = requests_lines = tokens_lines = rest = ""
    if requests is not None:
        left, ms = str(_left(requests.limit, requests.used)), requests.reset_ms
        of_requests, comma = f'"requests";r={left};t={_seconds(ms)}', ", "
        requests_lines = f"{requests_limit}{left}\r\nx-ratelimit-reset-requests: {duration(ms)}"
    if tokens is not None:
        left, ms = str(_left(tokens.limit, tokens.used)), tokens.reset_ms
        of_tokens, comma = f'{comma}"tokens";r={left};t={_seconds(ms)}', ", "
        tokens_lines = f"{tokens_limit}{left}\r\nx-ratelimit-reset-tokens: {duration(ms)}"
    if remaining is not None:
        left = str(remaining)
        if quota:
            ms = decision.until_ms - decision.now_ms
            until = f";t={_seconds(ms)}" if ms > 0 else ""
            of_quota, comma = f'{comma}"quota";r={left}{until}', ", "
            if tokens is None:  # no tokens a minute: the cycle's quota is the limit on tokens that there is
                tokens_lines = f"{tokens_limit}{left}\r\nx-ratelimit-reset-tokens: {duration(ms)}"
        rest = f"\r\nx-tollkeeper-tokens-remaining: {left}"
    credits_ = decision.credits_remaining
    last = "" if credits_ is None else f"\r\nx-tollkeeper-credits-remaining: {credits_}"
    if not comma:
        return (rest + last)[2:].encode()
    return f"{policy}{of_requests}{of_tokens}{of_quota}{requests_lines}{tokens_lines}{rest}{last}".encode()


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


def _left(limit: int, used: int) -> int:
    return limit - used if used < limit else 0


def _seconds(ms: int) -> int:
    """Whole seconds, the next above."""
    return -(-ms // 1000)


@lru_cache(CACHED_MAX)
def _limits(requests: int, tokens: int, quota: int) -> tuple[str, str, str]:
    """What is told of the limits themselves: what stands before the first item, and around what is left.

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
    return (
        f"ratelimit-policy: {', '.join(items)}\r\nratelimit: ",
        f"\r\nx-ratelimit-limit-requests: {requests}\r\nx-ratelimit-remaining-requests: ",
        f"\r\nx-ratelimit-limit-tokens: {tokens if tokens >= 0 else quota}\r\nx-ratelimit-remaining-tokens: ",
    )
