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
    headers: list[Header] = []
    requests, tokens = decision.requests, decision.tokens
    quota = decision.limit
    if requests is not None or tokens is not None or quota:
        policies = (requests and requests.limit, tokens and tokens.limit, quota)
        headers.append((b"ratelimit-policy", _policy(*policies)))
        headers.append((b"ratelimit", _current(decision)))
    if requests is not None:
        left = requests.limit - requests.used
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % requests.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % max(0, left)),
            (b"x-ratelimit-reset-requests", duration(requests.reset_ms)),
        )
    if tokens is not None:
        left = tokens.limit - tokens.used
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % tokens.limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % max(0, left)),
            (b"x-ratelimit-reset-tokens", duration(tokens.reset_ms)),
        )
    elif quota and decision.tokens_remaining is not None:
        # No tokens a minute: the cycle's quota is the limit on tokens that there is.
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % quota),
            (b"x-ratelimit-remaining-tokens", b"%d" % decision.tokens_remaining),
            (b"x-ratelimit-reset-tokens", duration(max(0, decision.until_ms - decision.now_ms))),
        )
    if decision.tokens_remaining is not None:
        headers.append((b"x-tollkeeper-tokens-remaining", b"%d" % decision.tokens_remaining))
    if decision.credits_remaining is not None:
        headers.append((b"x-tollkeeper-credits-remaining", b"%d" % decision.credits_remaining))
    return headers


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
    """Return the same fields as lines joined by CRLF, formatted at once in the two usual cases."""
    requests, tokens = decision.requests, decision.tokens
    quota, remaining = decision.limit, decision.tokens_remaining
    if requests is None and tokens is None and quota and remaining is not None:
        wait_ms = decision.until_ms - decision.now_ms
        lines = _QUOTA_LINES % (
            _policy(None, None, quota),
            remaining, b";t=%d" % -(-wait_ms // 1000) if wait_ms > 0 else b"",
            quota, remaining, duration(wait_ms),
            remaining,
        )  # fmt: skip
        return _with_credits(lines, decision.credits_remaining)
    if requests is None or tokens is None or not quota or remaining is None:
        return b"\r\n".join([b"%b: %b" % header for header in limit_headers(decision)])
    requests_limit, requests_ms = requests.limit, requests.reset_ms
    requests_left = requests_limit - requests.used if requests.used < requests_limit else 0
    tokens_limit, tokens_ms = tokens.limit, tokens.reset_ms
    tokens_left = tokens_limit - tokens.used if tokens.used < tokens_limit else 0
    wait_ms = decision.until_ms - decision.now_ms
    lines = _ALL_LINES % (
        _policy(requests_limit, tokens_limit, quota),
        requests_left, -(-requests_ms // 1000), tokens_left, -(-tokens_ms // 1000),
        remaining, b";t=%d" % -(-wait_ms // 1000) if wait_ms > 0 else b"",
        requests_limit, requests_left,
        b"%gs" % (requests_ms / 1000) if 1000 <= requests_ms < 60_000 else duration(requests_ms),
        tokens_limit, tokens_left,
        b"%gs" % (tokens_ms / 1000) if 1000 <= tokens_ms < 60_000 else duration(tokens_ms),
        remaining,
    )  # fmt: skip
    return _with_credits(lines, decision.credits_remaining)


def _with_credits(lines: bytes, remaining: int | None) -> bytes:
    return lines if remaining is None else b"%b\r\nx-tollkeeper-credits-remaining: %d" % (lines, remaining)


_QUOTA_LINES = b"\r\n".join(
    (
        b"ratelimit-policy: %b",
        b'ratelimit: "quota";r=%d%b',
        b"x-ratelimit-limit-tokens: %d",
        b"x-ratelimit-remaining-tokens: %d",
        b"x-ratelimit-reset-tokens: %b",
        b"x-tollkeeper-tokens-remaining: %d",
    )
)
_ALL_LINES = b"\r\n".join(
    (
        b"ratelimit-policy: %b",
        b'ratelimit: "requests";r=%d;t=%d, "tokens";r=%d;t=%d, "quota";r=%d%b',
        b"x-ratelimit-limit-requests: %d",
        b"x-ratelimit-remaining-requests: %d",
        b"x-ratelimit-reset-requests: %b",
        b"x-ratelimit-limit-tokens: %d",
        b"x-ratelimit-remaining-tokens: %d",
        b"x-ratelimit-reset-tokens: %b",
        b"x-tollkeeper-tokens-remaining: %d",
    )
)


@lru_cache(CACHED_MAX)
def duration(ms: int) -> bytes:
    """Write milliseconds as OpenAI does: `120ms`, `1s`, `1.5s`, `6m0s`, `1h0m0s`."""
    if ms <= 0:
        return b"0s"
    if ms < 1000:
        return b"%dms" % ms
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    part = f"{seconds}.{rest:03d}".rstrip("0") if rest else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{part}s".encode()
    return f"{minutes}m{part}s".encode() if minutes else f"{part}s".encode()


@lru_cache(CACHED_MAX)
def _policy(requests: int | None, tokens: int | None, quota: int) -> bytes:
    """One item a policy: its quota, its unit where it is not requests, its window in seconds."""
    items = []
    if requests is not None:
        items.append(f'"requests";q={requests};w={WINDOW_S}')
    if tokens is not None:
        items.append(f'"tokens";q={tokens};qu="tokens";w={WINDOW_S}')
    if quota:
        items.append(f'"quota";q={quota};qu="tokens"')
    return ", ".join(items).encode()


def _current(decision: Decision) -> bytes:
    """One item a policy: what remains of it, and the seconds until it is whole again."""
    items = []
    if decision.requests is not None:
        items.append(_item(b"requests", decision.requests))
    if decision.tokens is not None:
        items.append(_item(b"tokens", decision.tokens))
    if decision.limit and decision.tokens_remaining is not None:
        items.append(b'"quota";r=%d' % decision.tokens_remaining)
        if decision.until_ms > decision.now_ms:
            items[-1] += b";t=%d" % -(-(decision.until_ms - decision.now_ms) // 1000)
    return b", ".join(items)


def _item(name: bytes, window: Window) -> bytes:
    left = window.limit - window.used
    return b'"%b";r=%d;t=%d' % (name, max(0, left), -(-window.reset_ms // 1000))
