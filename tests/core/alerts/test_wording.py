"""Every event is said in words; other people's names stay names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.alerts.messages import (
    EVENTS,
    FACTS_MAX,
    TEST_EVENT,
    TITLE_CHARS_MAX,
    VALUE_CHARS_MAX,
    plain,
    spoken,
    worded,
)
from gateway.core.text import hidden_in

BUDGET = {
    "budget_id": 4, "budget": "Team A", "organization_id": 2, "organization": "Acme", "each": "user",
    "account": "alice",
    "unit": "money", "currency": "EUR", "used": "81.5", "amount": "100", "percent": 80, "mode": "enforce",
    "time_zone": "Europe/Berlin", "resets_at": "2026-11-30T23:00:00Z", "exhausted_at": "2026-11-24T13:00:00Z",
}  # fmt: skip


AGAIN = "It resets on 1 December 2026, 00:00 (Europe/Berlin)."
QUOTA = {
    "tenant_id": 3, "tenant": "Red", "percent": 80, "tokens_used": 8, "tokens_remaining": 2,
    "next_reset_at": "2026-05-01T00:00:00+00:00",
}  # fmt: skip
INVOICE = {"number": "INV-1", "organization": "Acme", "total_amount": "9.5", "currency": "EUR"}
SUDDEN = {
    "scope": "api_key", "api_key": "CI", "api_key_id": 9, "cost": "12", "usual": "0.5", "currency": "EUR",
    "hour": "2026-11-24T13:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "data", "said"),
    [
        (
            "quota.80",
            QUOTA,
            (
                "80 % of the tokens are used: Red. Red has used 80 % of its tokens: 8 are used, 2 remain. "
                "It resets on 1 May 2026, 00:00 (UTC)."
            ),
        ),
        (
            "tenant.blocked",
            {"tenant_id": 3},
            (
                "Blocked: tenant 3. Calls of tenant 3 are refused from now on: it was blocked as"
                " nothing remains"
                " of its tokens."
            ),
        ),
        ("tenant.unblocked", {"tenant": "Red"}, "No longer blocked: Red. Calls of Red are admitted again."),
        (
            "credits.low",
            {"organization": "Acme", "credit_balance": 9, "last_added": 100},
            "Credits are low: Acme. Acme has 9 credits left, of 100 last added.",
        ),
        ("invoice.finalized", INVOICE, "Invoice INV-1 is final. Invoice INV-1 of Acme is final: 9.5 EUR."),
        (
            "subscription.ending",
            {"organization": "Acme", "end_date": "2026-05-01"},
            "A subscription ends: Acme. The subscription of Acme ends on 2026-05-01.",
        ),
        (
            "budget.threshold",
            BUDGET,
            (
                "80 % of a budget are used: “Team A” of user alice (Acme). Of the budget “Team A” of"
                " user alice (Acme), "
                f"81.5 of 100 EUR are used, 80 % or more. {AGAIN}"
            ),
        ),
        (
            "budget.exceeded",
            BUDGET | {"account": "", "resets_at": None},
            (
                "A budget is used up: “Team A” (Acme). Of the budget “Team A” (Acme), 81.5 of 100"
                " EUR are used. "
                "Its calls are refused."
            ),
        ),
        (
            "budget.forecast",
            BUDGET,
            (
                "A budget will not last: “Team A” of user alice (Acme). At this pace the budget “Team A” of"
                f" user alice (Acme) is used up on 24 November 2026, 14:00 (Europe/Berlin): 81.5 of 100 EUR"
                f" are used. {AGAIN}"
            ),
        ),
        (
            "usage.sudden",
            SUDDEN,
            (
                "Sudden use: api key CI. The api key CI has used 12 EUR since 24 November 2026, 13:00 (UTC); "
                "in the last 7 days it was 0.5 EUR at most at this time of day."
            ),
        ),
        ("webhook.test", {"webhook_id": 3}, "A test. Messages arrive here: this one was sent to try it."),
    ],
)
def test_an_event_in_words(event: str, data: dict[str, Any], said: str) -> None:
    assert ". ".join(worded(event, data)[:2]) == said


def test_facts_are_what_is_known() -> None:
    said = worded("webhook.test", {"tenant_id": 3, "name": None, "is_blocked": True, "lines": [1]})
    assert said.facts == (("is blocked", "true"), ("tenant id", "3"))


def test_a_name_cannot_break_a_line_or_hide() -> None:
    assert plain("a\r\nBcc: b\u202e\x00") == "a Bcc: b\\u202e\\u0000"
    assert plain("x" * 1000) == "x" * (VALUE_CHARS_MAX - 1) + "…"


def test_a_moment_nobody_can_read_is_said_as_it_is() -> None:
    assert spoken("soon") == "soon"
    assert spoken("2026-11-24T13:00:00Z", "Mars/Base") == "2026-11-24T13:00:00Z"
    assert spoken(datetime(2026, 11, 4, 13, tzinfo=UTC)) == "4 November 2026, 13:00 (UTC)"


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())


@given(
    st.sampled_from((*EVENTS, TEST_EVENT, "of.another.version")),
    st.dictionaries(
        st.sampled_from([*BUDGET, "scope", "hour", "next_reset_at", "tenant"]) | st.text(), VALUES
    ),
)
def test_whatever_is_in_a_message_can_be_said(event: str, data: dict[str, Any]) -> None:
    said = worded(event, data)
    assert 0 < len(said.title) <= TITLE_CHARS_MAX
    assert len(said.facts) <= FACTS_MAX
    text = said.title + said.sentence + "".join(value for _, value in said.facts)
    assert hidden_in(text) == ""
    assert len(text.splitlines()) == 1
