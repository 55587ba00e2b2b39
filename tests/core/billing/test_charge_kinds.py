"""Kinds of charges: what is made of their rows fits them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.core.billing.charge_kinds import CHARGE_KINDS, FEE_DISCOUNTS, SERVICE_DISCOUNTS, USES, kind_of
from gateway.core.billing.charges import COMMITTED, KINDS
from gateway.core.billing.invoice import _ORDER

TABLES = (Path(__file__).parents[3] / "persistence" / "schema" / "tables.sql").read_text(encoding="utf-8")


def test_order_of_invoice_lines_has_each_kind_of_charge_once() -> None:
    assert tuple(kind for _, kind in _ORDER if kind is not None) == CHARGE_KINDS


def test_charge_kind_of_a_shared_name_depends_on_the_source() -> None:
    assert kind_of("discount", "subscription_segment") is FEE_DISCOUNTS
    assert kind_of("discount", "usage_tier") is SERVICE_DISCOUNTS
    assert kind_of("usage", "usage_tier") is kind_of("usage", "usage_told") is USES
    assert len({kind.basis for kind in CHARGE_KINDS}) == len(CHARGE_KINDS)


def test_fees_tokens_use_and_discounts_count_toward_a_minimum() -> None:
    assert set(COMMITTED) == {"subscription", "discount", "early_use", "overage", "usage"}


@pytest.mark.parametrize(
    ("table", "more"), [("charge", set[str]()), ("invoice_line", {"credits_consumed", "tax"})]
)
def test_check_of_the_table_allows_exactly_the_kinds(table: str, more: set[str]) -> None:
    columns = TABLES.partition(f"CREATE TABLE {table} (")[2]
    [check] = re.findall(r"CHECK \(kind IN \(([^)]*)\)\)", columns.partition(");\n")[0])
    assert {*re.findall(r"'(\w+)'", check)} == {*KINDS} | more
