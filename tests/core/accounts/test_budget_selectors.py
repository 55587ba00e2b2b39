"""How many budgets a call may meet."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.budget_selectors import (
    BUDGETS_MAX,
    SETS_MAX,
    Selector,
    may_meet_more,
    selector_of,
    sets_of_groups,
    too_many,
    too_many_by_tags,
    too_many_of_groups,
)
from gateway.core.accounts.budgets import Budget, CallAttributes

ANY = Selector(*[None] * 8, (), *[None] * (len(Selector._fields) - 9))
VALUES: dict[str, list[Any]] = {
    "tenant_id": [1, 2], "user": ["ada", "bob"], "api_key_id": [3], "project_id": [0, 1],
    "model": ["gpt-5", "gpt-5-mini", "gpt-*", "gpt-5*"], "service_id": [7], "each": ["user", "session"],
    "tool": ["search"], "server": ["git"], "tags": [(("feature", "a"),), (("team", "b"),)],
    "group_id": [1, 2, 3],
}  # fmt: skip
# A call is in both of the first groups, or in the last one, or in none.
TOGETHER = (frozenset({1, 2}), frozenset({3}))
MODELS = ("gpt-5", "gpt-5-mini", "gpt-4", "other")


def matching(selectors: set[Selector]) -> int:
    """The most that any call meets: all calls are tried."""
    most, budgets = 0, [budget_of(one) for one in selectors]
    for tenant, user, key, project, service, model, tool, server, groups in product(
        (1, 2), ("ada", "bob"), (3, 4), (0, 1), (7, 8), MODELS, ("search", ""), ("git", ""), TOGETHER
    ):
        tags = (("feature", "a"), ("team", "b"))
        asked = CallAttributes(
            tenant, key, service, user, project, (model,), "", tool, server, tags, tuple(sorted(groups))
        )
        most = max(most, sum(budget.matches(asked) for budget in budgets))
    return most


def budget_of(one: Selector) -> Budget:
    return Budget(
        1, "", "tokens", 1, "day", tenant_id=one.tenant_id or 0, user=one.user or "",
        api_key_id=one.api_key_id or 0, project_id=one.project_id, model=one.model or "",
        service_id=one.service_id or 0, each=one.each or "", tool=one.tool or "", server=one.server or "",
        tags=one.tags,
        group_id=one.group_id or 0,
    )  # fmt: skip


@given(
    st.sets(
        st.builds(Selector, **{name: st.sampled_from([() if name == "tags" else None, *some]) for name, some in VALUES.items()}),
        min_size=1, max_size=9,
    ),
    st.integers(1, 5),
)  # fmt: skip
def test_may_meet_more_agrees_with_trying_all_calls(selectors: set[Selector], most: int) -> None:
    for new in selectors:
        others = selectors - {new}
        if not may_meet_more(others, new, most, looks_max=100_000, together=TOGETHER):
            here = {one for one in selectors if one == new or matching({one, new}) == 2}
            assert matching(here) <= most
    if matching(selectors) <= most:
        assert not any(
            may_meet_more(selectors, new, most, looks_max=100_000, together=TOGETHER) for new in selectors
        )


def test_may_meet_more_is_empty_for_a_thousand_disjoint_selectors() -> None:
    names = ("tenant_id", "user", "project_id", "model")
    others = {ANY._replace(**{name: f"{name}{n}"}) for n in range(240) for name in names}
    assert not may_meet_more(others, ANY)
    assert not may_meet_more(others, ANY._replace(user="somebody"))


def test_too_many_refuses_more_selectors_than_accounts_of_call() -> None:
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


def test_too_many_of_groups_names_budgets_of_groups_that_meet() -> None:
    named = {f"budget {n}": ANY._replace(group_id=n) for n in range(1, 18)}
    assert not too_many_of_groups(named, {"user": [frozenset(range(1, 17)), frozenset({17})]})
    why = too_many_of_groups(
        named | {"elsewhere": ANY._replace(group_id=99)}, {"user": [frozenset(range(1, 18))]}
    )
    assert why.partition("with: ")[2].split(", ") == list(named)


def test_too_many_takes_another_budget_of_groups_without_a_member_in_common() -> None:
    of_one = {f"budget {n}": ANY._replace(group_id=1, project_id=None, each=f"{n}") for n in range(16)}
    assert (
        list(too_many(of_one, ANY._replace(group_id=2), groups={"user": [frozenset({1}), frozenset({2})]}))
        == []
    )
    [(field, _)] = too_many(of_one, ANY._replace(group_id=2), groups={"user": [frozenset({1, 2})]})
    assert field == "organization_id"


def test_may_meet_more_returns_all_selectors_beyond_maximum_of_looks() -> None:
    kinds = [ANY._replace(**{name: n}) for name in ("tenant_id", "project_id") for n in range(3)]
    assert may_meet_more(kinds, ANY, most=1, looks_max=0)


def test_too_many_refuses_more_budgets_than_windows_of_account() -> None:
    selector = selector_of({"model": "GPT-5*", "tenant_id": 3})
    same = {str(at): selector_of({"model": "gpt-5*", "tenant_id": 3}) for at in range(16)}
    assert list(too_many({name: same[name] for name in list(same)[:15]}, selector)) == []
    assert [field for field, _ in too_many(same, selector)] == ["name"]
    assert list(too_many(same, selector._replace(each="user"))) == []


@pytest.mark.parametrize(("there", "found"), [(BUDGETS_MAX - 1, []), (BUDGETS_MAX, ["organization_id"])])
def test_too_many_refuses_more_budgets_than_maximum_of_organization(there: int, found: list[str]) -> None:
    others = {str(n): ANY._replace(tenant_id=n) for n in range(there)}
    assert [field for field, _ in too_many(others, ANY._replace(tenant_id=-1))] == found


# --- tags -------------------------------------------------------------------------------------


def sixteen() -> dict[str, Selector]:
    """As many selectors as a call may meet, half of them of a tag."""
    fields = ("tenant_id", "user", "project_id")
    found = {}
    for at, some in enumerate(product((False, True), repeat=4)):
        names = [name for name, is_set in zip(fields, some, strict=False) if is_set]
        tags = (("feature", "a"),) if some[-1] else ()
        found[f"budget {at}"] = ANY._replace(**dict.fromkeys(names, 1), tags=tags)
    return found


def test_too_many_counts_budgets_of_tags_that_api_key_fixes() -> None:
    """A caller's own tags are no reason: the call is refused, and not the budget."""
    new = ANY._replace(tags=(("team", "b"),))
    assert list(too_many(sixteen(), new)) == []
    assert list(too_many(sixteen(), new, [(("feature", "a"),), (("team", "b"),)])) == []
    [(field, why)] = too_many(sixteen(), new, [(("feature", "a"), ("other", "x"), ("team", "b"))])
    assert field == "organization_id"
    assert "budget 15" in why


def test_too_many_by_tags_names_budgets_that_calls_of_key_would_meet() -> None:
    budgets = {**sixteen(), "of team": ANY._replace(tags=(("team", "b"),))}
    key = ANY._replace(tenant_id=1, api_key_id=3, tags=(("feature", "a"), ("team", "b")))
    [(field, why)] = too_many_by_tags(budgets, key)
    assert field == "tags"
    assert "of team" in why
    assert list(too_many_by_tags(budgets, key._replace(tags=key.tags[:1]))) == []
    assert list(too_many_by_tags(budgets, key._replace(tenant_id=2))) == []
    assert list(too_many_by_tags(budgets, key._replace(user="2"))) == []


def test_selector_of_sorts_tags() -> None:
    assert selector_of({"tags": {"b": "1", "a": "2"}}).tags == (("a", "2"), ("b", "1"))
    assert selector_of({"tags": {}}) == selector_of({}) == ANY


@pytest.mark.parametrize(
    ("by_kind", "sets"),
    [
        ({}, [set()]),
        ({"user": [{1}], "claim": [{2, 3}]}, [{1}, {2, 3}]),
        ({"user": [{1}, {2}, {1, 2}, {3}]}, [{1, 2}, {3}]),
        ({"user": [{1}, {2}], "tenant": [{5}]}, [{1, 5}, {2, 5}]),
    ],
)
def test_sets_of_groups_join_a_member_of_each_kind(
    by_kind: dict[str, list[set[int]]], sets: list[set[int]]
) -> None:
    found = sets_of_groups({kind: [frozenset(one) for one in some] for kind, some in by_kind.items()})
    assert sorted(map(sorted, found)) == sorted(map(sorted, sets))


def test_sets_of_groups_beyond_maximum_count_as_a_single_set() -> None:
    pairs = [frozenset(pair) for pair in combinations(range(8), 2)]
    assert len(pairs) ** 2 > SETS_MAX
    assert sets_of_groups({"user": pairs, "tenant": [frozenset({10 + n}) for n in range(28)]}) == [
        frozenset({*range(8), *range(10, 38)})
    ]
