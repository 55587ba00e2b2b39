"""Bodies about money that are right but for a value or two: taken as they are said, or refused by name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.admin.conftest import Api
from tests.admin.test_catalogue import day, plan
from tests.admin.test_invoices import acme, draft
from tests.search import examples

# Where to, and how many values in it are others than they should be.
Case = tuple[int, list[tuple[int, Any]]]
Place = tuple[str | int, ...]

NUMBERS = [0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, 1.0, 1e308]
DIGITS = [
    *("", " ", "0", "-0", "-5", "+1", "1 ", ".5", "5.", "1e5", "0x10", "1_000", "NaN", "Infinity", "0.00"),
    *("0.000000001", "0.0000000001", "999999999999.999999999", "1000000000000", "١٢", "１２", "12٫5", "O"),
]
DAYS = [
    *("0001-01-01", "1969-12-31", "1970-01-01", "2026-02-29", "2026-13-01", "2999-12-31", "3000-01-01"),
    *("9999-12-31", "２０２６-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59"),
    *("2026-04-01T24:00:00Z", "2016-12-31T23:59:60Z", "1970-01-01T00:00:00Z", "2999-12-31T23:59:59Z"),
]
WORDS = [
    *("x", "а", "\x00", "a\x00b", "\u200b1", "a" * 200, "a" * 201, "𝟙", "usd", "XAU", "XTS", "KWD", "now"),
    *("tenant:", "tenant:²", "organization:99999999999999999999", "{" + 32 * "0" + "}", 36 * "-"),
]
SHAPES: list[Any] = [
    *(None, True, False, [], {}, [None], [[]], {"a": 1}, [1, 2], ["x"] * 3, {"input": 10**12}, {"x": "0"}),
    *([{"position": 1, "amount": "0.001"}], [{"position": 2**53 - 1}], [{"above": 0, "input": "1"}]),
    {"tiers": [{"up_to": None, "unit_price": "999999999999.999999999"}]},
    {"threshold": 2**53 - 1, "credits": 2**53 - 1, "unit_cost": "999999999999.999999999"},
]
HOSTILE = st.sampled_from([*NUMBERS, *DIGITS, *DAYS, *WORDS, *SHAPES])
CASES = st.tuples(
    st.integers(0, 99), st.lists(st.tuples(st.integers(0, 99), HOSTILE), min_size=1, max_size=3)
)
TAKEN, REFUSED = {200, 201, 202}, {400, 404, 409, 422}


def another() -> str:
    return str(uuid.uuid4())


# How, where to, and a body that is right and makes something new.
Target = tuple[str, str, Callable[[], dict[str, Any]]]


async def targets(api: Api) -> list[Target]:
    """What is asked of charges and money, and of what is sold."""
    ids = await acme(api)
    organization, tenant = ids["organization"], ids["tenant"]
    starter = await plan(api, "Starter", tokens=2_000_000)
    final = (await draft(api, ids))["id"]
    assert (await api.post(f"invoices/{final}/finalize")).status == 200
    paid = await api.post(f"invoices/{final}/payments", {"amount": "9.00", "reference": "first"})
    assert paid.status == 200, paid.raw
    [(request,)] = api.rows("SELECT request_id::text FROM feature_usage LIMIT 1")
    return [
        ("POST", "tax-rates", lambda: {
            "organization_id": organization, "rate": "0.19", "effective_from": day(0), "category": "standard",
        }),
        ("POST", "credit-additions", lambda: {
            "organization_id": organization, "credits_added": 5, "added_by_id": None, "remark": "r",
            "category": "paid", "priority": 1, "expires_at": f"{day(5)}T00:00:00Z", "unit_cost": "1",
            "timestamp": f"{day(-1)}T00:00:00Z", "invoicing": "next",
        }),
        ("POST", "prices", lambda: {
            "model": another(), "currency": "USD", "effective_from": f"{day(-1)}T00:00:00Z", "input": "1",
            "request": "1", "tools": {"x": "1"}, "context_tiers": [{"above": 5, "input": "1"}],
            "service_tiers": {"batch": "0.5"}, "source": "operator", "match": "exact", "provider": "p",
        }),
        ("POST", "exchange-rates", lambda: {
            "currency": "EUR", "base": "USD", "rate": "0.9",
            "effective_from": f"2026-01-01T00:00:00.{uuid.uuid4().int % 10**6:06d}Z",
        }),
        ("POST", "events", lambda: {
            "specversion": "1.0", "type": "use", "source": "s", "id": another(),
            "subject": f"tenant:{tenant}", "time": f"{day(-1)}T00:00:00Z", "data": {
                "service": "rerank", "units": 1, "usage": {"input": 1, "tools": {"x": 1}}, "model": "m",
                "user": "u", "project_id": 1, "service_tier": "x",
            },
        }),
        ("POST", "organization-subscriptions", lambda: {
            "organization_id": organization, "plan_id": starter["id"], "start_date": day(-3),
            "end_date": day(40), "billing_interval": "monthly", "billing": "advance", "trial_end": day(1),
            "negotiated_cost": "5", "overage_unit_price": "1", "discount_rate": "0.1",
            "discount_end": day(9), "minimum_commitment": "7",
        }),
        ("POST", "invoices", lambda: {
            "organization_id": organization, "period_start": "2026-07-01", "period_end": "2026-08-01",
        }),
        ("POST", "invoices", lambda: {
            "organization_id": organization, "source": "credit_addition", "source_id": 1,
        }),
        ("POST", f"invoices/{final}/credit-note", lambda: {"lines": [{"position": 1, "amount": "0.01"}]}),
        ("POST", f"invoices/{final}/payments", lambda: {"amount": "0.01", "reference": another()}),
        ("POST", "payments/1/reverse", lambda: {"amount": "0.01", "reference": another()}),
        ("POST", "amendments", lambda: {
            "request_id": request, "reason": "r", "organization_id": organization, "direction": "OUT",
            "tokens": 1, "credits": 1, "units": 1, "amount": "1",
        }),
        ("PATCH", f"organizations/{organization}", lambda: {
            "credit_limit": 5, "spend_cap": "5", "tax_rate": "0.1", "due_days": 5, "credit_unit_cost": "1",
        }),
        ("POST", f"tenants/{tenant}/recharge", lambda: {"amount": 1}),
        ("POST", f"tenants/{tenant}/adjust", lambda: {"amount": 1, "direction": "IN", "reason": "x"}),
        ("PATCH", f"subscription-plans/{starter['id']}", lambda: {"monthly_cost": "1", "annual_cost": "1"}),
        *await sold(api, ids),
    ]  # fmt: skip


async def sold(api: Api, ids: dict[str, int]) -> list[Target]:
    """What is asked of plans, services and who buys them."""
    [model] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    tiers = {"tiers": [{"up_to": None, "unit_price": "1"}]}
    return [
        ("POST", "subscription-plans", lambda: {
            "name": another(), "monthly_cost": "1", "annual_cost": "1", "currency": "USD",
            "feature_access": [], "token_plan_id": None,
        }),
        ("POST", "token-plans", lambda: {
            "name": another(), "total_amount": 10, "reset_interval": "monthly", "overage_policy": "bill",
            "overage_unit_price": "1", "rollover_max": 5, "time_zone": "UTC", "anchor_day": 1,
            "weights": {"output": "1"}, "currency": "USD",
        }),
        ("POST", "services", lambda: {
            "name": "x", "key": f"k{uuid.uuid4().hex}", "credits": 1, "service_type": "Pay-As-You-Go",
            "business_model_id": model["id"], "pricing": tiers,
        }),
        ("POST", "organization-services", lambda: {
            "organization_id": ids["organization"], "service_id": ids["service"], "negotiated_credits": 1,
            "business_model_id": model["id"], "pricing": tiers,
        }),
        ("POST", "organizations", lambda: {
            "name": another(), "currency": "USD", "credit_limit": 5, "spend_cap": "5", "tax_rate": "0.1",
            "due_days": 5, "country": "DE", "tax_number": "DE1", "credit_unit_cost": "1", "auto_top_up": {
                "threshold": 1, "credits": 2, "unit_cost": "1", "invoicing": "now", "monthly_max": 3,
            },
        }),
    ]  # fmt: skip


def places(body: dict[str, Any], root: Place = ()) -> Iterator[Place]:
    """Where a body says something."""
    for name, value in body.items():
        yield (*root, name)
        if isinstance(value, dict):
            yield from places(value, (*root, name))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from places(value[0], (*root, name, 0))


def changed(body: dict[str, Any], hostile: list[tuple[int, Any]]) -> dict[str, Any]:
    """The body with other values: each at a place of it, by number."""
    found = deepcopy(body)
    for number, value in hostile:
        here = list(places(found))
        *way, last = here[number % len(here)]
        at: Any = found
        for name in way:
            at = at[name]
        at[last] = deepcopy(value)
    return found


def same(said: Any, told: Any) -> bool:
    """Whether an answer tells what was said; what is null may have become a default."""
    if said is None or said == told:
        return True
    if isinstance(said, str) and isinstance(told, str):
        for reads in (Decimal, datetime.fromisoformat, uuid.UUID):
            try:
                return bool(reads(said) == reads(told))
            except (InvalidOperation, ValueError, TypeError):
                continue
    return isinstance(said, dict | list)  # stored by its parts


def named(error: dict[str, str], sent: dict[str, Any]) -> bool:
    """Whether an error names a field: where it is of several, its message does."""
    return bool(error["field"]) or any(name in error["message"] for name in sent)


async def test_what_is_said_of_money_is_kept_or_refused_by_name(api: Api) -> None:
    asked = await targets(api)
    cases: list[Case] = []

    @given(CASES)
    @settings(max_examples=examples(500), database=None)
    @example((1, [(5, None)]))  # a priority of null
    @example((3, [(2, "a\x00b")]))  # a source that no row can hold
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    met = set()
    for number, hostile in cases:
        verb, path, make = asked[number % len(asked)]
        sent = changed(make(), hostile)
        answer = await api.call(verb, path, data=json.dumps(sent).encode())
        what = (verb, path, sent, answer.raw)
        assert answer.status in TAKEN | REFUSED, what
        met.add(answer.status)
        if answer.status == 422:
            errors = answer.json["errors"]
            assert errors, what
            assert all(named(each, sent) for each in errors), what
        elif path == "events" and answer.status in TAKEN:
            taken = answer.json
            assert taken["accepted"] + taken["duplicates"] + len(taken["rejected"]) == 1, what
            assert all(each["field"] and each["reason"] for each in taken["rejected"]), what
        elif (verb == "PATCH" and answer.status == 200) or answer.status in {201, 202}:
            told = answer.json
            assert all(same(value, told[name]) for name, value in sent.items() if name in told), what
            if path == "invoices":
                await api.delete(f"invoices/{told['id']}")
    assert met >= {200, 201, 422}


async def test_what_is_right_is_taken(api: Api) -> None:
    """Else the bodies above were refused for another reason."""
    for verb, path, make in await targets(api):
        if path not in {"invoices", "amendments"}:
            answer = await api.call(verb, path, make())
            assert answer.status in TAKEN, (path, answer.raw)
            assert path != "events" or answer.json["accepted"] == 1, answer.raw
