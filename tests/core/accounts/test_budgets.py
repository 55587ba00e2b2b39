"""Budgets: which calls one is about, the names of its accounts, its windows and limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import pytest

from gateway.core.accounts.budgets import (
    DEFINED_WINDOW,
    FLAG_CUT,
    FLAG_ENFORCE,
    FLAG_MONEY,
    FLAG_TOKENS,
    Budget,
    CallAttributes,
    PersonalOverride,
    PersonalRaise,
    account_of,
    accounts_of,
    define_windows,
    is_of,
    owner_of,
    windows_valid_until,
)
from gateway.core.accounts.intervals import window_bounds
from gateway.core.accounts.windows import ROLLING, Carry
from gateway.core.model import INTEGER_MAX

BUDGET = Budget(7, "all", "money", 5_000_000_000, "month")
CALL = CallAttributes(3, 40, 2, "ada", 9, ("gpt-5-mini", "gpt-5"), "s-1")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def test_definition_of_total_never_changes() -> None:
    assert windows_valid_until([replace(BUDGET, interval="total")], ms("2026-04-14T00:00:00Z")) == 0


def test_definition_orders_windows_by_id_with_present_limits() -> None:
    at = ms("2026-05-05T05:05:05Z")
    raised = Budget(9, "day", "tokens", 100, "day", raised_to=250, raised_until_ms=at + 1, cut=True)
    packed, size = define_windows([raised, replace(BUDGET, enforce=False)], at), DEFINED_WINDOW.size
    first, second = DEFINED_WINDOW.read(packed[:size]), DEFINED_WINDOW.read(packed[size:])
    assert (first["budget_id"], first["limit"], first["flags"]) == (7, 5_000_000_000, FLAG_MONEY)
    assert (second["budget_id"], second["limit"]) == (9, 250)
    assert second["flags"] == FLAG_TOKENS | FLAG_ENFORCE | FLAG_CUT
    assert (second["start"], second["next"], second["after"]) == window_bounds("day", "UTC", 1, at)
    assert windows_valid_until([raised, BUDGET], at) == at + 1
    assert DEFINED_WINDOW.read(define_windows([raised], at + 1))["limit"] == 100
    assert windows_valid_until([raised, BUDGET], at + 1) == ms("2026-05-06T00:00:00Z")


@pytest.mark.parametrize(
    ("selector", "matched"),
    [
        ({}, True),
        ({"tenant_id": 3, "api_key_id": 40, "service_id": 2, "user": "ada", "project_id": 9}, True),
        ({"tenant_id": 4}, False),
        ({"api_key_id": 41}, False),
        ({"service_id": 3}, False),
        ({"user": "Ada"}, False),
        ({"project_id": 0}, False),
        ({"model": "gpt-5"}, True),
        ({"model": "GPT-5-MINI"}, True),
        ({"model": "gpt-5-*"}, True),
        ({"model": "gpt"}, False),
        ({"model": "claude*"}, False),
        ({"model": "*"}, True),
    ],
)
def test_budget_matches_calls_by_all_its_fields(selector: dict[str, Any], matched: bool) -> None:
    assert replace(BUDGET, **selector).matches(CALL) is matched


def test_budget_with_field_matches_no_call_without_value() -> None:
    silent = CallAttributes(3, 40, 2)
    named: list[dict[str, Any]] = [
        {"user": "ada"}, {"project_id": 0}, {"model": "*"}, {"tool": "search"}, {"server": "github"},
    ]  # fmt: skip
    for selector in named:
        assert not replace(BUDGET, **selector).matches(silent)


def test_budget_of_tool_matches_calls_in_any_case() -> None:
    asked = CALL._replace(tool="Search", server="github")
    said: tuple[dict[str, Any], ...] = (
        {"tool": "search"}, {"server": "GitHub"}, {"tool": "SEARCH", "server": "github"},
    )  # fmt: skip
    for selector in said:
        assert replace(BUDGET, **selector).matches(asked)
        assert not replace(BUDGET, **selector).matches(asked._replace(tool="searches", server="git"))
    # An account that was there before has the name it had.
    assert BUDGET.selector == (0, "", 0, None, "", 0, "")
    assert len({account_of(1, replace(BUDGET, **one)) for one in ({}, *said)}) == 4


def test_account_of_each_is_shared_by_calls_without_user() -> None:
    each = replace(BUDGET, each="user")
    nobody = account_of(1, each, each.value_of(CallAttributes(3, 40, 2)))
    assert nobody == account_of(1, each, each.value_of(CallAttributes(3, 41, 5)))
    assert nobody != account_of(1, each, each.value_of(CALL))
    for kind, value in (
        ("user", "ada"), ("key", "40"), ("project", "9"), ("session", "s-1"), ("tenant", "3"), ("", ""),
    ):  # fmt: skip
        assert replace(BUDGET, each=kind).value_of(CALL) == value


def test_account_name_depends_on_selector_and_value_alone() -> None:
    alike = replace(BUDGET, id=8, unit="tokens", amount=1, interval="day")
    assert account_of(1, BUDGET) == account_of(1, alike)
    assert len(account_of(1, BUDGET)) == 16
    each = replace(BUDGET, each="user")
    named = account_of(1, each, "ada@example.com")
    assert len(named) == 16 + 1 + 24
    assert "ada" not in named
    others = [
        account_of(1, BUDGET), account_of(2, BUDGET), account_of(1, replace(BUDGET, tenant_id=1)),
        account_of(1, replace(BUDGET, api_key_id=1)), account_of(1, replace(BUDGET, project_id=1)),
        account_of(1, replace(BUDGET, project_id=0)), account_of(1, replace(BUDGET, model="1")),
        account_of(1, replace(BUDGET, user="1")), account_of(1, each), named,
    ]  # fmt: skip
    assert len(set(others)) == len(others)


def test_budgets_with_equal_selectors_share_account() -> None:
    day, mine = replace(BUDGET, id=1, interval="day"), replace(BUDGET, id=3, user="ada")
    assert accounts_of([BUDGET, mine, day]) == [[day, BUDGET], [mine]]


def test_budget_survives_encoding_and_decoding() -> None:
    made = replace(BUDGET, project_id=0, each="session", model="gpt-5*")
    assert msgspec.json.decode(msgspec.json.encode(made), type=Budget) == made


def test_model_matches_pattern_in_any_case() -> None:
    assert is_of("GPT-5-Mini", "gpt-5*")
    assert is_of("gpt-5", "GPT-5*")
    assert not is_of("gpt-4", "gpt-5*")


ADA = owner_of("ada")


@pytest.mark.parametrize(
    ("raised_to", "own", "at", "limit"),
    [
        (20, None, 0, (20, "budget")),
        (20, 50, 0, (50, "raise")),
        (20, 50, 9, (50, "raise")),
        (20, 50, 10, (20, "budget")),
        # Everybody is raised until 5: whichever is larger counts.
        (100, 50, 4, (100, "budget")),
        (100, 50, 5, (50, "raise")),
        (30, 50, 4, (50, "raise")),
        (50, 50, 4, (50, "budget")),
    ],
)
def test_limit_of_owner_is_never_lowered_by_raise(
    raised_to: int, own: int | None, at: int, limit: tuple[int, str]
) -> None:
    raises = {} if own is None else {ADA: PersonalRaise(own, 10)}
    budget = Budget(
        1, "each", "requests", 20, "day", each="user", raised_to=raised_to, raised_until_ms=5, raises=raises
    )
    assert budget.limit_of(ADA, at)[:2] == limit
    others = (raised_to if at < 5 else 20, "budget")
    assert budget.limit_of(owner_of("bob"), at)[:2] == budget.limit_of("", at)[:2] == others


@pytest.mark.parametrize(
    ("amount", "own", "at", "limit"),
    [
        (5, None, 0, (5, "override")),
        (500, None, 0, (500, "override")),
        (0, None, 0, (0, "override")),
        (None, None, 0, (None, "override")),
        # The override ends at 8, everybody is raised to 60 until 6, the own raise ends at 10.
        (5, None, 7, (5, "override")),
        (5, None, 8, (20, "budget")),
        (5, 10, 0, (10, "raise")),
        (5, 10, 8, (20, "budget")),
        (5, 30, 8, (30, "raise")),
        (500, 30, 0, (30, "raise")),
        (5, 10, 10, (20, "budget")),
    ],
)
def test_limit_of_owner_is_its_raise_then_its_override_then_the_budgets(
    amount: int | None, own: int | None, at: int, limit: tuple[int | None, str]
) -> None:
    budget = Budget(
        1, "each", "requests", 20, "day", each="user", raised_to=60, raised_until_ms=6,
        overrides={ADA: PersonalOverride(amount, 8)}, raises={} if own is None else {ADA: PersonalRaise(own, 10)},
    )  # fmt: skip
    assert budget.limit_of(ADA, at)[:2] == limit
    assert (
        budget.limit_of(owner_of("bob"), at)[:2]
        == budget.limit_of("", at)[:2]
        == (60 if at < 6 else 20, "budget")
    )


@pytest.mark.parametrize(
    ("overrides", "groups", "limit"),
    [
        ({"group:7": (5, 0)}, (7,), (5, "group")),
        ({"group:7": (5, 0)}, (8,), (20, "budget")),
        ({"group:7": (5, 0), "group:8": (90, 0)}, (7, 8), (5, "group")),
        ({"group:7": (None, 0), "group:8": (90, 0)}, (7, 8), (90, "group")),
        ({"group:7": (None, 0)}, (7,), (None, "group")),
        ({"group:7": (0, 0)}, (7,), (0, "group")),
        ({"group:7": (5, 0), ADA: (90, 0)}, (7,), (90, "override")),
        ({"group:7": (5, 0), ADA: (None, 0)}, (7,), (None, "override")),
        # What ends at 3 is over at 3: an own one, and the smaller one of two groups.
        ({"group:7": (5, 0), ADA: (90, 3)}, (7,), (5, "group")),
        ({"group:7": (5, 3), "group:8": (9, 4)}, (7, 8), (9, "group")),
    ],
)
def test_limit_of_owner_is_the_smallest_of_its_groups_behind_its_own(
    overrides: dict[str, tuple[int | None, int]], groups: tuple[int, ...], limit: tuple[int | None, str]
) -> None:
    own = {name: PersonalOverride(*override) for name, override in overrides.items()}
    budget = Budget(1, "each", "tokens", 20, "day", each="user", overrides=own)
    assert budget.limit_of(ADA, 3, groups)[:2] == limit
    raised = replace(budget, raises={ADA: PersonalRaise(7, 9)})
    assert raised.limit_of(ADA, 3, groups)[:2] == ((20, "budget") if limit[1] == "budget" else (7, "raise"))


def test_override_without_an_end_stays() -> None:
    budget = replace(BUDGET, each="user", overrides={ADA: PersonalOverride(5)})
    assert budget.limit_of(ADA, 2**52)[:2] == (5, "override")
    assert windows_valid_until([replace(budget, interval="total")], 1, ADA) == 0


def test_window_without_a_limit_is_counted_and_refuses_no_call() -> None:
    budget = Budget(
        1, "each", "money", 20, "total", each="user", cut=True, overrides={ADA: PersonalOverride(None)}
    )
    [(_, limit, *_, flags)] = DEFINED_WINDOW.struct.iter_unpack(define_windows([budget], 1, ADA))
    assert (limit, flags & FLAG_ENFORCE, flags & FLAG_MONEY) == (INTEGER_MAX, 0, FLAG_MONEY)
    [(*_, flags)] = DEFINED_WINDOW.struct.iter_unpack(define_windows([budget], 1, owner_of("bob")))
    assert flags & FLAG_ENFORCE


def test_budget_needs_the_newest_layout_by_its_largest_override() -> None:
    usual = Budget(1, "each", "money", 20, "day", each="user", overrides={ADA: PersonalOverride(None)})
    assert not usual.needs_newest_layout
    assert replace(usual, overrides={ADA: PersonalOverride(2**53)}).needs_newest_layout
    assert replace(usual, carry=Carry(1)).needs_newest_layout
    assert replace(usual, interval="", window=ROLLING, length_ms=10**6).needs_newest_layout
