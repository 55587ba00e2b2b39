"""Limits and their remaining amounts as fields of responses.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-10 (structured fields, RFC
9651); the `x-ratelimit-*` fields are written as OpenAI writes them. Values are those after this call's hold.
Of all budgets only the tightest is reported, money in millionths, or in larger parts where the limit has too
many of these: a structured field cannot have larger numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import quote

from gateway.core.accounts.budget_amounts import format_number
from gateway.core.accounts.budgets import FLAG_MONEY, UNIT_OF
from gateway.core.billing.money import NANO
from gateway.core.joined import Part, said
from gateway.core.model import Admitted, BudgetWindow, FreedAmount, LimitKind, Refused, Verdict, Window
from gateway.core.times import moment_of, rfc3339

WINDOW_S = 60
# Slots of a direct-mapped cache. A prime, because limits are round numbers and would collide otherwise.
CACHED_MAX = 4093
# The parts of a currency in which money is reported, in nano-units, with their prefixes. The first that fits
# a limit is used.
MONEY_PARTS: Final = ((1_000, "micro-"), (NANO, ""), (1_000 * NANO, "kilo-"))
FIELD_INTEGER_MAX = 10**15 - 1  # most in a structured field: RFC 9651, 3.3.1

_EMPTY: Final[Part] = b""
# Fractions of a second by milliseconds.
_FRACTIONS: Final = [(b".%03d" % ms).rstrip(b"0").rstrip(b".") + b"s" for ms in range(1000)]
_VISIBLE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_QUOTABLE: Final = _VISIBLE.translate({ord('"'): None, ord("\\"): None})

Header = tuple[bytes, bytes]


def limit_headers(admitted: Admitted) -> list[Header]:
    """Return the header fields that state an admitted call's limits, such as requests left; maybe none."""
    fields = [line.partition(b": ") for line in limit_lines(admitted).split(b"\r\n") if line]
    return [(name, value) for name, _, value in fields]


def refusal_headers(refused: Refused) -> list[Header]:
    """Return the fields of the limit that refused a call, if its remaining amount is known."""
    limit, used, kind = refused.limit, refused.used, refused.kind
    admitted = Admitted()
    if refused.verdict is Verdict.RATE_LIMITED and limit:
        window = Window(refused.scope, limit, used, used * WINDOW_S * 1000 // limit)
        if kind == LimitKind.TOKENS:
            admitted.tokens = window
        else:
            admitted.requests = window
    elif refused.verdict is Verdict.QUOTA_EXCEEDED and used >= limit:
        admitted.limit, admitted.until_ms, admitted.now_ms = limit, refused.until_ms, refused.now_ms
        admitted.tokens_remaining = 0
    elif kind == LimitKind.CREDITS:
        admitted.credits_remaining = limit - used
    return limit_headers(admitted)


def budget_headers(refused: Refused) -> list[Header]:
    """Return fields with the budget that refused a call, the amount needed, and the amount left.

    Empty if no budget refused it. Amounts are decimals in the budget's unit.
    """
    window = refused.budget
    if window is None:
        return []
    unit = UNIT_OF[window.unit]
    fields = [
        (b"x-tollkeeper-budget", _name(window.name)),
        (b"x-tollkeeper-needed", format_number(unit, window.need).encode()),
        (b"x-tollkeeper-left", format_number(unit, window.left).encode()),
    ]
    if refused.verdict is Verdict.BUDGET_EXCEEDED:
        policy = _budget_policy(window)
        item = _budget_item(b"", window, refused.now_ms)
        fields += [(b"ratelimit-policy", policy.encode()), (b"ratelimit", item)]
    return fields


def limit_lines(admitted: Admitted) -> bytes:
    """Return the limit fields for an admitted call as lines joined by CRLF; empty if nothing limits it."""
    lines = _limit_lines(admitted)
    if not admitted.frees:
        return lines
    frees = b"x-tollkeeper-frees: " + b", ".join([_freed(amount) for amount in admitted.frees])
    return lines + b"\r\n" + frees if lines else frees


def _freed(freed: FreedAmount) -> bytes:
    """Return one part of `x-tollkeeper-frees`: `2.10; at="2026-11-30T14:35:00Z"; budget="NAME"`."""
    amount = format_number(UNIT_OF[freed.unit], freed.amount)
    whole, _, part = amount.partition(".")
    amount = f"{whole}.{part:0<2}" if part else whole
    at = rfc3339(moment_of(freed.at_ms), "seconds")
    return f'{amount}; at="{at}"; budget="{quote(freed.name, safe=_QUOTABLE)}"'.encode()


def _limit_lines(admitted: Admitted) -> bytes:
    """Return the header lines about the limits of an admitted call, those without a limit left out."""
    requests, tokens, budget = admitted.requests, admitted.tokens, admitted.budget
    quota, remaining, credits_left = admitted.limit, admitted.tokens_remaining, admitted.credits_remaining
    texts = _texts(
        -1 if requests is None else requests.limit, -1 if tokens is None else tokens.limit, quota, budget
    )
    # By limit: its item with remaining amount and seconds, then its lines with the time. Else they are empty.
    item_r = item_t = item_q = of_budget = until_r = until_t = until_q = comma = rest = of_credits = b""
    text_r = text_t = reset_r = reset_t = unit_r = unit_t = b""
    left_r = left_t = left_q = second_r = second_t = second_q = time_r = time_t = left = balance = _EMPTY
    if requests is not None:
        left_r, ms = _rest_of(requests.limit, requests.used), requests.reset_ms
        item_r, until_r, second_r, comma = b'"requests";r=', b";t=", _seconds(ms), b", "
        text_r, reset_r = texts.requests, b"\r\nx-ratelimit-reset-requests: "
        time_r, unit_r = duration(ms)
    if tokens is not None:
        left_t, ms = _rest_of(tokens.limit, tokens.used), tokens.reset_ms
        item_t = b', "tokens";r=' if comma else b'"tokens";r='
        until_t, second_t, comma = b";t=", _seconds(ms), b", "
        text_t, reset_t = texts.tokens, b"\r\nx-ratelimit-reset-tokens: "
        time_t, unit_t = duration(ms)
    if remaining is not None:
        if quota:
            left_q, ms = remaining, admitted.until_ms - admitted.now_ms
            item_q, comma = b', "quota";r=' if comma else b'"quota";r=', b", "
            if ms > 0:
                until_q, second_q = b";t=", _seconds(ms)
            if tokens is None:  # no limit of tokens a minute: report the cycle's quota
                text_t, reset_t = texts.tokens, b"\r\nx-ratelimit-reset-tokens: "
                time_t, unit_t = duration(ms)
        rest, left = b"\r\nx-tollkeeper-tokens-remaining: ", remaining
    if budget is not None:
        of_budget, comma = _budget_item(comma, budget, admitted.now_ms), b", "
    if credits_left is not None:
        of_credits, balance = b"\r\nx-tollkeeper-credits-remaining: ", credits_left
    if not comma:
        return said(rest, left, texts.name, of_credits, balance)[2:]
    return said(
        texts.policy, item_r, left_r, until_r, second_r, item_t, left_t, until_t, second_t,
        item_q, left_q, until_q, second_q, of_budget, text_r, left_r, reset_r, time_r, unit_r,
        text_t, left_q if tokens is None else left_t, reset_t, time_t, unit_t,
        rest, left, texts.name, of_credits, balance,
    )  # fmt: skip


def duration(ms: int) -> tuple[int, bytes]:
    """Format milliseconds as OpenAI does (`120ms`, `1.5s`, `6m0s`, `1h0m0s`), in two parts.

    Return the leading number and the text after it. The function `said` joins both.
    """
    if ms <= 0:
        return 0, b"s"
    if ms < 1000:
        return ms, b"ms"
    seconds, fraction = ms // 1000, _FRACTIONS[ms % 1000]
    if seconds < 60:
        return seconds, fraction
    minutes, seconds = seconds // 60, seconds % 60
    if minutes < 60:
        return minutes, said(b"m", seconds, fraction)
    return minutes // 60, said(b"h", minutes % 60, b"m", seconds, fraction)


def _rest_of(limit: int, used: int) -> int:
    return limit - used if used < limit else 0


def _seconds(ms: int) -> int:
    """Return milliseconds as whole seconds, rounded up."""
    return -(-ms // 1000)


@lru_cache(CACHED_MAX)
def _name(name: str) -> bytes:
    """Return a budget's name for a response field: `%` and all but visible ASCII percent-encoded."""
    return quote(name, safe=_VISIBLE).encode()


def _part(limit: int) -> tuple[int, str]:
    """Return the part of a currency in which a limit is reported: its nano-units and its prefix."""
    for part in MONEY_PARTS:
        if limit // part[0] <= FIELD_INTEGER_MAX:
            return part
    return MONEY_PARTS[-1]


def _budget_policy(window: BudgetWindow) -> str:
    if window.unit == FLAG_MONEY:
        nano, part = _part(window.limit)
        return f'"budget";q={window.limit // nano};qu="{part}{window.currency}"'
    return f'"budget";q={min(window.limit, FIELD_INTEGER_MAX)};qu="{UNIT_OF[window.unit]}"'


def _budget_item(comma: bytes, window: BudgetWindow, now_ms: int) -> bytes:
    left = _rest_of(window.limit, window.used)
    if window.unit == FLAG_MONEY:
        left //= _part(window.limit)[0]
    ms = window.reset_ms - now_ms if window.reset_ms else 0
    item = said(comma, b'"budget";r=', min(left, FIELD_INTEGER_MAX))
    return said(item, b";t=", _seconds(ms)) if ms > 0 else item


class _LimitTexts:
    """The constant parts of the fields for one set of limits.

    `policy` is the text up to the first item, `requests` and `tokens` the texts up to the remaining amount,
    and `name` the line of the tightest budget. A limit below 0 or a quota of 0 means none. An item of the
    policy is a quota, its unit unless that is requests, and its window in seconds.
    """

    __slots__ = (
        "_budget", "_currency", "_named", "_quota", "_requests", "_tokens", "_unit", "name", "policy",
        "requests", "tokens",
    )  # fmt: skip

    def __init__(self, requests: int, tokens: int, quota: int, budget: BudgetWindow | None) -> None:
        items = list[str]()
        self.name, self._named, self._currency, self._budget, self._unit = b"", "", "", -1, 0
        if requests >= 0:
            items.append(f'"requests";q={requests};w={WINDOW_S}')
        if tokens >= 0:
            items.append(f'"tokens";q={tokens};qu="tokens";w={WINDOW_S}')
        if quota:
            items.append(f'"quota";q={quota};qu="tokens"')
        if budget is not None:
            items.append(_budget_policy(budget))
            self.name = b"\r\nx-tollkeeper-budget: " + _name(budget.name)
            self._named, self._currency = budget.name, budget.currency
            self._budget, self._unit = budget.limit, budget.unit
        of_tokens = tokens if tokens >= 0 else quota
        self.policy = f"ratelimit-policy: {', '.join(items)}\r\nratelimit: ".encode()
        self.requests, self.tokens = [
            f"\r\nx-ratelimit-limit-{what}: {limit}\r\nx-ratelimit-remaining-{what}: ".encode()
            for what, limit in (("requests", requests), ("tokens", of_tokens))
        ]
        self._requests, self._tokens, self._quota = requests, tokens, quota

    def are_of(self, requests: int, tokens: int, quota: int, budget: BudgetWindow | None) -> bool:
        """Return whether these cached texts were made for the given limits."""
        if self._requests != requests or self._tokens != tokens or self._quota != quota:
            return False
        if budget is None:
            return self._budget < 0
        return (
            self._budget == budget.limit and self._unit == budget.unit
            and self._named == budget.name and self._currency == budget.currency
        )  # fmt: skip


def _texts(requests: int, tokens: int, quota: int, budget: BudgetWindow | None) -> _LimitTexts:
    """Return the header texts for these four limits, from the cache if they are in it.

    Each set of limits has one slot of the cache, and replaces another set in that slot.
    """
    place = (requests + tokens + quota + (0 if budget is None else budget.limit)) % CACHED_MAX
    texts = _known[place]
    if texts is None or not texts.are_of(requests, tokens, quota, budget):
        texts = _known[place] = _LimitTexts(requests, tokens, quota, budget)
    return texts


# The cache, by slot.
_known: Final[list[_LimitTexts | None]] = [None] * CACHED_MAX
