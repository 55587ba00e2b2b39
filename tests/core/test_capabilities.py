"""Capabilities: which writes use one, and for whom they wait."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import pytest

from gateway.core.capabilities import CAPABILITIES, used_by, wait_reason
from gateway.core.processes import Program

# The layout and the schema of 1.0.0, and those of this version.
OLD, OLD_SCHEMA, NEW, NEW_SCHEMA = 132, "0114", 133, "0133"


def program(
    role: Literal["gateway", "keeper"], layout: int = NEW, schema: str = "", knows: tuple[str, ...] = ()
) -> Program:
    version = "1.0.0" if layout == OLD else "1.1.0"
    return Program(f"{role}-{layout}", role, version, layout, "web-1", 1.0, schema, knows)


KEEPER = program("keeper", schema=NEW_SCHEMA, knows=tuple(CAPABILITIES))
OLD_KEEPER, OLD_GATEWAY = program("keeper", OLD, OLD_SCHEMA), program("gateway", OLD)
MONEY = {"unit": "money"}


@pytest.mark.parametrize(
    ("resource", "verb", "values", "row", "names"),
    [
        ("budgets", "create", {"amount": Decimal(9_000_000)}, MONEY, []),
        ("budgets", "create", {"amount": Decimal(9_000_001)}, MONEY, ["large_budgets"]),
        ("budgets", "change", {"name": "b"}, {**MONEY, "amount": Decimal(9_000_001)}, []),
        ("budgets", "change", {"amount": 9_000_001}, {"unit": "tokens"}, []),
        (
            "budgets", "raise", {"amount": Decimal(10**12), "who": "ada"}, MONEY,
            ["large_budgets", "personal_raises"],
        ),
        ("raise-requests", "create", {"amount": "9000001"}, {**MONEY, "amount": 9_000_001, "who": "ada"}, []),
        ("raise-requests", "approve", {}, {**MONEY, "amount": Decimal(9_000_001), "who": None}, ["large_budgets"]),
        ("raise-requests", "approve", {}, {"unit": "tokens", "amount": 1, "who": "ada"}, ["personal_raises"]),
        ("budgets", "override", {"amount": None, "who": "ada"}, MONEY, ["overrides"]),
        ("budgets", "remove-override", {"who": "ada"}, MONEY, []),
        ("budgets", "set-overrides", {"overrides": []}, MONEY, []),
        (
            "budgets", "set-overrides",
            {"overrides": [{"amount": Decimal(9_000_001), "who": "ada"}, {"amount": None, "who": "group:7"}]}, MONEY,
            ["large_budgets", "overrides", "groups"],
        ),
        ("budgets", "create", {"amount": 1, "each": "tenant"}, {"unit": "tokens"}, ["tenant_budgets"]),
        ("webhooks", "create", {"events": []}, {}, ["budget_webhooks"]),
        ("webhooks", "create", {"events": ["quota.80"]}, {}, []),
        ("webhooks", "change", {"events": ["quota.80", "budget.threshold"]}, {}, ["budget_webhooks"]),
        ("webhooks", "change", {"url": "https://x"}, {}, []),
        ("prices", "amend", {"input": Decimal(1)}, {}, ["amended_prices"]),
        ("prices", "create", {"input": Decimal(1), "cache_hour": None}, {}, []),
        ("prices", "create", {"cache_hour": Decimal(0)}, {}, ["cache_prices"]),
        ("prices", "create", {"hours": [{"factor": "0.5"}]}, {}, ["hourly_prices"]),
        ("prices", "create", {"hours": []}, {}, []),
        ("tenants", "change", {"runs": {"required": True}}, {}, ["run_policies"]),
        ("tenants", "change", {"runs": None}, {}, []),
        ("organizations", "create", {"tags": []}, {}, []),
        ("organizations", "change", {"tags": ["feature"]}, {}, ["tags"]),
        ("api-keys", "create", {"tags": {"feature": "a"}}, {}, ["tags"]),
        ("budgets", "create", {"tags": {"feature": "a"}}, {}, ["tags"]),
        ("budgets", "create", {"each": "tag:feature"}, {}, ["tags"]),
        ("budgets", "create", {"each": "user", "tags": {}}, {}, []),
    ],
)  # fmt: skip
def test_used_by_names_the_capabilities_that_a_write_uses(
    resource: str, verb: str, values: dict[str, Any], row: dict[str, Any], names: list[str]
) -> None:
    assert list(used_by(resource, verb, values, row)) == names


def test_wait_reason_names_at_most_five_earlier_programs() -> None:
    one = wait_reason("large_budgets", [KEEPER, OLD_GATEWAY], NEW)
    assert one.endswith("replace these first: gateway 1.0.0 on web-1.")
    seven = wait_reason("large_budgets", [KEEPER, *[OLD_GATEWAY] * 7], NEW)
    assert (seven.count("gateway 1.0.0 on web-1"), seven.endswith(" and 2 more.")) == (5, True)


@pytest.mark.parametrize(("written", "waits"), [(0, True), (OLD, True), (NEW, False), (NEW + 1, False)])
def test_wait_reason_holds_a_capability_until_its_layout_is_taken_up(written: int, *, waits: bool) -> None:
    assert bool(wait_reason("large_budgets", [KEEPER], written)) is waits


def test_wait_reason_asks_keepers_alone_about_a_capability_with_a_schema_alone() -> None:
    assert wait_reason("budget_webhooks", [KEEPER, OLD_GATEWAY], 0) == ""
    assert "keeper 1.0.0" in wait_reason("budget_webhooks", [KEEPER, OLD_KEEPER], 0)
    assert "names no keeper" in wait_reason("budget_webhooks", [OLD_GATEWAY], 0)


def test_wait_reason_names_a_program_that_lists_other_capabilities() -> None:
    other = program("gateway", NEW, knows=("amended_prices",))
    assert wait_reason("amended_prices", [KEEPER, other], NEW) == ""
    assert "gateway 1.1.0 on web-1" in wait_reason("large_budgets", [KEEPER, other], NEW)
