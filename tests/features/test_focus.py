"""Charges as FOCUS 1.4 has them, held against what the specification says of each column.

The table below is written from the text of version 1.2 of the specification, with the columns of 1.4 that
name providers, not from the code: what each column must be, and which of them must be there. Readers guess a
column's type by its cells, so that no id may look like a number, and no quantity or cost like a whole one.
`make world` runs the validator of 1.2.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.text import csv as as_csv
from gateway.features.finance import focus

DAY = datetime(2026, 12, 31, tzinfo=UTC)
ROW: dict[str, Any] = {
    "start": DAY, "organization_id": 1, "organization": "Acme", "tenant_id": 2, "tenant": "Team",
    "user_id": 3, "user": "ann", "api_key_id": 4, "api_key": "server", "project_id": 17, "project": None,
    "service_id": 5, "service": "chat", "model": "gpt-4o", "requests": 6, "refused": 1, "input": 100,
    "cache_read": 20, "cache_write": 0, "output": 30, "reasoning": 0, "tokens": 150, "credits": 0, "units": 6,
    "cost": Decimal("0.354000001000000000"), "currency": "USD", "estimated": 0, "unpriced": 0,
    "tags": {},
}  # fmt: skip
NOBODY = {
    "user_id": None, "user": None, "api_key_id": None, "api_key": None, "project_id": None, "tenant": None,
    "service_id": None, "service": None, "model": None, "tokens": 0, "input": 0, "cache_read": 0, "output": 0,
    "cost": Decimal(0),
}  # fmt: skip

# Sections "Content constraints" and "Column requirements" of version 1.2.
MANDATORY = [
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost",
    "HostProviderName", "PricingQuantity", "PricingUnit", "ServiceCategory", "ServiceName",
    "ServiceProviderName",
]  # fmt: skip
# There where a provider has subaccounts, tags, measured use, regions, priced units and named resources.
CONDITIONAL = [
    "CommitmentDiscountStatus", "ConsumedQuantity", "ConsumedUnit", "PricingCategory", "RegionId",
    "RegionName", "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuMeter", "SkuPriceDetails",
    "SkuPriceId", "SubAccountId", "SubAccountName", "Tags",
]  # fmt: skip
RECOMMENDED = ["ChargeFrequency", "InvoiceId", "ServiceSubcategory"]
NOT_NULL = {*MANDATORY, "ServiceSubcategory", "ChargeFrequency"} - {"ChargeClass"}
# Null only for taxes, credits or corrections, of which there are none here.
NOT_NULL_OF_USAGE = {"ConsumedQuantity", "ConsumedUnit", "PricingCategory", "SkuId", "ResourceId"}
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(E-?[0-9]+)?")
INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def one_of(*allowed: str) -> Callable[[str], bool]:
    return lambda text: text in allowed


def a_flat_object(text: str) -> bool:
    read = json.loads(text)
    return isinstance(read, dict) and not any(isinstance(value, dict | list) for value in read.values())


FORMATS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "PricingQuantity", "ConsumedQuantity"),
        DECIMAL.fullmatch,
    ),
    **dict.fromkeys(
        ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"), INSTANT.fullmatch
    ),
    "BillingCurrency": re.compile("[A-Z]{3}").fullmatch,
    "ChargeCategory": one_of("Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    "ChargeClass": one_of("Correction"),
    "ChargeFrequency": one_of("One-Time", "Recurring", "Usage-Based"),
    "PricingCategory": one_of("Standard", "Dynamic", "Committed", "Other"),
    "ServiceCategory": one_of("AI and Machine Learning", "Other"),
    "Tags": a_flat_object,
    **dict.fromkeys(("PricingUnit", "ConsumedUnit"), one_of("Tokens", "Requests")),
}
# Each subcategory has one category.
PARENTS = {"Generative AI": "AI and Machine Learning", "Other (Other)": "Other"}


def charged(**over: Any) -> dict[str, str]:
    """A charge as it is read from the file; a null is an empty cell."""
    said = {"since": DAY - timedelta(days=9), "until": DAY + timedelta(days=9), "seller": ""}
    options = {name: over.pop(name, default) for name, default in said.items()}
    charge = focus.focus_charge({**ROW, **over}, **options)
    [row] = csv.DictReader(io.StringIO(as_csv(focus.FOCUS_COLUMNS, [charge], head=True).decode()))
    return row


def test_the_columns_are_those_of_the_specification() -> None:
    assert sorted(focus.FOCUS_COLUMNS) == sorted([*MANDATORY, *CONDITIONAL, *RECOMMENDED])
    assert list(charged()) == list(focus.FOCUS_COLUMNS)
    assert all(re.fullmatch("([A-Z][a-z]+)+", name) and len(name) <= 50 for name in focus.FOCUS_COLUMNS)


def test_version_1_2_names_the_provider_and_the_publisher() -> None:
    columns = focus.VERSIONS["1.2"]
    assert set(columns) ^ set(focus.FOCUS_COLUMNS) == {
        "ProviderName", "PublisherName", "ServiceProviderName", "HostProviderName",
    }  # fmt: skip
    charge = focus.focus_charge(ROW, since=DAY, until=DAY + timedelta(days=1), seller="Gate Ltd")
    [row] = csv.DictReader(io.StringIO(as_csv(columns, [charge], head=True).decode()))
    assert (row["ProviderName"], row["PublisherName"]) == ("Gate Ltd", "Gate Ltd")


@pytest.mark.parametrize(
    "over",
    [
        {},
        NOBODY,
        {"cost": Decimal("1E-9")},
        {"cost": Decimal("12345678901.123456789")},
        {"currency": "EUR", "start": datetime(2027, 1, 1, tzinfo=UTC)},
        {"project": "other", "project_id": None},
    ],
)
def test_every_cell_is_what_its_column_must_be(over: dict[str, Any]) -> None:
    row = charged(**over)
    for name in NOT_NULL | NOT_NULL_OF_USAGE:
        assert row[name].strip(), name
    for name, fits in FORMATS.items():
        assert not row[name] or fits(row[name]), (name, row[name])
    assert PARENTS[row["ServiceSubcategory"]] == row["ServiceCategory"]
    # Pairs: the one is null where the other is.
    for one, other in (
        ("SubAccountId", "SubAccountName"),
        ("ResourceId", "ResourceName"),
        ("ResourceId", "ResourceType"),
        ("SkuId", "SkuMeter"),
        ("PricingQuantity", "PricingUnit"),
        ("ConsumedQuantity", "ConsumedUnit"),
        ("RegionId", "RegionName"),
    ):
        assert bool(row[one]) == bool(row[other]), (one, other)
    assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    # No charge is calculated from another, and no discount is told apart.
    assert row["BilledCost"] == row["EffectiveCost"] == row["ListCost"] == row["ContractedCost"]
    # Nothing stands for nothing but an empty cell.
    assert row["CommitmentDiscountStatus"] == row["InvoiceId"] == ""
    for name in ("BillingAccountId", "SubAccountId", "ResourceId", "SkuId"):
        assert not DECIMAL.fullmatch(row[name]), name
    for name in ("PricingQuantity", "ConsumedQuantity", "BilledCost"):
        assert "." in row[name], name
    assert not {"None", "null", "NULL", "Not Applicable", " "} & set(row.values())


def test_costs_have_every_digit_and_no_exponent() -> None:
    assert charged()["BilledCost"] == "0.354000001"
    assert charged(cost=Decimal("1E-9"))["BilledCost"] == "0.000000001"
    assert charged(cost=Decimal("1E+3"))["BilledCost"] == "1000.0"
    assert charged(cost=Decimal("-0.5"))["BilledCost"] == "-0.5"


def test_a_charge_lies_within_its_day_its_month_and_what_was_asked_for() -> None:
    row = charged()
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == (
        "2026-12-31T00:00:00Z",
        "2027-01-01T00:00:00Z",
    )
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == (
        "2026-12-01T00:00:00Z",
        "2027-01-01T00:00:00Z",
    )
    row = charged(since=DAY + timedelta(hours=5), until=DAY + timedelta(hours=7))
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == (
        "2026-12-31T05:00:00Z",
        "2026-12-31T07:00:00Z",
    )


def test_what_callers_name_is_no_formula_and_stays_in_its_cell() -> None:
    row = charged(organization="=1+1", tenant="+cmd", api_key="@sum", service="-x", model="=m", user='="a"')
    for name in ("BillingAccountName", "SubAccountName", "ResourceName", "ServiceName", "SkuId"):
        assert row[name].startswith("'"), name
    assert json.loads(row["Tags"]) == {"user": '="a"', "project": "17", "model": "=m"}


def test_tags_of_calls_yield_to_user_project_and_model() -> None:
    row = charged(tags={"feature": "search", "model": "made-up"})
    assert json.loads(row["Tags"]) == {"feature": "search", "user": "ann", "project": "17", "model": "gpt-4o"}


def test_who_sells_is_named_and_what_is_no_model_is_counted_in_requests() -> None:
    row = charged(**{**NOBODY, "seller": "Gate Ltd", "service_id": 5, "service": "sms", "api_key_id": 4})
    named = ("InvoiceIssuerName", "ServiceProviderName", "HostProviderName")
    assert {row[name] for name in named} == {"Gate Ltd"}
    assert (row["PricingQuantity"], row["PricingUnit"], row["SkuId"]) == ("6.0", "Requests", "sms")
    assert charged()["ServiceProviderName"] == "Tollkeeper"
    assert charged(model=None)["ServiceCategory"] == charged()["ServiceCategory"], (
        "a service has one category"
    )
    assert [charged()[name] for name in ("ResourceId", "ResourceType")] == ["api-key/4", "API key"]
    row = charged(**{**NOBODY, "service_id": 9})
    assert [row[name] for name in ("ResourceId", "ResourceType", "SubAccountName")] == [
        "service/9",
        "Service",
        "tenant 2",
    ]
