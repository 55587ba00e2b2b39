"""Budgets as they are said: what is wrong with one, field by field, and what it is for calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.budgets import (
    MONEY_MAX,
    Budget,
    read_budget,
    wrong_amount,
    wrong_raise,
    wrong_window,
)
from gateway.core.model import INTEGER_MAX

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SAID: dict[str, Any] = {"unit": "money", "amount": Decimal("12.50"), "interval": "month"}
STORED: dict[str, Any] = {
    "id": 7, "name": "all", "unit": "money", "amount": Decimal("12.5"), "interval": "month",
    "time_zone": "Europe/Berlin", "anchor_day": 31, "mode": "audit", "on_exhausted": "cut", "tenant_id": None,
    "user": None, "api_key_id": None, "project_id": None, "model": None, "service_id": None, "each": None,
    "created_at": NOW, "raised_to": None, "raised_until": None, "hold": None,
}  # fmt: skip


def wrong(**over: Any) -> list[str]:
    return [field for field, _ in wrong_window({**SAID, **over})]


@pytest.mark.parametrize(
    ("unit", "amount"),
    [
        ("money", Decimal("0.000000001")), ("money", Decimal(MONEY_MAX)), ("money", Decimal("1.500000000")),
        ("tokens", 1), ("tokens", INTEGER_MAX), ("requests", 3),
    ],
)  # fmt: skip
def test_amounts_that_are_counted_exactly_are_right(unit: str, amount: object) -> None:
    assert list(wrong_amount(unit, amount, "amount")) == []


@pytest.mark.parametrize(
    ("unit", "amount"),
    [
        ("money", Decimal(0)), ("money", Decimal("0.0000000001")), ("money", Decimal("9000000.000000001")),
        ("money", 5), ("tokens", 0), ("tokens", INTEGER_MAX + 1), ("tokens", Decimal(5)), ("requests", 0),
    ],
)  # fmt: skip
def test_amounts_that_are_not_are_wrong(unit: str, amount: object) -> None:
    assert [field for field, _ in wrong_amount(unit, amount, "amount")] == ["amount"]


@pytest.mark.parametrize("interval", ["month", "quarter", "year"])
def test_an_anchor_is_a_day_of_a_month(interval: str) -> None:
    assert wrong(interval=interval, anchor_day=31) == []


@pytest.mark.parametrize(("anchor", "found"), [(1, []), (7, []), (8, ["anchor_day"])])
def test_of_a_week_an_anchor_is_one_of_its_days(anchor: int, found: list[str]) -> None:
    assert wrong(interval="week", anchor_day=anchor) == found


@pytest.mark.parametrize("interval", ["hour", "day", "total"])
def test_other_intervals_have_no_anchor(interval: str) -> None:
    assert wrong(interval=interval) == wrong(interval=interval, anchor_day=1) == []
    assert wrong(interval=interval, anchor_day=2) == ["anchor_day"]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia"])
def test_time_zones_are_known_by_their_names(zone: str) -> None:
    assert wrong(time_zone=zone) == []


@pytest.mark.parametrize(
    "zone", ["", "europe/berlin", "CEST+1", "../../etc/passwd", "localtime", "Mars/Base"]
)
def test_what_is_no_name_of_a_zone_is_wrong(zone: str) -> None:
    assert wrong(time_zone=zone) == ["time_zone"]


@pytest.mark.parametrize(
    ("each", "fixed"), [("user", {"user": "ada"}), ("key", {"api_key_id": 4}), ("project", {"project_id": 0})]
)
def test_nobody_is_each_of_a_kind_and_one_of_it(each: str, fixed: dict[str, Any]) -> None:
    assert wrong(each=each, **fixed) == ["each"]
    assert wrong(each=each) == wrong(**fixed) == []


def test_a_stored_budget_is_read_in_what_is_counted() -> None:
    assert read_budget(STORED) == Budget(
        7, "all", "money", 12_500_000_000, "month", "Europe/Berlin", 31, enforce=False, cut=True,
        created_ms=round(NOW.timestamp() * 1000),
    )  # fmt: skip
    tokens = {
        **STORED, "unit": "tokens", "amount": Decimal(3000), "mode": "enforce", "on_exhausted": "finish",
        "tenant_id": 2, "user": "ada", "api_key_id": 4, "project_id": 0, "model": "gpt-*", "service_id": 5,
        "each": "session", "hold": "maximum",
        "raised_to": Decimal(4000), "raised_until": NOW + timedelta(seconds=1),
    }  # fmt: skip
    assert read_budget(tokens) == Budget(
        7, "all", "tokens", 3000, "month", "Europe/Berlin", 31, enforce=True, cut=False, tenant_id=2,
        user="ada", api_key_id=4, project_id=0, model="gpt-*", service_id=5, each="session",
        created_ms=round(NOW.timestamp() * 1000), raised_to=4000,
        raised_until_ms=round(NOW.timestamp() * 1000) + 1000, hold="maximum",
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
def test_a_raise_is_to_no_less_and_has_its_end_ahead(amount: object, later: int, found: list[str]) -> None:
    until = NOW + timedelta(seconds=later)
    assert [field for field, _ in wrong_raise(read_budget(STORED), amount, until, NOW)] == found
