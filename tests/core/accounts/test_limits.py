"""What is left is said in the draft's structured fields and in OpenAI's."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_TOKENS
from gateway.core.accounts.limits import CACHED_MAX, duration, limit_headers, limit_lines, refusal_headers
from gateway.core.model import (
    Admitted,
    BudgetWindow,
    FreedAmount,
    LimitKind,
    Refused,
    Scope,
    Verdict,
    Window,
)

NOW = 1_700_000_000_000


def decision(requests: Window | None = None, tokens: Window | None = None, **more: int | None) -> Admitted:
    return Admitted(now_ms=NOW, requests=requests, tokens=tokens, **more)  # type: ignore[arg-type] # every field here is a number


def told(made: Admitted) -> dict[bytes, bytes]:
    """The fields by name, each of which is there once."""
    fields = limit_headers(made)
    assert len(dict(fields)) == len(fields)
    return dict(fields)


def test_all_limits() -> None:
    headers = told(
        decision(
            Window(Scope.KEY, 60, 3, 2100),
            Window(Scope.TENANT, 60_000, 300, 120),
            limit=100_000,
            until_ms=NOW + 90_500,
            tokens_remaining=99_000,
            credits_remaining=12,
        )
    )
    assert headers == {
        b"ratelimit-policy": (
            b'"requests";q=60;w=60, "tokens";q=60000;qu="tokens";w=60, "quota";q=100000;qu="tokens"'
        ),
        b"ratelimit": b'"requests";r=57;t=3, "tokens";r=59700;t=1, "quota";r=99000;t=91',
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"57",
        b"x-ratelimit-reset-requests": b"2.1s",
        b"x-ratelimit-limit-tokens": b"60000",
        b"x-ratelimit-remaining-tokens": b"59700",
        b"x-ratelimit-reset-tokens": b"120ms",
        b"x-tollkeeper-tokens-remaining": b"99000",
        b"x-tollkeeper-credits-remaining": b"12",
    }


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (10**18 - 1, b'q=999999999999999;qu="micro-VND"'), (10**18, b'q=1000000000;qu="VND"'),
        (10**24 - 1, b'q=999999999999999;qu="VND"'), (10**24, b'q=1000000000000;qu="kilo-VND"'),
    ],
)  # fmt: skip
def test_a_large_limit_is_told_in_parts_that_a_field_has_digits_for(limit: int, told: bytes) -> None:
    one = decision()
    one.budget = BudgetWindow(1, limit, 0, 0, FLAG_MONEY, "a", "VND")
    assert told in limit_lines(one)


def test_limits_that_share_a_place_have_their_own_texts() -> None:
    budget = BudgetWindow(1, 10**9, 0, 0, FLAG_MONEY, "a", "USD")
    several = [
        decision(),
        decision(Window(Scope.KEY, 1, 0, 0)),
        decision(Window(Scope.KEY, 1 + CACHED_MAX, 0, 0)),
        decision(tokens=Window(Scope.KEY, 1, 0, 0)),
        decision(limit=1, tokens_remaining=1),
        decision(limit=1 + CACHED_MAX, tokens_remaining=1),
    ]
    more: list[dict[str, Any]] = [{}, {"name": "b"}, {"currency": "EUR"}, {"unit": FLAG_TOKENS}]
    for change in (*more, {"limit": 10**9 + CACHED_MAX}):
        several.append(decision(Window(Scope.KEY, 1, 0, 0)))
        several[-1].budget = replace(budget, **change)
    lines = [limit_lines(one) for one in several]
    assert len({*lines}) == len(lines)
    assert lines[::-1] == [limit_lines(one) for one in several[::-1]]
    for one, text in zip(several, lines, strict=True):
        assert one.requests is None or b"limit-requests: %d\r\n" % one.requests.limit in text
        assert one.budget is None or b"budget: %b" % one.budget.name.encode() in text


def test_nothing_limits() -> None:
    assert limit_lines(decision()) == b""


def test_unlimited_tokens_say_nothing_of_what_remains() -> None:
    names = told(decision(Window(Scope.KEY, 5, 1, 12_000), credits_remaining=0)).keys()
    assert b"x-tollkeeper-tokens-remaining" not in names
    assert b"x-tollkeeper-credits-remaining" in names
    assert b"x-ratelimit-limit-tokens" not in names


def test_debt_is_nothing_left() -> None:
    headers = told(decision(tokens=Window(Scope.KEY, 100, 250, 150_000)))
    assert headers[b"x-ratelimit-remaining-tokens"] == b"0"
    assert headers[b"x-ratelimit-reset-tokens"] == b"2m30s"
    assert headers[b"ratelimit"] == b'"tokens";r=0;t=150'


def refused(verdict: Verdict, kind: LimitKind, used: int, limit: int) -> dict[bytes, bytes]:
    decision = Refused(verdict, Scope.TENANT, kind, used, limit, until_ms=NOW + 3000, now_ms=NOW)
    return dict(refusal_headers(decision))


def test_a_rate_that_refuses_is_told_with_its_debt_as_nothing_left() -> None:
    assert refused(Verdict.RATE_LIMITED, LimitKind.REQUESTS, 20, 20) == {
        b"ratelimit-policy": b'"requests";q=20;w=60',
        b"ratelimit": b'"requests";r=0;t=60',
        b"x-ratelimit-limit-requests": b"20",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"1m0s",
    }
    tokens = refused(Verdict.RATE_LIMITED, LimitKind.TOKENS, 250, 100)
    assert tokens[b"ratelimit"] == b'"tokens";r=0;t=150'
    assert tokens[b"x-ratelimit-remaining-tokens"] == b"0"


def test_a_quota_that_is_used_up_is_told_until_its_reset() -> None:
    fields = refused(Verdict.QUOTA_EXCEEDED, LimitKind.QUOTA, 12, 10)
    assert fields[b"ratelimit"] == b'"quota";r=0;t=3'
    assert fields[b"x-ratelimit-reset-tokens"] == b"3s"
    assert fields[b"x-tollkeeper-tokens-remaining"] == b"0"


def test_credits_that_do_not_cover_a_call_are_told_without_what_is_held() -> None:
    assert refused(Verdict.INSUFFICIENT_CREDITS, LimitKind.CREDITS, 2, 5) == {
        b"x-tollkeeper-credits-remaining": b"3"
    }


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (Verdict.QUOTA_EXCEEDED, LimitKind.QUOTA),  # debt that was carried, or a strict plan
        (Verdict.QUOTA_HELD, LimitKind.QUOTA),
        (Verdict.CONCURRENCY_LIMITED, LimitKind.CONCURRENCY),
        (Verdict.SPEND_CAP_REACHED, LimitKind.SPEND),
    ],
)
def test_what_is_not_known_to_be_left_is_not_told(verdict: Verdict, kind: LimitKind) -> None:
    assert refused(verdict, kind, 5, 10) == {}


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0s"), (0, "0s"), (1, "1ms"), (999, "999ms"), (1000, "1s"), (1500, "1.5s"), (8640, "8.64s"),
        (59_999, "59.999s"), (60_000, "1m0s"), (360_000, "6m0s"), (3_600_000, "1h0m0s"),
        (90_061_001, "25h1m1.001s"),
    ],
)  # fmt: skip
def test_duration(ms: int, text: str) -> None:
    assert b"%d%b" % duration(ms) == text.encode()


@given(st.integers(0, 10**10))
def test_a_duration_is_read_back_exactly(ms: int) -> None:
    units = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    parts = re.findall(r"([\d.]+)(ms|[hms])", (b"%d%b" % duration(ms)).decode())
    assert sum(round(float(number) * units[unit]) for number, unit in parts) == ms


_numbers = st.integers(0, 10**6)
_windows = st.none() | st.builds(Window, st.just(Scope.KEY), _numbers, _numbers, st.integers(0, 10**7))


@given(_windows, _windows, _numbers, st.none() | _numbers, st.none() | _numbers, st.integers(0, 10**6))
def test_fields_agree_with_each_other(  # noqa: PLR0917  # one strategy a number
    requests: Window | None,
    tokens: Window | None,
    limit: int,
    tokens_remaining: int | None,
    credits_remaining: int | None,
    wait_ms: int,
) -> None:
    made = decision(
        requests,
        tokens,
        limit=limit,
        tokens_remaining=tokens_remaining,
        credits_remaining=credits_remaining,
        until_ms=NOW + wait_ms,
    )
    fields = told(made)
    quota = (limit or None) if tokens_remaining is not None else None
    limits = {b"requests": requests, b"tokens": tokens, b"quota": quota}
    named = [name for name, one in limits.items() if one is not None]
    assert re.findall(rb'"(\w+)";r=', fields.get(b"ratelimit", b"")) == named
    assert set(re.findall(rb'"(\w+)";q=', fields.get(b"ratelimit-policy", b""))) >= set(named)
    for name, window in ((b"requests", requests), (b"tokens", tokens)):
        if window is not None:
            left = b"%d" % max(0, window.limit - window.used)
            seconds = b"%d" % math.ceil(window.reset_ms / 1000)
            assert b'"%b";r=%b;t=%b' % (name, left, seconds) in fields[b"ratelimit"]
            assert fields[b"x-ratelimit-limit-" + name] == b"%d" % window.limit
            assert fields[b"x-ratelimit-remaining-" + name] == left
            assert fields[b"x-ratelimit-reset-" + name] == b"%d%b" % duration(window.reset_ms)
    if quota is not None and tokens is None:
        assert fields[b"x-ratelimit-limit-tokens"] == b"%d" % limit
        assert fields[b"x-ratelimit-reset-tokens"] == b"%d%b" % duration(wait_ms)
    for name, left_ in ((b"tokens", tokens_remaining), (b"credits", credits_remaining)):
        told_ = fields.get(b"x-tollkeeper-%b-remaining" % name)
        assert told_ == (None if left_ is None else b"%d" % left_)


def test_an_answer_names_the_next_free_amounts_of_rolling_budgets() -> None:
    at_ms = 1_796_048_100_000
    freed = (
        FreedAmount(1, at_ms, 2_100_000_000, FLAG_MONEY, 'a "week", Überall'),
        FreedAmount(2, at_ms + 1_000, 3_000, FLAG_TOKENS, "tokens"),
    )
    value = (
        b'2.10; at="2026-11-30T14:15:00Z"; budget="a%20%22week%22,%20%C3%9Cberall", '
        b'3000; at="2026-11-30T14:15:01Z"; budget="tokens"'
    )
    assert limit_headers(Admitted(frees=freed)) == [(b"x-tollkeeper-frees", value)]
    told = dict(limit_headers(Admitted(frees=freed, tokens_remaining=7)))
    assert (told[b"x-tollkeeper-tokens-remaining"], told[b"x-tollkeeper-frees"]) == (b"7", value)
