"""Budgets as they are said: what is wrong with one, field by field, and what it is for calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.budget_amounts import (
    MONEY_MAX,
    format_amount,
    read_budget,
    wrong_amount,
    wrong_override,
    wrong_raise,
    wrong_window,
)
from gateway.core.accounts.budgets import Budget, PersonalOverride, PersonalRaise, owner_of
from gateway.core.model import INTEGER_MAX


def test_amount_is_shown_in_its_unit() -> None:
    assert format_amount("money", 12_500_000_000, "EUR") == "12.5 EUR"
    assert format_amount("money", 1, "EUR") == "0.000000001 EUR"
    assert format_amount("money", 200_000_000_000, "USD") == "200 USD"
    assert format_amount("tokens", 3000, "USD") == "3000 tokens"


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SAID: dict[str, Any] = {"unit": "money", "amount": Decimal("12.50"), "interval": "month"}
STORED: dict[str, Any] = {
    "id": 7, "name": "all", "unit": "money", "amount": Decimal("12.5"), "interval": "month",
    "time_zone": "Europe/Berlin", "anchor_day": 31, "mode": "audit", "on_exhausted": "cut", "tenant_id": None,
    "user": None, "api_key_id": None, "project_id": None, "model": None, "service_id": None, "each": None,
    "created_at": NOW, "raised_to": None, "raised_until": None, "hold": None,
    "tool": None, "server": None,
}  # fmt: skip


def wrong(**over: Any) -> list[str]:
    return [field for field, _ in wrong_window({**SAID, **over})]


@pytest.mark.parametrize(
    ("unit", "amount"),
    [
        ("money", Decimal("0.000000001")), ("money", Decimal(MONEY_MAX)), ("money", Decimal("1.500000000")),
        ("money", Decimal("9999999999999.99")), ("money", Decimal("999999999999.999")),
        ("tokens", 1), ("tokens", INTEGER_MAX), ("requests", 3),
    ],
)  # fmt: skip
def test_amount_is_valid_if_counted_exactly(unit: str, amount: object) -> None:
    assert list(wrong_amount(unit, amount, "amount")) == []


@pytest.mark.parametrize(
    ("unit", "amount"),
    [
        ("money", Decimal(0)), ("money", Decimal("0.0000000001")), ("money", Decimal("9000000.000000001")),
        ("money", Decimal("10000000000000.01")), ("money", Decimal(MONEY_MAX + 1)),
        ("money", Decimal("9000000.0001")),
        ("money", 5), ("tokens", 0), ("tokens", INTEGER_MAX + 1), ("tokens", Decimal(5)), ("requests", 0),
    ],
)  # fmt: skip
def test_amount_is_invalid_if_not_counted_exactly(unit: str, amount: object) -> None:
    assert [field for field, _ in wrong_amount(unit, amount, "amount")] == ["amount"]


@pytest.mark.parametrize("interval", ["month", "quarter", "year"])
def test_anchor_of_month_is_day_from_1_to_31(interval: str) -> None:
    assert wrong(interval=interval, anchor_day=31) == []


@pytest.mark.parametrize(("anchor", "found"), [(1, []), (7, []), (8, ["anchor_day"])])
def test_anchor_of_week_is_day_from_1_to_7(anchor: int, found: list[str]) -> None:
    assert wrong(interval="week", anchor_day=anchor) == found


@pytest.mark.parametrize("interval", ["hour", "day", "total"])
def test_anchor_is_invalid_for_other_intervals(interval: str) -> None:
    assert wrong(interval=interval) == wrong(interval=interval, anchor_day=1) == []
    assert wrong(interval=interval, anchor_day=2) == ["anchor_day"]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia"])
def test_time_zone_is_valid_by_name(zone: str) -> None:
    assert wrong(time_zone=zone) == []


@pytest.mark.parametrize(
    "zone", ["", "europe/berlin", "CEST+1", "../../etc/passwd", "localtime", "Mars/Base"]
)
def test_time_zone_is_invalid_without_name(zone: str) -> None:
    assert wrong(time_zone=zone) == ["time_zone"]


@pytest.mark.parametrize(
    ("each", "fixed"), [("user", {"user": "ada"}), ("key", {"api_key_id": 4}), ("project", {"project_id": 0})]
)
def test_each_is_invalid_beside_its_own_field(each: str, fixed: dict[str, Any]) -> None:
    assert wrong(each=each, **fixed) == ["each"]
    assert wrong(each=each) == wrong(**fixed) == []


def test_read_budget_counts_amounts_of_row() -> None:
    assert read_budget(STORED) == Budget(
        7, "all", "money", 12_500_000_000, "month", "Europe/Berlin", 31, enforce=False, cut=True,
        created_ms=round(NOW.timestamp() * 1000),
    )  # fmt: skip
    tokens = {
        **STORED, "unit": "tokens", "amount": Decimal(3000), "mode": "enforce", "on_exhausted": "finish",
        "tenant_id": 2, "user": "ada", "api_key_id": 4, "project_id": 0, "model": "gpt-*", "service_id": 5,
        "each": "session", "hold": "maximum", "tool": "search", "server": "github",
        "raised_to": Decimal(4000), "raised_until": NOW + timedelta(seconds=1),
    }  # fmt: skip
    assert read_budget(tokens) == Budget(
        7, "all", "tokens", 3000, "month", "Europe/Berlin", 31, enforce=True, cut=False, tenant_id=2,
        user="ada", api_key_id=4, project_id=0, model="gpt-*", service_id=5, each="session",
        created_ms=round(NOW.timestamp() * 1000), raised_to=4000,
        raised_until_ms=round(NOW.timestamp() * 1000) + 1000, hold="maximum", tool="search", server="github",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("amount", "later", "found"),
    [
        (Decimal("12.5"), 1, []),
        (Decimal(20), 1, []),
        (Decimal("12.49"), 1, ["amount"]),
        (Decimal(20), 0, ["until"]),
        (20, -1, ["amount", "until"]),
    ],
)
def test_raise_is_at_least_the_amount_and_ends_in_future(
    amount: object, later: int, found: list[str]
) -> None:
    until = NOW + timedelta(seconds=later)
    assert [field for field, _ in wrong_raise(read_budget(STORED), amount, until, NOW)] == found


ADA = owner_of("ada")


def test_read_budget_counts_amounts_of_raises() -> None:
    row = {**STORED, "each": "user", "raises": {ADA: ("20.5", 7)}}
    assert read_budget(row).raises == {ADA: PersonalRaise(20_500_000_000, 7)}


@pytest.mark.parametrize(
    ("each", "who", "amount", "found"),
    [
        ("user", "ada", Decimal(30), []),
        ("user", "ada", Decimal("29.99"), ["amount"]),
        (None, "ada", Decimal(30), ["who"]),
        ("key", "7", Decimal(30), []),
        ("key", "07", Decimal(30), ["who"]),
        ("key", "laptop", Decimal(30), ["who"]),
        ("project", "0", Decimal(30), []),
        ("project", "-1", Decimal(30), ["who"]),
        ("session", "s-1", Decimal(30), []),
    ],
)
def test_raise_of_owner_needs_value_of_each_and_present_limit(
    each: str | None, who: str, amount: Decimal, found: list[str]
) -> None:
    """Of 12.5 a month, which everybody has as 30 until tomorrow."""
    tomorrow = NOW + timedelta(days=1)
    budget = read_budget({**STORED, "each": each, "raised_to": Decimal(30), "raised_until": tomorrow})
    assert [field for field, _ in wrong_raise(budget, amount, tomorrow, NOW, who)] == found


@pytest.mark.parametrize(
    ("who", "now_s", "amount", "found"),
    [
        ("ada", 9, 599, ["amount"]),
        ("ada", 9, 799, ["amount"]),
        ("ada", 9, 800, []),
        ("ada", 10, 599, ["amount"]),  # hers is over: everybody has 600 until 20
        ("ada", 10, 600, []),
        ("ada", 20, 500, []),
        ("bob", 9, 600, []),
        ("bob", 9, 599, ["amount"]),
    ],
)
def test_raise_of_owner_is_not_below_its_raise_in_force(
    who: str, now_s: int, amount: int, found: list[str]
) -> None:
    budget = Budget(
        1, "each", "requests", 500, "day", each="user", raised_to=600, raised_until_ms=20_000,
        raises={owner_of("ada"): PersonalRaise(800, 10_000)},
    )  # fmt: skip
    now = datetime.fromtimestamp(now_s, UTC)
    assert [field for field, _ in wrong_raise(budget, amount, now + timedelta(seconds=1), now, who)] == found


@pytest.mark.parametrize(
    ("amount", "raised", "found"),
    [
        (5, 4, ["amount"]), (5, 5, []), (5, 19, []),  # below everybody's 20, and above his own
        (50, 49, ["amount"]), (50, 50, []),
        (None, INTEGER_MAX, ["amount"]),  # more than no limit there is not
    ],
)  # fmt: skip
def test_raise_of_owner_is_not_below_its_override(amount: int | None, raised: int, found: list[str]) -> None:
    overrides = {owner_of("ada"): PersonalOverride(amount)}
    budget = Budget(1, "each", "requests", 20, "day", each="user", overrides=overrides)
    later = NOW + timedelta(days=1)
    assert [field for field, _ in wrong_raise(budget, raised, later, NOW, "ada")] == found
    assert [field for field, _ in wrong_raise(budget, 19, later, NOW, "bob")] == ["amount"]


@pytest.mark.parametrize(
    ("each", "unit", "who", "amount", "seconds", "found"),
    [
        ("user", "tokens", "ada", 0, None, []),
        ("user", "tokens", "ada", None, 1, []),
        ("user", "tokens", "ada", INTEGER_MAX, 1, []),
        ("user", "money", "ada", Decimal(0), 1, []),
        ("user", "money", "ada", 0, 1, ["amount"]),
        ("user", "money", "ada", Decimal("-0.01"), 1, ["amount"]),
        ("user", "tokens", "ada", -1, 1, ["amount"]),
        ("user", "tokens", "ada", INTEGER_MAX + 1, 1, ["amount"]),
        ("user", "tokens", "ada", Decimal(5), 1, ["amount"]),
        ("user", "tokens", "ada", 5, 0, ["until"]),
        ("", "tokens", "ada", 5, 1, ["who"]),
        ("tenant", "tokens", "7", 5, 1, []),
        ("tenant", "tokens", "ada", 5, 1, ["who"]),
        ("key", "tokens", "07", 5, 1, ["who"]),
        ("user", "tokens", "group:7", 5, 1, ["who"]),
        ("user", "tokens", "groups", 5, 1, []),
    ],
)
def test_override_names_the_field_that_is_wrong(  # noqa: PLR0917  # columns of a table
    each: str, unit: str, who: str, amount: object, seconds: int | None, found: list[str]
) -> None:
    until = None if seconds is None else NOW + timedelta(seconds=seconds)
    budget = Budget(1, "each", unit, 20, "day", each=each)
    assert [field for field, _ in wrong_override(budget, amount, until, NOW, who)] == found


@pytest.mark.parametrize(
    ("each", "kind", "found"),
    [
        ("user", "user", []), ("key", "api_key", []), ("project", "project", []), ("tenant", "tenant", []),
        ("user", "tenant", ["who"]), ("key", "user", ["who"]), ("session", "user", ["who"]),
        ("tag:team", "user", ["who"]), ("user", "", ["who"]), ("session", "", ["who"]), ("", "user", ["who"]),
    ],
)  # fmt: skip
def test_override_of_a_group_is_of_the_kind_that_each_is(each: str, kind: str, found: list[str]) -> None:
    budget = Budget(1, "each", "tokens", 20, "day", each=each)
    assert [field for field, _ in wrong_override(budget, 5, None, NOW, "group:7", kind=kind)] == found


def test_overrides_of_a_row_are_read_by_owner() -> None:
    ada, bob = owner_of("ada"), owner_of("bob")
    row = {**STORED, "each": "user", "overrides": {ada: ["20.5", None], bob: [None, 7]}}
    assert read_budget(row).overrides == {
        ada: PersonalOverride(20_500_000_000, 0),
        bob: PersonalOverride(None, 7),
    }
