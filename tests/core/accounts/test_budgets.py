"""Budgets: their windows in every zone, whom they match, what their accounts are called."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.budgets import (
    BUDGETS_MAX,
    DEFINED_WINDOW,
    FLAG_CUT,
    FLAG_ENFORCE,
    FLAG_MONEY,
    FLAG_TOKENS,
    MONEY_MAX,
    Budget,
    CallAttributes,
    PersonalRaise,
    Selector,
    account_of,
    accounts_of,
    defined,
    defined_until,
    is_of,
    may_meet_more,
    owner_of,
    read_budget,
    selector_of,
    shown,
    too_many,
    wrong_amount,
    wrong_raise,
    wrong_window,
)
from gateway.core.accounts.intervals import bounds
from gateway.core.model import INTEGER_MAX

BUDGET = Budget(7, "all", "money", 5_000_000_000, "month")
CALL = CallAttributes(3, 40, 2, "ada", 9, ("gpt-5-mini", "gpt-5"), "s-1")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def test_definition_of_a_total_never_changes() -> None:
    assert defined_until([replace(BUDGET, interval="total")], ms("2026-04-14T00:00:00Z")) == 0


def test_definition_is_by_id_and_says_the_limit_of_the_moment() -> None:
    at = ms("2026-05-05T05:05:05Z")
    raised = Budget(9, "day", "tokens", 100, "day", raised_to=250, raised_until_ms=at + 1, cut=True)
    packed, size = defined([raised, replace(BUDGET, enforce=False)], at), DEFINED_WINDOW.size
    first, second = DEFINED_WINDOW.read(packed[:size]), DEFINED_WINDOW.read(packed[size:])
    assert (first["budget_id"], first["limit"], first["flags"]) == (7, 5_000_000_000, FLAG_MONEY)
    assert (second["budget_id"], second["limit"]) == (9, 250)
    assert second["flags"] == FLAG_TOKENS | FLAG_ENFORCE | FLAG_CUT
    assert (second["start"], second["next"], second["after"]) == bounds("day", "UTC", 1, at)
    assert defined_until([raised, BUDGET], at) == at + 1
    assert DEFINED_WINDOW.read(defined([raised], at + 1))["limit"] == 100
    assert defined_until([raised, BUDGET], at + 1) == ms("2026-05-06T00:00:00Z")


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
def test_a_budget_is_about_calls_that_fit_all_it_names(selector: dict[str, Any], matched: bool) -> None:
    assert replace(BUDGET, **selector).matches(CALL) is matched


def test_what_a_call_does_not_name_fits_no_budget_that_names_one() -> None:
    silent = CallAttributes(3, 40, 2)
    named: list[dict[str, Any]] = [
        {"user": "ada"}, {"project_id": 0}, {"model": "*"}, {"tool": "search"}, {"server": "github"},
    ]  # fmt: skip
    for selector in named:
        assert not replace(BUDGET, **selector).matches(silent)


def test_a_budget_of_tools_is_about_their_calls_in_any_case() -> None:
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


def test_nobodys_calls_share_one_account_of_each() -> None:
    each = replace(BUDGET, each="user")
    nobody = account_of(1, each, each.value_of(CallAttributes(3, 40, 2)))
    assert nobody == account_of(1, each, each.value_of(CallAttributes(3, 41, 5)))
    assert nobody != account_of(1, each, each.value_of(CALL))
    for kind, value in (("user", "ada"), ("key", "40"), ("project", "9"), ("session", "s-1"), ("", "")):
        assert replace(BUDGET, each=kind).value_of(CALL) == value


def test_an_account_is_named_by_selector_and_value_alone() -> None:
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


def test_budgets_alike_share_an_account() -> None:
    day, mine = replace(BUDGET, id=1, interval="day"), replace(BUDGET, id=3, user="ada")
    assert accounts_of([BUDGET, mine, day]) == [[day, BUDGET], [mine]]


def test_budgets_travel_as_they_are() -> None:
    made = replace(BUDGET, project_id=0, each="session", model="gpt-5*")
    assert msgspec.json.decode(msgspec.json.encode(made), type=Budget) == made


def test_models_fit_in_any_case() -> None:
    assert is_of("GPT-5-Mini", "gpt-5*")
    assert is_of("gpt-5", "GPT-5*")
    assert not is_of("gpt-4", "gpt-5*")


def test_amounts_are_shown_in_their_unit() -> None:
    assert shown("money", 12_500_000_000, "EUR") == "12.5 EUR"
    assert shown("money", 1, "EUR") == "0.000000001 EUR"
    assert shown("money", 200_000_000_000, "USD") == "200 USD"
    assert shown("tokens", 3000, "USD") == "3000 tokens"


# --- budget terms -----------------------------------------------------------------------
# Budgets as they are said: what is wrong with one, field by field, and what it is for calls.


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
def test_amounts_that_are_counted_exactly_are_right(unit: str, amount: object) -> None:
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
def test_a_raise_is_to_no_less_and_has_its_end_ahead(amount: object, later: int, found: list[str]) -> None:
    until = NOW + timedelta(seconds=later)
    assert [field for field, _ in wrong_raise(read_budget(STORED), amount, until, NOW)] == found


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
def test_a_raise_of_one_never_lowers_what_everybody_has(
    raised_to: int, own: int | None, at: int, limit: tuple[int, str]
) -> None:
    raises = {} if own is None else {ADA: PersonalRaise(own, 10)}
    budget = Budget(
        1, "each", "requests", 20, "day", each="user", raised_to=raised_to, raised_until_ms=5, raises=raises
    )
    assert budget.limit_of(ADA, at) == limit
    others = (raised_to if at < 5 else 20, "budget")
    assert budget.limit_of(owner_of("bob"), at) == budget.limit_of("", at) == others


def test_a_raise_of_one_is_read_in_what_is_counted() -> None:
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
def test_a_raise_of_one_is_of_a_value_of_each_and_not_below_what_it_has(
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
def test_a_raise_of_one_is_not_below_its_own_raise_in_force(
    who: str, now_s: int, amount: int, found: list[str]
) -> None:
    budget = Budget(
        1, "each", "requests", 500, "day", each="user", raised_to=600, raised_until_ms=20_000,
        raises={owner_of("ada"): PersonalRaise(800, 10_000)},
    )  # fmt: skip
    now = datetime.fromtimestamp(now_s, UTC)
    assert [field for field, _ in wrong_raise(budget, amount, now + timedelta(seconds=1), now, who)] == found


# --- selectors --------------------------------------------------------------------------
# How many budgets a call may meet at once.


ANY = Selector(None, None, None, None, None, None, None, None, None)
VALUES: dict[str, list[Any]] = {
    "tenant_id": [1, 2], "user": ["ada", "bob"], "api_key_id": [3], "project_id": [0, 1],
    "model": ["gpt-5", "gpt-5-mini", "gpt-*", "gpt-5*"], "service_id": [7], "each": ["user", "session"],
    "tool": ["search"], "server": ["git"],
}  # fmt: skip
MODELS = ("gpt-5", "gpt-5-mini", "gpt-4", "other")


def matching(selectors: set[Selector]) -> int:
    """The most that any call meets: all calls are tried."""
    most, budgets = 0, [budget_of(one) for one in selectors]
    for tenant, user, key, project, service, model, tool, server in product(
        (1, 2), ("ada", "bob"), (3, 4), (0, 1), (7, 8), MODELS, ("search", ""), ("git", "")
    ):
        asked = CallAttributes(tenant, key, service, user, project, (model,), "", tool, server)
        most = max(most, sum(budget.matches(asked) for budget in budgets))
    return most


def budget_of(one: Selector) -> Budget:
    return Budget(
        1, "", "tokens", 1, "day", tenant_id=one.tenant_id or 0, user=one.user or "",
        api_key_id=one.api_key_id or 0, project_id=one.project_id, model=one.model or "",
        service_id=one.service_id or 0, each=one.each or "", tool=one.tool or "", server=one.server or "",
    )  # fmt: skip


@given(
    st.sets(
        st.builds(Selector, **{name: st.sampled_from([None, *some]) for name, some in VALUES.items()}),
        min_size=1, max_size=9,
    ),
    st.integers(1, 5),
)  # fmt: skip
def test_it_is_what_trying_all_calls_finds(selectors: set[Selector], most: int) -> None:
    for new in selectors:
        others = selectors - {new}
        if not may_meet_more(others, new, most, looks_max=100_000):
            here = {one for one in selectors if one == new or matching({one, new}) == 2}
            assert matching(here) <= most
    if matching(selectors) <= most:
        assert not any(may_meet_more(selectors, new, most, looks_max=100_000) for new in selectors)


def test_a_thousand_budgets_of_a_team_each_are_met_one_at_a_time() -> None:
    names = ("tenant_id", "user", "project_id", "model")
    others = {ANY._replace(**{name: f"{name}{n}"}) for n in range(240) for name in names}
    assert not may_meet_more(others, ANY)
    assert not may_meet_more(others, ANY._replace(user="somebody"))


def test_more_kinds_of_budgets_than_a_call_has_room_for_are_refused() -> None:
    fields = ("tenant_id", "user", "api_key_id", "project_id")
    kinds = [
        ANY._replace(**{name: 1 for name, is_set in zip(fields, some, strict=True) if is_set})
        for some in product((False, True), repeat=4)
    ]
    assert len(kinds) == 16
    named = {f"budget {at}": one for at, one in enumerate(kinds)}
    elsewhere = {"elsewhere": ANY._replace(tenant_id=2)}
    assert list(too_many({**named, "budget 0": kinds[1]}, kinds[0])) == []
    [(field, why)] = too_many(elsewhere | named, ANY._replace(each="session"))
    assert field == "organization_id"
    assert why.partition("with: ")[2].split(", ") == list(named)
    # Of another tenant it is never met together with those.
    assert list(too_many(named, ANY._replace(tenant_id=2, each="session"))) == []


def test_what_cannot_be_told_in_time_is_too_much() -> None:
    kinds = [ANY._replace(**{name: n}) for name in ("tenant_id", "project_id") for n in range(3)]
    assert may_meet_more(kinds, ANY, most=1, looks_max=0)


def test_so_many_windows_share_an_account() -> None:
    selector = selector_of({"model": "GPT-5*", "tenant_id": 3})
    same = {str(at): selector_of({"model": "gpt-5*", "tenant_id": 3}) for at in range(16)}
    assert list(too_many({name: same[name] for name in list(same)[:15]}, selector)) == []
    assert [field for field, _ in too_many(same, selector)] == ["name"]
    assert list(too_many(same, selector._replace(each="user"))) == []


@pytest.mark.parametrize(("there", "found"), [(BUDGETS_MAX - 1, []), (BUDGETS_MAX, ["organization_id"])])
def test_an_organization_has_so_many_budgets(there: int, found: list[str]) -> None:
    others = {str(n): ANY._replace(tenant_id=n) for n in range(there)}
    assert [field for field, _ in too_many(others, ANY._replace(tenant_id=-1))] == found
