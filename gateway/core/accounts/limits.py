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
    if requests is not None and tokens is not None and quota and remaining is not None:
        return _all_lines(decision, requests, tokens, remaining)
    items: list[str] = []
    lines: list[str] = []
    for name, window in (("requests", requests), ("tokens", tokens)):
        if window is not None:
            left, ms = _left(window.limit, window.used), window.reset_ms
            items.append(f'"{name}";r={left};t={_seconds(ms)}')
            lines.append(_counted(name, window.limit, left, ms))
    if remaining is not None:
        if quota:
            ms = decision.until_ms - decision.now_ms
            items.append(f'"quota";r={remaining}' + (f";t={_seconds(ms)}" if ms > 0 else ""))
            if tokens is None:  # no tokens a minute: the cycle's quota is the limit on tokens that there is
                lines.append(_counted("tokens", quota, remaining, ms))
        lines.append(f"x-tollkeeper-tokens-remaining: {remaining}")
    if decision.credits_remaining is not None:
        lines.append(f"x-tollkeeper-credits-remaining: {decision.credits_remaining}")
    fields = "\r\n".join(lines)
    if items:
        policy = _policy(
            -1 if requests is None else requests.limit, -1 if tokens is None else tokens.limit, quota
        )
        fields = f"ratelimit-policy: {policy}\r\nratelimit: {', '.join(items)}\r\n{fields}"
    return fields.encode("ascii")


def _counted(name: str, limit: int, left: int, ms: int) -> str:
    """A limit as OpenAI writes it."""
    return (
        f"x-ratelimit-limit-{name}: {limit}\r\nx-ratelimit-remaining-{name}: {left}\r\n"
        f"x-ratelimit-reset-{name}: {duration(ms)}"
    )


def _all_lines(decision: Decision, requests: Window, tokens: Window, remaining: int) -> bytes:
    """The fields where all three limits are told, as is usual: one text around the numbers that change."""
    policy, requests_limit, tokens_limit = _limits(requests.limit, tokens.limit, decision.limit)
    requests_left, requests_ms = str(_left(requests.limit, requests.used)), requests.reset_ms
    tokens_left, tokens_ms = str(_left(tokens.limit, tokens.used)), tokens.reset_ms
    quota_left, quota_ms = str(remaining), decision.until_ms - decision.now_ms
    until = f";t={_seconds(quota_ms)}" if quota_ms > 0 else ""
    credits_ = decision.credits_remaining
    last = "" if credits_ is None else f"\r\nx-tollkeeper-credits-remaining: {credits_}"
    return (
        f'{policy}"requests";r={requests_left};t={_seconds(requests_ms)}, '
        f'"tokens";r={tokens_left};t={_seconds(tokens_ms)}, "quota";r={quota_left}{until}{requests_limit}'
        f"{requests_left}\r\nx-ratelimit-reset-requests: {duration(requests_ms)}{tokens_limit}"
        f"{tokens_left}\r\nx-ratelimit-reset-tokens: {duration(tokens_ms)}\r\n"
        f"x-tollkeeper-tokens-remaining: {quota_left}{last}"
    ).encode("ascii")


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
def _policy(requests: int, tokens: int, quota: int) -> str:
    """One item a policy, none below 0: its quota, its unit unless it is requests, its window in seconds."""
    items = []
    if requests >= 0:
        items.append(f'"requests";q={requests};w={WINDOW_S}')
    if tokens >= 0:
        items.append(f'"tokens";q={tokens};qu="tokens";w={WINDOW_S}')
    if quota:
        items.append(f'"quota";q={quota};qu="tokens"')
    return ", ".join(items)


@lru_cache(CACHED_MAX)
def _limits(requests: int, tokens: int, quota: int) -> tuple[str, str, str]:
    """What is told of three limits themselves: what stands before the first item, and around what is left."""
    return (
        f"ratelimit-policy: {_policy(requests, tokens, quota)}\r\nratelimit: ",
        f"\r\nx-ratelimit-limit-requests: {requests}\r\nx-ratelimit-remaining-requests: ",
        f"\r\nx-ratelimit-limit-tokens: {tokens}\r\nx-ratelimit-remaining-tokens: ",
    )
